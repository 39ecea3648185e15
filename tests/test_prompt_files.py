"""Files of prompts that anybody may write: each kind holds the same prompts, and what is of no kind is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gcpo_bench import outside
from gcpo_bench.datasets import Prompt, prompts_by_task
from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.prompt_files import read_own

from .conftest import Cli

PROMPTS = ["a photo of a cow", "two cats, one \u201cdog\u201d", "a cup"]
OBJECTS = [{"prompt": text, "path1": "a.jpg"} for text in PROMPTS]
LINES = "".join(json.dumps(each) + "\n" for each in OBJECTS)
TABLE = "Prompts,Category\n" + "".join(f'"{text}",x\n' for text in PROMPTS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.txt", "\n".join(PROMPTS)),
        ("lines", "\n".join(PROMPTS) + "\n\n"),
        ("marked.txt", "\ufeff" + "\r\n".join(PROMPTS)),
        ("objects.jsonl", LINES),
        ("objects.ndjson", LINES),
        ("UPPER.JSONL", LINES),
        ("marked.jsonl", "\ufeff" + LINES),
        ("blank.jsonl", LINES.replace("\n", "\n\n") + "\n\n"),
        ("lines.json", LINES),
        ("list.json", json.dumps(OBJECTS)),
        ("pretty.json", json.dumps(OBJECTS, indent=1)),
        ("pretty.jsonl", json.dumps(OBJECTS, indent=1)),
        ("texts.json", json.dumps(PROMPTS)),
        ("captions.jsonl", LINES.replace('"prompt"', '"Caption"')),
        ("table.csv", TABLE),
        ("marked.csv", "\ufeff" + TABLE),
        ("excel.csv", TABLE.replace('",', '";').replace("s,C", "s;C")),
        ("table.tsv", TABLE.replace('",', '"\t').replace("s,C", "s\tC")),
        ("lower.csv", TABLE.replace("Prompts,Category", " prompt ,category") + "\n\n"),
        ("turned.csv", "id,caption\n" + "".join(f'{row},"{text}"\n' for row, text in enumerate(PROMPTS))),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_each_kind_of_file_holds_its_prompts(tmp_path: Path, name: str, content: str, encoding: str) -> None:
    if encoding == "utf-16":
        content = content.removeprefix("\ufeff")  # the encoding writes its own mark
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert read_own(tmp_path / name) == PROMPTS


def test_a_prompt_may_reach_over_lines_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text('prompt\n"one\ntwo"\n')
    assert read_own(tmp_path / "own.csv") == ["one\ntwo"]


@pytest.mark.parametrize("name", ["prompts.parquet", "prompts.yaml", "prompts.tar", "prompts.md"])
def test_a_kind_that_is_not_known_is_refused_and_not_read_as_lines(tmp_path: Path, cli: Cli, name: str) -> None:
    (tmp_path / name).write_text("a photo of a cow\n")
    with pytest.raises(ConfigError, match=f"files of prompts that end in {Path(name).suffix} cannot be read") as error:
        read_own(tmp_path / name)
    assert error.value.hint == "write the prompts as one of .txt, .jsonl, .ndjson, .json, .csv, .tsv"
    told = cli("data", "overlap", str(tmp_path / name), "scenes-heldout")
    assert (told.code, told.out) == (2, "")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b'{"prompt": "a cow"}\n', "it holds JSON, not one prompt a line; name it .json"),
        ("a.txt", b'[\n "a cow"\n]', "it holds JSON, not one prompt a line; name it .json"),
        ("a.txt", b"\n \n", "it is empty"),
        ("a.json", b"[]", "it is empty"),
        ("a.csv", b"prompt\n", "it is empty"),
        ("a.csv", b"", "it has no column 'prompt' or 'prompts' or 'caption' or 'text'"),
        ("a.csv", b"a photo of a cow\na photo of a cup\n", "it has no column 'prompt'"),
        ("a.csv", b"prompt,tag\na red, round cup,x\n", "line 2 has 3 cells, its header 2"),
        ("a.jsonl", b'{"prompt": "a cow"}\nno json\n', "line 2 is not JSON"),
        ("a.jsonl", b'{"prompt": "a cow"}\n{"tag": 1}\n', "line 2 has no text in 'prompt'"),
        ("a.json", b'["a cow", 3]', "entry 2 has no text in 'prompt'"),
        ("a.json", b'{"prompt": ["a cow"]}', "entry 1 has no text in 'prompt'"),
        ("a.txt", "K\u00fche".encode("latin-1"), "it is not utf-8 text"),
    ],
)
def test_what_cannot_be_read_is_told_with_the_reason(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptDataError, match=f"{name} cannot be read as prompts: {reason}") as error:
        read_own(tmp_path / name)
    assert "delete" not in error.value.hint
    assert error.value.hint.startswith("one prompt a line (.txt), or JSON or a table that holds it under 'prompt'")


# ---------------------------------------------------------------- training on one's own

OWN = """
from gcpo_bench.datasets import Prompt

def prompts():
    include = [{"class": "circle", "count": 1}]
    return [Prompt(id="own-0", text="a photo of a circle", metadata={"tag": "single_object", "include": include})]

prompts.gcpo_bench_part = "prompt set"
"""


def test_a_function_of_ones_own_is_trained_on_and_searched_for_leaks(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    small = ["sampling.prompts_per_step=1", "sampling.group_size=2", "logging.tracked_prompts=1"]
    options = [part for setting in (*small, "data.prompts=own:prompts") for part in ("-o", setting)]
    trained = cli("train", "--model", "scenes-8", "--num-steps", "1", *options)
    assert trained.code == 0, trained.err
    found = cli("data", "overlap", "own:prompts", "own:prompts")
    assert found.out.startswith("of 1 different prompts of own:prompts, 1 are in own:prompts exactly")


def test_a_file_in_place_of_a_set_says_the_way(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text(LINES)
    told = cli("train", "--model", "scenes-8", "-o", f"data.prompts={tmp_path / 'own.jsonl'}")
    assert told.code == 2
    assert "hint: write a function that returns the file's prompts" in told.err


def doubled() -> list[Prompt]:
    return [Prompt(id="0", text="a cow"), Prompt(id="0", text="a cup")]


def no_prompts() -> list[str]:
    return ["a cow"]


def nothing() -> list[Prompt]:
    return []


for function in (doubled, no_prompts, nothing):
    function.gcpo_bench_part = "prompt set"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "what"), [("doubled", "2 entries that hold 1"), ("no_prompts", "1 entries that hold 0"), ("nothing", "0")]
)
def test_a_function_that_returns_something_else_is_told(name: str, what: str) -> None:
    outside.allow([f"tests.test_prompt_files:{name}"])
    with pytest.raises(ConfigError, match=f"prompt set 'tests.test_prompt_files:{name}' returns {what}"):
        prompts_by_task(f"tests.test_prompt_files:{name}")

"""Published prompt sets: fetched, imported, checked to the byte; and what training prompts give away."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gcpo_bench import outside, prompt_sets
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError
from gcpo_bench.evaluators.geneval_benchmark import GenEvalBenchmark
from gcpo_bench.prompt_files import read_geneval, read_lines
from gcpo_bench.prompt_sets import SETS, PromptSet, fetch, load, normalized, overlap, texts, verify
from gcpo_bench.registry import PROMPT_SETS, Entry

from .conftest import Cli

PUBLISHED = Path(os.environ.get("GCPO_BENCH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
"""Copies of the published sets, where the machine has them."""
LINES = (
    '{"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a photo of a red cup"}\n'
    '{"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "a photo of two cats"}\n'
)
OLD = LINES.replace("red cup", "blue cup")


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PromptSet:
    """A set of two prompts that is published as far as the program knows, and an empty data folder."""
    made = PromptSet(
        name="tiny",
        summary="two prompts",
        file="tiny/metadata.jsonl",
        sha256=hashlib.sha256(LINES.encode()).hexdigest(),
        count=2,
        source="somebody/tiny, prompts/original_name.jsonl",
        url="https://localhost.invalid/metadata.jsonl",
        licence="MIT",
        read=read_geneval,
        others={hashlib.sha256(OLD.encode()).hexdigest(): "the version before the cup was painted"},
    )
    monkeypatch.setitem(SETS, "tiny", made)
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path / "home"))
    return made


def put(folder: Path, name: str, content: str = LINES) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return folder


@pytest.mark.parametrize("name", ["tiny/metadata.jsonl", "metadata.jsonl", "deep/er/original_name.jsonl"])
def test_a_set_is_imported_from_wherever_it_lies_in_a_folder(tmp_path: Path, tiny: PromptSet, name: str) -> None:
    with pytest.raises(PrerequisiteError, match="the prompts of tiny are not on this machine") as error:
        load("tiny")
    assert "gcpo-bench data fetch tiny" in error.value.hint
    assert fetch("tiny", put(tmp_path / "stick", name)) == tiny.path
    verify("tiny")
    prompts = load("tiny")
    assert [(p.id, p.text, p.tag) for p in prompts] == [
        ("00000", "a photo of a red cup", "colors"),
        ("00001", "a photo of two cats", "counting"),
    ]
    assert prompts[0].metadata["include"] == [{"class": "cup", "count": 1, "color": "red"}]


def test_a_wrong_copy_does_not_hide_a_right_one(tmp_path: Path) -> None:
    stick = put(put(tmp_path / "stick", "tiny/metadata.jsonl", "{}"), "backup/metadata.jsonl")
    fetch("tiny", stick)
    verify("tiny")


def test_a_changed_line_is_refused_and_nothing_is_written(tmp_path: Path, tiny: PromptSet) -> None:
    changed = LINES.replace("two cats", "two dogs")
    with pytest.raises(CorruptDataError, match=rf"should be {tiny.sha256}") as error:
        fetch("tiny", put(tmp_path / "stick", "metadata.jsonl", changed))
    assert "a line was changed" in error.value.hint
    assert not tiny.path.exists()
    put(tiny.path.parent, tiny.path.name, changed)
    for use in (load, verify):
        with pytest.raises(CorruptDataError, match="is not the published tiny"):
            use("tiny")


def test_another_published_version_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(CorruptDataError, match="is the version before the cup was painted"):
        fetch("tiny", put(tmp_path / "stick", "metadata.jsonl", OLD))
    assert any("before 2025-09-03" in what for what in SETS["t2i-compbench-color"].others.values())


@pytest.mark.parametrize("ends", ["\r\n", "\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_converted_line_ends_are_the_same_set(
    tmp_path: Path, tiny: PromptSet, ends: str, last: bool, mark: str
) -> None:
    def converted(text: str) -> str:
        text = mark + text
        return text.replace("\n", ends) if last else text.removesuffix("\n").replace("\n", ends)

    fetch("tiny", put(tmp_path / "stick", "metadata.jsonl", converted(LINES)))
    verify("tiny")
    assert load("tiny") == prompt_sets.parse(tiny, LINES.encode())
    with pytest.raises(CorruptDataError, match="is the version before the cup was painted"):
        fetch("tiny", put(tmp_path / "old", "metadata.jsonl", converted(OLD)))
    with pytest.raises(CorruptDataError, match="is not the published tiny"):
        fetch("tiny", put(tmp_path / "changed", "metadata.jsonl", converted(LINES.replace("two", "2"))))


def test_a_folder_without_the_set_is_told(tmp_path: Path) -> None:
    (tmp_path / "stick").mkdir()
    with pytest.raises(PrerequisiteError, match=r"holds no metadata\.jsonl of tiny"):
        fetch("tiny", tmp_path / "stick")


def test_without_network_the_mend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(PrerequisiteError, match="cannot be fetched: no network") as error:
        fetch("tiny")
    assert error.value.hint.endswith("gcpo-bench data fetch tiny --from FOLDER")
    with pytest.raises(PrerequisiteError, match="no address is known that drawbench can be fetched from"):
        fetch("drawbench")
    with pytest.raises(PrerequisiteError, match="drawbench are not on this machine") as missing:
        load("drawbench")
    assert missing.value.hint.startswith("gcpo-bench data fetch drawbench --from FOLDER: Imagen's")


def test_the_source_can_be_any_address(tmp_path: Path, tiny: PromptSet, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    place = put(tmp_path / "web", "metadata.jsonl") / "metadata.jsonl"
    monkeypatch.setitem(SETS, "tiny", replace(tiny, url=place.as_uri()))
    fetch("tiny")
    verify("tiny")
    place.write_text("changed on its way")
    with pytest.raises(CorruptDataError, match="is not the published tiny"):
        fetch("tiny")


@pytest.mark.parametrize("line", ["no json", "[1]", '{"prompt": 3}', '{"tag": "x"}', "[" * 100_000])
def test_a_line_that_cannot_be_read_is_named(line: str) -> None:
    with pytest.raises(CorruptDataError, match="line 2"):
        prompt_sets.parse(SETS["tiny"], f'{{"prompt": "a"}}\n{line}\n'.encode())


def test_line_ends_and_strange_characters_are_no_lines() -> None:
    assert read_lines("a\r\n  b \u2028 c\x0b\r\n\r\n") == [("a", {}), ("b \u2028 c", {})]


def test_overlap_is_told_exactly_and_normalised() -> None:
    found = overlap(
        ["a photo of a red cup", "Two  cats!", "ＡＢＣ"],
        ["two cats", "a photo of a red cup", "a photo of a red cup", "abc", "a dog", "red cup"],
    )
    assert found.exact == ("a photo of a red cup",)
    assert found.normalized == ("two cats", "abc")
    assert found.total == 5
    assert normalized("  It's  a\tDog. ") == "it s a dog"


def test_evaluation_sets_on_this_machine_are_searched_for_leaks(
    cli: Cli, tmp_path: Path, tiny: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prompt_sets.leaks(["a photo of two cats"]) == {}  # nothing is there to compare with
    fetch("tiny", put(tmp_path / "stick", "metadata.jsonl"))
    (name, found), *rest = prompt_sets.leaks(["A photo of two cats", "a dog"]).items()
    assert (name, found.normalized, found.exact, rest) == ("tiny", ("a photo of two cats",), (), [])
    monkeypatch.setitem(PROMPT_SETS.entries, "leaky", Entry("tests.test_prompt_sets:leaky", "two prompts"))
    small = ["sampling.prompts_per_step=1", "sampling.group_size=2", "logging.tracked_prompts=1", "data.prompts=leaky"]
    options = [part for setting in small for part in ("-o", setting)]
    trained = cli("train", "--model", "scenes-8", "--num-steps", "1", *options)  # this model does not know these words
    assert "warning: 1 of 2 evaluation prompts of tiny are training prompts" in trained.err


def leaky() -> list[Prompt]:
    include = [{"class": "circle", "count": 1}]
    return [Prompt(id="x", text="a photo of two cats", metadata={"tag": "single_object", "include": include})]


leaky.gcpo_bench_part = "prompt set"  # type: ignore[attr-defined]


def test_prompts_come_from_sets_and_files(tmp_path: Path) -> None:
    assert len(texts("scenes-heldout")) == 288
    fetch("tiny", put(tmp_path / "stick", "metadata.jsonl"))
    assert texts("tiny") == ["a photo of a red cup", "a photo of two cats"]
    put(tmp_path, "own.csv", '"Prompts","Category"\n"a, b","x"\n')
    assert texts(str(tmp_path / "own.csv")) == ["a, b"]
    assert texts(str(put(tmp_path, "own.txt", "one\ntwo") / "own.txt")) == ["one", "two"]
    outside.allow(["tests.test_prompt_sets:leaky"])
    assert texts("tests.test_prompt_sets:leaky") == ["a photo of two cats"]
    with pytest.raises(CorruptDataError, match=r"bad\.jsonl cannot be read as prompts: line 1"):
        texts(str(put(tmp_path, "bad.jsonl", "x") / "bad.jsonl"))
    with pytest.raises(ConfigError, match="'tinny' is neither") as error:
        texts("tinny")
    assert "did you mean 'tiny'" in error.value.hint


def test_the_command_line_lists_fetches_verifies_and_compares(cli: Cli, tmp_path: Path) -> None:
    stick = str(put(tmp_path / "stick", "metadata.jsonl"))
    states = {row["name"]: row["state"] for row in json.loads(cli("data", "ls", "--json").out)}
    assert set(states.values()) == {"not fetched"}
    assert cli("data", "verify").code == 0
    fetched = cli("data", "fetch", "tiny", "--from", stick)
    assert (fetched.code, fetched.err) == (0, "")
    assert "tiny" in cli("data", "ls").out
    assert cli("data", "verify").out.startswith("tiny: ok, 2 prompts, sha256 ")
    everything = cli("data", "fetch", "--from", stick)  # what is there is taken, what is not is told
    assert everything.code == 4
    assert "drawbench: " in everything.err
    both = cli("data", "overlap", "tiny", "tiny", "--json")
    assert json.loads(both.out)["total"] == len(json.loads(both.out)["exact"]) == 2
    assert (
        "of 288 different prompts of scenes-heldout, 0 are in tiny"
        in cli("data", "overlap", "tiny", "scenes-heldout").out
    )
    SETS["tiny"].path.write_text("other")
    damaged = cli("data", "verify")
    assert damaged.code == 5
    assert "error: " in damaged.err
    assert json.loads(cli("data", "ls", "--json").out)[-1]["state"].startswith("damaged: ")
    assert cli("data", "fetch", "nothing").code == 2


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no copies of the published sets here")
@pytest.mark.parametrize("name", [name for name, each in SETS.items() if each.sha256])
def test_the_published_sets_have_their_count_and_digest(name: str) -> None:
    fetch(name, PUBLISHED)
    verify(name)
    prompts = load(name)
    assert len({prompt.id for prompt in prompts}) == len(prompts) == SETS[name].count
    assert all(prompt.text == prompt.text.strip() for prompt in prompts)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no copies of the published sets here")
@pytest.mark.parametrize("name", [name for name, each in SETS.items() if each.sha256])
def test_the_published_sets_are_known_with_either_line_end(name: str, tmp_path: Path) -> None:
    content = fetch(name, PUBLISHED).read_bytes().replace(b"\r\n", b"\n")
    before = load(name)
    for other in (content, content.replace(b"\n", b"\r\n"), content.removesuffix(b"\n"), content + b"\n"):
        SETS[name].path.write_bytes(other)
        if other.endswith(b"\n\n"):
            with pytest.raises(CorruptDataError):
                load(name)
        else:
            assert load(name) == before
    changed = content.replace(b"a", b"o", 1)
    SETS[name].path.write_bytes(changed)
    with pytest.raises(CorruptDataError, match="is not the published"):
        load(name)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no copies of the published sets here")
def test_genevals_prompts_are_as_published_and_can_all_be_judged_by() -> None:
    fetch("geneval", PUBLISHED)
    prompts = load("geneval")
    tags = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    assert dict(Counter(prompt.tag for prompt in prompts)) == tags
    assert list(dict.fromkeys(prompt.tag for prompt in prompts)) == list(tags)
    assert len({prompt.text for prompt in prompts}) == 553
    benchmark = GenEvalBenchmark()
    assert [benchmark.unfit(prompt) for prompt in prompts] == [""] * 553
    assert sum(bool(benchmark.question(prompt)) for prompt in prompts) == 94 + 100

"""What a number is filed under: an edit of whatever decides it makes another address, any other edit does not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gcpo_bench import addresses
from gcpo_bench.ablations import address, start_config
from gcpo_bench.config import RunConfig
from gcpo_bench.resolve import resolve

SELECTOR = """
from dataclasses import dataclass
from {helper} import THRESHOLD

@dataclass
class Mine:
    ratio: float = 0.5
"""
BENCHMARK = """
from gcpo_bench.evaluators.scenes import ScenesBenchmark

class Mine(ScenesBenchmark):
    name = "mine"
"""
PROMPTS = """
from pathlib import Path
from gcpo_bench.datasets import Prompt

def read():
    lines = (Path(__file__).parent / "prompts.txt").read_text().splitlines()
    return [Prompt(id=str(number), text=line) for number, line in enumerate(lines)]
"""
POLICY = "from gcpo_bench.training.policies.scenes import build as Mine\n"
Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a source into a folder that Python imports from."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def into(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        importlib.invalidate_caches()

    yield into
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def config(*overrides: str) -> RunConfig:
    return resolve(None, list(overrides), {"model": "scenes-8"}).config


def with_part(**parts: str) -> RunConfig:
    """A configuration that names parts from elsewhere; nothing of them is loaded."""
    usual = config().model_dump()
    if "selector" in parts:
        usual["selection"]["selectors"] = [{"name": parts["selector"]}]
    if "reward" in parts:
        usual["rewards"] = [{"name": parts["reward"]}]
    if "policy" in parts:
        usual["policy"]["name"] = parts["policy"]
    if "benchmark" in parts:
        usual["evaluation"]["benchmark"] = parts["benchmark"]
    if "prompts" in parts:
        usual["data"]["prompts"] = parts["prompts"]
    return RunConfig.model_validate(usual)


def of(wanted: RunConfig) -> str:
    return address(wanted, "xxh3:weights", "code")


@pytest.mark.parametrize("name", ["geneval_prompts.py", "prompt_sets.py", "scenes.py", "streams.py", "training"])
def test_what_makes_prompts_and_decides_numbers_is_code(name: str) -> None:
    assert name in addresses.CODE


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("selector", SELECTOR.format(helper="math")),
        ("reward", "Mine = 1"),
        ("policy", POLICY),
        ("benchmark", BENCHMARK),
    ],
)
def test_an_edit_of_a_part_from_elsewhere_makes_another_cell(write: Write, kind: str, source: str) -> None:
    write("outside_part.py", source)
    wanted = with_part(**{kind: "outside_part:Mine"})
    before = of(wanted), of(start_config(wanted))
    assert (of(wanted), of(start_config(wanted))) == before
    write("outside_part.py", source + "\nLATER = 1\n")
    assert of(wanted) != before[0]
    # a start is evaluated, not trained: only what draws and judges decides its numbers
    assert (of(start_config(wanted)) != before[1]) == (kind in {"policy", "benchmark"})


def test_modules_that_a_part_imports_count_and_others_do_not(write: Write) -> None:
    write("outside_part.py", SELECTOR.format(helper="outside_helper"))
    write("outside_helper.py", "from outside_deeper import *\nTHRESHOLD = 1\n")
    write("outside_deeper.py", "X = 1\n")
    write("outside_other.py", "Y = 1\n")
    wanted = with_part(selector="outside_part:Mine")
    known = {of(wanted)}
    write("outside_other.py", "Y = 2\n")
    write("notes.md", "nothing that runs")
    assert of(wanted) in known
    for edited in ("outside_helper.py", "outside_deeper.py"):
        write(edited, f"THRESHOLD = {len(known) + 1}\nfrom outside_deeper import *\n")
        assert of(wanted) not in known
        known.add(of(wanted))


def test_all_modules_of_a_parts_package_count(write: Write) -> None:
    """Also those that it loads by name, which no import statement shows."""
    write("outside_lab/__init__.py", "")
    write("outside_lab/selectors/__init__.py", SELECTOR.format(helper="math"))
    write("outside_lab/loaded_by_name.py", "X = 1\n")
    wanted = with_part(selector="outside_lab.selectors:Mine")
    before = of(wanted)
    write("outside_lab/loaded_by_name.py", "X = 2\n")
    assert of(wanted) != before


def test_a_module_in_a_plain_folder_is_found(write: Write) -> None:
    write("outside_folder/parts.py", "from . import near\n")
    write("outside_folder/near.py", "X = 1\n")
    write("outside_folder/far.py", "X = 1\n")
    wanted = with_part(reward="outside_folder.parts:Mine")
    before = of(wanted)
    write("outside_folder/far.py", "X = 2\n")
    assert of(wanted) == before
    write("outside_folder/near.py", "X = 2\n")
    assert of(wanted) != before


def test_prompts_that_no_code_fixes_count_by_what_they_are(write: Write) -> None:
    write("outside_prompts.py", PROMPTS)
    write("prompts.txt", "a red circle\na blue square\n")
    wanted = with_part(prompts="outside_prompts:read")
    before = of(wanted)
    assert of(wanted) == before
    write("prompts.txt", "a red circle\na green square\n")
    assert of(wanted) != before


def test_a_name_that_leads_elsewhere_is_another_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from gcpo_bench.registry import SELECTORS, Entry

    before = of(config())
    monkeypatch.setitem(SELECTORS.entries, "diverse", Entry("gcpo_bench.training.selectors:Initial", "as `initial`"))
    assert of(config()) != before


def test_source_is_read_and_not_run(write: Write, tmp_path: Path) -> None:
    write("outside_part.py", f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    write("outside_lab/__init__.py", f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    write("outside_lab/part.py", "")
    assert len({addresses.source_digest(name) for name in ("outside_part", "outside_lab.part", "nowhere")}) == 3
    assert addresses.source_digest("nowhere") == ""
    assert not (tmp_path / "ran").exists()

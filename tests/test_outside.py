"""Parts from outside: followed where somebody here named them and their file declares them, and never before.

The lab's module leaves a mark when it is imported and when one of its parts is called, so that "never" can be seen.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from gcpo_bench import outside, runs
from gcpo_bench.ablations import Cell
from gcpo_bench.config import RunConfig
from gcpo_bench.datasets import prompts_by_task
from gcpo_bench.errors import ConfigError, TrustError
from gcpo_bench.files import dump_yaml
from gcpo_bench.ledger import Ledger
from gcpo_bench.registry import POLICIES, PROMPT_SETS, REWARDS, SELECTORS, WEIGHTINGS
from gcpo_bench.resolve import resolve

from .conftest import Cli

LAB = """
from pathlib import Path
import torch
from gcpo_bench.evaluators.scenes import GenEvalReward, ScenesBenchmark
from gcpo_bench.scenes import train_prompts
from gcpo_bench.training.policies.scenes import build as build_scenes

MARK = Path(__file__).with_suffix(".mark")
MARK.touch()

class Selector:
    gcpo_bench_part = "selector"
    def __init__(self, ratio=0.1):
        pass
    def __call__(self, signals, taken_BT):
        return ~taken_BT & (torch.arange(taken_BT.shape[1]) < 6)

class Weighting:
    gcpo_bench_part = "weighting"
    detached = True
    def __call__(self, logprobs_BT, ref_logprobs_BT, selected_BT):
        return torch.ones_like(logprobs_BT)

class Reward(GenEvalReward):
    gcpo_bench_part = "reward"

class Benchmark(ScenesBenchmark):
    gcpo_bench_part = "benchmark"
    name = "lab:Benchmark"

def prompts():
    return train_prompts()[:24]
prompts.gcpo_bench_part = "prompt set"

def policy(name, *, template=""):
    return build_scenes("scenes-8", template=template)
policy.gcpo_bench_part = "model"

def plain(*arguments, **options):
    MARK.with_suffix(".called").touch()
"""
NAMES = {
    "selection.selectors": [{"name": "lab:Selector", "ratio": 0.1}],
    "weighting.name": "lab:Weighting",
    "rewards": [{"name": "lab:Reward"}],
    "evaluation.benchmark": "lab:Benchmark",
    "data.prompts": "lab:prompts",
    "logging.tracked_prompt_set": "lab:prompts",
    "policy.name": "lab:policy",
}
DOCS = Path(outside.__file__).resolve().parents[1] / "docs/extending.md"
SMALL = ("policy.random_init=true", "sampling.prompts_per_step=1", "sampling.group_size=2", "num_threads=1")


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Importable, but nobody named anything of it yet; the file that its import makes."""
    (tmp_path / "lab.py").write_text(LAB, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(outside, "_named", set())
    prompts_by_task.cache_clear()
    yield tmp_path / "lab.mark"
    prompts_by_task.cache_clear()


def forget(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process of somebody who was sent the folder."""
    monkeypatch.setattr(outside, "_named", set())
    sys.modules.pop("lab", None)
    mark.unlink(missing_ok=True)


def options(names: Mapping[str, object], *more: str) -> list[str]:
    texts = [f"{key}={dump_yaml(value) if isinstance(value, list) else value}" for key, value in names.items()]
    return [word for text in (*texts, *SMALL, *more) for word in ("-o", text)]


def a_run(root: Path, **changes: object) -> runs.Run:
    """One that names the lab everywhere, as if it had been sent: nothing was resolved here."""
    values = RunConfig().model_dump(mode="json")
    for key, value in {**NAMES, **changes}.items():
        section, _, last = key.rpartition(".")
        (values[section] if section else values)[last] = value
    for text in SMALL:
        key, _, value = text.partition("=")
        section, _, last = key.rpartition(".")
        (values[section] if section else values)[last] = yaml.safe_load(value)
    run = runs.create(root, "sent", RunConfig.model_validate(values))
    run.set_status("interrupted", 0)
    return run


# ---------------------------------------------------------------- a name alone runs nothing


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lab:plain", "lab does not declare it as a selector"),
        ("lab:Reward", "lab does not declare it as a selector"),
        ("lab:MARK", "lab does not declare it as a selector"),
        ("textwrap:dedent", "textwrap does not declare it as a selector"),
        ("numpy:ones", "numpy does not declare it as a selector"),
        ("lab:Nothing", "lab has no 'Nothing'"),
        ("lab:", "no name of a part"),
        ("lab:a.b", "no name of a part"),
        ("no.such:Thing", "no module 'no.such'"),
        ("lab.deeper:Thing", "no module 'lab.deeper'"),
    ],
)
@pytest.mark.parametrize("way", ["-o", "preset", "plan"])
def test_a_callable_that_is_no_part_is_not_called(cli: Cli, lab: Path, name: str, message: str, way: str) -> None:
    item = {"name": name, "options": {"text": "x"}}
    if way == "-o":
        words = ["train", "--dry-run", "-o", f"selection.selectors=[{{name: '{name}', options: {{text: x}}}}]"]
    elif way == "preset":
        Path("p.yaml").write_text(dump_yaml({"base": "scenes-tiny-gcpo", "selection": {"selectors": [item]}}))
        words = ["train", "--dry-run", "--preset", "p.yaml"]
    else:
        override = f"selection.selectors=[{{name: '{name}', options: {{text: x}}}}]"
        variant = {"method": "gcpo", "overrides": [override]}
        Path("p.yaml").write_text(dump_yaml({"preset": "scenes-tiny-gcpo", "variants": [variant], "seeds": [0]}))
        words = ["ablate", "--dry-run", "--plan", "p.yaml"]
    result = cli(*words)
    assert result.code == 2, result.err
    assert message in result.err
    assert not lab.with_suffix(".called").exists()
    if "declare" in message:
        said, last = name.split(":")
        assert f'add this line below it in the file of {said}: {last}.gcpo_bench_part = "selector"' in result.err


def test_a_module_that_declares_nothing_is_not_even_imported(tmp_path: Path) -> None:
    (tmp_path / "quiet.py").write_text("import lab\nclass Mine: pass\n", encoding="utf-8")
    (tmp_path / "quiet_package").mkdir()
    (tmp_path / "quiet_package/__init__.py").write_text("import lab\n", encoding="utf-8")
    (tmp_path / "quiet_package/inner.py").write_text("import lab\nclass Mine: pass\n", encoding="utf-8")
    for name in ("quiet:Mine", "quiet_package:Mine", "quiet_package.inner:Mine"):
        outside.allow([name])
        with pytest.raises(ConfigError, match="does not declare it"):
            SELECTORS.load(name)
        assert not {"lab", "quiet", "quiet_package"} & sys.modules.keys()


@pytest.mark.parametrize("part", ["selector", "weighting", "reward", "prompt set", "model"])
def test_a_declared_part_is_made(lab: Path, part: str) -> None:
    found = {
        "selector": (SELECTORS, "lab:Selector"),
        "weighting": (WEIGHTINGS, "lab:Weighting"),
        "reward": (REWARDS, "lab:Reward"),
        "prompt set": (PROMPT_SETS, "lab:prompts"),
        "model": (POLICIES, "lab:policy"),
    }
    registry, name = found[part]
    with pytest.raises(TrustError, match="code that a folder names and you did not"):
        registry.load(name)
    assert not lab.exists()
    outside.allow([name])
    assert registry.load(name).gcpo_bench_part == part == registry.kind


def test_a_module_in_a_package_is_found_without_its_package(tmp_path: Path) -> None:
    (tmp_path / "house/rooms").mkdir(parents=True)
    (tmp_path / "house/__init__.py").write_text("")
    (tmp_path / "house/rooms/mine.py").write_text('class Mine:\n    gcpo_bench_part = "selector"\n')
    outside.allow(["house.rooms.mine:Mine"])
    assert SELECTORS.load("house.rooms.mine:Mine").__module__ == "house.rooms.mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise KeyError('x')", "importing odd raises KeyError: 'x'"),
        ("raise SystemExit(0)", "importing odd raises SystemExit: 0"),
        ("from os import nothing_of_this_name", "cannot import name 'nothing_of_this_name'"),
        ("def (", "importing odd raises SyntaxError"),
    ],
)
def test_a_module_that_raises_is_named(cli: Cli, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "odd.py").write_text(f"# gcpo_bench_part\n{text}\n")
    result = cli("train", "--dry-run", "-o", "rewards=[{name: 'odd:Mine'}]")
    assert result.code == 2, result.err
    assert message in result.err


@pytest.mark.parametrize("key", ["rewards", "selection.selectors", "weighting.name", "data.prompts", "policy.name"])
def test_a_part_that_raises_is_named(cli: Cli, tmp_path: Path, key: str) -> None:
    kinds = ("reward", "selector", "weighting", "prompt set", "model")
    lines = [f"@part({kind!r})\ndef {kind.split()[0]}(*args, **kwargs): raise KeyError('here')\n" for kind in kinds]
    (tmp_path / "bad.py").write_text(
        "def part(kind):\n    def mark(f):\n        f.gcpo_bench_part = kind\n        return f\n    return mark\n"
        + "".join(lines)
    )
    named = {
        "rewards": "[{name: 'bad:reward'}]",
        "selection.selectors": "[{name: 'bad:selector'}]",
        "weighting.name": "bad:weighting",
        "data.prompts": "bad:prompt",
        "policy.name": "bad:model",
    }
    result = (
        cli("train", "--model", "scenes-8", "-o", f"{key}={named[key]}")
        if key != "policy.name"
        else cli("train", "-o", f"{key}={named[key]}", "-o", "policy.random_init=true")
    )
    assert result.code == 2, result.err
    assert "KeyError: 'here'" in result.err
    assert "internal error" not in result.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("return ['a red circle']", "1 entries that hold 0 prompts"),
        ("return []", "0 entries"),
        ("return 7", "0 entries"),
        (
            "from gcpo_bench.datasets import Prompt; return [Prompt(id='1', text='x')] * 2",
            "2 entries that hold 1 prompts",
        ),
    ],
)
def test_prompts_that_are_none_are_named(cli: Cli, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "words.py").write_text(f"def mine():\n    {text}\nmine.gcpo_bench_part = 'prompt set'\n")
    result = cli("train", "--dry-run", "--model", "scenes-8", "-o", "data.prompts=words:mine")
    assert result.code == 2, result.err
    assert message in result.err


# ---------------------------------------------------------------- a folder that was sent


def test_every_name_of_a_configuration_counts() -> None:
    """A further key that names a part must be in `outside.parts_of` and be asked about by `resolve`."""
    values = {key: f"lab:x{number}" for number, key in enumerate(NAMES)}
    for key in ("selection.selectors", "rewards"):
        values[key] = f"[{{name: '{values[key]}'}}]"
    config = resolve(overrides=[f"{key}={value}" for key, value in values.items()]).config
    assert set(outside.parts_of(config)) == {f"lab:x{number}" for number in range(len(NAMES))}
    assert not outside.refused(config), "what somebody types is named"
    assert outside.parts_of(RunConfig()) == {}


COMMANDS = {
    "resume": ("train", "--resume", "--name", "sent"),
    "evaluate": ("evaluate", "sent"),
    "sample": ("sample", "sent", "a photo of a red circle"),
    "perturb": ("analyze", "perturb", "sent"),
    "overhead": ("analyze", "overhead", "sent"),
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_run_that_was_sent_is_refused_and_nothing_of_it_is_imported(
    cli: Cli, lab: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    a_run(tmp_path / "runs")
    result = cli(*words)
    assert result.code == 2, result.err
    if words[0] != "sample":  # it looks for the checkpoint first
        assert "code that a folder names and you did not" in result.err
        assert "--trust runs it" in result.err
    assert not lab.exists()


@pytest.mark.parametrize("trust", [(), ("--trust",)])
def test_a_dry_run_of_a_run_imports_nothing(cli: Cli, lab: Path, tmp_path: Path, trust: tuple[str, ...]) -> None:
    a_run(tmp_path / "runs")
    result = cli("train", "--resume", "--dry-run", *trust)
    assert result.code == 0, result.err
    assert "reward lab:Reward: not run here" in result.out
    assert not lab.exists()


@pytest.mark.parametrize(
    "words",
    [("ls", "runs"), ("report",), ("report", "sent"), ("baseline", "update", "--out", "b.json"), ("show",)],
)
def test_what_only_looks_at_runs_imports_nothing(cli: Cli, lab: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    a_run(tmp_path / "runs")
    assert cli(*words).code != 70
    assert not lab.exists()


def test_naming_it_or_trusting_it_runs_it(cli: Cli, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {key: value for key, value in NAMES.items() if key != "policy.name"}
    model = ("--model", "scenes-8")
    dry = cli("train", "--dry-run", *model, *options(names))
    assert dry.code == 0, dry.err
    trained = cli(
        "train", "--name", "mine", "--num-steps", "1", *model, *options(names, "evaluation.prompts_per_task=1")
    )
    assert trained.code == 0, trained.err

    forget(lab, monkeypatch)
    longer = ("train", "--resume", "--name", "mine", "--num-steps", "2")
    assert cli(*longer).code == 2
    assert not lab.exists()
    assert cli(*longer, "--trust").code == 0

    forget(lab, monkeypatch)
    assert cli("evaluate", "mine").code == 2
    assert not lab.exists()
    evaluated = cli("evaluate", "mine", "--trust")
    assert evaluated.code == 0, evaluated.err

    forget(lab, monkeypatch)
    assert cli("sample", "mine", "a photo of a red circle").code == 0, "which needs nothing of the lab"
    assert cli("evaluate", "mine", "--bench", "scenes", "--limit", "1").code == 0, "nor does another benchmark"
    assert not lab.exists()


def test_trust_is_refused_where_it_cannot_act(cli: Cli) -> None:
    assert "--trust goes with --resume only" in cli("train", "--trust").err
    assert "--trust goes with runs only" in cli("evaluate", "--images", "x", "--trust").err


def test_a_ledger_that_was_sent_cannot_add_a_part(cli: Cli, lab: Path, tmp_path: Path) -> None:
    """Its cells have the ids of this plan, and name something that the plan does not."""
    words = ("ablate", "--methods", "grpo", "--seeds", "0", "--model", "scenes-8", "--num-steps", "1", "--no-report")
    small = [word for text in ("sampling.prompts_per_step=1", "sampling.group_size=2") for word in ("-o", text)]
    planned = json.loads(cli(*words, *small, "--dry-run", "--json").out)["cells"]
    ledger = Ledger(tmp_path / "runs")
    sent = a_run(tmp_path / "elsewhere", **{"policy.name": "scenes-8"}).config
    ledger.plan([Cell(id=cell["id"], name=cell["run"], config=sent) for cell in planned])
    result = cli(*words, *small)
    assert result.code == 2, result.err
    assert "code that a folder names and you did not" in result.err
    assert not lab.exists()
    assert {state.attempts for state in ledger.states()} == {0}


def test_the_examples_of_the_documentation_run(cli: Cli, tmp_path: Path) -> None:
    """`docs/extending.md`: what it says to save as my_lab.py, with the options that it shows."""
    blocks = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    parts = [block for block in blocks if re.search(r"^class (Surprising|Clipped|Brightness)\b", block, re.M)]
    assert len(parts) == 3
    (tmp_path / "my_lab.py").write_text("\n".join(parts), encoding="utf-8")
    shown = [
        'selection.selectors=[{name: initial, ratio: 0.1}, {name: "my_lab:Surprising", ratio: 0.1}]',
        "weighting.name=my_lab:Clipped",
        'rewards=[{name: "my_lab:Brightness"}]',
    ]
    small = [word for text in (*shown, *SMALL[1:]) for word in ("-o", text)]
    trained = cli("train", "--preset", "scenes-tiny-gcpo", "--num-steps", "1", "--name", "a", *small)
    assert trained.code == 0, trained.err
    assert runs.open_run("a", tmp_path / "runs").metrics()[0]["tokens/selected/my_lab:Surprising"] > 0

"""What a number is filed under: an edit of whatever decides it makes another address, any other edit does not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gcpo_bench import addresses, outside, runs
from gcpo_bench.ablations import address, start_config, start_name, trained_cell
from gcpo_bench.config import RunConfig
from gcpo_bench.errors import ConfigError, RunError
from gcpo_bench.resolve import resolve
from gcpo_bench.training.starts import start_weights

from .conftest import Cli
from .test_runner import Painter, go

SELECTOR = """
from dataclasses import dataclass
from {helper} import THRESHOLD

@dataclass
class Mine:
    gcpo_bench_part = "selector"
    ratio: float = 0.5
"""
BENCHMARK = """
from gcpo_bench.evaluators.scenes import ScenesBenchmark

class Mine(ScenesBenchmark):
    gcpo_bench_part = "benchmark"
    name = "mine"
"""
PROMPTS = """
from pathlib import Path
from gcpo_bench.datasets import Prompt

def read():
    lines = (Path(__file__).parent / "prompts.txt").read_text().splitlines()
    return [Prompt(id=str(number), text=line) for number, line in enumerate(lines)]

read.gcpo_bench_part = "prompt set"
"""
POLICY = "from gcpo_bench.training.policies.scenes import build as Mine\n"
Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a source into a folder that Python imports from."""
    monkeypatch.syspath_prepend(tmp_path)
    names = ("outside_part:Mine", "outside_judge:Mine", "outside_scorer:make", "outside_prompts:read")
    monkeypatch.setattr(outside, "_named", set(names))

    def into(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\ngcpo_bench_part = 'said of what is in here'\n")
        importlib.invalidate_caches()

    return into


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


def test_a_folder_that_is_imported_itself_hides_none_of_its_modules(write: Write) -> None:
    write("outside_folder/parts.py", "import outside_folder.near\nimport outside_folder\n")
    write("outside_folder/near.py", "X = 1\n")
    wanted = with_part(reward="outside_folder.parts:Mine")
    before = of(wanted)
    write("outside_folder/near.py", "X = 2\n")
    assert of(wanted) != before


def test_a_package_is_listed_once_however_often_it_is_imported(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("outside_lab/__init__.py", "")
    for number in range(5):
        write(f"outside_lab/part_{number}.py", "".join(f"import outside_lab.part_{other}\n" for other in range(5)))
    listed: list[str] = []
    package = addresses._package

    def listing(name: str, folder: Path) -> Iterator[tuple[str, Path]]:
        listed.append(name)
        return package(name, folder)

    monkeypatch.setattr(addresses, "_package", listing)
    assert addresses.source_digest("outside_lab.part_0")
    assert listed == ["outside_lab"]


def test_a_name_that_is_no_part_is_refused_before_its_package_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "_named", {"numpy:ones"})
    monkeypatch.setattr(addresses, "source_digest", lambda module: pytest.fail(f"{module} was read"))
    with pytest.raises(ConfigError, match="numpy does not declare it as a selector"):
        of(with_part(selector="numpy:ones"))


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

    wanted = config()
    before = of(wanted)
    monkeypatch.setitem(SELECTORS.entries, "diverse", Entry("gcpo_bench.training.selectors:Initial", "as `initial`"))
    assert of(wanted) != before


def test_source_is_read_and_not_run(write: Write, tmp_path: Path) -> None:
    write("outside_part.py", f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    write("outside_lab/__init__.py", f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    write("outside_lab/part.py", "")
    assert len({addresses.source_digest(name) for name in ("outside_part", "outside_lab.part", "nowhere")}) == 3
    assert addresses.source_digest("nowhere") == ""
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- stored scores, and what was seen

JUDGE = """
from tests.keeping_benchmark import Keeping

class Mine(Keeping):
    gcpo_bench_part = "benchmark"
    name = "mine"

    def observe(self, images, questions):
        (Path(__file__).parent / "looked").open("a").write("x" * len(images))
        yield from ({value} for image in images)

from pathlib import Path
"""
PLAIN = """
from gcpo_bench.evaluators.scenes import ScenesBenchmark, judge

class Mine(ScenesBenchmark):
    gcpo_bench_part = "benchmark"
    name = "mine"

    def score(self, images_BYXC, prompts_B):
        return [({{**values, "correct": {value}}}, "", ()) for values, *_ in judge(images_BYXC, prompts_B)]
"""


def fresh(write: Write, text: str) -> None:
    """Write the benchmark's module and have it imported anew, as another process would."""
    write("outside_judge.py", text)
    sys.modules.pop("outside_judge", None)


@pytest.mark.parametrize("source", [JUDGE, PLAIN])
def test_an_edited_benchmark_judges_and_looks_again(write: Write, tmp_path: Path, source: str) -> None:
    run, painter = runs.create(tmp_path, "one", RunConfig()), Painter(1.0)

    def overall() -> float:
        return go(run, painter, benchmark="outside_judge:Mine").metrics["overall"].value

    fresh(write, source.format(value="0"))
    assert overall() == overall() == 0
    looked = [(tmp_path / "looked").stat().st_size] if source == JUDGE else []
    fresh(write, source.format(value="255" if source == JUDGE else "1"))
    assert overall() == 1
    assert painter.rows == 24  # images are drawn by something else, and kept
    if looked:
        assert (tmp_path / "looked").stat().st_size == 2 * looked[0]
    fresh(write, source.format(value="0"))
    assert overall() == 0
    if looked:  # what was seen with that source is still there
        assert (tmp_path / "looked").stat().st_size == 2 * looked[0]


def test_scores_of_another_judges_code_are_made_again(tmp_path: Path) -> None:
    run, painter = runs.create(tmp_path, "one", RunConfig()), Painter(1.0)
    scores = run.evaluation_dir("scenes") / "scores.json"
    go(run, painter)
    kept = scores.stat().st_ino
    go(run, painter)
    assert scores.stat().st_ino == kept
    record = runs.read_json(scores)
    for code in ("other", None):  # None: by a version that did not say
        record["made_with"] = {"code": code} if code else {}
        runs.write_json(scores, record)
        go(run, painter)
        assert runs.read_json(scores)["made_with"]["code"] == addresses.code_digest(addresses.JUDGING)
    assert painter.rows == 24


def test_an_edited_scorer_from_elsewhere_is_asked_again(write: Write) -> None:
    from gcpo_bench.evaluators.panel import Panel

    scorer = """
class Mine:
    name = "outside_scorer:make"
    identity = {{"weights": "w"}}

    def score(self, images, texts):
        return [{value}] * len(images)

def make():
    return Mine()

make.gcpo_bench_part = "scorer"
"""
    looks = []
    for value in (1.0, 2.0):
        write("outside_scorer.py", scorer.format(value=value))
        looks.append(Panel(["outside_scorer:make"]).look()["scorers"]["outside_scorer:make"])
    assert looks[0]["weights"] == looks[1]["weights"] == "w"
    assert looks[0] != looks[1]


def test_images_of_an_edited_policy_are_drawn_again(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gcpo_bench.registry import POLICIES, Entry

    monkeypatch.setitem(POLICIES.entries, "scenes-8", Entry("outside_policy:Mine", "for this test"))
    run, painter = runs.create(tmp_path, "one", RunConfig()), Painter(1.0)
    for edit in ("", "", "\nLATER = 1\n"):
        write("outside_policy.py", POLICY + edit)
        go(run, painter)
    assert painter.rows == 2 * 24


# ---------------------------------------------------------------- workers


def test_a_worker_refuses_a_cell_that_was_planned_with_something_else(write: Write, tmp_path: Path) -> None:
    from gcpo_bench.cli.work import run_cell

    write("outside_part.py", SELECTOR.format(helper="math"))
    wanted = with_part(selector="outside_part:Mine")
    planned = trained_cell(wanted, start_weights(wanted)[1], addresses.code_digest())
    write("outside_part.py", SELECTOR.format(helper="cmath"))
    with pytest.raises(RunError, match="was planned with other code, prompts or weights") as error:
        run_cell(planned, tmp_path / "runs")
    assert "plans it anew" in error.value.hint
    assert not (tmp_path / "runs").exists()


def test_a_cell_whose_code_changes_while_it_runs_is_not_done(write: Write, tmp_path: Path) -> None:
    """The reward edits its own module, as a person would in an editor."""
    from gcpo_bench.cli.work import work
    from gcpo_bench.ledger import Ledger

    reward = """
class Mine:
    gcpo_bench_part = "reward"

    def __call__(self, images_BYXC, prompts_B):
        open(__file__, "a").write("# a later thought\\n")
        from gcpo_bench.evaluators.pixels import Redness
        return Redness()(images_BYXC, prompts_B)
"""
    write("outside_part.py", reward)
    small = ["sampling.prompts_per_step=2", "sampling.group_size=2", "num_threads=1"]
    small += ["evaluation.prompts_per_task=1", "evaluation.images_per_prompt=1", "logging.token_maps_every=0"]
    wanted = resolve(None, [*small, "rewards=[{name: 'outside_part:Mine'}]"], {"model": "scenes-8", "num_steps": 1})
    cell = trained_cell(wanted.config, start_weights(wanted.config)[1], addresses.code_digest())
    ledger = Ledger(tmp_path / "runs", max_failures=1)
    ledger.plan([cell])
    work(ledger, [cell.id], "test")
    state = ledger.state(cell.id)
    assert (state.state, state.failures) == ("failed", 1)
    assert "was planned with other code" in state.error


def test_a_resume_with_an_edited_part_says_so(write: Write, cli: Cli) -> None:
    reward = "from gcpo_bench.evaluators.pixels import Redness\n"
    reward += "class Mine(Redness):\n    gcpo_bench_part = 'reward'\n"
    write("outside_part.py", reward)
    small = ["--model=scenes-8", "--num-steps=1", "-osampling.prompts_per_step=2", "-osampling.group_size=2"]
    small += ["-ologging.token_maps_every=0", "-orewards=[{name: 'outside_part:Mine'}]", "--name=a"]
    assert cli("train", *small).code == 0
    for steps, edit, said in ((2, "", False), (3, "LATER = 1\n", True)):
        write("outside_part.py", reward + edit)
        ended = cli("train", "--resume", "--name=a", f"--num-steps={steps}")
        assert ended.code == 0
        assert ("the source of outside_part:Mine has changed since a began" in ended.err) == said


def test_a_benchmark_from_elsewhere_is_compared_with_the_start(cli: Cli) -> None:
    """Its folder has its own name, which is not what the command line calls it."""
    small = ["--model=scenes-8", "--num-steps=1", "-osampling.prompts_per_step=2", "-osampling.group_size=2"]
    assert cli("train", *small, "-ologging.token_maps_every=0", "--name=a").code == 0
    ended = cli("evaluate", "a", "--benchmark=tests.keeping_benchmark:Keeping", "--limit=1", "--images-per-prompt=1")
    assert ended.code == 0, ended.err
    assert "a - its start" in ended.out


def test_starts_that_draw_otherwise_are_runs_of_their_own() -> None:
    def name(*overrides: str) -> str:
        return start_name(config(*overrides), "xxh3:0123456789abcdef")

    assert name() == name("policy.device=cuda") == "start-scenes-8-01234567"
    assert name("policy.dtype=bfloat16") == "start-scenes-8-01234567-bfloat16"
    assert name("policy.template=plain") == "start-scenes-8-01234567-plain"

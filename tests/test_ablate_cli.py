"""`gcpo-bench ablate` as a user meets it: a grid that survives whatever happens to its processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gcpo_bench import runs
from gcpo_bench.ledger import Ledger

from .conftest import Cli, CliResult
from .processes import LIMIT_S
from .test_cli import refused

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("GCPO_BENCH_TEST_KILLS", "4"))
GRID = (
    *("ablate", "--methods", "grpo,gcpo", "--seeds", "0..1", "--model", "scenes-8", "--num-steps", "3"),
    *("-o", "sampling.prompts_per_step=2", "-o", "sampling.group_size=2", "-o", "logging.tracked_prompts=1"),
    *(
        "-o",
        "logging.checkpoint_every=1",
        "-o",
        "evaluation.prompts_per_task=1",
        "-o",
        "evaluation.images_per_prompt=1",
    ),
    *("--max-parallel", "2"),
)
"""Four runs and their start, seconds in all."""
NOT_NUMBERS = ("time/", "throughput/", "memory/")


def launch(folder: Path, *more: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, so that everything it starts can be killed with it."""
    return subprocess.Popen(
        [sys.executable, "-m", "gcpo_bench", *GRID, *more],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def completed(folder: Path, *more: str) -> tuple[int, str, str]:
    process = launch(folder, *more)
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def numbers(folder: Path) -> dict[str, Any]:
    """Everything a grid computes, but for seconds and memory."""
    found: dict[str, Any] = {}
    for path in runs.list_runs(folder / "runs"):
        run = runs.open_run(path)
        rows = [{k: v for k, v in row.items() if not k.startswith(NOT_NUMBERS)} for row in run.metrics()]
        scores = (path / "evaluations/scenes/scores.json").read_bytes()
        samples = (path / "evaluations/scenes/samples.jsonl").read_bytes()
        found[path.name] = (rows, scores, samples, run.checkpoint_steps())
    return found


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid that nothing happened to."""
    folder = tmp_path_factory.mktemp("grid")
    code, out, err = completed(folder)
    assert code == 0, err
    assert "report/report.html" in out
    assert out.splitlines()[-1] == "report/figures"  # the folder, not what is in it
    assert not any(line.startswith("report/figures/") for line in out.splitlines())
    return folder


def test_a_grid_trains_evaluates_and_reports_every_cell(grid: Path) -> None:
    states = Ledger(grid / "runs").states()
    assert len(states) == 5
    assert {(state.state, state.attempts) for state in states} == {("done", 1)}
    record = json.loads((grid / "report/report.json").read_text())
    assert len(record["reproduce"]["runs"]) == 5


def test_the_same_command_runs_nothing_twice_and_a_further_variant_adds_its_cells(grid: Path, cli: Cli) -> None:
    before = {path: path.stat().st_mtime_ns for path in (grid / "runs").glob("*/metrics.jsonl")}
    runs_dir = ("--runs-dir", str(grid / "runs"), "--no-report")
    assert cli(*GRID, *runs_dir).code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    listed = json.loads(cli("ls", "cells", "--json", "--runs-dir", str(grid / "runs")).out)
    assert [row["state"] for row in listed] == ["done"] * 5
    plan = json.loads(
        cli(*GRID, "--methods", "grpo,gcpo,random", "--dry-run", "--json", "--runs-dir", str(grid / "runs")).out
    )
    assert sorted(cell["done"] for cell in plan["cells"]) == [False] * 2 + [True] * 5


def test_driver_and_workers_killed_at_random_moments_lose_and_double_nothing(grid: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    finished: dict[str, str] = {}
    for _ in range(KILLS):
        process = launch(tmp_path, "--no-report")
        time.sleep(rng.uniform(0.5, 9.0))
        kill_all(process, tmp_path)
        if (tmp_path / "runs/.ledger/version.json").exists():
            ledger = Ledger(tmp_path / "runs")
            now = {s.cell.id: (ledger.path / "cells" / s.cell.id / "done.json").read_text() for s in done(ledger)}
            assert finished.items() <= now.items()  # what was done stays done, by the attempt that did it
            finished = now
    code, _, err = completed(tmp_path)
    assert code == 0, err
    assert numbers(tmp_path) == numbers(grid)
    for table in ("report.csv", "report-comparisons.csv"):
        assert (tmp_path / "report" / table).read_bytes() == (grid / "report" / table).read_bytes()


def done(ledger: Ledger) -> list[Any]:
    return [state for state in ledger.states() if state.state == "done"]


def kill_all(driver: subprocess.Popen[str], folder: Path) -> None:
    """SIGKILL to the driver and to every worker that the ledger knows of."""
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    for stat in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = stat.read_bytes()
            if b"work" in command and os.path.samefile(stat.parent / "cwd", folder):
                os.kill(int(stat.parent.name), signal.SIGKILL)
        except OSError:
            continue


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_stops_the_workers_and_the_same_command_goes_on(
    grid: Path, tmp_path: Path, number: int, code: int
) -> None:
    process = launch(tmp_path, "--no-report")
    while not list((tmp_path / "runs").glob("*/metrics.jsonl")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate()
    refused(CliResult(process.returncode, out, err), code)
    assert not [s for s in Ledger(tmp_path / "runs").states() if s.state == "claimed"]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(("~", "order-")) or ".tmp" in path.name]
    assert completed(tmp_path, "--no-report")[0] == 0
    assert numbers(tmp_path) == numbers(grid)


def test_two_drivers_at_once_share_the_work(grid: Path, tmp_path: Path) -> None:
    first, second = launch(tmp_path, "--no-report"), launch(tmp_path, "--no-report")
    for process in (first, second):
        _, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, err
    assert {state.attempts for state in Ledger(tmp_path / "runs").states()} == {1}
    assert numbers(tmp_path) == numbers(grid)


def test_a_failing_cell_is_reported_and_the_others_are_done(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "class Reward:\n    gcpo_bench_part = 'reward'\n"
        "    def __init__(self):\n        raise RuntimeError('no reward')\n"
    )
    plan = tmp_path / "plan.yaml"
    broken = "{method: gcpo, overrides: ['rewards=[{name: \"broken:Reward\"}]']}"
    plan.write_text(f"variants:\n  - {{method: grpo}}\n  - {broken}\nseeds: [0]\n")
    options = [word for word in GRID[1:] if word not in ("--methods", "grpo,gcpo", "--seeds", "0..1")]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gcpo_bench", "ablate", "--plan", str(plan), *options, *more],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))},
            capture_output=True,
            text=True,
            check=False,
        )

    process = run()
    assert process.returncode == 6, process.stderr
    assert "1 of 3 cells failed" in process.stderr
    assert "no reward" in process.stderr
    assert "--retry" in process.stderr
    assert (tmp_path / "report/report.html").exists()
    states = {s.cell.config.method: (s.state, s.failures) for s in Ledger(tmp_path / "runs").states()}
    assert states == {"start": ("done", 0), "grpo": ("done", 0), "gcpo": ("failed", 2)}

    before = [(s.cell.id, s.attempts) for s in Ledger(tmp_path / "runs").states()]
    assert run("--no-report").returncode == 6  # without --retry what failed is left alone
    assert [(s.cell.id, s.attempts) for s in Ledger(tmp_path / "runs").states()] == before


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--ratio", "0"), "--ratio"),
        (("--ratio", "1.5"), "--ratio"),
        (("--ratio", "nan"), "--ratio"),
        (("--ratio", "0.001"), "selects none"),
        (("--seeds", "a..b"), "--seeds"),
        (("--methods", "gppo"), "gppo"),
        (("--methods", ","), "names no method"),
        (("--components", "daw"), "no set"),
        (("--components", "initial"), "initial"),
        (("--plan", "none"), "unknown plan"),
        (("--plan", "ratios", "--methods", "grpo"), "--plan"),
        (("--executor", "pbs"), "pbs"),
        (("-o", "loss.bta=1"), "bta"),
        (("-o", "seed=3", "--methods", "grpo"), "-o seed=3 and --seed contradict each other"),
        (("-o", "num_threads=3"), "-o num_threads does nothing in a grid"),
        (("-o", "weighting.clip=0.3", "--methods", "grpo,random"), "-o weighting.clip does nothing in any variant"),
        (("--model", "janus-pro-9b"), "janus-pro-9b"),
    ],
)
def test_bad_input_is_one_line_with_its_mend(cli: Cli, arguments: tuple[str, ...], problem: str) -> None:
    assert problem in refused(cli("ablate", *arguments), 2)
    assert not Path("runs").exists() or not list(Path("runs").glob("*"))


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    result = cli("ablate", "--ratio", "0.1", "--seeds", "0", "--model", "scenes-8", "--dry-run")
    assert result.code == 0
    assert "12 cells" in result.out
    assert "core-hours, one step measured here" in result.err
    assert not list(tmp_path.iterdir())


def test_the_dry_run_of_a_large_model_gives_the_floor_and_what_is_missing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path / "home"))
    preset = ("--preset", "janus-pro-1b-gcpo-geneval", "-o", "policy.random_init=true")
    result = cli("ablate", "--ratio", "0.1", "--seeds", "0", *preset, "--dry-run")
    assert result.code == 0, result.err
    said = " ".join(result.err.split())
    assert "hours of an H200, the floor of" in said
    assert "measured here" not in said
    assert "detectable: not known before the prompts of the evaluation are here" in said
    for command in ("data fetch geneval", "models fetch geneval-server"):
        assert f"gcpo-bench {command}" in said
    planned = json.loads(cli("ablate", "--ratio", "0.1", "--seeds", "0", *preset, "--dry-run", "--json").out)
    assert planned["seconds_measured"] is False
    assert planned["missing"]
    assert refused(cli("ablate", "--ratio", "0.1", "--seeds", "0", *preset), 4)
    assert not (tmp_path / "runs").exists(), "what all cells would fail for is told before there is a grid"

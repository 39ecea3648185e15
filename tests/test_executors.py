"""The same plan through every executor gives the same results; where one is not there, the message says what to do."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from gcpo_bench import ablations
from gcpo_bench.ablations import Plan, VariantSpec
from gcpo_bench.addresses import code_digest
from gcpo_bench.errors import ConfigError, PrerequisiteError, TrainingError
from gcpo_bench.ledger import Ledger
from gcpo_bench.registry import EXECUTORS
from gcpo_bench.training.starts import start_weights

from .test_ablate_cli import numbers

SMALL = (
    *(
        "sampling.prompts_per_step=2",
        "sampling.group_size=2",
        "logging.tracked_prompts=1",
        "logging.checkpoint_every=1",
    ),
    *("evaluation.prompts_per_task=1", "evaluation.images_per_prompt=1", "num_threads=1"),
)


def planned(folder: Path, steps: int = 3) -> tuple[Path, list[str]]:
    variants = tuple(VariantSpec(method=method) for method in ("grpo", "gcpo"))
    plan = Plan(variants=variants, seeds=(0,), model="scenes-8", num_steps=steps, overrides=SMALL)
    cells = ablations.expand(plan, lambda config: start_weights(config)[1], code_digest())
    Ledger(folder / "runs").plan(cells)
    return folder / "runs", [cell.id for cell in cells]


def run(name: str, folder: Path, **options: str) -> None:
    runs_dir, ids = planned(folder)
    EXECUTORS.load(name)(runs_dir, ids, max_parallel=2, options=options, on_tick=lambda: None)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("local")
    run("local", folder)
    return numbers(folder)


def test_slurm_jobs_that_are_preempted_are_queued_again_and_change_nothing(
    local: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    runs_dir, ids = planned(tmp_path)
    interrupted: list[int] = []

    def preempt_once() -> None:
        if not interrupted and any(state.state == "claimed" for state in Ledger(runs_dir).states()):
            job = job_process(runs_dir)
            interrupted.append(job)
            os.kill(job, signal.SIGUSR2)  # what Slurm sends before it takes the machine away

    EXECUTORS.load("slurm")(runs_dir, ids, max_parallel=1, options={"cluster": "local"}, on_tick=preempt_once)
    assert interrupted
    assert max(state.attempts for state in Ledger(runs_dir).states()) >= 2  # a cell was given up and taken again
    assert numbers(tmp_path) == local


def job_process(runs_dir: Path) -> int:
    """The process that submitit runs a job in."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().decode()
            if "submitit.core._submit" in command and str(runs_dir) in command:
                return int(path.parent.name)
    raise AssertionError("no job is running")


def test_ray_tasks_give_the_same_results(local: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install 'gcpo-bench[ray]'")
    run("ray", tmp_path)
    assert numbers(tmp_path) == local


@pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PrerequisiteError, match=package) as caught:
        run(name, tmp_path)
    assert caught.value.hint == f"pip install 'gcpo-bench[{name}]'"


def test_no_slurm_here_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrerequisiteError, match="no Slurm here"):
        run("slurm", tmp_path)


@pytest.mark.parametrize(("name", "options"), [("local", {"a": "1"}), ("ray", {"cpus": "1"}), ("slurm", {"x": "1"})])
def test_an_unknown_option_is_named(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    if name == "slurm":
        pytest.importorskip("submitit")
        options = {"cluster": "local", **options}
    with pytest.raises(ConfigError):
        run(name, tmp_path, **options)


def test_workers_that_keep_dying_stop_the_grid_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TrainingError, match="5 workers in a row died") as caught:
        run("local", tmp_path)
    assert "local-" in caught.value.hint


def test_every_executor_has_the_same_signature() -> None:
    import inspect

    signatures = {name: inspect.signature(EXECUTORS.load(name)) for name in EXECUTORS}
    assert len({str(signature) for signature in signatures.values()}) == 1

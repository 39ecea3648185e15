"""The same plan through every executor gives the same results; where one is not there, the message says what to do."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gcpo_bench import ablations, runs
from gcpo_bench.ablations import Plan, VariantSpec
from gcpo_bench.addresses import code_digest
from gcpo_bench.errors import ConfigError, PrerequisiteError, TrainingError
from gcpo_bench.executors import MAX_DEATHS, Deaths, ordered, slurm
from gcpo_bench.executors.slurm import Job
from gcpo_bench.files import read_object, write_json
from gcpo_bench.ledger import Ledger, Owner
from gcpo_bench.registry import EXECUTORS
from gcpo_bench.training.starts import start_weights

from .conftest import Cli, CliResult
from .test_ablate_cli import numbers
from .test_cli import refused

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


def test_a_preemption_lets_the_worker_save_before_the_job_is_over(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    saves = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(75)))\n"
    saves += "print(flush=True)\nwhile True:\n    time.sleep(1)\n"
    job = Job(
        tmp_path, tmp_path / "order", "a", subprocess.Popen([sys.executable, "-c", saves], stdout=subprocess.PIPE)
    )
    assert job.worker is not None
    assert job.worker.stdout is not None
    job.worker.stdout.readline()
    again = job.checkpoint().function
    assert (again.order, again.worker) == (job.order, None)
    assert job.worker.poll() == 75  # it was over, and is told to whoever waits for it


def test_no_number_of_time_outs_ends_a_slurm_job(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    made = slurm._made(tmp_path, {"cluster": "local", "timeout_min": "5"})
    assert made._executor.max_num_timeout == slurm.ENDLESS


def test_a_job_without_a_result_is_one_that_died(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    job = slurm._made(tmp_path, {"cluster": "local"}).submit(os._exit, 0)
    job.wait()
    assert slurm._problem(job) == "FINISHED"


def test_a_time_limit_is_minutes_and_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(ConfigError, match="slurm_time=1:30:00: submitit calculates with minutes"):
        slurm.check({"cluster": "local", "slurm_time": "1:30:00"})
    slurm.check({"cluster": "local"})
    assert capsys.readouterr().err == ""


def test_workers_that_die_after_another_step_each_do_not_stop_the_grid(tmp_path: Path) -> None:
    runs_dir, ids = planned(tmp_path)
    ledger = Ledger(runs_dir)
    deaths = Deaths(ledger, ids)
    run = runs.create(runs_dir, ledger.cell(ids[-1]).name, ledger.cell(ids[-1]).config)
    for step in range(2 * MAX_DEATHS):  # jobs with a short time limit: one step each
        write_json(run.checkpoint_path(step) / "state.json", {})
        deaths.add("a", "time limit")
    for _ in range(MAX_DEATHS - 2):
        deaths.add("a", "time limit")
    with pytest.raises(TrainingError, match=f"{MAX_DEATHS} workers in a row died"):
        deaths.add("a", "time limit")


def test_an_order_goes_with_its_driver_and_those_of_the_dead_are_removed(tmp_path: Path) -> None:
    runs_dir, ids = planned(tmp_path)
    ledger = Ledger(runs_dir)
    dead = ledger.path / "order-dead.json"
    owner = {**asdict(Owner.this_process("driver")), "started": "1"}
    with ordered(ledger, ids) as first:
        write_json(dead, {"ids": ids, "owner": owner})
        with ordered(ledger, ids) as second:
            assert (first.exists(), second.exists(), dead.exists()) == (True, True, False)
            assert read_object(second)["ids"] == ids
    assert not list(ledger.path.glob("order-*"))


def test_a_worker_whose_order_is_gone_takes_no_cell(cli: Cli, tmp_path: Path) -> None:
    runs_dir, _ = planned(tmp_path)
    assert cli("work", "--order", str(tmp_path / "gone.json"), "--runs-dir", str(runs_dir)).code == 0
    assert all(state.state == "planned" for state in Ledger(runs_dir).states())


@pytest.mark.parametrize("variable", [True, False])
def test_a_ray_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: bool) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address if variable else "")
    with pytest.raises(PrerequisiteError, match=f"no Ray answers at {address}") as caught:
        run("ray", tmp_path, **({} if variable else {"address": address}))
    assert "unset RAY_ADDRESS" in caught.value.hint


@pytest.mark.parametrize("key", ["num_gpus", "num_cpus"])
def test_what_no_machine_of_ray_has_is_told(tmp_path: Path, key: str) -> None:
    pytest.importorskip("ray", reason="pip install 'gcpo-bench[ray]'")
    with pytest.raises(PrerequisiteError, match=f"a worker takes .*{key}=1000.*and no machine of this Ray has that"):
        run("ray", tmp_path, **{key: "1000"})


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_stops_ray_with_everything_saved(tmp_path: Path, number: int, code: int) -> None:
    pytest.importorskip("ray", reason="pip install 'gcpo-bench[ray]'")
    options = [word for part in SMALL for word in ("-o", part)]
    command = ["ablate", "--methods", "grpo", "--seeds", "0", "--model", "scenes-8", "--num-steps", "5000", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "gcpo_bench", *command, "--executor", "ray", "--max-parallel", "1"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list((tmp_path / "runs").glob("*/metrics.jsonl")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    err = process.communicate()[1]
    refused(CliResult(process.returncode, "", err), code)
    assert "***" not in err  # Ray's dump of the stack
    assert not [state for state in Ledger(tmp_path / "runs").states() if state.state == "claimed"]
    assert not list((tmp_path / "runs/.ledger").glob("order-*"))
    trained = next(path.parent for path in (tmp_path / "runs").glob("*/metrics.jsonl"))
    assert runs.open_run(trained).checkpoint_steps()[-1] == runs.open_run(trained).metrics()[-1]["step"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--executor", "slrm"), 2, "unknown executor 'slrm'"),
        (("--executor-option", "a=1"), 2, "executor local has no option 'a'"),
        (("--executor", "ray", "--executor-option", "num_gpus=nan"), 2, "num_gpus=nan: not a number from 0 on"),
        (
            ("--executor", "slurm", "--executor-option", "cluster=local", "--executor-option", "slurm_time=x"),
            2,
            "minutes",
        ),
    ],
)
def test_a_dry_run_checks_the_executor(cli: Cli, arguments: tuple[str, ...], code: int, message: str) -> None:
    command = ("ablate", "--methods", "grpo", "--seeds", "0", "--model", "scenes-8")
    for more in ((), ("--dry-run",)):
        assert message in refused(cli(*command, *arguments, *more), code)


def test_a_dry_run_says_what_the_executor_lacks(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    command = ("ablate", "--methods", "grpo", "--seeds", "0", "--model", "scenes-8", "--executor", "ray")
    planned = cli(*command, "--dry-run")
    assert planned.code == 0
    assert "missing: no Ray answers at 127.0.0.1:1" in planned.err
    assert "no Ray answers" in refused(cli(*command), 4)
    assert not (tmp_path / "runs").exists()


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

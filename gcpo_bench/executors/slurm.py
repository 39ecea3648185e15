"""Workers as Slurm jobs, through submitit. A preempted or timed-out job is queued again and its cell goes on.

submitit 1.5 takes a preemption for a time-out once a job has run for 80 % of its time limit, or up to 10 minutes before
it: with 10 minutes or less, each is one. After `max_num_timeout` of them (3) it gives the job up. Cells go on
from their checkpoints, so here that is no reason to give up, and the number is endless; a grid that gets nowhere is
noticed by `Deaths`. submitit's local cluster starts a job six times at most, and then it has ended without a result.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gcpo_bench.errors import ConfigError, PrerequisiteError
from gcpo_bench.ledger import Ledger

from . import POLL_S, STOP_S, Deaths, ordered, start_worker, wait_until_given_back

TICK_S = 1.0
ENDLESS = 1_000_000
"""Time-outs that a job may have."""
NO_LIMIT = "submitit asks Slurm for 5 minutes a job; choose with --executor-option timeout_min=240"


@dataclass(slots=True)
class Job:
    """What submitit pickles, runs and, after a preemption, queues again as it is."""

    runs_dir: Path
    order: Path
    name: str
    worker: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        self.worker = start_worker(Ledger(self.runs_dir), self.order, self.name)
        while (code := self.worker.poll()) is None:
            time.sleep(POLL_S)
        return code

    def checkpoint(self) -> Any:
        """Called in a signal's handler, wherever `__call__` is; Slurm kills what is left when the job ends."""
        import submitit

        if self.worker is not None:
            self.worker.terminate()
            deadline = time.monotonic() + STOP_S
            while _runs(self.worker.pid) and time.monotonic() < deadline:
                time.sleep(POLL_S)
        return submitit.helpers.DelayedSubmission(Job(self.runs_dir, self.order, self.name))


def _runs(pid: int) -> bool:
    """A child that is not over; what it ended with is left for who waits for it."""
    with suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    return False


def run(
    runs_dir: Path,
    ids: Sequence[str],
    *,
    max_parallel: int,
    options: Mapping[str, str],
    on_tick: Callable[[], None],
) -> None:
    """See `Executor`. `options` are submitit's parameters, such as slurm_partition or timeout_min, and `cluster`."""
    ledger = Ledger(runs_dir.resolve())
    executor = _executor(ledger, dict(options))
    deaths = Deaths(ledger, ids)
    jobs: dict[str, Any] = {}
    with _cancelled(ledger, ids, jobs), ordered(ledger, ids) as order:
        while left := ledger.unfinished(ids):
            for name, job in list(jobs.items()):
                if job.done():
                    del jobs[name]
                    if problem := _problem(job):
                        deaths.add(name, f"job {job.job_id}: {problem}")
            for slot in range(min(max_parallel, len(left))):
                name = f"slurm-{slot}"
                if name not in jobs:
                    jobs[name] = executor.submit(Job(ledger.runs_dir, order, name))
            on_tick()
            time.sleep(TICK_S)
        on_tick()
        for job in jobs.values():
            job.wait()  # nothing is left to do, so they end by themselves


def _problem(job: Any) -> str:
    """Of a job that is over; empty where it did its work."""
    from submitit.core.utils import UncompletedJobError

    try:
        if job.exception() is None:
            return "" if job.result() == 0 else f"exit code {job.result()}"
    except UncompletedJobError:  # such as one that was cancelled, or started too often
        pass
    return str(job.state)


@contextmanager
def _cancelled(ledger: Ledger, ids: Sequence[str], jobs: Mapping[str, Any]) -> Iterator[None]:
    """When the driver stops early: once the workers that run have saved."""
    try:
        yield
    except BaseException:
        wait_until_given_back(ledger, ids, lambda: all(job.done() for job in jobs.values()))
        for job in jobs.values():
            job.cancel()
        raise


def check(options: Mapping[str, str]) -> None:
    """Raises what `run` would for options, without submitting anything; says what their defaults mean."""
    with TemporaryDirectory() as folder:
        _made(Path(folder), dict(options))
    if options.get("cluster", "slurm") == "slurm" and not {"timeout_min", "slurm_time"} & options.keys():
        print(f"warning: {NO_LIMIT}", file=sys.stderr)


def _executor(ledger: Ledger, options: dict[str, str]) -> Any:
    check(options)
    return _made(ledger.path / "submitit", options)


def _made(folder: Path, options: dict[str, str]) -> Any:
    if not options.get("slurm_time", "0").isdecimal():
        raise ConfigError(
            f"--executor-option slurm_time={options['slurm_time']}: submitit calculates with minutes, and a job "
            "with anything else ends at its first preemption",
            hint="write it as timeout_min=90",
        )
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise PrerequisiteError(
            "the executor slurm needs submitit, which is not installed", hint="pip install 'gcpo-bench[slurm]'"
        ) from error
    cluster = options.pop("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **{f"{cluster}_max_num_timeout": ENDLESS})
        values = {key: int(value) if value.isdigit() else value for key, value in options.items()}
        executor.update_parameters(name="gcpo-bench", **values)
    except RuntimeError as error:
        raise PrerequisiteError(
            f"the executor slurm finds no Slurm here: {error}",
            hint="start it where sbatch is, or use --executor local",
        ) from error
    except (NameError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--executor-option: {' '.join(str(error).split())}", hint="write it as slurm_partition=gpu, timeout_min=60"
        ) from error
    return executor


run.check = check  # type: ignore[attr-defined]

"""Workers as Slurm jobs, through submitit. A preempted or timed-out job is queued again and its cell goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcpo_bench.errors import ConfigError, PrerequisiteError
from gcpo_bench.ledger import Ledger

from . import Deaths, run_worker, write_ids

TICK_S = 1.0


@dataclass(slots=True)
class Job:
    """What submitit pickles, runs and, after a preemption, queues again as it is."""

    runs_dir: Path
    listed: Path
    name: str

    def __call__(self) -> int:
        return run_worker(self.runs_dir, self.listed, self.name)

    def checkpoint(self) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(Job(self.runs_dir, self.listed, self.name))


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
    listed = write_ids(ledger, ids)
    deaths = Deaths(ledger)
    jobs: dict[str, Any] = {}
    try:
        while left := ledger.unfinished(ids):
            deaths.progress(len(left))
            for name, job in list(jobs.items()):
                if job.done():
                    del jobs[name]
                    if job.exception() is not None or job.result() != 0:
                        deaths.add(name, f"job {job.job_id}: {job.state}")
            for slot in range(min(max_parallel, len(left))):
                name = f"slurm-{slot}"
                if name not in jobs:
                    jobs[name] = executor.submit(Job(ledger.runs_dir, listed, name))
            on_tick()
            time.sleep(TICK_S)
        on_tick()
        for job in jobs.values():
            job.wait()  # nothing is left to do, so they end by themselves
    except BaseException:
        for job in jobs.values():
            job.cancel()
        raise
    finally:
        listed.unlink(missing_ok=True)


def _executor(ledger: Ledger, options: dict[str, str]) -> Any:
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise PrerequisiteError(
            "the executor slurm needs submitit, which is not installed", hint="pip install 'gcpo-bench[slurm]'"
        ) from error
    cluster = options.pop("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(folder=ledger.path / "submitit", cluster=cluster)
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

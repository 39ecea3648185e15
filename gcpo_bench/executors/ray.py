"""Workers as Ray Core tasks, on this machine or on a cluster that Ray already runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gcpo_bench.errors import ConfigError, PrerequisiteError
from gcpo_bench.ledger import Ledger

from . import Deaths, refuse_options, run_worker, write_ids

TICK_S = 1.0
OPTIONS = ("address", "num_cpus", "num_gpus")


def run(
    runs_dir: Path,
    ids: Sequence[str],
    *,
    max_parallel: int,
    options: Mapping[str, str],
    on_tick: Callable[[], None],
) -> None:
    """See `Executor`. `options`: `address` of a cluster; `num_cpus`, `num_gpus` that each worker takes."""
    refuse_options(options, "ray", OPTIONS)
    ray = _connected(options.get("address"))
    needs = {key: _number(key, options[key]) for key in ("num_cpus", "num_gpus") if key in options}
    ledger = Ledger(runs_dir.resolve())
    listed = write_ids(ledger, ids)
    deaths = Deaths(ledger)
    task = ray.remote(**{"num_cpus": 1, **needs, "max_retries": 0})(run_worker)
    workers: dict[str, Any] = {}
    try:
        while left := ledger.unfinished(ids):
            deaths.progress(len(left))
            for name, worker in list(workers.items()):
                if ray.wait([worker], timeout=0)[0]:
                    del workers[name]
                    if (code := _exit_code(ray, worker)) != 0:
                        deaths.add(name, code)
            for slot in range(min(max_parallel, len(left))):
                if f"ray-{slot}" not in workers:
                    workers[f"ray-{slot}"] = task.remote(ledger.runs_dir, listed, f"ray-{slot}")
            on_tick()
            time.sleep(TICK_S)
        on_tick()
        if workers:
            ray.wait(list(workers.values()), num_returns=len(workers))
    finally:
        ray.shutdown()  # what still runs is stopped with it
        listed.unlink(missing_ok=True)


def _connected(address: str | None) -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise PrerequisiteError(
            "the executor ray needs ray, which is not installed", hint="pip install 'gcpo-bench[ray]'"
        ) from error
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PrerequisiteError(
            f"Ray does not start: {' '.join(str(error).split())}", hint="check --executor-option address=..."
        ) from error
    return ray


def _exit_code(ray: Any, worker: Any) -> int | str:
    try:
        return int(ray.get(worker))
    except ray.exceptions.RayError as error:
        return type(error).__name__


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--executor-option {key}={text}: not a number", hint=f"write it as {key}=1") from error

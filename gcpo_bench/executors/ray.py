"""Workers as Ray Core tasks, on this machine or on a cluster that Ray already runs."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gcpo_bench import stops
from gcpo_bench.errors import ConfigError, PrerequisiteError
from gcpo_bench.ledger import Ledger

from . import Deaths, ordered, refuse_options, run_worker, wait_until_given_back

TICK_S = 1.0
OPTIONS = ("address", "num_cpus", "num_gpus")
NAMES = {"num_cpus": "CPU", "num_gpus": "GPU"}
"""What Ray calls them."""
SHOWN_MACHINES = 4
ANSWER_S = 10.0
"""How long an address may take to answer. Ray itself tries for minutes, without a word."""


def run(
    runs_dir: Path,
    ids: Sequence[str],
    *,
    max_parallel: int,
    options: Mapping[str, str],
    on_tick: Callable[[], None],
) -> None:
    """See `Executor`. `options`: `address` of a cluster; `num_cpus`, `num_gpus` that each worker takes."""
    check(options)
    ray = _connected(_address(options))
    needs = {"num_cpus": 1.0} | {key: _number(key, options[key]) for key in NAMES if key in options}
    ledger = Ledger(runs_dir.resolve())
    deaths = Deaths(ledger, ids)
    task = ray.remote(**needs, max_retries=0)(run_worker)
    workers: dict[str, Any] = {}
    with _shut_down(ray, ledger, ids, workers), ordered(ledger, ids) as order:
        _require_room(ray, needs, is_own=not _address(options))
        while left := ledger.unfinished(ids):
            for name, worker in list(workers.items()):
                if ray.wait([worker], timeout=0)[0]:
                    del workers[name]
                    if (code := _exit_code(ray, worker)) != 0:
                        deaths.add(name, code)
            for slot in range(min(max_parallel, len(left))):
                if f"ray-{slot}" not in workers:
                    workers[f"ray-{slot}"] = task.remote(ledger.runs_dir, order, f"ray-{slot}")
            on_tick()
            time.sleep(TICK_S)
        on_tick()


def check(options: Mapping[str, str]) -> None:
    """Raises what `run` would before it starts Ray."""
    refuse_options(options, "ray", OPTIONS)
    for key in NAMES:
        _number(key, options.get(key, "0"))
    if address := _address(options):
        _require_answer(address)
    if importlib.util.find_spec("ray") is None:
        raise PrerequisiteError(
            "the executor ray needs ray, which is not installed", hint="pip install 'gcpo-bench[ray]'"
        )


def _address(options: Mapping[str, str]) -> str | None:
    """Of a cluster; None starts Ray here."""
    return options.get("address") or os.environ.get("RAY_ADDRESS", "").strip() or None


@contextmanager
def _shut_down(ray: Any, ledger: Ledger, ids: Sequence[str], workers: Mapping[str, Any]) -> Iterator[None]:
    """At the end, once the workers have saved and stopped: Ray kills what still runs."""

    def ended() -> bool:
        running = list(workers.values())
        return not running or len(ray.wait(running, num_returns=len(running), timeout=0)[0]) == len(running)

    try:
        yield
    finally:
        wait_until_given_back(ledger, ids, ended)
        ray.shutdown()


def _require_room(ray: Any, needs: Mapping[str, float], *, is_own: bool) -> None:
    """Raises PrerequisiteError where no machine has what a worker takes; a cluster may get one, and is waited for."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(machine.get(NAMES[key], 0) >= need for key, need in needs.items()) for machine in machines):
        return
    wanted = ", ".join(f"{key}={need:g}" for key, need in needs.items())
    there = "; ".join(
        ", ".join(f"{key}={machine.get(NAMES[key], 0):g}" for key in needs) for machine in machines[:SHOWN_MACHINES]
    )
    message = f"a worker takes {wanted}, and no machine of this Ray has that (it has {there})"
    if is_own:
        raise PrerequisiteError(message, hint="ask for less with --executor-option, or name a cluster: address=")
    print(f"warning: {message}; waiting for one that has", file=sys.stderr)


def _require_answer(address: str) -> None:
    """Raises PrerequisiteError where an address of host and port does not answer."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # `auto`, `local`: Ray knows where
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise PrerequisiteError(
            f"no Ray answers at {address}: {error}",
            hint="unset RAY_ADDRESS to start Ray here, or name a running cluster: --executor-option address=HOST:PORT",
        ) from error


def _connected(address: str | None) -> Any:
    import ray

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PrerequisiteError(
            f"Ray does not start: {' '.join(str(error).split())}",
            hint="check --executor-option address=... and RAY_ADDRESS",
        ) from error
    except SystemExit as error:  # Ray's own answer to SIGTERM
        raise stops.Stopped(signal.SIGTERM) from error
    for number, handler in handlers.items():
        signal.signal(number, handler)  # Ray's own end the process with a dump of its stack, and nothing saved
    return ray


def _exit_code(ray: Any, worker: Any) -> int | str:
    try:
        return int(ray.get(worker))
    except ray.exceptions.RayError as error:
        return type(error).__name__


def _number(key: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise ConfigError(f"--executor-option {key}={text}: not a number from 0 on", hint=f"write it as {key}=1")
    return number


run.check = check  # type: ignore[attr-defined]

"""Workers as processes of this machine."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from gcpo_bench.ledger import Ledger

from . import STOP_S, Deaths, ordered, refuse_options, start_worker

TICK_S = 0.5


def run(
    runs_dir: Path,
    ids: Sequence[str],
    *,
    max_parallel: int,
    options: Mapping[str, str],
    on_tick: Callable[[], None],
) -> None:
    """See `Executor`."""
    check(options)
    ledger = Ledger(runs_dir)
    deaths = Deaths(ledger, ids)
    workers: dict[str, subprocess.Popen[bytes]] = {}
    with ordered(ledger, ids) as order, _stopped(workers):
        while left := ledger.unfinished(ids):
            for name, worker in list(workers.items()):
                if worker.poll() is not None:
                    del workers[name]
                    if worker.returncode != 0:
                        deaths.add(name, f"exit code {worker.returncode}")
            for slot in range(min(max_parallel, len(left))):
                if f"local-{slot}" not in workers:
                    workers[f"local-{slot}"] = start_worker(ledger, order, f"local-{slot}")
            on_tick()
            time.sleep(TICK_S)
        on_tick()


@contextmanager
def _stopped(workers: Mapping[str, subprocess.Popen[bytes]]) -> Iterator[None]:
    """At the end they save, give their cells back and are gone."""
    try:
        yield
    finally:
        _stop(list(workers.values()))


def _stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    for worker in workers:
        try:
            worker.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def check(options: Mapping[str, str]) -> None:
    """Raises what `run` would for options."""
    refuse_options(options, "local")


run.check = check  # type: ignore[attr-defined]

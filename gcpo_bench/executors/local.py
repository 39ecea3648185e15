"""Workers as processes of this machine."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gcpo_bench.ledger import Ledger

from . import Deaths, refuse_options, start_worker, write_ids

TICK_S = 0.5
STOP_S = 30.0
"""How long workers may take to save their state after Ctrl-C."""


def run(
    runs_dir: Path,
    ids: Sequence[str],
    *,
    max_parallel: int,
    options: Mapping[str, str],
    on_tick: Callable[[], None],
) -> None:
    """See `Executor`."""
    refuse_options(options, "local")
    ledger = Ledger(runs_dir)
    listed = write_ids(ledger, ids)
    deaths = Deaths(ledger)
    workers: dict[str, subprocess.Popen[bytes]] = {}
    try:
        while left := ledger.unfinished(ids):
            deaths.progress(len(left))
            for name, worker in list(workers.items()):
                if worker.poll() is not None:
                    del workers[name]
                    if worker.returncode != 0:
                        deaths.add(name, f"exit code {worker.returncode}")
            for slot in range(min(max_parallel, len(left))):
                if f"local-{slot}" not in workers:
                    workers[f"local-{slot}"] = start_worker(ledger, listed, f"local-{slot}")
            on_tick()
            time.sleep(TICK_S)
        on_tick()
    finally:
        _stop(list(workers.values()))
        listed.unlink(missing_ok=True)


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

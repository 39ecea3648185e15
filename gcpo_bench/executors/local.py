"""Workers as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gcpo_bench.errors import TrainingError
from gcpo_bench.files import write_text
from gcpo_bench.ledger import Ledger

TICK_S = 0.5
STOP_S = 30.0
"""How long workers may take to save their state after Ctrl-C."""
MAX_DEATHS = 5
"""Workers that may die in a row without a cell being finished, such as for want of memory."""


def run(runs_dir: Path, ids: Sequence[str], *, max_parallel: int, on_tick: Callable[[], None] = lambda: None) -> None:
    """Keep up to `max_parallel` workers alive while cells are left.

    Raises TrainingError where workers die one after the other.
    """
    ledger = Ledger(runs_dir)
    listed = ledger.path / f"ids-{os.getpid()}.txt"
    write_text(listed, "\n".join(ids) + "\n")
    workers: dict[str, subprocess.Popen[bytes]] = {}
    deaths, finished = 0, 0
    try:
        while left := ledger.unfinished(ids):
            deaths = 0 if len(ids) - len(left) > finished else deaths
            finished = len(ids) - len(left)
            for name, worker in list(workers.items()):
                if worker.poll() is not None:
                    deaths += worker.returncode != 0
                    del workers[name]
            if deaths >= MAX_DEATHS:
                raise TrainingError(
                    f"{deaths} workers in a row died (exit code {worker.returncode})",
                    hint=f"look at {log_path(ledger, name)}; with too little memory try a smaller --max-parallel",
                )
            for slot in range(min(max_parallel, len(left))):
                name = f"local-{slot}"
                if name not in workers:
                    workers[name] = _start(ledger, listed, name)
            on_tick()
            time.sleep(TICK_S)
        on_tick()
    finally:
        _stop(list(workers.values()))
        listed.unlink(missing_ok=True)


def log_path(ledger: Ledger, worker: str) -> Path:
    return ledger.path / "logs" / f"{worker}.log"


def _start(ledger: Ledger, listed: Path, name: str) -> subprocess.Popen[bytes]:
    log = log_path(ledger, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "gcpo_bench", "work", "--runs-dir", str(ledger.runs_dir), "--ids", str(listed)]
    with log.open("ab") as output:
        # a session of its own: Ctrl-C reaches the driver only, which then asks the workers to save and stop
        return subprocess.Popen(
            [*command, "--worker", name, "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


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

"""Where the workers of a grid run. An executor only starts workers; which cell is whose, the ledger decides."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from gcpo_bench import outside
from gcpo_bench.errors import ConfigError, CorruptDataError, TrainingError
from gcpo_bench.files import read_object, write_json
from gcpo_bench.ledger import Ledger, Owner
from gcpo_bench.registry import EXECUTORS
from gcpo_bench.runs import Run

MAX_DEATHS = 5
"""Workers that may die in a row without a step of any cell being kept, such as for want of memory."""
STOP_S = 30.0
"""How long workers may take to save their state when the driver is stopped."""
POLL_S = 0.2


class Executor(Protocol):
    def __call__(
        self,
        runs_dir: Path,
        ids: Sequence[str],
        *,
        max_parallel: int,
        options: Mapping[str, str],
        on_tick: Callable[[], None],
    ) -> None:
        """Keep workers running until no cell of `ids` is left, calling `on_tick` about once a second.

        Raises:
            TrainingError: workers die one after the other.
            PrerequisiteError: a package is missing.
        """
        ...


def load(name: str, options: Mapping[str, str]) -> Executor:
    """The executor, which may have a `check` of its options. Raises ConfigError, PrerequisiteError."""
    outside.allow([name])  # said with --executor, never read from a folder
    executor: Executor = EXECUTORS.load(name)
    getattr(executor, "check", lambda options: None)(options)
    return executor


@contextmanager
def ordered(ledger: Ledger, ids: Sequence[str]) -> Iterator[Path]:
    """A file with the cells that this driver's workers are for. When it goes, they save, give back and stop."""
    _remove_orphans(ledger)
    path = ledger.path / f"order-{uuid.uuid4().hex[:8]}.json"
    try:
        write_json(path, {"ids": list(ids), "owner": asdict(Owner.this_process("driver"))})
        yield path
    finally:
        path.unlink(missing_ok=True)


def _remove_orphans(ledger: Ledger) -> None:
    """Orders of drivers that are gone; their workers are, or are about to be."""
    for path in ledger.path.glob("order-*.json"):
        with suppress(CorruptDataError, TypeError):  # gone meanwhile; of another version
            if Owner(**read_object(path)["owner"]).is_gone():
                path.unlink(missing_ok=True)


def wait_until_given_back(ledger: Ledger, ids: Sequence[str], ended: Callable[[], bool]) -> None:
    """After the order is gone: until the workers have ended, or hold none of `ids`, but no longer than `STOP_S`."""
    deadline = time.monotonic() + STOP_S
    while not ended() and time.monotonic() < deadline:
        if all(state.state != "claimed" for state in ledger.states(ids)):
            return
        time.sleep(POLL_S)


def log_path(ledger: Ledger, worker: str) -> Path:
    return ledger.path / "logs" / f"{worker}.log"


def start_worker(ledger: Ledger, order: Path, name: str) -> subprocess.Popen[bytes]:
    """A worker process; it stops by itself when this process is gone."""
    log = log_path(ledger, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "gcpo_bench", "work", "--runs-dir", str(ledger.runs_dir), "--order", str(order)]
    with log.open("ab") as output:
        # a session of its own: Ctrl-C reaches the driver only, which then asks the workers to save and stop
        return subprocess.Popen(
            [*command, "--worker", name, "--parent", str(os.getpid()), "--trust"],  # its cells are this plan's
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def run_worker(runs_dir: Path, order: Path, name: str) -> int:
    """`start_worker`, waited for: what a job of a scheduler does. Its exit code."""
    return start_worker(Ledger(runs_dir), order, name).wait()


class Deaths:
    """Counts workers that die while nothing gets done, and gives up when there are too many."""

    def __init__(self, ledger: Ledger, ids: Sequence[str]) -> None:
        self.ledger, self.ids = ledger, ids
        self.count = 0
        self.done = self._done()

    def _done(self) -> list[tuple[str, list[int]]]:
        """State and kept steps of every cell: a job that reaches its time limit has done something too."""
        done: list[tuple[str, list[int]]] = []
        for each in self.ledger.states(self.ids):
            run = Run(self.ledger.runs_dir / each.cell.name, each.cell.config)
            done.append((each.state, run.checkpoint_steps()))
        return done

    def add(self, worker: str, exit_code: int | str) -> None:
        before, self.done = self.done, self._done()
        self.count = self.count + 1 if self.done == before else 1
        if self.count >= MAX_DEATHS:
            raise TrainingError(
                f"{self.count} workers in a row died, the last ({worker}) with {exit_code}",
                hint=f"look at {log_path(self.ledger, worker)}; with too little memory try a smaller --max-parallel",
            )


def refuse_options(options: Mapping[str, str], executor: str, known: Sequence[str] = ()) -> None:
    if wrong := [key for key in options if key not in known]:
        hint = f"known: {', '.join(known)}" if known else "leave it out"
        raise ConfigError(f"executor {executor} has no option {wrong[0]!r}", hint=hint)

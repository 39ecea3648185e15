"""Where the workers of a grid run. An executor only starts workers; which cell is whose, the ledger decides."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from gcpo_bench.errors import ConfigError, TrainingError
from gcpo_bench.files import write_text
from gcpo_bench.ledger import Ledger

MAX_DEATHS = 5
"""Workers that may die in a row without a cell being finished, such as for want of memory."""


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


def write_ids(ledger: Ledger, ids: Sequence[str]) -> Path:
    """A file with the cells that this driver's workers are for."""
    path = ledger.path / f"ids-{os.getpid()}.txt"
    write_text(path, "\n".join(ids) + "\n")
    return path


def log_path(ledger: Ledger, worker: str) -> Path:
    return ledger.path / "logs" / f"{worker}.log"


def start_worker(ledger: Ledger, listed: Path, name: str) -> subprocess.Popen[bytes]:
    """A worker process; it stops by itself when this process is gone."""
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


def run_worker(runs_dir: Path, listed: Path, name: str) -> int:
    """`start_worker`, waited for: what a job of a scheduler does. Its exit code."""
    return start_worker(Ledger(runs_dir), listed, name).wait()


class Deaths:
    """Counts workers that die while no cell gets finished, and gives up when there are too many."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.count = 0
        self.left: int | None = None

    def progress(self, left: int) -> None:
        if self.left is not None and left < self.left:
            self.count = 0
        self.left = left

    def add(self, worker: str, exit_code: int | str) -> None:
        self.count += 1
        if self.count >= MAX_DEATHS:
            raise TrainingError(
                f"{self.count} workers in a row died, the last ({worker}) with {exit_code}",
                hint=f"look at {log_path(self.ledger, worker)}; with too little memory try a smaller --max-parallel",
            )


def refuse_options(options: Mapping[str, str], executor: str, known: Sequence[str] = ()) -> None:
    if wrong := [key for key in options if key not in known]:
        hint = f"known: {', '.join(known)}" if known else "leave it out"
        raise ConfigError(f"executor {executor} has no option {wrong[0]!r}", hint=hint)

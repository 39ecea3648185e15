"""Which cells of a grid are planned, claimed, done or failed: a folder of small files that many processes share.

<runs>/.ledger/
  version.json
  cells/<cell id>/
    cell.json            what to run; written once
    claim-0001.json      the first attempt's owner; its modification time is the heartbeat
    failed-0001.json     that attempt ended with this error
    released-0001.json   that attempt is over: finished, or given back after a signal
    done.json            finished; never replaced

Every file is made with `link`, which exactly one process can win, also on a network file system. The highest claim owns
the cell. The next claim may be made only when that one is over: failed, released, or its owner gone. Claims are never
renamed or removed, so no process can take away one that it did not see.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gcpo_bench import leftovers
from gcpo_bench.ablations import Cell
from gcpo_bench.errors import CorruptDataError, RunError
from gcpo_bench.files import inline_yaml, read_json, read_object, reading, write_json, writing

FOLDER = ".ledger"
VERSION = 1
HEARTBEAT_S = 10.0
ALIVE = "alive"
State = Literal["planned", "claimed", "done", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who works on a cell. On one machine a process that is gone is noticed at once, elsewhere by its heartbeat."""

    worker: str
    host: str
    boot: str
    pid: int
    started: str
    """Start time of the process as the kernel tells it; a number may be used again, this pair is not."""
    processes: str = ""
    """In which namespace the number is one: containers of a machine may share its name, and not its processes."""

    @classmethod
    def this_process(cls, worker: str) -> Owner:
        return cls(
            worker=worker,
            host=socket.gethostname(),
            boot=_boot(),
            pid=os.getpid(),
            started=_started(os.getpid()),
            processes=_namespace(),
        )

    def is_gone(self) -> bool:
        """True only where this process can tell."""
        here = (socket.gethostname(), _boot(), _namespace())
        return (self.host, self.boot, self.processes) == here and _started(self.pid) not in (self.started, ALIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellState:
    cell: Cell
    state: State
    attempts: int
    failures: int
    error: str = ""
    """Of the last failure."""
    seconds: float | None = None
    """Time of the attempt that finished it."""


def run_names(runs_dir: Path, ids: Collection[str]) -> dict[str, str]:
    """Cell -> its run's name, of the cells that were planned before: a cell keeps the name it was planned with."""
    paths = {cell_id: runs_dir / FOLDER / "cells" / cell_id / "cell.json" for cell_id in ids}
    return {cell_id: Cell.from_json(read_json(path), path).name for cell_id, path in paths.items() if path.exists()}


class Ledger:
    """The ledger of one runs folder."""

    def __init__(self, runs_dir: Path, *, stale_after_s: float = 60.0, max_failures: int = 2) -> None:
        self.runs_dir = runs_dir
        self.path = runs_dir / FOLDER
        self.stale_after_s = stale_after_s
        self.max_failures = max_failures
        self._check_version()

    def _check_version(self) -> None:
        path = self.path / "version.json"
        if not path.exists():
            _create(path, {"version": VERSION})
        record = read_json(path)
        if record != {"version": VERSION}:
            raise RunError(
                f"{path}: this ledger is of another version ({inline_yaml(record)}), not {VERSION}",
                hint="choose another --runs-dir, or use the gcpo-bench that made it",
            )

    # ------------------------------------------------------------ planning

    def plan(self, cells: Sequence[Cell]) -> list[Cell]:
        """Add what is not there yet; the cells that are new. What killed processes left in the ledger goes."""
        leftovers.remove_files(self.path)
        new = []
        for cell in cells:
            if _create(self._folder(cell.id) / "cell.json", cell.to_json()):
                new.append(cell)
        return new

    def cell(self, cell_id: str) -> Cell:
        return Cell.from_json(read_json(self._folder(cell_id) / "cell.json"), self._folder(cell_id) / "cell.json")

    def ids(self) -> list[str]:
        folder = self.path / "cells"
        return sorted(path.parent.name for path in folder.glob("*/cell.json"))

    def retry(self, ids: Collection[str]) -> list[str]:
        """Give finally failed cells another set of attempts; which ones."""
        failed = [state.cell.id for state in self.states(ids) if state.state == "failed"]
        for cell_id in failed:
            _create(self._folder(cell_id) / f"retry-{self._count(cell_id, 'failed'):04d}.json", {})
        return failed

    def reopen_lost(self, ids: Collection[str]) -> list[str]:
        """Open finished cells whose run is no longer there, such as after a folder was deleted; which ones."""
        lost = [
            state.cell.id
            for state in self.states(ids)
            if state.state == "done" and not (self.runs_dir / state.cell.name / "config.yaml").exists()
        ]
        for cell_id in lost:
            (self._folder(cell_id) / "done.json").unlink(missing_ok=True)
        return lost

    # ------------------------------------------------------------ looking

    def states(self, ids: Collection[str] | None = None) -> list[CellState]:
        return [self.state(cell_id) for cell_id in (self.ids() if ids is None else ids)]

    def state(self, cell_id: str) -> CellState:
        failures = self._count(cell_id, "failed")
        attempts = self._count(cell_id, "claim")
        done = self._read(cell_id, "done.json")
        state: State = "planned"
        if done is not None:
            state = "done"
        elif self._is_held(cell_id, attempts):
            state = "claimed"
        elif self._failures_left(cell_id, failures) <= 0:
            state = "failed"
        last = self._read(cell_id, f"failed-{self._last(cell_id, 'failed'):04d}.json") if failures else None
        return CellState(
            cell=self.cell(cell_id),
            state=state,
            attempts=attempts,
            failures=failures,
            error=str((last or {}).get("error", "")),
            seconds=(done or {}).get("seconds"),
        )

    def unfinished(self, ids: Collection[str]) -> list[str]:
        """Cells that are neither done nor finally failed."""
        return [state.cell.id for state in self.states(ids) if state.state in ("planned", "claimed")]

    # ------------------------------------------------------------ claiming

    def claim(self, ids: Sequence[str], worker: str) -> Claim | None:
        """The first of `ids` that nobody holds and that may be tried; None where there is none now."""
        for cell_id in ids:
            number = self._last(cell_id, "claim")
            if self.state(cell_id).state != "planned":
                continue
            path = self._folder(cell_id) / f"claim-{number + 1:04d}.json"
            if _create(path, asdict(Owner.this_process(worker))):
                # the other process may have finished between the look and the claim
                if self._read(cell_id, "done.json") is None:
                    return Claim(self, self.cell(cell_id), number + 1)
                _create(self._folder(cell_id) / f"released-{number + 1:04d}.json", {"reason": "done already"})
        return None

    def _is_held(self, cell_id: str, attempts: int) -> bool:
        if attempts == 0:
            return False
        number = self._last(cell_id, "claim")
        folder = self._folder(cell_id)
        if any((folder / f"{end}-{number:04d}.json").exists() for end in ("failed", "released")):
            return False
        path = folder / f"claim-{number:04d}.json"
        with reading(path):
            age_s = time.time() - path.stat().st_mtime
        if age_s >= self.stale_after_s:
            return False
        try:
            return not Owner(**read_object(path)).is_gone()
        except (CorruptDataError, TypeError):
            return True  # who owns it cannot be told, and a beating heart is one

    # ------------------------------------------------------------ files

    def _folder(self, cell_id: str) -> Path:
        return self.path / "cells" / cell_id

    def _numbers(self, cell_id: str, kind: str) -> list[int]:
        names = [path.stem.removeprefix(f"{kind}-") for path in self._folder(cell_id).glob(f"{kind}-*.json")]
        return sorted(int(name) for name in names if name.isdigit())

    def _last(self, cell_id: str, kind: str) -> int:
        return max(self._numbers(cell_id, kind), default=0)

    def _count(self, cell_id: str, kind: str) -> int:
        return len(self._numbers(cell_id, kind))

    def _failures_left(self, cell_id: str, failures: int) -> int:
        forgiven = self._last(cell_id, "retry")
        return self.max_failures - (failures - forgiven)

    def _read(self, cell_id: str, name: str) -> dict[str, Any] | None:
        path = self._folder(cell_id) / name
        if not path.exists():
            return None
        record = read_json(path)
        if not isinstance(record, dict):
            raise CorruptDataError(f"{path} is damaged: not an object", hint="delete it; the cell is then tried again")
        return record


@dataclass(slots=True)
class Claim:
    """The right to run a cell, as long as the heartbeat goes on."""

    ledger: Ledger
    cell: Cell
    attempt: int

    @property
    def path(self) -> Path:
        return self._file("claim")

    def _file(self, kind: str) -> Path:
        return self.ledger._folder(self.cell.id) / f"{kind}-{self.attempt:04d}.json"

    def holds(self) -> bool:
        """False once another process took the cell over, because this one was silent for too long."""
        return self.ledger._last(self.cell.id, "claim") == self.attempt

    def done(self, seconds: float) -> None:
        if self.holds():
            record = {"attempt": self.attempt, "seconds": round(seconds, 3)}
            _create(self.ledger._folder(self.cell.id) / "done.json", record)
        self.release("finished")

    def failed(self, error: str, hint: str = "") -> None:
        _create(self._file("failed"), {"error": error, "hint": hint})

    def release(self, reason: str) -> None:
        _create(self._file("released"), {"reason": reason})

    @contextmanager
    def heartbeat(self, abandoned: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Keeps the claim fresh from a thread of its own; stops this process once nobody waits for it any more."""
        stop = threading.Event()

        def beat() -> None:
            last = 0.0
            while not stop.wait(1.0):
                if abandoned():
                    os.kill(os.getpid(), signal.SIGTERM)  # saves, gives the cell back, ends
                    return
                if time.monotonic() - last >= HEARTBEAT_S:
                    last = time.monotonic()
                    with suppress(OSError):  # a full or lost disk shows in the work itself
                        os.utime(self.path)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _create(path: Path, record: Any) -> bool:
    """Write a file that must not exist yet, whole or not at all; False where another process was first."""
    if path.exists():
        return False
    temporary = leftovers.temporary_file(path)
    with writing(path):
        while True:
            write_json(temporary, record)
            try:
                os.link(temporary, path)
                return True
            except FileExistsError:
                return False
            except FileNotFoundError:
                continue  # another process took it for a leftover
            finally:
                temporary.unlink(missing_ok=True)


def _boot() -> str:
    """Changes with every boot of this machine; empty where there is no such thing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    """Which processes this one can see; empty where there is no such thing."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this machine started, in clock ticks since boot; empty where it is gone or only a zombie.

    `ALIVE` where that is all that can be known: without /proc, or where others' processes are hidden in it.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return _alive(pid)
    return "" if fields[0] in "ZX" else fields[19]


def _alive(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return ALIVE

"""Locks between processes, on files that one process holds or several share.

The kernel lets go of a lock when its process ends, however that ends: no lock is ever stale, and none is taken from a
process that is alive. The files stay; an empty lock file means nothing. What they hold is for messages only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gcpo_bench.errors import PrerequisiteError
from gcpo_bench.files import writing

OnWait = Callable[[str], None]
"""Called once with who holds the lock, before a process waits for it."""
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
_held: dict[Path, int] = {}
"""Locks of this process, and how often it took each."""


class Held(Exception):
    """Another process holds the lock; the message says which."""


def beside(folder: Path) -> Path:
    """The lock file of a folder: its neighbour, so that whoever lists the folder does not see it."""
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def held(path: Path, *, shared: bool = False, again: bool = False, on_wait: OnWait | None = None) -> Iterator[None]:
    """Hold the lock file `path`, alone or with others that share it.

    Where neither the file nor its folder may be written, nothing is locked: nobody here could change what it guards.

    Args:
        again: whether it is enough that this process holds the lock already.
        on_wait: None does not wait.
    Raises:
        Held: without `on_wait`, where another process holds it.
        PrerequisiteError: the file system has no locks, or the disk is full.
    """
    key = path.resolve()
    file = None if again and key in _held else _opened(path)
    try:
        if file is not None:
            _take(file, path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, on_wait)
            if not shared:
                _sign(file)
        _held[key] = _held.get(key, 0) + 1
        try:
            yield
        finally:
            _held[key] -= 1
            if not _held[key]:
                del _held[key]
    finally:
        if file is not None:
            file.close()


def _opened(path: Path) -> IO[bytes] | None:
    """None where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path):
            return path.open("a+b", buffering=0)
    except (PermissionError, PrerequisiteError):
        if path.is_file() and os.access(path, os.R_OK):  # somebody else's, in a folder that several may write to
            return path.open("rb", buffering=0)
        if not os.access(path.parent, os.W_OK):
            return None
        raise


def _take(file: IO[bytes], path: Path, kind: int, on_wait: OnWait | None) -> None:
    try:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
            if on_wait is None:
                raise Held(owner) from None
            on_wait(owner)
            fcntl.flock(file, kind)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise PrerequisiteError(
            f"{path} cannot be locked: this file system has no locks ({error.strerror})",
            hint="choose a folder on another one; of Lustre, mount it with -o flock",
        ) from error


def _sign(file: IO[bytes]) -> None:
    with suppress(OSError):  # somebody else's file, or a full disk: the lock holds without a name
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())

"""What a killed process leaves: files and folders that it had begun and not put in their place.

Whoever writes one holds a lock on it, which the kernel lets go of when the process ends, however that ends. So what can
be locked is nobody's, and is removed by the next process that writes in the same place. On a file system without locks
nothing is removed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

FILE = re.compile(r".+\.[0-9a-f]{8}\.tmp")
FOLDER = "~*"
"""No run's name has a "~", so that such a folder is never taken for one."""


def temporary_file(path: Path) -> Path:
    """A new name beside `path`."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def temporary_folder(path: Path) -> Path:
    """A new name beside `path`."""
    return path.with_name(f"~{path.name}.{uuid.uuid4().hex[:8]}")


@contextmanager
def file_for(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path`, to be moved there before the block ends; else it is gone then."""
    while True:
        temporary = temporary_file(path)
        with temporary.open("xb") as file:
            if _is_ours(file.fileno()):
                try:
                    yield file
                finally:
                    temporary.unlink(missing_ok=True)
                return


@contextmanager
def folder_for(path: Path) -> Iterator[Path]:
    """As `file_for`, a folder."""
    while True:
        temporary = temporary_folder(path)
        temporary.mkdir(parents=True)
        try:
            descriptor = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:  # taken for a leftover before it was opened
            continue
        try:
            if _is_ours(descriptor):
                try:
                    yield temporary
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
                return
        finally:
            os.close(descriptor)


def _is_ours(descriptor: int) -> bool:
    """Lock it; False where another process took it for a leftover before it was locked."""
    with suppress(OSError):  # no locks here
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return os.fstat(descriptor).st_nlink > 0


def remove_files(folder: Path, *, deep: bool = True) -> None:
    """Of dead processes, in `folder` and, where `deep`, in those in it."""
    for place, inner, names in os.walk(folder):
        for name in filter(FILE.fullmatch, names):
            _remove(Path(place, name))
        if not deep:
            inner.clear()


def remove_folders(root: Path) -> None:
    """Of dead processes, in `root` itself."""
    for path in root.glob(FOLDER):
        _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):  # gone meanwhile, another's, or no locks here
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            os.close(descriptor)

"""Processes that begin at the same moment and tell what they did, synchronised by files: no test waits for a clock."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

LIMIT_S = 900.0
"""Until a test gives up on a process; far beyond what a loaded machine needs."""
WAIT = """
import sys, time
from pathlib import Path

def wait_for(path):
    while not Path(path).exists():
        time.sleep(0.002)

def meet(folder, name, many):
    (Path(folder) / f"here-{name}").touch()
    while len(list(Path(folder).glob("here-*"))) < many:
        time.sleep(0.002)
"""


def start(code: str, *arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """Python code in a process of its own, with `wait_for` and `meet`; its output is one text."""
    return subprocess.Popen(
        [sys.executable, "-c", WAIT + textwrap.dedent(code), *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), str(cwd)])},
    )


def outputs(processes: Sequence[subprocess.Popen[str]], code: int = 0) -> list[str]:
    """What each printed; all must end with this exit code."""
    texts = [process.communicate(timeout=LIMIT_S)[0] for process in processes]
    for process, text in zip(processes, texts, strict=True):
        assert process.returncode == code, text
    return texts


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a process has made the file."""
    until = time.monotonic() + LIMIT_S
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, f"{path} was not made"
        time.sleep(0.002)

"""Peak memory of a piece of Python, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

STATUS = Path("/proc/self/status")
# of the process itself: `resource` also counts what the one that started it had at its peak
READ = f"""
import json, pathlib

def memory_mb(name):
    lines = pathlib.Path({str(STATUS)!r}).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6
"""


def peak_mb(before: str, measured: str, result: str = "None") -> tuple[float, Any]:
    """MB that running `measured` takes at its peak beyond what is there after `before`, and a JSON value of both."""
    if not STATUS.is_file():
        pytest.skip("the kernel does not tell a process its peak")
    start, end = "start = memory_mb('VmRSS')", f"print(json.dumps([memory_mb('VmHWM') - start, {result}]))"
    code = "\n".join([READ, textwrap.dedent(before), start, textwrap.dedent(measured), end])
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    peak, value = json.loads(printed)
    return peak, value

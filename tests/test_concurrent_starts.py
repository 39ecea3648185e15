"""A few processes at once; `benchmarks/concurrent_starts.py` starts fifty of each command.

Of `evaluate` and `ablate` see test_concurrency.py and test_ablate_cli.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("command", ["train", "report"])
def test_nothing_is_lost_mixed_or_done_twice(command: str, tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "concurrent_starts.py"
    ended = subprocess.run(
        [sys.executable, script, "--many", "3", "--only", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count(" ok\n") == len(ended.stdout.splitlines()) >= 1

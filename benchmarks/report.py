"""Seconds, peak memory and bytes of `gcpo-bench report` on many large runs, and whether two reports are the same.

    python benchmarks/report.py [--runs 30] [--images 10000] [--json]

Run folders of the real format with invented numbers: 6 variants with the same number of seeds, all on one benchmark.
The first run's pictures are drawn; the other runs link to them, because the report opens only those that it shows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the maker of run folders lives in the tests

from tests.run_factory import TASKS, make_run

METHODS = ("grpo", "gcpo", "gcpo-no-daw", "gcpo-init", "random", "remaining")
SKILL = {"grpo": 0.70, "gcpo": 0.72, "random": 0.66, "remaining": 0.64}
IMAGES_PER_PROMPT = 4


def make_runs(root: Path, runs: int, images: int) -> int:
    """`runs` trained runs and a start; returns the images of each."""
    per_task = -(-images // (IMAGES_PER_PROMPT * len(TASKS)))
    options: dict[str, Any] = {"prompts_per_task": per_task, "images_per_prompt": IMAGES_PER_PROMPT}
    first = make_run(root, "start-scenes-12", method="grpo", steps=0, skill=0.55, **options)
    pictures = first.images_dir("scenes")
    for number in range(runs):
        method, seed = METHODS[number % len(METHODS)], number // len(METHODS)
        name = f"{method}-{seed}"
        run = make_run(root, name, method=method, seed=seed, skill=SKILL.get(method, 0.68), draw=False, **options)
        shutil.copytree(pictures, run.images_dir("scenes"), copy_function=os.link, dirs_exist_ok=True)
    return per_task * len(TASKS) * IMAGES_PER_PROMPT


def report(root: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "gcpo_bench", "report", "--runs-dir", str(root), "--out", str(out)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime - before, 1),
        "peak_memory_mb": round(usage.ru_maxrss / 1024),
        "page_mb": round((out / "report.html").stat().st_size / 1e6, 2),
    }


def digest(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--images", type=int, default=10_000, help="evaluated images of each run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        images = make_runs(root / "runs", options.runs, options.images)
        figures = [report(root / "runs", root / name) for name in ("first", "second")]
        identical = digest(root / "first") == digest(root / "second")
    result = {
        "runs": options.runs,
        "images_per_run": images,
        "first": figures[0],
        "second": figures[1],
        "identical_bytes": identical,
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
    }
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        for name, value in result.items():
            print(f"{name:16} {value}")
    sys.exit(not identical)


if __name__ == "__main__":
    main()

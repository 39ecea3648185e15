"""The wheel holds everything the checkout has, and works without it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from gcpo_bench.cli.doctor import EXTRAS

ROOT = Path(__file__).parent.parent
FOLDERS = {"gcpo_bench": "gcpo_bench"} | {f"gcpo_bench/{name}": name for name in ("training", "evaluators", "reports")}
SUFFIXES = {".py", ".yaml", ".json", ".safetensors", ".html", ".css", ".js", ".typed", ".gz"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: an earlier build/ of the checkout would be packed again
    for name in FOLDERS.values():
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    build = subprocess.run([*command, "-w", str(folder), str(source)], capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr[-2000:]
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked far from the checkout."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gcpo_bench", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_what_the_tree_holds(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout: nothing says which files belong")
    expected = set()
    for package, folder in FOLDERS.items():
        expected |= {
            package + name.removeprefix(folder)
            for name in tracked
            if name.startswith(f"{folder}/") and Path(name).suffix in SUFFIXES
        }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected


def test_every_extra_has_code_that_uses_it() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    code = "\n".join(
        path.read_text(encoding="utf-8") for folder in FOLDERS.values() for path in (ROOT / folder).glob("**/*.py")
    )
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", code, re.MULTILINE))
    imported |= set(re.findall(r"import_module\(\"(\w+)", code))
    for extra in extras.keys() - {"test", "dev"}:
        assert imported & {re.split(r"[^\w]", need)[0] for need in extras[extra]}, extra
    assert set(EXTRAS.values()) == extras.keys() - {"test", "dev"}


def test_a_run_works_from_the_wheel_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-c", "import gcpo_bench.training.loop as loop; print(loop.__file__)"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert where.startswith(str(installed))
    dry = run(installed, tmp_path, "train", "--preset", "scenes-tiny-gcpo", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert list(tmp_path.iterdir()) == []
    done = run(installed, tmp_path, "train", "--preset", "scenes-tiny-gcpo", "--num-steps", "2", "--name", "two")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "runs/two/metrics.jsonl").read_text().splitlines()) == 2

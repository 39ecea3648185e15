"""What a run records about where it ran, and what it never records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from gcpo_bench import __version__, environment


def test_a_record_says_what_is_needed_to_repeat_a_run() -> None:
    record = environment.record(["gcpo-bench", "train", "--seed", "1"])
    assert record["argv"] == ["gcpo-bench", "train", "--seed", "1"]
    assert record["version"] == __version__
    assert datetime.fromisoformat(record["time"]).utcoffset().total_seconds() == 0  # type: ignore[union-attr]
    assert record["packages"]["numpy"]
    assert record["cores"] >= 1
    assert record["memory_bytes"] > 10**8
    assert json.loads(json.dumps(record)) == record


def test_the_record_is_of_this_process_unless_told_otherwise() -> None:
    assert environment.record()["argv"] == sys.argv


def test_secrets_in_the_environment_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "swordfish-7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    record = environment.record([])
    assert "swordfish-7" not in json.dumps(record)
    assert set(record["variables"]) <= {"CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"}
    assert record["variables"]["OMP_NUM_THREADS"] == "3"


def test_recording_does_not_import_torch() -> None:
    code = "import sys; from gcpo_bench import environment; environment.record([]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_has_no_version() -> None:
    assert environment.package_version("no-such-package-anywhere") is None


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    (tmp_path / "file").write_text("one\n")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, env={**os.environ, **identity})
    return tmp_path


def test_a_clean_checkout_has_a_commit_and_no_changes(checkout: Path) -> None:
    found = environment._checkout(checkout)
    assert len(str(found["commit"])) == 40
    assert found["dirty"] is None


def test_each_state_of_a_changed_checkout_has_its_own_hash(checkout: Path) -> None:
    (checkout / "file").write_text("two\n")
    changed = environment._checkout(checkout)["dirty"]
    (checkout / "file").write_text("three\n")
    changed_again = environment._checkout(checkout)["dirty"]
    (checkout / "new").write_text("x\n")
    with_new_file = environment._checkout(checkout)["dirty"]
    assert len({changed, changed_again, with_new_file, None}) == 4


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    assert environment._checkout(tmp_path) == {"commit": None, "dirty": None}


def test_a_broken_checkout_is_recorded_without_commit(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("nonsense")
    assert environment._checkout(tmp_path) == {"commit": None, "dirty": None}


# ---------------------------------------------------------------- memory

GB = 10**9


def machine(root: Path, member: str, groups: dict[str, dict[str, str]]) -> Path:
    """A file system that says 8 GB are left of the machine, and these control groups."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {8 * GB // 1024} kB\n")
    (root / "proc" / "self" / "cgroup").write_text(member)
    for group, files in groups.items():
        folder = root / "sys" / "fs" / "cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("member", "groups", "free"),
    [
        ("", {}, 8 * GB),
        ("0::/\n", {"": {}}, 8 * GB),
        # the job's own group says nothing; the one around it allows 6 GB, of which 3 are used, 1 of that for files
        (
            "0::/slurm/job\n",
            {
                "slurm/job": {"memory.max": "max\n", "memory.current": "5", "memory.stat": "anon 5\n"},
                "slurm": {
                    "memory.max": f"{6 * GB}\n",
                    "memory.current": f"{3 * GB}\n",
                    "memory.stat": f"anon {2 * GB}\ninactive_file {GB}\n",
                },
            },
            4 * GB,
        ),
        (
            "3:cpu:/elsewhere\n4:memory:/docker/x\n0::/\n",
            {
                "memory/docker/x": {
                    "memory.limit_in_bytes": f"{2 * GB}\n",
                    "memory.usage_in_bytes": f"{GB}\n",
                    "memory.stat": "cache 0\ninactive_file 0\n",
                }
            },
            GB,
        ),
        (
            "4:memory:/x\n",
            {"memory/x": {"memory.limit_in_bytes": f"{2**63}", "memory.usage_in_bytes": "5", "memory.stat": ""}},
            8 * GB,
        ),
    ],
)
def test_free_memory_is_what_machine_and_container_leave(
    tmp_path: Path, member: str, groups: dict[str, dict[str, str]], free: int
) -> None:
    system = machine(tmp_path, member, groups)
    assert environment.free_memory_bytes(system) == pytest.approx(free, abs=1024)
    assert environment.usable_memory_bytes(system) <= environment.memory_bytes()


def test_this_machine_has_memory_left() -> None:
    assert 0 < environment.free_memory_bytes() <= environment.usable_memory_bytes() <= environment.memory_bytes()

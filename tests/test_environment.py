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

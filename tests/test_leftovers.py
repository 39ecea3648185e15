"""What a kill leaves is removed by the next process that writes there, and nothing that anybody still writes is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gcpo_bench import leftovers, runs
from gcpo_bench.config import RunConfig
from gcpo_bench.files import replacing
from gcpo_bench.ledger import Ledger

from .conftest import Cli
from .run_factory import make_run
from .test_cli import SMALL
from .test_ledger import cell

KILLED = """
import os, signal, sys
from pathlib import Path
from gcpo_bench import leftovers
from gcpo_bench.files import replacing

path = Path(sys.argv[2])
path.parent.mkdir(parents=True, exist_ok=True)
with replacing(path) if sys.argv[1] == "file" else leftovers.folder_for(path):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_writing(path: Path, kind: str = "file") -> Path:
    """What is left of `path`."""
    before = set(path.parent.glob("*"))
    result = subprocess.run([sys.executable, "-c", KILLED, kind, str(path)], check=False)
    assert result.returncode == -signal.SIGKILL
    (left,) = set(path.parent.glob("*")) - before
    return left


def test_only_what_nobody_writes_any_more_is_removed(tmp_path: Path) -> None:
    left = killed_while_writing(tmp_path / "deep" / "a.json")
    own = [tmp_path / "notes.tmp", tmp_path / "b.json.deadbeef.tmp.bak", tmp_path / "link.deadbeef.tmp"]
    for path in own[:2]:
        path.touch()
    own[2].symlink_to(own[0])
    with replacing(tmp_path / "deep" / "b.json") as file:
        file.write(b"{}")
        leftovers.remove_files(tmp_path, deep=False)
        assert left.exists()
        leftovers.remove_files(tmp_path)
        assert not left.exists()
    assert (tmp_path / "deep" / "b.json").read_bytes() == b"{}"
    assert [path.is_symlink() or path.exists() for path in own] == [True, True, True]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["b.json"]


def test_a_file_that_was_removed_before_it_was_locked_is_begun_again(tmp_path: Path) -> None:
    with (tmp_path / "a").open("xb") as file:
        assert leftovers._is_ours(file.fileno())
        (tmp_path / "a").unlink()
        assert not leftovers._is_ours(file.fileno())


def test_a_new_run_removes_what_was_left_of_others(tmp_path: Path) -> None:
    left = killed_while_writing(tmp_path / "dead", "folder")
    with leftovers.folder_for(tmp_path / "alive") as alive:
        runs.create(tmp_path, "new", RunConfig())
        assert (left.exists(), alive.exists()) == (False, True)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_resumed_run_removes_half_a_checkpoint_and_half_files(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", *SMALL, "--num-steps", "1", "--name", "a").code == 0
    run = runs.open_run("a", tmp_path / "runs")
    lefts = [killed_while_writing(run.path / "tokens" / "step-000007.npz"), run.checkpoint_path(7)]
    killed_while_writing(run.checkpoint_path(7) / "policy.safetensors")
    assert cli("train", "--resume", "--name", "a", "--num-steps", "2").code == 0
    assert not any(left.exists() for left in lefts)
    assert run.checkpoint_steps()[-1] == 2


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_evaluate_and_report_remove_what_was_left_where_they_write(cli: Cli, tmp_path: Path, command: str) -> None:
    run = make_run(tmp_path / "runs", "a", prompts_per_task=1, steps=1, maps=False)
    place = {"evaluate": run.path / "images/scenes/a-0.png", "report": tmp_path / "report/figures/curves.svg"}[command]
    left = killed_while_writing(place)
    cli(command, "a", *(["--limit", "1", "--no-start"] if command == "evaluate" else []))
    assert not left.exists()


def test_a_grid_that_is_planned_again_removes_what_was_left_in_its_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.plan([cell(1)])
    left = killed_while_writing(ledger.path / "cells" / cell(1).id / "claim-0001.json")
    assert ledger.plan([cell(1)]) == []
    assert not left.exists()


def test_a_discarded_run_goes_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.create(tmp_path, "a", RunConfig())
    monkeypatch.setattr(
        "gcpo_bench.runs.shutil.rmtree", lambda *_, **__: None
    )  # killed after the first thing that it does
    assert run.discard()
    monkeypatch.undo()
    assert not run.path.exists()
    runs.create(tmp_path, "a", RunConfig())
    assert os.listdir(tmp_path) == ["a"]

"""The ledger of a grid: every cell exactly once, whoever races, dies or comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from gcpo_bench.ablations import Cell
from gcpo_bench.config import RunConfig
from gcpo_bench.errors import CorruptDataError, RunError
from gcpo_bench.files import read_json, write_json
from gcpo_bench.ledger import Claim, Ledger

RACER = """
import sys
from pathlib import Path
from gcpo_bench.ledger import Ledger

ledger = Ledger(Path(sys.argv[1]))
ids = ledger.ids()
while (claim := ledger.claim(ids, sys.argv[2])) is not None:
    with (Path(sys.argv[1]) / "ran.txt").open("a") as file:
        file.write(claim.cell.id + "\\n")
    claim.done(0.0)
"""
SLEEPER = """
import sys, time
from pathlib import Path
from gcpo_bench.ledger import Ledger

claim = Ledger(Path(sys.argv[1])).claim(sys.argv[2:], "sleeper")
print(claim.attempt, flush=True)
with claim.heartbeat():
    time.sleep(60)
"""


def cell(number: int) -> Cell:
    return Cell(id=f"{number:016x}", name=f"cell-{number}", config=RunConfig(seed=number))


def make_run_folders(root: Path, cells: list[Cell]) -> None:
    for each in cells:
        (root / each.name).mkdir(parents=True)
        (root / each.name / "config.yaml").write_text("{}\n")


def claimed(ledger: Ledger, ids: list[str] | None = None) -> Claim:
    claim = ledger.claim(ledger.ids() if ids is None else ids, "test")
    assert claim is not None
    return claim


def test_sixty_four_processes_race_for_two_hundred_cells_and_each_runs_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    cells = [cell(number) for number in range(200)]
    assert ledger.plan(cells) == cells
    racers = [subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path), f"w{n}"]) for n in range(64)]
    assert [racer.wait() for racer in racers] == [0] * 64
    ran = Counter((tmp_path / "ran.txt").read_text().split())
    assert ran == Counter(each.id for each in cells)
    assert {state.state for state in ledger.states()} == {"done"}


def test_planning_again_adds_only_what_is_new(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.plan([cell(0), cell(1)]) == [cell(0), cell(1)]
    assert ledger.plan([cell(0), cell(1), cell(2)]) == [cell(2)]
    assert [ledger.cell(cell_id) for cell_id in ledger.ids()] == [cell(0), cell(1), cell(2)]


def test_a_cell_of_a_living_worker_is_nobody_elses_and_a_killed_workers_is_taken_over_at_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.plan([cell(0)])
    sleeper = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(tmp_path), cell(0).id], stdout=subprocess.PIPE, text=True
    )
    assert sleeper.stdout is not None
    assert sleeper.stdout.readline().strip() == "1"
    assert ledger.state(cell(0).id).state == "claimed"
    assert ledger.claim(ledger.ids(), "other") is None
    sleeper.send_signal(signal.SIGKILL)
    sleeper.wait()
    claim = claimed(ledger)
    assert claim.attempt == 2
    assert ledger.state(cell(0).id).failures == 0  # being killed is not the cell's fault


def test_a_silent_worker_on_another_machine_loses_its_cell_and_cannot_finish_it_any_more(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, stale_after_s=3600)
    ledger.plan([cell(0)])
    slow = claimed(ledger)
    write_json(slow.path, {**read_json(slow.path), "host": "elsewhere"})
    assert ledger.claim(ledger.ids(), "other") is None
    long_ago = time.time() - 3601
    os.utime(slow.path, (long_ago, long_ago))
    new = claimed(ledger)
    assert new.attempt == 2
    assert not slow.holds()
    slow.done(1.0)
    assert ledger.state(cell(0).id).state == "claimed"
    new.done(2.0)
    assert ledger.state(cell(0).id).seconds == 2.0


def test_the_heartbeat_keeps_a_claim_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gcpo_bench.ledger.HEARTBEAT_S", 0.0)
    ledger = Ledger(tmp_path)
    ledger.plan([cell(0)])
    claim = claimed(ledger)
    before = claim.path.stat().st_mtime
    os.utime(claim.path, (0, 0))
    with claim.heartbeat():
        while claim.path.stat().st_mtime < before:
            time.sleep(0.05)


def test_a_failing_cell_is_tried_again_then_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, max_failures=2)
    ledger.plan([cell(0), cell(1)])
    ids = ledger.ids()
    for attempt in (1, 2):
        claim = claimed(ledger, [cell(0).id])
        assert claim.attempt == attempt
        claim.failed(f"it broke {attempt}")
    state = ledger.state(cell(0).id)
    assert (state.state, state.error, state.failures) == ("failed", "it broke 2", 2)
    assert ledger.unfinished(ids) == [cell(1).id]
    assert claimed(ledger).cell == cell(1)
    assert ledger.retry(ids) == [cell(0).id]
    assert claimed(ledger, [cell(0).id]).attempt == 3


def test_a_cell_that_was_given_back_is_planned_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.plan([cell(0)])
    claimed(ledger).release("preempted")
    state = ledger.state(cell(0).id)
    assert (state.state, state.failures) == ("planned", 0)
    assert claimed(ledger).attempt == 2


def test_a_finished_cell_whose_run_was_deleted_is_opened_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    cells = [cell(0), cell(1)]
    ledger.plan(cells)
    make_run_folders(tmp_path, cells)
    for _ in cells:
        claimed(ledger).done(1.0)
    assert ledger.reopen_lost(ledger.ids()) == []
    (tmp_path / "cell-1" / "config.yaml").unlink()
    assert ledger.reopen_lost(ledger.ids()) == [cell(1).id]
    assert claimed(ledger).cell == cell(1)


def test_another_version_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path)
    (tmp_path / ".ledger/version.json").write_text('{"version": 99}')
    with pytest.raises(RunError, match="another version"):
        Ledger(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": "x"}', '{"id": "x", "name": "y", "config": {"sede": 1}}'])
def test_a_torn_cell_is_named(tmp_path: Path, content: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.plan([cell(0)])
    path = tmp_path / ".ledger/cells" / cell(0).id / "cell.json"
    path.write_text(content)
    with pytest.raises(CorruptDataError, match=r"cell\.json is damaged"):
        ledger.states()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"worker": 1}', None])
def test_a_damaged_claim_is_held_as_long_as_its_heart_beats(tmp_path: Path, content: str | None) -> None:
    ledger = Ledger(tmp_path, stale_after_s=600)
    ledger.plan([cell(0)])
    path = claimed(ledger).path
    path.write_text(path.read_text().replace('"test"', '"tent"') if content is None else content)
    assert ledger.claim(ledger.ids(), "other") is None
    os.utime(path, (0, 0))
    assert claimed(ledger).attempt == 2


@pytest.mark.parametrize("key", ["processes", "boot", "host"])
def test_an_owner_whose_processes_cannot_be_seen_from_here_is_not_taken_for_dead(tmp_path: Path, key: str) -> None:
    ledger = Ledger(tmp_path, stale_after_s=600)
    ledger.plan([cell(0)])
    path = claimed(ledger).path
    unused = 2**22 + 1  # above what Linux gives any process
    write_json(path, {**read_json(path), "pid": unused, key: "another"})
    assert ledger.claim(ledger.ids(), "other") is None
    os.utime(path, (0, 0))
    assert claimed(ledger).attempt == 2


def test_an_owner_in_another_namespace_of_processes_is_not_taken_for_dead(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, stale_after_s=600)
    ledger.plan([cell(0)])
    inside = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    command = [*inside, sys.executable, "-c", SLEEPER, str(tmp_path), cell(0).id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as sleeper:
        assert sleeper.stdout is not None
        try:
            if sleeper.stdout.readline().strip() != "1":
                pytest.skip("this machine lets nobody make a namespace")
            assert ledger.state(cell(0).id).state == "claimed"
            assert ledger.claim(ledger.ids(), "other") is None
        finally:
            sleeper.kill()


@pytest.mark.parametrize("name", ["cell.json", "done.json", "failed-0001.json"])
def test_one_changed_letter_in_a_cell_is_noticed(tmp_path: Path, name: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.plan([cell(3)])
    claim = claimed(ledger)
    claim.failed("no memory")
    claimed(ledger).done(1.5)
    path = tmp_path / ".ledger/cells" / cell(3).id / name
    changed = {"cell.json": ('"seed": 3', '"seed": 4'), "done.json": ("1.5", "1.4"), "failed-0001.json": ("no", "so")}
    path.write_text(path.read_text().replace(*changed[name]))
    with pytest.raises(CorruptDataError, match=rf"{name} is damaged: it was changed"):
        ledger.state(cell(3).id)

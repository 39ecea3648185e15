"""Locks between processes: one at a time, never stale, and whoever waits says for whom."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from gcpo_bench.locks import Held, beside, held

from .processes import outputs, start, wait_for

HOLDER = """
from gcpo_bench.locks import held
with held(Path("a.lock"), shared=sys.argv[1] == "shared"):
    Path("held").touch()
    wait_for("go")
"""
COUNTER = """
from gcpo_bench.locks import held
meet(".", sys.argv[1], 6)
for _ in range(30):
    with held(Path("a.lock"), on_wait=lambda owner: None):
        count = int(Path("count").read_text())
        Path("count").write_text(str(count + 1))
"""
WAITER = """
from gcpo_bench.locks import held
with held(Path("a.lock"), on_wait=lambda owner: (print(owner), Path("waits").touch())):
    print("mine")
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    outputs([start(COUNTER, number, cwd=tmp_path) for number in range(6)])
    assert (tmp_path / "count").read_text() == "180"  # 6 processes x 30, none of them lost


def test_who_does_not_wait_is_told_who_holds_it_and_who_waits_says_so_once(tmp_path: Path) -> None:
    holder = start(HOLDER, "alone", cwd=tmp_path)
    wait_for(tmp_path / "held", holder)
    with pytest.raises(Held, match=f"process {holder.pid} on "), held(tmp_path / "a.lock"):
        pass
    waiter = start(WAITER, cwd=tmp_path)
    wait_for(tmp_path / "waits", waiter)
    (tmp_path / "go").touch()
    outputs([holder])
    lines = outputs([waiter])[0].splitlines()
    assert [line.split(" on ")[0] for line in lines] == [f"process {holder.pid}", "mine"]


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    holder = start(HOLDER, "alone", cwd=tmp_path)
    wait_for(tmp_path / "held", holder)
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    with held(tmp_path / "a.lock"):  # at once, although the file still names it
        pass


def test_those_who_share_do_not_wait_for_each_other_but_for_one_who_is_alone(tmp_path: Path) -> None:
    holder = start(HOLDER, "shared", cwd=tmp_path)
    wait_for(tmp_path / "held", holder)
    with held(tmp_path / "a.lock", shared=True):
        pass
    with pytest.raises(Held), held(tmp_path / "a.lock"):
        pass
    (tmp_path / "go").touch()
    outputs([holder])


def test_a_process_takes_a_lock_that_it_holds_again_where_that_is_meant(tmp_path: Path) -> None:
    lock = beside(tmp_path / "folder")
    with held(lock), pytest.raises(Held), held(lock):
        pass
    with held(lock), held(lock, again=True), held(lock, shared=True, again=True):
        waiter = start("from gcpo_bench.locks import held\nwith held(Path('folder.lock')): pass", cwd=tmp_path)
        assert "Held" in outputs([waiter], code=1)[0]
    with held(lock):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_where_nothing_may_be_written_nothing_is_locked(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with held(tmp_path / "a.lock"):
            pass
    finally:
        tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())

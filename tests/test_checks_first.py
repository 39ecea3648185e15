"""Cheap checks come first and are told together; what cannot run is not called ok."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from gcpo_bench.cli import report
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError, joined

from .conftest import Cli


@pytest.fixture(autouse=True)
def nothing_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path / "home"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "theirs"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--generator", "difusers:x"), "unknown generator 'difusers'"),
        (("--generator", "nobodys_lab:X"), "no module 'nobodys_lab'"),
        (("--generator", "diffusers:x", "--generator-option", "steps"), "--generator-option 'steps' is not key=value"),
        (("--generator", "diffusers:x", "--name", "a/b"), "--name 'a/b' cannot be used"),
        (("--generator", "diffusers:x", "--shard", "9/4"), "--shard '9/4' is not I/N"),
        (("--generator", "diffusers:x", "--shard", "0/4"), "--shard '0/4' is not I/N"),
        (("--images", "theirs", "--name", "a/b"), "--name 'a/b' cannot be used"),
    ],
)
def test_a_name_is_told_before_weights(cli: Cli, images: Path, words: tuple[str, ...], message: str) -> None:
    result = cli("evaluate", *words, "--bench", "geneval")
    assert result.code == 2, result.err
    assert message in result.err
    assert "weights" not in result.err


def test_prompts_and_weights_that_are_missing_are_told_at_once(cli: Cli, images: Path) -> None:
    result = cli("evaluate", "--images", "theirs", "--bench", "geneval")
    assert result.code == 4
    assert result.err.index("the prompts of geneval are not on this machine") < result.err.index("weights are missing")
    assert "data fetch geneval" in result.err
    assert "models fetch geneval" in result.err


def test_errors_are_joined_under_the_first_one_s_kind() -> None:
    error = joined([CorruptDataError("a", hint="x"), PrerequisiteError("b", hint="y"), ConfigError("c", hint="x")])
    assert (type(error), str(error), error.hint) == (CorruptDataError, "a; b; c", "x; y")


def test_doctor_calls_nothing_ok_that_cannot_run(cli: Cli) -> None:
    checks = {check["name"]: check for check in json.loads(cli("doctor", "--json").out)}
    for name in ("benchmark geneval", "benchmark drawbench", "model janus-pro-1b", "elsewhere: unidet"):
        assert checks[name]["state"] == "absent", checks[name]
        assert checks[name]["mend"]
    assert not [check for check in checks.values() if check["state"] == "ok" and check["mend"]]


def test_doctor_imports_the_packages_it_calls_ok(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    result = cli("doctor")
    assert result.code == 4
    assert "pandas" in result.err
    assert "cannot be imported" in result.err


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


def test_what_is_being_written_is_written_to_its_end(handlers: None) -> None:
    done = []

    def write() -> None:
        with report._uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert done == ["whole"]
    with report._uninterrupted():
        done.append("again")
    assert done == ["whole", "again"]


@pytest.mark.parametrize("group", ["analyze", "baseline", "data", "models"])
def test_a_group_without_its_command_is_one_line(cli: Cli, group: str) -> None:
    result = cli(group)
    assert result.code == 2
    assert result.err == f"error: gcpo-bench {group} needs a command\nhint: see gcpo-bench {group} --help\n"


def test_what_is_not_verified_is_said_once(cli: Cli) -> None:
    result = cli("data", "verify", "geneval", "drawbench")
    assert result.code == 4
    for name in ("geneval", "drawbench"):
        assert result.err.count(f"the prompts of {name} are not on this machine") == 1

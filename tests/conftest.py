"""Fixtures that any test may use."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # equal sums on every machine, and no fight over shared cores

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run put in the background hands on that it is ignored

# a busy machine is not a failure, and the same code gives the same result
settings.register_profile("default", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=2000)  # new examples: --hypothesis-profile=search
settings.load_profile("default")


@pytest.fixture(autouse=True)
def forget_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test wrote into a folder and imported ends with the test, so that the next may write the same name."""
    yield
    root = str(tmp_path_factory.getbasetemp())
    written = []
    for name, module in sys.modules.items():
        spec = getattr(module, "__spec__", None)
        folders = [spec.origin, *(spec.submodule_search_locations or ())] if spec is not None else []
        if any(str(folder).startswith(root) for folder in folders):
            written.append(name)
    for name in written:
        del sys.modules[name]


@dataclass(frozen=True, slots=True)
class CliResult:
    code: int
    out: str
    err: str


Cli = Callable[..., CliResult]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Call the command line in this process, in an empty folder: `cli("ls", "methods")`."""
    from gcpo_bench.cli.app import run

    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> CliResult:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run(arguments)
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return CliResult(stop.value.code, out, err)

    return call

"""A signal ends every command with one line and its exit code, whenever it comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gcpo_bench import runs, stops
from gcpo_bench.errors import Interrupted, Preempted

from .conftest import CliResult
from .run_factory import make_run
from .test_cli import SMALL, refused

COMMANDS = {
    "train": ("train", *SMALL, "--num-steps", "2", "--name", "new"),
    "evaluate": ("evaluate", "first", "--limit", "1"),
    "report": ("report",),
    "pretrain": ("pretrain", "--model", "scenes-8", "--max-steps", "1"),
    "sample": ("sample", "scenes-8", "a red circle"),
    "perturb": ("analyze", "perturb", "first"),
    "models": ("models", "ls"),
    "data": ("data", "ls"),
    "doctor": ("doctor",),
    "ls": ("ls", "runs"),
}
CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
AT_IMPORT = """
    import importlib.abc, os, signal, sys

    class Sender(importlib.abc.MetaPathFinder):
        left = {nth}

        def find_spec(self, name, path, target=None):
            if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
                self.left -= 1
                if self.left == 0 or name == {name!r}:
                    self.left = 0
                    os.kill(os.getpid(), {number})

    sys.meta_path.insert(0, Sender())
    sys.argv = {argv!r}
    from gcpo_bench.__main__ import main
    main()
"""
"""A command that gets a signal in the middle of its n-th import, or of one with a certain name."""


def python(code: str, folder: Path) -> CliResult:
    """A program of its own, with signals as a shell would start it."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=folder, capture_output=True, text=True, check=False
    )
    return CliResult(result.returncode, result.stdout, result.stderr)


def at_import(command: str, number: int, folder: Path, nth: int = 0, name: str = "") -> CliResult:
    argv = ["gcpo-bench", *COMMANDS[command]]
    return python(AT_IMPORT.format(nth=nth, name=name, number=int(number), argv=argv), folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs", "first", prompts_per_task=1, steps=2, maps=False)
    return tmp_path


def test_the_exit_codes_are_those_of_the_errors() -> None:
    assert stops.EXIT_CODES == CODES
    assert (Interrupted.exit_code, Preempted.exit_code) == (130, 75)


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize(
    ("command", "nth"),
    [("ls", 1), ("models", 12), ("train", 60), ("data", 100), ("doctor", 150), ("report", 220), ("evaluate", 400)],
)
def test_a_signal_in_an_early_import_is_one_line(folder: Path, command: str, nth: int, number: int) -> None:
    message = refused(at_import(command, number, folder, nth=nth), CODES[signal.Signals(number)])
    assert message in ("interrupted", "stopped by SIGTERM") or "ended at once" in message
    assert [path.name for path in (folder / "runs").iterdir()] == ["first"]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("train", "torch"),
        ("evaluate", "torch"),
        ("report", "pandas"),
        ("report", "matplotlib"),
        ("pretrain", "torch.nn"),
        ("sample", "numpy"),
        ("perturb", "torch"),
    ],
)
def test_sigterm_while_a_library_loads_is_one_line(folder: Path, command: str, name: str) -> None:
    refused(at_import(command, signal.SIGTERM, folder, name=name), 75)
    assert not (folder / "report").exists()


def test_an_exception_that_python_ignores_does_not_lose_the_signal(tmp_path: Path) -> None:
    code = """
        import os, signal, time
        from gcpo_bench import stops
        stops.install()

        class Thing:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                while True:
                    pass

        try:
            Thing()
            while True:
                time.sleep(1)
        except stops.Stopped as stopped:
            stops.leave(stopped)
    """
    assert refused(python(code, tmp_path), 75) == "stopped by SIGTERM"


@pytest.mark.parametrize("patience", ["PATIENCE_S", "IMPORT_S"])
def test_a_call_or_an_import_that_does_not_come_back_is_ended(tmp_path: Path, patience: str) -> None:
    endless = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nwhile True:\n    pass\n"
    (tmp_path / "endless.py").write_text(endless, encoding="utf-8")
    # the shell must not keep the pipes of a process that has ended: nobody would notice its end
    call = b"exec >/dev/null 2>&1; kill -TERM $PPID; while kill -0 $PPID; do sleep 0.1; done"
    wait = {"IMPORT_S": "import endless", "PATIENCE_S": f"ctypes.CDLL(None).system({call!r})"}[patience]
    code = f"""
        import ctypes
        from gcpo_bench import stops
        stops.{patience} = 0.0
        stops.install()
        {wait}
    """
    assert refused(python(code, tmp_path), 75) == "ended at once by SIGTERM"


def test_a_second_signal_ends_it_at_once_and_an_echo_is_no_second(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from gcpo_bench import stops
        stops.ECHO_S = {echo}
        stops.install()
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except stops.Stopped as stopped:
            os.kill(os.getpid(), signal.SIGINT)
            print("tidied", flush=True)
            stops.leave(stopped)
    """
    once = python(code.format(echo=1e9), tmp_path)
    assert (refused(once, 130), once.out) == ("interrupted", "tidied\n")
    twice = python(code.format(echo=0.0), tmp_path)
    assert (refused(twice, 130), twice.out) == ("ended at once by SIGINT", "")


@pytest.mark.parametrize("at_exit", [False, True])
def test_a_signal_after_the_work_changes_nothing(tmp_path: Path, at_exit: bool) -> None:
    """The code is that of the work; in the interpreter's last moments there is nobody left to handle a signal."""
    send = "os.kill(os.getpid(), signal.SIGTERM)"
    code = f"""
        import atexit, os, signal, sys
        from gcpo_bench import stops

        class Last:
            def __del__(self):
                {send}

        if {at_exit}:
            atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
        else:
            sys.last = Last()
        from gcpo_bench.__main__ import main
        sys.argv = ["gcpo-bench", "--version"]
        main()
    """
    result = python(code, tmp_path)
    assert (result.code, result.err) == (0, "")


def test_a_forked_process_does_not_answer_for_its_parent(tmp_path: Path) -> None:
    code = """
        import os, signal
        from gcpo_bench import stops
        stops.install()
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stops.received())
    """
    assert python(code, tmp_path) == CliResult(0, "-15 None\n", "")


def test_a_new_run_that_is_stopped_before_its_first_step_is_removed(tmp_path: Path) -> None:
    (tmp_path / "lab.py").write_text(
        "import os, signal, time\n"
        "class Reward:\n"
        "    gcpo_bench_part = 'reward'\n"
        "    def __init__(self):\n"
        "        self.made = os.kill(os.getpid(), signal.SIGTERM), time.sleep(1)\n",
        encoding="utf-8",
    )
    argv = ["gcpo-bench", *COMMANDS["train"], "-o", "rewards=[{name: 'lab:Reward'}]"]
    code = f"import sys\nsys.argv = {argv!r}\nsys.path.insert(0, '.')\nfrom gcpo_bench.__main__ import main\nmain()"
    result = python(code, tmp_path)
    assert refused(result, 75) == "stopped by SIGTERM"
    assert not list((tmp_path / "runs").iterdir())


def test_a_stop_in_the_last_step_is_handed_on(tmp_path: Path) -> None:
    """What trains may have more to do, such as a worker of a grid; the run itself is finished."""
    (tmp_path / "lab.py").write_text(
        "import os, signal\n"
        "class Reward:\n"
        "    gcpo_bench_part = 'reward'\n"
        "    sent = False\n"
        "    def __call__(self, images_BYXC, prompts_B):\n"
        "        from gcpo_bench.training.types import RewardOutput\n"
        "        if not self.sent:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        self.sent = True\n"
        "        return RewardOutput(values_B=[float(i % 2) for i in range(len(prompts_B))], anomalies={})\n",
        encoding="utf-8",
    )
    argv = ["gcpo-bench", *COMMANDS["train"], "--num-steps", "1", "-o", "rewards=[{name: 'lab:Reward'}]"]
    code = f"import sys\nsys.argv = {argv!r}\nsys.path.insert(0, '.')\nfrom gcpo_bench.__main__ import main\nmain()"
    assert refused(python(code, tmp_path), 75) == "stopped by SIGTERM"
    assert runs.open_run("new", tmp_path / "runs").status() == runs.Status("finished", 1)

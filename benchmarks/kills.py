"""Kills and signals at random moments: nothing is lost, nothing but the two lines is said, the exit codes are right.

    python benchmarks/kills.py --kills 1000 --signals 300 --jobs 2 --out benchmarks/results/kills.json

**Kills.** A *life* is one folder in which `train`, `evaluate`, `report` or `ablate` (two workers) is started, killed
with SIGKILL after a random part of the time that it takes undisturbed, and started again (`train` with --resume once
its run is there), up to eight times. Then it is left alone. Of `ablate` either the driver alone is killed, or its
workers with it. Held against a folder in which nothing was killed: every number of runs, evaluations, token maps and
tables, the checksums of weights, the ledger. No temporary file or folder may be left; no start may print a traceback,
or end by itself with a code other than 0.

Processes are forked from one that has the libraries loaded, so that a kill costs about a second; that holds for the
workers of `ablate` too. Exercised is everything from the command line on: files, locks, claims, heartbeats, clean-up.
Not exercised by kills: loading Python and libraries, the interpreter's end, `subprocess`, other machines, a full disk.

**Signals.** One SIGINT or SIGTERM to every command, started as a user does (`python -m gcpo_bench`), at a random moment
from the first that the program can notice (it has its handlers) to four seconds later, most of them early. Right is 130
or 75 with one `error:` and one `hint:` line; or, where the work was done before, 0 and neither.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gcpo_bench import __main__ as program
from gcpo_bench import environment, executors, runs
from gcpo_bench.executors import local
from gcpo_bench.ledger import Ledger
from gcpo_bench.training import checkpoints

LOADED = "loaded.txt"
"""Modules that a process has loaded; those that come after it have them from the start."""
SMALL = [
    *("--model", "scenes-8", "--num-steps", "3"),
    *(
        word
        for override in (
            *("sampling.prompts_per_step=2", "sampling.group_size=2", "logging.tracked_prompts=1"),
            *("logging.checkpoint_every=1", "evaluation.prompts_per_task=1", "evaluation.images_per_prompt=1"),
        )
        for word in ("-o", override)
    ),
]
RUN = ["--name", "a"]
GRID = ["ablate", "--methods", "grpo,gcpo", "--seeds", "0", "--max-parallel", "2", "--no-report", *SMALL]
COMMANDS = {
    "train": ["train", *RUN, *SMALL],
    "evaluate": ["evaluate", "a"],
    "report": ["report", "--format", "html,json,csv"],
    "ablate": GRID,
}
STARTED = {
    **COMMANDS,
    "baseline": ["baseline", "update", "a", "--out", "baseline.json"],
    "pretrain": ["pretrain", "--model", "scenes-8", "--max-steps", "3"],
    "sample": ["sample", "a", "a photo of a red circle"],
    "analyze": ["analyze", "perturb", "a"],
    "models": ["models", "ls"],
    "data": ["data", "ls"],
    "dry run": ["train", "--dry-run", *SMALL],
    "doctor": ["doctor"],
    "ls": ["ls", "runs"],
    "show": ["show"],
}
MOST_KILLS = 8
"""In one life."""
SINGLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
NOT_NUMBERS = ("time/", "throughput/", "memory/")
CHILD_SUBREAPER = 36
"""Of prctl: processes whose parent was killed become children of this one."""


# ---------------------------------------------------------------- processes


class Forked:
    """A process of this one, as `subprocess.Popen` would be."""

    def __init__(self, arguments: Sequence[str], folder: Path, said: Path) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._become(arguments, folder, said)

    @staticmethod
    def _become(arguments: Sequence[str], folder: Path, said: Path) -> None:
        code = 70
        try:
            os.setsid()
            os.chdir(folder)
            output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.argv = ["gcpo-bench", *arguments]
            program.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())  # a traceback in what it said, which is then found
        finally:
            sys.stdout.flush()
            (said.parent / LOADED).write_text("\n".join(sys.modules), encoding="utf-8")
            os._exit(code)

    def poll(self) -> int | None:
        return self._waited(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        until = time.monotonic() + (timeout or 0)
        while (code := self._waited(0 if timeout is None else os.WNOHANG)) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("gcpo-bench", timeout or 0)
            time.sleep(0.01)
        return code

    def _waited(self, how: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def children(self) -> list[int]:
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []


def _forked_worker(ledger: Ledger, order: Path, name: str) -> Any:
    log = executors.log_path(ledger, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    options = ["--runs-dir", str(ledger.runs_dir), "--order", str(order), "--parent", str(os.getpid())]
    return Forked(["work", *options, "--worker", name], Path.cwd(), log)


# ---------------------------------------------------------------- what must be equal


def _numbers(folder: Path) -> dict[str, Any]:
    """Everything that was computed in `folder`, but for seconds and memory."""
    found: dict[str, Any] = {}
    for path in runs.list_runs(folder / "runs"):
        run = runs.open_run(path)
        rows = [{key: value for key, value in row.items() if not key.startswith(NOT_NUMBERS)} for row in run.metrics()]
        maps = [(step, {key: array.tobytes() for key, array in arrays.items()}) for step, arrays in run.token_maps()]
        weights = [(step, checkpoints.weights_checksum(run.checkpoint_path(step))) for step in run.checkpoint_steps()]
        files = sorted([*path.glob("evaluations/*/s*.json*"), *path.glob("images/*/*.png")])
        contents = {str(file.relative_to(path)): file.read_bytes() for file in files}
        found[path.name] = (run.status(), rows, maps, weights, contents)
    if (folder / "runs/.ledger").exists():
        found["ledger"] = [(state.cell.name, state.state) for state in Ledger(folder / "runs").states()]
    for file in sorted((folder / "report").glob("*.csv")):
        found[file.name] = file.read_bytes()
    return found


def _differences(folder: Path, expected: dict[str, Any]) -> list[str]:
    found = _numbers(folder)
    return [key for key in sorted({*found, *expected}) if found.get(key) != expected.get(key)]


def _left(folder: Path) -> list[str]:
    marks = (".tmp", "order-")
    return [
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.name[0] == "~" or any(m in p.name for m in marks)
    ]


# ---------------------------------------------------------------- kills


class World:
    """Folders in which nothing was killed, and how long that took."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, dict[str, Any]] = {}
        for command in COMMANDS:
            for name in (f"first-{command}", f"whole-{command}"):
                folder = self.before(command, root / name)
                started = time.monotonic()
                process = Forked(COMMANDS[command], folder, folder / "said.txt")
                assert process.wait() == 0, (folder / "said.txt").read_text()
                self.seconds[command] = time.monotonic() - started
                for module in (folder / LOADED).read_text(encoding="utf-8").split():
                    with suppress(ImportError):  # names that are made up, such as six.moves
                        importlib.import_module(module)
            self.expected[command] = _numbers(folder)

    def before(self, command: str, folder: Path) -> Path:
        """A folder with what the command needs."""
        needs = {"evaluate": "train", "report": "evaluate"}.get(command)
        if needs:
            shutil.copytree(self.root / f"whole-{needs}", folder, ignore=shutil.ignore_patterns("said*", LOADED))
        else:
            folder.mkdir(parents=True)
        return folder


def _life(world: World, command: str, kills: int, folder: Path, rng: random.Random) -> tuple[Counter[str], list[str]]:
    """Counts, and what went wrong."""
    count, wrong = Counter[str](lives=1), []
    world.before(command, folder)
    left_alone = False
    while not left_alone:
        left_alone = count["kills"] >= kills
        resume = command == "train" and (folder / "runs" / "a").exists()
        said = folder / f"said-{count['starts']}.txt"
        process = Forked(["train", "--resume", *RUN] if resume else COMMANDS[command], folder, said)
        started = time.monotonic()
        count["starts"] += 1
        if not left_alone:
            time.sleep(rng.uniform(0, world.seconds[command]))
            workers = process.children() if rng.random() < 0.5 else []
            if process.poll() is None:
                for pid in (process.pid, *workers):
                    os.kill(pid, signal.SIGKILL)
        code = process.wait()
        if code == -signal.SIGKILL:
            count["kills"] += 1
        else:
            left_alone = True  # it was done before
            took = time.monotonic() - started
            world.seconds[command] = (world.seconds[command] + took) / 2  # how busy the machine is changes
            if code != 0:
                wrong.append(f"exit code {code}: {said.read_text()[-300:]}")
    _reap()
    texts = [*folder.glob("said-*.txt"), *folder.glob("runs/.ledger/logs/*")]
    wrong += [f"traceback in {text.name}" for text in texts if "Traceback" in text.read_text()]
    wrong += [f"differs: {key}" for key in _differences(folder, world.expected[command])]
    wrong += [f"left over: {name}" for name in _left(folder)]
    return count, wrong


def _reap() -> None:
    """Until the workers of killed drivers have ended too."""
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        return


# ---------------------------------------------------------------- signals


def _signalled(world: World, command: str, folder: Path, rng: random.Random) -> tuple[Counter[str], list[str]]:
    """Counts, and what went wrong."""
    world.before("report" if command not in ("train", "ablate") else command, folder)
    number = rng.choice((signal.SIGINT, signal.SIGTERM))
    after_s = 4 * rng.random() ** 3
    process = subprocess.Popen(
        [sys.executable, "-m", "gcpo_bench", *STARTED[command]],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and not _handles(process.pid, signal.SIGTERM):
        time.sleep(0.001)
    time.sleep(after_s)
    process.send_signal(number)
    told = process.communicate()[1]
    lines = [line.partition(":")[0] for line in told.splitlines() if line.startswith(("error:", "hint:"))]
    is_done = process.returncode == 0 and not lines
    is_right = process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 75}[number] and lines == ["error", "hint"]
    wrong = (
        [] if (is_done or is_right) and "Traceback" not in told else [f"{number.name} after {after_s:.3f} s: {told}"]
    )
    wrong += [f"left over: {name}" for name in _left(folder) if "ended at once" not in told]
    what = "done before" if is_done else f"{number.name} -> {process.returncode}"
    return Counter({"signals": 1, what: 1}), wrong


def _handles(pid: int, number: int) -> bool:
    try:
        caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    except (OSError, IndexError):
        return False
    return bool(int(caught, 16) >> (number - 1) & 1)


# ---------------------------------------------------------------- all of it


def _job(world: World, number: int, options: argparse.Namespace, out: Path) -> None:
    """One process's share: lives until there were enough kills, then signals."""
    ctypes.CDLL(None).prctl(CHILD_SUBREAPER, 1, 0, 0, 0)
    results: list[dict[str, Any]] = []

    def note(kind: str, command: str, seed: str, folder: Path, found: tuple[Counter[str], list[str]]) -> None:
        count, wrong = found
        results.append({"kind": kind, "command": command, "seed": seed, "count": count, "wrong": wrong})
        if not wrong:
            shutil.rmtree(folder)
        out.write_text(json.dumps(results), encoding="utf-8")

    left, life = _share(options.kills, number, options.jobs), 0
    while left > 0:
        command, seed = list(COMMANDS)[life % len(COMMANDS)], f"{options.seed}-{number}-{life}"
        rng, folder = random.Random(seed), world.root / f"life-{seed}"
        found = _life(world, command, min(left, rng.randint(1, MOST_KILLS)), folder, rng)
        note("kills", command, seed, folder, found)
        left, life = left - found[0]["kills"], life + 1
    for turn in range(number, options.signals, options.jobs):
        command, seed = list(STARTED)[turn % len(STARTED)], f"{options.seed}-{turn}"
        folder = world.root / f"signal-{seed}"
        note("signals", command, seed, folder, _signalled(world, command, folder, random.Random(seed)))


def _share(total: int, number: int, jobs: int) -> int:
    return len(range(number, total, jobs))


def _in_parallel(jobs: int, work: Callable[[int], None]) -> None:
    children = []
    for number in range(jobs):
        child = os.fork()
        if child == 0:
            try:
                work(number)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit("a job failed")


def main() -> None:
    parser = argparse.ArgumentParser(description="kills and signals at random moments")
    parser.add_argument("--kills", type=int, default=30, help="at least so many")
    parser.add_argument("--signals", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where lives are kept that went wrong; default: a temporary one")
    parser.add_argument("--out", type=Path, help="JSON; default: printed only")
    options = parser.parse_args()
    if not SINGLE.items() <= os.environ.items():  # who forks must have no threads
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SINGLE})
    local.start_worker = _forked_worker  # type: ignore[assignment]
    root = options.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    root.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    world = World(root.resolve())
    outs = [root / f"job-{number}.json" for number in range(options.jobs)]
    _in_parallel(options.jobs, lambda number: _job(world, number, options, outs[number]))
    results = [result for out in outs if out.exists() for result in json.loads(out.read_text(encoding="utf-8"))]
    counts: dict[str, dict[str, Counter[str]]] = {}
    for result in results:
        count = counts.setdefault(result["kind"], {}).setdefault(result["command"], Counter())
        count.update({**result["count"], "wrong": len(result["wrong"])})
    record = {
        "command": " ".join(["python", "benchmarks/kills.py", *sys.argv[1:]]),
        "environment": environment.record(),
        "seconds": round(time.monotonic() - started, 1),
        "seconds_undisturbed": {key: round(value, 2) for key, value in world.seconds.items()},
        "total": {kind: sum(each[kind] for each in found.values()) for kind, found in counts.items()},
        "counts": counts,
        "wrong": [result for result in results if result["wrong"]],
    }
    text = json.dumps(record, indent=1) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    if not record["wrong"] and not options.folder:
        shutil.rmtree(root)
    sys.exit(bool(record["wrong"]))


if __name__ == "__main__":
    main()

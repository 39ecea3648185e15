"""Many processes of one command at once, in one folder: is anything lost, mixed or done twice?

    python benchmarks/concurrent_starts.py [--many 50] [--only train,evaluate,ablate,report] [--out FILE]

Each process is forked from one that has imported what the commands import, and they begin on a signal, so that all
reach the folder within milliseconds: closer together than fresh interpreters would. Every check is of what users have
in the end: exit codes, output, files. Prints a table; exit code 1 where a check fails, with what was printed kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from gcpo_bench import runs, stops
from gcpo_bench.cli import app
from gcpo_bench.evaluators.runner import load_evaluation, load_samples
from gcpo_bench.ledger import Ledger
from gcpo_bench.reports import page
from gcpo_bench.training import loop, preflight

IMPORTED = (page, loop, preflight)
SMALL = (
    *("--model=scenes-8", "--num-steps=1", "-osampling.prompts_per_step=2", "-osampling.group_size=2"),
    *("-oevaluation.prompts_per_task=1", "-oevaluation.images_per_prompt=2", "-ologging.tracked_prompts=1"),
)
IMAGES = 12
"""Of an evaluation: six tasks, one prompt of each, two images."""


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    command: str
    processes: int
    codes: dict[str, int]
    """Exit code -> how often."""
    seconds: float
    failed: list[str]
    """Checks that did not hold."""


def at_once(folder: Path, commands: Sequence[Sequence[str]]) -> list[Ended]:
    """Run the commands in `folder`, all at the same moment."""
    logs = folder / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    begin, hold = os.pipe()
    children = [_forked(folder, logs / str(number), words, begin, hold) for number, words in enumerate(commands)]
    os.close(begin)
    os.close(hold)  # the last to hold it: every process that reads from the pipe goes on
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    read = [[(logs / f"{number}.{end}").read_text() for end in ("out", "err")] for number in range(len(commands))]
    return [Ended(code, out, err) for code, (out, err) in zip(codes, read, strict=True)]


def _forked(folder: Path, log: Path, words: Sequence[str], begin: int, hold: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.close(hold)
        os.chdir(folder)
        for number, end in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{log}.{end}", os.O_CREAT | os.O_WRONLY), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
        os.read(begin, 1)
        stops.install()
        app.run(list(words))
    except SystemExit as end_:
        code = end_.code if isinstance(end_.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 99
    else:
        code = 98  # a command always ends by itself
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


# ---------------------------------------------------------------- what is started, and what must hold afterwards

Checks = Iterator[tuple[str, bool]]
Stress = Callable[[Path, int], tuple[list[Ended], Checks]]


def train_unnamed(folder: Path, many: int) -> tuple[list[Ended], Checks]:
    ended = at_once(folder, [["train", *SMALL]] * many)

    def checks() -> Checks:
        found = [runs.open_run(path) for path in runs.list_runs(folder / "runs")]
        yield "every process ends with 0", all(each.code == 0 for each in ended)
        yield "every process has a run of its own", len(found) == many == len({each.out for each in ended})
        yield "every run is finished", all(run.status().state == "finished" for run in found)
        yield "all have the same bits", len({_weights(run) for run in found}) == 1
        yield "nothing half-made is left", len(list((folder / "runs").iterdir())) == many

    return ended, checks()


def train_named(folder: Path, many: int) -> tuple[list[Ended], Checks]:
    ended = at_once(folder, [["train", *SMALL, "--name=a"]] * many)

    def checks() -> Checks:
        yield "one process begins, the others are refused", Counter(each.code for each in ended) == {0: 1, 2: many - 1}
        yield "with one error and one hint", all(_is_refusal(each, "exists already") for each in ended if each.code)
        yield "the run is finished", runs.open_run(folder / "runs" / "a").status().state == "finished"
        yield "nothing half-made is left", [path.name for path in (folder / "runs").iterdir()] == ["a"]

    return ended, checks()


def resume(folder: Path, many: int) -> tuple[list[Ended], Checks]:
    _alone(folder, ["train", *SMALL, "--name=a"])
    ended = at_once(folder, [["train", "--resume", "--name=a", "--num-steps=2"]] * many)

    def checks() -> Checks:
        run = runs.open_run(folder / "runs" / "a")
        yield "some process goes on", any(each.code == 0 for each in ended)
        yield "the others are refused", all(each.code == 0 or _is_refusal(each, "a") for each in ended)
        yield "each step is there once", [row["step"] for row in run.metrics()] == [1, 2]
        yield "the run is finished", run.status().state == "finished" and run.config.num_steps == 2

    return ended, checks()


def evaluate(folder: Path, many: int) -> tuple[list[Ended], Checks]:
    _alone(folder, ["train", *SMALL, "--name=a"])
    ended = at_once(folder, [["evaluate", "a"]] * many)

    def checks() -> Checks:
        yield "every process ends with 0", all(each.code == 0 for each in ended)
        yield "all print the same", len({each.out for each in ended}) == 1
        for path in runs.list_runs(folder / "runs"):
            yield from _whole_evaluation(runs.open_run(path), IMAGES)

    return ended, checks()


def evaluate_otherwise(folder: Path, many: int) -> tuple[list[Ended], Checks]:
    _alone(folder, ["train", *SMALL, "--name=a"])
    limits = [1 + number % 3 for number in range(many)]
    ended = at_once(folder, [["evaluate", "a", "--json", f"--limit={limit}"] for limit in limits])

    def checks() -> Checks:
        yield "every process ends with 0", all(each.code == 0 for each in ended)
        for each, limit in zip(ended, limits, strict=True):
            found = json.loads(each.out) if each.code == 0 else {}
            counts = {place.get("metrics", {}).get("overall", {}).get("n") for place in (found, found.get("start", {}))}
            yield "each prints its own scores, and its start's", counts == {6 * limit}
            yield "each compares its own scores", found.get("difference", {}).get("n") == 6 * limit
        for path in runs.list_runs(folder / "runs"):
            run = runs.open_run(path)
            yield from _whole_evaluation(run, 2 * load_evaluation(run, "scenes").identity["limited"]["prompts"])

    return ended, checks()


def evaluate_beside_train(folder: Path, many: int) -> tuple[list[Ended], Checks]:
    _alone(folder, ["train", *SMALL, "-ologging.checkpoint_every=1", "--name=a"])
    going_on = ["train", "--resume", "--name=a", f"--num-steps={10 + many}"]
    ended = at_once(folder, [going_on, *[["evaluate", "a", "--no-start", "--json"]] * (many - 1)])

    def checks() -> Checks:
        run = runs.open_run(folder / "runs" / "a")
        yield "every process ends with 0", all(each.code == 0 for each in ended)
        yield from _whole_evaluation(run, IMAGES)
        before = load_evaluation(run, "scenes")
        _alone(folder, ["evaluate", "a", "--no-start"])
        after = load_evaluation(run, "scenes")
        is_newest = before.identity["weights_digest"] == _weights(run)
        yield "scores of the newest weights are those that they have alone", not is_newest or before == after

    return ended, checks()


def ablate(folder: Path, many: int) -> tuple[list[Ended], Checks]:
    ended = at_once(folder, [["ablate", *SMALL, "--methods=grpo", "--seeds=0,1", "--max-parallel=1"]] * many)

    def checks() -> Checks:
        ledger = Ledger(folder / "runs")
        states = ledger.states()
        yield "every process ends with 0", all(each.code == 0 for each in ended)
        yield "every cell is done", [state.state for state in states] == ["done"] * 3
        yield "no cell failed", not any(state.failures for state in states)
        names = {state.cell.name for state in states}
        yield "each cell has one run", {path.name for path in runs.list_runs(folder / "runs")} == names
        yield "no list of cells is left", not list(ledger.path.glob("ids-*"))
        for state in states:
            yield from _whole_evaluation(runs.open_run(folder / "runs" / state.cell.name), IMAGES)

    return ended, checks()


def report(folder: Path, many: int) -> tuple[list[Ended], Checks]:
    for name in ("a", "b"):
        _alone(folder, ["train", *SMALL, f"--name={name}"])
        _alone(folder, ["evaluate", name])
    alone = {runs_: _reported(folder, list(runs_), "alone") for runs_ in (("a",), ("a", "b"))}
    wanted = [list(list(alone)[number % 2]) for number in range(many)]
    ended = at_once(folder, [["report", *names, "--format=html,md,csv,json"] for names in wanted])

    def checks() -> Checks:
        yield "every process ends with 0", all(each.code == 0 for each in ended)
        files = _files(folder / "report")
        yield "the files are those of one report", files in alone.values()
        yield "nothing half-written is left", not list((folder / "report").glob("*.tmp"))

    return ended, checks()


STRESSES: dict[str, Stress] = {
    "train": train_unnamed,
    "train --name a": train_named,
    "train --resume --name a": resume,
    "evaluate": evaluate,
    "evaluate --limit 1|2|3": evaluate_otherwise,
    "evaluate beside train": evaluate_beside_train,
    "ablate": ablate,
    "report a | report a b": report,
}


# ---------------------------------------------------------------- helpers


def _alone(folder: Path, words: Sequence[str]) -> Ended:
    ended = at_once(folder, [words])[0]
    if ended.code:
        raise SystemExit(f"{' '.join(words)}: {ended.err}")
    return ended


def _is_refusal(ended: Ended, text: str) -> bool:
    errors, hints = (
        [line for line in ended.err.splitlines() if line.startswith(f"{kind}: ")] for kind in ("error", "hint")
    )
    return ended.code == 2 and len(errors) == len(hints) == 1 and text in errors[0]


def _weights(run: runs.Run) -> str:
    folder = run.checkpoint_path(run.checkpoint_steps()[-1])
    return str(runs.read_json(folder / "state.json")["checksums"]["policy.safetensors"])


def _whole_evaluation(run: runs.Run, images: int) -> Checks:
    lines = runs.read_jsonl(run.images_dir("scenes-heldout") / "manifest.jsonl")
    drawn = {line["file"] for line in lines}
    yield "each image is drawn and written down once", len(lines) == len(drawn)
    samples = load_samples(run, "scenes")
    yield (
        "there is a sample of each image",
        len(samples) == images and {s.image.split("/")[-1] for s in samples} <= drawn,
    )
    yield "no image is unscored", not any(sample.unscored for sample in samples)


def _reported(folder: Path, names: list[str], out: str) -> dict[str, bytes]:
    _alone(folder, ["report", *names, f"--out={out}", "--format=html,md,csv,json"])
    files = _files(folder / out)
    shutil.rmtree(folder / out)
    return files


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix}


def stressed(name: str, many: int, root: Path) -> Row:
    """One command in a folder of its own; what its processes printed stays in `logs`."""
    folder = root / "".join(letter if letter.isalnum() else "-" for letter in name)
    folder.mkdir()
    started = time.perf_counter()
    ended, checks = STRESSES[name](folder, many)
    seconds = time.perf_counter() - started
    failed = []
    try:
        failed += [what for what, holds in checks if not holds]
    except Exception as error:  # a file that is missing or damaged is what this looks for
        failed.append(f"{type(error).__name__}: {error}")
    failed += ["no traceback"] * any("Traceback" in each.out + each.err for each in ended)
    codes = Counter(str(each.code) for each in ended)
    return Row(
        command=name, processes=many, codes=dict(codes), seconds=round(seconds, 1), failed=list(dict.fromkeys(failed))
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--many", type=int, default=50, help="processes at once")
    parser.add_argument("--only", default="", help="commands, with commas: train,evaluate,ablate,report")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    asked = parser.parse_args(words)
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    wanted = [name for name in STRESSES if not asked.only or name.split()[0] in asked.only.split(",")]
    root = Path(tempfile.mkdtemp(prefix="concurrent-starts-"))
    rows = []
    for name in wanted:
        rows.append(row := stressed(name, asked.many, root))
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(row.codes.items()))
        print(
            f"{name:26} {row.processes:4} processes  exit codes {codes:16} {row.seconds:7.1f} s  "
            f"{'; '.join(row.failed) or 'ok'}",
            flush=True,
        )
    if asked.out:
        record: dict[str, Any] = {"rows": [asdict(row) for row in rows]}
        asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if any(row.failed for row in rows):
        print(f"what was printed is in {root}/*/logs")
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())

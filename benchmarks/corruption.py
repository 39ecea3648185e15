"""One byte changed at random places of every kind of file that a study leaves: detected, harmless, or silent?

    python benchmarks/corruption.py [--flips 20] [--out benchmarks/results/corruption.json]

Detected: reading raises one of our errors, or counts the image as not to be scored. Harmless: what is read is equal to
what was read before. Silent is what must not be: other numbers without a word. A crash is an error of another kind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from gcpo_bench import runs
from gcpo_bench.ablations import Cell
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import GcpoBenchError
from gcpo_bench.evaluators import images, stored
from gcpo_bench.evaluators.generate import Request, generate
from gcpo_bench.evaluators.observations import Observations, Seen
from gcpo_bench.evaluators.runner import evaluate
from gcpo_bench.evaluators.types import Drawn
from gcpo_bench.files import write_bytes
from gcpo_bench.ledger import Ledger
from gcpo_bench.reports import baseline
from gcpo_bench.reports.load import load, load_run
from gcpo_bench.resolve import resolve
from gcpo_bench.sources import Source, read_source, write_source
from gcpo_bench.training import checkpoints
from gcpo_bench.training.learner import as_module, build_learner
from gcpo_bench.training.loop import train

PROMPTS = [Prompt(id=f"p-{number}", text=f"a picture of thing {number}", metadata={"tag": "t"}) for number in range(3)]
LOOK = {"weights": "abc"}
Reader = Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    name: str
    path: Path
    read: Reader
    """Everything that a reader makes of the file, as plain values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    kind: str
    bytes: int
    flips: int
    detected: int
    harmless: int
    silent: int
    crashed: int
    first: str = ""
    """Offset, old and new byte of the first that is silent or crashed, and how."""


def plain(value: Any) -> Any:
    """Arrays as their bytes, so that all can be compared."""
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype.str, xxhash.xxh3_128_hexdigest(np.ascontiguousarray(value)))
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def study(root: Path) -> list[Kind]:
    """A small trained and judged run, and what lies beside it."""
    config = resolve("scenes-tiny-gcpo", ["logging.checkpoint_every=1"], {"num_steps": 2}).config
    run = runs.create(root / "runs", "run", config)
    train(config, run)
    where = {
        "world": "scenes-8",
        "images_per_prompt": 1,
        "seed": 0,
        "distribution": {},
        "weights_digest": "w",
        "limit": 1,
    }
    evaluate(run, lambda texts, _: np.zeros((len(texts), 32, 32, 3), np.uint8), 64, "scenes", **where)
    run.save_analysis(
        "perturb", {"noise": "uniform", "coarse": [0.25, 0.5]}, {"images": np.ones((2, 8, 8, 3), np.uint8)}
    )
    folder = run.path / "checkpoints" / "step-000002"
    return [*_of_run(run), *_of_checkpoint(run, folder), *_of_images(root), *_of_grid(root), *_of_others(root, run)]


def _of_run(run: runs.Run) -> list[Kind]:
    def report() -> Any:
        found, notes = load_run(run.path)
        return plain(
            {
                "config": found.config.model_dump(mode="json"),
                "metrics": found.metrics.to_dict("list"),
                "environments": list(found.environments),
                "state": [found.state, found.step, found.error],
                "scores": {n: [e.version, dict(e.identity), repr(e.samples)] for n, e in found.evaluations.items()},
                "maps": [
                    [m.step, m.prompts, m.images_MYXC, dict(m.maps_MHW), m.selected_MHW] for m in found.token_maps
                ],
                "analyses": {name: [dict(each.record), dict(each.arrays)] for name, each in found.analyses.items()},
                "notes": notes,
            }
        )

    def scores() -> Any:
        return [repr(stored.load_evaluation(run, "scenes")), repr(stored.load_samples(run, "scenes"))]

    names = ("config.yaml", "environment.json", "status.json", "metrics.jsonl", "analyses/perturb.json")
    names = (*names, "analyses/perturb.npz", "tokens/step-000002.npz")
    judged = ("evaluations/scenes/samples.jsonl", "evaluations/scenes/scores.json")
    kinds = [Kind(name=name, path=run.path / name, read=report) for name in (*names, *judged)]
    return [*kinds, *(Kind(name=f"{name} (evaluate)", path=run.path / name, read=scores) for name in judged)]


def _of_checkpoint(run: runs.Run, folder: Path) -> list[Kind]:
    learner = build_learner(run.config, run)
    policy = as_module(learner.policy)

    def resume() -> Any:
        checkpoints.load(run, 2, policy, learner.optimizer)
        digest = xxhash.xxh3_128()
        for tensor in policy.state_dict().values():
            digest.update(tensor.numpy())
        return [digest.hexdigest(), repr(learner.optimizer.state_dict())]

    names = (checkpoints.WEIGHTS, checkpoints.OPTIMIZER, checkpoints.STATE)
    return [Kind(name=f"checkpoints/{name}", path=folder / name, read=resume) for name in names]


def _of_images(root: Path) -> list[Kind]:
    folder = root / "images"
    wanted = [Request(prompt, 0) for prompt in PROMPTS]
    shades = iter((40, 120, 200))

    def draw(batch: Sequence[Request]) -> list[Drawn]:
        return [Drawn(image_YXC=np.full((16, 16, 3), next(shades), np.uint8)) for _ in batch]

    generate(folder, draw, wanted, identity={"weights": "w"})

    def look() -> Any:
        found = [(each, *images.read(each)) for each in images.of_requests(folder, wanted)]
        if problems := [problem for _, _, problem in found if problem]:
            raise GcpoBenchError(problems[0], hint="")  # counted as unscored, with this reason
        return [(each.prompt.text, plain(images.decode(data).image_YXC)) for each, data, _ in found]

    names = ("manifest.jsonl", wanted[0].file)
    return [Kind(name=f"images/{name}", path=folder / name, read=look) for name in names]


def _of_grid(root: Path) -> list[Kind]:
    ledger = Ledger(root / "runs")
    config = resolve("scenes-tiny-grpo").config
    ledger.plan([Cell(id="0" * 16, name="cell", config=config)])
    for _ in range(2):
        claim = ledger.claim(ledger.ids(), "worker")
        assert claim is not None
        claim.failed("no memory") if claim.attempt == 1 else claim.done(1.5)
    folder = ledger.path / "cells" / ("0" * 16)

    def look() -> Any:
        return repr(Ledger(root / "runs").states())

    names = ("cell.json", "claim-0002.json", "done.json", "failed-0001.json", "released-0002.json")
    found = [Kind(name=f"ledger/{name}", path=folder / name, read=look) for name in names]
    return [*found, Kind(name="ledger/version.json", path=ledger.path / "version.json", read=look)]


def _of_others(root: Path, run: runs.Run) -> list[Kind]:
    observations, source = root / "observations", root / "set" / "geneval"
    for number in range(3):
        Observations(observations, LOOK).add(f"xxh3:{number}", "question", Seen(value=number / 4))
    (seen,) = observations.glob("*.jsonl")
    write_source(source, Source(kind="folder", name="set", images=root / "images"))
    baseline.write(root / "baseline.json", baseline.entries(load([run.path])), "1")

    def observed() -> Any:
        found = Observations(observations, LOOK)
        lost = [number for number in range(3) if found.get(f"xxh3:{number}", "question") is None]
        if lost:
            raise GcpoBenchError(f"{lost} are looked at again", hint="")
        return repr([found.get(f"xxh3:{number}", "question") for number in range(3)])

    return [
        Kind(name="observations/*.jsonl", path=seen, read=observed),
        Kind(name="source.json", path=source / "source.json", read=lambda: repr(read_source(source))),
        Kind(
            name="baseline.json", path=root / "baseline.json", read=lambda: repr(baseline.read(root / "baseline.json"))
        ),
    ]


def flip(kind: Kind, count: int, draw: random.Random) -> Outcome:
    """Changes one byte at a time and puts it back."""
    content, before = kind.path.read_bytes(), kind.read()
    found: Counter[str] = Counter()
    first = ""
    for _ in range(count):
        place = draw.randrange(len(content))
        new = draw.choice([value for value in range(256) if value != content[place]])
        _put(kind.path, content[:place] + bytes([new]) + content[place + 1 :])
        try:
            what = "harmless" if kind.read() == before else "silent"
        except GcpoBenchError:
            what = "detected"
        except Exception as error:
            what, first = (
                "crashed",
                first or f"byte {place}: {content[place]} -> {new}: {type(error).__name__}: {error}",
            )
        if what == "silent":
            first = first or f"byte {place}: {content[place]} -> {new}"
        found[what] += 1
    _put(kind.path, content)
    counts = {name: found[name] for name in ("detected", "harmless", "silent", "crashed")}
    return Outcome(kind=kind.name, bytes=len(content), flips=count, first=first, **counts)


def _put(path: Path, content: bytes) -> None:
    stat = path.stat()
    write_bytes(path, content, sync=False)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def markdown(outcomes: Sequence[Outcome]) -> str:
    columns = ("flips", "detected", "harmless", "silent", "crashed")
    rows = [(f"`{each.kind}`", str(each.bytes), *(getattr(each, name) for name in columns)) for each in outcomes]
    rows.append(("all", "", *(sum(getattr(each, name) for each in outcomes) for name in columns)))
    lines = ["| file | bytes | changed | detected | harmless | silent | crashed |", f"| --- |{' ---: |' * 6}"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n"


def measure(root: Path, flips: int, seed: int = 0) -> list[Outcome]:
    draw = random.Random(seed)
    return [flip(kind, flips, draw) for kind in study(root)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = measure(Path(folder), options.flips, options.seed)
    print(markdown(outcomes))
    for each in outcomes:
        if each.first:
            print(f"{each.kind}: {each.first}")
    if options.out:
        options.out.write_text(json.dumps([asdict(each) for each in outcomes], indent=1) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text(markdown(outcomes), encoding="utf-8")
    return int(any(each.silent or each.crashed for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())

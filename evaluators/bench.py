"""How fast images are looked at on this machine: each scorer alone, through the code that `evaluate` runs.

Published weights are used where they are on the machine, random ones elsewhere: their time and memory are those of
their size, their scores mean nothing. A random detector is sure of nothing, so GenEval's colour classifier then has no
work.

Images are drawn pictures, kept as PNG files. Each has a prompt of its own, so no text is read for two of them.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image as Pictures
from PIL import ImageDraw

from gcpo_bench.catalogue import NEEDS
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, did_you_mean
from gcpo_bench.registry import SCORERS
from gcpo_bench.weights import local

from . import images, stored
from .drawbench import PANEL, DrawBench
from .geneval_benchmark import GenEvalBenchmark
from .grounding import Thresholds
from .images import Picture
from .judging import Place, observe
from .panel import OUTSIDE, Panel
from .phrases import Parsed, Phrases
from .runner import judge_again
from .t2i_compbench import AttributeBenchmark
from .t2i_compbench_finders import Finder, Grounded, make_finder
from .t2i_compbench_objects import ObjectsBenchmark
from .t2i_compbench_tasks import Position2D, Position3D
from .types import Image, KeepingBenchmark

Random = Literal["small", "published"]
"""Which size has random weights."""

GENEVAL, BLIP_VQA = "geneval", "blip-vqa"
OBJECTS = {"grounding-dino": "spatial", "grounding-dino-dpt": "3d-spatial"}
"""What finds objects, without and with depth -> the category of T2I-CompBench that looks with it."""
OTHERS = (BLIP_VQA, GENEVAL, *OBJECTS)
"""Measured beside the registered scorers."""
DEFAULT = (*PANEL, BLIP_VQA, GENEVAL, "grounding-dino")
OF_BENCHMARK: Mapping[str, Sequence[str]] = {
    "geneval": (GENEVAL,),
    "drawbench": PANEL,
    "hps-benchmark": ("hps-v2.1",),
    "hps-gcpo400": ("hps-v2.1",),
    **{f"t2i-compbench-{category}": (BLIP_VQA,) for category in ("color", "shape", "texture")},
    "t2i-compbench-non-spatial": ("clip-score-b32",),
    **{f"t2i-compbench-{category}": (name,) for name, category in OBJECTS.items()},
    "t2i-compbench-numeracy": ("grounding-dino",),
    "t2i-compbench-complex": (BLIP_VQA, "grounding-dino", "clip-score-b32"),
}
"""What each benchmark looks with, where it is not told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What is measured."""

    images: int
    side: int
    """Pixels."""
    repeats: int
    threads: int
    device: str
    random: Random | None = None
    """None: published weights where they are, small random ones elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds are medians, for all images of the spec."""

    scorer: str
    weights: str
    """`published`, `random, small` or `random, published size`."""
    load_s: float
    """Once."""
    one_by_one_s: float
    together_s: float
    together_cpu_s: float
    """Processor time of the same, over all threads; it depends least on what else the machine does."""
    rescore_s: float
    """To judge again from what is kept."""
    peak_bytes: int
    """Above what the process used before the scorer was loaded."""

    def to_json(self, spec: Spec) -> dict[str, Any]:
        rates = {
            "images_per_s_one_by_one": spec.images / self.one_by_one_s,
            "images_per_s_together": spec.images / self.together_s,
        }
        return {**asdict(self), **rates}


def scorers_of(benchmark: str) -> Sequence[str]:
    """Raises ConfigError for a benchmark that is not measured here."""
    if benchmark not in OF_BENCHMARK:
        raise ConfigError(
            f"what benchmark {benchmark!r} looks with is not measured here", hint=did_you_mean(benchmark, OF_BENCHMARK)
        )
    return OF_BENCHMARK[benchmark]


def measure(names: Sequence[str], spec: Spec) -> tuple[float, list[Measured]]:
    """Seconds to read and decode an image, and each scorer in a process of its own, so that its memory is its own.

    Raises ConfigError for an unknown scorer, or one that has no random weights where these are asked for.
    """
    for name in names:
        _check(name, spec)
    return _decode_s(spec), [_apart(name, spec) for name in names]


def _check(name: str, spec: Spec) -> None:
    known = (*SCORERS, *OTHERS)
    if name not in known:
        raise ConfigError(f"unknown scorer {name!r}", hint=did_you_mean(name, known))
    if spec.random and name in OUTSIDE:
        raise ConfigError(f"scorer {name!r} runs elsewhere, with its own weights", hint="leave --random out")


def _apart(name: str, spec: Spec) -> Measured:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (name, spec))


def _measure(name: str, spec: Spec) -> Measured:
    from .detectors import random_weights  # noqa: F401  # what every network needs is imported before the clock starts
    from .scorers import usage

    usage.use_threads(spec.threads)
    before = usage.peak_bytes(spec.device)
    made: list[tuple[KeepingBenchmark, str]] = []
    load_s = usage.seconds(lambda: made.append(_benchmark(name, spec)), spec.device)
    ((benchmark, label),) = made
    pages_BYXC = np.stack([picture(spec.side, seed) for seed in range(spec.images)])

    def one_by_one(run: int) -> None:
        for row, prompt in enumerate(_prompts(spec, run)):
            benchmark.score(pages_BYXC[row : row + 1], [prompt])

    def together(run: int) -> None:
        benchmark.score(pages_BYXC, _prompts(spec, run))

    times: dict[str, list[float]] = {"one_by_one_s": [], "together_s": [], "together_cpu_s": [], "rescore_s": []}
    with tempfile.TemporaryDirectory() as folder:
        rescore = _rescoring(benchmark, spec, Path(folder))  # which warms up
        for repeat in range(spec.repeats):  # in turns, so that what else the machine does falls on all alike
            times["one_by_one_s"].append(usage.seconds(partial(one_by_one, 2 * repeat), spec.device))
            busy = time.process_time()
            times["together_s"].append(usage.seconds(partial(together, 2 * repeat + 1), spec.device))
            times["together_cpu_s"].append(time.process_time() - busy)
            times["rescore_s"].append(usage.seconds(rescore, spec.device))
    return Measured(
        scorer=name,
        weights=label,
        load_s=load_s,
        peak_bytes=usage.peak_bytes(spec.device) - before,
        **{what: statistics.median(seconds) for what, seconds in times.items()},
    )


def _rescoring(benchmark: KeepingBenchmark, spec: Spec, folder: Path) -> Callable[[], object]:
    """Evaluates files as `evaluate` does; what judges them again."""
    out = folder / "out"
    pictures = [
        Picture(prompt=prompt, index=0, path=path)
        for prompt, path in zip(_prompts(spec, -1), _files(spec, folder), strict=True)
    ]
    seen = observe(benchmark, Place(out=out, root=folder), pictures)
    look = benchmark.look()
    stored.save_prompts(out, [each.prompt for each in pictures])
    before = stored.save(out, benchmark, seen.samples, {"look": look})
    return lambda: judge_again(benchmark, out, before, look)


def _decode_s(spec: Spec) -> float:
    from .scorers import usage

    with tempfile.TemporaryDirectory() as folder:
        files = [Picture(prompt=Prompt(id="", text=""), index=0, path=path) for path in _files(spec, Path(folder))]

        def read() -> None:
            for each in files:
                images.decode(images.read(each)[0])

        return statistics.median(usage.seconds(read, "cpu") for _ in range(spec.repeats)) / spec.images


# ---------------------------------------------------------------- what is looked at


def picture(side: int, seed: int) -> Image:
    """Discs and boxes on a page that grows darker, with a little noise: a file of a photograph's size."""
    rng = np.random.default_rng(seed)
    shade_YX = np.linspace(230, 60, side)[:, None] + rng.normal(0, 2, (side, side))
    page = Pictures.fromarray(np.stack([shade_YX.clip(0, 255)] * 3, axis=-1).astype(np.uint8))
    draw = ImageDraw.Draw(page)
    for shape in range(8):
        left, top, width, height = (int(length) for length in rng.integers(1, max(2, side // 2), 4))
        fill = tuple(int(value) for value in rng.integers(0, 256, 3))
        (draw.ellipse if shape % 2 else draw.rectangle)((left, top, left + width, top + height), fill=fill)
    return np.asarray(page)


def _files(spec: Spec, folder: Path) -> list[Path]:
    paths = [folder / f"{seed:05d}.png" for seed in range(spec.images)]
    for seed, path in enumerate(paths):
        Pictures.fromarray(picture(spec.side, seed)).save(path)
    return paths


def _prompts(spec: Spec, run: int) -> list[Prompt]:
    """One an image, others in each run."""
    include = [{"class": "cup", "count": 1, "color": "red"}]
    texts = (f"a photo of a red cup and a blue dog, number {row} of {run}" for row in range(spec.images))
    return [
        Prompt(id=f"{row:05d}", text=text, metadata={"tag": "colors", "include": include})
        for row, text in enumerate(texts)
    ]


# ---------------------------------------------------------------- what looks


def _benchmark(name: str, spec: Spec) -> tuple[KeepingBenchmark, str]:
    """A benchmark that looks with this alone, and whose weights it has. Loads them."""
    random = spec.random or ("" if _is_here(name) else "small")
    label = {"": "published", "small": "random, small", "published": "random, published size"}[random]
    if name == GENEVAL:
        return _geneval(random, spec), label
    if name == BLIP_VQA:
        return _attributes(random, spec), label
    if name in OBJECTS:
        return _objects(name, random, spec), label
    return DrawBench(Panel([_scorer(name, random, spec)]), list), label


def _is_here(name: str) -> bool:
    needed = NEEDS[f"t2i-compbench-{OBJECTS[name]}"] if name in OBJECTS else NEEDS.get(name, ())
    return all(local(weights) is not None for weights in needed)


def _scorer(name: str, random: str, spec: Spec) -> Any:
    from .scorers import random_weights
    from .scorers.compute import Compute

    if random:
        return random_weights.scorer(name, small=random == "small", compute=Compute(device=spec.device))
    return SCORERS.load(name)(**({} if name in OUTSIDE else {"device": spec.device}))


def _attributes(random: str, spec: Spec) -> AttributeBenchmark:
    from .scorers import random_weights
    from .scorers.blip_vqa import blip_vqa
    from .scorers.compute import Compute

    model = (
        random_weights.blip_vqa(small=random == "small", compute=Compute(device=spec.device))
        if random
        else blip_vqa(device=spec.device)
    )
    return AttributeBenchmark("color", read=list, parse=lambda: _table(spec), make=lambda: model)


def _table(spec: Spec) -> Phrases:
    """Of the prompts of all runs."""
    phrases = Parsed(phrases=("a red cup", "a blue dog"), nouns=("cup", "dog"))
    texts = [prompt.text for run in range(-1, 2 * spec.repeats) for prompt in _prompts(spec, run)]
    return Phrases(parser="none", prompts=dict.fromkeys(texts, phrases))


def _objects(name: str, random: str, spec: Spec) -> ObjectsBenchmark:
    """Two objects a prompt are looked for."""
    from .detectors import random_weights

    category, with_depth = OBJECTS[name], name.endswith("-dpt")
    finder: Finder = make_finder(category, {}, spec.device)
    if random:
        small = random == "small"
        seen_with = random_weights.objects(small=small, with_depth=with_depth, device=spec.device)
        finder = Grounded(lambda: seen_with, Thresholds())
    table = _table(spec)
    task = Position3D(lambda: table) if with_depth else Position2D(lambda: table)
    benchmark = ObjectsBenchmark(category, task, finder, list)
    benchmark.look()
    return benchmark


def _geneval(random: str, spec: Spec) -> GenEvalBenchmark:
    from .detectors import random_weights

    benchmark = GenEvalBenchmark(device=spec.device)
    if random:
        seen_with = random_weights.build(benchmark.fidelity, small=random == "small", device=spec.device)
        benchmark.see_with(*seen_with)
    benchmark.look()
    return benchmark

"""Run directories as training and evaluation leave them, made in a moment: invented numbers, real file formats."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from gcpo_bench import runs
from gcpo_bench.config import RunConfig
from gcpo_bench.datasets import Prompt
from gcpo_bench.evaluators import stored
from gcpo_bench.evaluators.drawbench import CATEGORIES, DrawBench
from gcpo_bench.evaluators.hps import STYLES, HpsBenchmark
from gcpo_bench.evaluators.panel import Panel
from gcpo_bench.evaluators.types import Benchmark, SampleScore
from gcpo_bench.methods import get_method
from gcpo_bench.sources import Source, write_source

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SHAPES = ("circle", "square", "triangle", "diamond")
COLORS = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (31, 111, 235),
    "yellow": (240, 196, 25),
    "purple": (136, 71, 201),
    "orange": (238, 126, 32),
}
BACKGROUND = (236, 236, 236)
HOSTILE = (
    "</script><script>window.hacked=1</script>",
    '"><img src=x onerror=window.hacked=1>',
    "' onmouseover='window.hacked=1",
    "{{ 7*7 }} {% raw %} ${7*7}",
    "]]> <!-- --> <![CDATA[",
    '=HYPERLINK("http://x","y")',
    "+1+1 | a | b |\n# heading\n- item",
    "@SUM(1)\t-2",
    "\u202eright to left\u202c \u05d0\u05d1\u05d2 \u0627\u0644\u0639",
    "a " * 1000,
    "x" * 2000,
    "[link](javascript:window.hacked=1) `code` **bold** <b>html</b>",
    "\x1b[31mred\x1b[0m \x00 \u2028 \u2029",
)


def make_run(
    root: Path,
    name: str,
    *,
    method: str = "gcpo",
    seed: int = 0,
    skill: float = 0.6,
    steps: int = 60,
    prompts_per_task: int = 8,
    images_per_prompt: int = 2,
    prompt_texts: dict[str, str] | None = None,
    evaluated: bool = True,
    maps: bool = True,
    draw: bool = True,
    overrides: dict[str, Any] | None = None,
) -> runs.Run:
    """A finished run; `skill` is the chance that one of its images is right. `steps=0` makes a start.

    Without `draw` its pictures are missing.
    """
    settings = {**get_method(method).settings, **(overrides or {})}
    config = RunConfig.model_validate({"method": method, "seed": seed, "num_steps": steps, **settings})
    run = runs.create(root, name, config)
    generator = np.random.default_rng([seed, sum(map(ord, method)), steps])
    run.add_environment(
        {
            "argv": ["gcpo-bench", "train", "--method", method, "--seed", str(seed)],
            "versions": {"python": "3.11.9", "torch": "2.9.0"},
            "platform": "Linux-x86_64",
            "commit": "0123456789abcdef",
        }
    )
    for step in range(1, steps + 1):
        run.log(_metrics(step, steps, generator, method))
    if maps and steps:
        for step in sorted({1, *range(10, steps + 1, 10)}):
            run.save_token_maps(step, token_maps(generator, step, prompt_texts, method))
    if evaluated:
        evaluate(run, skill, prompts_per_task, images_per_prompt, prompt_texts or {}, draw=draw)
    run.set_status("finished", steps)
    return run


def _metrics(step: int, steps: int, generator: np.random.Generator, method: str) -> dict[str, float]:
    progress = step / steps
    noise = float(generator.normal(0, 0.03))
    selection_s = 0.002 if method == "gcpo" else 0.0001
    return {
        "step": step,
        "reward/mean": 0.5 + 0.25 * progress + noise,
        "reward/std": 0.3,
        **{f"reward/task/{task}": 0.5 + 0.2 * progress + float(generator.normal(0, 0.05)) for task in TASKS},
        "reward/extra_objects": 0.3 - 0.1 * progress,
        "reward/unknown_blobs": 0.1,
        "reward/strict": 0.4 + 0.2 * progress,
        "loss/total": 0.01,
        "weight/mean": 1.0,
        "weight/min": 1 - 0.3 * progress,
        "weight/max": 1 + 0.4 * progress,
        "loss/policy": 0.0,
        "loss/kl": 0.02 * progress,
        "loss/kl_all": 0.015 * progress + abs(noise) / 10,
        "tokens/entropy": 1.6 - 0.4 * progress + noise,
        "tokens/selected_fraction": 0.29,
        "groups/zero_variance_share": 0.2 + 0.2 * progress,
        "optimizer/gradient_norm": 0.5,
        "optimizer/learning_rate": 3e-4,
        "time/rollout_s": 0.4,
        "time/reward_s": 0.05,
        "time/reference_s": 0.06,
        "time/selection_s": selection_s,
        "time/update_s": 0.3,
        "time/step_s": 0.82 + selection_s,
        "throughput/tokens_per_s": 8000.0,
        "memory/peak_bytes": 6.0e8,
    }


def rewrite_metrics(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A run whose steps went otherwise."""
    rows = runs.read_jsonl(run / "metrics.jsonl")
    (run / "metrics.jsonl").unlink()
    for row in rows:
        change(row)
        runs.append_jsonl(run / "metrics.jsonl", row)


def forget_checksums(evaluation: Path) -> None:
    """An evaluation's folder as older versions left it, or a stranger who changed it on purpose."""
    record = runs.read_json(evaluation / "scores.json")
    del record["checksums"]
    (evaluation / "scores.json").write_text(json.dumps(record))


def draw_scene(
    generator: np.random.Generator, count: int, pixels: int = 48, *, paint: bool = True
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A picture of up to `count` coloured squares and discs, and what a detector would say about it."""
    image_YXC = np.full((pixels, pixels, 3), BACKGROUND, dtype=np.uint8)
    rows, columns = np.mgrid[0:pixels, 0:pixels]
    detections = []
    for index in range(count):
        size = int(generator.choice([10, 12]))
        top = int(generator.integers(2, pixels - size - 2)) // 4 * 4
        left = (4 + 16 * (index % 3)) // 4 * 4
        color = str(generator.choice(list(COLORS)))
        shape = str(generator.choice(SHAPES[:2]))
        detections.append(
            {"label": shape, "color": color, "confidence": 0.97, "box": [left, top, left + size, top + size]}
        )
        if not paint:
            continue
        inside = (abs(rows - top - size / 2 + 0.5) < size / 2) & (abs(columns - left - size / 2 + 0.5) < size / 2)
        if shape == "circle":
            inside = (rows - top - size / 2 + 0.5) ** 2 + (columns - left - size / 2 + 0.5) ** 2 < (size / 2) ** 2
        image_YXC[inside] = COLORS[color]
    return image_YXC, detections


def token_maps(
    generator: np.random.Generator, step: int, texts: dict[str, str] | None, method: str = "gcpo", side: int = 12
) -> dict[str, Any]:
    prompts = list((texts or {}).values()) or [
        "a red circle",
        "a blue square and a green circle",
        "three yellow squares",
        "an orange circle left of a purple square",
    ]
    images = np.stack([draw_scene(generator, 1 + index % 3, 4 * side)[0] for index in range(len(prompts))])
    shape = (len(prompts), side, side)
    smooth = np.cumsum(np.cumsum(generator.normal(size=shape), axis=1), axis=2)
    entropy = np.clip(1.5 + 0.3 * smooth / (1 + np.abs(smooth).max()) * 3 - step / 100, 0, None)
    gradient = np.abs(np.gradient(entropy, axis=1)) + np.abs(np.gradient(entropy, axis=2))
    similarity = np.clip(0.5 + 0.4 * generator.normal(size=shape), -0.14, 1)
    share = side * side // 10
    order = np.arange(side * side)
    initial = np.broadcast_to((order < share).reshape(side, side), shape).copy()
    structural = _top(np.where(initial, -np.inf, gradient), share)
    diverse = _top(np.where(initial | structural, -np.inf, -similarity), share)
    subsets = {"subset/initial": initial, "subset/structural": structural, "subset/diverse": diverse}
    if method == "grpo":
        subsets = {"subset/all": np.ones(shape, dtype=bool)}
    if method == "random":
        subsets = {"subset/random": _top(generator.random(shape), 3 * share)}
    return {
        "prompts": np.array(prompts),
        "images": images,
        "entropy": entropy.astype(np.float32),
        "entropy_gradient": gradient.astype(np.float32),
        "similarity": similarity.astype(np.float32),
        "weight": (1 + 0.002 * step * generator.normal(size=shape)).astype(np.float32),
        "divergence": (0.01 * step * generator.normal(size=shape)).astype(np.float32),
        "selected": np.logical_or.reduce(list(subsets.values())),
        **subsets,
        "reward": generator.integers(0, 2, len(prompts)).astype(np.float32),
        "advantage": generator.normal(size=len(prompts)).astype(np.float32),
    }


def _top(values_MHW: np.ndarray, count: int) -> np.ndarray:
    flat = values_MHW.reshape(len(values_MHW), -1)
    chosen = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(chosen, np.argsort(-flat, axis=1)[:, :count], True, axis=1)
    return chosen.reshape(values_MHW.shape)


def evaluate(
    run: runs.Run,
    skill: float,
    prompts_per_task: int,
    images_per_prompt: int,
    texts: dict[str, str],
    *,
    draw: bool = True,
) -> None:
    """Judged images on disk. The same noise for every run: prompts differ in difficulty, images in luck."""
    shared = np.random.default_rng(7)
    own = np.random.default_rng([run.config.seed, sum(map(ord, run.name))])
    lines = []
    run.images_dir("scenes").mkdir(parents=True)
    for task in TASKS:
        for number in range(prompts_per_task):
            prompt_id = f"{task}-{number:03d}"
            difficulty, objects = shared.normal(0, 0.15), 1 + number % 3
            for index in range(images_per_prompt):
                luck = shared.random()
                correct = float(0.7 * luck + 0.3 * own.random() < skill - difficulty)
                extra = float(own.random() < 0.3 * (1 - skill))
                image_YXC, detections = draw_scene(own, objects, paint=draw)
                path = run.images_dir("scenes") / f"{prompt_id}-{index}.png"
                if draw:
                    Image.fromarray(image_YXC).save(path)
                lines.append(
                    {
                        "prompt_id": prompt_id,
                        "prompt": texts.get(
                            prompt_id,
                            f"{objects} {'things' if objects > 1 else 'thing'}, {task.replace('_', ' ')} {number}",
                        ),
                        "tag": task,
                        "image_index": index,
                        "image": str(path.relative_to(run.path)),
                        "values": {
                            "correct": correct,
                            "strict": correct * (extra == 0),
                            "extra_objects": extra,
                            "unknown_blobs": float(own.random() < 0.05),
                            "dense": 0.5 + 0.5 * correct,
                        },
                        "reason": "" if correct else f"expected {objects} {task}, found {objects - 1}",
                        "detections": detections,
                        "unscored": "",
                    }
                )
    folder = run.evaluation_dir("scenes")
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    identity = {"prompts_digest": "abc123", "images_per_prompt": images_per_prompt, "seed": 0, "guidance_scale": 1.0}
    scores = {
        "benchmark": "scenes",
        "version": "1",
        "metrics": {},
        "identity": {**identity, "weights_digest": run.name},
    }
    (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")


SCORERS = {
    "hps-v2.1": (0.28, 0.02),
    "image-reward": (0.4, 0.9),
    "pickscore": (21.6, 1.1),
    "clip-score": (0.27, 0.035),
    "aesthetic": (5.7, 0.5),
}
"""Scorer -> mean and standard deviation over prompts of its raw scores."""


def benchmark_of(name: str, prompts: Sequence[Prompt] = (), **more: Any) -> Benchmark:
    """The real benchmark, which sums up; its scorers are never loaded."""
    if name == "drawbench":
        return DrawBench(Panel(more.pop("scorers", tuple(SCORERS))), lambda: prompts, **more)
    return HpsBenchmark(name, Panel(["hps-v2.1"]), lambda: prompts)


def score(
    out: Path,
    benchmark: str,
    *,
    skill: float,
    name: str,
    root: Path,
    folder: str,
    per_task: int = 4,
    images_per_prompt: int = 1,
    texts: dict[str, str] | None = None,
    draw: bool = True,
    identity: dict[str, Any] | None = None,
    **more: Any,
) -> None:
    """An evaluation by scorers in `out`, written by the program itself: invented scores, pictures below `root`.

    DrawBench's categories get unequally many prompts. Prompts differ in what they score, images in luck; `skill` 0.5
    moves nothing, and 1 moves every scorer up by one standard deviation.
    """
    shared, own = np.random.default_rng(11), np.random.default_rng(list(name.encode()))
    sizes = dict.fromkeys(STYLES, per_task)
    if benchmark == "drawbench":
        sizes = {tag: max(2, round(per_task * size / 18)) for tag, size in CATEGORIES.items()}
    samples, prompts = [], []
    (root / folder).mkdir(parents=True, exist_ok=True)
    scorers = more.get("scorers", tuple(SCORERS)) if benchmark == "drawbench" else ("hps-v2.1",)
    for tag, size in sizes.items():
        for number in range(size):
            prompt_id = f"{tag.lower().replace(' ', '-')}-{number:03d}"
            text = (texts or {}).get(prompt_id, f"a picture of thing {number} in the way of {tag}")
            prompts.append(Prompt(id=prompt_id, text=text, metadata={"tag": tag}))
            difficulty = {scorer: shared.normal() for scorer in SCORERS}
            for index in range(images_per_prompt):
                luck = {scorer: shared.normal(0, 0.4) for scorer in SCORERS}
                values = {}
                for scorer in scorers:
                    mean, deviation = SCORERS[scorer]
                    z = difficulty[scorer] + luck[scorer] + own.normal(0, 0.4) + 2 * (skill - 0.5)
                    values[scorer] = round(mean + deviation * float(z), 6)
                path = root / folder / f"{prompt_id}-{index}.png"
                if draw:
                    Image.fromarray(draw_scene(own, 1 + number % 3)[0]).save(path)
                samples.append(
                    SampleScore(
                        prompt_id=prompt_id,
                        prompt=text,
                        tag=tag,
                        image_index=index,
                        image=f"{folder}/{path.name}" if folder else path.name,
                        values=values,
                        reason="",
                    )
                )
    made = {
        "benchmark": benchmark,
        "version": "1",
        "prompts_digest": "abc123",
        "images_per_prompt": images_per_prompt,
        **(identity or {}),
    }
    stored.save(out, benchmark_of(benchmark, prompts, **more), samples, made)


def score_run(run: runs.Run, benchmark: str, skill: float, **options: Any) -> None:
    """As `score`, in a run."""
    identity = {"weights_digest": run.name, "seed": 0, "guidance_scale": 5.0}
    place, folder = run.evaluation_dir(benchmark), f"images/{benchmark}"
    score(place, benchmark, skill=skill, name=run.name, root=run.path, folder=folder, identity=identity, **options)


def make_reference(
    root: Path,
    name: str,
    benchmark: str,
    *,
    skill: float = 0.6,
    generator: dict[str, Any] | None = None,
    source: bool = True,
    shown: str = "",
    **options: Any,
) -> Path:
    """`<root>/<name>/<benchmark>`: images that no run drew, judged and scored; of a generator where settings are given.

    Without `source` nobody says whose they are; `shown` is what they are called, if not by the folder.
    """
    home = root / name
    place = home / benchmark
    if benchmark == "scenes":
        made = make_run(
            root.parent / "made", re.sub(r"\W", "-", name)[:40], steps=1, maps=False, skill=skill, **options
        )
        shutil.copytree(made.evaluation_dir(benchmark), place)
        shutil.copytree(made.path / "images", home / "images", dirs_exist_ok=True)
    else:
        identity = {"missing": 0, **options.pop("identity", {})}
        score(
            place,
            benchmark,
            skill=skill,
            name=name,
            root=home,
            folder=f"images/{benchmark}",
            identity=identity,
            **options,
        )
    if source:
        kind: Literal["folder", "generator"] = "folder" if generator is None else "generator"
        write_source(place, Source(kind=kind, name=shown or name, images=home, generator=generator))
    return home


def make_study(
    root: Path,
    *,
    seeds: int = 1,
    methods: tuple[str, ...] = ("grpo", "gcpo", "random"),
    steps: int = 60,
    benchmarks: tuple[str, ...] = (),
    **options: Any,
) -> list[Path]:
    """A start and `seeds` runs of each method; GCPO a little better than GRPO, random a little worse.

    `benchmarks`: further ones, by scorers.
    """
    skill = {"grpo": 0.70, "gcpo": 0.76, "random": 0.62}
    start = make_run(root, "start-scenes-12", method="grpo", steps=0, skill=0.55, **options)
    for benchmark in benchmarks:
        score_run(start, benchmark, 0.5)
    paths = [start.path]
    for method in methods:
        for seed in range(seeds):
            run = make_run(
                root,
                f"{method}-{seed}",
                method=method,
                seed=seed,
                steps=steps,
                skill=skill.get(method, 0.68),
                **options,
            )
            for benchmark in benchmarks:
                score_run(run, benchmark, 0.5 + 2 * (skill.get(method, 0.68) - 0.55))
            paths.append(run.path)
    return paths


def hostile_texts(prompts_per_task: int = 3) -> dict[str, str]:
    """prompt id -> a text that would do harm where it is not escaped."""
    ids = [f"{task}-{number:03d}" for task in TASKS for number in range(prompts_per_task)]
    return {prompt_id: HOSTILE[index % len(HOSTILE)] for index, prompt_id in enumerate(ids)}

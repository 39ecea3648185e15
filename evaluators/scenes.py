"""GenEval on the embedded world: the benchmark, and the rewards that training can maximise.

One verdict serves all of them. GenEval itself overlooks whatever was not asked for, which is how a policy cheats it; so
the strict verdict, extra objects and unknown blobs are always given beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.scenes import BACKGROUND, COLORS, SHAPES, SceneObject, World, get_world, held_out_prompts, render

from .detectors.scenes import detect, worlds_of
from .geneval import GenEval
from .metrics import stratified
from .types import Detection, Judged, Metric, SampleScore, SceneReward

_GENEVAL = GenEval(SHAPES, COLORS)
ANOMALIES = ("correct", "strict", "extra_objects", "unknown_blobs")


def judge(images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> list[Judged]:
    """Values, reason and detections of each image.

    Values: `correct` and `dense` as in `geneval`; `strict` 1 only for exactly the asked scene; `extra_objects` beyond
    the numbers asked for; `unknown_blobs`, whatever else is not background.
    Raises ValueError where images and prompts differ in number, and what `detect` and `GenEval` raise.
    """
    if len(images_BYXC) != len(prompts_B):
        raise ValueError(f"{len(images_BYXC)} images for {len(prompts_B)} prompts")
    return [_judge(found, blobs, prompt) for (found, blobs), prompt in zip(detect(images_BYXC), prompts_B, strict=True)]


def _judge(found: tuple[Detection, ...], unknown_blobs: int, prompt: Prompt) -> Judged:
    verdict = _GENEVAL(found, prompt)
    asked: Counter[str] = Counter()
    for clause in prompt.metadata.get("include", ()):
        asked[clause["class"]] += clause["count"]
    extra_objects = (Counter(detection.label for detection in found) - asked).total()
    strict = verdict.correct and verdict.strict and not extra_objects and not unknown_blobs
    values = {
        "correct": float(verdict.correct),
        "strict": float(strict),
        "extra_objects": float(extra_objects),
        "unknown_blobs": float(unknown_blobs),
        "dense": verdict.dense,
    }
    return values, "" if strict else _reason(verdict.reason, extra_objects, unknown_blobs, found), found


def _reason(complaints: str, extra_objects: int, unknown_blobs: int, found: Sequence[Detection]) -> str:
    lines = [complaints] if complaints else []
    if extra_objects or unknown_blobs:
        lines.append(f"not asked for: {_plural(extra_objects, 'object')}, {_plural(unknown_blobs, 'unknown blob')}")
    seen = Counter(f"{detection.color} {detection.label}" for detection in found)
    listing = ", ".join(f"{number} {name}" for name, number in seen.items())
    lines.append(f"in the picture: {listing or 'no object'}")
    return "\n".join(lines)


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# ---------------------------------------------------------------- self-test


@dataclass(frozen=True, slots=True)
class Case:
    """A picture whose verdict is known."""

    name: str
    image_YXC: npt.NDArray[np.uint8]
    prompt: Prompt
    expected: tuple[float, float, float, float]
    """correct, strict, extra_objects, unknown_blobs."""


@cache
def golden_cases(world_name: str) -> tuple[Case, ...]:
    """Pictures with known verdicts, right and wrong ones. They hold in every world."""
    world = get_world(world_name)
    far = world.side - 2
    red_circle = _item("circle", "red", 1, 1, world)
    blue_square = _item("square", "blue", 1, far, world)
    stars = [_item("star", "green", row, col, world) for row, col in ((1, 1), (1, far), (far, 1), (far, far))]
    one = {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]}
    two = {
        "tag": "position",
        "include": [{"class": "circle", "count": 1}, {"class": "square", "count": 1, "position": ["right of", 0]}],
    }
    three = {
        "tag": "counting",
        "include": [{"class": "star", "count": 3}],
        "exclude": [{"class": "star", "count": 4}],
    }
    half = render((red_circle,), world)
    left = half[:, : world.patch + world.patch // 2]  # a view, up to the circle's centre
    left[(left != BACKGROUND).any(axis=-1)] = COLORS["blue"]
    return (
        _case("the asked object", render((red_circle,), world), one, (1, 1, 0, 0)),
        _case("another colour", render((_item("circle", "orange", 1, 1, world),), world), one, (0, 0, 0, 0)),
        _case("half of it in another colour", half, one, (0, 0, 0, 1)),
        _case("an object too many", render((red_circle, blue_square), world), one, (1, 0, 1, 0)),
        _case("nothing", render((), world), one, (0, 0, 0, 0)),
        _case("the asked place", render((red_circle, blue_square), world), two, (1, 1, 0, 0)),
        _case(
            "the opposite place",
            render((_item("circle", "red", 1, far, world), _item("square", "blue", 1, 1, world)), world),
            two,
            (0, 0, 0, 0),
        ),
        _case("the asked number", render(tuple(stars[:3]), world), three, (1, 1, 0, 0)),
        _case("one too many", render(tuple(stars), world), three, (0, 0, 1, 0)),
    )


def _item(shape: str, color: str, row: int, col: int, world: World) -> SceneObject:
    return SceneObject(shape=shape, color=color, size=world.sizes[0], row=row, col=col)


def _case(
    name: str,
    image_YXC: npt.NDArray[np.uint8],
    metadata: Mapping[str, Any],
    expected: tuple[float, float, float, float],
) -> Case:
    return Case(name, image_YXC, Prompt(id="self-test", text=name, metadata=metadata), expected)


def self_test(world_name: str) -> None:
    """Raises CorruptDataError where the evaluator misjudges a picture with a known verdict; takes about 4 ms."""
    cases = golden_cases(world_name)
    judged = judge(np.stack([case.image_YXC for case in cases]), [case.prompt for case in cases])
    for case, (values, _, _) in zip(cases, judged, strict=True):
        got = tuple(values[name] for name in ANOMALIES)
        if got != case.expected:
            raise CorruptDataError(
                f"evaluator 'scenes' self-test failed: {case.name}: {', '.join(ANOMALIES)} "
                f"should be {case.expected}, are {got}",
                hint="reinstall gcpo-bench and its dependencies; until then no score can be trusted",
            )


# ---------------------------------------------------------------- benchmark


class ScenesBenchmark:
    """GenEval's six tasks on the held-out prompts of the embedded world."""

    name = "scenes"
    version = "1"
    prompt_set = "scenes-heldout"

    def __init__(self, world: str = "scenes-12") -> None:
        """`world` is that of the pictures expected; others of a registered size are judged as well."""
        if not world:
            raise ConfigError(
                "benchmark 'scenes' judges only what runs of the embedded world draw", hint="choose another --bench"
            )
        self.world = get_world(world)

    def prompts(self) -> Sequence[Prompt]:
        return held_out_prompts()

    def problem(self, image_YXC: npt.NDArray[np.uint8]) -> str:
        """Why this image cannot be scored; empty where it can."""
        try:
            worlds_of(image_YXC[None])
        except ConfigError as error:
            return str(error)
        return ""

    def score(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> list[Judged]:
        """Values, reason and detections of each image, after a self-test; see `judge`."""
        self_test(self.world.name)
        return judge(images_BYXC, prompts_B)

    def summarize(self, samples: Sequence[SampleScore]) -> dict[str, Metric]:
        """Metrics with standard errors over prompts; images that could not be scored are counted, not averaged.

        `overall`, `strict`, `extra_objects` and `unknown_blobs` weigh every task alike; `images_correct` and
        `prompts_correct` every prompt. Empty where no image could be scored.
        """
        scored = [sample for sample in samples if not sample.unscored]
        unscored = Counter(sample.tag for sample in samples if sample.unscored)
        if not scored:
            return {}
        tasks = {
            f"task/{tag}": stratified([s for s in scored if s.tag == tag], "correct", unscored=unscored[tag])
            for tag in dict.fromkeys(sample.tag for sample in scored)
        }
        missing = unscored.total()
        per_image: dict[str, Any] = {"unscored": missing, "higher_is_better": False, "unit": "per image"}
        return {
            "overall": stratified(scored, "correct", unscored=missing),
            **tasks,
            "strict": stratified(scored, "strict", unscored=missing),
            "extra_objects": stratified(scored, "extra_objects", **per_image),
            "unknown_blobs": stratified(scored, "unknown_blobs", **per_image),
            "images_correct": stratified(scored, "correct", by_prompt=True, unscored=missing),
            "prompts_correct": stratified(scored, "correct", by_prompt=True, reduce=max, unscored=missing),
        }


# ---------------------------------------------------------------- rewards


def _reward(images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt], key: str) -> SceneReward:
    self_test(worlds_of(images_BYXC)[0].name)
    values_B = [values for values, _, _ in judge(images_BYXC, prompts_B)]
    return SceneReward(
        values_B=tuple(values[key] for values in values_B),
        anomalies={name: tuple(values[name] for values in values_B) for name in ANOMALIES},
    )


class GenEvalReward:
    """1 where GenEval says correct, else 0."""

    def __call__(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> SceneReward:
        return _reward(images_BYXC, prompts_B, "correct")


class DenseGenEvalReward:
    """Mean of GenEval's partial terms, as reward-server gives it; at most 1, below 0 for far too many objects."""

    def __call__(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> SceneReward:
        return _reward(images_BYXC, prompts_B, "dense")


class StrictSceneReward:
    """1 only for exactly the asked scene, with nothing else in the picture."""

    def __call__(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> SceneReward:
        return _reward(images_BYXC, prompts_B, "strict")

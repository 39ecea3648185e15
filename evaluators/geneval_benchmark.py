"""The GenEval benchmark: 553 prompts in six tasks, 4 images each, judged by what a detector finds in them.

Looking and judging are apart. Looking takes the networks and is kept: all detections above 0.1, with colours where a
prompt asks for them. Judging is arithmetic on what was kept (`geneval`), and can be done again without any network.

Source: GenEval, arXiv 2310.11513, code af4902f. Which program's image handling is copied: see `fidelity`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gcpo_bench import catalogue, prompt_sets
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, GcpoBenchError, did_you_mean
from gcpo_bench.geneval_prompts import CLASSES, COLORS
from gcpo_bench.weights import locate

from . import fidelity as fidelities
from .fidelity import MIN_CONFIDENCE
from .geneval import GenEval, Options, clauses, keep
from .metrics import stratified
from .types import Asked, Detection, Image, Judged, Metric, SampleScore, SceneReward

OBSERVER = 1
"""Raised when what is seen in an image can change; what was seen before is then looked at again."""
MAX_OBJECTS = 16
"""More objects of a class than this have no colour told."""

Vision = Callable[[Sequence[Image], Sequence[Collection[str]]], Iterable[Sequence[Detection]]]
"""RGB images, and for each the classes whose colours are asked, to detections."""


class GenEvalBenchmark:
    """GenEval on any images; with the published weights in `official` fidelity, GenEval's own numbers."""

    name = "geneval"
    version = "1"
    prompt_set = "geneval"

    def __init__(
        self,
        world: str = "",
        *,
        fidelity: str | None = None,
        options: Mapping[str, Any] | None = None,
        detector: Path | None = None,
        classifier: Path | None = None,
        device: str = "",
    ) -> None:
        """`world` has no meaning here. Nothing is loaded until it is needed.

        Args:
            fidelity: of `fidelity.FIDELITIES`; None for the official one.
            options: of `geneval.Options`, by name; and `backend`, of `fidelity.BACKENDS`.
            detector, classifier: other weights than the published; scores then say so.
            device: "cpu", "cuda", "cuda:1"; empty for a GPU where there is one.
        Raises:
            ConfigError: unknown fidelity, backend or option, or one out of range.
        """
        self.fidelity = fidelities.get(fidelity or "official")
        given = dict(options or {})
        self._asked: dict[str, Mapping[str, Any]] = {}
        if fidelity is not None:
            self._asked[f"fidelity={fidelity}"] = {"fidelity": asdict(self.fidelity)}
        backend = fidelities.backend(given.get("backend"))
        if given.pop("backend", None) is not None:
            self._asked[f"backend={backend}"] = {"backend": backend}
        self.options = _options(given)
        self._arithmetic = GenEval(CLASSES, COLORS, self.options)
        files = {"detector": detector, "classifier": classifier}
        self._build: dict[str, Any] = {"backend": backend, **files, "device": device}
        self._vision: Vision | None = None
        self._look: dict[str, Any] | None = None

    def prompts(self) -> Sequence[Prompt]:
        """GenEval's 553; raises PrerequisiteError where they are not on this machine."""
        return prompt_sets.geneval()

    def require(self) -> None:
        """Raises PrerequisiteError where weights that are needed are not on this machine."""
        if self._look is not None:
            return
        if self._build["detector"] is None and self._build["classifier"] is None:
            catalogue.require([self.name])
        elif self._build["detector"] is None:
            locate(catalogue.GENEVAL_DETECTOR)
        elif self._build["classifier"] is None:
            locate(catalogue.GENEVAL_CLASSIFIER)

    # ------------------------------------------------------------ looking

    def see_with(self, vision: Vision, origin: Mapping[str, Any]) -> None:
        """Look with these networks; `origin` says which they are."""
        self._vision = vision
        self._look = {"observer": OBSERVER, "fidelity": asdict(self.fidelity), **origin}

    def look(self) -> dict[str, Any]:
        """What an observation depends on beside image and question; loads the networks."""
        if self._look is None:
            from .detectors.geneval import build

            self.see_with(*build(self.fidelity, **self._build))
        assert self._look is not None
        return self._look

    def asked(self) -> Asked:
        """Fidelity and backend, where they were given."""
        return self._asked

    def question(self, prompt: Prompt) -> list[str]:
        """What of a prompt an observation depends on: the classes whose colours it asks for."""
        include, _ = clauses(prompt, CLASSES, COLORS)
        return sorted({clause.label for clause in include if clause.color is not None})

    def observe(self, images: Sequence[Image], questions: Sequence[Sequence[str]]) -> Iterator[list[list[Any]]]:
        """Detections of each image as plain values: class, confidence, box, colour or None."""
        self.look()
        assert self._vision is not None
        for found in self._vision(images, questions):
            yield [[each.label, each.confidence, list(each.box), each.color] for each in found]

    def unfit(self, prompt: Prompt) -> str:
        """Why this prompt cannot be judged by; empty where it can."""
        try:
            clauses(prompt, CLASSES, COLORS)
        except GcpoBenchError as error:
            return str(error)
        return ""

    def problem(self, image_YXC: npt.NDArray[np.uint8]) -> str:
        """Why this image cannot be scored; empty where it can."""
        return ""

    # ------------------------------------------------------------ judging

    def settings(self) -> dict[str, Any]:
        """What a judgement depends on beside the observation."""
        return asdict(self.options)

    def judge(self, observation: Sequence[Sequence[Any]], prompt: Prompt) -> Judged:
        """Values `correct` (GenEval), `strict` and `dense` (reward-server), reason, and the objects that count."""
        found = [
            Detection(label=label, confidence=confidence, box=(box[0], box[1], box[2], box[3]), color=color)
            for label, confidence, box, color in observation
        ]
        kept = keep(found, prompt.tag, self.options)
        verdict = self._arithmetic.judge(kept, prompt)
        values = {"correct": float(verdict.correct), "strict": float(verdict.strict), "dense": verdict.dense}
        return values, verdict.reason, tuple(each for of_class in kept.values() for each in of_class)

    def score(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> list[Judged]:
        """Look and judge at once, after a self-test."""
        self.self_test()
        seen = self.observe(list(images_BYXC), [self.question(prompt) for prompt in prompts_B])
        return [self.judge(observation, prompt) for observation, prompt in zip(seen, prompts_B, strict=True)]

    def summarize(self, samples: Sequence[SampleScore]) -> dict[str, Metric]:
        """GenEval's numbers with standard errors over prompts; what could not be scored is counted, not averaged.

        `overall` is the mean of the tasks' means, `images_correct` and `prompts_correct` are GenEval's shares of images
        and of prompts with a correct image. Empty where no image could be scored.
        """
        scored = [sample for sample in samples if not sample.unscored]
        unscored = Counter(sample.tag for sample in samples if sample.unscored)
        if not scored:
            return {}
        missing = unscored.total()
        return {
            "overall": stratified(scored, "correct", unscored=missing),
            **{
                f"task/{tag}": stratified([s for s in scored if s.tag == tag], "correct", unscored=unscored[tag])
                for tag in dict.fromkeys(sample.tag for sample in scored)
            },
            "strict": stratified(scored, "strict", unscored=missing),
            "dense": stratified(scored, "dense", unscored=missing, unit="score"),
            "images_correct": stratified(scored, "correct", by_prompt=True, unscored=missing),
            "prompts_correct": stratified(scored, "correct", by_prompt=True, reduce=max, unscored=missing),
        }

    def export(self, samples: Sequence[SampleScore], prompts: Mapping[str, Prompt]) -> dict[str, str]:
        """results.jsonl as GenEval's `evaluate_images.py` writes it and its `summary_scores.py` reads it."""
        rows = []
        for sample in samples:
            if sample.unscored:
                continue
            prompt = prompts[sample.prompt_id]
            details: dict[str, list[list[float]]] = {}
            for found in sample.detections:
                details.setdefault(found.label, []).append([*found.box, found.confidence])
            row = {
                "filename": sample.image,
                "tag": sample.tag,
                "prompt": sample.prompt,
                "correct": bool(sample.values["correct"]),
                "reason": sample.reason,
                "metadata": json.dumps({**prompt.metadata, "prompt": prompt.text}),
                "details": json.dumps(details),
            }
            rows.append(json.dumps(row))
        return {"results.jsonl": "".join(f"{row}\n" for row in rows)}

    def self_test(self) -> None:
        """Raises CorruptDataError where detections with a known verdict get another one."""
        for case, observation, prompt, expected in golden_cases():
            values, reason, _ = GenEvalBenchmark.judge(_PLAIN, observation, prompt)
            got = (values["correct"], values["strict"], values["dense"])
            if got != expected:
                raise CorruptDataError(
                    f"evaluator 'geneval' self-test failed: {case}: correct, strict and dense should be {expected}, "
                    f"are {got} ({reason})",
                    hint="reinstall gcpo-bench and its dependencies; until then no score can be trusted",
                )


def _options(given: Mapping[str, Any]) -> Options:
    known: dict[str, type] = {field.name: type(field.default) for field in fields(Options)}
    for name in given:
        if name not in known:
            raise ConfigError(f"GenEval has no option {name!r}", hint=did_you_mean(name, [*known, "backend"]))
    try:
        options = Options(**{name: known[name](value) for name, value in given.items()})
    except ValueError as error:
        raise ConfigError(f"a GenEval option is no number: {error}", hint=f"known: {', '.join(known)}") from error
    for name in ("threshold", "counting_threshold"):
        if getattr(options, name) < MIN_CONFIDENCE:
            raise ConfigError(
                f"GenEval option {name} is {getattr(options, name)}; detections below {MIN_CONFIDENCE} are not kept",
                hint="use a higher threshold",
            )
    if options.max_objects > MAX_OBJECTS:
        raise ConfigError(
            f"GenEval option max_objects is {options.max_objects}; colours are told of {MAX_OBJECTS} objects at most",
            hint=f"use at most {MAX_OBJECTS}",
        )
    return options


# ---------------------------------------------------------------- rewards


@cache
def _server() -> GenEvalBenchmark:
    """What rewards see with, made once whatever number of terms there are."""
    return GenEvalBenchmark(fidelity="reward-server")


def _reward(images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt], key: str) -> SceneReward:
    values_B = [values for values, _, _ in _server().score(images_BYXC, prompts_B)]
    return SceneReward(
        values_B=tuple(values[key] for values in values_B),
        anomalies={name: tuple(values[name] for values in values_B) for name in ("correct", "strict")},
    )


class ServerReward:
    """1 where GenEval says correct, on what reward-server sees: GCPO's training reward."""

    def __call__(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> SceneReward:
        return _reward(images_BYXC, prompts_B, "correct")


class ServerDenseReward:
    """reward-server's score, the mean of partial terms: Flow-GRPO's training reward."""

    def __call__(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> SceneReward:
        return _reward(images_BYXC, prompts_B, "dense")


class ServerStrictReward:
    """1 only for exact numbers of every class asked for, as reward-server counts."""

    def __call__(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> SceneReward:
        return _reward(images_BYXC, prompts_B, "strict")


# ---------------------------------------------------------------- self-test

_PLAIN = GenEvalBenchmark()


def golden_cases() -> list[tuple[str, list[list[Any]], Prompt, tuple[float, float, float]]]:
    """Name, detections, prompt, and what correct, strict and dense must be."""
    cup = ["cup", 0.95, [10.0, 10.0, 50.0, 50.0], "red"]
    far_cup = ["cup", 0.92, [300.0, 10.0, 340.0, 50.0], "blue"]
    dog = ["dog", 0.31, [200.0, 10.0, 260.0, 70.0], None]
    unsure = ["cup", 0.3, [100.0, 100.0, 140.0, 140.0], "red"]
    one = _golden("single_object", [{"class": "cup", "count": 1}])
    red = _golden("colors", [{"class": "cup", "count": 1, "color": "red"}])
    right = _golden(
        "position", [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}]
    )
    left = _golden("position", [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}])
    two = _golden("counting", [{"class": "cup", "count": 2}], exclude=[{"class": "cup", "count": 3}])
    return [
        ("the asked object", [cup], one, (1, 1, 1)),
        ("an object too many", [cup, far_cup], one, (1, 0, 0)),
        ("nothing", [], one, (0, 0, 0)),
        ("an object at the threshold", [unsure], one, (0, 0, 0)),
        ("the asked colour", [cup], red, (1, 1, 1)),
        ("another colour", [far_cup], red, (0, 0, 0.5)),
        ("the asked place", [cup, dog], right, (1, 1, 1)),
        ("the opposite place", [cup, dog], left, (0, 0, 0.75)),
        ("the asked number", [cup, far_cup, unsure], two, (1, 1, 1)),
        ("one too few", [cup, dog], two, (0, 0, 0.5)),
    ]


def _golden(tag: str, include: list[dict[str, Any]], **more: Any) -> Prompt:
    return Prompt(id="self-test", text=tag, metadata={"tag": tag, "include": include, **more})

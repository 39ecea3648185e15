"""T2I-CompBench's complex category, 3-in-1: attributes, 2D positions and CLIPScore of what a prompt is about.

Each is the part of its own category, with three differences, as published: the two objects stand around a preposition
(`compbench.complex_pair`), CLIP is asked without the adjectives, and two lists say which prompts leave a part out. Only
parts that a prompt is about are looked at. The score is the mean of their raw numbers, about 0.3 at best for CLIP's.

Source: Karine-Huang/T2I-CompBench 1b70949, `3_in_1_eval`, described from reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from gcpo_bench import catalogue, prompt_sets
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import CorruptDataError

from . import compbench
from .t2i_compbench import (
    Answerer,
    AttributeBenchmark,
    CompBench,
    NonSpatialBenchmark,
    non_spatial,
    own_options,
    prompt_set,
    published_results,
    summarize,
)
from .t2i_compbench_finders import make_finder
from .t2i_compbench_objects import ObjectsBenchmark, parser, require
from .t2i_compbench_tasks import ComplexPosition2D
from .types import Asked, Detection, Image, Judged, Metric, SampleScore

CATEGORY = "complex"
About = Callable[[str], Sequence[str]]
"""Which of `compbench.PARTS` a prompt is about."""


class ComplexBenchmark(CompBench):
    """See `types.PartedBenchmark` and `types.NumberingBenchmark`."""

    name = prompt_set = prompt_set(CATEGORY)
    headline = CATEGORY

    def __init__(
        self,
        attribute: AttributeBenchmark,
        spatial: ObjectsBenchmark,
        clip: NonSpatialBenchmark,
        *,
        about: About,
        read: Callable[[], Sequence[Prompt]],
    ) -> None:
        """
        Args:
            about: which parts a prompt is about.
            read: gives the prompts, and says what is missing on this machine, when they are asked for.
        """
        self.attribute = attribute
        self.spatial = spatial
        self.clip = clip
        self._about = about
        self._read = read

    def prompts(self) -> Sequence[Prompt]:
        """Raises PrerequisiteError where prompts, lists, weights or the table of phrases are not on this machine."""
        prompts = self._read()
        self.settings()
        return prompts

    def notes(self, wanted: Sequence[tuple[Prompt, int]]) -> tuple[str, ...]:
        return self.spatial.notes(wanted)

    # ------------------------------------------------------------ looking

    def look(self) -> dict[str, Any]:
        looks = {"attribute": self.attribute.look(), "spatial": self.spatial.look(), "clip": self.clip.look()}
        labels = (looks[part].get("label") for part in ("spatial", "attribute"))
        return {**looks, "label": "; ".join(label for label in labels if label)}

    def parts(self, look: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        return {part: look[part] for part in compbench.PARTS}

    def asked(self) -> Asked:
        return {option: {"spatial": part} for option, part in self.spatial.asked().items()}

    def recall(self, look: Mapping[str, Any]) -> None:
        self.spatial.recall(look["spatial"])

    def question(self, prompt: Prompt) -> dict[str, Any]:
        """What each part that the prompt is about needs to know."""
        return self._question(prompt, lambda: self.spatial.question(prompt))

    def question_of(self, prompt: Prompt, index: int) -> dict[str, Any]:
        return self._question(prompt, lambda: self.spatial.question_of(prompt, index))

    def _question(self, prompt: Prompt, spatial: Callable[[], Any]) -> dict[str, Any]:
        words = self.attribute.phrases.of(prompt.text).words
        asked: dict[str, Callable[[], Any]] = {
            "attribute": lambda: self.attribute.question(prompt),
            "spatial": spatial,
            "clip": lambda: compbench.without_adjectives(words),
        }
        return {part: asked[part]() for part in self._about(prompt.text)}

    def observe_part(self, part: str, images: Sequence[Image], questions: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
        """What one part sees in each image; None where it is not asked."""
        asked = [(image, each[part]) for image, each in zip(images, questions, strict=True) if part in each]
        seen = iter(self._looked(part, [image for image, _ in asked], [about for _, about in asked]) if asked else ())
        for each in questions:
            yield next(seen) if part in each else None

    def _looked(self, part: str, images: Sequence[Image], questions: Sequence[Any]) -> Iterable[Any]:
        if part == "clip":
            return self.clip.observe_part(self.clip.headline, images, questions)
        return (self.attribute if part == "attribute" else self.spatial).observe(images, questions)

    def unfit(self, prompt: Prompt) -> str:
        """The table must hold the parts of speech, for CLIP's question too."""
        return self.attribute.unfit(prompt) or self.spatial.unfit(prompt)

    def unfit_of(self, prompt: Prompt, index: int) -> str:
        """As `unfit`; without the 2D part, detections of the image are not needed."""
        if "spatial" in self._about(prompt.text):
            return self.unfit(prompt) or self.spatial.unfit_of(prompt, index)
        return self.unfit(prompt)

    # ------------------------------------------------------------ judging

    def settings(self) -> dict[str, Any]:
        return {**self.attribute.settings(), **self.spatial.settings()}

    def judge(self, observation: Mapping[str, Any], prompt: Prompt) -> Judged:
        """The mean of the parts, each part by its own name, and what each has to say.

        Where one part has no value, the mean has none.
        """
        values: dict[str, float] = {}
        reasons: list[str] = []
        detections: tuple[Detection, ...] = ()
        for part in self._about(prompt.text):
            scores, reason, found = self._judged(part, observation[part], prompt)
            if scores:
                (values[part],) = scores.values()
            reasons += [reason] if reason else []
            detections += found
        if len(values) == len(self._about(prompt.text)):
            values[CATEGORY] = compbench.three_in_one(values)
        return values, "\n".join(reasons), detections

    def _judged(self, part: str, seen: Any, prompt: Prompt) -> Judged:
        if part == "clip":
            return self.clip.judge({self.clip.headline: seen}, prompt)
        return (self.attribute if part == "attribute" else self.spatial).judge(seen, prompt)

    def score(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> list[Judged]:
        asked = [self.question(prompt) for prompt in prompts_B]
        seen = [self.observe_part(part, list(images_BYXC), asked) for part in compbench.PARTS]
        return [
            self.judge(dict(zip(compbench.PARTS, row, strict=True)), prompt)
            for *row, prompt in zip(*seen, prompts_B, strict=True)
        ]

    def summarize(self, samples: Sequence[SampleScore]) -> dict[str, Metric]:
        """`overall`, and the mean of each part over the prompts that are about it."""
        found = summarize(samples, CATEGORY, unit="raw")
        for part in compbench.PARTS if found else ():
            about = [sample for sample in samples if part in sample.values]
            found |= {f"part/{part}": metric for metric in summarize(about, part, unit="raw").values()}
        return found

    def export(self, samples: Sequence[SampleScore], prompts: Mapping[str, Prompt]) -> dict[str, str]:
        """Scores as T2I-CompBench's own program writes them."""
        return published_results(CATEGORY, samples, CATEGORY)

    def self_test(self) -> None:
        """Of the arithmetic. Raises CorruptDataError."""
        self.attribute.self_test()
        self.spatial.self_test()
        if compbench.three_in_one({"attribute": 0.75, "spatial": 0.25}) != 0.5:
            raise CorruptDataError("T2I-CompBench's arithmetic is broken: 3-in-1", hint="reinstall gcpo-bench")


def published_about() -> About:
    """Raises PrerequisiteError where T2I-CompBench's two lists are not on this machine."""
    spatial, action = (
        {compbench.complex_key(prompt.text) for prompt in prompt_sets.load(f"t2i-compbench-complex-{kind}")}
        for kind in ("spatial", "action")
    )
    return lambda text: compbench.complex_parts(text, spatial, action)


def complex_prompts(
    world: str = "", *, options: Mapping[str, Any] | None = None, device: str | None = None
) -> ComplexBenchmark:
    """With what is on this machine; `world` is not used. Options: see `t2i_compbench.OPTIONS`.

    Raises ConfigError for an option that cannot be used; what is missing is told by `prompts`.
    """
    given = own_options(CATEGORY, options)
    parse, about = parser(given), cache(published_about)

    def read() -> Sequence[Prompt]:
        require(CATEGORY, given)
        catalogue.require(["blip-vqa", "clip-score-b32"])
        about()
        return prompt_sets.load(prompt_set(CATEGORY))

    def make() -> Answerer:
        from .scorers.blip_vqa import blip_vqa

        return blip_vqa(device=device)

    return ComplexBenchmark(
        AttributeBenchmark(CATEGORY, read=read, parse=parse, make=make),
        ObjectsBenchmark(CATEGORY, ComplexPosition2D(parse), make_finder(CATEGORY, given, device), read),
        non_spatial(device=device),
        about=lambda text: about()(text),
        read=read,
    )

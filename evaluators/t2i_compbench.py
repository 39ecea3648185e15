"""T2I-CompBench(++): attributes with BLIP-VQA, non-spatial relations with CLIPScore, the rest from stored detections.

Each category is a benchmark of its own: 300 prompts, 10 images each, the mean over all images, raw, 0 to 1.

* colour, shape, texture: BLIP-VQA is asked about each noun phrase (`phrases`, `compbench.questions`).
* non-spatial: CLIPScore of ViT-B/32. Published code refuses prompts of more than 77 tokens; none is that long.
* 2D and 3D position, numeracy: the published detector, UniDet, cannot be run here. Detections that it, or another one,
  left in a file are scored with the published arithmetic (`score_detections`); say which detector it was, for scores
  of different detectors are different benchmarks.
* complex: `compbench.three_in_one` of the three.

Source: Karine-Huang/T2I-CompBench 1b70949.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gcpo_bench import prompt_sets
from gcpo_bench.catalogue import require
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.files import read_jsonl

from . import compbench, phrases
from .images import ImageSet
from .layouts import compbench_file, of_compbench_folder
from .metrics import stratified
from .panel import LastingPanelBenchmark, Panel
from .phrases import Phrases
from .scorers.types import Image
from .types import Detection, Judged, Metric, SampleScore

ATTRIBUTES = ("color", "shape", "texture")
IMAGES_PER_PROMPT = 10
VERSION = "1"


def prompt_set(category: str) -> str:
    return f"t2i-compbench-{category}"


def summarize(samples: Sequence[SampleScore], key: str, unit: str = "share") -> dict[str, Metric]:
    """`overall`: the mean over all images with a value, those without counted."""
    scored = [sample for sample in samples if key in sample.values]
    if not scored:
        return {}
    return {"overall": stratified(scored, key, by_prompt=True, unscored=len(samples) - len(scored), unit=unit)}


# ---------------------------------------------------------------- attributes


class Answerer(Protocol):
    """Such as `scorers.blip_vqa.BlipVqa`."""

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def probabilities(self, image: Image, questions: Sequence[str]) -> list[float]: ...


class AttributeBenchmark:
    """Colour, shape or texture. See `types.ObservingBenchmark`."""

    version = VERSION
    headline = "attribute"

    def __init__(
        self,
        category: str,
        *,
        read: Callable[[], Sequence[Prompt]],
        parse: Callable[[], Phrases],
        make: Callable[[], Answerer],
    ) -> None:
        """Prompts, their phrases and the model are each asked for when they are needed."""
        if category not in ATTRIBUTES:
            raise ConfigError(f"{category!r} is no attribute", hint=f"known: {', '.join(ATTRIBUTES)}")
        self.name = self.prompt_set = prompt_set(category)
        self._read = read
        self._parse = parse
        self._make = make

    @cached_property
    def model(self) -> Answerer:
        return self._make()

    @cached_property
    def phrases(self) -> Phrases:
        return self._parse()

    def prompts(self) -> Sequence[Prompt]:
        """Raises PrerequisiteError where prompts or their phrases are not on this machine."""
        prompts = self._read()
        _ = self.phrases
        return prompts

    def problem(self, image_YXC: npt.NDArray[np.uint8]) -> str:
        return ""

    def official_pictures(self, folder: Path, prompts: Sequence[Prompt], images_per_prompt: int) -> ImageSet | None:
        """A folder in T2I-CompBench's layout; None where it is none."""
        return of_compbench_folder(folder, prompts, images_per_prompt)

    def look(self) -> dict[str, Any]:
        return dict(self.model.identity)

    def question(self, prompt: Prompt) -> list[str]:
        return list(compbench.questions(self.phrases.of(prompt.text).phrases))

    def observe(self, image_YXC: npt.NDArray[np.uint8], question: Sequence[str]) -> list[list[Any]]:
        """Question and probability of each."""
        answers = self.model.probabilities(image_YXC, question)
        return [[text, answer] for text, answer in zip(question, answers, strict=True)]

    def unfit(self, prompt: Prompt) -> str:
        return "" if prompt.text in self.phrases.prompts else "its noun phrases are not in the table"

    def settings(self) -> dict[str, Any]:
        return {"noun_phrases": self.phrases.parser}

    def judge(self, observation: Sequence[Sequence[Any]], prompt: Prompt) -> Judged:
        """The product of the answers; the reason lists every question with its answer."""
        answers = [float(probability) for _, probability in observation]
        if not all(map(math.isfinite, answers)):
            return {}, "BLIP-VQA's answer is not a number", ()
        reason = "\n".join(f"{text} yes: {probability:.4f}" for text, probability in observation)
        return {"attribute": compbench.attribute_score(answers)}, reason, ()

    def score(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> list[Judged]:
        return [
            self.judge(self.observe(image_YXC, self.question(prompt)), prompt)
            for image_YXC, prompt in zip(images_BYXC, prompts_B, strict=True)
        ]

    def summarize(self, samples: Sequence[SampleScore]) -> dict[str, Metric]:
        return summarize(samples, "attribute")

    def self_test(self) -> None:
        """Of the arithmetic. Raises CorruptDataError."""
        if compbench.attribute_score([0.5, 0.25]) != 0.125:
            raise CorruptDataError("T2I-CompBench's arithmetic is broken", hint="reinstall gcpo-bench")


def _attribute(category: str, options: Mapping[str, Any] | None, device: str | None) -> AttributeBenchmark:
    given = dict(options or {})
    table = given.pop("noun_phrases", None)
    if given:
        raise ConfigError(f"T2I-CompBench has no option {next(iter(given))!r}", hint="known: noun_phrases")

    def read() -> Sequence[Prompt]:
        require(["blip-vqa"])
        return prompt_sets.load(prompt_set(category))

    def make() -> Answerer:
        from .scorers.blip_vqa import blip_vqa

        return blip_vqa(device=device)

    return AttributeBenchmark(
        category, read=read, parse=lambda: phrases.load(Path(table) if table else None), make=make
    )


def color(
    world: str = "", *, options: Mapping[str, Any] | None = None, device: str | None = None
) -> AttributeBenchmark:
    """With prompts, table and weights on this machine; `world` is not used, option: `noun_phrases`, another table.

    Raises ConfigError for another option; what is missing is told by `prompts`.
    """
    return _attribute("color", options, device)


def shape(
    world: str = "", *, options: Mapping[str, Any] | None = None, device: str | None = None
) -> AttributeBenchmark:
    """As `color`."""
    return _attribute("shape", options, device)


def texture(
    world: str = "", *, options: Mapping[str, Any] | None = None, device: str | None = None
) -> AttributeBenchmark:
    """As `color`."""
    return _attribute("texture", options, device)


# ---------------------------------------------------------------- non-spatial


class NonSpatialBenchmark(LastingPanelBenchmark):
    name = prompt_set = prompt_set("non-spatial")
    version = VERSION

    def __init__(self, panel: Panel, read: Callable[[], Sequence[Prompt]]) -> None:
        """`panel` has one scorer."""
        super().__init__(panel, read)
        (self.headline,) = panel.names

    def official_pictures(self, folder: Path, prompts: Sequence[Prompt], images_per_prompt: int) -> ImageSet | None:
        """A folder in T2I-CompBench's layout; None where it is none."""
        return of_compbench_folder(folder, prompts, images_per_prompt)

    def summarize(self, samples: Sequence[SampleScore]) -> dict[str, Metric]:
        return summarize(samples, self.headline, unit="raw")


def non_spatial(world: str = "", *, device: str | None = None) -> NonSpatialBenchmark:
    """With prompts and weights on this machine; `world` is not used."""
    panel = Panel(["clip-score-b32"], options={"clip-score-b32": {"device": device}})
    return NonSpatialBenchmark(panel, lambda: prompt_sets.load(prompt_set("non-spatial")))


# ---------------------------------------------------------------- from stored detections

FRAME = 479
"""Side of a square picture in UniDet's frame."""


def read_detections(path: Path) -> dict[tuple[str, int], list[Detection]]:
    """(prompt id, image index) -> detections, from JSON lines.

    Each line: `prompt_id`, `image_index`, and lists of the same length `labels`, `confidences`, `boxes` (left, top,
    right, bottom in the detector's frame). Raises CorruptDataError with the number of a line that is anything else.
    """
    found: dict[tuple[str, int], list[Detection]] = {}
    for number, row in enumerate(read_jsonl(path, forgive_torn_tail=False), start=1):
        try:
            key, detections = _detections(row)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise CorruptDataError(
                f"{path}: line {number} is no image's detections: {reason}", hint="mend that line, or leave it out"
            ) from error
        if key in found:
            raise CorruptDataError(f"{path}: line {number} is image {key} again", hint="keep one of the two lines")
        found[key] = detections
    return found


def _detections(row: Mapping[str, Any]) -> tuple[tuple[str, int], list[Detection]]:
    key = row["prompt_id"], row["image_index"]
    if not isinstance(key[0], str) or type(key[1]) is not int:
        raise ValueError("prompt_id is a text and image_index a whole number")
    detections = []
    for label, confidence, box in zip(row["labels"], row["confidences"], row["boxes"], strict=True):
        sides = [float(side) for side in box]
        numbers = [float(confidence), *sides]
        if not isinstance(label, str) or len(sides) != 4 or not all(map(math.isfinite, numbers)):
            raise ValueError("a label is a text, a confidence a number, a box four numbers")
        left, top, right, bottom = sides
        detections.append(Detection(label=label, confidence=numbers[0], box=(left, top, right, bottom)))
    return key, detections


def score_detections(
    category: str,
    prompts: Sequence[Prompt],
    detections: Mapping[tuple[str, int], Sequence[Detection]],
    *,
    images_per_prompt: int = IMAGES_PER_PROMPT,
    found: Phrases | None = None,
    nouns: compbench.Nouns | None = None,
    depths: Callable[[str, int], npt.NDArray[np.floating]] | None = None,
) -> list[SampleScore]:
    """`spatial`, `3d-spatial` or `numeracy` with the published arithmetic, one sample an image wanted.

    Args:
        found: nouns of the prompts, for the two spatial categories.
        nouns: names in singular and plural, for numeracy.
        depths: gives an image's depth map, for 3d-spatial: larger where nearer, 0 to 1, in the detections' frame.
    Raises:
        ConfigError: another category, or what it needs is not given.
    """
    arithmetic = _arithmetic(category, found, nouns, depths)
    samples = []
    for prompt in prompts:
        for index in range(images_per_prompt):
            seen = detections.get((prompt.id, index))
            values, unscored = {}, "no detections of this image are stored"
            if seen is not None:
                try:
                    values, unscored = {category: arithmetic(prompt, index, seen)}, ""
                except (ValueError, CorruptDataError) as error:
                    unscored = str(error)
            samples.append(
                SampleScore(
                    prompt_id=prompt.id,
                    prompt=prompt.text,
                    tag=prompt.tag,
                    image_index=index,
                    image=compbench_file(prompt, index, images_per_prompt),
                    values=values,
                    reason="",
                    detections=tuple(seen or ()),
                    unscored=unscored,
                )
            )
    return samples


Arithmetic = Callable[[Prompt, int, Sequence[Detection]], float]


def _arithmetic(
    category: str,
    found: Phrases | None,
    nouns: compbench.Nouns | None,
    depths: Callable[[str, int], npt.NDArray[np.floating]] | None,
) -> Arithmetic:
    if category == "spatial" and found is not None:
        return lambda prompt, _, seen: compbench.spatial_2d(prompt.text, found.of(prompt.text).nouns, seen)
    if category == "3d-spatial" and found is not None and depths is not None:
        return lambda prompt, index, seen: compbench.spatial_3d(
            prompt.text, found.of(prompt.text).nouns, seen, depths(prompt.id, index)
        )
    if category == "numeracy" and nouns is not None:
        return lambda prompt, _, seen: compbench.numeracy(prompt.text, nouns, seen)
    needs = {"spatial": "found", "3d-spatial": "found and depths", "numeracy": "nouns"}
    if category in needs:
        raise ConfigError(f"{category} cannot be scored without {needs[category]}", hint="see score_detections")
    raise ConfigError(f"{category!r} is not scored from detections", hint=f"known: {', '.join(needs)}")

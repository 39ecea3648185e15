"""T2I-CompBench(++): attributes with BLIP-VQA, non-spatial relations with CLIPScore.

Each category is a benchmark of its own: 300 prompts, 10 images each, the mean over all images, raw, 0 to 1.

* colour, shape, texture: BLIP-VQA is asked about each noun phrase (`phrases`, `compbench.questions`).
* non-spatial: CLIPScore of ViT-B/32. Published code refuses prompts of more than 77 tokens; none is that long.
* 2D and 3D position, numeracy: see `t2i_compbench_objects`; complex: see `t2i_compbench_complex`.

Source: Karine-Huang/T2I-CompBench 1b70949.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gcpo_bench import prompt_sets
from gcpo_bench.catalogue import require
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError

from . import compbench, phrases
from .images import ImageSet
from .layouts import holds_compbench, of_compbench_folder
from .metrics import stratified
from .panel import Panel, PanelBenchmark
from .phrases import Phrases
from .scorers.types import Image, aspect_problem
from .types import Judged, Metric, SampleScore

ATTRIBUTES = ("color", "shape", "texture", "complex")
"""Categories with attributes that BLIP-VQA is asked about; of complex it is one part of three."""
_FINDER = ("detections", "made_by", "model", "box_threshold", "text_threshold", "nms_threshold")
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "color": ("noun_phrases",),
    "shape": ("noun_phrases",),
    "texture": ("noun_phrases",),
    "spatial": ("noun_phrases", *_FINDER),
    "3d-spatial": ("noun_phrases", *_FINDER, "depth_model", "fidelity"),
    "numeracy": _FINDER,
    "non-spatial": ("precision",),
    "complex": ("noun_phrases", *_FINDER),
}
"""Category -> its options, in the order of the published tables.

noun_phrases: another table. detections: a file of detections instead of Grounding DINO; made_by: whose they are
(unidet). model: Grounding DINO `base`, `tiny` or a folder. box_threshold, text_threshold, nms_threshold: see
`grounding.Thresholds`. depth_model: another folder. fidelity: `official`, which reads depth with rows and columns
exchanged, or `fixed`. precision: of CLIP, one of `PRECISIONS`.
"""
PRECISIONS = ("float32", "autocast")
"""The first is the default; `autocast` is half precision on CUDA, nearly as published, and without effect on a CPU."""


def prompt_set(category: str) -> str:
    return f"t2i-compbench-{category}"


def own_options(category: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """A category's options. `spatial.detections` is one of that category only, and the others pass it over.

    So all categories can be called with the same options. Raises ConfigError for one that there is not.
    """
    own = {}
    for key, value in (options or {}).items():
        of, dot, name = key.partition(".")
        if not dot:
            of, name = category, key
        if name not in OPTIONS.get(of, ()):
            known = [*OPTIONS[category], *(f"{each}.{name}" for each in OPTIONS if name in OPTIONS[each])]
            raise ConfigError(
                f"{prompt_set(category)} has no option {key!r}", hint=f"known: {', '.join(known) or 'none'}"
            )
        if of == category:
            own[name] = value
    return own


def summarize(samples: Sequence[SampleScore], key: str, unit: str = "share") -> dict[str, Metric]:
    """`overall`: the mean over all images with a value, those without counted."""
    scored = [sample for sample in samples if key in sample.values]
    if not scored:
        return {}
    return {"overall": stratified(scored, key, by_prompt=True, unscored=len(samples) - len(scored), unit=unit)}


RESULTS: Mapping[str, str] = {
    **dict.fromkeys(("color", "shape", "texture"), "annotation_blip"),
    "spatial": "labels/annotation_obj_detection_2d",
    "3d-spatial": "labels/annotation_obj_detection_3d",
    "numeracy": "annotation_num",
    "non-spatial": "annotation_clip",
    "complex": "annotation_3_in_1",
}
"""Category -> where T2I-CompBench's own programs leave its scores."""


def published_results(category: str, samples: Sequence[SampleScore], key: str) -> dict[str, str]:
    """A category's vqa_result.json; images without a value are not in it.

    Answers of BLIP-VQA are texts of four decimals there, others are numbers.
    """
    images_per_prompt = 1 + max((sample.image_index for sample in samples), default=0)
    rows = []
    for sample in samples:
        if key in sample.values:
            value = sample.values[key]
            answer = f"{value:.4f}" if RESULTS[category] == "annotation_blip" else value
            rows.append(
                {"question_id": int(sample.prompt_id) * images_per_prompt + sample.image_index, "answer": answer}
            )
    return {f"{RESULTS[category]}/vqa_result.json": json.dumps(rows)}


class CompBench:
    """What the categories have in common."""

    version = "1"
    images_per_prompt = 10
    official_layout = "samples/<prompt>_000000.png"

    def problem(self, image_YXC: npt.NDArray[np.uint8]) -> str:
        return aspect_problem(*image_YXC.shape[:2])

    def official_pictures(self, folder: Path, prompts: Sequence[Prompt], images_per_prompt: int) -> ImageSet | None:
        """A folder in T2I-CompBench's layout; None where it is none."""
        return of_compbench_folder(folder, prompts, images_per_prompt)

    def holds(self, folder: Path, prompts: Sequence[Prompt]) -> bool:
        """Whether the folder has images of this category in T2I-CompBench's layout; other names tell none apart."""
        return holds_compbench(folder, prompts)


# ---------------------------------------------------------------- attributes


class Answerer(Protocol):
    """Such as `scorers.blip_vqa.BlipVqa`."""

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def answers(self, images: Sequence[Image], questions: Sequence[Sequence[str]]) -> Iterable[Sequence[float]]: ...


class AttributeBenchmark(CompBench):
    """Colour, shape or texture. See `types.ObservingBenchmark`."""

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
        self._category = category
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

    def look(self) -> dict[str, Any]:
        return dict(self.model.identity)

    def question(self, prompt: Prompt) -> list[str]:
        return list(compbench.questions(self.phrases.of(prompt.text).phrases))

    def observe(self, images: Sequence[Image], questions: Sequence[Sequence[str]]) -> Iterator[list[list[Any]]]:
        """Question and probability of each, for each image."""
        for asked, answers in zip(questions, self.model.answers(images, questions), strict=True):
            yield [[text, answer] for text, answer in zip(asked, answers, strict=True)]

    def unfit(self, prompt: Prompt) -> str:
        return "" if prompt.text in self.phrases else "its noun phrases are not in the table"

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
        seen = self.observe(list(images_BYXC), [self.question(prompt) for prompt in prompts_B])
        return [self.judge(observation, prompt) for observation, prompt in zip(seen, prompts_B, strict=True)]

    def summarize(self, samples: Sequence[SampleScore]) -> dict[str, Metric]:
        return summarize(samples, "attribute")

    def export(self, samples: Sequence[SampleScore], prompts: Mapping[str, Prompt]) -> dict[str, str]:
        """Scores as T2I-CompBench's own program writes them."""
        return published_results(self._category, samples, "attribute")

    def self_test(self) -> None:
        """Of the arithmetic. Raises CorruptDataError."""
        if compbench.attribute_score([0.5, 0.25]) != 0.125:
            raise CorruptDataError("T2I-CompBench's arithmetic is broken", hint="reinstall gcpo-bench")


def _attribute(category: str, options: Mapping[str, Any] | None, device: str | None) -> AttributeBenchmark:
    table = own_options(category, options).get("noun_phrases")

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


class NonSpatialBenchmark(CompBench, PanelBenchmark):
    name = prompt_set = prompt_set("non-spatial")

    def __init__(self, panel: Panel, read: Callable[[], Sequence[Prompt]]) -> None:
        """`panel` has one scorer."""
        super().__init__(panel, read)
        (self.headline,) = panel.names

    def summarize(self, samples: Sequence[SampleScore]) -> dict[str, Metric]:
        return summarize(samples, self.headline, unit="raw")

    def export(self, samples: Sequence[SampleScore], prompts: Mapping[str, Prompt]) -> dict[str, str]:
        """Scores as T2I-CompBench's own program writes them."""
        return published_results("non-spatial", samples, self.headline)


def non_spatial(
    world: str = "", *, options: Mapping[str, Any] | None = None, device: str | None = None
) -> NonSpatialBenchmark:
    """With prompts and weights on this machine; `world` is not used, option: `precision`.

    Raises ConfigError for another option or precision.
    """
    precision = own_options("non-spatial", options).get("precision", PRECISIONS[0])
    if precision not in PRECISIONS:
        raise ConfigError(f"option 'precision' cannot be {precision!r}", hint=f"known: {', '.join(PRECISIONS)}")
    panel = Panel(["clip-score-b32"], options={"clip-score-b32": {"device": device, "precision": precision}})
    return NonSpatialBenchmark(panel, lambda: prompt_sets.load(prompt_set("non-spatial")))

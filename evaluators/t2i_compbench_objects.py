"""T2I-CompBench's 2D and 3D positions and numeracy, judged by which objects are found where.

The published detector, UniDet, cannot be run here. Either of two finds objects; what was looked with says which:

* `Grounded`: Grounding DINO is asked for the names that a prompt holds; for 3D DPT gives the depth.
* `Imported`: detections that another program left in a file (`stored_detections`); with UniDet's, published scores.

The arithmetic is the published one (`compbench`) for both. With UniDet a third of the 2D score cannot be reached,
because nouns are none of its labels; Grounding DINO's labels are the nouns. So scores of the two are not comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gcpo_bench import catalogue, prompt_sets
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, GcpoBenchError, RunError
from gcpo_bench.weights import locate

from . import compbench, grounding, phrases, stored_detections
from .compbench import Nouns
from .grounding import Candidate, Thresholds
from .phrases import Phrases
from .scorers.types import aspect_problem
from .stored_detections import StoredDetections
from .t2i_compbench import CompBench, own_options, prompt_set, published_results, summarize
from .types import Detection, Image, Judged, Metric, SampleScore

OBSERVER = 1
"""Raised when what is seen in an image can change; what was seen before is then looked at again."""
UNIDET = "unidet"
GROUNDING_DINO = "grounding-dino"


@dataclass(frozen=True, slots=True)
class Found:
    """What there is in an image."""

    detections: tuple[Detection, ...]
    """Boxes in the detector's frame."""
    depths: tuple[float, ...]
    """Mean depth of each detection, larger where nearer; NaN where it is not known."""

    def shown(self, size: Sequence[int]) -> tuple[Detection, ...]:
        """The detections in pixels of the picture, which has this height and width."""
        height, width = size
        return tuple(replace(each, box=compbench.from_frame(each.box, height, width)) for each in self.detections)


# ---------------------------------------------------------------- what finds objects


class Finder(Protocol):
    def look(self) -> dict[str, Any]:
        """What finds objects, as JSON. May load weights."""
        ...

    def settings(self) -> dict[str, Any]:
        """What is made of it, as JSON."""
        ...

    def question(self, names: Sequence[str], prompt: Prompt, index: int | None) -> Any:
        """What `observe` needs to know, as JSON, of the `index`-th image of a prompt that holds these names."""
        ...

    def problem(self, prompt: Prompt, index: int) -> str:
        """Why there is nothing to be found in this image; empty where there is."""
        ...

    def observe(self, image_YXC: npt.NDArray[np.uint8], question: Any) -> Any:
        """As JSON, an object; its `size` is height and width of the picture."""
        ...

    def found(self, observation: Any, names: Sequence[str]) -> Found: ...

    def notes(self, prompts: Sequence[Prompt], images_per_prompt: int) -> tuple[str, ...]:
        """What is remarkable about where objects come from, a line each."""
        ...


Eyes = Callable[[npt.NDArray[np.uint8], Sequence[str]], dict[str, list[Any]]]
"""Such as `detectors.compbench.Eyes`."""


class Grounded:
    def __init__(
        self, make: Callable[[], tuple[Eyes, dict[str, Any]]], limits: Thresholds, *, exchanged: bool = True
    ) -> None:
        """
        Args:
            make: loads the networks, when they are needed.
            exchanged: whether depth is read with rows and columns exchanged, as published.
        """
        self._make = make
        self._limits = limits
        self._exchanged = exchanged

    @cached_property
    def _built(self) -> tuple[Eyes, dict[str, Any]]:
        return self._make()

    def look(self) -> dict[str, Any]:
        label = f"objects found by {GROUNDING_DINO}: not comparable with published scores, which are UniDet's"
        return {"observer": OBSERVER, **self._built[1], "label": label}

    def settings(self) -> dict[str, Any]:
        return asdict(self._limits)

    def question(self, names: Sequence[str], prompt: Prompt, index: int | None) -> list[str]:
        return list(dict.fromkeys(names))

    def problem(self, prompt: Prompt, index: int) -> str:
        return ""

    def observe(self, image_YXC: npt.NDArray[np.uint8], question: Sequence[str]) -> dict[str, list[Any]]:
        return self._built[0](image_YXC, question)

    def found(self, observation: Mapping[str, Sequence[Any]], names: Sequence[str]) -> Found:
        rows = zip(observation["boxes"], observation["surest"], observation["least"], strict=True)
        candidates = [
            Candidate(box=(box[0], box[1], box[2], box[3]), surest=tuple(surest), least=tuple(least))
            for box, surest, least in rows
        ]
        kept = grounding.detections(list(dict.fromkeys(names)), candidates, self._limits)
        depths = [_or_nan(pair[not self._exchanged]) for pair in observation.get("depths", ())]
        return Found(tuple(each for _, each in kept), tuple(depths[place] if depths else math.nan for place, _ in kept))

    def notes(self, prompts: Sequence[Prompt], images_per_prompt: int) -> tuple[str, ...]:
        return ()


class Imported:
    def __init__(self, stored: StoredDetections, made_by: str = UNIDET, *, with_depths: bool = False) -> None:
        """`made_by` names the detector in the scores; `with_depths` asks for lines that hold depths."""
        self._stored = stored
        self._made_by = made_by
        self._with_depths = with_depths

    def look(self) -> dict[str, Any]:
        label = f"objects imported, as found by {self._made_by}"
        return {
            "observer": OBSERVER,
            "detector": f"{self._made_by} (imported)",
            "detections_digest": self._stored.digest,
            "label": label,
        }

    def settings(self) -> dict[str, Any]:
        return {}

    def question(self, names: Sequence[str], prompt: Prompt, index: int | None) -> list[Any]:
        if index is None:
            raise ConfigError("imported detections belong to numbered images", hint="use gcpo-bench evaluate")
        return [prompt.id, index]

    def problem(self, prompt: Prompt, index: int) -> str:
        if problem := self._stored.problem((prompt.id, index)):
            return problem
        if self._with_depths and "depths" not in self._stored.rows[prompt.id, index]:
            return "its detections are given without depths"
        return ""

    def observe(self, image_YXC: npt.NDArray[np.uint8], question: Sequence[Any]) -> Mapping[str, Any]:
        return {**self._stored.rows[question[0], question[1]], "size": list(image_YXC.shape[:2])}

    def found(self, observation: Mapping[str, Sequence[Any]], names: Sequence[str]) -> Found:
        rows = zip(observation["labels"], observation["confidences"], observation["boxes"], strict=True)
        return Found(
            tuple(
                Detection(label=label, confidence=confidence, box=(box[0], box[1], box[2], box[3]))
                for label, confidence, box in rows
            ),
            tuple(map(_or_nan, observation.get("depths", [None] * len(observation["labels"])))),
        )

    def notes(self, prompts: Sequence[Prompt], images_per_prompt: int) -> tuple[str, ...]:
        known = {prompt.id for prompt in prompts}
        extra = (
            f"{self._stored.name}: line {line} is {stored_detections.shown(address)}, which is not asked for"
            for address, line in self._stored.lines.items()
            if address[0] not in known or not 0 <= address[1] < images_per_prompt
        )
        return (*self._stored.notes, *extra)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def remembered(finder: Finder, look: Mapping[str, Any]) -> Finder:
    """What judges observations made with `look`, where `finder` is what was asked for.

    Raises RunError where detections from another file are asked for than those that are stored.
    """
    if isinstance(finder, Imported):
        if dict(look) != finder.look():
            raise RunError(
                "what is stored was not seen with these detections",
                hint="leave --rescore out, or name the same file as before",
            )
        return finder
    if "detections_digest" not in look:
        return finder
    made_by = str(look["detector"]).removesuffix(" (imported)")
    nothing = StoredDetections(
        name="", digest=str(look["detections_digest"]), rows={}, lines={}, twice=frozenset(), notes=()
    )
    return Imported(nothing, made_by)


# ---------------------------------------------------------------- what is asked of them


class Task(Protocol):
    @property
    def name(self) -> str:
        """Of the score."""
        ...

    def objects(self, prompt: Prompt) -> tuple[str, ...]:
        """Names to look for. Raises ValueError or a GcpoBenchError where the prompt cannot be judged by."""
        ...

    def score(self, prompt: Prompt, found: Found) -> tuple[float, str]:
        """The published score, and what is not as asked."""
        ...

    def settings(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Position2D:
    parse: Callable[[], Phrases]
    name: str = "spatial"

    def objects(self, prompt: Prompt) -> tuple[str, str]:
        return compbench.pair(self.parse().of(prompt.text).nouns)

    def score(self, prompt: Prompt, found: Found) -> tuple[float, str]:
        objects = self.objects(prompt)
        labels = {each.label for each in found.detections}
        reason = "\n".join(f"{name} is not found" for name in dict.fromkeys(objects) if name not in labels)
        return compbench.spatial_2d(prompt.text, objects, found.detections), reason

    def settings(self) -> dict[str, Any]:
        return {"noun_phrases": self.parse().parser}


@dataclass(frozen=True)
class ComplexPosition2D:
    """The 2D part of the complex category, which finds its objects around a preposition."""

    parse: Callable[[], Phrases]
    name: str = "spatial"

    def _pair(self, prompt: Prompt) -> tuple[str, str] | None:
        words = self.parse().of(prompt.text).words
        if not words:
            raise ValueError("the parts of speech of its words are not in the table of noun phrases")
        return compbench.complex_pair(words)

    def objects(self, prompt: Prompt) -> tuple[str, ...]:
        return self._pair(prompt) or ()

    def score(self, prompt: Prompt, found: Found) -> tuple[float, str]:
        if (objects := self._pair(prompt)) is None:
            return 0.0, "no two objects around a preposition"
        return compbench.spatial_2d(prompt.text, objects, found.detections), ""

    def settings(self) -> dict[str, Any]:
        return {"noun_phrases": self.parse().parser}


@dataclass(frozen=True)
class Position3D:
    parse: Callable[[], Phrases]
    fidelity: str = "official"
    name: str = "3d-spatial"

    def objects(self, prompt: Prompt) -> tuple[str, str]:
        return compbench.pair(self.parse().of(prompt.text).nouns)

    def score(self, prompt: Prompt, found: Found) -> tuple[float, str]:
        objects = self.objects(prompt)
        everything = [each.label for each in found.detections]
        reason = "\n".join(
            f"{name} is not found" for name in dict.fromkeys(objects) if not any(name in label for label in everything)
        )
        return compbench.spatial_3d(prompt.text, objects, found.detections, found.depths), reason

    def settings(self) -> dict[str, Any]:
        return {"noun_phrases": self.parse().parser, "fidelity": self.fidelity}


@dataclass(frozen=True)
class Numeracy:
    nouns: Callable[[], Nouns]
    name: str = "numeracy"

    def objects(self, prompt: Prompt) -> tuple[str, ...]:
        asked = compbench.asked_numbers(prompt.text, self.nouns())
        if not asked:
            raise ValueError("the prompt asks for no number of objects")
        return tuple(name for name, _ in asked)

    def score(self, prompt: Prompt, found: Found) -> tuple[float, str]:
        counted = compbench.counted(prompt.text, self.nouns(), found.detections)
        reason = "\n".join(
            f"{name}: {number} asked, {count} found" for name, number, count in counted if count != number
        )
        return compbench.numeracy(prompt.text, self.nouns(), found.detections), reason

    def settings(self) -> dict[str, Any]:
        return {}


# ---------------------------------------------------------------- the benchmarks


class ObjectsBenchmark(CompBench):
    """2D or 3D positions or numeracy. See `types.ObservingBenchmark` and `types.NumberingBenchmark`."""

    def __init__(self, category: str, task: Task, finder: Finder, read: Callable[[], Sequence[Prompt]]) -> None:
        """`read` gives the prompts, and says what is missing on this machine, when they are asked for."""
        self.name = self.prompt_set = prompt_set(category)
        self._category = category
        self.headline = task.name
        self.task = task
        self.finder = finder
        self._read = read

    def prompts(self) -> Sequence[Prompt]:
        """Raises PrerequisiteError where prompts, weights or a table are not on this machine."""
        prompts = self._read()
        self.settings()
        return prompts

    def problem(self, image_YXC: npt.NDArray[np.uint8]) -> str:
        return aspect_problem(*image_YXC.shape[:2])

    def notes(self, wanted: Sequence[tuple[Prompt, int]]) -> tuple[str, ...]:
        """What is remarkable about imported detections, a line each."""
        return self.finder.notes(self._read(), 1 + max((index for _, index in wanted), default=0))

    # ------------------------------------------------------------ looking

    def look(self) -> dict[str, Any]:
        return self.finder.look()

    def recall(self, look: Mapping[str, Any]) -> None:
        """Judge what was seen with this look. Raises RunError where another one was asked for."""
        self.finder = remembered(self.finder, look)

    def question(self, prompt: Prompt) -> Any:
        return self.finder.question(self.task.objects(prompt), prompt, None)

    def question_of(self, prompt: Prompt, index: int) -> Any:
        """`question` of the `index`-th image of a prompt."""
        return self.finder.question(self.task.objects(prompt), prompt, index)

    def observe(self, images: Sequence[Image], questions: Sequence[Any]) -> Iterator[Any]:
        """What is found in each image, one image at a time."""
        for image_YXC, question in zip(images, questions, strict=True):
            yield self.finder.observe(image_YXC, question)

    def unfit(self, prompt: Prompt) -> str:
        try:
            self.task.objects(prompt)
        except (ValueError, GcpoBenchError) as error:
            return str(error)
        return ""

    def unfit_of(self, prompt: Prompt, index: int) -> str:
        """Why the `index`-th image of a prompt cannot be judged; empty where it can."""
        return self.unfit(prompt) or self.finder.problem(prompt, index)

    # ------------------------------------------------------------ judging

    def settings(self) -> dict[str, Any]:
        return {**self.task.settings(), **self.finder.settings()}

    def judge(self, observation: Mapping[str, Any], prompt: Prompt) -> Judged:
        """The score, what is not as asked, and the objects found."""
        found = self.finder.found(observation, self.task.objects(prompt))
        score, reason = self.task.score(prompt, found)
        return {self.headline: score}, reason, found.shown(observation["size"])

    def score(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> list[Judged]:
        seen = self.observe(list(images_BYXC), [self.question(prompt) for prompt in prompts_B])
        return [self.judge(observation, prompt) for observation, prompt in zip(seen, prompts_B, strict=True)]

    def summarize(self, samples: Sequence[SampleScore]) -> dict[str, Metric]:
        return summarize(samples, self.headline)

    def export(self, samples: Sequence[SampleScore], prompts: Mapping[str, Prompt]) -> dict[str, str]:
        """Scores as T2I-CompBench's own program writes them."""
        return published_results(self._category, samples, self.headline)

    def self_test(self) -> None:
        """Of the arithmetic. Raises CorruptDataError."""
        left = Detection(label="dog", confidence=0.8, box=(0, 0, 100, 100))
        right = Detection(label="cat", confidence=0.6, box=(50, 0, 150, 100))  # a third of both is shared
        found = {
            "2D": (compbench.spatial_2d("a dog on the left of a cat", ("dog", "cat"), [left, right]), 0.35 + 0.15),
            "3D": (compbench.spatial_3d("a dog behind a cat", ("dog", "cat"), [left, right], [0, 1]), 0.35 + 1 / 3),
            "numeracy": (compbench.numeracy("two dogs", Nouns({"dog": "dogs"}), [left]), 0.5),
        }
        if wrong := [name for name, (got, expected) in found.items() if not math.isclose(got, expected)]:
            raise CorruptDataError(
                f"T2I-CompBench's arithmetic is broken: {', '.join(wrong)}", hint="reinstall gcpo-bench"
            )


# ---------------------------------------------------------------- from options

FIDELITIES = ("official", "fixed")


def make_finder(category: str, given: Mapping[str, Any], device: str | None) -> Finder:
    """From a benchmark's options. Raises ConfigError for one that cannot be used."""
    with_depths = category == "3d-spatial"
    fidelity = given.get("fidelity", FIDELITIES[0])
    if fidelity not in FIDELITIES:
        raise ConfigError(f"unknown fidelity {fidelity!r}", hint=f"known: {', '.join(FIDELITIES)}")
    if "detections" in given:
        useless = sorted(set(given) & {"model", "depth_model", "box_threshold", "text_threshold", "nms_threshold"})
        if useless or fidelity != FIDELITIES[0]:
            what = useless[0] if useless else "fidelity"
            raise ConfigError(
                f"option {what!r} has no effect on detections from a file", hint=f"leave out {what} or detections"
            )
        stored = stored_detections.read(Path(given["detections"]))
        return Imported(stored, given.get("made_by", UNIDET), with_depths=with_depths)
    if "made_by" in given:
        raise ConfigError("option 'made_by' goes with detections", hint="--option detections=FILE")
    limits = grounding.thresholds({name: given[name] for name in asdict(Thresholds()) if name in given})

    def make() -> tuple[Eyes, dict[str, Any]]:
        from .detectors.compbench import build

        return build(model_folder(given), depth=depth_folder(given) if with_depths else None, device=device)

    return Grounded(make, limits, exchanged=fidelity == FIDELITIES[0])


def model_folder(given: Mapping[str, Any]) -> Path:
    name = str(given.get("model", "base"))
    return locate(catalogue.GROUNDING_DINO[name]) if name in catalogue.GROUNDING_DINO else Path(name)


def depth_folder(given: Mapping[str, Any]) -> Path:
    return Path(given["depth_model"]) if "depth_model" in given else locate(catalogue.COMPBENCH_DEPTH)


def require(category: str, given: Mapping[str, Any]) -> None:
    """Raises PrerequisiteError that names the weights that are missing, of those that the options leave to be used."""
    if not given.keys() & {"detections", "model", "depth_model"}:
        catalogue.require([prompt_set(category)])
    elif "detections" not in given:
        model_folder(given)
        if category == "3d-spatial":
            depth_folder(given)


def parser(given: Mapping[str, Any]) -> Callable[[], Phrases]:
    """Reads the table of noun phrases once, when it is needed."""
    table = given.get("noun_phrases")
    return cache(lambda: phrases.load(Path(table) if table else None))


def published_nouns() -> Nouns:
    """Raises PrerequisiteError where the list is not on this machine."""
    return compbench.read_nouns("\n".join(row.text for row in prompt_sets.load("t2i-compbench-objects")))


def _benchmark(category: str, options: Mapping[str, Any] | None, device: str | None) -> ObjectsBenchmark:
    given = own_options(category, options)
    finder = make_finder(category, given, device)
    nouns = cache(published_nouns)

    def read() -> Sequence[Prompt]:
        require(category, given)
        if category == "numeracy":
            nouns()
        return prompt_sets.load(prompt_set(category))

    task: Task
    if category == "numeracy":
        task = Numeracy(nouns)
    elif category == "3d-spatial":
        task = Position3D(parser(given), given.get("fidelity", FIDELITIES[0]))
    else:
        task = Position2D(parser(given))
    return ObjectsBenchmark(category, task, finder, read)


def spatial(
    world: str = "", *, options: Mapping[str, Any] | None = None, device: str | None = None
) -> ObjectsBenchmark:
    """2D positions; `world` is not used. Options: see `t2i_compbench.OPTIONS`.

    Raises ConfigError for an option that cannot be used; what is missing is told by `prompts`.
    """
    return _benchmark("spatial", options, device)


def spatial_3d(
    world: str = "", *, options: Mapping[str, Any] | None = None, device: str | None = None
) -> ObjectsBenchmark:
    """3D positions; as `spatial`."""
    return _benchmark("3d-spatial", options, device)


def numeracy(
    world: str = "", *, options: Mapping[str, Any] | None = None, device: str | None = None
) -> ObjectsBenchmark:
    """Numbers of objects; as `spatial`."""
    return _benchmark("numeracy", options, device)

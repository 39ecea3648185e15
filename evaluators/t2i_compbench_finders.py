"""What finds the objects that T2I-CompBench's 2D and 3D positions and numeracy are judged by.

The published detector, UniDet, cannot be run here. Either of two finds objects; what was looked with says which:

* `Grounded`: Grounding DINO is asked for the names that a prompt holds; for 3D DPT gives the depth.
* `Imported`: detections that another program left in a file (`stored_detections`); with UniDet's, published scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from gcpo_bench import catalogue
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, RunError
from gcpo_bench.weights import locate, model_digest

from . import compbench, grounding, stored_detections
from .grounding import Candidate, Thresholds
from .stored_detections import StoredDetections
from .types import ANY, Asked, Detection, Image

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


class Finder(Protocol):
    def look(self) -> dict[str, Any]:
        """What finds objects, as JSON. May load weights."""
        ...

    def asked(self) -> Asked:
        """What was given that changes `look`. Loads nothing."""
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

    def observe(self, images: Sequence[Image], questions: Sequence[Any]) -> Iterable[Any]:
        """Of each image, as JSON, an object; its `size` is height and width of the picture."""
        ...

    def found(self, observation: Any, names: Sequence[str]) -> Found: ...

    def notes(self, prompts: Sequence[Prompt], images_per_prompt: int) -> tuple[str, ...]:
        """What is remarkable about where objects come from, a line each."""
        ...


Eyes = Callable[[Sequence[Image], Sequence[Sequence[str]]], Iterable[dict[str, list[Any]]]]
"""Such as `detectors.compbench.Eyes`."""


class Grounded:
    def __init__(
        self,
        make: Callable[[], tuple[Eyes, dict[str, Any]]],
        limits: Thresholds,
        *,
        exchanged: bool = True,
        asked: Callable[[], Asked] = dict,
    ) -> None:
        """
        Args:
            make: loads the networks, when they are needed.
            exchanged: whether depth is read with rows and columns exchanged, as published.
            asked: what was given that changes what is seen.
        """
        self._asked = asked
        self._make = make
        self._limits = limits
        self._exchanged = exchanged

    @cached_property
    def _built(self) -> tuple[Eyes, dict[str, Any]]:
        return self._make()

    def look(self) -> dict[str, Any]:
        label = f"objects found by {GROUNDING_DINO}: not comparable with published scores, which are UniDet's"
        return {"observer": OBSERVER, **self._built[1], "label": label}

    def asked(self) -> Asked:
        return self._asked()

    def settings(self) -> dict[str, Any]:
        return asdict(self._limits)

    def question(self, names: Sequence[str], prompt: Prompt, index: int | None) -> list[str]:
        return list(dict.fromkeys(names))

    def problem(self, prompt: Prompt, index: int) -> str:
        return ""

    def observe(self, images: Sequence[Image], questions: Sequence[Sequence[str]]) -> Iterable[dict[str, list[Any]]]:
        return self._built[0](images, questions)

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

    def asked(self) -> Asked:
        return {}  # `remembered` compares it all

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

    def observe(self, images: Sequence[Image], questions: Sequence[Sequence[Any]]) -> Iterator[Mapping[str, Any]]:
        for image_YXC, (prompt_id, index) in zip(images, questions, strict=True):
            yield {**self._stored.rows[prompt_id, index], "size": list(image_YXC.shape[:2])}

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

        depth = depth_folder(given) if with_depths else None
        eyes, origin = build(model_folder(given), depth=depth, device=device)
        return eyes, {**origin, "model": _known_model(given) or "other"}

    return Grounded(make, limits, exchanged=fidelity == FIDELITIES[0], asked=lambda: _asked(given))


def _asked(given: Mapping[str, Any]) -> Asked:
    """Raises ConfigError where a folder of weights was given that is none."""
    judged = (*asdict(Thresholds()), "fidelity")  # which detections from a file are not
    asked: dict[str, dict[str, Any]] = {
        f"{name}={given[name]}": {"detector": GROUNDING_DINO} for name in judged if name in given
    }
    if "model" in given:
        name = _known_model(given)
        digest = ANY if name else model_digest(Path(given["model"]))
        asked[f"model={given['model']}"] = {"model": name or ANY, "detector_digest": digest}
    if "depth_model" in given:
        asked[f"depth_model={given['depth_model']}"] = {"depth_digest": model_digest(Path(given["depth_model"]))}
    return asked


def _known_model(given: Mapping[str, Any]) -> str:
    """Name of the published weights that are asked for; empty where it is a folder."""
    name = str(given.get("model", "base"))
    return name if name in catalogue.GROUNDING_DINO else ""


def model_folder(given: Mapping[str, Any]) -> Path:
    name = _known_model(given)
    return locate(catalogue.GROUNDING_DINO[name]) if name else Path(given["model"])


def depth_folder(given: Mapping[str, Any]) -> Path:
    return Path(given["depth_model"]) if "depth_model" in given else locate(catalogue.COMPBENCH_DEPTH)

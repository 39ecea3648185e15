"""What T2I-CompBench asks of the objects found in an image: that they are there, where, how near, and how many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from gcpo_bench.datasets import Prompt

from . import compbench
from .compbench import Nouns
from .phrases import Phrases
from .t2i_compbench_finders import Found


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

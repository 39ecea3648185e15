"""What an open-vocabulary detector sees of the objects it was asked for, made into detections.

Such a detector says of each box how well it fits each word of the question. Here a box is one object: the one with the
surest word, among those whose words all pass a threshold. Its label is the object's name as it was asked, so labels can
be compared by equality.

The first two thresholds are those of Grounding DINO's own demonstration (IDEA-Research/GroundingDINO). That labels a
box with whatever words pass the second one, be they half a name or two, and suppresses no boxes. Here boxes of one
label that overlap by more than `nms_threshold` are one object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from gcpo_bench.errors import ConfigError

from .compbench import Box, overlap
from .types import Detection

FLOOR = 0.1
"""Boxes that no word fits better are not kept, and no box threshold may be set lower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One box, and how well the words of each object asked for fit it."""

    box: Box
    surest: tuple[float, ...]
    """Probability of each object's surest word."""
    least: tuple[float, ...]
    """Probability of each object's least sure word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    box_threshold: float = 0.35
    """The surest word of an object must be more probable."""
    text_threshold: float = 0.25
    """Every word of an object must be more probable."""
    nms_threshold: float = 0.8
    """Of boxes of one label that overlap by more, the surest is kept; 1 keeps all."""

    def __post_init__(self) -> None:
        for field in fields(self):
            low = FLOOR if field.name == "box_threshold" else 0.0
            if not low <= getattr(self, field.name) <= 1:
                raise ConfigError(
                    f"{field.name} is {getattr(self, field.name)}", hint=f"use a number from {low:g} to 1"
                )


def thresholds(given: Mapping[str, Any]) -> Thresholds:
    """From texts or numbers by name. Raises ConfigError for what is no number or out of range."""
    try:
        return Thresholds(**{name: float(value) for name, value in given.items()})
    except ValueError as error:
        raise ConfigError(f"a threshold is no number: {error}", hint="--option box_threshold=0.4") from error


def detections(
    names: Sequence[str], candidates: Sequence[Candidate], limits: Thresholds
) -> list[tuple[int, Detection]]:
    """Which candidates are an object, by falling confidence, and what they are; each with its place in `candidates`."""
    found = []
    for place, each in enumerate(candidates):
        fits = [
            (surest, name)
            for name, surest, least in zip(names, each.surest, each.least, strict=True)
            if surest > limits.box_threshold and least > limits.text_threshold
        ]
        if fits:
            confidence, label = max(fits, key=lambda fit: fit[0])  # of equals the one asked for first
            found.append((place, Detection(label=label, confidence=confidence, box=each.box)))
    found.sort(key=lambda item: -item[1].confidence)
    kept: list[tuple[int, Detection]] = []
    for place, new in found:
        alike = (other for _, other in kept if other.label == new.label)
        if not any(overlap(other.box, new.box) > limits.nms_threshold for other in alike):
            kept.append((place, new))
    return kept

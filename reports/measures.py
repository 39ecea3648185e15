"""What a number of a benchmark means: scale, direction, how it is averaged, how it is written.

An evaluation says so in its `scores.json`: `headline` names the value of an image that the overall score is the mean
of, `panel` the values that stand beside it with equal right, and each metric has `unit`, `higher_is_better` and
`by_prompt`. Files hold raw numbers; a unit says how they are shown:

| unit | shown |
|---|---|
| `share` | points of a hundred, one decimal |
| `per image` | as it is, two decimals; a count, never below 0 |
| `xN`, `/N` | times N, divided by N |
| anything else, as `raw` | as it is |

Where a unit fixes no decimals, the last one is about a hundredth of the spread between prompts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .statistics import Interval
from .tables import interval_text, number, plain

RIGHT = "correct"
"""The value of an image that is right or wrong, and what a benchmark's score is the mean of if it names nothing."""
COUNTS = frozenset({"extra_objects", "unknown_blobs"})
"""Counts of an image, where scores.json does not say so."""
MARGIN = 0.02
"""Differences of a share below two points count as none, where it can be shown that they are."""
WORTH_KNOWING = 0.01
"""A difference of one point: below it, "what would it take" is answered for one point."""
SCALED = re.compile(r"([x/])([0-9]+(?:\.[0-9]+)?)")
MOST_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One value of the images of a benchmark."""

    name: str
    """In samples.jsonl."""
    unit: str = "share"
    higher_is_better: bool = True
    by_prompt: bool = False
    """The mean is over prompts that weigh alike; else over tasks that do."""
    digits: int = 1
    """Decimals of a shown number."""

    @property
    def is_share(self) -> bool:
        return self.unit == "share"

    @property
    def is_verdict(self) -> bool:
        """Whether an image is right or wrong, rather than better or worse."""
        return self.name == RIGHT

    @property
    def factor(self) -> float:
        """Shown number = factor x number in the files."""
        if self.is_share:
            return 100.0
        match = SCALED.fullmatch(self.unit)
        scale = float(match[2]) if match else 0.0
        if match is None or not 1e-9 <= scale <= 1e9:  # no scale that anybody reads
            return 1.0
        return scale if match[1] == "x" else 1 / scale

    @property
    def bounds(self) -> tuple[float, float]:
        """What no mean can be beyond."""
        if self.is_share:
            return 0.0, 1.0
        return (0.0 if self.unit == "per image" else -math.inf), math.inf

    @property
    def margin(self) -> float | None:
        """What counts as no difference; None: that is not defined on this scale."""
        return MARGIN if self.is_share else None

    @property
    def worth_knowing(self) -> float:
        """The smallest difference that somebody would ask about."""
        return WORTH_KNOWING if self.is_share else 0.0

    @property
    def points(self) -> str:
        """What follows a number in a sentence; scores on scales of their own have no word."""
        return " points" if self.is_share else ""

    @property
    def label(self) -> str:
        """Name and scale: "hps-v2.1 x100"; what is shown as it is, and points, need no scale."""
        name = plain(self.name.replace("_", " "), 60)
        return f"{name} {self.unit}" if SCALED.fullmatch(self.unit) else name

    def text(self, value: float, *, signed: bool = False) -> str:
        return number(self.factor * value, self.digits, signed=signed)

    def interval(self, interval: Interval, *, signed: bool = False) -> str:
        """`12.3 [10.1, 14.5]`, as shown."""
        return interval_text(interval, scale=self.factor, digits=self.digits, signed=signed)


def measures(record: Mapping[str, Any], spreads: Mapping[str, float]) -> dict[str, Measure]:
    """Value -> what it means.

    Args:
        record: a scores.json. Where it says nothing of a value: a share, or a raw score where the headline is none.
        spreads: value -> standard deviation between prompts, for each value that the images have.
    Raises:
        TypeError, ValueError, AttributeError: it is no such record.
    """
    headline, metrics = headline_of(record), record.get("metrics", {})
    found = {}
    for name, spread in spreads.items():
        fields = metrics.get("overall" if name == headline else name)
        if fields is None:
            unit = "per image" if name in COUNTS else "share" if headline == RIGHT else "raw"
            fields = {"unit": unit, "higher_is_better": name not in COUNTS}
        measure = Measure(
            name=name,
            unit=str(fields.get("unit", "share")),
            higher_is_better=bool(fields.get("higher_is_better", True)),
            by_prompt=bool(fields.get("by_prompt", False)),
        )
        found[name] = with_digits(measure, spread)
    return found


def with_digits(measure: Measure, spread: float) -> Measure:
    digits = 1 if measure.is_share else 2
    if not measure.is_share and measure.unit != "per image" and 0 < spread < math.inf:
        magnitude = math.log10(measure.factor) + math.log10(spread)  # their product may be too small for a float
        digits = min(max(round(2 - magnitude), 0), MOST_DIGITS)
    return replace(measure, digits=digits)


def headline_of(record: Mapping[str, Any]) -> str:
    return str(record.get("headline") or RIGHT)


def panel_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The values that are compared; the headline is the first. Raises TypeError where it is no list of names."""
    panel = record.get("panel") or []
    if not isinstance(panel, list) or not all(isinstance(name, str) for name in panel):
        raise TypeError("panel is no list of names")
    headline = headline_of(record)
    return (headline, *(name for name in panel if name != headline))


def spread(values: Iterable[float]) -> float:
    """Standard deviation; 0 where there are too few to have one."""
    known = np.asarray([value for value in values if math.isfinite(value)], dtype=np.float64)
    return float(known.std(ddof=1)) if len(known) > 1 else 0.0

"""Display scales: how published tables print a raw score. Files hold raw scores; a scale is for showing them.

| scorer | raw | elsewhere |
|---|---|---|
| hps-v2.0, hps-v2.1 | cosine | `x100` in every HPS table |
| clip-score | cosine | `x100` in torchmetrics, whose mean is cut off at 0 |
| pickscore | exp(logit_scale) * cosine | `/26` in Flow-GRPO and DiffusionNFT, `/100` in the GCPO reward |
| deqa, unified-reward | 1 to 5 | `/5` in Flow-GRPO |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gcpo_bench.errors import ConfigError, did_you_mean

from ..types import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    factor: float = 1.0
    floor: float | None = None
    """Smaller displayed values are raised to it."""

    def __call__(self, raw: float) -> float:
        value = self.factor * raw
        return value if self.floor is None else max(self.floor, value)


RAW = Scale()
_HPS = {"raw": RAW, "x100": Scale(factor=100)}
_FIFTHS = {"raw": RAW, "/5": Scale(factor=1 / 5)}
_CLIP = {"raw": RAW, "x100": Scale(factor=100, floor=0)}

SCALES: Mapping[str, Mapping[str, Scale]] = {
    "hps-v2.0": _HPS,
    "hps-v2.1": _HPS,
    "hpsv2-package-v2.0": _HPS,
    "hpsv2-package-v2.1": _HPS,
    "clip-score": _CLIP,
    "clip-score-tensor": _CLIP,
    "clip-score-b32": _CLIP,
    "pickscore": {"raw": RAW, "/26": Scale(factor=1 / 26), "/100": Scale(factor=1 / 100)},
    "deqa": _FIFTHS,
    "unified-reward": _FIFTHS,
}
"""Scorers that are printed in one way only are left out."""


def scale(scorer: str, name: str) -> Scale:
    """Raises ConfigError for a scale that this scorer is not printed in."""
    known = SCALES.get(scorer, {"raw": RAW})
    if name not in known:
        raise ConfigError(f"{scorer} has no display scale {name!r}", hint=did_you_mean(name, known))
    return known[name]


def displayed(metric: Metric, display: Scale) -> Metric:
    """The metric as a table prints it."""
    return replace(metric, value=display(metric.value), stderr=display.factor * metric.stderr)

"""Which tokens are trained on: each criterion a small callable, combined in the order they are listed.

A selector is a frozen dataclass, called as `selector(signals, taken_BT) -> bool BT`. It is deterministic: among equal
scores the lower raster index wins, and `Random` reads the noise it is given.
Dimensions: B rows, H x W grid, T = H*W tokens in raster order.

Source: GCPO (arXiv 2509.22485) and its released code. Departures from the paper, as released:
1. `select` with overlap "exclude" lets each selector choose among the tokens that the ones before it left, so three
   sets of 10 % are always 30 %; with "allow" it is the paper's union.
2. `Structural` may be limited to a window of the raster.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gcpo_bench.config import SelectionConfig, SelectorConfig
from gcpo_bench.errors import ConfigError, TrainingError
from gcpo_bench.registry import SELECTORS

from .metrics import numbered
from .signals import entropy_gradient
from .types import Selection, Selector, TokenSignals


def floor_share(share: float, num_tokens: int) -> int:
    """floor(share * num_tokens), where a product such as 0.29 * 100 = 28.999999999999996 counts as the 29 it means."""
    return math.floor(share * num_tokens + 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class All:
    """Every token that is free. Takes no ratio."""

    def __call__(self, signals: TokenSignals, taken_BT: Tensor) -> Tensor:
        return ~taken_BT


@dataclass(frozen=True, slots=True, kw_only=True)
class Initial:
    """The first floor(ratio * T) free tokens in raster order."""

    ratio: float

    def __post_init__(self) -> None:
        _require_ratio(self.ratio)

    def __call__(self, signals: TokenSignals, taken_BT: Tensor) -> Tensor:
        index_BT = torch.arange(taken_BT.shape[1], dtype=torch.float32, device=taken_BT.device).expand(taken_BT.shape)
        return _lowest("initial", index_BT, taken_BT, _count(self.ratio, signals.grid))


@dataclass(frozen=True, slots=True, kw_only=True)
class Structural:
    """The floor(ratio * T) free tokens of each image where smoothed entropy changes most steeply.

    Only the `window` (lo, hi) of the raster is looked at: positions [floor(lo*T), floor(lo*T) + floor((hi-lo)*T)).
    The released code has (0.1, 0.9): [57, 517) of 576 and [25, 229) of 256 tokens.
    """

    ratio: float
    window: Sequence[float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        _require_ratio(self.ratio)
        if len(self.window) != 2 or not 0 <= self.window[0] < self.window[1] <= 1:
            raise ValueError(f"window is {self.window}, expected [lo, hi] with 0 <= lo < hi <= 1")

    def __call__(self, signals: TokenSignals, taken_BT: Tensor) -> Tensor:
        num_tokens = taken_BT.shape[1]
        low, high = self.window
        start = floor_share(low, num_tokens)
        end = start + floor_share(high - low, num_tokens)
        index_T = torch.arange(num_tokens, device=taken_BT.device)
        barred_BT = taken_BT | (index_T < start) | (index_T >= end)
        steepness_BT = entropy_gradient(signals.entropy_BT, signals.grid)
        return _lowest("structural", -steepness_BT, barred_BT, _count(self.ratio, signals.grid))


@dataclass(frozen=True, slots=True, kw_only=True)
class Diverse:
    """The floor(ratio * T) free tokens of each image where the images of its group are least alike."""

    ratio: float

    def __post_init__(self) -> None:
        _require_ratio(self.ratio)

    def __call__(self, signals: TokenSignals, taken_BT: Tensor) -> Tensor:
        return _lowest("diverse", signals.similarity_BT, taken_BT, _count(self.ratio, signals.grid))


@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    """sets * floor(ratio * T) free tokens at random; `sets=3` takes as many as three critical sets."""

    ratio: float
    sets: int = 1

    def __post_init__(self) -> None:
        _require_ratio(self.ratio, self.sets)

    def __call__(self, signals: TokenSignals, taken_BT: Tensor) -> Tensor:
        return _lowest("random", signals.noise_BT, taken_BT, _count(self.ratio, signals.grid, self.sets))


@dataclass(frozen=True, slots=True, kw_only=True)
class TopEntropy:
    """The sets * floor(ratio * T) free tokens of highest entropy."""

    ratio: float
    sets: int = 1

    def __post_init__(self) -> None:
        _require_ratio(self.ratio, self.sets)

    def __call__(self, signals: TokenSignals, taken_BT: Tensor) -> Tensor:
        return _lowest("top-entropy", -signals.entropy_BT, taken_BT, _count(self.ratio, signals.grid, self.sets))


@dataclass(frozen=True, slots=True, kw_only=True)
class LowEntropy:
    """The sets * floor(ratio * T) free tokens of lowest entropy."""

    ratio: float
    sets: int = 1

    def __post_init__(self) -> None:
        _require_ratio(self.ratio, self.sets)

    def __call__(self, signals: TokenSignals, taken_BT: Tensor) -> Tensor:
        return _lowest("low-entropy", signals.entropy_BT, taken_BT, _count(self.ratio, signals.grid, self.sets))


@dataclass(frozen=True, slots=True, kw_only=True)
class LowConfidence:
    """Free tokens less probable than the arithmetic mean probability of their image's tokens. Takes no ratio.

    Source: ConfPO (Yoon et al., ICML 2025, arXiv 2506.08712), whose released trainer compares the log-probability
    with the log of that mean.
    """

    def __call__(self, signals: TokenSignals, taken_BT: Tensor) -> Tensor:
        # dividing by the image's largest probability changes no comparison, cannot underflow everywhere, and makes
        # equal probabilities exactly 1, so that rounding of the mean chooses none of them
        relative_BT = (signals.logprobs_BT - signals.logprobs_BT.amax(dim=1, keepdim=True)).exp()
        return (relative_BT < relative_BT.mean(dim=1, keepdim=True)) & ~taken_BT


def build_selectors(config: SelectionConfig) -> list[tuple[str, Selector]]:
    """The configured selectors in order, their names `numbered`.

    Raises:
        ConfigError: an unknown name, or a ratio or option that the selector refuses.
    """
    names = numbered([item.name for item in config.selectors])
    return [(name, _build(item)) for name, item in zip(names, config.selectors, strict=True)]


def _build(item: SelectorConfig) -> Selector:
    ratio = {} if item.ratio is None else {"ratio": item.ratio}
    try:
        selector: Selector = SELECTORS.make(item.name, **ratio, **item.options)
    except (TypeError, ValueError) as error:
        takes = ", ".join(inspect.signature(SELECTORS.load(item.name)).parameters) or "no ratio and no options"
        raise ConfigError(f"selector {item.name!r}: {error}", hint=f"{item.name} takes {takes}") from error
    return selector


def select(
    selectors: Sequence[tuple[str, Selector]],
    signals: TokenSignals,
    overlap: Literal["exclude", "allow"],
    complement: bool,
) -> Selection:
    """Union of what the selectors choose, or everything else where `complement` is asked for.

    Raises:
        ConfigError: a selector that cannot take its share of this grid.
        TrainingError: not one token selected in the whole batch.
    """
    nothing_BT = torch.zeros_like(signals.entropy_BT, dtype=torch.bool)
    chosen_BT = nothing_BT
    subsets: dict[str, Tensor] = {}
    for name, selector in selectors:
        try:
            subsets[name] = selector(signals, chosen_BT if overlap == "exclude" else nothing_BT)
        except ValueError as error:
            raise ConfigError(f"selector {name!r}: {error}", hint="change its ratio or options") from error
        chosen_BT = chosen_BT | subsets[name]
    selected_BT = ~chosen_BT if complement else chosen_BT
    if not selected_BT.any():
        how = "the complement of " if complement else ""
        raise TrainingError(
            f"{how}{', '.join(subsets)} selects no token at all",
            hint="change selection.selectors, their ratios or selection.complement",
        )
    return Selection(selected_BT=selected_BT, subsets=subsets)


def _require_ratio(ratio: float | None, sets: int = 1) -> None:
    if ratio is None or not 0 < ratio <= 1:  # a comparison with NaN is False, so NaN is refused too
        raise ValueError(f"ratio is {ratio}, expected a share of the tokens in (0, 1]; floor(ratio * T) must be >= 1")
    if not isinstance(sets, int) or sets < 1:
        raise ValueError(f"sets is {sets}, expected a whole number >= 1")


def _count(ratio: float, grid: tuple[int, int], sets: int = 1) -> int:
    """Tokens to take: sets * floor(ratio * T)."""
    height, width = grid
    share = floor_share(ratio, height * width)
    if share < 1:
        raise ValueError(
            f"ratio {ratio} of a {height}x{width} grid is less than one token: "
            f"floor(ratio * {height * width}) must be >= 1"
        )
    return sets * share


def _lowest(name: str, score_BT: Tensor, barred_BT: Tensor, count: int) -> Tensor:
    """bool BT: in each row the `count` lowest scores that are not barred; among equals the lower index."""
    if not score_BT.isfinite().all():
        raise TrainingError(
            f"{name}: its scores are not all finite, so they rank nothing",
            hint="the policy has diverged: lower optimizer.learning_rate or raise loss.beta",
        )
    free = int((~barred_BT).sum(dim=1).min())
    if free < count:
        raise ValueError(
            f"{name} takes {count} tokens an image, but only {free} of {barred_BT.shape[1]} are free; lower its ratio"
        )
    order_BT = score_BT.masked_fill(barred_BT, torch.inf).argsort(dim=1, stable=True)
    return torch.zeros_like(barred_BT).scatter(1, order_BT[:, :count], True)

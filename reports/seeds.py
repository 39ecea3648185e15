"""How much a score varies with the training seed, as the variants of a grid show it together.

Two or three seeds of one pair of variants say next to nothing about that: their t distribution has one or two degrees
of freedom. But all variants of a grid are trained on the same seeds, so their seed variances are lent to each other:

* The seed's common effect is taken out, as in a randomised block design; the residual mean square of R variants and S
  seeds is the variance of one variant's score, with (R - 1)(S - 1) degrees of freedom.
* Variants may truly differ in how much their seeds vary. Each one's own variance is therefore *moderated*, not replaced
  (Smyth 2004, limma): it counts as S - 1 degrees of freedom beside d0 of the pooled one; d0 is estimated from how much
  more the variants' variances differ than by chance, and infinite if they do not. Unlike limma's, the prior's centre is
  the pooled mean square: ten variants are too few to fit one on the scale of logarithms.

benchmarks/error_rates.py compares this with each pair alone, with pooling alone and with limma's own fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedVariance:
    """Variance of one seed's difference, over all variants; numbers, or arrays of one shape for many grids at once."""

    parts: tuple[tuple[Floats, float], ...]
    """What it is the sum of: (variance, degrees of freedom)."""
    prior_df: Floats
    """d0: what the variance counts beside a variant's own; infinite where all variants seem to vary alike."""
    variants: int


def seed_variance(scores_RS: Floats, *, paired: bool) -> SeedVariance:
    """Of R variants' scores under the same S seeds.

    Args:
        scores_RS: (..., R, S), R >= 2 and S >= 2.
        paired: of the difference of two variants, so that what a seed does to all of them cancels out; else of a
            variant's score itself, as it stands against something that was not trained.
    """
    variants, seeds = scores_RS.shape[-2:]
    if variants < 2 or seeds < 2:
        raise ValueError(f"{variants} variants and {seeds} seeds are too few to see how much seeds vary")
    effects_S = scores_RS.mean(axis=-2, keepdims=True)
    rest_RS = scores_RS - scores_RS.mean(axis=-1, keepdims=True) - effects_S + effects_S.mean(axis=-1, keepdims=True)
    squares_R = np.square(rest_RS).sum(axis=-1)
    df = (variants - 1.0) * (seeds - 1)
    own = squares_R.sum(axis=-1) / df
    if paired:
        parts: tuple[tuple[Floats, float], ...] = ((2 * own, df),)
    else:
        common = effects_S[..., 0, :].var(axis=-1, ddof=1)
        parts = ((own * (1 - 1 / variants), df), (common, seeds - 1.0))
    return SeedVariance(parts=parts, prior_df=prior_df(squares_R, seeds - 1.0), variants=variants)


def moderated(
    own: Floats | float, df: float, peers: SeedVariance | None
) -> list[tuple[Floats | float, Floats | float]]:
    """A pair's own variance of `df` degrees of freedom, moderated by that of all variants, as (variance, df)."""
    if peers is None:
        return [(own, df)]
    pooled = sum(variance for variance, _ in peers.parts)
    weight = 1 / (1 + df / peers.prior_df)  # d0 / (d0 + df), 1 where d0 is infinite
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(pooled > 0, weight + (1 - weight) * own / pooled, 0.0)
    return [(variance * scale, np.minimum(part_df, peers.prior_df + df)) for variance, part_df in peers.parts]


def prior_df(squares_R: Floats, df: float) -> Floats:
    """d0 by Smyth's moments: the variance of log mean squares is trigamma(df / 2) + trigamma(d0 / 2)."""
    # a variance of 0 by chance must not count as infinitely small
    smallest = 1e-5 * np.median(squares_R, axis=-1, keepdims=True)
    logs_R = np.log(np.maximum(squares_R, np.maximum(smallest, np.finfo(np.float64).tiny)))
    excess = logs_R.var(axis=-1, ddof=1) - special.polygamma(1, df / 2)
    return np.where(excess > 0, 2 * _inverse_trigamma(np.maximum(excess, 1e-6)), np.inf)


def _inverse_trigamma(value: Floats) -> Floats:
    """Newton's steps on 1 / trigamma, which is nearly straight (Smyth 2004, appendix); from below, always upwards."""
    found = 0.5 + 1 / value
    for _ in range(20):
        trigamma = special.polygamma(1, found)
        found = found + trigamma * (1 - trigamma / value) / special.polygamma(2, found)
    return np.asarray(found)

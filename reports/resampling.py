"""Intervals from redrawing: bootstraps over prompts, and robust summaries over runs.

All functions are pure and take a seed. Reports decide by the t intervals of `statistics.py`; these are for other eyes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from scipy import stats

from .statistics import Floats, Interval, PromptScores, differences_by_task


def paired_bootstrap(
    a: PromptScores,
    b: PromptScores,
    *,
    seed: int,
    kind: Literal["percentile", "bca"] = "percentile",
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """a - b with a bootstrap interval: prompts drawn with replacement inside each task, multinomial weights.

    `bca` corrects the quantiles for bias and skewness (Efron 1987); acceleration from the influence of each prompt.
    """
    strata = differences_by_task(a, b)
    generator = np.random.default_rng(seed)
    draws = np.zeros(resamples)
    for values in strata.values():
        counts = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
        draws += counts @ values / len(values)
    draws /= len(strata)
    value = float(np.mean([values.mean() for values in strata.values()]))
    levels = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if kind == "bca":
        levels = _bca_levels(levels, strata, draws, value)
    low, high = np.quantile(draws, levels)
    return Interval(
        value=value,
        low=float(low),
        high=float(high),
        n=sum(len(values) for values in strata.values()),
        seeds=1,
        method=f"stratified paired bootstrap, {kind}, {resamples} resamples",
        stderr=float(draws.std(ddof=1)),
    )


def _bca_levels(levels: Floats, strata: Mapping[str, Floats], draws: Floats, value: float) -> Floats:
    """Quantiles that replace `levels`; ties with the estimate count half."""
    share = (np.mean(draws < value) + np.mean(draws <= value)) / 2
    if share in (0.0, 1.0) or draws.min() == draws.max():
        return levels
    influence = np.concatenate([(values - values.mean()) / (len(values) * len(strata)) for values in strata.values()])
    spread = float(np.square(influence).sum())
    acceleration = 0.0 if spread == 0 else float((influence**3).sum()) / (6 * spread**1.5)
    shift = stats.norm.ppf(share)
    z = shift + stats.norm.ppf(levels)
    return np.asarray(stats.norm.cdf(shift + z / (1 - acceleration * z)), dtype=np.float64)


def interquartile_mean(scores_ST: Floats, *, seed: int, resamples: int = 10_000, confidence: float = 0.95) -> Interval:
    """Mean of the middle half of all S seeds x T tasks, interval by redrawing seeds inside each task.

    As Agarwal et al. (2021) define it. With fewer than about 5 seeds the interval is too narrow; it is for pictures.
    """
    scores_ST = np.asarray(scores_ST, dtype=np.float64)
    seeds, tasks = scores_ST.shape
    generator = np.random.default_rng(seed)
    rows_RST = generator.integers(0, seeds, size=(resamples, seeds, tasks))
    draws = stats.trim_mean(scores_ST[rows_RST, np.arange(tasks)].reshape(resamples, -1), 0.25, axis=1)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(
        value=float(stats.trim_mean(scores_ST.ravel(), 0.25)),
        low=float(low),
        high=float(high),
        n=tasks,
        seeds=seeds,
        method=f"interquartile mean, stratified bootstrap, {resamples} resamples",
        stderr=float(draws.std(ddof=1)),
    )


def probability_of_improvement(
    a_ST: Floats, b_ST: Floats, *, seed: int, resamples: int = 2_000, confidence: float = 0.95
) -> Interval:
    """How likely a run of `a` beats a run of `b` on a task drawn at random (ties count half); 0.5 is no difference.

    Mean over tasks of the Mann-Whitney share, as Agarwal et al. (2021) define it; interval by redrawing seeds of both.
    """
    a_ST, b_ST = np.asarray(a_ST, dtype=np.float64), np.asarray(b_ST, dtype=np.float64)
    wins_TAB = np.array(
        [(np.sign(a[:, None] - b[None, :]) + 1) / 2 for a, b in zip(a_ST.T, b_ST.T, strict=True)], dtype=np.float64
    )
    generator = np.random.default_rng(seed)
    tasks, a_seeds, b_seeds = wins_TAB.shape
    a_RTA = generator.multinomial(a_seeds, np.full(a_seeds, 1 / a_seeds), size=(resamples, tasks)) / a_seeds
    b_RTB = generator.multinomial(b_seeds, np.full(b_seeds, 1 / b_seeds), size=(resamples, tasks)) / b_seeds
    draws = np.einsum("rta,tab,rtb->r", a_RTA, wins_TAB, b_RTB) / tasks
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(
        value=float(wins_TAB.mean(axis=(1, 2)).mean()),
        low=float(low),
        high=float(high),
        n=tasks,
        seeds=min(a_seeds, b_seeds),
        method=f"probability of improvement, stratified bootstrap, {resamples} resamples",
        stderr=float(draws.std(ddof=1)),
    )

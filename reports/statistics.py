"""How sure can we be? Intervals and tests for benchmark scores.

The unit is the prompt (the images of one prompt are correlated, so they are averaged first), the stratum is the task
(a score is the mean of its tasks' means, as GenEval defines it; `by_prompt` weighs every prompt alike, as HPS and
DrawBench do), the replicate is the training seed. Variants are
compared on the same prompts and the same noise, therefore paired. All functions are pure: numbers in, numbers out.

Differences are written `a - b`: positive means that `a` scored more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Floats = NDArray[np.float64]
PromptScores = Mapping[str, tuple[str, float]]
"""prompt id -> (task, mean score of the prompt's images)."""

POWER_FACTOR = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.80))
"""2.80: standard errors between no effect and the effect found four times out of five at two-sided 5 %."""
FLIPS_AT_ONCE = 1000
"""Rows of the sampled sign-flip test that are held in memory together."""
EXACT_SIGN_FLIPS = 14
"""Up to this many non-zero differences the sign-flip test enumerates all sign patterns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate and how far it can be off."""

    value: float
    low: float
    """-inf where nothing can be said."""
    high: float
    n: int
    """Prompts."""
    seeds: int
    """Training seeds; 1 means that the statement is about one checkpoint, not about a method."""
    method: str
    """How the interval was made."""
    stderr: float = math.nan
    df: float = math.nan
    """Degrees of freedom of the t distribution; nan where none was used."""

    @property
    def p_value(self) -> float:
        """Two-sided p of "the true value is 0" that belongs to a t interval; nan for other intervals."""
        if math.isnan(self.df) or math.isnan(self.stderr):
            return math.nan
        if self.stderr == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * stats.t.sf(abs(self.value) / self.stderr, self.df))


def minimum_detectable_effect(stderr: float, df: float = math.inf) -> float:
    """The true difference that a two-sided 5 % test finds with 80 % power: 2.80 standard errors.

    More for a t test with few degrees of freedom (the noncentral t distribution): 5.65 at df 2, 3.82 at df 4.
    """
    if math.isnan(stderr) or math.isnan(df):
        return math.inf
    return _power_factor(round(df, 1)) * stderr


@cache
def _power_factor(df: float) -> float:
    if df > 1000:
        return POWER_FACTOR
    critical = float(stats.t.ppf(0.975, df))
    # the other tail's share of the power is below 1e-6 at these shifts
    return float(optimize.brentq(lambda shift: stats.nct.sf(critical, df, shift) - 0.80, 1.0, 3.0 * critical))


def data_factor(interval: Interval, effect: float) -> float:
    """How many times the data (prompts, and seeds where there are several) it takes to detect `effect`; at least 1.

    k times the data divides the standard error by sqrt(k) and multiplies the degrees of freedom by about k.
    """
    if effect <= 0:
        raise ValueError(f"effect is {effect}; it must be positive")

    def excess(k: float) -> float:
        return minimum_detectable_effect(interval.stderr / math.sqrt(k), (interval.df + 1) * k - 1) - effect

    if not math.isfinite(interval.stderr):
        return math.inf
    if excess(1.0) <= 0:
        return 1.0
    return float(
        optimize.brentq(excess, 1.0, 1.01 * (minimum_detectable_effect(interval.stderr, interval.df) / effect) ** 2)
    )


# --- one seed -------------------------------------------------------------------------------------------------------


def score_interval(scores: PromptScores, *, by_prompt: bool = False, confidence: float = 0.95) -> Interval:
    """Mean of the task means (or of the prompts) of one checkpoint, with a stratified t interval over prompts."""
    return _stratified_t(_by_task(scores), by_prompt, confidence, "stratified t over prompts")


def paired_difference(
    a: PromptScores, b: PromptScores, *, by_prompt: bool = False, confidence: float = 0.95
) -> Interval:
    """a - b: mean over tasks of the mean difference per prompt, with a stratified paired t interval.

    SE^2 = sum_t w_t^2 s_t^2 / n_t, where w_t is 1 / T for each of T tasks, or n_t / n where `by_prompt`; the degrees of
    freedom are Satterthwaite's for that sum.

    Raises:
        ValueError: if `a` and `b` do not hold the same prompts with the same tasks.
    """
    return _stratified_t(_by_task(_differences(a, b)), by_prompt, confidence, "stratified paired t over prompts")


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
    strata = _by_task(_differences(a, b))
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


def sign_flip_test(
    a: PromptScores, b: PromptScores, *, seed: int, by_prompt: bool = False, resamples: int = 10_000
) -> float:
    """Two-sided p: how often would flipping the sign of each prompt's difference give a mean at least as large?

    Exact under symmetry: all patterns are enumerated up to 14 non-zero differences, else sampled; the observed
    pattern is counted as one of the sample, so p is never 0.
    """
    strata = _by_task(_differences(a, b))
    # by prompt, all weights are alike: the common factor decides nothing
    weighted = np.concatenate([values / (1 if by_prompt else len(values) * len(strata)) for values in strata.values()])
    weighted = weighted[weighted != 0]
    if len(weighted) == 0:
        return 1.0
    observed = abs(weighted.sum()) * (1 - 1e-12)  # sums of the same numbers in another order must count as ties
    if len(weighted) <= EXACT_SIGN_FLIPS:
        patterns = np.arange(2 ** len(weighted))[:, None] >> np.arange(len(weighted)) & 1
        return float(np.mean(np.abs((1.0 - 2.0 * patterns) @ weighted) >= observed))
    generator = np.random.default_rng(seed)
    extreme = 0
    for done in range(0, resamples, FLIPS_AT_ONCE):
        rows = min(FLIPS_AT_ONCE, resamples - done)
        flipped = (1.0 - 2.0 * generator.integers(0, 2, size=(rows, len(weighted)), dtype=np.int8)) @ weighted
        extreme += int(np.count_nonzero(np.abs(flipped) >= observed))
    return float((1 + extreme) / (1 + resamples))


# --- several seeds --------------------------------------------------------------------------------------------------


def two_way_difference(
    a_SP: Floats, b_SP: Floats, tags: Sequence[str], *, by_prompt: bool = False, confidence: float = 0.95
) -> Interval:
    """a - b over S training seeds and P prompts, both random: would other seeds and other prompts say the same?

    The textbook sum s_seed^2/S + s_prompt^2/P counts what seeds and prompts do *together* twice (the interaction and
    the image noise are in both terms), and with a few noisy images a prompt that is most of the variance: its nominal
    95 % intervals covered 97-99 %. So the interaction, estimated from the residuals, is taken out once, but the sum
    may lose no more than half of it, because noise in the estimate of few seeds must not make the interval short, and
    half of it stays in any case (both terms can be 0 by chance where the interaction is not):

        Var = max(v_prompt + max(v_seed - v_interaction, -v_interaction / 2), v_interaction / 2)

    with Welch-Satterthwaite degrees of freedom of v_seed (S - 1) and v_prompt, at least S - 1. In simulation
    (benchmarks/coverage.py) this covers 93.5-96.5 % with 3 and 5 seeds, 90-96 % with two.

    Args:
        a_SP, b_SP: mean score of a prompt's images; row s of both was trained with the same seed. S >= 2.
        tags: the task of each prompt, length P.
        by_prompt: every prompt weighs alike; else every task does.
    """
    differences_SP = np.asarray(a_SP, dtype=np.float64) - np.asarray(b_SP, dtype=np.float64)
    if differences_SP.ndim != 2 or differences_SP.shape[1] != len(tags):
        raise ValueError(f"differences are {differences_SP.shape}, expected (seeds, {len(tags)} prompts)")
    seeds, prompts = differences_SP.shape
    if seeds < 2:
        raise ValueError("a two-way interval needs at least 2 seeds; use paired_difference for one")
    tasks = sorted(set(tags))
    columns = [np.flatnonzero([tag == task for tag in tags]) for task in tasks]

    if by_prompt:
        per_seed_S = differences_SP.mean(axis=1)
    else:
        per_seed_S = np.mean([differences_SP[:, index].mean(axis=1) for index in columns], axis=0)
    value = float(per_seed_S.mean())
    v_seed = float(per_seed_S.var(ddof=1)) / seeds
    prompt_means = {task: differences_SP[:, index].mean(axis=0) for task, index in zip(tasks, columns, strict=True)}
    v_prompt, df_prompt = _stratified_variance(prompt_means, by_prompt)
    interactions = [_interaction(differences_SP[:, index]) for index in columns]
    if by_prompt:
        v_interaction = sum(v * (len(index) / prompts) ** 2 for v, index in zip(interactions, columns, strict=True))
    else:
        v_interaction = sum(interactions) / len(tasks) ** 2

    variance = max(v_prompt + max(v_seed - v_interaction, -v_interaction / 2), v_interaction / 2)
    spread = v_seed**2 / (seeds - 1) + v_prompt**2 / df_prompt
    df = variance**2 / spread if spread else (0.0 if variance else math.inf)
    return _t_interval(
        value, math.sqrt(variance), max(df, seeds - 1.0), prompts, seeds, confidence, "two-way t over seeds and prompts"
    )


def _interaction(differences_SP: Floats) -> float:
    """Variance of one task's mean that is neither the seeds' nor the prompts' alone."""
    seeds, prompts = differences_SP.shape
    if prompts < 2:
        return 0.0
    residuals_SP = (
        differences_SP
        - differences_SP.mean(axis=0, keepdims=True)
        - differences_SP.mean(axis=1, keepdims=True)
        + differences_SP.mean()
    )
    return float(np.square(residuals_SP).sum() / ((seeds - 1) * (prompts - 1)) / (seeds * prompts))


# --- decisions ------------------------------------------------------------------------------------------------------


def at_least(interval: Interval, bound: float) -> float:
    """One-sided p of "the true value is below `bound`" for a t interval: small says that it is at least `bound`."""
    if math.isnan(interval.stderr) or math.isnan(interval.df):
        return math.nan
    if interval.stderr == 0:
        return 0.0 if interval.low >= bound else 1.0
    return float(stats.t.sf((interval.value - bound) / interval.stderr, interval.df))


def equivalence_p(interval: Interval, margin: float) -> float:
    """Two one-sided tests (Schuirmann 1987): the larger p of "it is `margin` or more from 0"."""
    return max(at_least(interval, -margin), at_least(mirrored(interval), -margin))


def mirrored(interval: Interval) -> Interval:
    """Of b - a, where the given one is of a - b."""
    return replace(interval, value=-interval.value, low=-interval.high, high=-interval.low)


def never_certain(interval: Interval, *, reach: float = 1.0, limit: float = 1.0, confidence: float = 0.95) -> Interval:
    """A difference of 0 on each of n prompts still leaves room for a change on up to 1 - 0.05^(1/n) of all prompts.

    Args:
        reach: how far one prompt can change: 1 for a share; on an open scale the range of the values seen.
        limit: what no difference can be beyond; inf on an open scale.
    """
    if math.isnan(interval.stderr):  # a single prompt a task shows no spread at all
        return replace(interval, low=-limit, high=limit)
    if interval.stderr > 0:
        return interval
    room = reach * (1 - (1 - confidence) ** (1 / interval.n))
    return replace(interval, low=interval.value - room, high=interval.value + room)


def non_inferiority(interval: Interval, margin: float) -> Literal["pass", "regression", "inconclusive"]:
    """Is a loss of `margin` or more ruled out, proven, or neither, at the interval's level?"""
    if math.isnan(interval.value):
        raise ValueError("the difference is NaN")
    if interval.low > -margin:
        return "pass"
    return "regression" if interval.high < -margin else "inconclusive"


# --- robust summaries over runs -------------------------------------------------------------------------------------


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


# --- families and shares --------------------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: the chance of any false claim in the family stays below the level."""
    adjusted = [1.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = running
    return adjusted


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Share of successes with Wilson's score interval: sound near 0 and 1 and for small n."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n}: need 0 <= successes <= n and n >= 1")
    z = float(stats.norm.ppf((1 + confidence) / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(
        value=share,
        # at the ends the bound is exact; rounding would leave 1e-17
        low=0.0 if successes == 0 else centre - half,
        high=1.0 if successes == n else centre + half,
        n=n,
        seeds=1,
        method="Wilson",
        stderr=math.sqrt(share * (1 - share) / n),
    )


# --- inside ---------------------------------------------------------------------------------------------------------


def _differences(a: PromptScores, b: PromptScores) -> dict[str, tuple[str, float]]:
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise ValueError(f"the two sides hold different prompts, {len(odd)} of them in one only, the first {odd[0]!r}")
    moved = sorted(prompt for prompt in a if a[prompt][0] != b[prompt][0])
    if moved:
        raise ValueError(f"prompt {moved[0]!r} is task {a[moved[0]][0]!r} on one side, {b[moved[0]][0]!r} on the other")
    return {prompt: (task, value - b[prompt][1]) for prompt, (task, value) in a.items()}


def _by_task(scores: PromptScores) -> dict[str, Floats]:
    """Task -> values, in an order that does not depend on the mapping's."""
    if not scores:
        raise ValueError("no prompt was scored")
    strata: dict[str, list[float]] = {}
    for prompt in sorted(scores):
        task, value = scores[prompt]
        strata.setdefault(task, []).append(value)
    return {task: np.asarray(strata[task], dtype=np.float64) for task in sorted(strata)}


def _stratified_variance(strata: Mapping[str, Floats], by_prompt: bool) -> tuple[float, float]:
    """Variance of the mean of task means (or of prompts), and its Satterthwaite degrees of freedom.

    A task with a single prompt shows no spread of its own and borrows the pooled one; nan where no task has two.
    """
    spread = [(np.square(values - values.mean()).sum(), len(values) - 1) for values in strata.values()]
    pooled_df = sum(df for _, df in spread)
    if pooled_df == 0:
        return math.nan, math.nan
    pooled = sum(squares for squares, _ in spread) / pooled_df
    prompts = sum(df + 1 for _, df in spread)
    terms = [
        (
            (squares / df if df else pooled) / (df + 1) / (prompts / (df + 1) if by_prompt else len(strata)) ** 2,
            df or pooled_df,
        )
        for squares, df in spread
    ]
    variance = float(sum(term for term, _ in terms))
    if variance == 0:
        return 0.0, float(pooled_df)
    squares_of_terms = sum(term**2 / df for term, df in terms)  # 0 where the variance is too small to be squared
    return variance, float(variance**2 / squares_of_terms) if squares_of_terms else float(pooled_df)


def _stratified_t(strata: Mapping[str, Floats], by_prompt: bool, confidence: float, method: str) -> Interval:
    if by_prompt:
        value = float(np.concatenate(list(strata.values())).mean())
    else:
        value = float(np.mean([values.mean() for values in strata.values()]))
    variance, df = _stratified_variance(strata, by_prompt)
    n = sum(len(values) for values in strata.values())
    return _t_interval(value, math.sqrt(variance), df, n, 1, confidence, method)


def _t_interval(value: float, stderr: float, df: float, n: int, seeds: int, confidence: float, method: str) -> Interval:
    half = (
        math.inf
        if math.isnan(stderr)
        else 0.0
        if stderr == 0
        else float(stats.t.ppf((1 + confidence) / 2, df)) * stderr
    )
    return Interval(
        value=value, low=value - half, high=value + half, n=n, seeds=seeds, method=method, stderr=stderr, df=df
    )

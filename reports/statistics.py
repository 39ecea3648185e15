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
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from .seeds import SeedVariance, moderated

Floats = NDArray[np.float64]
PromptScores = Mapping[str, tuple[str, float]]
"""prompt id -> (task, mean score of the prompt's images)."""
Parts = tuple[tuple[float, float], ...]
"""What a variance is the sum of: (share of it, degrees of freedom that the share was estimated with)."""

BLEND = 1.4
"""Exponent of a share in `critical_value`: 1 is Banerjee's, 2 Satterthwaite's."""
SMALLEST_P = 1e-50
FLOOR = 1 / 8
"""Part of the interaction that a two-way variance is never below: both other terms can be 0 by chance."""
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
    """Degrees of freedom of the t distribution that gives this interval; nan where none was used."""
    parts: Parts = ()
    """What the variance is the sum of, where that is more than one thing."""

    @property
    def p_value(self) -> float:
        """Two-sided p of "the true value is 0": below 5 % where the 95 % interval leaves 0 out; nan for other kinds."""
        if math.isnan(self.df) or math.isnan(self.stderr):
            return math.nan
        if self.stderr == 0:
            return 1.0 if self.value == 0 else 0.0
        return two_sided_p(abs(self.value) / self.stderr, self.parts or ((1.0, self.df),))


def critical_value(parts: Sequence[tuple[ArrayLike, ArrayLike]], level: float) -> Floats:
    """How many standard errors an estimate may be off, two-sided, where parts of its variance are known badly.

    Each part adds what its few degrees of freedom cost alone, by its share of the variance:

        k^2 = z^2 + sum_j share_j^1.4 (t_j^2 - z^2)

    One part alone gives Student's t, exactly. share^1 is Banerjee's rule (1961), which never covers less than promised,
    and up to 98.7 % where a variance of one degree of freedom meets a well known one. share^2 is to first order the t
    with Welch and Satterthwaite's degrees of freedom (Satterthwaite 1946), which believes a variance that came out
    small by chance, and covers down to 87 %. In between, coverage stays within 94.9 and 96.7 % from two degrees of
    freedom on, and within 94.3 and 97.7 % with one, whatever the true shares.

    Args:
        parts: numbers, or arrays of one shape.
        level: two-sided, 0.05 for 95 %.
    """
    normal = special.ndtri(level / 2) ** 2
    cost = [np.power(share, BLEND) * (special.stdtrit(df, level / 2) ** 2 - normal) for share, df in parts]
    return np.asarray(np.sqrt(normal + sum(cost)), dtype=np.float64)


def two_sided_p(ratio: float, parts: Parts) -> float:
    """The level at which `critical_value` is `ratio`; not below 1e-50 where there are several parts."""
    if len(parts) == 1:
        return float(2 * stats.t.sf(ratio, parts[0][1]))

    def excess(log_p: float) -> float:
        return float(critical_value(parts, math.exp(log_p))) - ratio

    smallest = math.log(SMALLEST_P)
    return SMALLEST_P if excess(smallest) <= 0 else math.exp(optimize.brentq(excess, smallest, 0.0))


# --- one seed -------------------------------------------------------------------------------------------------------


def score_interval(scores: PromptScores, *, by_prompt: bool = False, confidence: float = 0.95) -> Interval:
    """Mean of the task means (or of the prompts) of one checkpoint, with a stratified t interval over prompts."""
    value, variance, df = _stratified(_by_task(scores), by_prompt)
    return interval_of_terms(value, [(variance, df)], 0.0, len(scores), 1, confidence, "stratified t over prompts")


def paired_difference(
    a: PromptScores, b: PromptScores, *, by_prompt: bool = False, confidence: float = 0.95
) -> Interval:
    """a - b: mean over tasks of the mean difference per prompt, with a stratified paired t interval.

    SE^2 = sum_t w_t^2 s_t^2 / n_t, where w_t is 1 / T for each of T tasks, or n_t / n where `by_prompt`; the degrees of
    freedom are Satterthwaite's for that sum, but see `differing`.

    Raises:
        ValueError: if `a` and `b` do not hold the same prompts with the same tasks.
    """
    strata = differences_by_task(a, b)
    value, variance, df = _stratified(strata, by_prompt)
    terms = [(variance, differing(strata, df))]
    return interval_of_terms(value, terms, 0.0, len(a), 1, confidence, "stratified paired t over prompts")


def sign_flip_test(
    a: PromptScores, b: PromptScores, *, seed: int, by_prompt: bool = False, resamples: int = 10_000
) -> float:
    """Two-sided p: how often would flipping the sign of each prompt's difference give a mean at least as large?

    Exact under symmetry: all patterns are enumerated up to 14 non-zero differences, else sampled; the observed
    pattern is counted as one of the sample, so p is never 0.
    """
    strata = differences_by_task(a, b)
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
    a_SP: Floats,
    b_SP: Floats,
    tags: Sequence[str],
    *,
    by_prompt: bool = False,
    confidence: float = 0.95,
    seeds: SeedVariance | None = None,
) -> Interval:
    """a - b over S training seeds and P prompts, both random: would other seeds and other prompts say the same?

    The variance between the seeds' differences and that between the prompts' mean differences both hold what seeds and
    prompts do together and the noise of the images (the interaction), so it is taken out once:

        Var = v_seed / S + max(v_prompt - v_interaction, 0),      at least v_interaction / 8

    The first term has S - 1 degrees of freedom, or more where `seeds` lends it those of other variants; the second
    as many as prompts allow. What that means for the interval is `critical_value`'s business.

    Args:
        a_SP, b_SP: mean score of a prompt's images; row s of both was trained with the same seed. S >= 2.
        tags: the task of each prompt, length P.
        by_prompt: every prompt weighs alike; else every task does.
        seeds: what the variants of a grid say together about how much seeds vary; see `seeds.py`. Alone, these two.
    """
    differences_SP = np.asarray(a_SP, dtype=np.float64) - np.asarray(b_SP, dtype=np.float64)
    if differences_SP.ndim != 2 or differences_SP.shape[1] != len(tags):
        raise ValueError(f"differences are {differences_SP.shape}, expected (seeds, {len(tags)} prompts)")
    num_seeds, prompts = differences_SP.shape
    if num_seeds < 2:
        raise ValueError("a two-way interval needs at least 2 seeds; use paired_difference for one")
    tasks = sorted(set(tags))
    columns = [np.flatnonzero([tag == task for tag in tags]) for task in tasks]

    if by_prompt:
        per_seed_S = differences_SP.mean(axis=1)
    else:
        per_seed_S = np.mean([differences_SP[:, index].mean(axis=1) for index in columns], axis=0)
    prompt_means = {task: differences_SP[:, index].mean(axis=0) for task, index in zip(tasks, columns, strict=True)}
    v_prompt, df_prompt = _stratified_variance(prompt_means, by_prompt)
    interactions = [_interaction(differences_SP[:, index]) for index in columns]
    if by_prompt:
        v_interaction = sum(v * (len(index) / prompts) ** 2 for v, index in zip(interactions, columns, strict=True))
    else:
        v_interaction = sum(interactions) / len(tasks) ** 2

    # the same run twice is no example of how much seeds vary
    peers = seeds if differences_SP.any() else None
    lent = moderated(float(per_seed_S.var(ddof=1)), num_seeds - 1.0, peers)
    terms = [(float(v) / num_seeds, float(df)) for v, df in lent]
    terms.append((max(v_prompt - v_interaction, 0.0), differing(prompt_means, df_prompt)))
    method = "two-way t over seeds and prompts" + (f", seeds of {peers.variants} variants" if peers else "")
    return interval_of_terms(
        float(per_seed_S.mean()), terms, FLOOR * v_interaction, prompts, num_seeds, confidence, method
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
    ratio = (interval.value - bound) / interval.stderr
    beyond = two_sided_p(abs(ratio), interval.parts or ((1.0, interval.df),)) / 2
    return beyond if ratio >= 0 else 1 - beyond


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


# --- families and shares --------------------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: the chance of any false claim in the family stays below the level.

    NaN, what could not be tested, stays NaN and is no member of the family: it can claim nothing.
    """
    adjusted = [math.nan] * len(p_values)
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    running = 0.0
    for rank, (p, index) in enumerate(tested):
        running = max(running, min(1.0, p * (len(tested) - rank)))
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


def differences_by_task(a: PromptScores, b: PromptScores) -> dict[str, Floats]:
    """Task -> a - b of its prompts. Raises ValueError if the two do not hold the same prompts with the same tasks."""
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise ValueError(f"the two sides hold different prompts, {len(odd)} of them in one only, the first {odd[0]!r}")
    moved = sorted(prompt for prompt in a if a[prompt][0] != b[prompt][0])
    if moved:
        raise ValueError(f"prompt {moved[0]!r} is task {a[moved[0]][0]!r} on one side, {b[moved[0]][0]!r} on the other")
    return _by_task({prompt: (task, value - b[prompt][1]) for prompt, (task, value) in a.items()})


def differing(differences: Mapping[str, Floats], df: float) -> float:
    """Degrees of freedom of a mean difference of which most prompts may show nothing.

    Where m prompts differ and all others are equal on both sides, the spread is known from m numbers, not from all:
    m - 1 at most (at least 1). Else four prompts of 288 that gained, none that lost, would be proof; a sign-flip test
    gives them 2 / 16.
    """
    sizes = np.abs(np.concatenate(list(differences.values())))
    found = int(
        np.count_nonzero(sizes > 1e-9 * sizes.max())
    )  # equal sums of other numbers may differ in the last digit
    return min(df, max(found - 1.0, 1.0)) if found else df


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


def _stratified(strata: Mapping[str, Floats], by_prompt: bool) -> tuple[float, float, float]:
    """Value, variance and degrees of freedom of a mean of task means (or of prompts)."""
    means = [values.mean() for values in strata.values()]
    value = np.concatenate(list(strata.values())).mean() if by_prompt else np.mean(means)
    return float(value), *_stratified_variance(strata, by_prompt)


def interval_of_terms(
    value: float,
    terms: Sequence[tuple[float, float]],
    smallest: float,
    n: int,
    seeds: int,
    confidence: float,
    method: str,
) -> Interval:
    """The variance is the sum of the terms, each with its degrees of freedom, but not below `smallest`."""
    estimated = float(sum(term for term, _ in terms))
    variance = max(estimated, smallest)
    stderr, df, half = math.sqrt(variance), math.inf, 0.0
    parts: Parts = ()
    if math.isnan(variance):
        df, half = math.nan, math.inf
    elif stderr > 0:
        terms = [*terms, (variance - estimated, math.inf)]  # what is added is no estimate
        parts = tuple((float(term / variance), float(df)) for term, df in terms if term > 0)
        half = stderr * float(critical_value(parts, 1 - confidence))
        df = parts[0][1] if len(parts) == 1 else _equivalent_df(parts)
    return Interval(
        value=value,
        low=value - half,
        high=value + half,
        n=n,
        seeds=seeds,
        method=method,
        stderr=stderr,
        df=df,
        parts=parts if len(parts) > 1 else (),
    )


def _equivalent_df(parts: Parts) -> float:
    """Of the t distribution with the same 95 % interval."""
    return float(special.stdtridf(0.025, -float(critical_value(parts, 0.05))))

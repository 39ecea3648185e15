"""What a planned comparison could find, before it is run: from the spread of runs that exist to prompts and seeds.

A difference of two variants varies by training seed, by prompt, by both together, and by image. The first three and
the last are estimated from differences that were measured (`estimate_spread`), and added up again for another number
of seeds, prompts and images (`Spread.stderr`).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from .load import ReportData
from .power import LEVEL, POWER
from .seeds import moderated, seed_variance
from .statistics import FLOOR, Floats, critical_value

MAX_SEEDS = 50
SIMULATED = 4_000
"""Draws of what the data might show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Standard deviations of a difference between two variants, as shares of 1."""

    seed: float
    """Between training seeds, of the difference of the whole score."""
    prompt: float
    """Between prompts of a task."""
    image: float
    """Of one image's difference, for a given seed and prompt, what seeds and prompts do together included."""
    pilot_seeds: int = 0
    """Seeds it was estimated from; 0 if it is an assumption."""


EMBEDDED_WORLD = Spread(seed=0.027, prompt=0.036, image=0.504)
"""Of methods against GRPO on `scenes-12`: 8 comparisons of 5 seeds (docs/results/scenes-12-methods)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    seeds: int
    prompts: int
    """Of all tasks."""
    images: int
    """Of a prompt."""
    comparisons: int = 1
    """Variants that are compared with one baseline on the same seeds: they lend each other their seeds' variance, and
    each must be found as one of so many."""

    def stderr(self, spread: Spread) -> float:
        """Standard error of the difference: seeds, prompts and images averaged.

        With one seed the statement is about two checkpoints, and how far another seed would be is no part of it.
        """
        seeds = spread.seed**2 / self.seeds if self.seeds > 1 else 0.0
        return math.sqrt(spread.prompt**2 / self.prompts + seeds + self._image(spread))

    def _image(self, spread: Spread) -> float:
        return spread.image**2 / (self.seeds * self.prompts * self.images)

    @property
    def level(self) -> float:
        """Of one comparison where none of the others is found."""
        return LEVEL / self.comparisons

    def power(self, spread: Spread, effect: float) -> float:
        """Chance that a true difference `effect` is found."""
        return self._found(effect, self.stderr(spread), self._half_widths(spread))

    def detectable(self, spread: Spread) -> float:
        """The true difference that is found four times out of five."""
        stderr, half_widths = self.stderr(spread), self._half_widths(spread)
        if stderr == 0:
            return 0.0
        most = float(half_widths.max()) + 10 * stderr
        return float(optimize.brentq(lambda effect: self._found(effect, stderr, half_widths) - POWER, 0.0, most))

    def floor(self, spread: Spread) -> float:
        """What no number of seeds gets below: the prompts' share of `detectable`."""
        return self._factor * spread.prompt / math.sqrt(self.prompts)

    def seeds_needed(self, spread: Spread, effect: float) -> int:
        """How many seeds find an effect above `floor`, where they are so many that their variance is known."""
        room = (effect / self._factor) ** 2 - spread.prompt**2 / self.prompts
        return math.ceil((spread.seed**2 + self.seeds * self._image(spread)) / room)

    @property
    def _factor(self) -> float:
        """Standard errors between no effect and one that is found four times out of five; 2.80 for one comparison."""
        return float(special.ndtri(1 - self.level / 2) + special.ndtri(POWER))

    @staticmethod
    def _found(effect: float, stderr: float, half_widths: Floats) -> float:
        if stderr == 0:
            return float(effect != 0)
        beyond = special.ndtr((effect - half_widths) / stderr) + special.ndtr((-effect - half_widths) / stderr)
        return float(np.mean(beyond))

    def _half_widths(self, spread: Spread) -> Floats:
        """What the half width of the interval might be, for the variances that such data might show.

        Drawn, because with few seeds what the data show of their variances varies too much for its mean to stand for
        it.
        """
        generator = np.random.default_rng(1)
        image = self._image(spread)

        def estimated(variance: float, df: int) -> Floats:
            return np.asarray(variance * generator.chisquare(df, SIMULATED) / df)

        v_prompt = estimated(spread.prompt**2 / self.prompts + image, self.prompts - 1)
        if self.seeds == 1:
            return np.sqrt(v_prompt) * critical_value([(1.0, self.prompts - 1)], self.level)
        # scores of the baseline and of the variants; half of a difference's variance is each one's
        sd = math.sqrt((spread.seed**2 + self.seeds * image) / 2)
        scores_NRS = generator.normal(0, sd, (SIMULATED, self.comparisons + 1, self.seeds))
        own = (scores_NRS[:, 1] - scores_NRS[:, 0]).var(axis=-1, ddof=1)
        terms = moderated(own, self.seeds - 1.0, seed_variance(scores_NRS, paired=True))
        parts = [(variance / self.seeds, df) for variance, df in terms]
        v_image = estimated(image, (self.seeds - 1) * (self.prompts - 1)) if image else np.zeros(SIMULATED)
        parts.append((np.maximum(v_prompt - v_image, 0), self.prompts - 1.0))
        variance = np.maximum(sum(part for part, _ in parts), FLOOR * v_image)
        with np.errstate(invalid="ignore"):
            shares = [(np.nan_to_num(part / variance), df) for part, df in parts]
        return np.sqrt(variance) * critical_value(shares, self.level)


def estimate_spread(differences_SP: Floats, tags: Sequence[str], images: int) -> Spread:
    """Variance components of measured differences, by moments; a negative estimate counts as 0.

    Args:
        differences_SP: a - b, mean over a prompt's images, for S >= 2 seeds and P prompts of `tags`.
        images: averaged in each entry.
    Raises:
        ValueError: fewer than 2 seeds, or no task with 2 prompts.
    """
    differences_SP = np.asarray(differences_SP, dtype=np.float64)
    seeds, prompts = differences_SP.shape
    columns = [np.flatnonzero([tag == task for tag in tags]) for task in sorted(set(tags))]
    columns = [index for index in columns if len(index) > 1]
    if seeds < 2 or not columns:
        raise ValueError(f"{seeds} seeds and {prompts} prompts are too few to see a spread")
    residual = between_prompts = degrees = 0.0
    per_seed_S = np.zeros(seeds)
    for index in columns:
        block_SP = differences_SP[:, index]
        row_S, column_P = block_SP.mean(axis=1), block_SP.mean(axis=0)
        rest_SP = block_SP - row_S[:, None] - column_P[None, :] + block_SP.mean()
        residual += float(np.square(rest_SP).sum())
        between_prompts += float(np.square(column_P - column_P.mean()).sum()) * (seeds - 1)
        degrees += (seeds - 1) * (len(index) - 1)
        per_seed_S += row_S / len(columns)
    residual_variance = residual / degrees
    prompt_variance = between_prompts / degrees - residual_variance / seeds
    # a mean of task means: sum over tasks of 1 / (T^2 n_t), which is 1 / P where the tasks are equally large
    share = sum(1 / len(index) for index in columns) / len(columns) ** 2
    seed_variance = float(per_seed_S.var(ddof=1)) - residual_variance * share
    return Spread(
        seed=math.sqrt(max(seed_variance, 0.0)),
        prompt=math.sqrt(max(prompt_variance, 0.0)),
        image=math.sqrt(residual_variance * images),
        pilot_seeds=seeds,
    )


def pooled(spreads: Sequence[Spread]) -> Spread:
    """Root mean squares of several estimates."""

    def mean_square(values: Sequence[float]) -> float:
        return math.sqrt(sum(value**2 for value in values) / len(values))

    return Spread(
        seed=mean_square([s.seed for s in spreads]),
        prompt=mean_square([s.prompt for s in spreads]),
        image=mean_square([s.image for s in spreads]),
        pilot_seeds=min(s.pilot_seeds for s in spreads),
    )


def seeds_to_detect(effect: float, prompts: int, images: int, spread: Spread, comparisons: int = 1) -> int | None:
    """The fewest seeds (from 2 on) with which `effect` is found four times out of five; None if 50 are not enough."""

    def enough(seeds: int) -> bool:
        design = Design(seeds=seeds, prompts=prompts, images=images, comparisons=comparisons)
        return design.detectable(spread) <= effect

    if not enough(MAX_SEEDS):
        return None
    return 2 + bisect.bisect_left(range(2, MAX_SEEDS), True, key=enough)


def measured_spread(data: ReportData) -> Spread | None:
    """Of all pairs of a variant with its baseline that share 2 seeds and more; None where there is no such pair.

    Shares of right images only: spreads on other scales are no shares of 1.
    """
    found = []
    for benchmark in data.benchmarks:
        headline = data.headline(benchmark)
        if not headline.is_verdict:
            continue
        for variant in data.trained:
            baseline = data.baseline_of(variant)
            if baseline is None:
                continue
            a, b = (side.scores(benchmark, headline.name) for side in (variant, baseline))
            seeds = sorted(a.keys() & b.keys())
            if len(seeds) < 2:
                continue
            prompts = sorted(set.intersection(*(set(scores[seed]) for scores in (a, b) for seed in seeds)))
            differences_SP = [[a[seed][p][1] - b[seed][p][1] for p in prompts] for seed in seeds]
            tags = [a[seeds[0]][prompt][0] for prompt in prompts]
            evaluation = variant.evaluations(benchmark)[0]
            images = max(1, round(len(evaluation.frame) / max(evaluation.frame["prompt_id"].nunique(), 1)))
            try:
                found.append(estimate_spread(np.array(differences_SP), tags, images))
            except ValueError:
                continue
    return pooled(found) if found else None

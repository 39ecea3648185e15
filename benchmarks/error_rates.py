"""How often are the report's claims about equal variants false, its intervals right, its printed power true?

    python benchmarks/error_rates.py --trials 4000 --json benchmarks/results/error-rates.json

A grid of one baseline and K variants, S training seeds, 288 prompts of 4 images in 6 tasks, drawn anew in every trial.
What prompts, seeds and images do to a difference is normal with the standard deviations of a world, in points; the
report's own functions judge. Several rules judge the same grids:

* before:    Welch-Satterthwaite degrees of freedom over seeds and prompts, each pair alone
* alone:     as now, but each pair alone
* plain:     S - 1 degrees of freedom for the whole sum, each pair alone
* pooled:    as now, but one seed variance for all variants
* limma:     as now, but prior and centre fitted to the logarithms of the pairs' own seed variances
* moderated: as now
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from gcpo_bench.reports.design import Design, Spread
from gcpo_bench.reports.power import LEVEL, minimum_detectable_effect
from gcpo_bench.reports.seeds import SeedVariance, moderated, prior_df, seed_variance
from gcpo_bench.reports.statistics import FLOOR, Floats, critical_value, interval_of_terms

PROMPTS, TASKS, IMAGES = 288, 6, 4
PROMPT_DF = PROMPTS - TASKS
SEEDS = (2, 3, 5, 8)
VARIANTS = (1, 2, 5, 10, 20)
PRINTED = 200
"""Reports of a cell whose printed power is worked out."""
RULES = ("before", "alone", "plain", "pooled", "limma", "moderated")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    spread: Spread
    unlike: float = math.inf
    """Variants' seed variances differ like scaled inverse chi-squares of so many degrees of freedom."""


WORLDS = {
    "embedded world": World(spread=Spread(seed=0.027, prompt=0.036, image=0.504)),
    "no effect of seeds": World(spread=Spread(seed=0.0, prompt=0.10, image=0.66)),
    "seeds dominate": World(spread=Spread(seed=0.06, prompt=0.02, image=0.66)),
    "prompts dominate": World(spread=Spread(seed=0.01, prompt=0.25, image=0.66)),
    "interaction dominates": World(spread=Spread(seed=0.0, prompt=0.0, image=1.0)),
    "seeds dominate, variants unlike": World(spread=Spread(seed=0.06, prompt=0.02, image=0.66), unlike=4.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grids:
    """N simulated grids of K variants, none of which differs from the baseline."""

    scores_NRS: Floats
    """The baseline's first."""
    value_NK: Floats
    v_prompt_NK: Floats
    v_image_NK: Floats

    @property
    def seeds(self) -> int:
        return int(self.scores_NRS.shape[-1])

    @property
    def own_NK(self) -> Floats:
        """Variance between seeds of each pair's difference."""
        return np.asarray((self.scores_NRS[:, 1:] - self.scores_NRS[:, :1]).var(axis=-1, ddof=1))


def simulate(world: World, variants: int, seeds: int, trials: int, generator: np.random.Generator) -> Grids:
    spread = world.spread
    image = spread.image**2 / (seeds * PROMPTS * IMAGES)
    prompt = spread.prompt**2 / PROMPTS
    shape = (trials, variants + 1)
    seed = np.full(shape, spread.seed**2)
    if math.isfinite(world.unlike):
        seed = seed * (world.unlike - 2) / generator.chisquare(world.unlike, shape)
    # half of a difference's variance is each one's
    scores_NRS = generator.standard_normal((*shape, seeds)) * np.sqrt((seed + seeds * image) / 2)[..., None]
    prompts_NR = generator.standard_normal(shape) * math.sqrt(prompt / 2)
    means_NR = scores_NRS.mean(axis=-1) + prompts_NR
    df, pairs = (seeds - 1) * PROMPT_DF, (trials, variants)
    return Grids(
        scores_NRS=scores_NRS,
        value_NK=means_NR[:, 1:] - means_NR[:, :1],
        v_prompt_NK=(prompt + image) * generator.chisquare(PROMPT_DF, pairs) / PROMPT_DF,
        v_image_NK=image * generator.chisquare(df, pairs) / df,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    stderr_NK: Floats
    critical: Callable[[float], Floats]
    """Level -> how many standard errors a difference must be."""
    terms: Sequence[tuple[Floats, Floats]] = ()
    df_NK: Floats | None = None


def judge(grids: Grids, rule: str) -> Judged:
    v_prompt, v_image, seeds = grids.v_prompt_NK, grids.v_image_NK, grids.seeds
    if rule in ("before", "plain"):
        v_seed = grids.own_NK / seeds
        variance = np.maximum(v_prompt + np.maximum(v_seed - v_image, -v_image / 2), v_image / 2)
        welch = variance**2 / (v_seed**2 / (seeds - 1) + v_prompt**2 / PROMPT_DF)
        df = np.maximum(welch, seeds - 1.0) if rule == "before" else np.full_like(welch, seeds - 1.0)
        return Judged(stderr_NK=np.sqrt(variance), critical=lambda level: -special.stdtrit(df, level / 2), df_NK=df)
    terms: list[tuple[Floats, Floats]] = []
    for between, df_between in moderated(grids.own_NK, seeds - 1.0, peers(grids, rule)):
        parts = (np.asarray(between) / seeds, np.asarray(df_between))
        terms.append((np.broadcast_to(parts[0], v_prompt.shape), np.broadcast_to(parts[1], v_prompt.shape)))
    terms.append((np.maximum(v_prompt - v_image, 0.0), np.full_like(v_prompt, PROMPT_DF)))
    variance = np.maximum(sum(v for v, _ in terms), FLOOR * v_image)
    shares = [(v / variance, df) for v, df in terms]
    return Judged(stderr_NK=np.sqrt(variance), critical=lambda level: critical_value(shares, level), terms=terms)


def peers(grids: Grids, rule: str) -> SeedVariance | None:
    if rule == "alone":
        return None
    found = seed_variance(grids.scores_NRS, paired=True)
    pooled, prior = found.parts[0][0][:, None], found.prior_df[:, None]
    if rule == "pooled":
        prior = np.full_like(prior, np.inf)
    if rule == "limma":
        df = grids.seeds - 1.0
        prior = prior_df(grids.own_NK, df)[:, None] if grids.own_NK.shape[1] > 1 else np.full_like(prior, np.inf)
        logs = np.log(grids.own_NK).mean(axis=1, keepdims=True) - special.digamma(df / 2) + np.log(df / 2)
        half = np.minimum(prior, 1e9) / 2
        fitted = np.exp(logs + special.digamma(half) - np.log(half))
        pooled = np.where(np.isinf(prior), grids.own_NK.mean(axis=1, keepdims=True), fitted)
    return replace(found, parts=((pooled, found.parts[0][1]),), prior_df=prior)


def figures(world: World, variants: int, seeds: int, trials: int) -> dict[str, dict[str, float]]:
    """Rule -> coverage, family-wise error, power, of one cell."""
    grids = simulate(world, variants, seeds, trials, generator_of(world, variants, seeds))
    sigma = Design(seeds=seeds, prompts=PROMPTS, images=IMAGES).stderr(world.spread)
    before, now = judge(grids, "before"), judge(grids, "moderated")
    usual = found_four_times_in_five(half_width(before, LEVEL), sigma)
    cell = {}
    for rule in RULES:
        judged = judge(grids, rule)
        power = power_of(half_width(judged, LEVEL), usual, sigma)
        cell[rule] = {**errors(grids, judged), "power where it was 80 % before": power}
    for rule, judged, printed in (("before", before, _printed_before), ("moderated", now, _printed)):
        effects = [printed(judged, trial, seeds) for trial in range(0, trials, max(1, trials // PRINTED))]
        half_N = half_width(judged, LEVEL)
        found = [power_of(half_N, effect, sigma) for effect in effects]
        cell[rule]["power of what is printed as 80 %"] = float(np.mean(found))
    design = Design(seeds=seeds, prompts=PROMPTS, images=IMAGES, comparisons=variants)
    planned = design.detectable(world.spread)
    cell["moderated"]["power of what is planned as 80 %"] = power_of(half_width(now, design.level), planned, sigma)
    return cell


def generator_of(world: World, variants: int, seeds: int) -> np.random.Generator:
    sds = (world.spread.seed, world.spread.prompt, world.spread.image)
    return np.random.default_rng([variants, seeds, *(round(1000 * sd) for sd in sds)])


def errors(grids: Grids, judged: Judged) -> dict[str, float]:
    trials, variants = grids.value_NK.shape
    ratio = np.abs(grids.value_NK) / judged.stderr_NK
    false = int((ratio > judged.critical(LEVEL / variants)).any(axis=1).sum())  # Holm's first step claims first
    return {
        "coverage": float(np.mean(ratio <= judged.critical(LEVEL))),
        "family-wise error": false / trials,
        "upper 95 % bound": float(special.betaincinv(false + 1, trials - false, 0.95)),
    }


def half_width(judged: Judged, level: float) -> Floats:
    """Of the first variant's interval."""
    return np.asarray(judged.stderr_NK[:, 0] * judged.critical(level)[:, 0])


def power_of(half_N: Floats, effect: float, sigma: float) -> float:
    """A difference's error is independent of what the variances show."""
    return float(np.mean(special.ndtr((effect - half_N) / sigma) + special.ndtr((-effect - half_N) / sigma)))


def found_four_times_in_five(half_N: Floats, sigma: float) -> float:
    return float(optimize.brentq(lambda effect: power_of(half_N, effect, sigma) - 0.8, 0.0, 1000 * sigma))


def _printed(judged: Judged, trial: int, seeds: int) -> float:
    terms = [(float(v[trial, 0]), float(df[trial, 0])) for v, df in judged.terms]
    interval = interval_of_terms(0.0, terms, 0.0, PROMPTS, seeds, 1 - LEVEL, "")
    return minimum_detectable_effect(interval)


def _printed_before(judged: Judged, trial: int, seeds: int) -> float:
    """The shift of a noncentral t that is found four times in five: the estimated error taken for the true one."""
    assert judged.df_NK is not None
    return float(judged.stderr_NK[trial, 0]) * _noncentral(round(float(judged.df_NK[trial, 0]), 1))


@cache
def _noncentral(df: float) -> float:
    critical = -float(special.stdtrit(df, LEVEL / 2))
    return float(optimize.brentq(lambda shift: stats.nct.sf(critical, df, shift) - 0.8, 1.0, 3.0 * critical))


def table(records: Sequence[dict[str, Any]], name: str, rules: Sequence[str]) -> str:
    """Markdown: a row a world and number of seeds, columns of variants and rules."""
    variants = sorted({record["variants"] for record in records})
    head = ["world", "seeds", *(f"{k} {rule}" for k in variants for rule in rules)]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for world in dict.fromkeys(record["world"] for record in records):
        for seeds in SEEDS:
            cells = {r["variants"]: r["rules"] for r in records if (r["world"], r["seeds"]) == (world, seeds)}
            values = [cells[k][rule].get(name) for k in variants for rule in rules]
            lines.append(f"| {world} | {seeds} | {' | '.join('' if v is None else f'{100 * v:.1f}' for v in values)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--variants", type=int, nargs="*", default=VARIANTS)
    parser.add_argument("--json", type=Path, help="also write everything as data to this file")
    options: Any = parser.parse_args(arguments)
    started = time.perf_counter()
    records = []
    for name, world in WORLDS.items():
        for seeds in SEEDS:
            for variants in options.variants:
                rules = figures(world, variants, seeds, options.trials)
                records.append({"world": name, "seeds": seeds, "variants": variants, "rules": rules})
        print(f"{name}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    for name, shown in (
        ("family-wise error", RULES),
        ("coverage", RULES),
        ("power of what is printed as 80 %", ("before", "moderated")),
        ("power of what is planned as 80 %", ("moderated",)),
        ("power where it was 80 % before", ("alone", "plain", "pooled", "moderated")),
    ):
        print(f"\n{name}, %, by variants and rule\n\n{table(records, name, shown)}")
    if options.json:
        record = {
            "command": f"python benchmarks/error_rates.py --trials {options.trials}",
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "trials": options.trials,
            "machine": f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}",
            "cells": records,
        }
        options.json.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

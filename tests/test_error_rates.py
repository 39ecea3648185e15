"""Claims about variants that are equal, and claims about variants that are not: how often they are made, simulated.

The first test takes the whole way from scores to verdicts, the second the report's own rule on many more grids at once;
benchmarks/error_rates.py prints the same for more worlds, and for other rules.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.error_rates import (
    WORLDS,
    errors,
    found_four_times_in_five,
    generator_of,
    half_width,
    judge,
    power_of,
    simulate,
)
from gcpo_bench.reports.comparisons import Comparison, adjusted, compare_all, interval_of
from gcpo_bench.reports.design import Design
from gcpo_bench.reports.load import load
from gcpo_bench.reports.measures import Measure
from gcpo_bench.reports.seeds import moderated, seed_variance
from gcpo_bench.reports.statistics import Floats, two_way_difference

from .run_factory import make_run

MEASURE = Measure(name="correct")
TAGS = [f"task-{i % 6}" for i in range(48)]
PROMPT_IDS = [f"p{i:02d}" for i in range(48)]


def grid(generator: np.random.Generator, variants: int, seeds: int, effect: float = 0.0) -> Floats:
    """Scores of a baseline and equal variants, (variant, seed, prompt): seeds matter most; the last one is better."""
    scores = (
        0.03 * generator.standard_normal((variants + 1, seeds, 1))
        + 0.05 * generator.standard_normal((1, seeds, 1))  # what a seed does to all of them
        + 0.02 * generator.standard_normal((variants + 1, 1, len(TAGS)))
        + 0.08 * generator.standard_normal((variants + 1, seeds, len(TAGS)))
        + generator.uniform(0.3, 0.7, len(TAGS))
    )
    scores[-1] += effect
    return np.asarray(scores)


def judged(scores_RSP: Floats) -> list[Comparison]:
    """All variants against the first, as a report compares them."""
    tables = [
        [dict(zip(PROMPT_IDS, zip(TAGS, map(float, row), strict=True), strict=True)) for row in scores_SP]
        for scores_SP in scores_RSP
    ]
    lent = seed_variance(scores_RSP.mean(axis=2), paired=True)
    found = []
    for mine in tables[1:]:
        interval = interval_of(list(zip(mine, tables[0], strict=True)), PROMPT_IDS, TAGS, MEASURE, lent)
        found.append(
            Comparison(
                a="x",
                b="grpo",
                against="baseline",
                benchmark="b",
                measure=MEASURE,
                interval=interval,
                p_value=interval.p_value,
                p_holm=interval.p_value,
                settings_that_differ=(),
                dropped_prompts=0,
            )
        )
    return adjusted(found)


@pytest.mark.parametrize("seeds", [2, 3])
def test_equal_variants_are_called_better_or_worse_in_fewer_than_one_report_in_twenty(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    trials = 200
    false = sum(
        any(c.verdict in ("better", "worse") for c in judged(grid(generator, variants=10, seeds=seeds)))
        for _ in range(trials)
    )
    # 18 is the 99 % point of a rate of 5 %; each pair alone with Welch's degrees of freedom: 72 and 28
    assert false <= 18


def test_verdict_interval_and_adjusted_p_say_the_same() -> None:
    generator = np.random.default_rng(5)
    for _ in range(20):
        for c in judged(grid(generator, variants=5, seeds=3, effect=0.06)):
            clear = c.interval.low > 0 or c.interval.high < 0
            assert clear == (c.p_value < 0.05)
            assert (c.p_holm < 0.05) == (c.p_value < c.level)
            assert (c.verdict in ("better", "worse")) == (c.p_holm < 0.05)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_intervals_cover_and_families_err_as_promised(name: str, seeds: int) -> None:
    """95 %: never below 93, not above 97 but where one variant of two seeds meets well known prompts (98)."""
    for variants in (1, 4, 20):
        trials = 1500
        grids = simulate(WORLDS[name], variants, seeds, trials, generator_of(WORLDS[name], variants, seeds))
        found = errors(grids, judge(grids, "moderated"))
        chance = 2.6 * (0.95 * 0.05 / trials) ** 0.5  # 99 % of what the simulation itself varies by
        assert found["coverage"] > 0.94 - chance, (variants, found)
        assert found["coverage"] < (0.98 if variants == 1 and seeds == 2 else 0.97) + chance, (variants, found)
        # variants that truly differ in how much they vary cost something; see the benchmark's last world
        promised = 0.05 if WORLDS[name].unlike > 100 else 0.07
        assert found["family-wise error"] < promised + chance, (variants, found)


@pytest.mark.parametrize("name", [name for name, world in WORLDS.items() if world.unlike > 100])
@pytest.mark.parametrize(("seeds", "variants"), [(2, 1), (3, 1), (3, 10), (5, 4)])
def test_what_is_planned_to_befound_four_times_in_five_is(name: str, seeds: int, variants: int) -> None:
    spread = WORLDS[name].spread
    design = Design(seeds=seeds, prompts=288, images=4, comparisons=variants)
    grids = simulate(WORLDS[name], variants, seeds, 1500, np.random.default_rng([seeds, variants]))
    half_N = half_width(judge(grids, "moderated"), design.level)
    found = power_of(half_N, design.detectable(spread), design.stderr(spread))
    assert found == pytest.approx(0.8, abs=0.05)


def test_ten_variants_find_at_three_seeds_what_one_pair_was_said_to() -> None:
    """Lent seeds gain more power than honest degrees of freedom cost."""
    for world in WORLDS.values():
        grids = simulate(world, 10, 3, 1500, np.random.default_rng(0))
        sigma = Design(seeds=3, prompts=288, images=4).stderr(world.spread)
        effect = found_four_times_in_five(half_width(judge(grids, "before"), 0.05), sigma)
        assert power_of(half_width(judge(grids, "moderated"), 0.05), effect, sigma) > 0.8


def test_seed_variances_that_differ_are_moved_less_than_those_that_do_not() -> None:
    generator = np.random.default_rng(0)
    alike = generator.standard_normal((8, 6))
    unlike = alike * np.array([1, 1, 1, 1, 1, 1, 1, 30.0])[:, None]
    assert seed_variance(alike, paired=True).prior_df == np.inf
    lent = seed_variance(unlike, paired=True)
    assert lent.prior_df < 5
    ((small, df),) = moderated(2.0, 5.0, lent)
    ((large, _),) = moderated(900.0, 5.0, lent)
    assert 2.0 < small < large < 900.0
    assert df == pytest.approx(5 + lent.prior_df)


def test_two_variants_have_nothing_to_borrow() -> None:
    scores_RS = np.random.default_rng(1).standard_normal((2, 4))
    lent = seed_variance(scores_RS, paired=True)
    own = float((scores_RS[0] - scores_RS[1]).var(ddof=1))
    ((variance, df),) = moderated(own, 3.0, lent)
    assert variance == pytest.approx(own)
    assert df == 3.0


def test_what_stands_against_something_untrained_keeps_what_a_seed_does_to_all() -> None:
    scores_RS = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.1, 1.1, 2.1]])  # the seeds' effect alone
    assert seed_variance(scores_RS, paired=True).parts[0][0] == pytest.approx(0)
    (_, within), (common, df) = seed_variance(scores_RS, paired=False).parts
    assert (within, df) == (4.0, 2.0)
    assert common == pytest.approx(1.0)


def test_a_report_lends_seeds_within_a_grid_and_only_there(tmp_path: Path) -> None:
    paths = [make_run(tmp_path, "start", steps=0, skill=0.5, maps=False, draw=False).path]
    for method in ("grpo", "gcpo", "random"):
        for seed in range(3):
            name = f"{method}-{seed}"
            paths.append(make_run(tmp_path, name, method=method, seed=seed, steps=2, maps=False, draw=False).path)
    data = load(paths)
    by_label = {(c.a, c.against): c for c in compare_all(data, "scenes")[0]}
    assert by_label["gcpo", "baseline"].interval.method == "two-way t over seeds and prompts, seeds of 3 variants"
    assert by_label["grpo", "start"].interval.method == "two-way t over seeds and prompts, seeds of 3 variants"
    pair = {path.name for path in paths if path.name.startswith(("grpo", "gcpo"))}
    alone = compare_all(load([p for p in paths if p.name in pair]), "scenes")[0][0]
    assert alone.interval.seeds == 3
    assert alone.interval.df <= by_label["gcpo", "baseline"].interval.df


def test_the_same_run_twice_lends_nothing_and_is_told_apart_by_nothing(tmp_path: Path) -> None:
    same_SP = np.random.default_rng(2).random((3, 12))
    lent = seed_variance(np.random.default_rng(3).random((4, 3)), paired=True)
    interval = two_way_difference(same_SP, same_SP, ["t"] * 12, seeds=lent)
    assert (interval.value, interval.stderr) == (0.0, 0.0)

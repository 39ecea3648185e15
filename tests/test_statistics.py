"""The intervals cover what they promise, and agree with SciPy and statsmodels where those have the same thing."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from gcpo_bench.reports.power import data_factor, minimum_detectable_effect
from gcpo_bench.reports.resampling import interquartile_mean, paired_bootstrap, probability_of_improvement
from gcpo_bench.reports.statistics import (
    Interval,
    at_least,
    critical_value,
    equivalence_p,
    holm,
    never_certain,
    non_inferiority,
    paired_difference,
    score_interval,
    sign_flip_test,
    two_sided_p,
    two_way_difference,
    wilson,
)


def table(values: dict[str, list[float]]) -> dict[str, tuple[str, float]]:
    return {f"{task}-{i}": (task, value) for task, row in values.items() for i, value in enumerate(row)}


def test_a_prompt_of_another_task_on_the_other_side_is_named_with_both() -> None:
    a, b = {"p": ("count", 1.0), "q": ("color", 1.0)}, {"p": ("position", 1.0), "q": ("color", 1.0)}
    with pytest.raises(ValueError, match="prompt 'p' is task 'count' on one side, 'position' on the other"):
        paired_difference(a, b)


def test_a_difference_is_the_mean_of_the_tasks_not_of_the_prompts() -> None:
    a = table({"count": [1.0, 0.0], "color": [1.0, 1.0, 1.0, 1.0]})
    b = table({"count": [0.0, 0.0], "color": [1.0, 1.0, 1.0, 0.0]})
    difference = paired_difference(a, b)
    assert difference.value == pytest.approx((1 / 2 + 1 / 4) / 2)  # not 2/6
    # s^2 is 1/2 and 1/4, so SE^2 = (1/2/2 + 1/4/4) / 2^2
    assert difference.stderr == pytest.approx(math.sqrt((0.25 + 0.0625) / 4))
    assert (difference.n, difference.seeds) == (6, 1)


def test_with_one_task_the_interval_is_the_paired_t_interval_of_scipy() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.random(40), generator.random(40)
    ours = paired_difference(table({"t": a.tolist()}), table({"t": b.tolist()}))
    theirs = stats.ttest_rel(a, b)
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
    assert ours.p_value == pytest.approx(theirs.pvalue)


def test_with_two_tasks_the_degrees_of_freedom_are_welchs() -> None:
    generator = np.random.default_rng(2)
    x, y = generator.normal(0, 1, 12), generator.normal(1, 3, 7)
    # the mean of two task means is half of x.mean() - (-y).mean(), which Welch's test judges
    theirs = stats.ttest_ind(x, -y, equal_var=False)
    ours = score_interval(table({"x": x.tolist(), "y": y.tolist()}))
    assert ours.df == pytest.approx(theirs.df)
    assert ours.p_value == pytest.approx(theirs.pvalue)


def test_the_bootstrap_agrees_with_scipys_percentile_interval() -> None:
    values = np.random.default_rng(3).normal(0.1, 1, 60)
    ours = paired_bootstrap(table({"t": values.tolist()}), table({"t": [0.0] * 60}), seed=0)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_the_bootstrap_depends_on_its_seed_and_on_nothing_else() -> None:
    generator = np.random.default_rng(4)
    a, b = table({"t": generator.random(30).tolist()}), table({"t": generator.random(30).tolist()})
    np.random.seed(1)  # noqa: NPY002 - the point: global state has no say
    first = paired_bootstrap(a, b, seed=5, resamples=500)
    np.random.seed(2)  # noqa: NPY002
    again = paired_bootstrap(a, b, seed=5, resamples=500)
    np.testing.assert_equal(asdict(again), asdict(first))  # of which some fields are NaN, equal to nothing
    assert paired_bootstrap(a, b, seed=6, resamples=500).low != first.low


def test_the_sign_flip_test_is_exact_for_few_prompts() -> None:
    a, b = table({"t": [1.0, 1.0, 1.0, 1.0]}), table({"t": [0.0, 0.0, 0.0, 0.0]})
    assert sign_flip_test(a, b, seed=0) == 2 / 16  # only ++++ and ---- are as large


def test_the_sign_flip_test_agrees_with_scipys_permutation_test() -> None:
    values = np.random.default_rng(5).normal(0.3, 1, 40)
    theirs = stats.permutation_test(
        (values, np.zeros(40)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).pvalue
    ours = sign_flip_test(table({"t": values.tolist()}), table({"t": [0.0] * 40}), seed=0)
    assert ours == pytest.approx(theirs, abs=0.01)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_agrees_with_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


@pytest.mark.parametrize(("df", "least", "most"), [(1, 0.943, 0.978), (2, 0.949, 0.967), (7, 0.9495, 0.956)])
def test_a_badly_known_variance_beside_a_known_one_covers_whatever_their_true_ratio(
    df: int, least: float, most: float
) -> None:
    """Worked out over the quantiles of chi2, without chance: true variances E (of `df` degrees of freedom) and 1."""
    shown = stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, df) / df
    found = []
    for true in np.geomspace(0.01, 1000, 21):
        variance = true * shown + 1
        width = critical_value([(true * shown / variance, df), (1 / variance, math.inf)], 0.05) * np.sqrt(variance)
        found.append(np.mean(1 - 2 * stats.norm.sf(width / math.sqrt(true + 1))))
    assert least < min(found) < max(found) < most


def test_what_could_not_be_tested_is_no_member_of_the_family() -> None:
    adjusted = holm([0.03, math.nan, 0.02, 0.5, math.nan])
    assert [p for p in adjusted if not math.isnan(p)] == pytest.approx([0.06, 0.06, 0.5])  # 2 x 0.03, 3 x 0.02
    assert [math.isnan(p) for p in adjusted] == [False, True, False, False, True]


def test_four_prompts_of_288_that_gained_are_no_proof_and_seven_are() -> None:
    before = table({"t": [0.5] * 288})

    def gained(prompts: int) -> Interval:
        return paired_difference(table({"t": [0.75] * prompts + [0.5] * (288 - prompts)}), before)

    assert gained(4).low < 0 < gained(4).p_value - 0.05  # a sign-flip test says 2 / 16
    assert gained(5).low < 0  # 2 / 32
    assert gained(7).low > 0  # 2 / 128
    assert gained(7).p_value < 0.05


def test_one_part_alone_is_students_t_and_a_part_known_badly_costs_more_the_more_it_matters() -> None:
    assert critical_value([(1.0, 3.0)], 0.05) == pytest.approx(stats.t.ppf(0.975, 3))
    assert two_sided_p(2.5, ((1.0, 3.0),)) == pytest.approx(2 * stats.t.sf(2.5, 3))
    widths = [float(critical_value([(share, 1.0), (1 - share, 280.0)], 0.05)) for share in (0.01, 0.1, 0.5, 0.9)]
    assert widths == sorted(widths)
    assert 1.96 < widths[0] < 2.2
    for level in (0.05, 0.001, 1e-9):
        parts = ((0.3, 2.0), (0.7, 280.0))
        assert two_sided_p(float(critical_value(parts, level)), parts) == pytest.approx(level)
    interval = Interval(value=3.0, low=0, high=0, n=9, seeds=2, method="", stderr=1.0, df=9.0, parts=parts)
    assert at_least(interval, 0.0) == pytest.approx(interval.p_value / 2)
    assert at_least(interval, 6.0) == pytest.approx(1 - interval.p_value / 2)


@settings(deadline=None)
@given(st.integers(1, 300), st.data())
def test_wilson_agrees_with_statsmodels(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    ours = wilson(successes, n)
    assert (ours.low, ours.high) == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-12)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


def known(stderr: float, df: float, seeds: int = 1) -> Interval:
    return Interval(value=0, low=-1, high=1, n=600, seeds=seeds, method="t", stderr=stderr, df=df)


def test_the_detectable_effect_is_two_point_eight_standard_errors() -> None:
    assert minimum_detectable_effect(known(0.01, math.inf)) == pytest.approx(0.0280, abs=1e-4)
    # with ten comparisons: 2.81 + 0.84 standard errors
    assert minimum_detectable_effect(known(0.01, math.inf), level=0.005) == pytest.approx(0.0365, abs=1e-4)


@pytest.mark.parametrize("df", [1, 2, 4, 30, 287])
def test_what_would_be_found_four_times_in_five_is_found_so_often(df: int) -> None:
    """A study prints what it would find; another like it is made with a true difference of that size."""
    generator = np.random.default_rng(df)
    shown, again = (generator.chisquare(df, 20_000) / df for _ in range(2))
    effects = minimum_detectable_effect(known(1.0, df)) * np.sqrt(shown)
    found = np.abs(effects + generator.standard_normal(20_000)) > stats.t.ppf(0.975, df) * np.sqrt(again)
    assert found.mean() == pytest.approx(0.80, abs=0.02)


def test_a_known_spread_gives_the_power_of_statsmodels() -> None:
    effect = minimum_detectable_effect(known(1.0, 287))  # in standard errors; statsmodels wants standard deviations
    assert TTestPower().power(effect / math.sqrt(288), nobs=288, alpha=0.05, df=287) == pytest.approx(0.80, abs=5e-3)


def test_twice_the_precision_takes_four_times_the_prompts() -> None:
    interval = known(0.01, 599)
    assert data_factor(interval, minimum_detectable_effect(known(0.005, 599))) == pytest.approx(4, rel=0.01)
    assert data_factor(interval, 0.5) == 1


def coverage(intervals: list[Interval], truth: float = 0.0) -> float:
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


def test_95_percent_intervals_over_prompts_cover_95_percent() -> None:
    generator = np.random.default_rng(6)
    tags = [f"task-{i % 6}" for i in range(96)]
    shift = {f"task-{i}": 0.02 * i for i in range(6)}  # tasks differ in effect, and in spread below
    found = []
    for _ in range(1500):
        draws = generator.normal(0, 1, 96) * [0.1 + 2 * shift[tag] for tag in tags] + [shift[tag] for tag in tags]
        found.append(
            score_interval({str(i): (tag, float(d)) for i, (tag, d) in enumerate(zip(tags, draws, strict=True))})
        )
    assert 0.93 <= coverage(found, truth=0.05) <= 0.97


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("seed_sd", "prompt_sd", "noise_sd"),
    [(0.0, 0.1, 0.4), (0.01, 0.2, 0.3), (0.02, 0.2, 0.3), (0.02, 0.3, 0.1), (0.03, 0.2, 0.3)],
)
def test_two_way_intervals_cover_95_percent(seeds: int, seed_sd: float, prompt_sd: float, noise_sd: float) -> None:
    # noise_sd is what a seed does to a prompt together with the luck of its few images
    generator = np.random.default_rng([seeds, round(100 * seed_sd), round(10 * noise_sd)])
    tags = [f"task-{i % 6}" for i in range(120)]
    found = []
    for _ in range(1200):
        d_SP = (
            seed_sd * generator.standard_normal((seeds, 1))
            + prompt_sd * generator.standard_normal((1, 120))
            + noise_sd * generator.standard_normal((seeds, 120))
        )
        found.append(two_way_difference(d_SP, np.zeros_like(d_SP), tags))
    assert 0.93 <= coverage(found) <= 0.97


def test_intervals_over_prompts_alone_would_miss_the_seeds() -> None:
    generator = np.random.default_rng(8)
    tags = ["t"] * 240
    naive, two_way = [], []
    for _ in range(400):
        d_SP = 0.04 * generator.standard_normal((3, 1)) + 0.2 * generator.standard_normal((3, 240))
        two_way.append(two_way_difference(d_SP, np.zeros_like(d_SP), tags))
        naive.append(score_interval({str(i): ("t", float(v)) for i, v in enumerate(d_SP.mean(axis=0))}))
    assert coverage(naive) < 0.65
    assert coverage(two_way) > 0.92


def test_with_identical_seeds_two_way_reduces_to_the_prompts() -> None:
    row = np.random.default_rng(9).normal(size=50)
    both = two_way_difference(np.stack([row] * 3), np.zeros((3, 50)), ["t"] * 50)
    one = paired_difference(table({"t": row.tolist()}), table({"t": [0.0] * 50}))
    assert (both.value, both.stderr) == pytest.approx((one.value, one.stderr))


def test_equal_scores_give_a_difference_of_exactly_zero() -> None:
    same = table({"t": [0.25, 0.5, 1.0], "u": [0.0, 1.0]})
    difference = paired_difference(same, same)
    assert (difference.value, difference.low, difference.high, difference.p_value) == (0, 0, 0, 1)
    assert sign_flip_test(same, same, seed=0) == 1


def test_a_single_prompt_says_nothing_about_its_spread() -> None:
    interval = score_interval(table({"t": [1.0]}))
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    assert minimum_detectable_effect(interval) == math.inf


def test_a_task_with_one_prompt_borrows_the_spread_of_the_others() -> None:
    interval = score_interval(table({"t": [0.0, 1.0], "u": [1.0]}))
    assert interval.stderr == pytest.approx(math.sqrt((0.5 / 2 + 0.5 / 1) / 4))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1), st.floats(0, 1)), min_size=4, max_size=30))
def test_swapping_the_sides_mirrors_the_interval(rows: list[tuple[str, float, float]]) -> None:
    a = {str(i): (task, x) for i, (task, x, _) in enumerate(rows)}
    b = {str(i): (task, y) for i, (task, _, y) in enumerate(rows)}
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert (forth.value, forth.low, forth.high) == pytest.approx((-back.value, -back.high, -back.low))


def test_different_prompts_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match=r"hold different prompts, 1 of them in one only, the first 't-1'"):
        paired_difference(table({"t": [1.0, 0.0]}), table({"t": [1.0]}))


def test_no_prompt_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="no prompt was scored"):
        score_interval({})


@settings(deadline=None)
@given(
    st.integers(2, 4).flatmap(
        lambda seeds: st.lists(
            st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=4, max_size=4), min_size=seeds, max_size=seeds
        )
    )
)
def test_a_two_way_interval_is_finite_whatever_the_scores(differences: list[list[float]]) -> None:
    d_SP = np.array(differences)
    interval = two_way_difference(d_SP, np.zeros_like(d_SP), ["a", "a", "b", "b"])
    assert -math.inf < interval.low <= interval.value <= interval.high < math.inf


def test_means_that_agree_by_chance_do_not_make_a_two_way_interval_certain() -> None:
    d_SP = np.array([[1.0, 0.0], [0.0, 1.0]])
    interval = two_way_difference(d_SP, np.zeros_like(d_SP), ["t", "t"])
    assert interval.stderr > 0.1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.sampled_from([0.0, 0.3, 3.0]))
def test_a_two_way_interval_leaves_out_0_where_its_p_is_below_5_percent(seed: int, seeds: int, effect: float) -> None:
    generator = np.random.default_rng(seed)
    d_SP = effect + generator.standard_normal((seeds, 8)) * generator.choice([0.01, 1.0])
    d_SP -= generator.choice([0.0, 0.999]) * (d_SP.mean(axis=1, keepdims=True) - effect)  # seeds agree by chance
    interval = two_way_difference(d_SP, np.zeros_like(d_SP), list("aaaabbbb"))
    assert (interval.low > 0 or interval.high < 0) == (interval.p_value < 0.05)
    assert abs(interval.value) / interval.stderr == pytest.approx(
        float(critical_value(interval.parts or ((1.0, interval.df),), interval.p_value)), rel=1e-6, abs=1e-6
    ) or (interval.p_value < 1e-49)


def test_a_two_way_interval_asks_for_two_seeds() -> None:
    with pytest.raises(ValueError, match="at least 2 seeds"):
        two_way_difference(np.zeros((1, 4)), np.zeros((1, 4)), ["t"] * 4)


# --- bootstrap, robust summaries, decisions -------------------------------------------------------------------------


def test_bca_agrees_with_scipy_where_percentiles_are_off() -> None:
    values = np.random.default_rng(6).exponential(1.0, 25)  # skewed, so that the correction is large
    one = table({"t": values.tolist()}), table({"t": [0.0] * 25})
    ours = paired_bootstrap(*one, seed=0, kind="bca", resamples=40_000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="BCa", n_resamples=40_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.015)
    percentile = paired_bootstrap(*one, seed=0, resamples=40_000)
    assert abs(percentile.high - theirs.high) > 0.03


def test_bca_of_equal_differences_is_a_point() -> None:
    interval = paired_bootstrap(table({"t": [1.0] * 9}), table({"t": [0.5] * 9}), seed=0, kind="bca", resamples=100)
    assert (interval.low, interval.high) == (0.5, 0.5)


def test_the_interquartile_mean_is_the_mean_of_the_middle_half() -> None:
    scores = np.arange(16.0).reshape(4, 4)
    interval = interquartile_mean(scores, seed=0, resamples=500)
    assert interval.value == np.mean(np.arange(4, 12))
    assert interval.low < interval.value < interval.high
    outlier = scores.copy()
    outlier[3, 3] = 1000.0
    assert interquartile_mean(outlier, seed=0, resamples=500).value == interval.value


def test_the_probability_of_improvement_is_the_mann_whitney_share() -> None:
    generator = np.random.default_rng(7)
    a, b = generator.normal(0.5, 1, (5, 3)), generator.normal(0, 1, (4, 3))
    expected = np.mean([stats.mannwhitneyu(a[:, t], b[:, t]).statistic / 20 for t in range(3)])
    interval = probability_of_improvement(a, b, seed=0)
    assert interval.value == pytest.approx(expected)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert probability_of_improvement(a, a, seed=0).value == 0.5


def test_two_one_sided_tests_agree_with_scipys_t_test() -> None:
    values = np.random.default_rng(8).normal(0.02, 0.2, 60)
    interval = paired_difference(table({"t": values.tolist()}), table({"t": [0.0] * 60}))
    margin = 0.1
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    assert equivalence_p(interval, margin) == pytest.approx(max(above, below))


@pytest.mark.parametrize(
    ("low", "high", "outcome"), [(-0.01, 0.03, "pass"), (-0.09, -0.03, "regression"), (-0.05, 0.01, "inconclusive")]
)
def test_non_inferiority_is_decided_by_the_ends_of_the_interval(low: float, high: float, outcome: str) -> None:
    interval = Interval(value=(low + high) / 2, low=low, high=high, n=9, seeds=1, method="")
    assert non_inferiority(interval, 0.02) == outcome


def test_no_difference_on_few_prompts_is_not_certainty() -> None:
    few = Interval(value=0.0, low=0.0, high=0.0, n=3, seeds=1, method="", stderr=0.0, df=2.0)
    room = never_certain(few).high
    assert (1 - room) ** 3 == pytest.approx(0.05)  # so many changed prompts would be missed one time in twenty
    assert never_certain(few).low == -room

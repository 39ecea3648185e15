"""Which tokens each criterion takes, and how criteria are put together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gcpo_bench.config import SelectionConfig
from gcpo_bench.errors import ConfigError, TrainingError
from gcpo_bench.registry import SELECTORS
from gcpo_bench.training.selectors import (
    All,
    Diverse,
    Initial,
    LowConfidence,
    LowEntropy,
    Random,
    Structural,
    TopEntropy,
    build_selectors,
    floor_share,
    select,
)
from gcpo_bench.training.types import Selector, TokenSignals

from .reference import selection
from .reference.inputs import make_embeddings, make_signals

RATIO_SELECTORS = ["initial", "structural", "diverse", "random", "top-entropy", "low-entropy"]
CONSTRUCTORS: list[Callable[..., Any]] = [Initial, Structural, Diverse, Random, TopEntropy, LowEntropy]
OFFICIAL: list[tuple[str, Selector]] = [
    ("initial", Initial(ratio=0.1)),
    ("structural", Structural(ratio=0.1, window=(0.1, 0.9))),
    ("diverse", Diverse(ratio=0.1)),
]
PRINTED: list[tuple[str, Selector]] = [
    ("initial", Initial(ratio=0.1)),
    ("structural", Structural(ratio=0.1)),
    ("diverse", Diverse(ratio=0.1)),
]


def flat_signals(grid: tuple[int, int], **changed: list[float]) -> TokenSignals:
    """One row, every signal 0 but those given."""
    zeros_BT = torch.zeros(1, grid[0] * grid[1])
    signals = TokenSignals(
        grid=grid, entropy_BT=zeros_BT, similarity_BT=zeros_BT, logprobs_BT=zeros_BT, noise_BT=zeros_BT
    )
    replaced: dict[str, Any] = {name: torch.tensor([values]) for name, values in changed.items()}
    return dataclasses.replace(signals, **replaced)


def nothing(signals: TokenSignals) -> Tensor:
    return torch.zeros_like(signals.entropy_BT, dtype=torch.bool)


def positions(mask_T: Tensor) -> list[int]:
    return mask_T.nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("grid", "seeds"),
    [((24, 24), 4), ((16, 16), 8), ((8, 8), 20), ((4, 4), 20), ((6, 11), 20), ((1, 20), 20), ((15, 2), 20)],
)
def test_masks_equal_the_released_ones_position_by_position(grid: tuple[int, int], seeds: int) -> None:
    for seed in range(seeds):
        signals = make_signals(rows=4, grid=grid, seed=seed)
        similarity = selection.pair_similarity(make_embeddings(4, grid[0] * grid[1], seed).tolist())
        chosen = select(OFFICIAL, signals, "exclude", complement=False)
        printed = select(PRINTED, signals, "allow", complement=False)
        for row in range(4):
            entropy = signals.entropy_BT[row].tolist()
            released_sets = selection.released_sets(entropy, similarity, *grid)
            for (name, _), expected in zip(OFFICIAL, released_sets, strict=True):
                assert set(positions(chosen.subsets[name][row])) == expected, (seed, row, name)
            assert set(positions(chosen.selected_BT[row])) == set.union(*released_sets)
            printed_sets = selection.printed_sets(entropy, similarity, *grid)
            for (name, _), expected in zip(PRINTED, printed_sets, strict=True):
                assert set(positions(printed.subsets[name][row])) == expected, (seed, row, name)
            assert set(positions(printed.selected_BT[row])) == set.union(*printed_sets)


def test_masks_equal_the_released_ones_where_many_entropies_are_equal() -> None:
    for seed in range(10):
        signals = make_signals(rows=4, grid=(12, 12), seed=seed)
        rounded = dataclasses.replace(signals, entropy_BT=signals.entropy_BT.round())
        chosen_BT = Structural(ratio=0.1, window=(0.1, 0.9))(rounded, nothing(rounded))
        for row in range(4):
            _, expected, _ = selection.released_sets(rounded.entropy_BT[row].tolist(), [0.0] * 144, 12, 12)
            assert set(positions(chosen_BT[row])) == expected


@pytest.mark.parametrize(("side", "start", "end"), [(24, 57, 517), (16, 25, 229)])
def test_the_structural_window_is_the_released_one(side: int, start: int, end: int) -> None:
    signals = make_signals(rows=4, grid=(side, side), seed=0)
    whole_window = Structural(ratio=(end - start) / side**2, window=(0.1, 0.9))  # as many as the window holds
    for row in whole_window(signals, nothing(signals)):
        assert positions(row) == list(range(start, end))


def test_the_smallest_grid_takes_one_token_a_set() -> None:
    chosen = select(OFFICIAL, make_signals(rows=4, grid=(4, 4), seed=1), "exclude", complement=False)
    assert {name: mask_BT.sum(dim=1).tolist() for name, mask_BT in chosen.subsets.items()} == {
        "initial": [1] * 4,  # floor(0.1 * 16) = 1
        "structural": [1] * 4,
        "diverse": [1] * 4,
    }


@pytest.mark.parametrize(
    ("share", "num_tokens", "count"), [(0.1, 10, 1), (0.29, 100, 29), (0.1, 576, 57), (0.7, 10, 7)]
)
def test_a_share_survives_rounding(share: float, num_tokens: int, count: int) -> None:
    assert floor_share(share, num_tokens) == count


@pytest.mark.parametrize("name", RATIO_SELECTORS)
@given(ratio=st.floats(0.05, 1.0), seed=st.integers(0, 99), grid=st.sampled_from([(6, 6), (1, 40), (5, 9)]))
@settings(max_examples=15, deadline=None)
def test_a_selector_takes_exactly_its_share(name: str, ratio: float, seed: int, grid: tuple[int, int]) -> None:
    signals = make_signals(rows=4, grid=grid, seed=seed)
    selected_BT = SELECTORS.load(name)(ratio=ratio)(signals, nothing(signals))
    assert selected_BT.dtype == torch.bool
    assert (selected_BT.sum(dim=1) == math.floor(ratio * grid[0] * grid[1] + 1e-9)).all()


@given(ratio=st.floats(0.03, 0.32), seed=st.integers(0, 99), order=st.permutations(RATIO_SELECTORS))
@settings(max_examples=40, deadline=None)
def test_excluded_sets_are_disjoint_and_the_complement_is_the_rest(ratio: float, seed: int, order: list[str]) -> None:
    signals = make_signals(rows=4, grid=(6, 7), seed=seed)
    selectors = [(name, SELECTORS.load(name)(ratio=ratio)) for name in order[:3]]
    chosen = select(selectors, signals, "exclude", complement=False)
    count = math.floor(ratio * 42 + 1e-9)
    times_taken_BT = torch.stack(list(chosen.subsets.values())).sum(dim=0)
    assert torch.equal(times_taken_BT, chosen.selected_BT.long())
    assert (chosen.selected_BT.sum(dim=1) == 3 * count).all()
    rest = select(selectors, signals, "exclude", complement=True)
    assert torch.equal(rest.selected_BT, ~chosen.selected_BT)
    assert all(torch.equal(rest.subsets[name], chosen.subsets[name]) for name in chosen.subsets)


@given(ratio=st.floats(0.03, 1.0), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_allowed_sets_each_choose_as_if_alone(ratio: float, seed: int) -> None:
    signals = make_signals(rows=4, grid=(6, 7), seed=seed)
    selectors = [(name, SELECTORS.load(name)(ratio=ratio)) for name in RATIO_SELECTORS]
    chosen = select(selectors, signals, "allow", complement=False)
    for name, selector in selectors:
        assert torch.equal(chosen.subsets[name], selector(signals, nothing(signals)))
    assert torch.equal(chosen.selected_BT, torch.stack(list(chosen.subsets.values())).any(dim=0))


@given(seed=st.integers(0, 99), order=st.permutations(range(8)))
@settings(max_examples=25, deadline=None)
def test_images_are_selected_independently_of_their_order(seed: int, order: list[int]) -> None:
    signals = make_signals(rows=8, grid=(5, 8), seed=seed)
    shuffled = TokenSignals(
        grid=signals.grid,
        **{name: getattr(signals, name)[order] for name in ("entropy_BT", "similarity_BT", "logprobs_BT", "noise_BT")},
    )
    others: list[tuple[str, Selector]] = [("random", Random(ratio=0.1, sets=3)), ("low-confidence", LowConfidence())]
    for selectors in (OFFICIAL, others[:1], others[1:]):
        chosen_BT = select(selectors, signals, "exclude", complement=False).selected_BT
        assert torch.equal(select(selectors, shuffled, "exclude", complement=False).selected_BT, chosen_BT[order])


@pytest.mark.parametrize("make", CONSTRUCTORS)
def test_equal_scores_go_to_the_lower_index(make: Callable[..., Any]) -> None:
    signals = flat_signals((1, 10))
    assert positions(make(ratio=0.3)(signals, nothing(signals))[0]) == [0, 1, 2]
    taken_BT = nothing(signals)
    taken_BT[0, 1] = True
    assert positions(make(ratio=0.3)(signals, taken_BT)[0]) == [0, 2, 3]


def test_each_criterion_by_hand() -> None:
    signals = flat_signals(
        (1, 5),
        entropy_BT=[1.0, 1.0, 5.0, 0.0, 2.0],
        similarity_BT=[0.9, -0.2, 0.5, 0.1, 0.9],
        noise_BT=[0.5, 0.4, 0.9, 0.8, 0.1],
        logprobs_BT=[math.log(p) for p in (0.5, 0.1, 0.3, 0.9, 0.2)],  # mean 0.4
    )
    free_BT = nothing(signals)
    assert positions(All()(signals, free_BT)[0]) == [0, 1, 2, 3, 4]
    assert positions(Initial(ratio=0.4)(signals, free_BT)[0]) == [0, 1]
    assert positions(Diverse(ratio=0.4)(signals, free_BT)[0]) == [1, 3]
    assert positions(Random(ratio=0.4)(signals, free_BT)[0]) == [1, 4]
    assert positions(TopEntropy(ratio=0.2, sets=2)(signals, free_BT)[0]) == [2, 4]
    assert positions(LowEntropy(ratio=0.4)(signals, free_BT)[0]) == [0, 3]
    assert positions(LowConfidence()(signals, free_BT)[0]) == [1, 2, 4]
    # smoothed along the row: 1, 1, 3, 2.5, 1; slopes 0, 1, 0.75, -1, -1.5
    assert positions(Structural(ratio=0.4)(signals, free_BT)[0]) == [1, 4]


def test_low_confidence_takes_nothing_where_all_tokens_are_equally_probable() -> None:
    signals = flat_signals((1, 7), logprobs_BT=[-1000.0] * 7)  # exp(-1000) is 0 in floats
    assert not LowConfidence()(signals, nothing(signals)).any()
    with pytest.raises(TrainingError, match="low-confidence selects no token at all") as caught:
        select([("low-confidence", LowConfidence())], signals, "exclude", complement=False)
    assert "selection.selectors" in caught.value.hint


def test_the_complement_of_all_is_refused() -> None:
    with pytest.raises(TrainingError, match="the complement of all selects no token at all") as caught:
        select([("all", All())], flat_signals((2, 2)), "exclude", complement=True)
    assert "selection.complement" in caught.value.hint


@pytest.mark.parametrize("make", CONSTRUCTORS)
@pytest.mark.parametrize("ratio", [None, 0, 0.0, -0.1, 1.01, math.nan, math.inf])
def test_a_ratio_that_is_no_share_is_refused(make: Callable[..., Any], ratio: float | None) -> None:
    with pytest.raises(ValueError, match=rf"ratio is {ratio}, .*floor\(ratio \* T\) must be >= 1"):
        make(ratio=ratio)


@pytest.mark.parametrize("make", CONSTRUCTORS)
def test_a_share_of_less_than_one_token_is_refused(make: Callable[..., Any]) -> None:
    signals = flat_signals((3, 3))
    expected = r"ratio 0\.1 of a 3x3 grid is less than one token: floor\(ratio \* 9\) must be >= 1"
    with pytest.raises(ValueError, match=expected):
        make(ratio=0.1)(signals, nothing(signals))


@pytest.mark.parametrize("sets", [0, -1, 1.5])
def test_sets_must_be_a_whole_number(sets: float) -> None:
    with pytest.raises(ValueError, match=r"sets is .* expected a whole number >= 1"):
        Random(ratio=0.1, sets=sets)  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [(0.9, 0.1), (0.5, 0.5), (-0.1, 0.5), (0.1, 1.1), (0.1,), (math.nan, 1.0)])
def test_a_window_that_is_no_range_is_refused(window: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[lo, hi\] with 0 <= lo < hi <= 1"):
        Structural(ratio=0.1, window=window)


def test_too_few_free_tokens_are_refused_with_the_counts() -> None:
    signals = flat_signals((2, 5))
    taken_BT = nothing(signals)
    taken_BT[0, :6] = True
    with pytest.raises(ValueError, match="diverse takes 5 tokens an image, but only 4 of 10 are free"):
        Diverse(ratio=0.5)(signals, taken_BT)
    with pytest.raises(ValueError, match="structural takes 9 tokens an image, but only 8 of 10 are free"):
        Structural(ratio=0.9, window=(0.1, 0.9))(signals, nothing(signals))
    halves: list[tuple[str, Selector]] = [("initial", Initial(ratio=0.6)), ("mine", Diverse(ratio=0.6))]
    with pytest.raises(
        ConfigError, match="selector 'mine': diverse takes 6 tokens an image, but only 4 of 10 are free"
    ):
        select(halves, signals, "exclude", complement=False)


def test_scores_that_are_not_finite_stop_training() -> None:
    signals = flat_signals((1, 4), entropy_BT=[0.0, math.nan, 1.0, 2.0])
    with pytest.raises(TrainingError, match="top-entropy: its scores are not all finite") as caught:
        TopEntropy(ratio=0.5)(signals, nothing(signals))
    assert "diverged" in caught.value.hint


def test_the_default_configuration_builds_the_released_selection() -> None:
    built = build_selectors(SelectionConfig())
    assert [name for name, _ in built] == ["initial", "structural", "diverse"]
    signals = make_signals(rows=4, grid=(12, 12), seed=3)
    expected_BT = select(OFFICIAL, signals, "exclude", complement=False).selected_BT
    assert torch.equal(select(built, signals, "exclude", complement=False).selected_BT, expected_BT)


def test_repeated_selectors_are_numbered() -> None:
    random = {"name": "random", "ratio": 0.1}
    config = SelectionConfig.model_validate({"selectors": [random, {"name": "all"}, random, random]})
    built = build_selectors(config)
    assert [name for name, _ in built] == ["random", "all", "random-2", "random-3"]


@pytest.mark.parametrize(
    ("item", "message", "hint"),
    [
        ({"name": "all", "ratio": 0.1}, "selector 'all': .*'ratio'", "all takes no ratio and no options"),
        ({"name": "low-confidence", "ratio": 0.1}, "selector 'low-confidence': .*'ratio'", "takes no ratio"),
        ({"name": "diverse"}, "selector 'diverse': .*missing .*'ratio'", "diverse takes ratio"),
        ({"name": "random", "ratio": 0.1, "options": {"set": 3}}, "selector 'random': .*'set'", "takes ratio, sets"),
        ({"name": "random", "ratio": 0.1, "options": {"ratio": 0.2}}, "selector 'random': .*multiple values", "ratio"),
        ({"name": "random", "ratio": 0.1, "options": {"sets": 0}}, "selector 'random': sets is 0", "takes ratio, sets"),
        (
            {"name": "structural", "ratio": 0.1, "options": {"window": [0.9, 0.1]}},
            r"selector 'structural': window is \[0.9, 0.1\]",
            "takes ratio, window",
        ),
        ({"name": "structral", "ratio": 0.1}, "unknown selector 'structral'", "did you mean 'structural'"),
    ],
)
def test_a_selector_that_cannot_be_built_is_named_with_what_it_takes(
    item: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_selectors(SelectionConfig.model_validate({"selectors": [item]}))
    assert hint in caught.value.hint


def test_random_follows_the_noise_it_is_given_and_nothing_else() -> None:
    signals = make_signals(rows=4, grid=(8, 8), seed=0)
    chosen_BT = Random(ratio=0.25)(signals, nothing(signals))
    assert torch.equal(chosen_BT, Random(ratio=0.25)(signals, nothing(signals)))
    other = dataclasses.replace(signals, noise_BT=make_signals(rows=4, grid=(8, 8), seed=1).noise_BT)
    assert not torch.equal(chosen_BT, Random(ratio=0.25)(other, nothing(other)))

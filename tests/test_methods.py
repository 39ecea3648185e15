"""Every shipped method builds and trains on the tokens it promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gcpo_bench.config import LossConfig, RunConfig, SelectionConfig
from gcpo_bench.errors import ConfigError
from gcpo_bench.methods import METHODS, get_method
from gcpo_bench.training.losses import policy_loss
from gcpo_bench.training.selectors import build_selectors, select
from gcpo_bench.training.types import Batch, Selection, TokenSignals
from gcpo_bench.training.weighting import build_weighting

from .reference.inputs import make_batch, make_signals

GRIDS = [(8, 8), (12, 12), (16, 16), (24, 24)]

PROMISED: dict[str, Callable[[int], int]] = {
    # tokens an image, from the number of tokens of the grid
    "grpo": lambda tokens: tokens,
    "grpo-daw": lambda tokens: tokens,
    "gcpo": lambda tokens: 3 * (tokens // 10),
    "gcpo-official": lambda tokens: 3 * (tokens // 10),
    "gcpo-no-daw": lambda tokens: 3 * (tokens // 10),
    "init-reweighted": lambda tokens: 3 * (tokens // 10),
    "random": lambda tokens: 3 * (tokens // 10),
    "top-entropy": lambda tokens: 3 * (tokens // 10),
    "low-entropy": lambda tokens: 3 * (tokens // 10),
    "gcpo-init": lambda tokens: tokens // 10,
    "gcpo-struct": lambda tokens: tokens // 10,
    "gcpo-sim": lambda tokens: tokens // 10,
    "remaining": lambda tokens: tokens - 3 * (tokens // 10),
}
DATA_DEPENDENT = {"gcpo-paper", "low-confidence"}  # tested one by one below


def resolved(name: str) -> RunConfig:
    return RunConfig.model_validate({"method": name, **get_method(name).settings})


def chosen_by(name: str, signals: TokenSignals) -> Selection:
    config: SelectionConfig = resolved(name).selection
    return select(build_selectors(config), signals, config.overlap, config.complement)


def counts(selected_BT: Tensor) -> set[int]:
    return set(selected_BT.sum(dim=1).tolist())


def test_every_method_has_a_promise_to_keep() -> None:
    assert set(METHODS) == set(PROMISED) | DATA_DEPENDENT


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", sorted(PROMISED))
def test_a_method_trains_on_as_many_tokens_as_it_promises(name: str, grid: tuple[int, int]) -> None:
    signals = make_signals(rows=8, grid=grid, seed=11)
    assert counts(chosen_by(name, signals).selected_BT) == {PROMISED[name](grid[0] * grid[1])}


@pytest.mark.parametrize("grid", GRIDS)
def test_the_printed_sets_may_overlap_but_each_has_its_share(grid: tuple[int, int]) -> None:
    share = grid[0] * grid[1] // 10
    selection = chosen_by("gcpo-paper", make_signals(rows=8, grid=grid, seed=11))
    assert {name: counts(mask_BT) for name, mask_BT in selection.subsets.items()} == {
        "initial": {share},
        "structural": {share},
        "diverse": {share},
    }
    assert share <= min(counts(selection.selected_BT)) <= max(counts(selection.selected_BT)) <= 3 * share


@pytest.mark.parametrize("grid", GRIDS)
def test_low_confidence_takes_what_lies_below_the_mean_probability(grid: tuple[int, int]) -> None:
    signals = make_signals(rows=8, grid=grid, seed=11)
    probs_BT = signals.logprobs_BT.exp()
    expected_BT = probs_BT < probs_BT.sum(dim=1, keepdim=True) / (grid[0] * grid[1])
    assert torch.equal(chosen_by("low-confidence", signals).selected_BT, expected_BT)
    assert expected_BT.any(dim=1).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_remaining_is_exactly_what_gcpo_leaves(grid: tuple[int, int]) -> None:
    signals = make_signals(rows=8, grid=grid, seed=12)
    gcpo, remaining = chosen_by("gcpo", signals), chosen_by("remaining", signals)
    assert torch.equal(remaining.selected_BT, ~gcpo.selected_BT)


@pytest.mark.parametrize("name", ["gcpo-official", "gcpo-no-daw", "init-reweighted"])
def test_the_ladder_shares_gcpo_s_tokens(name: str) -> None:
    signals = make_signals(rows=8, grid=(12, 12), seed=13)
    assert torch.equal(chosen_by(name, signals).selected_BT, chosen_by("gcpo", signals).selected_BT)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_gives_a_finite_loss_and_some_gradient_at_the_start(name: str) -> None:
    config = resolved(name)
    signals = make_signals(rows=4, grid=(8, 8), seed=14)
    logprobs_BT = signals.logprobs_BT.clone().requires_grad_()
    selected_BT = chosen_by(name, signals).selected_BT
    batch = Batch(
        old_logprobs_BT=None,
        ref_logprobs_BT=signals.logprobs_BT,
        advantages_B=torch.tensor([1.0, -1.0, 0.5, -0.5], dtype=torch.float64),
        selected_BT=selected_BT,
        policy_denominator=float(selected_BT.sum()),
        kl_denominator=float(selected_BT.sum()),
    )
    output = policy_loss(logprobs_BT, batch, build_weighting(config.weighting), config.loss)
    (gradient_BT,) = torch.autograd.grad(output.loss, logprobs_BT)
    assert output.loss.isfinite()
    assert gradient_BT.norm() > 0


def test_gcpo_and_its_released_form_differ_only_through_the_weight() -> None:
    logprobs_BT, batch = make_batch(2, 64, seed=3, spread=0.2)
    losses = {
        name: float(policy_loss(logprobs_BT, batch, build_weighting(resolved(name).weighting), LossConfig()).loss)
        for name in ("gcpo", "gcpo-official")
    }
    assert losses["gcpo"] == losses["gcpo-official"]  # the same value, another gradient


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown method 'gcpo-offical'") as caught:
        get_method("gcpo-offical")
    assert "did you mean 'gcpo-official'" in caught.value.hint

"""The factors of the policy term."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gcpo_bench.config import WeightingConfig
from gcpo_bench.errors import ConfigError
from gcpo_bench.training.weighting import Confidence, Prefix, Uniform, build_weighting

from .reference import objective
from .reference.inputs import make_batch


@pytest.mark.parametrize("form", ["exp", "linear"])
@pytest.mark.parametrize("support", ["all", "selected"])
@pytest.mark.parametrize("spread", [0.0, 0.1, 2.0])
def test_confidence_equals_the_written_out_sums(form: Any, support: Any, spread: float) -> None:
    logprobs_BT, batch = make_batch(3, 24, seed=5, spread=spread)
    batch.selected_BT[0, :4] = False  # a row whose first selected token comes late
    weights_BT = Confidence(form=form, clip=0.5, support=support)(logprobs_BT, batch.ref_logprobs_BT, batch.selected_BT)
    for row in range(3):
        expected = objective.confidence_weights(
            logprobs_BT[row].tolist(),
            batch.ref_logprobs_BT[row].tolist(),
            batch.selected_BT[row].tolist(),
            form=form,
            only_selected=support == "selected",
        )
        assert weights_BT[row].tolist() == pytest.approx(expected, abs=1e-13)


def test_confidence_by_hand() -> None:
    logprobs_BT = torch.tensor([[0.0, 0.3, 2.0, -9.0]])
    ref_BT = torch.zeros(1, 4)
    selected_BT = torch.tensor([[False, True, False, True]])
    # clipped to 0, 0.3, 0.5, -0.5; running means 0/1, 0.3/2, 0.8/3, 0.3/4
    linear_BT = Confidence(form="linear")(logprobs_BT, ref_BT, selected_BT)
    assert linear_BT[0].tolist() == pytest.approx([0.0, 0.15, 0.8 / 3, 0.075], abs=1e-6)
    # over the selected only: nothing yet -> 0, 0.3, 0.3, (0.3 - 0.5)/2
    selected_only_BT = Confidence(form="linear", support="selected")(logprobs_BT, ref_BT, selected_BT)
    assert selected_only_BT[0].tolist() == pytest.approx([0.0, 0.3, 0.3, -0.1], abs=1e-6)


@given(spread=st.floats(0, 20), seed=st.integers(0, 99), support=st.sampled_from(["all", "selected"]))
@settings(max_examples=40, deadline=None)
def test_exp_weights_stay_between_the_clipped_bounds(spread: float, seed: int, support: Any) -> None:
    logprobs_BT, batch = make_batch(2, 30, seed=seed, spread=spread)
    weights_BT = Confidence(support=support)(logprobs_BT, batch.ref_logprobs_BT, batch.selected_BT)
    assert (weights_BT >= math.exp(-0.5) - 1e-12).all()  # 0.607
    assert (weights_BT <= math.exp(0.5) + 1e-12).all()  # 1.649


def test_weights_are_neutral_while_policy_and_reference_agree() -> None:
    logprobs_BT, batch = make_batch(2, 30, seed=0, spread=0.0)
    assert (Confidence(form="exp")(logprobs_BT, logprobs_BT, batch.selected_BT) == 1).all()
    assert (Confidence(form="linear")(logprobs_BT, logprobs_BT, batch.selected_BT) == 0).all()


def test_only_the_undetached_weight_carries_gradient_and_never_to_the_reference() -> None:
    logprobs_BT, batch = make_batch(2, 10, seed=0, spread=0.1)
    policy_BT, ref_BT = logprobs_BT.requires_grad_(), batch.ref_logprobs_BT.requires_grad_()
    assert not Confidence(detached=True)(policy_BT, ref_BT, batch.selected_BT).requires_grad
    assert not Prefix()(policy_BT, ref_BT, batch.selected_BT).requires_grad
    assert not Uniform()(policy_BT, ref_BT, batch.selected_BT).requires_grad
    weights_BT = Confidence(detached=False)(policy_BT, ref_BT, batch.selected_BT)
    to_policy, to_ref = torch.autograd.grad(weights_BT.sum(), (policy_BT, ref_BT), allow_unused=True)
    assert (to_policy != 0).all()
    assert to_ref is None


def test_prefix_by_hand() -> None:
    selected_BT = torch.tensor([[True, False, True, False]])
    weights_BT = Prefix()(torch.zeros(1, 4), torch.zeros(1, 4), selected_BT)
    # sums over the selected t >= j of 1/t, t from 1: 1 + 1/3, 1/3, 1/3, 0
    assert weights_BT[0].tolist() == pytest.approx([1 + 4 / 3, 4 / 3, 4 / 3, 1.0], abs=1e-6)
    assert weights_BT[0, 3] == 1


def test_prefix_is_the_boost_in_the_released_gradient_at_the_start() -> None:
    logprobs_BT, batch = make_batch(2, 20, seed=3, spread=0.0)
    mask = batch.selected_BT.tolist()
    gradient = objective.released_gradient(logprobs_BT.tolist(), logprobs_BT.tolist(), [-1.0, -1.0], mask, beta=0.0)
    boost_BT = torch.tensor(gradient, dtype=torch.float64) * float(batch.selected_BT.sum())
    weights_BT = Prefix()(logprobs_BT, logprobs_BT, batch.selected_BT)
    selected_BT = batch.selected_BT
    torch.testing.assert_close(weights_BT[selected_BT], boost_BT[selected_BT], atol=1e-12, rtol=0)


@pytest.mark.parametrize("weighting", [Uniform(), Prefix(), Confidence(), Confidence(support="selected")])
@pytest.mark.parametrize(
    ("given_dtype", "kept_dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_weights_are_float32_or_better(weighting: Any, given_dtype: torch.dtype, kept_dtype: torch.dtype) -> None:
    logprobs_BT = torch.zeros(2, 3, dtype=given_dtype)
    weights_BT = weighting(logprobs_BT, logprobs_BT, torch.ones(2, 3, dtype=torch.bool))
    assert weights_BT.dtype == kept_dtype
    assert weights_BT.shape == (2, 3)


def test_configured_weightings_get_the_fields_they_have() -> None:
    settings = {"form": "linear", "clip": 0.25, "detached": False, "support": "selected"}
    confidence = build_weighting(WeightingConfig.model_validate({"name": "confidence", **settings}))
    assert confidence == Confidence(form="linear", clip=0.25, detached=False, support="selected")
    assert build_weighting(WeightingConfig.model_validate({"name": "uniform", **settings})) == Uniform()
    assert build_weighting(WeightingConfig.model_validate({"name": "prefix", **settings})) == Prefix()


def test_an_unknown_weighting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown weighting 'confidense'") as caught:
        build_weighting(WeightingConfig.model_validate({"name": "confidense"}))
    assert "did you mean 'confidence'" in caught.value.hint

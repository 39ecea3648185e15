"""The loss: equal to the released one, to GRPO, and to the sum of its micro-batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gcpo_bench.config import LossConfig, RunConfig
from gcpo_bench.errors import TrainingError
from gcpo_bench.methods import get_method
from gcpo_bench.training.losses import denominators, image_counts, policy_loss
from gcpo_bench.training.types import Batch, LossOutput, Weighting
from gcpo_bench.training.weighting import Confidence, Prefix, Uniform, build_weighting

from .reference import objective
from .reference.inputs import make_batch

OFFICIAL = Confidence(form="exp", clip=0.5, detached=False)
SPREADS = [0.0, 0.02, 2.0]  # policy == reference; small differences; most of them beyond the clip of 0.5


def config(**settings: Any) -> LossConfig:
    return LossConfig.model_validate(settings)


def loss_and_gradient(
    logprobs_BT: Tensor, batch: Batch, weighting: Weighting, loss_config: LossConfig
) -> tuple[LossOutput, Tensor]:
    leaf_BT = logprobs_BT.clone().requires_grad_()
    output = policy_loss(leaf_BT, batch, weighting, loss_config)
    (gradient_BT,) = torch.autograd.grad(output.loss, leaf_BT)
    return output, gradient_BT


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("rows", "num_tokens"), [(3, 64), (2, 256)])
@pytest.mark.parametrize("beta", [0.0, 0.01])
def test_official_loss_and_gradient_equal_the_released_statements(
    spread: float, rows: int, num_tokens: int, beta: float
) -> None:
    logprobs_BT, batch = make_batch(rows, num_tokens, seed=num_tokens, spread=spread)
    output, gradient_BT = loss_and_gradient(logprobs_BT, batch, OFFICIAL, config(beta=beta))
    leaf_BT = logprobs_BT.clone().requires_grad_()
    expected = objective.released_loss(leaf_BT, batch.ref_logprobs_BT, batch.advantages_B, batch.selected_BT, beta)
    (expected_gradient_BT,) = torch.autograd.grad(expected, leaf_BT)
    assert abs(float(output.loss.detach() - expected.detach())) < 1e-10
    torch.testing.assert_close(gradient_BT, expected_gradient_BT, atol=1e-10, rtol=0)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("num_tokens", [16, 64, 576])
def test_official_gradient_equals_its_closed_form(spread: float, num_tokens: int) -> None:
    logprobs_BT, batch = make_batch(2, num_tokens, seed=num_tokens + 1, spread=spread)
    _, gradient_BT = loss_and_gradient(logprobs_BT, batch, OFFICIAL, config(beta=0.04))
    expected = objective.released_gradient(
        logprobs_BT.tolist(),
        batch.ref_logprobs_BT.tolist(),
        batch.advantages_B.tolist(),
        batch.selected_BT.tolist(),
        beta=0.04,
    )
    torch.testing.assert_close(gradient_BT, torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=0)


def normalized(batch: Batch, loss_config: LossConfig) -> Batch:
    """The batch with the denominators that an update with this configuration has."""
    policy, kl = denominators(batch.selected_BT, loss_config.kl_tokens, loss_config.normalizer)
    counts_B = image_counts(batch.selected_BT, loss_config.normalizer)
    return dataclasses.replace(batch, policy_denominator=policy, kl_denominator=kl, image_counts_B=counts_B)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("empty", [False, True])
def test_the_printed_method_is_a_mean_over_images_of_the_means_over_their_selected_tokens(
    spread: float, empty: bool
) -> None:
    method = RunConfig.model_validate(get_method("gcpo-paper").settings)
    logprobs_BT, batch = make_batch(5, 64, seed=3, spread=spread)
    batch.selected_BT[1, 20:] = False  # as where an image's sets overlap
    if empty:
        batch.selected_BT[2] = False
    assert len(set(batch.selected_BT.sum(dim=1).tolist())) >= 4
    weighting = build_weighting(method.weighting)
    loss_config = method.loss.model_copy(update={"beta": 0.04})
    output, gradient_BT = loss_and_gradient(logprobs_BT, normalized(batch, loss_config), weighting, loss_config)
    leaf_BT = logprobs_BT.clone().requires_grad_()
    expected = objective.printed_loss(leaf_BT, batch.ref_logprobs_BT, batch.advantages_B, batch.selected_BT, 0.04)
    (expected_gradient_BT,) = torch.autograd.grad(expected, leaf_BT)
    assert abs(float(output.loss.detach() - expected.detach())) < 1e-10
    torch.testing.assert_close(gradient_BT, expected_gradient_BT, atol=1e-10, rtol=0)
    if spread:  # dividing once over all rows is another loss here
        once = loss_config.model_copy(update={"normalizer": "selected"})
        other, _ = loss_and_gradient(logprobs_BT, normalized(batch, once), weighting, once)
        assert float(other.loss.detach()) != pytest.approx(float(output.loss.detach()), rel=1e-3)


def test_a_mean_an_image_is_a_mean_a_token_where_all_images_have_as_many() -> None:
    logprobs_BT, batch = make_batch(4, 16, seed=8, spread=0.3)
    batch = dataclasses.replace(batch, selected_BT=torch.arange(16).expand(4, 16) < 5)
    for kl_tokens in ("selected", "all"):
        (once, once_BT), (images, images_BT) = (
            loss_and_gradient(logprobs_BT, normalized(batch, each), OFFICIAL, each)
            for each in (config(kl_tokens=kl_tokens), config(kl_tokens=kl_tokens, normalizer="per-image"))
        )
        assert float(images.loss.detach()) == pytest.approx(float(once.loss.detach()), abs=1e-14)
        torch.testing.assert_close(images_BT, once_BT, atol=1e-14, rtol=0)


@pytest.mark.parametrize("old_spread", [None, 0.1, 1.0])
def test_all_tokens_with_unit_weights_is_grpo(old_spread: float | None) -> None:
    logprobs_BT, batch = make_batch(4, 36, seed=7, spread=0.3, share=1.0, old_spread=old_spread)
    old_BT = logprobs_BT if batch.old_logprobs_BT is None else batch.old_logprobs_BT
    output = policy_loss(logprobs_BT, batch, Uniform(), config(beta=0.04, clip_epsilon=0.2))
    expected = objective.grpo_loss(
        logprobs_BT.tolist(),
        old_BT.tolist(),
        batch.ref_logprobs_BT.tolist(),
        batch.advantages_B.tolist(),
        beta=0.04,
        epsilon=0.2,
    )
    assert float(output.loss) == pytest.approx(expected, abs=1e-12)


def test_the_printed_weight_detached_never_starts_and_undetached_does() -> None:
    logprobs_BT, batch = make_batch(3, 64, seed=1, spread=0.0)
    batch = dataclasses.replace(batch, ref_logprobs_BT=logprobs_BT.clone())
    for beta in (0.0, 0.01, 1.0):
        detached = Confidence(form="linear", detached=True)
        _, gradient_BT = loss_and_gradient(logprobs_BT, batch, detached, config(beta=beta))
        assert (gradient_BT == 0).all()
        through = Confidence(form="linear", detached=False)
        _, gradient_BT = loss_and_gradient(logprobs_BT, batch, through, config(beta=beta))
        assert gradient_BT.norm() > 0


@pytest.mark.parametrize("weighting", [Uniform(), Prefix(), Confidence(), Confidence(support="selected")])
@pytest.mark.parametrize("spread", SPREADS)
def test_detached_weights_leave_unselected_tokens_without_gradient(weighting: Weighting, spread: float) -> None:
    logprobs_BT, batch = make_batch(3, 64, seed=2, spread=spread, old_spread=0.1)
    _, gradient_BT = loss_and_gradient(logprobs_BT, batch, weighting, config(beta=0.1))
    assert (gradient_BT[~batch.selected_BT] == 0).all()
    assert (gradient_BT[batch.selected_BT] != 0).any()


def test_the_released_weight_gives_gradient_to_unselected_tokens_before_the_last_selected_one() -> None:
    logprobs_BT, batch = make_batch(2, 64, seed=2, spread=0.02)
    batch.selected_BT[:, 40:] = False
    _, gradient_BT = loss_and_gradient(logprobs_BT, batch, OFFICIAL, config())
    for row in range(2):
        last = int(batch.selected_BT[row].nonzero().max())
        assert (gradient_BT[row, : last + 1] != 0).all()
        assert (gradient_BT[row, last + 1 :] == 0).all()


def test_equal_rewards_leave_only_the_divergence() -> None:
    logprobs_BT, batch = make_batch(2, 16, seed=4, spread=0.3)
    batch = dataclasses.replace(batch, advantages_B=torch.zeros(2, dtype=torch.float64))
    output, _ = loss_and_gradient(logprobs_BT, batch, OFFICIAL, config(beta=0.5))
    assert output.metrics["loss/policy"] == 0
    assert float(output.metrics["loss/total"]) == pytest.approx(0.5 * float(output.metrics["loss/kl"]))
    _, gradient_BT = loss_and_gradient(logprobs_BT, batch, OFFICIAL, config(beta=0.0))
    assert (gradient_BT == 0).all()


def test_clipping_by_hand() -> None:
    # ratios 1.5 and 0.5 with eps 0.2; min(rA, clip(r)A): A = 1 -> 1.2 and 0.5; A = -1 -> -1.5 and -0.8
    ratios_BT = torch.tensor([[1.5, 0.5], [1.5, 0.5]], dtype=torch.float64)
    zeros_BT = torch.zeros(2, 2, dtype=torch.float64)
    batch = Batch(
        old_logprobs_BT=zeros_BT,
        ref_logprobs_BT=ratios_BT.log(),
        advantages_B=torch.tensor([1.0, -1.0], dtype=torch.float64),
        selected_BT=torch.ones(2, 2, dtype=torch.bool),
        policy_denominator=4.0,
        kl_denominator=4.0,
    )
    output, gradient_BT = loss_and_gradient(ratios_BT.log(), batch, Uniform(), config(clip_epsilon=0.2, beta=0.0))
    assert float(output.loss.detach()) == pytest.approx(-(1.2 + 0.5 - 1.5 - 0.8) / 4)
    # only the unclipped branches move: d(rA)/dlp = rA
    assert gradient_BT.tolist() == [[0.0, pytest.approx(-0.5 / 4)], [pytest.approx(1.5 / 4), 0.0]]


def test_clipping_is_inert_when_the_current_policy_sampled() -> None:
    logprobs_BT, batch = make_batch(2, 16, seed=4, spread=0.3)
    tight, tight_gradient_BT = loss_and_gradient(logprobs_BT, batch, Uniform(), config(clip_epsilon=1e-6))
    loose, loose_gradient_BT = loss_and_gradient(logprobs_BT, batch, Uniform(), config(clip_epsilon=0.9))
    assert tight.loss == loose.loss
    assert torch.equal(tight_gradient_BT, loose_gradient_BT)


def test_the_divergence_may_cover_every_token() -> None:
    logprobs_BT, batch = make_batch(2, 16, seed=9, spread=0.3)
    batch = dataclasses.replace(batch, kl_denominator=32.0)
    output, gradient_BT = loss_and_gradient(logprobs_BT, batch, Uniform(), config(kl_tokens="all", beta=1.0))
    shift_BT = batch.ref_logprobs_BT - logprobs_BT
    assert float(output.metrics["loss/kl"]) == pytest.approx(float((shift_BT.exp() - shift_BT - 1).mean()))
    assert (gradient_BT[~batch.selected_BT] != 0).all()


@pytest.mark.parametrize(
    ("kl_tokens", "normalizer", "expected"),
    [
        ("selected", "selected", (3.0, 3.0)),
        ("all", "selected", (3.0, 8.0)),
        ("selected", "all", (8.0, 8.0)),
        ("all", "all", (8.0, 8.0)),
        ("selected", "per-image", (2.0, 2.0)),  # images
        ("all", "per-image", (2.0, 8.0)),  # as many tokens in every image
    ],
)
def test_denominators_count_what_their_terms_cover(
    kl_tokens: Any, normalizer: Any, expected: tuple[float, float]
) -> None:
    selected_BT = torch.tensor([[True, False, False, True], [False, True, False, False]])
    assert denominators(selected_BT, kl_tokens, normalizer) == expected


def test_denominators_refuse_an_empty_selection() -> None:
    with pytest.raises(TrainingError, match="none of the update's 8 tokens is selected") as caught:
        denominators(torch.zeros(2, 4, dtype=torch.bool), "selected", "selected")
    assert "zero_variance" in caught.value.hint


@given(
    seed=st.integers(0, 99),
    cut=st.integers(1, 5),
    kl_tokens=st.sampled_from(["selected", "all"]),
    normalizer=st.sampled_from(["selected", "all", "per-image"]),
    weighting=st.sampled_from([Uniform(), Prefix(), Confidence(), OFFICIAL, Confidence(form="linear")]),
    old_spread=st.sampled_from([None, 0.2]),
)
@settings(max_examples=40, deadline=None)
def test_micro_batches_add_up(
    seed: int, cut: int, kl_tokens: Any, normalizer: Any, weighting: Weighting, old_spread: float | None
) -> None:
    logprobs_BT, batch = make_batch(6, 20, seed=seed, spread=0.3, old_spread=old_spread)
    loss_config = config(kl_tokens=kl_tokens, normalizer=normalizer, beta=0.1)
    batch = normalized(batch, loss_config)
    whole, whole_gradient_BT = loss_and_gradient(logprobs_BT, batch, weighting, loss_config)
    pieces = [
        loss_and_gradient(logprobs_BT[rows], batch.rows(rows), weighting, loss_config)
        for rows in (slice(0, cut), slice(cut, 6))
    ]
    for name, value in whole.metrics.items():
        assert float(sum(output.metrics[name] for output, _ in pieces)) == pytest.approx(float(value), abs=1e-12)
    torch.testing.assert_close(torch.cat([grad_BT for _, grad_BT in pieces]), whole_gradient_BT, atol=1e-12, rtol=0)
    assert torch.equal(torch.cat([output.weights_BT for output, _ in pieces]), whole.weights_BT)


@given(shift=st.floats(-20, 20), exponent=st.integers(0, 12), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=100, deadline=None)
def test_the_divergence_is_never_negative(shift: float, exponent: int, dtype: torch.dtype) -> None:
    logprobs_BT = torch.full((1, 1), shift * 10.0**-exponent, dtype=dtype)
    batch = Batch(
        old_logprobs_BT=None,
        ref_logprobs_BT=torch.zeros(1, 1, dtype=dtype),
        advantages_B=torch.zeros(1, dtype=dtype),
        selected_BT=torch.ones(1, 1, dtype=torch.bool),
        policy_denominator=1.0,
        kl_denominator=1.0,
    )
    divergence = float(policy_loss(logprobs_BT, batch, Uniform(), config()).metrics["loss/kl"])
    # one unit in the last place of the shift is what rounding can cost
    assert divergence >= -float(logprobs_BT.abs()) * torch.finfo(dtype).eps


def test_a_small_divergence_keeps_its_digits_in_float32() -> None:
    logprobs_BT, batch = make_batch(4, 64, seed=0, spread=1e-4)
    exact = float(policy_loss(logprobs_BT, batch, Uniform(), config()).metrics["loss/kl"])
    ref_BT = batch.ref_logprobs_BT - logprobs_BT  # around 0, so that the inputs lose nothing in float32
    single = dataclasses.replace(batch, ref_logprobs_BT=ref_BT.float(), advantages_B=batch.advantages_B.float())
    rounded = float(policy_loss(torch.zeros(4, 64), single, Uniform(), config()).metrics["loss/kl"])
    assert rounded == pytest.approx(exact, rel=1e-3)  # exp(x) - x - 1 in float32 even gets the sign wrong here


def test_a_token_that_is_not_covered_cannot_spoil_the_loss() -> None:
    logprobs_BT, batch = make_batch(2, 16, seed=1, spread=0.1)
    column = int((~batch.selected_BT[0]).nonzero()[0])
    logprobs_BT[0, column] = -2000.0  # exp(ref - policy) overflows
    output, gradient_BT = loss_and_gradient(logprobs_BT, batch, Confidence(), config())
    assert output.loss.isfinite()
    assert gradient_BT.isfinite().all()


def test_metrics_are_detached_and_the_total_is_the_loss() -> None:
    logprobs_BT, batch = make_batch(2, 16, seed=1, spread=0.1)
    output, _ = loss_and_gradient(logprobs_BT, batch, OFFICIAL, config(beta=0.3))
    assert set(output.metrics) == {"loss/policy", "loss/kl", "loss/total"}
    assert not any(value.requires_grad for value in output.metrics.values())
    assert not output.weights_BT.requires_grad
    assert output.metrics["loss/total"] == output.loss.detach()
    parts = float(output.metrics["loss/policy"]) + 0.3 * float(output.metrics["loss/kl"])
    assert float(output.metrics["loss/total"]) == pytest.approx(parts, abs=1e-14)


def test_half_precision_log_probs_are_summed_in_float32() -> None:
    logprobs_BT, batch = make_batch(2, 16, seed=1, spread=0.1)
    half = dataclasses.replace(
        batch, ref_logprobs_BT=batch.ref_logprobs_BT.bfloat16(), advantages_B=batch.advantages_B.float()
    )
    assert policy_loss(logprobs_BT.bfloat16(), half, OFFICIAL, config()).loss.dtype == torch.float32


def test_log_probs_of_another_shape_are_refused() -> None:
    logprobs_BT, batch = make_batch(2, 16, seed=1, spread=0.1)
    with pytest.raises(ValueError, match=r"logprobs_BT is \(1, 16\), selected_BT is \(2, 16\)"):
        policy_loss(logprobs_BT[:1], batch, Uniform(), config())

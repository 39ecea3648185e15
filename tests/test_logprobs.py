"""Log-probs in chunks, and with gradient at some positions only: the numbers of the whole computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gcpo_bench import scenes
from gcpo_bench.config import LossConfig
from gcpo_bench.training import logprobs
from gcpo_bench.training.logprobs import token_logprobs
from gcpo_bench.training.losses import denominators, policy_loss
from gcpo_bench.training.policies.janus_pro import JanusPro
from gcpo_bench.training.policies.janus_pro import build as build_janus
from gcpo_bench.training.policies.scenes import ScenesPolicy
from gcpo_bench.training.policies.scenes import build as build_scenes
from gcpo_bench.training.types import Batch
from gcpo_bench.training.weighting import Confidence, Uniform

TEXTS = [prompt.text for prompt in scenes.held_out_prompts()[:240:60]]


@pytest.fixture(scope="module", params=["scenes", "janus"])
def policy(request: pytest.FixtureRequest) -> ScenesPolicy | JanusPro:
    made = build_scenes("scenes-8") if request.param == "scenes" else build_janus("janus-pro-tiny")
    made.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    return made.double().train(mode=False)


def tokens_of(policy: Any) -> Tensor:
    shape = (len(TEXTS), policy.grid[0] * policy.grid[1])
    return torch.randint(policy.vocab_size, shape, generator=torch.Generator().manual_seed(2))


def written_out(policy: Any, tokens_BT: Tensor) -> Tensor:
    """All logits at once."""
    logits_BTV = policy.head(policy.hidden(TEXTS, tokens_BT))
    chosen: Tensor = logits_BTV.log_softmax(-1).gather(2, tokens_BT[..., None])[..., 0]
    return chosen


@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_chunks_change_nothing(policy: Any, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", rows * policy.vocab_size)
    tokens_BT = tokens_of(policy)
    torch.testing.assert_close(
        token_logprobs(policy, TEXTS, tokens_BT), written_out(policy, tokens_BT), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("weighting", [Uniform(), Confidence()])
@pytest.mark.parametrize("rows", [5, 10_000])
def test_the_update_of_selected_positions_is_the_masked_whole_one(
    policy: Any, monkeypatch: pytest.MonkeyPatch, weighting: Any, rows: int
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", rows * policy.vocab_size)
    generator = torch.Generator().manual_seed(3)
    tokens_BT = tokens_of(policy)
    selected_BT = torch.rand(tokens_BT.shape, generator=generator) < 0.3
    whole_BT = written_out(policy, tokens_BT)
    policy_denominator, kl_denominator = denominators(selected_BT, "selected", "selected")
    batch = Batch(
        old_logprobs_BT=None,
        ref_logprobs_BT=whole_BT.detach() + 0.3 * torch.randn(whole_BT.shape, generator=generator, dtype=torch.double),
        advantages_B=torch.randn(len(TEXTS), generator=generator, dtype=torch.double),
        selected_BT=selected_BT,
        policy_denominator=policy_denominator,
        kl_denominator=kl_denominator,
    )
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    part_BT = token_logprobs(policy, TEXTS, tokens_BT, differentiated_BT=selected_BT)
    torch.testing.assert_close(part_BT, whole_BT, atol=1e-12, rtol=0)
    losses = [policy_loss(found_BT, batch, weighting, LossConfig(beta=0.1)).loss for found_BT in (part_BT, whole_BT)]
    torch.testing.assert_close(*losses, atol=1e-13, rtol=0)
    ours, theirs = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses)
    assert sum(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in theirs) > 10
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_positions_without_gradient_have_none(policy: Any) -> None:
    tokens_BT = tokens_of(policy)
    nowhere = torch.zeros(tokens_BT.shape, dtype=torch.bool)
    found = token_logprobs(policy, TEXTS, tokens_BT, differentiated_BT=nowhere)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(found.sum(), parameters, allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)

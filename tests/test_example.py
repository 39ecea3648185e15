"""`examples/gcpo_on_one_page.py` trains as the training loop does: same start, prompts and noise, same numbers.

Equal means to the bit. Both sides sample and differentiate one batch in float32 in one thread, and round alike in
every sum that reaches a weight; where the page adds up otherwise, in the smoothing of entropy, only the order of tokens
depends on it. A tolerance for weights would be hard to justify: AdamW divides each gradient by its own size, which
makes steps out of rounding errors.
"""

from __future__ import annotations

import ast
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from examples import gcpo_on_one_page as page
from gcpo_bench import streams
from gcpo_bench.config import LossConfig, RunConfig, SelectionConfig, WeightingConfig
from gcpo_bench.resolve import resolve
from gcpo_bench.training.advantages import group_advantages
from gcpo_bench.training.learner import as_module, build_learner
from gcpo_bench.training.loop import train_step
from gcpo_bench.training.losses import denominators, policy_loss
from gcpo_bench.training.observation import draw_prompts
from gcpo_bench.training.selectors import build_selectors, select
from gcpo_bench.training.signals import group_similarity
from gcpo_bench.training.types import Batch, TokenSignals
from gcpo_bench.training.weighting import build_weighting

GROUP = 4


def config(seed: int, *overrides: str) -> RunConfig:
    small = ("policy.name=scenes-8", "sampling.prompts_per_step=2", f"sampling.group_size={GROUP}")
    return resolve(None, (*small, *overrides), {"method": "gcpo", "seed": seed}).config


# the first two seeds whose first two steps each have a group of unequal rewards; gradients are shorter than 1
@pytest.mark.parametrize(("seed", "max_norm"), [(3, None), (4, 0.1)])
def test_three_steps_equal_the_training_loop(
    seed: int, max_norm: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if max_norm is None:
        learner = build_learner(config(seed))
    else:
        learner = build_learner(config(seed, f"optimizer.max_grad_norm={max_norm}"))
        monkeypatch.setattr(page, "MAX_GRADIENT_NORM", max_norm)
    policy: Any = copy.deepcopy(as_module(learner.policy))
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=page.LEARNING_RATE, weight_decay=0.0)
    num_tokens = policy.grid[0] * policy.grid[1]
    weights_moved = []
    for step in (1, 2, 3):
        prompts = draw_prompts(learner.config, step)
        noise = [
            streams.uniforms(seed, f"rollout/{step}", prompt.id, image, num_tokens)
            for prompt in prompts
            for image in range(GROUP)
        ]
        of_page = page.step(policy, reference, optimizer, prompts, torch.from_numpy(np.stack(noise)))
        of_loop = train_step(learner, step)
        assert of_page == {name: of_loop[name] for name in of_page}
        for (name, mine), (_, its) in zip(
            policy.named_parameters(), as_module(learner.policy).named_parameters(), strict=True
        ):
            assert torch.equal(mine, its), f"{name} after step {step}"
        weights_moved.append(of_loop["weight/max"] > 1)
    assert weights_moved == [False, True, True]  # else the steps would not tell one weight from another
    assert of_page["loss/kl"] > 0


def random_logprobs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Policy, old policy, reference, advantages and selection of 8 images, as far apart as many updates leave them."""
    generator = torch.Generator().manual_seed(seed)
    old_BT = -3 * torch.rand(8, 64, generator=generator)
    logprobs_BT = old_BT + 0.3 * torch.randn(8, 64, generator=generator)
    ref_logprobs_BT = old_BT + 0.6 * torch.randn(8, 64, generator=generator)
    selected_BT = torch.rand(8, 64, generator=generator) < 0.3
    return logprobs_BT, old_BT, ref_logprobs_BT, torch.randn(8, generator=generator), selected_BT


def test_loss_and_gradient_equal_those_of_training_beyond_both_clips() -> None:
    """The steps above clip no ratio, since each rollout has one update."""
    logprobs_BT, old_BT, ref_logprobs_BT, advantages_B, selected_BT = random_logprobs(0)
    assert ((logprobs_BT - old_BT).exp() > 1 + page.RATIO_CLIP).any()
    assert ((logprobs_BT - ref_logprobs_BT).abs() > page.WEIGHT_CLIP).any()
    policy_denominator, kl_denominator = denominators(selected_BT, "selected", "selected")
    batch = Batch(
        old_logprobs_BT=old_BT,
        ref_logprobs_BT=ref_logprobs_BT,
        advantages_B=advantages_B,
        selected_BT=selected_BT,
        policy_denominator=policy_denominator,
        kl_denominator=kl_denominator,
    )
    own_BT, its_BT = (logprobs_BT.clone().requires_grad_() for _ in range(2))
    loss, kl = page.loss(own_BT, old_BT, ref_logprobs_BT, advantages_B, selected_BT)
    expected = policy_loss(its_BT, batch, build_weighting(WeightingConfig()), LossConfig())
    assert torch.equal(loss, expected.loss)
    assert torch.equal(kl, expected.metrics["loss/kl"])
    (own_gradient_BT,) = torch.autograd.grad(loss, own_BT)
    (its_gradient_BT,) = torch.autograd.grad(expected.loss, its_BT)
    assert torch.equal(own_gradient_BT, its_gradient_BT)
    assert own_gradient_BT.count_nonzero() > 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("side", [8, 12, 16, 24])
def test_critical_tokens_are_those_that_training_selects(side: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    entropy_BT = 3 * torch.rand(3 * GROUP, side * side, generator=generator)
    # 6 different tokens: many places of a group hold the same ones in another order, and tie but for rounding
    vectors_VD = torch.randn(6, 96, generator=generator)
    embeddings_BTD = vectors_VD[torch.randint(6, entropy_BT.shape, generator=generator)]
    nothing_BT = torch.full_like(entropy_BT, torch.nan)
    signals = TokenSignals(
        grid=(side, side),
        entropy_BT=entropy_BT,
        similarity_BT=group_similarity(embeddings_BTD, GROUP),
        logprobs_BT=nothing_BT,
        noise_BT=nothing_BT,
    )
    settings = SelectionConfig()
    expected = select(build_selectors(settings), signals, settings.overlap, settings.complement)
    selected_BT = page.critical_tokens(entropy_BT, embeddings_BTD.view(3, GROUP, side * side, -1), (side, side))
    assert torch.equal(selected_BT, expected.selected_BT)


def test_advantages_equal_those_of_training() -> None:
    rewards_PG = torch.tensor([[0.0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    expected_B = group_advantages(rewards_PG.flatten(), GROUP, RunConfig().advantages.std_epsilon)
    assert torch.equal(page.group_advantages(rewards_PG).flatten(), expected_B)


def test_the_page_takes_no_part_of_the_method_from_the_package() -> None:
    tree = ast.parse(Path(page.__file__).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    method = ("advantages", "loop", "losses", "selectors", "signals", "update", "weighting")
    assert not modules & {f"gcpo_bench.training.{name}" for name in method}


def test_the_script_prints_an_aligned_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    page.main(num_steps=2)
    header, *lines = capsys.readouterr().out.splitlines()
    assert {len(line) for line in lines} == {len(header)}
    rows = [line.split() for line in lines]
    assert [row[0] for row in rows] == ["1", "2"]
    assert all(0 < float(row[1]) < 1 for row in rows)
    assert float(rows[0][2]) == 0 < float(rows[1][2])  # the first step's policy is the reference
    assert [row[3] for row in rows] == ["28.1%", "28.1%"]  # 18 of 64

"""How a step of the large families is cut into decodes and micro-batches: memory and speed, not results."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gcpo_bench.resolve import resolve
from gcpo_bench.training.learner import build_learner
from gcpo_bench.training.metrics import Stopwatch
from gcpo_bench.training.observation import draw_prompts, observe
from gcpo_bench.training.update import update

SMALL = ("policy.random_init=true", "rewards=[{name: redness}]", "sampling.prompts_per_step=8", "sampling.group_size=8")


def step(model: str, method: str, rows: int, micro: int) -> tuple[torch.Tensor, float, list[torch.Tensor]]:
    """Image tokens of 64 rows, the gradient's norm, and what was learned of them."""
    splits = (f"sampling.batch_rows={rows}", f"optimizer.micro_batch_rows={micro}", "sampling.guidance_scale=3")
    learner = build_learner(resolve(None, [*SMALL, *splits], {"method": method, "model": model}).config)
    seen: Any = observe(learner, draw_prompts(learner.config, 1), "rollout/1", Stopwatch())
    norm = update(learner, seen, 1)["optimizer/gradient_norm"]
    return seen.rollout.tokens_BT, norm, [parameter.detach() for parameter in learner.parameters]


@pytest.mark.parametrize("model", ["janus-pro-tiny", "llamagen-tiny"])
@pytest.mark.parametrize("method", ["gcpo", "gcpo-official"])
def test_how_a_step_is_split_changes_neither_images_nor_update(model: str, method: str) -> None:
    first, *others = (step(model, method, rows, micro) for rows, micro in ((64, 1), (8, 2), (1, 8)))
    assert len(first[0]) == 64
    assert first[1] > 0
    for tokens_BT, norm, learned in others:
        assert torch.equal(tokens_BT, first[0])
        assert norm == pytest.approx(first[1], rel=1e-4)
        # AdamW's first step is the sign of the gradient: where that is 0 but for rounding, the sign is rounding too
        differ = sum(int((~torch.isclose(a, b, atol=1e-5)).sum()) for a, b in zip(learned, first[2], strict=True))
        assert differ < 0.01 * sum(parameter.numel() for parameter in learned)


def test_how_an_update_is_split_changes_no_mean_over_images() -> None:
    """Images whose sets overlap have unlike numbers of tokens; the split of the decode may tip which, by rounding."""
    norms = [step("janus-pro-tiny", "gcpo-paper", 8, micro)[1] for micro in (1, 3, 8)]
    assert norms[0] > 0
    assert norms[1:] == pytest.approx([norms[0]] * 2, rel=1e-4)

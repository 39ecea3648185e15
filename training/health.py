"""Stops a run that cannot go on: numbers that are no numbers, or nothing to learn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gcpo_bench.errors import TrainingError

PATIENCE_STEPS = 20
"""A run that has learned nothing by this step is stopped."""
SAFE = "the last checkpoint is safe; lower optimizer.learning_rate, or raise loss.beta"


def check_finite(values: Mapping[str, float], step: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(f"{name} is {value} at step {step}", hint=SAFE)


def check_probabilities(entropy_TB: Tensor) -> None:
    """Raises TrainingError where a policy's probabilities are none: tokens drawn from them mean nothing.

    Args:
        entropy_TB: nats, of the distribution that each token was drawn from.
    """
    if not entropy_TB.isfinite().all():
        token = int((~entropy_TB.isfinite()).any(dim=1).nonzero()[0])
        raise TrainingError(
            f"the policy's probabilities are not finite from token {token} on",
            hint="its numbers overflow: train with a lower optimizer.learning_rate, or use policy.dtype=float32",
        )


def check_learning(history: Sequence[Mapping[str, float]], now: Sequence[Tensor], then: Sequence[Tensor]) -> None:
    """At step 20: some group must have had differing rewards, and some parameter must have moved.

    Args:
        history: metrics of the steps so far, first to last.
        now, then: the trained parameters, and as they were at the start.
    """
    if len(history) != PATIENCE_STEPS:
        return
    if all(metrics["groups/zero_variance_share"] == 1.0 for metrics in history):
        rewards = [metrics["reward/mean"] for metrics in history]
        raise TrainingError(
            f"no group had differing rewards in {PATIENCE_STEPS} steps, so there is nothing to learn from "
            f"(reward {min(rewards):.3f} to {max(rewards):.3f})",
            hint="choose a denser reward (geneval-dense), a larger sampling.group_size, or another start",
        )
    if all(torch.equal(is_now, was) for is_now, was in zip(now, then, strict=True)):
        raise TrainingError(
            f"no parameter moved in {PATIENCE_STEPS} steps: the gradient is exactly 0",
            hint="a detached linear weight is 0 while policy == reference; use weighting.form=exp or detached=false",
        )

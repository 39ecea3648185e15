"""Rewards: a weighted sum of registered terms, checked before anything learns from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gcpo_bench.config import RewardConfig
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import TrainingError
from gcpo_bench.registry import REWARDS

from .types import Reward, RewardOutput


class WeightedSum:
    """sum_k weight_k * reward_k; the terms' anomalies are logged beside it."""

    def __init__(self, configs: Sequence[RewardConfig]) -> None:
        self.terms: list[tuple[str, float, Reward]] = [
            (config.name, config.weight, REWARDS.load(config.name)()) for config in configs
        ]

    def __call__(self, images_BYXC: Any, prompts_B: Sequence[Prompt]) -> RewardOutput:
        """Raises TrainingError for a term that is not finite: a policy must not learn from a broken scorer."""
        total = [0.0] * len(prompts_B)
        anomalies: dict[str, Sequence[float]] = {}
        for name, weight, term in self.terms:
            output = term(images_BYXC, prompts_B)
            for row, value in enumerate(output.values_B):
                if not math.isfinite(value):
                    raise TrainingError(
                        f"reward {name!r} is {value} for prompt {prompts_B[row].text[:80]!r}",
                        hint="the checkpoint before this step is safe; check the scorer on that prompt",
                    )
                total[row] += weight * value
            anomalies |= output.anomalies
        return RewardOutput(values_B=total, anomalies=anomalies)

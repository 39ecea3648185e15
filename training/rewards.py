"""Rewards: a weighted sum of registered terms, checked before anything learns from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gcpo_bench.config import RewardConfig
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import GcpoBenchError, TrainingError
from gcpo_bench.registry import REWARDS

from .metrics import numbered
from .types import Reward, RewardOutput

OWN, OWN_PREFIXES = ("mean", "std"), ("task/", "term/")
"""What `reward/...` is logged beside anomalies."""


class WeightedSum:
    """sum_k weight_k * reward_k; each reward_k and the terms' anomalies are logged beside it."""

    def __init__(self, configs: Sequence[RewardConfig]) -> None:
        self.terms: list[tuple[str, float, Reward]] = [
            (config.name, config.weight, REWARDS.make(config.name)) for config in configs
        ]

    def __call__(self, images_BYXC: Any, prompts_B: Sequence[Prompt]) -> RewardOutput:
        """Raises TrainingError for a term that fails or is not finite: a policy must not learn from a broken scorer."""
        total = [0.0] * len(prompts_B)
        anomalies: dict[str, Sequence[float]] = {}
        values: list[Sequence[float]] = []
        for name, weight, term in self.terms:
            output = _call(name, term, images_BYXC, prompts_B)
            values_B = _numbers(name, "values", getattr(output, "values_B", None), len(prompts_B))
            for row, value in enumerate(values_B):
                if not math.isfinite(value):
                    raise TrainingError(
                        f"reward {name!r} is {value} for prompt {prompts_B[row].text[:80]!r}",
                        hint="the checkpoint before this step is safe; check the scorer on that prompt",
                    )
                total[row] += weight * value
            for key, found in output.anomalies.items():
                if key in OWN or key.startswith(OWN_PREFIXES):
                    raise TrainingError(
                        f"reward {name!r} gives an anomaly {key!r}, under which the reward itself is logged",
                        hint="call it otherwise",
                    )
                anomalies[key] = _numbers(name, f"numbers of {key!r}", found, len(prompts_B))
            values.append(values_B)
        names = numbered([name for name, _, _ in self.terms])
        return RewardOutput(values_B=total, anomalies=anomalies, terms=dict(zip(names, values, strict=True)))


def _numbers(name: str, what: str, given: Any, count: int) -> list[float]:
    """One float an image. Raises TrainingError for anything else: a reward may be code of others."""
    try:
        numbers = [float(value) for value in given]
    except (TypeError, ValueError) as error:
        raise TrainingError(
            f"reward {name!r}: its {what} are no list of numbers: {error}",
            hint="it must give a RewardOutput with one float an image; see docs/extending.md",
        ) from error
    if len(numbers) != count:
        raise TrainingError(
            f"reward {name!r} gave {len(numbers)} {what} for {count} images",
            hint="it must give one value an image, in their order",
        )
    return numbers


def _call(name: str, term: Reward, images_BYXC: Any, prompts_B: Sequence[Prompt]) -> RewardOutput:
    try:
        return term(images_BYXC, prompts_B)
    except Exception as error:
        if isinstance(error, GcpoBenchError) or name in REWARDS.entries:
            raise
        # code of others: what it raises is no defect of this program
        raise TrainingError(
            f"reward {name!r} failed: {type(error).__name__}: {error}",
            hint="mend it; --debug shows where. The newest checkpoint is kept: go on with --resume",
        ) from error

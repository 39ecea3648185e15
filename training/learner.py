"""What a training step works with, built from a configuration."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gcpo_bench.config import RunConfig
from gcpo_bench.errors import ConfigError
from gcpo_bench.runs import Run

from . import checkpoints
from .parallel import Workers
from .rewards import WeightedSum
from .selectors import build_selectors
from .types import Policy, Selector, Weighting
from .weighting import build_weighting


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What a step works with; only `policy` and `optimizer` change."""

    config: RunConfig
    policy: Policy
    reference: Policy
    optimizer: torch.optim.Optimizer
    reward: WeightedSum
    selectors: Sequence[tuple[str, Selector]]
    weighting: Weighting
    workers: Workers


def build_learner(config: RunConfig, run: Run | None = None) -> Learner:
    policy = checkpoints.start_policy(config, run.path.parent if run else None)
    reference = copy.deepcopy(as_module(policy)).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        trained_parameters(policy),
        lr=config.optimizer.learning_rate,
        betas=config.optimizer.betas,
        weight_decay=config.optimizer.weight_decay,
    )
    return Learner(
        config=config,
        policy=policy,
        reference=reference,  # type: ignore[arg-type]
        optimizer=optimizer,
        reward=WeightedSum(config.rewards),
        selectors=build_selectors(config.selection),
        weighting=build_weighting(config.weighting),
        workers=Workers(config.num_threads if config.policy.device == "cpu" else 1),
    )


def trained_parameters(policy: Policy) -> list[nn.Parameter]:
    """All that the policy did not freeze."""
    return [parameter for parameter in as_module(policy).parameters() if parameter.requires_grad]


def as_module(policy: Policy) -> nn.Module:
    if not isinstance(policy, nn.Module):
        raise ConfigError("a policy must be a torch module", hint="derive it from torch.nn.Module")
    return policy

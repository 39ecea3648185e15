"""What a training step works with, built from a configuration."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from gcpo_bench.config import RunConfig
from gcpo_bench.errors import ConfigError
from gcpo_bench.runs import Run

from . import lora, memory, starts
from .distributed import ALONE, World
from .optimizers import Optimizer
from .parallel import Workers
from .rewards import WeightedSum
from .selectors import build_selectors
from .types import Policy, Selector, Weighting
from .weighting import build_weighting


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What a step works with; only `policy` and `optimizer` change."""

    config: RunConfig
    world: World
    policy: Policy
    parameters: Sequence[nn.Parameter]
    """Those of the policy that are trained."""
    optimizer: Optimizer
    reward: WeightedSum
    selectors: Sequence[tuple[str, Selector]]
    weighting: Weighting
    workers: Workers
    frozen_copy: Policy | None
    """The policy as it was; None where the policy without its adapters is that."""
    start: Sequence[Tensor]
    """The trained parameters as they were."""

    @contextmanager
    def reference(self) -> Iterator[Policy]:
        """The policy that training started from."""
        if self.frozen_copy is not None:
            yield self.frozen_copy
        else:
            with lora.off(as_module(self.policy)):
                yield self.policy


def build_learner(
    config: RunConfig, run: Run | None = None, world: World = ALONE, start_weights: starts.Start | None = None
) -> Learner:
    """`start_weights`: what training starts from, if it was looked up before."""
    config, _ = memory.settled(world.settled(config), world.size)
    policy = starts.start_policy(config, run.path.parent if run else None, start_weights)
    module = as_module(policy)
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    frozen_copy = None if config.policy.lora else copy.deepcopy(module).requires_grad_(False)
    start = dict(frozen_copy.named_parameters()) if frozen_copy else {k: v.detach().clone() for k, v in trained.items()}
    return Learner(
        config=config,
        world=world,
        policy=policy,
        parameters=list(trained.values()),
        optimizer=Optimizer(list(trained.values()), config.optimizer, world),
        reward=WeightedSum(config.rewards),
        selectors=build_selectors(config.selection),
        weighting=build_weighting(config.weighting),
        workers=Workers(config.num_threads, config.policy.device, world),
        frozen_copy=frozen_copy,  # type: ignore[arg-type]
        start=[start[name] for name in trained],
    )


def as_module(policy: Policy) -> nn.Module:
    if not isinstance(policy, nn.Module):
        raise ConfigError("a policy must be a torch module", hint="derive it from torch.nn.Module")
    return policy

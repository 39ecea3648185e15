"""AdamW, with float32 copies of weights that are kept in bfloat16.

A bfloat16 weight has 8 bits of mantissa: an update below 0.4 % of it is rounded away, and at the learning rates of
reinforcement learning nearly all are. So the optimiser works on float32 copies, and the policy's weights are those,
rounded. Gradients are summed in float32 whatever the policy's type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gcpo_bench.config import OptimizerConfig


def build_optimizer(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """For the parameters that are trained. Gradients go to `learned(optimizer)`, in the order of `parameters`."""
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
        "fused": all(parameter.is_cuda for parameter in parameters),
    }
    if all(parameter.dtype in (torch.float32, torch.float64) for parameter in parameters):
        return torch.optim.AdamW(parameters, **options)
    return MasterAdamW(parameters, **options)


def learned(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What the optimiser changes: the policy's own weights, or their float32 copies."""
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 copies; after each step the weights are the copies, rounded."""

    def __init__(self, parameters: Sequence[nn.Parameter], **options: Any) -> None:
        self.rounded = list(parameters)
        super().__init__([parameter.detach().float().clone() for parameter in parameters], **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        self._round()

    def _round(self) -> None:
        for rounded, exact in zip(self.rounded, learned(self), strict=True):
            rounded.copy_(exact)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "exact": [tensor.detach() for tensor in learned(self)]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        exact = state_dict["exact"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "exact"})
        for mine, saved in zip(learned(self), exact, strict=True):
            mine.copy_(saved)
        self._round()

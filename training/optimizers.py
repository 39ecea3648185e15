"""AdamW, with float32 copies of weights that are kept in bfloat16.

A bfloat16 weight has 8 bits of mantissa: an update below 0.4 % of it is rounded away, and at the learning rates of
reinforcement learning nearly all are. So the optimiser works on float32 copies, and the policy's weights are those,
rounded. Gradients are summed in float32 whatever the policy's type.

Where several processes train, each keeps the state of its own parameters only (`training.sharding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gcpo_bench.config import OptimizerConfig

from .distributed import ALONE, World
from .sharding import Shards


class Optimizer:
    """One gradient: added up from micro-batches, clipped, applied. All processes call its methods together."""

    def __init__(self, parameters: Sequence[nn.Parameter], config: OptimizerConfig, world: World = ALONE) -> None:
        self.world = world
        self.count = len(parameters)
        self.shards = Shards(parameters, world) if world.size > 1 else None
        self.own = self.shards.own if self.shards else range(self.count)
        """Indices of the parameters whose state is here."""
        copies = not all(parameter.dtype in (torch.float32, torch.float64) for parameter in parameters)
        mine = [parameters[index] for index in self.own]
        self.adamw = _adamw(mine or [nn.Parameter(torch.empty(0))], config, copies)  # AdamW refuses an empty list
        self.changed = dict(zip(self.own, learned(self.adamw), strict=False))

    def set_rate(self, rate: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def add(self, gradients: Sequence[Tensor | None] | None) -> None:
        """What a micro-batch says, which may be overwritten; None from a process that has none while another has."""
        if self.shards is None:
            assert gradients is not None
            for tensor, gradient in zip(self.changed.values(), gradients, strict=True):
                if gradient is not None:
                    own = gradient.to(tensor.dtype)
                    tensor.grad = own if tensor.grad is None else tensor.grad.add_(own)
            return
        for piece, part in self.shards.arriving(gradients):
            tensor = self.changed[piece.parameter]
            if tensor.grad is None:  # -0: what is added to it stays as it is, even a -0
                tensor.grad = torch.full_like(tensor, -0.0, memory_format=torch.contiguous_format)
            tensor.grad.view(-1)[piece.inside].add_(part)

    def norm(self) -> Tensor:
        """Of the whole gradient."""
        norms = {
            index: torch.linalg.vector_norm(tensor.grad)
            for index, tensor in self.changed.items()
            if tensor.grad is not None
        }
        everywhere = {index: norm for part in self.world.gather(norms) for index, norm in part.items()}
        if not everywhere:
            return torch.tensor(0.0)
        whole: Tensor = torch.linalg.vector_norm(torch.stack([everywhere[index] for index in sorted(everywhere)]))
        return whole

    def step(self, norm: Tensor, max_norm: float) -> None:
        """Change the weights; nothing of the update is held during the next rollout."""
        nn.utils.clip_grads_with_norm_(self.changed.values(), max_norm, norm)
        self.adamw.step()
        self.clear()
        if self.shards is not None:
            self.shards.publish()

    def clear(self) -> None:
        self.adamw.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """That of AdamW on all parameters, on the CPU; from several processes, in the first only, else empty."""
        if self.shards is None:
            return self.adamw.state_dict()
        return _gathered(self, self.shards)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What is this process's of a whole state."""
        if self.shards is not None:
            state_dict = _own_part(state_dict, self.own)
        self.adamw.load_state_dict(state_dict)


def _adamw(parameters: Sequence[nn.Parameter], config: OptimizerConfig, copies: bool) -> torch.optim.AdamW:
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
        "fused": all(parameter.is_cuda for parameter in parameters),
    }
    return MasterAdamW(parameters, **options) if copies else torch.optim.AdamW(parameters, **options)


def _gathered(optimizer: Optimizer, shards: Shards) -> dict[str, Any]:
    """One tensor after the other, so that no GPU holds more than one that is not its own."""
    world, adamw = optimizer.world, optimizer.adamw
    exact = isinstance(adamw, MasterAdamW)
    own = {
        index: {**adamw.state.get(tensor, {}), **({"exact": tensor.detach()} if exact else {})}
        for index, tensor in optimizer.changed.items()
    }
    kept = {index: {name: value.dtype for name, value in state.items()} for index, state in own.items()}
    steps = {index: state.pop("step").cpu() for index, state in own.items() if "step" in state}
    types = {index: names for part in world.gather(kept) for index, names in part.items()}
    all_steps = {index: step for part in world.gather(steps) for index, step in part.items()}
    owner = {index: rank for rank, indices in enumerate(shards.owned) for index in indices}
    states: dict[int, dict[str, Tensor]] = {}
    for index, parameter in enumerate(shards.parameters):
        states[index] = {"step": all_steps[index]} if index in all_steps else {}
        for name, dtype in types[index].items():
            if name != "step":
                tensor = own[index][name] if index in own else None
                if tensor is None and world.first:
                    tensor = torch.empty(parameter.shape, dtype=dtype, device=parameter.device)
                states[index][name] = world.to_first(tensor, owner[index])  # type: ignore[assignment]
    if not world.first:
        return {}
    copies = {"exact": [state.pop("exact") for state in states.values()]} if exact else {}
    groups = [{**adamw.state_dict()["param_groups"][0], "params": list(range(optimizer.count))}]
    return {"state": {index: state for index, state in states.items() if state}, "param_groups": groups, **copies}


def _own_part(whole: dict[str, Any], own: Sequence[int]) -> dict[str, Any]:
    state = {place: whole["state"][index] for place, index in enumerate(own) if index in whole["state"]}
    groups = [{**whole["param_groups"][0], "params": list(range(len(own) or 1))}]
    copies = {"exact": [whole["exact"][index] for index in own] or [torch.empty(0)]} if "exact" in whole else {}
    return {"state": state, "param_groups": groups, **copies}


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

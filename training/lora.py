"""Low-rank adapters: a small trained addition to frozen linear layers (LoRA, arXiv 2106.09685), through peft.

The reference of training is then the policy with its adapters off, so no second copy of the weights exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from gcpo_bench.config import LoraConfig
from gcpo_bench.errors import ConfigError, PrerequisiteError

from .policies.shared import fill_normal


def add(policy: nn.Module, config: LoraConfig, generator: torch.Generator) -> None:
    """Put adapters into the part of `policy` that takes them (`policy.adapted`), and freeze all else.

    An adapter starts as no change: its second matrix is 0. Its first is drawn from `generator`.

    Raises:
        ConfigError: a policy that takes none, or targets that it does not have.
        PrerequisiteError: peft is not installed.
    """
    part, targets = check(policy, config)
    import peft

    policy.requires_grad_(False)
    options: Any = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": targets}
    peft.inject_adapter_in_model(peft.LoraConfig(**options), part)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_A" in name:
                fill_normal(parameter, parameter.shape[1] ** -0.5, generator)
            elif "lora_B" in name:
                parameter.zero_()


def check(policy: nn.Module, config: LoraConfig) -> tuple[Any, list[str]]:
    """The part that takes adapters, and which of its layers get one. Raises as `add` does."""
    if find_spec("peft") is None:
        raise PrerequisiteError("policy.lora needs the package 'peft'", hint="pip install 'gcpo-bench[peft]'")
    part: Any = getattr(policy, getattr(policy, "adapted", ""), None)
    if part is None:
        raise ConfigError(f"{type(policy).__name__} takes no adapters", hint="leave policy.lora out")
    return part, adapted_layers(part, config)


def adapted_layers(part: nn.Module, config: LoraConfig) -> list[str]:
    """Names within `part` of the linear layers that get an adapter."""
    linear = [name for name, module in part.named_modules() if isinstance(module, nn.Linear)]
    if not config.targets:
        return [name for name in linear if name.startswith("layers.")]
    known = sorted({name.rpartition(".")[2] for name in linear})
    if unknown := [name for name in config.targets if name not in known]:
        raise ConfigError(f"policy.lora.targets: no layer {unknown[0]!r}", hint=f"known: {', '.join(known)}")
    return [name for name in linear if name.rpartition(".")[2] in config.targets]


@contextmanager
def off(policy: nn.Module) -> Iterator[None]:
    """The policy without its adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in policy.modules() if isinstance(module, BaseTunerLayer)]
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
        for parameter in trained:  # peft switches gradients with the adapters
            parameter.requires_grad_(True)


# ---------------------------------------------------------------- an adapted layer, taken apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Adds scale * up @ down @ x to what a linear layer makes of x; N numbers in, O out, rank K."""

    down_KN: Tensor
    up_OK: Tensor
    scale: float


def base(layer: Any) -> nn.Linear:
    """The layer without its adapter, if it has one."""
    return layer.base_layer if hasattr(layer, "lora_A") else layer  # type: ignore[no-any-return]


def adapter(layer: Any) -> Adapter | None:
    """What is added to `base(layer)` now: nothing while it is `off`."""
    if not hasattr(layer, "lora_A") or layer.disable_adapters:
        return None
    (name,) = layer.active_adapters
    return Adapter(down_KN=layer.lora_A[name].weight, up_OK=layer.lora_B[name].weight, scale=layer.scaling[name])

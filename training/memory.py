"""What a run holds on its device at once, added up from the shapes of its tensors before anything is allocated.

Some of it stays from step to step; of what comes in turn, the largest counts: torch gives memory that one phase has
freed to the next. Nothing here was compared with a GPU yet. On a CPU the sums were, see `tests/test_memory.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from gcpo_bench.config import PolicyConfig, RunConfig
from gcpo_bench.environment import free_memory_bytes
from gcpo_bench.errors import PrerequisiteError
from gcpo_bench.registry import POLICIES
from gcpo_bench.reward_networks import REWARD_NETWORKS

from . import lora, starts
from .logprobs import CHUNK_LOGITS
from .sharding import EXCHANGED
from .types import Policy, Work

LARGE_PARAMETERS = 20_000_000
"""A policy with no more is tried on a CPU, where a step takes seconds."""
H200_BYTES = 141_000_000_000
"""What a GPU is taken to have where none can be asked."""
PROMPT_SLOTS = 48
"""Words of a prompt and its template, rounded up."""
LOGIT_BYTES = 12
"""Of a logit, float32: its log-softmax, and the gradient before and after that."""
FITS = 0.9
"""Share of the free memory that `policy.recompute=auto` fills before it computes activations again."""
LIBRARIES_BYTES = {"cuda": 1_500_000_000, "cpu": 600_000_000}
"""Beside tensors. On a GPU the context with its kernels, which drivers give some 0.5 GB, work space of cuBLAS and cuDNN
for two streams, the memory of the recorded steps, NCCL's buffers: an allowance, not measured. On a CPU Python, torch
and transformers, 0.4 GB as measured, and what the C library keeps of freed memory."""
FRAGMENTS = 0.05
"""Of all tensors, on a GPU: what torch's allocator cannot give away, because blocks of another size were freed. An
allowance too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes by what they are for."""

    held: Mapping[str, int]
    """From step to step."""
    in_turn: Mapping[str, Mapping[str, int]]
    """Phase of a step -> what it takes on top."""
    recomputes: bool
    """Whether activations are computed again."""
    activations: str
    """The same in words, and why."""
    trained: int
    """Numbers that learn."""

    @property
    def largest(self) -> str:
        """The phase that takes most."""
        return max(self.in_turn, key=lambda phase: sum(self.in_turn[phase].values()))

    @property
    def parts(self) -> dict[str, int]:
        """What there is at the peak."""
        return {**self.held, **self.in_turn[self.largest]}

    @property
    def peak_bytes(self) -> int:
        return sum(self.parts.values())


KEPT = "activations are kept"
AGAIN = "activations are computed again, a third more arithmetic in the policy's passes"


def needed(config: RunConfig, policy: Policy, processes: int = 1, free_bytes: int | None = None) -> Memory:
    """Of one of `processes`, each with a device; `policy` may be one without memory.

    With `policy.recompute: auto` activations are computed again where they would not fit into `free_bytes`; None: into
    what the device has free now.
    """
    choice = config.policy.recompute
    if not hasattr(policy, "recompute"):
        return _added_up(config, policy, processes, recompute=False, activations=KEPT)
    if choice != "auto":
        again = choice == "always"
        return _added_up(config, policy, processes, recompute=again, activations=AGAIN if again else KEPT)
    free = available_bytes(config.policy) if free_bytes is None else free_bytes
    kept = _added_up(config, policy, processes, recompute=False, activations=KEPT)
    wanted = f"{kept.peak_bytes / FITS / 1e9:.1f} GB must be free"
    there = (
        f"{free / 1e9:.1f} GB are"
        if _is_there(torch.device(config.policy.device))
        else f"an H200 has {H200_BYTES / 1e9:.0f} GB"
    )
    if kept.peak_bytes <= FITS * free:
        return replace(kept, activations=f"{KEPT}, for which {wanted}: {there}")
    why = f"{AGAIN}; to keep them {wanted}: {there}"
    return _added_up(config, policy, processes, recompute=True, activations=why)


def settled(config: RunConfig, processes: int = 1) -> tuple[RunConfig, str]:
    """The configuration with `policy.recompute: auto` decided, and why so; to be asked before the device is used.

    Where nothing is to be decided, the same one. Later answers may differ, because other programs take and give back
    memory; that changes no number but for rounding.
    """
    if config.policy.recompute != "auto" or not _is_large(config.policy):
        return config, ""
    policy = starts.without_memory(config.policy)
    if not hasattr(policy, "recompute"):
        return config, ""
    memory = needed(config, policy, processes)
    decided = config.policy.model_copy(update={"recompute": "always" if memory.recomputes else "never"})
    return config.model_copy(update={"policy": decided}), memory.activations


def available_bytes(policy: PolicyConfig) -> int:
    """Of the device that the policy is for; what this process holds without using it counts."""
    device = torch.device(policy.device)
    if device.type != "cuda":
        return free_memory_bytes()
    if not _is_there(device):
        return H200_BYTES
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def _is_there(device: torch.device) -> bool:
    return device.type != "cuda" or (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count())


# ---------------------------------------------------------------- the sum


def _added_up(config: RunConfig, policy: Policy, processes: int, *, recompute: bool, activations: str) -> Memory:
    module: Any = policy
    work, device = policy.work(), torch.device(config.policy.device).type
    size = 2 if config.policy.dtype == "bfloat16" else 4
    adapters = _adapters(config, module)
    weights = sum(parameter.numel() for parameter in module.parameters()) + adapters
    trained = adapters or sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    owned = -(-trained // processes)
    share = -(-config.sampling.prompts_per_step * config.sampling.group_size // processes)
    held = {
        "weights": weights * size,
        "reference": 0 if config.policy.lora is not None else weights * size,
        "optimizer moments": 2 * owned * 4,
        "float32 copies": owned * 4 if size == 2 else 0,  # adapters too have the type of the weights
        "text encoder": 0 if config.policy.random_init else getattr(policy, "text_encoder_bytes", 0),
        **_rewards(config, device),
    }
    cache = {"keys and values": _cache(config, policy, share, size)}
    in_turn = {
        "image decoding": {"image decoding": getattr(policy, "decoding_numbers", lambda images: 0)(share) * size},
        "rewards": {"rewards at work": _judging(config, device, share)},
        **_update(config, policy, work, share=share, owned=owned, trained=trained, size=size, recompute=recompute),
    }
    if device == "cuda" and getattr(policy, "fixed_shapes", False):
        held |= cache  # with the graphs recorded on it
    else:
        in_turn["rollout"] = cache
    if processes > 1:
        in_turn["end of the backward pass"]["gradients on the way"] = 2 * min(EXCHANGED, trained) * size
    tensors = sum(held.values()) + max(sum(phase.values()) for phase in in_turn.values())
    fragments = int(FRAGMENTS * tensors) if device == "cuda" else 0
    held["CUDA and fragments" if device == "cuda" else "Python and libraries"] = LIBRARIES_BYTES[device] + fragments
    return Memory(held=held, in_turn=in_turn, recomputes=recompute, activations=activations, trained=trained)


def _update(
    config: RunConfig, policy: Policy, work: Work, *, share: int, owned: int, trained: int, size: int, recompute: bool
) -> dict[str, dict[str, int]]:
    """The backward pass begins with all activations and ends with all gradients, while those before it are summed."""
    optimizer = config.optimizer
    rows = -(-share // optimizer.minibatches)
    micro = min(optimizer.micro_batch_rows, rows)
    parts = -(-rows // micro)
    tokens = policy.grid[0] * policy.grid[1]
    summed = owned * 4 if parts > 1 else 0
    at_once = _at_once(config, parts)
    kept = kept_numbers(work, tokens + PROMPT_SLOTS, recompute=recompute)
    logits = min(CHUNK_LOGITS, micro * tokens * policy.vocab_size) * LOGIT_BYTES
    return {
        "update": {
            "gradients": summed,
            "activations": at_once * micro * kept * size,
            "logits": at_once * logits,
        },
        "end of the backward pass": {"gradients": owned * 4 + at_once * trained * size},
    }


def kept_numbers(work: Work, slots: int, *, recompute: bool) -> int:
    """Activations that the backward pass of a row of so many slots finds, and those of a layer that it works on.

    Of a layer with a gated MLP, in hidden states: the inputs of both norms in float32, normalised, and scaled (2 x 5),
    queries, keys, values, and what attention makes of them (5); in the width of the MLP both branches, the activation
    and the product (4); and the mask. Recomputed, its input alone is kept.
    """
    layer = slots * (15 * work.width + 4 * work.mlp + slots)
    if recompute:
        return work.layers * slots * work.width + 2 * layer
    return (work.layers + 1) * layer


def _cache(config: RunConfig, policy: Policy, share: int, size: int) -> int:
    rows = min(config.sampling.batch_rows, share)
    guided = 1 + (config.sampling.guidance_scale != 1.0)
    slots = policy.grid[0] * policy.grid[1] + PROMPT_SLOTS
    return _at_once(config, -(-share // rows)) * rows * guided * slots * policy.work().cache_per_slot * size


def _at_once(config: RunConfig, parts: int) -> int:
    """Parts of a batch that are in work: one a thread of a CPU, and one on a GPU."""
    return min(config.num_threads, parts) if torch.device(config.policy.device).type == "cpu" else 1


def _rewards(config: RunConfig, device: str) -> dict[str, int]:
    found = {each.name: each.parameters for term in config.rewards if (each := REWARD_NETWORKS.get(term.name))}
    return {"rewards": 4 * sum(found.values()) if device == _reward_device(device) else 0}


def _judging(config: RunConfig, device: str, images: int) -> int:
    """Of the reward that takes most; they work one after the other."""
    if device != _reward_device(device):
        return 0
    found = [each for term in config.rewards if (each := REWARD_NETWORKS.get(term.name))]
    return max((each.image_bytes * (min(each.rows, images) if device == "cuda" else 1) for each in found), default=0)


def _reward_device(device: str) -> str:
    """Scorers take the GPU where there is one; a run for a GPU will find it."""
    return "cuda" if device == "cuda" or torch.cuda.is_available() else "cpu"


def _adapters(config: RunConfig, module: nn.Module) -> int:
    if config.policy.lora is None:
        return 0
    part = getattr(module, getattr(module, "adapted", ""), None)
    if part is None:  # building the policy says so
        return 0
    shapes = (part.get_submodule(name).weight.shape for name in lora.adapted_layers(part, config.policy.lora))
    return sum(config.policy.lora.rank * (rows + columns) for rows, columns in shapes)


# ---------------------------------------------------------------- does it fit


def check_memory(config: RunConfig, processes: int = 1) -> None:
    """`require_memory` of the GPU that the run is for, or of this machine's main memory where the policy is large."""
    if _is_there(torch.device(config.policy.device)) and _is_large(config.policy):
        require_memory(config, available_bytes(config.policy), processes)


def _is_large(policy: PolicyConfig) -> bool:
    """On a GPU each; models of one's own are not built for that on a CPU."""
    if torch.device(policy.device).type == "cuda":
        return True
    return policy.name in POLICIES.entries and num_parameters(policy) > LARGE_PARAMETERS


@lru_cache
def num_parameters(policy: PolicyConfig) -> int:
    return sum(parameter.numel() for parameter in starts.without_memory(policy).parameters())


def require_memory(config: RunConfig, free_bytes: int, processes: int = 1) -> None:
    """Raises PrerequisiteError where a device with so many free bytes cannot hold its share of the run."""
    memory = needed(config, starts.without_memory(config.policy), processes, free_bytes)
    if memory.peak_bytes > free_bytes:
        parts = memory.parts
        largest = max(parts, key=lambda name: parts[name])
        kind = "GPU" if torch.device(config.policy.device).type == "cuda" else "main"
        raise PrerequisiteError(
            f"{config.policy.name} needs about {memory.peak_bytes / 1e9:.0f} GB of {kind} memory, "
            f"{free_bytes / 1e9:.0f} GB are free; the most goes to {largest} ({parts[largest] / 1e9:.0f} GB)",
            hint=f"lower or set, what saves most first: {', '.join(savings(config, memory))}; "
            "see gcpo-bench train --dry-run",
        )


def savings(config: RunConfig, memory: Memory) -> list[str]:
    """Options that lower memory and are not yet used, that of the largest part first."""
    adapters = () if config.policy.lora is not None else ("policy.lora={}",)
    rounded = () if config.policy.dtype == "bfloat16" else ("policy.dtype=bfloat16",)
    again = () if memory.recomputes else ("policy.recompute=always",)
    rows = ("optimizer.micro_batch_rows",)
    lowered_by = {
        "weights": rounded,
        "reference": (*adapters, *rounded),
        **dict.fromkeys(("optimizer moments", "float32 copies", "gradients"), adapters),
        "keys and values": ("sampling.batch_rows", *rounded),
        "activations": (*again, *rows, *rounded),
        "logits": rows,
    }
    parts = memory.parts
    ordered = sorted(parts, key=lambda name: -parts[name])
    return list(dict.fromkeys(option for name in ordered if parts[name] for option in lowered_by.get(name, ())))


BENCH_PARTS = {
    "rollout": ("weights", "reference", "float32 copies", "keys and values"),
    "update": ("weights", "reference", "float32 copies", "activations", "logits"),
    "select": ("weights", "reference", "float32 copies"),
}
"""What a part of a step, measured by itself, keeps in memory; what is not named here keeps all."""


def check_bench(config: RunConfig, part: str, images: int) -> None:
    """Raises ConfigError or PrerequisiteError where the device is not there or cannot hold what is to be measured."""
    device = starts.usable_device(config.policy.device)
    sampling = config.sampling.model_copy(
        update={"batch_rows": images, "prompts_per_step": 1, "group_size": max(images, 2)}
    )
    changed = {"sampling": sampling} | ({} if part == "step" else {"num_threads": 1})  # the others use no `Workers`
    memory = needed(config.model_copy(update=changed), starts.without_memory(config.policy))
    everything = {name: count for phase in memory.in_turn.values() for name, count in phase.items()} | dict(memory.held)
    wanted = sum(everything[name] for name in BENCH_PARTS[part]) if part in BENCH_PARTS else memory.peak_bytes
    free = available_bytes(config.policy)
    if wanted > free:
        raise PrerequisiteError(
            f"bench {part} of {config.policy.name} needs about {wanted / 1e9:.0f} GB of memory on {device}, "
            f"{free / 1e9:.0f} GB are free",
            hint="lower --images or optimizer.micro_batch_rows, or set policy.dtype=bfloat16",
        )

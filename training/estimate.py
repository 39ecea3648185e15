"""What a run would cost, before it is started.

A small policy on the CPU is tried: one real step, nothing written. For a large one, or one for a GPU, memory is added
up (`gcpo_bench.training.memory`), and time is the floor (`gcpo_bench.training.floors`) on one NVIDIA H200, which was
seen to copy 4.3 TB/s and to multiply bfloat16 matrices at 790 TFLOP/s.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from gcpo_bench.config import RunConfig, SelectionConfig

from . import starts
from .floors import rollout_bytes, rollout_flops, update_flops
from .learner import as_module, build_learner
from .loop import train_step
from .memory import LARGE_PARAMETERS, PROMPT_SLOTS, Memory, needed, num_parameters
from .metrics import peak_memory_bytes
from .types import Policy
from .update import gradient_everywhere
from .weighting import build_weighting

H200_BYTES_PER_S, H200_FLOPS_PER_S = 4.3e12, 790e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    seconds_per_step: float
    """Measured on this CPU, or the floor of one H200, without rewards and image decoding."""
    bytes_on_disk: int
    peak_memory_bytes: int
    memory: Memory | None
    """What that is, where it was added up; None where a step was run."""
    everywhere: Everywhere | None
    """Why the output layer is differentiated at tokens that are not trained on, and what that costs; None if not."""

    @property
    def measured(self) -> bool:
        """One step was run."""
        return self.memory is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Everywhere:
    reason: str
    times: float
    """Backward pass of the output layer, in multiples of that at the tokens trained on."""
    more: float
    """Share by which the arithmetic of the whole update grows."""


def estimate(config: RunConfig, processes: int = 1) -> Estimate:
    """Of one of `processes`, each with a GPU. Raises ConfigError and PrerequisiteError as building the policy does."""
    if is_tried(config):
        return _tried(config)
    return _computed(config, starts.without_memory(config.policy), processes)


def is_tried(config: RunConfig) -> bool:
    """Whether the estimate is that of one step that is run, so that this machine must have all that a run needs."""
    return config.policy.device == "cpu" and num_parameters(config.policy) <= LARGE_PARAMETERS


def _tried(config: RunConfig) -> Estimate:
    learner = build_learner(config)
    started = time.perf_counter()
    metrics = train_step(learner, 1)
    seconds = time.perf_counter() - started
    weights = sum(t.numel() * t.element_size() for t in as_module(learner.policy).state_dict().values())
    every = config.logging.token_maps_every
    tokens = learner.policy.grid[0] * learner.policy.grid[1]
    maps = (config.num_steps // every + 2 if every else 0) * config.logging.tracked_prompts * tokens * 32
    checkpoint = 3 * weights  # AdamW keeps two moments
    return Estimate(
        seconds_per_step=seconds,
        bytes_on_disk=config.logging.keep_checkpoints * checkpoint + maps + config.num_steps * len(str(metrics)),
        peak_memory_bytes=peak_memory_bytes(torch.device(config.policy.device)),
        memory=None,
        everywhere=_everywhere(config, learner.policy),
    )


def _computed(config: RunConfig, policy: Policy, processes: int) -> Estimate:
    work, memory = policy.work(), needed(config, policy, processes)
    size = 2 if config.policy.dtype == "bfloat16" else 4
    tokens = policy.grid[0] * policy.grid[1]
    images = config.sampling.prompts_per_step * config.sampling.group_size
    rows = min(config.sampling.batch_rows, -(-images // processes))
    decoded = rows * (1 + (config.sampling.guidance_scale != 1.0))
    moved_s = rollout_bytes(work, decoded, tokens, size, PROMPT_SLOTS) / H200_BYTES_PER_S
    rollout_s = max(moved_s, rollout_flops(work, decoded, tokens) / H200_FLOPS_PER_S)
    rounds = math.ceil(math.ceil(images / rows) / processes)
    flops = update_flops(
        work,
        -(-images // processes),
        tokens,
        differentiated=1.0 if _reason(config) else selected_share(config.selection),
        passes=config.optimizer.epochs,
        adapters=config.policy.lora is not None,
        recomputes=memory.recomputes,
    )
    copies = 4 if size == 2 else 0
    checkpoint = memory.trained * (size + 8 + copies)
    return Estimate(
        seconds_per_step=rollout_s * rounds + flops / H200_FLOPS_PER_S,
        bytes_on_disk=(config.logging.keep_checkpoints + 1) * checkpoint,
        peak_memory_bytes=memory.peak_bytes,
        memory=memory,
        everywhere=_everywhere(config, policy),
    )


def selected_share(selection: SelectionConfig) -> float:
    """Of the tokens, at most; a selector without a ratio may take all."""
    taken: float = sum((item.ratio or 1.0) * item.options.get("sets", 1) for item in selection.selectors)
    return max(1 - taken, 0.0) if selection.complement else min(taken, 1.0)


def _reason(config: RunConfig) -> str:
    """Why the output layer is differentiated everywhere; empty where it is not."""
    if config.loss.kl_tokens == "all":
        return "the divergence covers every token"
    if gradient_everywhere(config.loss, build_weighting(config.weighting)):
        return "gradient flows through the weight"
    return ""


def _everywhere(config: RunConfig, policy: Policy) -> Everywhere | None:
    reason, share = _reason(config), selected_share(config.selection)
    if not reason or share in (0.0, 1.0):
        return None
    adapters = config.policy.lora is not None
    all_tokens, selected = (
        update_flops(policy.work(), 1, 1, differentiated=part, adapters=adapters) for part in (1.0, share)
    )
    return Everywhere(reason=reason, times=1 / share, more=all_tokens / selected - 1)

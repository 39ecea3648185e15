"""What a run would cost, before it is started.

A small policy on the CPU is tried: one real step, nothing written. For a large one, or one for a GPU, memory is added
up from the shapes of its tensors, and time is the floor (`gcpo_bench.training.floors`) on one NVIDIA H200, which was
seen to copy 4.3 TB/s and to multiply bfloat16 matrices at 790 TFLOP/s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gcpo_bench.config import RunConfig
from gcpo_bench.environment import free_memory_bytes
from gcpo_bench.errors import PrerequisiteError
from gcpo_bench.registry import POLICIES

from . import lora, starts
from .floors import rollout_bytes, update_flops
from .learner import as_module, build_learner
from .logprobs import CHUNK_LOGITS
from .loop import train_step
from .metrics import peak_memory_bytes
from .policies.shared import recomputes
from .sharding import EXCHANGED
from .types import Policy

TRIED_PARAMETERS = 20_000_000
"""Up to here a step on the CPU takes seconds, and is tried."""
H200_BYTES_PER_S, H200_FLOPS_PER_S = 4.3e12, 790e12
PROMPT_SLOTS = 48
"""Words of a prompt and its template, rounded up."""
KEPT_PER_LAYER, KEPT_PER_LAYER_RECOMPUTED = 34, 2
"""Activations that the backward pass needs, in multiples of a hidden state: of attention and a gated MLP, or of the
layer's input alone (Korthikanti et al., arXiv 2205.05198, with attention that keeps no scores)."""
OPTIONS = (
    "sampling.batch_rows",
    "optimizer.micro_batch_rows",
    "policy.dtype=bfloat16",
    "policy.recompute=always",
    "policy.lora={}",
)
"""What lowers memory, the cheapest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    seconds_per_step: float
    bytes_on_disk: int
    peak_memory_bytes: int
    measured: bool
    """One step was run; else the numbers are computed, and the seconds are the floor of one H200."""
    parts: Mapping[str, int]
    """What the memory goes to, bytes; empty where it was measured."""


def estimate(config: RunConfig, processes: int = 1) -> Estimate:
    """Of one of `processes`, each with a GPU. Raises ConfigError and PrerequisiteError as building the policy does."""
    policy = starts.without_memory(config.policy)
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    if config.policy.device == "cpu" and parameters <= TRIED_PARAMETERS:
        return _tried(config)
    return _computed(config, policy, processes)


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
        measured=True,
        parts={},
    )


def _computed(config: RunConfig, policy: Policy, processes: int) -> Estimate:
    work, module = policy.work(), as_module(policy)
    size = 2 if config.policy.dtype == "bfloat16" else 4
    tokens = policy.grid[0] * policy.grid[1]
    images = config.sampling.prompts_per_step * config.sampling.group_size
    guided = 1 + (config.sampling.guidance_scale != 1.0)
    held = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    if config.policy.lora is not None:
        trained = _adapters(config, module)
    rounded = size == 2  # adapters too have the type of the weights
    share = -(-images // processes)
    rows = min(config.sampling.batch_rows, share)
    micro = min(config.optimizer.micro_batch_rows, share)
    owned = -(-trained // processes)
    exchanged = 2 * min(EXCHANGED, trained) * size if processes > 1 else 0
    again = recomputes(config.policy.recompute, work.width)
    kept = KEPT_PER_LAYER_RECOMPUTED if again else KEPT_PER_LAYER
    always = {
        "weights": held * size,
        "reference": 0 if config.policy.lora is not None else held * size,
        "optimizer moments": 2 * owned * 4,
        "float32 copies": owned * 4 if rounded else 0,
        "text encoder": 0 if config.policy.random_init else getattr(policy, "text_encoder_bytes", 0),
    }
    # the cache is kept from rollout to rollout, with the graphs recorded on it, so all of this adds up
    in_turn = {
        "keys and values": rows * guided * (tokens + PROMPT_SLOTS) * work.cache_per_slot * size,
        "gradients": owned * 4 + trained * size,
        "gradients on the way": exchanged,
        "activations": micro * (tokens + PROMPT_SLOTS) * work.width * size * (work.layers * kept + KEPT_PER_LAYER),
        "logits": min(CHUNK_LOGITS, micro * tokens * policy.vocab_size) * (2 * 4 + 2 * size),
    }
    parts = always | in_turn
    rounds = math.ceil(math.ceil(images / rows) / processes)
    moved = rollout_bytes(work, rows * guided, tokens, size, PROMPT_SLOTS) * rounds
    seconds = moved / H200_BYTES_PER_S + update_flops(work, share, tokens) / H200_FLOPS_PER_S
    checkpoint = trained * (size + 8 + (4 if rounded else 0))
    return Estimate(
        seconds_per_step=seconds,
        bytes_on_disk=(config.logging.keep_checkpoints + 1) * checkpoint,
        peak_memory_bytes=sum(parts.values()),
        measured=False,
        parts=parts,
    )


def _adapters(config: RunConfig, module: torch.nn.Module) -> int:
    if config.policy.lora is None:
        return 0
    part = getattr(module, getattr(module, "adapted", ""), None)
    if part is None:  # building the policy says so
        return 0
    shapes = (part.get_submodule(name).weight.shape for name in lora.adapted_layers(part, config.policy.lora))
    return sum(config.policy.lora.rank * (rows + columns) for rows, columns in shapes)


def check_memory(config: RunConfig, processes: int = 1) -> None:
    """`require_memory` of the GPU that the run is for, or of this machine's main memory where the policy is large.

    Models of one's own are not built for that on a CPU.
    """
    device = torch.device(config.policy.device)
    if device.type == "cuda":
        if torch.cuda.is_available():
            require_memory(config, torch.cuda.mem_get_info(device)[0], processes)
    elif config.policy.name in POLICIES.entries:
        policy = starts.without_memory(config.policy)
        if sum(parameter.numel() for parameter in policy.parameters()) > TRIED_PARAMETERS:
            require_memory(config, free_memory_bytes(), processes)


def require_memory(config: RunConfig, free_bytes: int, processes: int = 1) -> None:
    """Raises PrerequisiteError where a device with so much free memory cannot hold its share of the run."""
    needed = _computed(config, starts.without_memory(config.policy), processes)
    if needed.peak_memory_bytes > free_bytes:
        largest = max(needed.parts, key=lambda name: needed.parts[name])
        kind = "GPU" if torch.device(config.policy.device).type == "cuda" else "main"
        raise PrerequisiteError(
            f"{config.policy.name} needs about {needed.peak_memory_bytes / 1e9:.0f} GB of {kind} memory, "
            f"{free_bytes / 1e9:.0f} GB are free; the most goes to {largest} ({needed.parts[largest] / 1e9:.0f} GB)",
            hint=f"lower or set, the cheapest first: {', '.join(OPTIONS)}; see gcpo-bench train --dry-run",
        )


BENCH_PARTS = {
    "rollout": ("weights", "reference", "float32 copies", "keys and values"),
    "update": ("weights", "reference", "float32 copies", "gradients", "activations", "logits"),
    "select": ("weights", "reference", "float32 copies"),
}
"""What a part of a step, measured by itself, keeps in memory; what is not named here keeps all."""


def check_bench(config: RunConfig, part: str, images: int) -> None:
    """Raises ConfigError or PrerequisiteError where the device is not there or cannot hold what is to be measured."""
    device = starts.usable_device(config.policy.device)
    sampling = config.sampling.model_copy(
        update={"batch_rows": images, "prompts_per_step": 1, "group_size": max(images, 2)}
    )
    policy = starts.without_memory(config.policy)
    needed = _computed(config.model_copy(update={"sampling": sampling}), policy, 1).parts
    wanted = sum(needed[name] for name in BENCH_PARTS.get(part, needed))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory_bytes()
    if wanted > free:
        raise PrerequisiteError(
            f"bench {part} of {config.policy.name} needs about {wanted / 1e9:.0f} GB of memory on {device}, "
            f"{free / 1e9:.0f} GB are free",
            hint="lower --images or optimizer.micro_batch_rows, or set policy.dtype=bfloat16",
        )

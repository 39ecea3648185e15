"""What a run would cost, before it is started."""

from __future__ import annotations

import time
from dataclasses import dataclass

from gcpo_bench.config import RunConfig

from .learner import as_module, build_learner
from .loop import train_step
from .metrics import peak_memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    seconds_per_step: float
    bytes_on_disk: int
    peak_memory_bytes: int


def estimate(config: RunConfig) -> Estimate:
    """Measured on one real step here, nothing written; disk from the size of the weights."""
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
        peak_memory_bytes=peak_memory_bytes(),
    )

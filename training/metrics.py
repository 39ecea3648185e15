"""What a step reports about itself: rewards, groups, tokens, seconds, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from .advantages import zero_variance_groups
from .types import Observation

Metrics = dict[str, float]
"""Namespaced name -> number; names end in their unit where they have one."""


class Stopwatch:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[f"time/{name}_s"] += time.perf_counter() - started


def numbered(names: Sequence[str]) -> list[str]:
    """The names under which things are logged; one that comes again gets a number: "random", "random-2"."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found


def describe(seen: Observation) -> Metrics:
    """What the rollout looked like, before the update."""
    rewards_B = seen.rewards_B
    tags_B = [prompt.tag for prompt in seen.rollout.prompts_B]
    metrics = {"reward/mean": float(rewards_B.mean()), "reward/std": float(rewards_B.std())}
    for tag in dict.fromkeys(tags_B):
        values = [value for value, own in zip(seen.reward.values_B, tags_B, strict=True) if own == tag]
        metrics[f"reward/task/{tag}"] = sum(values) / len(values)
    for name, values_B in seen.reward.terms.items():
        metrics[f"reward/term/{name}"] = sum(values_B) / len(values_B)
    for name, values_B in seen.reward.anomalies.items():
        metrics[f"reward/{name}"] = sum(values_B) / len(values_B)
    metrics["groups/zero_variance_share"] = float(
        zero_variance_groups(rewards_B, seen.rollout.group_size).float().mean()
    )
    metrics["tokens/entropy"] = float(seen.signals.entropy_BT.mean())
    metrics["tokens/selected_fraction"] = float(seen.selection.selected_BT.float().mean())
    for name, chosen_BT in seen.selection.subsets.items():
        metrics[f"tokens/selected/{name}"] = float(chosen_BT.float().mean())
    return metrics


def peak_memory_bytes(device: torch.device) -> int:
    """Of this process so far: on the GPU that it computes on, or of the process itself."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

"""Threads, time and memory of the device that models run on, for benchmarks."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch

from .compute import on


def device_name(device: str | None) -> str:
    """None is the GPU where there is one."""
    return on(device).device


def use_threads(count: int) -> None:
    torch.set_num_threads(count)


def seconds(action: Callable[[], object], device: str) -> float:
    """How long it takes, until the device has finished."""
    _wait(device)
    started = time.perf_counter()
    action()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: str) -> int:
    """The most that this process has used so far, of the GPU's memory or of the machine's."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

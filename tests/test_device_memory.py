"""Memory of a run is that of the device that it computes on, whatever else the machine has."""

from __future__ import annotations

import pytest
import torch

from gcpo_bench.errors import ConfigError, PrerequisiteError
from gcpo_bench.training import bench, starts
from gcpo_bench.training.metrics import peak_memory_bytes

BYTES = {0: 10, 1: 11}
"""Peak of each GPU."""


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As torch tells of them; what was waited for."""
    waited: list[int] = []

    def index(device: torch.device | None = None) -> int:
        return (device.index or 0) if device else 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: BYTES[index(device)])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: BYTES[index(device)] - 5)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(index(device)))
    return waited


def test_memory_and_time_are_those_of_the_device(two_gpus: list[int]) -> None:
    second = torch.device("cuda:1")
    assert peak_memory_bytes(torch.device("cuda")) == 10
    assert peak_memory_bytes(second) == bench.memory_bytes(second) == 11
    assert bench.memory_bytes(second, reset=True) == 6
    bench._wait(second)
    bench._wait(torch.device("cpu"))
    assert two_gpus == [1]


@pytest.mark.usefixtures("two_gpus")
def test_a_run_on_the_cpu_beside_a_gpu_takes_memory() -> None:
    assert peak_memory_bytes(torch.device("cpu")) > 2**24  # at least the interpreter and torch


@pytest.mark.usefixtures("two_gpus")
def test_a_device_is_checked_before_anything_is_put_there() -> None:
    assert starts.usable_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(PrerequisiteError, match=r"policy\.device is cuda:2, and torch sees 2 GPUs"):
        starts.usable_device("cuda:2")
    with pytest.raises(ConfigError, match="'gpu' is no device"):
        starts.usable_device("gpu")

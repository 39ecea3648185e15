"""Where and in which portions a model computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from gcpo_bench.errors import ConfigError

ROWS_ON_GPU = 32
Precision = Literal["float32", "autocast"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    device: str = "cpu"
    batch_size: int | None = None
    """Rows at once through the model. None: 1 on a CPU, where a score then has the same bits whatever it is scored
    together with; 32 elsewhere. Matrix products of another height may round differently, by about 1e-6 of a feature."""
    precision: Precision = "float32"
    """`autocast`: half precision on CUDA, as hpsv2 and GenEval run it, which rounds scores to 11 bits; without effect
    on a CPU, there as here."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, use 1 or more")

    @property
    def rows(self) -> int:
        return self.batch_size or (1 if torch.device(self.device).type == "cpu" else ROWS_ON_GPU)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Kinds of device round differently; how many rows go together changes the last bits only and is left out."""
        kind = torch.device(self.device).type
        return {"device": kind, "precision": self.precision if kind == "cuda" else "float32"}

    def portions(self, count: int) -> Iterator[slice]:
        return (slice(start, start + self.rows) for start in range(0, count, self.rows))

    def place(self, model: nn.Module) -> None:
        model.to(self.device)

    def autocast(self) -> torch.autocast:
        is_on = self.precision == "autocast" and torch.device(self.device).type == "cuda"
        return torch.autocast(torch.device(self.device).type, dtype=torch.float16 if is_on else None, enabled=is_on)


CPU = Compute()


def on(device: str | None, precision: Precision = "float32") -> Compute:
    """On this device; None is the GPU where there is one. Raises ConfigError where it is none."""
    return Compute(device=usable_device(device), precision=precision)


def usable_device(device: str | None) -> str:
    """This device, after trying it; None or "" is the GPU where there is one. Raises ConfigError where it is none."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"--device {device!r} cannot be used: {str(error).splitlines()[0]}", hint="use --device cpu"
        ) from error
    return device

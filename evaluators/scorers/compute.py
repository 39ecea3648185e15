"""Where, in which portions and how exactly a model computes.

On NVIDIA's newer GPUs torch lets convolutions of float32 numbers run in TF32, which keeps 10 bits of each factor. Here
float32 means float32: networks run within `exactly`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from gcpo_bench.errors import ConfigError, CorruptDataError

ROWS_ON_GPU = 32
Precision = Literal["float32", "autocast"]
P = ParamSpec("P")
T = TypeVar("T")


def require_numbers(values: Tensor, who: str) -> None:
    """Raises CorruptDataError where what a network sees is no number; any verdict on it would be a wrong one."""
    if not values.isfinite().all():
        raise CorruptDataError(f"what {who} sees is not a number", hint="its weights are damaged: fetch them again")


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
        precision = self.precision if kind == "cuda" else "float32"
        return {"device": kind, "precision": precision, **exactness(self.device)}

    def portions(self, count: int) -> Iterator[slice]:
        return (slice(start, start + self.rows) for start in range(0, count, self.rows))

    def place(self, model: nn.Module) -> None:
        model.to(self.device)

    def autocast(self) -> torch.autocast:
        is_on = self.precision == "autocast" and torch.device(self.device).type == "cuda"
        return torch.autocast(torch.device(self.device).type, dtype=torch.float16 if is_on else None, enabled=is_on)


def exactness(device: str) -> dict[str, Any]:
    """What an evaluation records of float32 on this device: nothing where there is no TF32."""
    return {"tf32": False} if torch.device(device).type == "cuda" else {}


@contextmanager
def exactly() -> Iterator[None]:
    """No TF32 in here; afterwards what was set before, which training may have chosen."""
    before = []
    for get, put, exact in _switches():
        try:
            before.append((put, get(), exact))
        except RuntimeError:  # torch does not read the old switches where somebody set the new ones, which rule
            continue
    try:
        for put, _, exact in before:
            put(exact)
        yield
    finally:
        for put, value, _ in before:
            put(value)


def _switches() -> list[tuple[Callable[[], Any], Callable[[Any], object], Any]]:
    """How each is read and set, and its value without TF32. The new ones, of torch 2.9, are to be set after the old."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    new = [cudnn.conv, cudnn.rnn, matmul] if hasattr(cudnn, "conv") else []
    return [
        (partial(getattr, cudnn, "allow_tf32"), partial(setattr, cudnn, "allow_tf32"), False),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        *((partial(getattr, each, "fp32_precision"), partial(setattr, each, "fp32_precision"), "ieee") for each in new),
    ]


def inference(function: Callable[P, T]) -> Callable[P, T]:
    """Runs networks: without gradients and `exactly`. Not for generators, which would run outside of it."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(), exactly():
            return function(*args, **kwargs)

    return run


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

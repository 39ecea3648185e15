"""How many kernels a computation launches: what bounds decoding, whose kernels have little to do.

Counted are torch's operators that compute, each as one, on any device. On a GPU that is nearly the number of kernels; a
product may take two.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

FUSED = (F.rms_norm, torch.rms_norm)
"""One kernel on a GPU (torch 2.9 and newer), several operators on a CPU."""
IDLE = ("aten::_unsafe_view", "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty")
"""Compute nothing, and are no views by their schema."""


class KernelCount:
    """A context in which this thread's kernels are counted, in `count`."""

    def __init__(self) -> None:
        self.count = 0
        self._inside = False
        counter = self

        class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if not (counter._inside or func.is_view or func._schema.name in IDLE):
                    counter.count += 1
                return func(*args, **(kwargs or {}))

        class Functions(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func not in FUSED:
                    return func(*args, **(kwargs or {}))
                counter.count, counter._inside = counter.count + 1, True
                try:
                    return func(*args, **(kwargs or {}))
                finally:
                    counter._inside = False

        self._modes = (Operators(), Functions())  # type: ignore[no-untyped-call]

    def __enter__(self) -> KernelCount:
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)  # type: ignore[no-untyped-call]

"""Parts of a batch on several CPU threads, with results that do not depend on how many threads there are.

How a batch is split is configuration; each part is computed by one thread with single-threaded kernels, and the caller
puts the results together in order. Kernels that split their own sums over threads would round differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


class Workers:
    """`map` over threads; torch releases the interpreter's lock inside its kernels.

    On a GPU one thread is enough, and a policy's decoder serves one batch at a time: there `num_threads` does nothing.
    """

    def __init__(self, num_threads: int, device: str = "cpu") -> None:
        torch.set_num_threads(1)
        num_threads = num_threads if torch.device(device).type == "cpu" else 1
        self._pool = ThreadPoolExecutor(num_threads, initializer=_single_threaded) if num_threads > 1 else None

    def map(self, function: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
        """Results in the order of `parts`, each as it is asked for. With gradients or without as in the caller."""
        items = list(parts)
        if self._pool is None or len(items) < 2:
            return map(function, items)
        return self._pool.map(partial(_call, torch.is_grad_enabled(), function), items)


def _single_threaded() -> None:
    torch.set_num_threads(1)


def _call(with_gradients: bool, function: Callable[[Part], Result], part: Part) -> Result:
    with torch.set_grad_enabled(with_gradients):  # each thread has a switch of its own
        return function(part)


def slices(rows: int, size: int) -> list[slice]:
    """Consecutive parts of at most `size` rows."""
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]

"""Parts of a batch on several CPU threads or processes, with results that do not depend on how many there are.

How a batch is split is configuration; each part is computed by one thread with single-threaded kernels, and the caller
puts the results together in order. Kernels that split their own sums over threads would round differently. Only where
there are fewer parts than processes are they made smaller, and then results may differ in the last digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

from .distributed import ALONE, World

Part = TypeVar("Part")
Result = TypeVar("Result")


class Workers:
    """`map` over processes and their threads; torch releases the interpreter's lock inside its kernels.

    On a GPU one thread is enough, and a policy's decoder serves one batch at a time: there `num_threads` does nothing.
    """

    def __init__(self, num_threads: int, device: str = "cpu", world: World = ALONE) -> None:
        torch.set_num_threads(1)
        self.world = world
        num_threads = num_threads if torch.device(device).type == "cpu" else 1
        self._pool = ThreadPoolExecutor(num_threads, initializer=_single_threaded) if num_threads > 1 else None

    def parts(self, rows: int, size: int) -> list[slice]:
        """`slices` of at most `size` rows, and of at most a process's share of the rows."""
        return slices(rows, min(size, max(1, -(-rows // self.world.size))))

    def map(self, function: Callable[[Part], Result], parts: Sequence[Part]) -> Iterator[Result]:
        """Results in the order of `parts`, those of other processes too. With gradients or without as in the caller."""
        own = self.own(function, parts)
        return own if self.world.size == 1 else iter(self.world.collected(list(own)))

    def own(self, function: Callable[[Part], Result], parts: Sequence[Part]) -> Iterator[Result]:
        """Results of this process's share of `parts`, each as it is asked for."""
        items = self.world.dealt(parts)
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

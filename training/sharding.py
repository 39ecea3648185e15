"""Who keeps the optimiser's state of which parameter, and how gradients get there and weights come back.

Each parameter has one owner among the processes: it alone holds AdamW's moments of it and its float32 copy, as in
ZeRO's first stage (Rajbhandari et al., arXiv 1910.02054). Gradients go to the owner after every micro-batch, so that
none of all parameters is ever held in float32 (its second stage); the owner adds them in the order of the
micro-batches, which is what one process alone would do, to the bit. A sum made on the way would need no less traffic,
and another order of additions for every number of processes.

torch's `fully_shard` also spreads the weights, by wrapping `forward` of modules. Policies here are not called that way
(`start`, `step`, `hidden`, `head` run the layers themselves, on a cache), so every process keeps all weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import zip_longest

import torch
from torch import Tensor, nn

from .distributed import World

EXCHANGED = 2**27
"""Numbers that a process sends to all processes together in one exchange: 256 MiB in bfloat16."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Numbers `start` to `stop` of a parameter, which lie from `at` on in a bucket."""

    parameter: int
    start: int
    stop: int
    at: int

    @property
    def inside(self) -> slice:
        """Of the parameter, flattened."""
        return slice(self.start, self.stop)

    @property
    def packed(self) -> slice:
        """Of the bucket."""
        return slice(self.at, self.at + self.stop - self.start)


def deal(sizes: Sequence[int], owners: int) -> list[list[int]]:
    """Indices for each owner, in rising order; the largest first, each to whom has least so far."""
    dealt: list[list[int]] = [[] for _ in range(owners)]
    load = [0] * owners
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        owner = load.index(min(load))
        dealt[owner].append(index)
        load[owner] += sizes[index]
    return [sorted(indices) for indices in dealt]


def buckets(indices: Sequence[int], sizes: Sequence[int], limit: int) -> list[list[Piece]]:
    """All numbers of these parameters, in order, in buckets that are full but for the last."""
    filled: list[list[Piece]] = []
    free = 0
    for index in indices:
        start = 0
        while start < sizes[index]:
            if free == 0:
                filled.append([])
                free = limit
            stop = min(start + free, sizes[index])
            filled[-1].append(Piece(index, start, stop, limit - free))
            free -= stop - start
            start = stop
    return filled


class Shards:
    """The parameters of a policy, dealt to the processes of `world`."""

    def __init__(self, parameters: Sequence[nn.Parameter], world: World) -> None:
        self.parameters, self.world = list(parameters), world
        sizes = [parameter.numel() for parameter in parameters]
        self.owned = deal(sizes, world.size)
        limit = max(1, EXCHANGED // world.size)
        self.waves: list[tuple[list[Piece], ...]] = list(
            zip_longest(*(buckets(indices, sizes, limit) for indices in self.owned), fillvalue=[])
        )
        """Each an exchange: a bucket an owner."""
        # float32 where types are mixed: then nothing is lost on the way
        self.dtype = reduce(torch.promote_types, (parameter.dtype for parameter in parameters))

    @property
    def own(self) -> list[int]:
        return self.owned[self.world.rank]

    def arriving(self, found: Sequence[Tensor | None] | None) -> Iterator[tuple[Piece, Tensor]]:
        """Parts of gradients of own parameters, from one process after the other. All processes call it together.

        Args:
            found: a gradient a parameter, None where there is none; None where this process had no micro-batch.
        """
        known = [] if found is None else [index for index, gradient in enumerate(found) if gradient is not None]
        known_by = [set(indices) for indices in self.world.gather(known)]
        for wave in self.waves:
            sent = self._empty(self.world.size, _width(wave))
            for bucket, pieces in zip(sent, wave, strict=True):
                for piece in pieces:
                    if found is not None and (gradient := found[piece.parameter]) is not None:
                        bucket[piece.packed] = gradient.reshape(-1)[piece.inside]
            got = self.world.exchanged(sent)
            for bucket, has in zip(got, known_by, strict=True):
                for piece in wave[self.world.rank]:
                    if piece.parameter in has:
                        yield piece, bucket[piece.packed]

    @torch.no_grad()
    def publish(self) -> None:
        """Bring every parameter to what it is at its owner."""
        for wave in self.waves:
            for owner, pieces in enumerate(wave):
                bucket = self._empty(sum(piece.stop - piece.start for piece in pieces))
                flat = [(self.parameters[piece.parameter].view(-1)[piece.inside], piece) for piece in pieces]
                if owner == self.world.rank:
                    for weights, piece in flat:
                        bucket[piece.packed] = weights
                self.world.spread(bucket, owner)
                if owner != self.world.rank:
                    for weights, piece in flat:
                        weights.copy_(bucket[piece.packed])

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.parameters[0].device)


def _width(wave: Sequence[Sequence[Piece]]) -> int:
    return max(pieces[-1].at + pieces[-1].stop - pieces[-1].start for pieces in wave if pieces)

"""Decoding with CUDA graphs: a step is recorded once and replayed for every token, without a launch from Python.

A step of a 1 B model is some three hundred kernels; launched one by one they take longer than the memory traffic they
cause. Everything that changes from token to token (slot, position, tokens, where results go) therefore lies in tensors
on the device, which the recorded step reads and advances itself. Attention has a fixed shape in a graph, so there is
one graph for every `BUCKET` slots; what is not filled yet is masked.

On other devices the same step runs without being recorded, which is how it is tested.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .policies.shared import up_to_multiple
from .types import Policy

BUCKET = 128
"""Slots by which the part of the cache that attention reads grows."""
WARM_UPS = 2
"""Runs of a step before it is recorded, in which libraries allocate what they need."""

Choose = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]
"""(logits of all rows, uniforms_B, forced_B) -> tokens_B, logprobs_B, entropy_B."""


class Recorded(Protocol):
    def replay(self) -> None: ...


@dataclass(slots=True)
class Unrecorded:
    """A step that runs each time: what a graph is on a device without graphs."""

    step: Callable[[], None]

    def replay(self) -> None:
        self.step()


@dataclass(slots=True, kw_only=True)
class Decoded:
    """Where results go, and what a step reads: T tokens of B rows."""

    tokens_TB: Tensor
    logprobs_TB: Tensor
    entropy_TB: Tensor
    uniforms_TB: Tensor
    forced_TB: Tensor | None
    """None: nothing is ever forced."""
    before_R: Tensor
    """int64: the tokens drawn last, twice where there are unconditional rows."""
    at_1: Tensor
    """int64 (1,): the token that is drawn now."""

    @classmethod
    def laid_out(cls, uniforms_TB: Tensor, *, guided: bool, forced: bool) -> Decoded:
        """Buffers of that shape."""
        whole = torch.zeros_like(uniforms_TB, dtype=torch.int64)
        return cls(
            tokens_TB=whole,
            logprobs_TB=torch.zeros_like(uniforms_TB),
            entropy_TB=torch.zeros_like(uniforms_TB),
            uniforms_TB=torch.empty_like(uniforms_TB),
            forced_TB=torch.empty_like(whole) if forced else None,
            before_R=whole[0].repeat(1 + guided),
            at_1=torch.zeros(1, dtype=torch.int64, device=uniforms_TB.device),
        )


class GraphedDecoder:
    """Decodes batches of one shape with one policy; keeps the cache and the graphs for the next batch."""

    def __init__(self, policy: Policy, choose: Choose, *, guided: bool, forced: bool) -> None:
        self.policy: Policy = weakref.proxy(policy)  # decoders are kept by policy, and must not keep it alive
        self.choose, self.guided, self.forced = choose, guided, forced
        self.state: Any = None
        self.decoded: Any = None
        self.graphs: dict[int, Recorded] = {}

    def __call__(self, texts_B: Sequence[str], uniforms_TB: Tensor, forced_TB: Tensor | None) -> Decoded:
        """Results are valid until the next call.

        Fewer rows than the batch before had are filled up to as many: what is recorded then serves again.
        """
        missing = self.decoded.uniforms_TB.shape[1] - len(texts_B) if self.decoded else 0
        if missing > 0:
            texts_B = [*texts_B, *[texts_B[-1]] * missing]
            uniforms_TB = torch.cat([uniforms_TB, uniforms_TB[:, -1:].expand(-1, missing)], dim=1)
            forced_TB = None if forced_TB is None else F.pad(forced_TB, (0, missing), value=-1)
        state = self.policy.start(texts_B, guided=self.guided, reuse=self.state)
        if state is not self.state:
            self.state, self.graphs = state, {}
            self.decoded = Decoded.laid_out(uniforms_TB, guided=self.guided, forced=self.forced)
        self.decoded.uniforms_TB.copy_(uniforms_TB)
        if forced_TB is not None:
            self.decoded.forced_TB.copy_(forced_TB)
        self.decoded.at_1.zero_()
        first, slots = state.cache.filled, state.cache.slots
        self._keep(self.policy.step(state, None))
        for token in range(1, len(uniforms_TB)):
            limit = min(up_to_multiple(first + token + 1, BUCKET), slots)
            if limit not in self.graphs:
                self.graphs[limit] = self._record(limit)
            self.graphs[limit].replay()
        return self.decoded  # type: ignore[no-any-return]

    def _step(self, limit: int) -> None:
        self.state.cache.limit = limit
        self._keep(self.policy.step(self.state, self.decoded.before_R))

    def _keep(self, logits: Tensor) -> None:
        """Draw the current token and move on to the next."""
        out = self.decoded
        uniforms_B = out.uniforms_TB.index_select(0, out.at_1)[0]
        forced_B = out.forced_TB.index_select(0, out.at_1)[0] if self.forced else None
        tokens_B, logprobs_B, entropy_B = self.choose(logits, uniforms_B, forced_B)
        out.before_R.view(-1, len(tokens_B)).copy_(tokens_B)
        out.tokens_TB.index_copy_(0, out.at_1, tokens_B[None])
        out.logprobs_TB.index_copy_(0, out.at_1, logprobs_B[None])
        out.entropy_TB.index_copy_(0, out.at_1, entropy_B[None])
        out.at_1 += 1

    def _record(self, limit: int) -> Recorded:
        """A step that reads `limit` slots. What recording advances is put back, so that it decodes nothing."""
        device = self.decoded.at_1.device
        if device.type != "cuda":
            return Unrecorded(partial(self._step, limit))
        advanced = [*self.state.advanced, self.decoded.at_1, self.decoded.before_R]
        kept = [tensor.clone() for tensor in advanced]
        first: Any = next(iter(self.graphs.values()), None)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):  # streams and recordings are the current device's, which need not be this one
            aside, here = _aside(device), torch.cuda.current_stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    self._step(limit)
                    _put_back(advanced, kept)
            here.wait_stream(aside)
            # one memory for all recordings: no step leaves anything in it. Other threads, such as the one that looks
            # after NCCL, may go on calling the driver meanwhile
            pool = first.pool() if first else None
            with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                self._step(limit)
            _put_back(advanced, kept)
        return graph


@lru_cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """Where steps are recorded: always the same stream, because each has a workspace of its own."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _put_back(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)

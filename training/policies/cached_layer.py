"""A Llama's layer for one token a row, in as few kernels as can be.

Decoding is bound by the weights' traffic and by the number of kernels: at some 16 rows each takes one or two
microseconds however little it does, even replayed from a CUDA graph. A layer here is twelve of them: two norms, four
products of matrices, two to turn queries and keys, one to write the cache, attention, and two of the gated MLP.

* Layers that read the same input are one product. For that their weights are laid out one after the other, once; no
  second copy is held, and the parameters stay what they were.
* What a half of the layer adds to its input is added by the product itself, in place and in float32.
* Queries, keys and values are turned together (values by nothing), and keys and values are written together.
* Adapters are two more products, added into the same output. They are not merged into the weights: in bfloat16 a merged
  weight is rounded, and most of what an adapter learned in a few steps is below half of its last digit.

There is no gradient. Teacher forcing has its own pass, in the policies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import lora
from .kv_cache import KVCache

LARGE_BYTES = 2**20
"""Tensors above it have memory of their own, which goes back to the GPU only when asked for."""
_LAYING_OUT = threading.Lock()
"""Several threads may start a rollout with one policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What n adapters of one shape, on neighbouring layers, add: each reads K inner numbers and adds to O outputs."""

    outputs: slice
    inner: slice
    up_nOK: Tensor
    scale: float


class Joined:
    """Linear layers without bias that read the same: (R, N) -> (R, sum of their outputs), side by side."""

    def __init__(self, *layers: nn.Module) -> None:
        self.weight_ON = laid_out([lora.base(layer).weight for layer in layers])
        adapters = [adapter for layer in layers if (adapter := lora.adapter(layer))]
        self.down_KN = laid_out([adapter.down_KN for adapter in adapters]) if adapters else None
        self.added: list[Added] = []
        output = inner = 0
        for (width, rank, scale), group in groupby(layers, _shape):
            alike = list(group)
            outputs = slice(output, output + len(alike) * width)
            own = slice(inner, inner + len(alike) * rank)
            if rank:
                up_OK = laid_out([adapter.up_OK for layer in alike if (adapter := lora.adapter(layer))])
                up_nOK = up_OK.view(len(alike), width, rank)
                self.added.append(Added(outputs=outputs, inner=own, up_nOK=up_nOK, scale=scale))
            output, inner = outputs.stop, own.stop

    def __call__(self, x_RN: Tensor) -> Tensor:
        return self._adapted(F.linear(x_RN, self.weight_ON), x_RN)

    def add_to(self, sum_RO: Tensor, x_RN: Tensor) -> None:
        """Add the output to `sum_RO`, in place."""
        self._adapted(sum_RO.addmm_(x_RN, self.weight_ON.t()), x_RN)

    def _adapted(self, out_RO: Tensor, x_RN: Tensor) -> Tensor:
        if self.down_KN is not None:
            inner_RK = F.linear(x_RN, self.down_KN)
            for added in self.added:
                rows, parts = len(x_RN), len(added.up_nOK)
                out_nRO = out_RO[:, added.outputs].view(rows, parts, -1).transpose(0, 1)
                inner_nRK = inner_RK[:, added.inner].view(rows, parts, -1).transpose(0, 1)
                out_nRO.baddbmm_(inner_nRK, added.up_nOK.transpose(1, 2), alpha=added.scale)
        return out_RO


def _shape(layer: nn.Module) -> tuple[int, int, float]:
    """Outputs, and rank and scale of the adapter, if there is one."""
    adapter = lora.adapter(layer)
    return lora.base(layer).out_features, len(adapter.down_KN) if adapter else 0, adapter.scale if adapter else 0.0


def laid_out(weights: Sequence[Tensor]) -> Tensor:
    """The rows of all these parameters as one matrix, which they are parts of from now on."""
    with _LAYING_OUT, torch.inference_mode(False), torch.no_grad():
        if len(weights) == 1:
            return weights[0].detach()
        if not _adjacent(weights):
            whole = torch.cat([weight.detach() for weight in weights])
            for weight, part in zip(weights, torch.split(whole, [len(weight) for weight in weights]), strict=True):
                weight.data = part
            if whole.is_cuda and whole.nbytes > LARGE_BYTES:
                torch.cuda.empty_cache()  # what the parts lay in is too small for the next to be laid out
        rows = sum(len(weight) for weight in weights)
        return weights[0].detach().as_strided((rows, weights[0].shape[1]), weights[0].stride())


def _adjacent(weights: Sequence[Tensor]) -> bool:
    """Whether they lie one after the other in one memory."""
    return all(weight.is_contiguous() for weight in weights) and all(
        one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and one.storage_offset() + one.numel() == other.storage_offset()
        for one, other in pairwise(weights)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedLayer:
    attention_norm: Callable[[Tensor], Tensor]
    mlp_norm: Callable[[Tensor], Tensor]
    qkv: Joined
    out: Joined
    gate_up: Joined
    down: Joined
    heads: int
    """H; there may be fewer key heads, K."""

    def advance(self, x_RD: Tensor, turn: Callable[[Tensor], Tensor], cache: KVCache, index: int) -> None:
        """Change `x_RD`, in place, to what this layer, the `index`-th, makes of it; its keys and values are cached.

        Args:
            turn: (R, (H + 2K) E) to (R, H + 2K, E): queries and keys at their positions, and values as they are.
        """
        turned = turn(self.qkv(self.attention_norm(x_RD)))[:, :, None]
        keys, values = cache.extend(index, turned[:, self.heads :])
        seen_RH1E = F.scaled_dot_product_attention(
            turned[:, : self.heads],
            keys,
            values,
            attn_mask=cache.bias,
            enable_gqa=keys.shape[1] != self.heads,
        )
        self.out.add_to(x_RD, seen_RH1E.flatten(1))
        gate, up = self.gate_up(self.mlp_norm(x_RD)).chunk(2, dim=-1)
        self.down.add_to(x_RD, F.silu(gate) * up)

"""Keys and values of a cached decode: memory that is laid out once, and a current slot that a CUDA graph can advance.

An image has a known number of tokens and no end token, so nothing ever grows. The slot counter lies on the device:
a captured step reads it there, so replaying one graph again and again decodes one token after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .shared import ROW_MULTIPLE, attention_bias, up_to_multiple


@dataclass(slots=True, kw_only=True)
class KVCache:
    """L layers, R rows, K key heads, S slots, E head width."""

    keys_values_LRHSE: Tensor
    """H = 2 K: the keys of all heads, then the values, so that both are written at once."""
    bias_RS: Tensor
    """Added to scores: 0 where a row's next token may look, else -inf, as in slots not yet filled."""
    slot_1: Tensor
    """int64 (1,): the slot that the next token fills."""
    filled: int
    """The same number on the host. Not advanced while a graph is replayed."""
    limit: int | None = None
    """Slots that attention reads; None reads those filled. A captured step has fixed shapes and needs a number."""

    @classmethod
    def laid_out(
        cls,
        like: Tensor,
        *,
        layers: int,
        heads: int,
        width: int,
        prompt_RP: Tensor,
        tokens: int,
        reuse: KVCache | None = None,
    ) -> KVCache:
        """Room for prompts and `tokens` more slots, in the dtype and on the device of `like`.

        `prompt_RP` (bool) says which slots of its prompt each row may look at. The memory of `reuse` is taken where it
        has the same shape; what graphs were captured on it then stays valid. Else it is given up first, so that two
        caches are never held.
        """
        rows, prompt = prompt_RP.shape
        slots = up_to_multiple(prompt + tokens, ROW_MULTIPLE)
        shape = (layers, rows, 2 * heads, slots, width)
        bias_RS = torch.cat(
            [attention_bias(prompt_RP, like.dtype), like.new_full((rows, slots - prompt), -torch.inf)], 1
        )
        same = reuse is not None and reuse.keys_values_LRHSE.shape == shape
        if reuse is not None and same and reuse.keys_values_LRHSE.dtype == like.dtype:
            reuse.bias_RS.copy_(bias_RS)
            reuse.slot_1.fill_(prompt)
            reuse.filled, reuse.limit = prompt, None
            return reuse
        if reuse is not None:
            reuse.keys_values_LRHSE = like.new_empty(0)
        return cls(
            keys_values_LRHSE=like.new_zeros(shape),
            bias_RS=bias_RS,
            slot_1=torch.full((1,), prompt, device=like.device),
            filled=prompt,
        )

    def fill(self, layer: int, keys_RKPE: Tensor, values_RKPE: Tensor) -> None:
        """Keys and values of the whole prompt."""
        heads, slots = keys_RKPE.shape[1:3]
        self.keys_values_LRHSE[layer, :, :heads, :slots] = keys_RKPE
        self.keys_values_LRHSE[layer, :, heads:, :slots] = values_RKPE

    @property
    def slots(self) -> int:
        return self.bias_RS.shape[1]

    @property
    def _read(self) -> int:
        return self.limit or self.filled + 1

    @property
    def bias(self) -> Tensor:
        """What is added to the scores of the current token, (R, 1, 1, slots read)."""
        return self.bias_RS[:, None, None, : self._read]

    def open_slot(self) -> None:
        """Make the current slot visible."""
        self.bias_RS.index_fill_(1, self.slot_1, 0.0)

    def extend(self, layer: int, key_value_RH1E: Tensor) -> tuple[Tensor, Tensor]:
        """Put the current token's key and value in their slot; all that attention reads, each (R, K, slots read, E)."""
        keys_values = self.keys_values_LRHSE[layer].index_copy_(2, self.slot_1, key_value_RH1E)
        keys, values = keys_values[:, :, : self._read].chunk(2, dim=1)
        return keys, values

    def close_slot(self) -> None:
        self.slot_1 += 1
        self.filled += 1

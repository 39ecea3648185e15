"""Keys and values of a cached decode: memory that is laid out once, and a current slot that a CUDA graph can advance.

An image has a known number of tokens and no end token, so nothing ever grows. The slot counter lies on the device:
a captured step reads it there, so replaying one graph again and again decodes one token after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(slots=True, kw_only=True)
class KVCache:
    """L layers, R rows, H key heads, S slots, E head width."""

    keys_LRHSE: Tensor
    values_LRHSE: Tensor
    visible_RS: Tensor
    """bool: what a row's next token may look at; slots not yet filled are False."""
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
        shape = (layers, rows, heads, prompt + tokens, width)
        visible_RS = F.pad(prompt_RP, (0, tokens))
        if reuse is not None and reuse.keys_LRHSE.shape == shape and reuse.keys_LRHSE.dtype == like.dtype:
            reuse.visible_RS.copy_(visible_RS)
            reuse.slot_1.fill_(prompt)
            reuse.filled, reuse.limit = prompt, None
            return reuse
        if reuse is not None:
            reuse.keys_LRHSE = reuse.values_LRHSE = like.new_empty(0)
        return cls(
            keys_LRHSE=like.new_zeros(shape),
            values_LRHSE=like.new_zeros(shape),
            visible_RS=visible_RS,
            slot_1=torch.full((1,), prompt, device=like.device),
            filled=prompt,
        )

    def fill(self, layer: int, keys_RHPE: Tensor, values_RHPE: Tensor) -> None:
        """Keys and values of the whole prompt."""
        slots = keys_RHPE.shape[2]
        self.keys_LRHSE[layer, :, :, :slots] = keys_RHPE
        self.values_LRHSE[layer, :, :, :slots] = values_RHPE

    @property
    def read(self) -> int:
        return self.limit or self.filled + 1

    def open_slot(self) -> Tensor:
        """Make the current slot visible; what its token may look at, bool (R, 1, 1, slots read)."""
        self.visible_RS.index_fill_(1, self.slot_1, True)
        return self.visible_RS[:, None, None, : self.read]

    def extend(self, layer: int, key_RH1E: Tensor, value_RH1E: Tensor) -> tuple[Tensor, Tensor]:
        """Put the current token's key and value in their slot; all that attention reads, each (R, H, slots read, E)."""
        keys, values = self.keys_LRHSE[layer], self.values_LRHSE[layer]
        keys.index_copy_(2, self.slot_1, key_RH1E)
        values.index_copy_(2, self.slot_1, value_RH1E)
        return keys[:, :, : self.read], values[:, :, : self.read]

    def close_slot(self) -> None:
        self.slot_1 += 1
        self.filled += 1

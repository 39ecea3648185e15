"""What the large policies have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROW_MULTIPLE = 16
"""Of the numbers from one row of a mask to the next: attention on a GPU copies other masks, in each layer."""


def widest_state(channels: int, multipliers: Sequence[int], side: int) -> int:
    """Numbers of an image decoder's largest feature map: at full size, as wide as the last upsampling leaves it."""
    pixels = side << (len(multipliers) - 1)
    return channels * max(multipliers[:2]) * pixels * pixels


def distinct(texts_B: Sequence[str], device: torch.device) -> tuple[list[str], Tensor]:
    """The different ones of some texts, and int64 (B,): which of them each is."""
    texts_P = list(dict.fromkeys(texts_B))
    index = {text: place for place, text in enumerate(texts_P)}
    return texts_P, torch.tensor([index[text] for text in texts_B], device=device)


def fill_normal(tensor: Tensor, deviation: float, generator: torch.Generator) -> None:
    """Normal numbers around 0, drawn in float32 where `generator` is: rounded, they are the same in all types."""
    if tensor.dtype == torch.float32 and tensor.device == generator.device:
        tensor.normal_(0.0, deviation, generator=generator)
    else:
        drawn = torch.empty(tensor.shape, device=generator.device)
        tensor.copy_(drawn.normal_(0.0, deviation, generator=generator))


def attention_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What attention adds to scores, 0 where `visible` (bool) and else -inf: made once, not once a layer."""
    keys = visible.shape[-1]
    shape = (*visible.shape[:-1], up_to_multiple(keys, ROW_MULTIPLE))
    return torch.zeros(shape, dtype=dtype, device=visible.device)[..., :keys].masked_fill_(~visible, -torch.inf)


def causal(own_BS: Tensor) -> Tensor:
    """bool (B, 1, S, S): what each place looks at, of `own_BS` and up to itself.

    A place that is not its row's own sees itself only, so that what it computes is finite; nothing sees it.
    """
    slots = torch.arange(own_BS.shape[1], device=own_BS.device)
    return (slots <= slots[:, None]) & own_BS[:, None, None, :] | (slots == slots[:, None])


def up_to_multiple(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple

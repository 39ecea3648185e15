"""Log-probabilities of given tokens by teacher forcing, holding few logits at a time.

Conditional branch, temperature 1, float32 or better. The transformer runs once; its output layer and the softmax run on
some positions at a time, and again when the gradient is computed, so that the B x T x V logits never exist together.
Where only some positions need a gradient, the output layer is differentiated at those alone: the transformer's
backward pass is the same, the output layer's is as much smaller as there are fewer tokens, and no number changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .signals import at_least_float32
from .types import Policy

CHUNK_LOGITS = 2**24
"""Logits that exist at once: 1,024 positions of a codebook of 16,384, 64 MiB in float32."""


def token_logprobs(
    policy: Policy,
    texts_B: Sequence[str],
    tokens_BT: Tensor,
    *,
    differentiated_BT: Tensor | None = None,
    chunk_logits: int | None = None,
) -> Tensor:
    """log pi(token | prompt, tokens before), (B, T).

    Args:
        differentiated_BT: bool; where the result carries gradient. None: everywhere. Values are the same.
        chunk_logits: logits that exist at once; None: `CHUNK_LOGITS`.
    """
    rows = max(1, (chunk_logits or CHUNK_LOGITS) // policy.vocab_size)
    hidden_ND = policy.hidden(texts_B, tokens_BT).flatten(0, 1)
    tokens_N = tokens_BT.flatten()
    if differentiated_BT is None or not torch.is_grad_enabled():
        return _chunked(policy, hidden_ND, tokens_N, rows).view(tokens_BT.shape)
    chosen_N = differentiated_BT.flatten()
    with torch.no_grad():
        others = _chunked(policy, hidden_ND[~chosen_N], tokens_N[~chosen_N], rows)
    chosen = _chunked(policy, hidden_ND[chosen_N], tokens_N[chosen_N], rows)
    logprobs_N = chosen.new_zeros(tokens_N.shape)
    logprobs_N = logprobs_N.masked_scatter(~chosen_N, others).masked_scatter(chosen_N, chosen)
    return logprobs_N.view(tokens_BT.shape)


def _chunked(policy: Policy, hidden_ND: Tensor, tokens_N: Tensor, rows: int) -> Tensor:
    """float32 or better, (N,); `rows` positions at a time."""
    if len(tokens_N) <= rows:
        return _of(policy, hidden_ND, tokens_N)
    parts = zip(torch.split(hidden_ND, rows), torch.split(tokens_N, rows), strict=True)
    # only with several chunks is there something to save by computing logits twice
    found = [checkpoint(_of, policy, hidden, tokens, use_reentrant=False) for hidden, tokens in parts]
    return torch.cat(found)


def _of(policy: Policy, hidden_ND: Tensor, tokens_N: Tensor) -> Tensor:
    return -F.cross_entropy(at_least_float32(policy.head(hidden_ND)), tokens_N, reduction="none")

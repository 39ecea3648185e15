"""LlamaGen's transformer written out position by position: no cache, no shared prompt, no batch, text always 120 slots.

From the description of the published model (`autoregressive/models/gpt.py`); uses none of the package's code. Weights
come under the published names; what is computed has their precision.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

TEXT_SLOTS = 120


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean() + 1e-5) * weight


def turns(position: int, side: int, head_dim: int) -> list[complex]:
    """What each pair of a head's numbers is multiplied by at an image position; text positions are not turned."""
    row, column = divmod(position, side)
    half = head_dim // 2
    rates = [10000.0 ** (-pair / half) for pair in range(0, half, 2)]
    return [cmath.exp(1j * row * rate) for rate in rates] + [cmath.exp(1j * column * rate) for rate in rates]


def turned(x: Tensor, factors: Sequence[complex]) -> Tensor:
    numbers = []
    for pair, factor in enumerate(factors):
        real, imaginary = x[2 * pair], x[2 * pair + 1]
        numbers += [real * factor.real - imaginary * factor.imag, real * factor.imag + imaginary * factor.real]
    return torch.stack(numbers)


def is_seen(query: int, key: int, text_length: int) -> bool:
    """Causal; padding of the text is seen by itself only."""
    if query == key:
        return True
    return key < query and key >= TEXT_SLOTS - text_length


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def logits(
    weights: Mapping[str, Tensor],
    states: Tensor,
    tokens: Sequence[int],
    *,
    heads: int,
    side: int,
    unconditional: bool = False,
) -> Tensor:
    """(T, V): row t predicts token t. `states` are the (N, C) of the text encoder, N <= 120."""
    length = len(states)
    width = weights["tok_embeddings.weight"].shape[1]
    head_dim = width // heads
    x = []
    for slot in range(TEXT_SLOTS):
        state = torch.zeros_like(states[0])
        if unconditional:
            state = weights["cls_embedding.uncond_embedding"][slot]
        elif slot >= TEXT_SLOTS - length:
            state = states[slot - (TEXT_SLOTS - length)]
        inner = gelu_tanh(weights["cls_embedding.cap_proj.fc1.weight"] @ state)
        x.append(weights["cls_embedding.cap_proj.fc2.weight"] @ inner)
    x += [weights["tok_embeddings.weight"][token] for token in tokens[:-1]]

    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
    for layer in range(layers):
        prefix = f"layers.{layer}."
        queries, keys, values = [], [], []
        for slot, vector in enumerate(x):
            qkv = weights[prefix + "attention.wqkv.weight"] @ rms_norm(
                vector, weights[prefix + "attention_norm.weight"]
            )
            q, k, v = (list(torch.split(part, head_dim)) for part in torch.split(qkv, width))
            factors = turns(slot - TEXT_SLOTS, side, head_dim) if slot >= TEXT_SLOTS else [0j] * (head_dim // 2)
            queries.append([turned(part, factors) for part in q])
            keys.append([turned(part, factors) for part in k])
            values.append(v)
        attended = []
        for slot, vector in enumerate(x):
            seen = [key for key in range(slot + 1) if is_seen(slot, key, length)]
            parts = []
            for head in range(heads):
                scores = torch.stack([queries[slot][head] @ keys[key][head] for key in seen]) / math.sqrt(head_dim)
                shares = torch.exp(scores - scores.max())
                shares = shares / shares.sum()
                parts.append(shares @ torch.stack([values[key][head] for key in seen]))
            attended.append(vector + weights[prefix + "attention.wo.weight"] @ torch.cat(parts))
        x = []
        for vector in attended:
            normed = rms_norm(vector, weights[prefix + "ffn_norm.weight"])
            gate = weights[prefix + "feed_forward.w1.weight"] @ normed
            up = weights[prefix + "feed_forward.w3.weight"] @ normed
            x.append(vector + weights[prefix + "feed_forward.w2.weight"] @ (gate * torch.sigmoid(gate) * up))

    predicting = x[TEXT_SLOTS - 1 :]
    return torch.stack([weights["output.weight"] @ rms_norm(vector, weights["norm.weight"]) for vector in predicting])

"""CLIP's pass in open_clip's own tensor names, one head and one query at a time, in float64. Slow on purpose.

Source: openai/CLIP and mlfoundations/open_clip `model.py`: pre-norm blocks, attention with stacked in_proj, class token
first in the picture, causal attention in the text, features at the last (highest) token, projections without bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]


def layer_norm(x_TD: Array, w: Weights, name: str) -> Array:
    rows = []
    for row in x_TD:
        mean = sum(row) / len(row)
        variance = sum((value - mean) ** 2 for value in row) / len(row)
        rows.append((row - mean) / math.sqrt(variance + 1e-5))
    normed: Array = np.array(rows) * w[f"{name}.weight"] + w[f"{name}.bias"]
    return normed


def activate(x: Array, activation: str) -> Array:
    if activation == "quick_gelu":
        gated: Array = x / (1 + np.exp(-1.702 * x))
        return gated
    return np.vectorize(lambda value: 0.5 * value * (1 + math.erf(value / math.sqrt(2))))(x)  # type: ignore[no-any-return]


def attention(x_TD: Array, w: Weights, name: str, heads: int, causal: bool) -> Array:
    width = x_TD.shape[1]
    stacked = x_TD @ w[f"{name}.in_proj_weight"].T + w[f"{name}.in_proj_bias"]
    queries, keys, values = stacked[:, :width], stacked[:, width : 2 * width], stacked[:, 2 * width :]
    size = width // heads
    out = np.zeros_like(x_TD)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for t in range(len(x_TD)):
            seen = t + 1 if causal else len(x_TD)
            scores = np.array([queries[t, part] @ keys[s, part] / math.sqrt(size) for s in range(seen)])
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
            out[t, part] = sum(share * values[s, part] for s, share in enumerate(shares))
    projected: Array = out @ w[f"{name}.out_proj.weight"].T + w[f"{name}.out_proj.bias"]
    return projected


def transformer(x_TD: Array, w: Weights, prefix: str, heads: int, activation: str, causal: bool) -> Array:
    layer = 0
    while f"{prefix}resblocks.{layer}.ln_1.weight" in w:
        name = f"{prefix}resblocks.{layer}"
        x_TD = x_TD + attention(layer_norm(x_TD, w, f"{name}.ln_1"), w, f"{name}.attn", heads, causal)
        hidden = layer_norm(x_TD, w, f"{name}.ln_2") @ w[f"{name}.mlp.c_fc.weight"].T + w[f"{name}.mlp.c_fc.bias"]
        x_TD = x_TD + activate(hidden, activation) @ w[f"{name}.mlp.c_proj.weight"].T + w[f"{name}.mlp.c_proj.bias"]
        layer += 1
    return x_TD


def picture_features(pixels_CYX: Array, w: Weights, heads: int, activation: str) -> Array:
    kernel = w["visual.conv1.weight"]
    patch = kernel.shape[-1]
    rows = [w["visual.class_embedding"]]
    for top in range(0, pixels_CYX.shape[1], patch):
        for left in range(0, pixels_CYX.shape[2], patch):
            window = pixels_CYX[:, top : top + patch, left : left + patch]
            rows.append(np.array([(window * one).sum() for one in kernel]))
    x_TD = np.array(rows) + w["visual.positional_embedding"]
    x_TD = layer_norm(x_TD, w, "visual.ln_pre")
    x_TD = transformer(x_TD, w, "visual.transformer.", heads, activation, causal=False)
    pooled = layer_norm(x_TD[:1], w, "visual.ln_post")[0]
    features: Array = pooled @ w["visual.proj"]
    return features


def text_features(ids: list[int], w: Weights, heads: int, activation: str) -> Array:
    x_TD = np.array([w["token_embedding.weight"][token] for token in ids]) + w["positional_embedding"][: len(ids)]
    x_TD = transformer(x_TD, w, "transformer.", heads, activation, causal=True)
    x_TD = layer_norm(x_TD, w, "ln_final")
    features: Array = x_TD[ids.index(max(ids))] @ w["text_projection"]
    return features


def published_shapes(
    *,
    width: int,
    layers: int,
    patch: int,
    pixels: int,
    text_width: int,
    text_layers: int,
    words: int,
    context: int,
    embed: int,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an open_clip state dict."""
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (context, text_width),
        "text_projection": (text_width, embed),
        "logit_scale": (),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((pixels // patch) ** 2 + 1, width),
        "visual.proj": (width, embed),
        "visual.conv1.weight": (width, 3, patch, patch),
        "token_embedding.weight": (words, text_width),
    }
    for name, size in (("visual.ln_pre", width), ("visual.ln_post", width), ("ln_final", text_width)):
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    for prefix, size, count in (("visual.transformer", width, layers), ("transformer", text_width, text_layers)):
        for layer in range(count):
            block = f"{prefix}.resblocks.{layer}"
            shapes |= {
                f"{block}.ln_1.weight": (size,),
                f"{block}.ln_1.bias": (size,),
                f"{block}.attn.in_proj_weight": (3 * size, size),
                f"{block}.attn.in_proj_bias": (3 * size,),
                f"{block}.attn.out_proj.weight": (size, size),
                f"{block}.attn.out_proj.bias": (size,),
                f"{block}.ln_2.weight": (size,),
                f"{block}.ln_2.bias": (size,),
                f"{block}.mlp.c_fc.weight": (4 * size, size),
                f"{block}.mlp.c_fc.bias": (4 * size,),
                f"{block}.mlp.c_proj.weight": (size, 4 * size),
                f"{block}.mlp.c_proj.bias": (size,),
            }
    return shapes

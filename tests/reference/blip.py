"""BLIP's pass in its own tensor names, one head and one query at a time, in float64. Slow on purpose.

Source: salesforce/BLIP `models/vit.py` (pre-norm, epsilon 1e-6, stacked qkv, class token first) and `models/med.py`
(BERT: post-norm, epsilon 1e-12, cross attention to the picture between self attention and MLP).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]


def gelu(x: Array) -> Array:
    return np.vectorize(lambda value: 0.5 * value * (1 + math.erf(value / math.sqrt(2))))(x)  # type: ignore[no-any-return]


def linear(x: Array, w: Weights, name: str) -> Array:
    mapped: Array = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    return mapped


def layer_norm(x_TD: Array, w: Weights, name: str, epsilon: float) -> Array:
    centred = x_TD - x_TD.mean(axis=1, keepdims=True)
    normed: Array = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + epsilon)
    return normed * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(queries: Array, keys: Array, values: Array, heads: int, seen: Sequence[bool]) -> Array:
    size = queries.shape[1] // heads
    out = np.zeros_like(queries)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for t in range(len(queries)):
            scores = {s: queries[t, part] @ keys[s, part] / math.sqrt(size) for s in range(len(keys)) if seen[s]}
            top = max(scores.values())
            total = sum(math.exp(score - top) for score in scores.values())
            out[t, part] = sum(math.exp(score - top) / total * values[s, part] for s, score in scores.items())
    return out


def vision(pixels_CYX: Array, w: Weights, heads: int) -> Array:
    """Last hidden states (1 + patches, D)."""
    kernel = w["patch_embed.proj.weight"]
    patch = kernel.shape[-1]
    rows = [w["cls_token"][0, 0]]
    for top in range(0, pixels_CYX.shape[1], patch):
        for left in range(0, pixels_CYX.shape[2], patch):
            window = pixels_CYX[:, top : top + patch, left : left + patch]
            rows.append(np.array([(window * one).sum() for one in kernel]) + w["patch_embed.proj.bias"])
    x_TD = np.array(rows) + w["pos_embed"][0]
    layer = 0
    while f"blocks.{layer}.norm1.weight" in w:
        name = f"blocks.{layer}"
        stacked = linear(layer_norm(x_TD, w, f"{name}.norm1", 1e-6), w, f"{name}.attn.qkv")
        queries, keys, values = np.split(stacked, 3, axis=1)
        seen = attend(queries, keys, values, heads, [True] * len(x_TD))
        x_TD = x_TD + linear(seen, w, f"{name}.attn.proj")
        hidden = gelu(linear(layer_norm(x_TD, w, f"{name}.norm2", 1e-6), w, f"{name}.mlp.fc1"))
        x_TD = x_TD + linear(hidden, w, f"{name}.mlp.fc2")
        layer += 1
    return layer_norm(x_TD, w, "norm", 1e-6)


def text(ids: Sequence[int], mask: Sequence[int], picture_SD: Array, w: Weights, heads: int) -> Array:
    """Last hidden states (T, D); a masked token is seen by none."""
    x_TD = np.array([w["embeddings.word_embeddings.weight"][token] for token in ids])
    x_TD = x_TD + w["embeddings.position_embeddings.weight"][: len(ids)]
    x_TD = layer_norm(x_TD, w, "embeddings.LayerNorm", 1e-12)
    layer = 0
    while f"encoder.layer.{layer}.intermediate.dense.weight" in w:
        name = f"encoder.layer.{layer}"
        for kind, memory, seen in (
            ("attention", x_TD, [bool(value) for value in mask]),
            ("crossattention", picture_SD, [True] * len(picture_SD)),
        ):
            part = f"{name}.{kind}"
            memory = x_TD if kind == "attention" else memory
            found = attend(
                linear(x_TD, w, f"{part}.self.query"),
                linear(memory, w, f"{part}.self.key"),
                linear(memory, w, f"{part}.self.value"),
                heads,
                seen,
            )
            x_TD = layer_norm(linear(found, w, f"{part}.output.dense") + x_TD, w, f"{part}.output.LayerNorm", 1e-12)
        hidden = linear(gelu(linear(x_TD, w, f"{name}.intermediate.dense")), w, f"{name}.output.dense")
        x_TD = layer_norm(hidden + x_TD, w, f"{name}.output.LayerNorm", 1e-12)
        layer += 1
    return x_TD


def answer_logits(begin: int, question_SD: Array, w: Weights, heads: int, head: Weights) -> Array:
    """Of every word as the first of the answer: BERT's output head on the decoder's only state."""
    state = text([begin], [1], question_SD, w, heads)
    hidden = gelu(linear(state, head, "predictions.transform.dense"))
    hidden = layer_norm(hidden, head, "predictions.transform.LayerNorm", 1e-12)
    logits: Array = hidden[0] @ w["embeddings.word_embeddings.weight"].T + head["predictions.bias"]
    return logits


def vision_shapes(*, width: int, layers: int, patch: int, pixels: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `visual_encoder`."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, (pixels // patch) ** 2 + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for layer in range(layers):
        block = f"blocks.{layer}"
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (rows,)}
    return shapes


def text_shapes(
    *, width: int, picture_width: int, mlp: int, layers: int, words: int, positions: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `text_encoder`, and of `text_decoder.bert`."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (words, width),
        "embeddings.position_embeddings.weight": (positions, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for layer in range(layers):
        block = f"encoder.layer.{layer}"
        for kind, memory in (("attention", width), ("crossattention", picture_width)):
            for name, columns in (("query", width), ("key", memory), ("value", memory)):
                shapes |= {
                    f"{block}.{kind}.self.{name}.weight": (width, columns),
                    f"{block}.{kind}.self.{name}.bias": (width,),
                }
            shapes |= dense(f"{block}.{kind}.output", width, width) | norm(f"{block}.{kind}.output", width)
        shapes |= dense(f"{block}.intermediate", mlp, width)
        shapes |= dense(f"{block}.output", width, mlp) | norm(f"{block}.output", width)
    return shapes


def dense(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.dense.weight": (rows, columns), f"{name}.dense.bias": (rows,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.LayerNorm.weight": (width,), f"{name}.LayerNorm.bias": (width,)}

"""CLIP checkpoints in open_clip's and OpenAI's layout as transformers' CLIPModel.

One layout serves HPS v2.0 and v2.1 (ViT-H-14, exact GELU) and OpenAI's ViT-L/14 and ViT-B/32 (QuickGELU). The numbers
of heads and the activation cannot be read off the tensors; with the wrong activation every score is silently another
one (open_clip 2.29 and newer do that to OpenAI's weights), so both belong to the named architecture.

Names: `transformer.resblocks.{i}` with `attn.in_proj_*` (queries, keys and values stacked), `attn.out_proj`, `ln_1`,
`ln_2`, `mlp.c_fc`, `mlp.c_proj`; `visual.proj` and `text_projection` are transposed there.
Sources: mlfoundations/open_clip `model.py`, openai/CLIP `model.py`, transformers `modeling_clip.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from gcpo_bench.errors import ConfigError, CorruptDataError, did_you_mean
from gcpo_bench.files import checksum

from .checkpoints import State, fill, read_folder, read_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    width: int
    layers: int
    heads: int
    """The MLP is four times as wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    vision: Tower
    text: Tower
    embed: int
    """Width of the common space."""
    patch: int
    activation: str
    """As transformers names it: `gelu` or `quick_gelu`."""
    pixels: int = 224
    words: int = 49_408
    context: int = 77

    def config(self) -> CLIPConfig:
        begin, end = self.words - 2, self.words - 1
        return CLIPConfig(
            text_config=CLIPTextConfig(
                **_tower(self.text, self.activation),
                vocab_size=self.words,
                max_position_embeddings=self.context,
                projection_dim=self.embed,
                bos_token_id=begin,
                eos_token_id=end,
                pad_token_id=None,
            ).to_dict(),
            vision_config=CLIPVisionConfig(
                **_tower(self.vision, self.activation),
                image_size=self.pixels,
                patch_size=self.patch,
                projection_dim=self.embed,
            ).to_dict(),
            projection_dim=self.embed,
        )


def _tower(tower: Tower, activation: str) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": 4 * tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": activation,
    }


ARCHITECTURES = {
    "ViT-H-14": Architecture(
        vision=Tower(width=1280, layers=32, heads=16),
        text=Tower(width=1024, layers=24, heads=16),
        embed=1024,
        patch=14,
        activation="gelu",
    ),
    "ViT-L-14": Architecture(
        vision=Tower(width=1024, layers=24, heads=16),
        text=Tower(width=768, layers=12, heads=12),
        embed=768,
        patch=14,
        activation="quick_gelu",
    ),
    "ViT-B-32": Architecture(
        vision=Tower(width=768, layers=12, heads=12),
        text=Tower(width=512, layers=12, heads=8),
        embed=512,
        patch=32,
        activation="quick_gelu",
    ),
}
"""ViT-H-14 as HPSv2 and LAION train it; ViT-L-14 and ViT-B-32 with OpenAI's weights."""

_ROOTS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # transformers spells it so
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = ("visual.proj", "text_projection")
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
NOT_WEIGHTS = frozenset({"input_resolution", "context_length", "vocab_size", "attn_mask"})
"""Numbers in OpenAI's files, and the causal mask in early ones of open_clip."""


def convert(state: State) -> dict[str, Tensor]:
    """Tensors under transformers' names. A name that is not known keeps its own, so that the check names it."""
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in NOT_WEIGHTS:
            continue
        block = _BLOCK.fullmatch(name)
        if block is None:
            converted[_root(name)] = value.t().contiguous() if name in _TRANSPOSED else value
            continue
        part = "vision_model" if block[1] else "text_model"
        prefix = f"{part}.encoder.layers.{block[2]}."
        stem, _, kind = block[3].rpartition(".")
        if stem == "attn" and kind.startswith("in_proj_"):
            for letter, chunk in zip("qkv", value.chunk(3), strict=False):
                converted[f"{prefix}self_attn.{letter}_proj.{kind.removeprefix('in_proj_')}"] = chunk.contiguous()
        elif stem in _IN_BLOCK:
            converted[f"{prefix}{_IN_BLOCK[stem]}.{kind}"] = value
        else:
            converted[name] = value
    return converted


def _root(name: str) -> str:
    if name in _ROOTS:
        return _ROOTS[name]
    stem, _, kind = name.rpartition(".")
    return f"{_ROOTS[stem]}.{kind}" if stem in _ROOTS else name


def load_clip(path: Path, architecture: str | Architecture) -> tuple[CLIPModel, str]:
    """The model with the weights at `path`, and their checksum.

    Args:
        path: a .pt or .safetensors file with open_clip's, OpenAI's or transformers' names, or a transformers folder.
        architecture: what the weights must be; a name in `ARCHITECTURES`, or one of your own.
    Raises:
        ConfigError: unknown architecture. PrerequisiteError: no file. CorruptDataError: other weights, damaged file.
    """
    shape = named(architecture) if isinstance(architecture, str) else architecture
    what = f"CLIP {architecture}" if isinstance(architecture, str) else "this CLIP"
    if path.is_dir():
        config, state, digest = read_folder(path)
        check_activation(path, config, shape.activation)
    else:
        state, digest = read_state(path), checksum(path)
    return clip_of(state, shape, what), digest


def clip_of(state: State, architecture: Architecture, what: str = "this CLIP") -> CLIPModel:
    """A CLIPModel from tensors in any of the three layouts. Raises CorruptDataError where they do not fit."""
    is_transformers = any(name.startswith(("vision_model.", "text_model.")) for name in state)
    return fill(lambda: CLIPModel(architecture.config()), state if is_transformers else convert(state), what)


def named(architecture: str) -> Architecture:
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"unknown CLIP architecture {architecture!r}", hint=did_you_mean(architecture, ARCHITECTURES))
    return ARCHITECTURES[architecture]


def check_activation(folder: Path, config: Mapping[str, object], activation: str) -> None:
    """Raises CorruptDataError where a folder's config.json asks for another activation than the architecture's."""
    for part in ("text_config", "vision_config"):
        inner = config.get(part)
        given = inner.get("hidden_act", "quick_gelu") if isinstance(inner, Mapping) else "quick_gelu"
        if given != activation:
            raise CorruptDataError(
                f"{folder}/config.json: {part} has the activation {given!r}, this scorer's weights use {activation!r}",
                hint="use the folder that was published with the weights",
            )


def parameters(architecture: Architecture) -> int:
    """Number of weights; nothing is allocated."""
    with torch.device("meta"):
        return sum(each.numel() for each in CLIPModel(architecture.config()).parameters())

"""BLIP checkpoints of the original code as transformers' BLIP modules.

The picture tower is renamed. The text tower already has transformers' names, because both stem from BERT. LayerNorms of
the picture tower add 1e-6, where transformers' default is 1e-5.
Sources: salesforce/BLIP `models/vit.py`, `models/med.py`, transformers `modeling_blip.py`, `modeling_blip_text.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import BlipTextConfig, BlipVisionConfig

from .checkpoints import State

_ROOTS = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
_IN_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlipSize:
    """ImageReward's by default: ViT-L/16 and BERT base."""

    pixels: int = 224
    patch: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_mlp: int = 3072
    words: int = 30_524
    positions: int = 512

    def vision_config(self) -> BlipVisionConfig:
        return BlipVisionConfig(
            image_size=self.pixels,
            patch_size=self.patch,
            hidden_size=self.vision_width,
            intermediate_size=4 * self.vision_width,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_heads,
            hidden_act="gelu",
            layer_norm_eps=1e-6,
        )

    def text_config(self, memory_width: int | None = None) -> BlipTextConfig:
        """`memory_width` is that of what the text looks at; default the picture's."""
        return BlipTextConfig(
            vocab_size=self.words,
            hidden_size=self.text_width,
            encoder_hidden_size=memory_width or self.vision_width,
            intermediate_size=self.text_mlp,
            projection_dim=self.text_width,
            num_hidden_layers=self.text_layers,
            num_attention_heads=self.text_heads,
            max_position_embeddings=self.positions,
            hidden_act="gelu",
            layer_norm_eps=1e-12,
            is_decoder=True,  # transformers makes the layers that look at the picture only then; masks are set per call
        )


BLIP_VQA = BlipSize(pixels=480, vision_width=768, vision_layers=12, vision_heads=12)


def convert_vision(state: State) -> dict[str, Tensor]:
    """`visual_encoder`'s tensors (without that prefix) under BlipVisionModel's names; unknown names stay."""
    return {_vision_name(name): value for name, value in state.items()}


def _vision_name(name: str) -> str:
    if name in _ROOTS:
        return _ROOTS[name]
    stem, _, kind = name.rpartition(".")
    if stem in _ROOTS:
        return f"{_ROOTS[stem]}.{kind}"
    parts = stem.split(".", 2)
    if parts[0] == "blocks" and len(parts) == 3 and parts[2] in _IN_BLOCK:
        return f"encoder.layers.{parts[1]}.{_IN_BLOCK[parts[2]]}.{kind}"
    return name


def split(state: State, prefixes: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """Tensors by the part they belong to, without its prefix; those of no part are under ""."""
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in [*prefixes, ""]}
    for name, value in state.items():
        part = next((part for part, prefix in prefixes.items() if name.startswith(prefix)), "")
        parts[part][name.removeprefix(prefixes[part]) if part else name] = value
    return parts

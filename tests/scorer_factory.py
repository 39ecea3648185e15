"""The real scorers in miniature: random weights in files as they are published, tokenizers that know letters only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gcpo_bench.evaluators.scorers.blip_weights import BlipSize
from gcpo_bench.evaluators.scorers.clip_weights import Architecture, Tower
from gcpo_bench.evaluators.scorers.images import Preprocessing
from gcpo_bench.evaluators.scorers.tokens import byte_letters

from .reference import blip as blip_reference
from .reference import clip as clip_reference

GELU = Architecture(
    vision=Tower(width=20, layers=2, heads=2),  # head width 10: no default fits it, as with ViT-H's 80
    text=Tower(width=24, layers=2, heads=3),
    embed=16,
    patch=8,
    pixels=24,
    words=514,
    context=20,
    activation="gelu",
)
QUICK = Architecture(
    vision=Tower(width=32, layers=1, heads=2),
    text=Tower(width=16, layers=2, heads=2),
    embed=12,
    patch=12,
    pixels=24,
    words=514,
    context=20,
    activation="quick_gelu",
)
BLIP = BlipSize(
    pixels=32,
    patch=16,
    vision_width=24,
    vision_layers=2,
    vision_heads=2,
    text_width=16,
    text_layers=2,
    text_heads=2,
    text_mlp=32,
    words=64,
    positions=40,
)


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """float64 values that float32 holds exactly; large enough that every part changes what comes out."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        scale = 0.3 if len(shape) > 1 else 0.1
        value = scale * torch.randn(shape, generator=generator)
        is_norm = "norm" in name.lower() or "ln_" in name
        state[name] = (value + 1 if is_norm and name.endswith("weight") else value).double()
    return state


def open_clip_state(architecture: Architecture, seed: int = 0) -> dict[str, Tensor]:
    shapes = clip_reference.published_shapes(
        width=architecture.vision.width,
        layers=architecture.vision.layers,
        patch=architecture.patch,
        pixels=architecture.pixels,
        text_width=architecture.text.width,
        text_layers=architecture.text.layers,
        words=architecture.words,
        context=architecture.context,
        embed=architecture.embed,
    )
    return random_state(shapes, seed)


def head_state(inputs: int, prefix: str = "", seed: int = 1) -> dict[str, Tensor]:
    widths = (inputs, 1024, 128, 64, 16, 1)
    shapes: dict[str, tuple[int, ...]] = {}
    for index, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        shapes[f"{prefix}layers.{index}.weight"] = (after, before)
        shapes[f"{prefix}layers.{index}.bias"] = (after,)
    return {name: value / 3 for name, value in random_state(shapes, seed).items()}


def blip_state(size: BlipSize, seed: int = 2) -> dict[str, dict[str, Tensor]]:
    """`visual_encoder` and `text_encoder`, without prefixes."""
    vision = blip_reference.vision_shapes(
        width=size.vision_width, layers=size.vision_layers, patch=size.patch, pixels=size.pixels
    )
    text = blip_reference.text_shapes(
        width=size.text_width,
        picture_width=size.vision_width,
        mlp=size.text_mlp,
        layers=size.text_layers,
        words=size.words,
        positions=size.positions,
    )
    return {"vision": random_state(vision, seed), "text": random_state(text, seed + 1)}


def image_reward_state(size: BlipSize, seed: int = 2) -> dict[str, Tensor]:
    towers = blip_state(size, seed)
    return {
        **{f"blip.visual_encoder.{name}": value for name, value in towers["vision"].items()},
        **{f"blip.text_encoder.{name}": value for name, value in towers["text"].items()},
        "blip.text_encoder.embeddings.position_ids": torch.arange(size.positions)[None],
        **head_state(size.text_width, "mlp.", seed + 2),
    }


def save(state: Mapping[str, Tensor], path: Path, **around: Any) -> Path:
    """As a float32 torch file; `around` are further entries beside `state_dict`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    torch.save({"state_dict": tensors, **around} if around else tensors, path)
    return path


def arrays(state: Mapping[str, Tensor]) -> dict[str, npt.NDArray[np.float64]]:
    return {name: value.float().double().numpy() for name, value in state.items()}


def clip_tokenizer_folder(folder: Path) -> Path:
    letters = byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def bert_tokenizer_folder(folder: Path) -> Path:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "yes",
        "no",
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def pictures(count: int, seed: int = 0, sides: tuple[int, int] = (10, 60)) -> list[npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    shapes = rng.integers(*sides, size=(count, 2))
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in shapes]


def small(architecture: Architecture, preset: Preprocessing) -> Preprocessing:
    """The preset at the miniature's size."""
    fields = {name: getattr(preset, name) for name in Preprocessing.__dataclass_fields__}
    return Preprocessing(**{**fields, "size": architecture.pixels})


def blip_vqa_state(size: BlipSize, seed: int = 11) -> dict[str, Tensor]:
    """As published, with the decoder's output weights under their second names too."""
    towers = blip_state(size, seed)
    decoder = blip_reference.text_shapes(
        width=size.text_width,
        picture_width=size.text_width,
        mlp=size.text_mlp,
        layers=size.text_layers,
        words=size.words,
        positions=size.positions,
    )
    head: dict[str, tuple[int, ...]] = {
        "predictions.bias": (size.words,),
        **blip_reference.dense("predictions.transform", size.text_width, size.text_width),
        **blip_reference.norm("predictions.transform", size.text_width),
    }
    state = {
        **{f"visual_encoder.{name}": value for name, value in towers["vision"].items()},
        **{f"text_encoder.{name}": value for name, value in towers["text"].items()},
        "text_encoder.embeddings.position_ids": torch.arange(size.positions)[None],
        **{f"text_decoder.bert.{name}": value for name, value in random_state(decoder, seed + 2).items()},
        **{f"text_decoder.cls.{name}": value for name, value in random_state(head, seed + 3).items()},
    }
    state["text_decoder.cls.predictions.decoder.weight"] = state["text_decoder.bert.embeddings.word_embeddings.weight"]
    state["text_decoder.cls.predictions.decoder.bias"] = state["text_decoder.cls.predictions.bias"]
    return state

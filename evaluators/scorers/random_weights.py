"""The real scorers with random weights, to measure speed and memory where published weights are not at hand.

Their scores mean nothing, and their identity says so. Two sizes: the published one, and a small one, which has the
published number of pixels, patches, tokens and words but towers two layers deep and 64 wide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import CLIPModel, PreTrainedTokenizerFast

from gcpo_bench.errors import ConfigError

from . import blip_weights, images
from .aesthetic import Aesthetic
from .blip_vqa import BlipVqa, BlipVqaModel
from .blip_weights import BlipSize
from .checkpoints import fill
from .clip import Clip
from .clip_score import ClipScore
from .clip_weights import ARCHITECTURES, Architecture, Tower
from .compute import Compute
from .heads import Head
from .hps import HPS
from .image_reward import ImageReward, ImageRewardModel
from .images import Preprocessing
from .pickscore import PickScore
from .types import Scorer

M = TypeVar("M", bound=nn.Module)

LABEL = "random"
WIDTH, LAYERS, HEADS = 64, 2, 2
"""Of the small size."""
_SCALE = 0.02


def model(build: Callable[[], M], seed: int = 0) -> M:
    """Matrices of small normal numbers, norms that do nothing, no biases; filled in as published weights are."""
    with torch.device("meta"):
        shapes = build().state_dict()
    generator = torch.Generator().manual_seed(seed)

    def tensor(name: str, like: Tensor) -> Tensor:
        if like.ndim > 1:
            return torch.randn(like.shape, generator=generator).mul_(_SCALE)
        return torch.ones(like.shape) if name.endswith("weight") else torch.zeros(like.shape)

    state = {name: tensor(name, like) for name, like in shapes.items() if not name.endswith("position_ids")}
    return fill(build, state, "random weights")


def tokenizer(*, begin: int, end: int, unknown: int = 0) -> PreTrainedTokenizerFast:
    """Knows no word: each is one unknown token. How many there are is what a network's time depends on."""
    names = {"[UNK]": unknown, "[BEGIN]": begin, "[END]": end}
    words = Tokenizer(WordLevel(names, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="[BEGIN] $A [END]", special_tokens=[("[BEGIN]", begin), ("[END]", end)]
    )
    special: dict[str, Any] = {"unk_token": "[UNK]", "bos_token": "[BEGIN]", "eos_token": "[END]", "pad_token": "[END]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)  # type: ignore[no-untyped-call]


def clip_architecture(name: str, *, small: bool) -> Architecture:
    published = ARCHITECTURES[name]
    tower = Tower(width=WIDTH, layers=LAYERS, heads=HEADS)
    return replace(published, vision=tower, text=tower, embed=WIDTH) if small else published


def clip_model(architecture: Architecture) -> CLIPModel:
    return model(lambda: CLIPModel(architecture.config()))


def clip_tokenizer(architecture: Architecture) -> PreTrainedTokenizerFast:
    return tokenizer(begin=architecture.words - 2, end=architecture.words - 1)


def blip_size(published: BlipSize, *, small: bool) -> BlipSize:
    vision = {"vision_width": WIDTH, "vision_layers": LAYERS, "vision_heads": HEADS}
    text = {"text_width": WIDTH, "text_layers": LAYERS, "text_heads": HEADS, "text_mlp": 4 * WIDTH}
    return replace(published, **vision, **text) if small else published


def _clip(name: str, preprocessing: Preprocessing, small: bool, compute: Compute, unescape: bool = True) -> Clip:
    architecture = clip_architecture(name, small=small)
    return Clip(
        model=clip_model(architecture),
        tokenizer=clip_tokenizer(architecture),
        preprocessing=preprocessing,
        unescape=unescape,
        weights=LABEL,
        compute=compute,
    )


def _aesthetic(small: bool, compute: Compute) -> Aesthetic:
    clip = _clip("ViT-L-14", images.CLIP_TRANSFORMERS, small, compute)
    return Aesthetic(clip=clip, head=model(lambda: Head(clip.model.visual_projection.out_features)), head_weights=LABEL)


def _image_reward(small: bool, compute: Compute) -> ImageReward:
    size = blip_size(BlipSize(), small=small)
    return ImageReward(
        model=model(lambda: ImageRewardModel(size)),
        tokenizer=tokenizer(begin=1, end=2),
        weights=LABEL,
        preprocessing=Preprocessing(size=size.pixels),
        compute=compute,
    )


Make = Callable[[bool, Compute], Scorer]
SCORERS: Mapping[str, Make] = {
    "hps-v2.1": lambda small, compute: HPS(clip=_clip("ViT-H-14", images.HPS, small, compute)),
    "hps-v2.0": lambda small, compute: HPS(clip=_clip("ViT-H-14", images.HPS, small, compute), version="v2.0"),
    "clip-score": lambda small, compute: ClipScore(clip=_clip("ViT-L-14", images.CLIP, small, compute)),
    "clip-score-tensor": lambda small, compute: ClipScore(
        clip=_clip("ViT-L-14", images.CLIP_FLOAT_BILINEAR, small, compute), name="clip-score-tensor"
    ),
    "clip-score-b32": lambda small, compute: ClipScore(
        clip=_clip("ViT-B-32", images.CLIP, small, compute), name="clip-score-b32"
    ),
    "pickscore": lambda small, compute: PickScore(
        clip=_clip("ViT-H-14", images.CLIP_TRANSFORMERS, small, compute, unescape=False)
    ),
    "aesthetic": _aesthetic,
    "image-reward": _image_reward,
}
"""Registered name -> the scorer; what runs elsewhere, or in a package of its own, is not among them."""


def scorer(name: str, *, small: bool, compute: Compute) -> Scorer:
    """Raises ConfigError for a scorer that has no random weights."""
    if name not in SCORERS:
        raise ConfigError(f"scorer {name!r} has no random weights", hint=f"known: {', '.join(SCORERS)}")
    return SCORERS[name](small, compute)


def blip_vqa(*, small: bool, compute: Compute) -> BlipVqa:
    size = blip_size(blip_weights.BLIP_VQA, small=small)
    return BlipVqa(
        model=model(lambda: BlipVqaModel(size)),
        tokenizer=tokenizer(begin=1, end=2),
        yes=3,
        no=4,
        weights=LABEL,
        preprocessing=replace(images.BLIP_VQA, size=size.pixels),
        compute=compute,
    )

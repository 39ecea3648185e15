"""GenEval's two networks in miniature: the real classes with random weights, and files as they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

from .reference.mmdet_names import Tensors, mmdet_state

DEPTHS = [1, 1, 2, 1]
ENCODER_LAYERS, DECODER_LAYERS = 1, 2


def detector(seed: int = 0, num_queries: int = 12) -> Mask2FormerForUniversalSegmentation:
    """A Mask2Former of 0.1 M weights. They are larger than at a usual start, so that images make a difference."""
    backbone: dict[str, Any] = {
        "embed_dim": 8,
        "depths": DEPTHS,
        "num_heads": [1, 2, 2, 4],
        "mlp_ratio": 2.0,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    widths = dict.fromkeys(("hidden_dim", "feature_size", "mask_feature_size"), 32)
    options: dict[str, Any] = {
        **widths,
        "num_labels": 80,
        "num_queries": num_queries,
        "encoder_layers": ENCODER_LAYERS,
        "encoder_feedforward_dim": 16,
        "decoder_layers": DECODER_LAYERS + 1,
        "dim_feedforward": 16,
    }
    config = Mask2FormerConfig(backbone_config=SwinConfig(**backbone), **options)
    torch.manual_seed(seed)
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("class_predictor") or "mask_embedder" in name:
                parameter.copy_(torch.randn_like(parameter))
    model.train(mode=False)
    return model


def published_state(model: Mask2FormerForUniversalSegmentation, version: int = 2) -> Tensors:
    """The detector's weights under mmdet's names."""
    return mmdet_state(model.state_dict(), DEPTHS, ENCODER_LAYERS, DECODER_LAYERS, version)


def write_checkpoint(path: Path, model: Mask2FormerForUniversalSegmentation) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"meta": {"epoch": 50}, "state_dict": published_state(model)}, path)
    return path


# ---------------------------------------------------------------- CLIP


def tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer with a vocabulary of single letters, at a word's end and inside."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[])


def clip(seed: int = 0, activation: str = "quick_gelu") -> CLIPModel:
    words = tokenizer()
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "hidden_act": activation}
    text = {**shape, "vocab_size": len(words), "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    vision = {**shape, "image_size": 32, "patch_size": 8}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)  # so that images and words make a difference
    model.train(mode=False)
    return model


def write_clip(folder: Path, model: CLIPModel) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder

"""Detectors with random weights, to measure speed and memory where published weights are not at hand."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BertConfig,
    BitConfig,
    DPTConfig,
    DPTForDepthEstimation,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

from gcpo_bench.geneval_prompts import CLASSES

from ..fidelity import Fidelity
from ..scorers import random_weights
from .colors import ColorClassifier
from .compbench import Eyes
from .depth import Depth
from .geneval import GenEvalVision
from .grounding_dino import SPECIAL, GroundingDino
from .mask2former import Mask2Former

CLASSIFIER = "ViT-L-14"


def detector_config(*, small: bool) -> Mask2FormerConfig:
    """Mask2Former with a Swin-S backbone, as GenEval's; or two layers of everything, an eighth as wide."""
    backbone: dict[str, Any] = {
        "embed_dim": 12 if small else 96,
        "depths": [1, 1, 2, 1] if small else [2, 2, 18, 2],
        "num_heads": [1, 2, 3, 6] if small else [3, 6, 12, 24],
        "window_size": 7,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    width = 32 if small else 256
    options: dict[str, Any] = {
        **dict.fromkeys(("hidden_dim", "feature_size", "mask_feature_size"), width),
        "num_labels": len(CLASSES),
        "num_queries": 100,
        "encoder_layers": 2 if small else 6,
        "encoder_feedforward_dim": 4 * width,
        "decoder_layers": 3 if small else 10,
        "dim_feedforward": 8 * width,
    }
    return Mask2FormerConfig(backbone_config=SwinConfig(**backbone), **options)


def detector(*, small: bool, seed: int = 0) -> Mask2FormerForUniversalSegmentation:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Mask2FormerForUniversalSegmentation(detector_config(small=small))


def build(fidelity: Fidelity, *, small: bool, device: str) -> tuple[GenEvalVision, dict[str, Any]]:
    """As `geneval.build`; what is found with them means nothing."""
    architecture = random_weights.clip_architecture(CLASSIFIER, small=small)
    vision = GenEvalVision(
        Mask2Former(detector(small=small), device=device, antialias=fidelity.antialias),
        ColorClassifier(
            random_weights.clip_model(architecture),
            random_weights.clip_tokenizer(architecture),
            device=device,
            half_precision=fidelity.half_precision,
        ),
        fidelity,
    )
    return vision, {"detector": random_weights.LABEL, "classifier": random_weights.LABEL}


# ---------------------------------------------------------------- T2I-CompBench's objects


def grounding_dino_config(*, small: bool) -> GroundingDinoConfig:
    """Grounding DINO `base`, with a Swin-B backbone; or two layers of everything, an eighth as wide."""
    backbone: dict[str, Any] = {
        "embed_dim": 12 if small else 128,
        "depths": [1, 1, 2, 1] if small else [2, 2, 18, 2],
        "num_heads": [1, 2, 3, 6] if small else [4, 8, 16, 32],
        "window_size": 12,
        "image_size": 384,
        "out_features": ["stage2", "stage3", "stage4"],
    }
    width = 32 if small else 256
    options: dict[str, Any] = {
        "d_model": width,
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 2 if small else 6),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 8 * width),
    }
    text: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2} if small else {}
    return GroundingDinoConfig(backbone_config=SwinConfig(**backbone), text_config=BertConfig(**text), **options)


def depth_config(*, small: bool) -> DPTConfig:
    """The hybrid DPT of MiDaS; or four layers, an eighth as wide."""
    if not small:
        return DPTConfig(is_hybrid=True, neck_hidden_sizes=[256, 512, 768, 768], reassemble_factors=[1, 1, 1, 0.5])
    backbone: dict[str, Any] = {
        "embedding_size": 8,
        "hidden_sizes": [32, 64, 128],
        "depths": [1, 1, 1],
        "num_groups": 8,
        "out_features": ["stage1", "stage2", "stage3"],
        "layer_type": "bottleneck",
        "global_padding": "same",
        "embedding_dynamic_padding": True,
    }
    options: dict[str, Any] = {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 384,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [32, 64, 96, 96],
        "fusion_hidden_size": 32,
        "backbone_featmap_shape": [1, 128, 24, 24],
        "reassemble_factors": [1, 1, 1, 0.5],
    }
    return DPTConfig(is_hybrid=True, backbone_config=BitConfig(**backbone), **options)


def objects(*, small: bool, with_depth: bool, device: str, seed: int = 0) -> tuple[Eyes, dict[str, Any]]:
    """As `compbench.build`; what is found with them means nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        finder = GroundingDinoForObjectDetection(grounding_dino_config(small=small))
        depth = Depth(DPTForDepthEstimation(depth_config(small=small)), device=device) if with_depth else None
    words = random_weights.tokenizer(begin=SPECIAL["[CLS]"], end=SPECIAL["[SEP]"])
    return Eyes(GroundingDino(finder, words, device=device), depth), {"detector": random_weights.LABEL}

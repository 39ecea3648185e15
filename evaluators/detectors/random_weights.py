"""GenEval's two networks with random weights, to measure speed and memory where published weights are not at hand."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from gcpo_bench.geneval_prompts import CLASSES

from ..fidelity import Fidelity
from ..scorers import random_weights
from .colors import ColorClassifier
from .geneval import GenEvalVision
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

"""GenEval's two networks in miniature: the real classes with random weights, and files as they are published."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from .reference.mmdet_names import Tensors, mmdet_state

DEPTHS = [1, 1, 2, 1]
ENCODER_LAYERS, DECODER_LAYERS = 1, 2


def detector(seed: int = 0, num_queries: int = 12) -> Mask2FormerForUniversalSegmentation:
    """A Mask2Former of 0.1 M weights. They are larger than at a usual start, so that images make a difference."""
    backbone = SwinConfig(
        embed_dim=8,
        depths=DEPTHS,
        num_heads=[1, 2, 2, 4],
        window_size=7,
        mlp_ratio=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=80,
        num_queries=num_queries,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_layers=ENCODER_LAYERS,
        encoder_feedforward_dim=16,
        decoder_layers=DECODER_LAYERS + 1,
        dim_feedforward=16,
    )
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

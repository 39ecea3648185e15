"""Networks of GenEval, T2I-CompBench and Janus-Pro in miniature: real classes, random weights, files as published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import (
    BertConfig,
    BitConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    DPTConfig,
    DPTForDepthEstimation,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

from gcpo_bench.training.policies import janus_pro

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
    model = Mask2FormerForUniversalSegmentation(config)
    generator = torch.Generator().manual_seed(seed)  # the same weights whatever a version of torch starts with
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if name.startswith("class_predictor") or "mask_embedder" in name:
                parameter.copy_(drawn)
            elif parameter.ndim > 1:
                parameter.copy_(drawn * 0.3 / parameter[0].numel() ** 0.5)
            elif name.endswith("bias") and "sampling_offsets" not in name:
                parameter.zero_()
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


# ---------------------------------------------------------------- Janus-Pro


def write_janus(folder: Path, shards: int = 1) -> Path:
    """janus-pro-tiny, by its tensors' published names, in one file or in several with an index."""
    policy = janus_pro.build("janus-pro-tiny")
    policy.initialize(torch.Generator().manual_seed(0))
    tensors = {policy.published_name(name): tensor for name, tensor in policy.state_dict().items()}
    folder.mkdir(parents=True)
    names = [f"model-{row + 1:05}-of-{shards:05}.safetensors" for row in range(shards)]
    names = names if shards > 1 else ["model.safetensors"]
    for row, name in enumerate(names):
        save_file(dict(list(tensors.items())[row::shards]), folder / name)
    if shards > 1:
        places = {tensor: names[row % shards] for row, tensor in enumerate(tensors)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    janus_pro.SIZES["janus-pro-tiny"].config().save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- T2I-CompBench's detector and depth

NAMES = ("cat", "dog", "teddy", "bear", "tele", "##phone", "person", "cube", "square")
"""Words of the miniature's vocabulary, from number 1000 on; single letters follow."""


def bert_words(folder: Path) -> Path:
    """A vocabulary in which the words that part names have the numbers of bert-base-uncased."""
    words = [f"[unused{row}]" for row in range(1100)]
    places = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    letters = "abcdefghijklmnopqrstuvwxyz"
    more = [*NAMES, *letters, *(f"##{letter}" for letter in letters)]
    places |= {word: 1030 + row if row >= 12 else 1000 + row for row, word in enumerate(more)}
    for word, place in places.items():
        words[place] = word
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def grounding_dino(seed: int = 0, num_queries: int = 12) -> GroundingDinoForObjectDetection:
    """A Grounding DINO of 0.2 M weights."""
    backbone: dict[str, Any] = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "mlp_ratio": 2.0}
    backbone["out_indices"] = [2, 3, 4]
    text: dict[str, Any] = {"vocab_size": 1100, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "max_position_embeddings": 64}
    options: dict[str, Any] = {"num_queries": num_queries, "encoder_layers": 1, "decoder_layers": 2, "d_model": 32}
    options |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32)
    options |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    torch.manual_seed(seed)
    model = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=SwinConfig(**backbone),
            text_config=BertConfig(**text),
            max_text_len=40,
            **options,
        )
    )
    model.train(mode=False)
    return model


def write_grounding_dino(folder: Path, model: GroundingDinoForObjectDetection) -> Path:
    model.save_pretrained(folder)
    return bert_words(folder)


def depth(seed: int = 0) -> DPTForDepthEstimation:
    """A hybrid DPT of 0.1 M weights, for pictures of 32 pixels a side, as the published is for 384."""
    backbone: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 1, 1], "num_groups": 2}
    backbone |= {"out_features": ["stage1", "stage2", "stage3"], "layer_type": "bottleneck", "global_padding": "same"}
    options: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32}
    options |= {"intermediate_size": 32, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 16, 16, 16]}
    options |= {"fusion_hidden_size": 16, "backbone_featmap_shape": [1, 24, 2, 2], "reassemble_factors": [1, 1, 1, 0.5]}
    torch.manual_seed(seed)
    model = DPTForDepthEstimation(
        DPTConfig(is_hybrid=True, backbone_config=BitConfig(**backbone, embedding_dynamic_padding=True), **options)
    )
    model.train(mode=False)
    return model


def write_depth(folder: Path, model: DPTForDepthEstimation) -> Path:
    """Without the weights that published files lack."""
    unused = "neck.fusion_stage.layers.0.residual_layer1."
    model.save_pretrained(
        folder, state_dict={name: value for name, value in model.state_dict().items() if not name.startswith(unused)}
    )
    return folder

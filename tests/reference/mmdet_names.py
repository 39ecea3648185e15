"""mmdet's Mask2Former entry by entry: from a network of transformers to the state dict mmdet would save.

Written out forwards, with nested loops over stages, blocks and layers, from mmdet's module tree; so it shares nothing
with the converter, which goes the other way by patterns.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def mmdet_state(ours: Mapping[str, Tensor], depths: list[int], encoder: int, decoder: int, version: int = 2) -> Tensors:
    """`ours` is the state dict of transformers' network; `encoder`, `decoder` are numbers of layers."""
    theirs: Tensors = {}

    def copy(new: str, old: str, *ends: str) -> None:
        for end in ends or ("weight", "bias"):
            theirs[f"{new}.{end}"] = ours[f"{old}.{end}"].clone()

    def fuse(new: str, old: str, joint: str) -> None:
        for end in ("weight", "bias"):
            theirs[f"{new}{joint}{end}"] = torch.cat([ours[f"{old}.{letter}_proj.{end}"] for letter in "qkv"])

    pixel = "model.pixel_level_module"
    copy("backbone.patch_embed.projection", f"{pixel}.encoder.swin.embeddings.patch_embeddings.projection")
    copy("backbone.patch_embed.norm", f"{pixel}.encoder.swin.embeddings.norm")
    for stage, depth in enumerate(depths):
        copy(f"backbone.norm{stage}", f"{pixel}.encoder.hidden_states_norms.stage{stage + 1}")
        for block in range(depth):
            new = f"backbone.stages.{stage}.blocks.{block}"
            old = f"{pixel}.encoder.swin.encoder.layers.{stage}.blocks.{block}"
            copy(f"{new}.norm1", f"{old}.layernorm_before")
            copy(f"{new}.norm2", f"{old}.layernorm_after")
            fuse(f"{new}.attn.w_msa", f"{old}.attention", ".qkv.")
            copy(f"{new}.attn.w_msa.proj", f"{old}.attention.o_proj")
            table = "relative_position_bias_table"
            theirs[f"{new}.attn.w_msa.{table}"] = ours[f"{old}.attention.relative_position_bias.{table}"]
            theirs[f"{new}.attn.w_msa.relative_position_index"] = torch.zeros(1, dtype=torch.int64)
            copy(f"{new}.ffn.layers.0.0", f"{old}.mlp.fc1")
            copy(f"{new}.ffn.layers.1", f"{old}.mlp.fc2")
        if stage < len(depths) - 1:
            new = f"backbone.stages.{stage}.downsample"
            old = f"{pixel}.encoder.swin.encoder.layers.{stage}.downsample"
            for entry in ("norm.weight", "norm.bias", "reduction.weight"):
                theirs[f"{new}.{entry}"] = _interleaved(ours[f"{old}.{entry}"])
    head = "panoptic_head"
    for level in range(3):
        copy(f"{head}.pixel_decoder.input_convs.{level}.conv", f"{pixel}.decoder.input_projections.{level}.0")
        copy(f"{head}.pixel_decoder.input_convs.{level}.gn", f"{pixel}.decoder.input_projections.{level}.1")
    for new, old in (("lateral_convs.0", "adapter_1"), ("output_convs.0", "layer_1")):
        copy(f"{head}.pixel_decoder.{new}.conv", f"{pixel}.decoder.{old}.0", "weight")
        copy(f"{head}.pixel_decoder.{new}.gn", f"{pixel}.decoder.{old}.1")
    copy(f"{head}.pixel_decoder.mask_feature", f"{pixel}.decoder.mask_projection")
    theirs[f"{head}.pixel_decoder.level_encoding.weight"] = ours[f"{pixel}.decoder.level_embed"]
    attention, ffn = ("attentions.0", "ffns.0") if version == 2 else ("self_attn", "ffn")
    for layer in range(encoder):
        new = f"{head}.pixel_decoder.encoder.layers.{layer}"
        old = f"{pixel}.decoder.encoder.layers.{layer}"
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
            copy(f"{new}.{attention}.{part}", f"{old}.self_attn.{part}")
        copy(f"{new}.{ffn}.layers.0.0", f"{old}.fc1")
        copy(f"{new}.{ffn}.layers.1", f"{old}.fc2")
        copy(f"{new}.norms.0", f"{old}.self_attn_layer_norm")
        copy(f"{new}.norms.1", f"{old}.final_layer_norm")
    cross, own = ("attentions.0", "attentions.1") if version == 2 else ("cross_attn", "self_attn")
    queries = "model.transformer_module"
    for layer in range(decoder):
        new = f"{head}.transformer_decoder.layers.{layer}"
        old = f"{queries}.decoder.layers.{layer}"
        for end in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"):
            theirs[f"{new}.{cross}.attn.{end}"] = ours[f"{old}.cross_attn.{end}"]
        fuse(f"{new}.{own}.attn", f"{old}.self_attn", ".in_proj_")
        copy(f"{new}.{own}.attn.out_proj", f"{old}.self_attn.out_proj")
        copy(f"{new}.{ffn}.layers.0.0", f"{old}.fc1")
        copy(f"{new}.{ffn}.layers.1", f"{old}.fc2")
        for number, name in enumerate(("cross_attn_layer_norm", "self_attn_layer_norm", "final_layer_norm")):
            copy(f"{new}.norms.{number}", f"{old}.{name}")
    copy(f"{head}.transformer_decoder.post_norm", f"{queries}.decoder.layernorm")
    copy(f"{head}.cls_embed", "class_predictor")
    for number in range(3):
        copy(f"{head}.mask_embed.{2 * number}", f"{queries}.decoder.mask_predictor.mask_embedder.{number}.0")
    copy(f"{head}.level_embed", f"{queries}.level_embed", "weight")
    copy(f"{head}.query_embed", f"{queries}.queries_embedder", "weight")
    copy(f"{head}.query_feat", f"{queries}.queries_features", "weight")
    return theirs


Tensors = dict[str, Tensor]


def _interleaved(tensor: Tensor) -> Tensor:
    """Features of the four corners, from blocks of a corner each to groups of a channel each.

    transformers stacks the corners (row, column) 00, 10, 01, 11; mmdet's unfold has 00, 01, 10, 11 for every channel.
    """
    channels = tensor.shape[-1] // 4
    result = torch.empty_like(tensor)
    for ours, theirs in ((0, 0), (1, 2), (2, 1), (3, 3)):
        for channel in range(channels):
            result[..., 4 * channel + theirs] = tensor[..., ours * channels + channel]
    return result

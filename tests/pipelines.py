"""diffusers' own pipelines in miniature: random weights in folders as `save_pretrained` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = 16
"""Longest prompt."""
CROSS = 16
"""Width of what is read of a prompt."""


def _clip(folder: Path) -> tuple[Any, Any]:
    """Tokenizer of single letters, and text encoder."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS
    )
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=CROSS,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    return tokenizer, transformers.CLIPTextModel(config)


def _safety_checker() -> Any:
    """Blanks every image: nothing is as unlike a bad concept as its thresholds ask for."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        vision_config={**vision, "image_size": 32, "patch_size": 16}, text_config=vision, projection_dim=8
    )
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-9.0)
    checker.special_care_embeds_weights.data.fill_(9.0)
    return checker


def stable_diffusion(folder: Path, *, safety_checker: bool = False, **saving: Any) -> Path:
    """StableDiffusionPipeline, 32 x 32 pixels."""
    torch.manual_seed(0)
    tokenizer, text_encoder = _clip(folder.with_name(f"{folder.name}-tokenizer"))
    pipeline = diffusers.StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=diffusers.UNet2DConditionModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=CROSS,
            attention_head_dim=4,
        ),
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        ),
        scheduler=diffusers.EulerAncestralDiscreteScheduler(steps_offset=1),  # draws noise at every step
        safety_checker=_safety_checker() if safety_checker else None,
        feature_extractor=transformers.CLIPImageProcessor(size=32, crop_size=32) if safety_checker else None,
        requires_safety_checker=safety_checker,
    )
    pipeline.save_pretrained(folder, **saving)
    return folder


def flux(folder: Path) -> Path:
    """FluxPipeline: two text encoders, a transformer, flow matching; 8 pixels a step of height and width at least."""
    torch.manual_seed(0)
    tokenizer, text_encoder = _clip(folder.with_name(f"{folder.name}-tokenizer"))
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -2.0), ("▁", -1.0), *((letter, -1.0) for letter in LETTERS)]
    pipeline = diffusers.FluxPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        tokenizer_2=transformers.T5Tokenizer(vocab=words, extra_ids=0, model_max_length=TOKENS),
        text_encoder_2=transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=len(words), d_model=CROSS, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=CROSS,
            pooled_projection_dim=CROSS,
            axes_dims_rope=[2, 2, 4],
            guidance_embeds=True,
        ),
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8,),
            norm_num_groups=4,
            latent_channels=1,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.1,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    pipeline.save_pretrained(folder)
    return folder

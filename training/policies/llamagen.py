"""LlamaGen, text to image: its transformer under the published names, and our own pass through it.

A sequence is the prompt, as states of a T5 encoder, and then the image. Image tokens have places (rows and columns,
rotary); prompt positions have none: their queries and keys are rotated by zeros and vanish, so a prompt state averages
what stands before it, and an image token scores all prompt states alike.

Where we depart from the released code, with the same results:

1. Prompts are padded on the left to the longest of the batch, in steps of 16, not to 120. Nothing sees the padding, and
   without places it shifts nothing.
2. A prompt is read once, however many images are made of it; teacher forcing uses the same keys and values as decoding.
3. There is no dropout, in any mode, and at guidance 1 no unconditional rows.

The unconditional branch reads `uncond_embedding` in place of the prompt, as many states as the prompt has. That buffer
was drawn at random and never trained (it is no parameter there either).

Source: FoundationVision/LlamaGen, `autoregressive/models/gpt.py` and `autoregressive/models/generate.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gcpo_bench.errors import ConfigError
from gcpo_bench.weights import Weights

from ..types import Work
from . import llamagen_text
from .cached_layer import CachedLayer, Joined
from .kv_cache import KVCache
from .llamagen_text import MAX_TOKENS, TextEncoder
from .llamagen_vq import ImageDecoder
from .shared import attention_bias, causal, distinct, fill_normal, up_to_multiple, widest_state

TEMPLATES = {
    "llamagen": "{text}",
    "gcpo": "<|t2i|>A photo of {text}<|soi|>",
}
"""`gcpo` is what the released GCPO trainer reads; cleaned, its marks leave '< >a photo of ... < soi >' behind."""
NORM_EPSILON = 1e-5
ROTARY_BASE = 10_000
PROMPT_MULTIPLE = 16
"""Prompt slots: few different shapes, so that memory and graphs serve again."""
DECODE_ROWS = 8
"""Images that the image decoder makes at once."""
STATES = 5
"""Feature maps of the largest size that it holds of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    width: int = 1280
    mlp: int = 3584
    layers: int = 36
    heads: int = 20
    side: int
    caption: int = llamagen_text.WIDTH
    """Width of the text encoder's states."""
    codes: int = 16_384
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    latent: int = 256


SIZES = {
    "llamagen-xl-256": Size(side=16),
    "llamagen-xl-512": Size(side=32),
    "llamagen-small": Size(
        width=256, mlp=704, layers=8, heads=4, side=16, caption=64, channels=32, multipliers=(1, 2), latent=32
    ),
    "llamagen-tiny": Size(
        width=64, mlp=128, layers=2, heads=4, side=4, caption=32, codes=64, channels=32, multipliers=(1, 2), latent=32
    ),
}


# ---------------------------------------------------------------- transformer


class CaptionEmbedder(nn.Module):
    uncond_embedding: Tensor

    def __init__(self, caption: int, width: int) -> None:
        super().__init__()
        layers = OrderedDict(
            fc1=nn.Linear(caption, width, bias=False),
            act=nn.GELU(approximate="tanh"),
            fc2=nn.Linear(width, width, bias=False),
        )
        self.cap_proj = nn.Sequential(layers)
        self.register_buffer("uncond_embedding", torch.zeros(MAX_TOKENS, caption))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.wqkv = nn.Linear(width, 3 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)


class FeedForward(nn.Module):
    def __init__(self, width: int, mlp: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, mlp, bias=False)
        self.w3 = nn.Linear(width, mlp, bias=False)
        self.w2 = nn.Linear(mlp, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer, in two halves: between them, the caller decides which keys and values are seen."""

    def __init__(self, width: int, mlp: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = Attention(width)
        self.feed_forward = FeedForward(width, mlp)
        self.attention_norm = nn.RMSNorm(width, eps=NORM_EPSILON)
        self.ffn_norm = nn.RMSNorm(width, eps=NORM_EPSILON)

    def project(self, x_BSD: Tensor, turns_SF: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, H, S, E) each; without places, queries and keys are 0."""
        shape = (*x_BSD.shape[:2], 3, self.heads, x_BSD.shape[2] // self.heads)
        qkv = self.attention.wqkv(self.attention_norm(x_BSD)).view(shape).permute(2, 0, 3, 1, 4)
        queries_keys = turned(qkv[:2], turns_SF) if turns_SF is not None else torch.zeros_like(qkv[:2])
        return queries_keys[0], queries_keys[1], qkv[2]

    def finish(self, x_BSD: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attention, with `bias` added to scores (broadcast to B, H, S, keys), then the MLP."""
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x_BSD = x_BSD + self.attention.wo(seen.transpose(1, 2).flatten(2))
        return x_BSD + self.feed_forward(self.ffn_norm(x_BSD))  # type: ignore[no-any-return]

    def cached(self) -> CachedLayer:
        feed_forward = self.feed_forward
        return CachedLayer(
            attention_norm=self.attention_norm,
            mlp_norm=self.ffn_norm,
            qkv=Joined(self.attention.wqkv),
            out=Joined(self.attention.wo),
            gate_up=Joined(feed_forward.w1, feed_forward.w3),
            down=Joined(feed_forward.w2),
            heads=self.heads,
        )


class Transformer(nn.Module):
    """Names and shapes of the published checkpoints; their tables of angles and masks are computed here."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.cls_embedding = CaptionEmbedder(size.caption, size.width)
        self.tok_embeddings = nn.Embedding(size.codes, size.width)
        self.layers = nn.ModuleList(Block(size.width, size.mlp, size.heads) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.width, eps=NORM_EPSILON)
        self.output = nn.Linear(size.width, size.codes, bias=False)


def turned(x_xE: Tensor, turns_xF: Tensor) -> Tensor:
    """Rotary positions (RoFormer, arXiv 2104.09864): each of F = E / 2 pairs of neighbours, taken for a complex number,
    times its turn; in the precision of `turns_xF`."""
    pairs_xF = torch.view_as_complex(x_xE.to(turns_xF.dtype.to_real()).view(*x_xE.shape[:-1], turns_xF.shape[-1], 2))
    return torch.view_as_real(pairs_xF * turns_xF).flatten(-2).type_as(x_xE)


@lru_cache(maxsize=16)
def places(side: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Turns of a square image, complex (T, head_dim / 2): half the pairs turn by the row, half by the column."""
    with torch.inference_mode(False):  # kept for later calls, which may need it for a gradient
        pairs = head_dim // 4
        rates_F = ROTARY_BASE ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
        angles_SF = torch.arange(side, dtype=torch.float64)[:, None] * rates_F
        angles_TF = torch.cat([angles_SF.repeat_interleave(side, dim=0), angles_SF.repeat(side, 1)], dim=1)
        return torch.complex(angles_TF.cos().to(device, dtype), angles_TF.sin().to(device, dtype))


# ---------------------------------------------------------------- policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What is left of P prompts once they are read; S slots, the last ones filled."""

    keys_values: Sequence[tuple[Tensor, Tensor]]
    """One pair a layer, (P, H, S, E)."""
    visible_PS: Tensor
    """bool: the prompt's own states."""
    hidden_PD: Tensor
    """Predicts the first image token."""


@dataclass(slots=True, kw_only=True)
class DecodeState:
    """R rows, unconditional ones last, if any; slots of the prompt and then of the image."""

    cache: KVCache
    layers: Sequence[CachedLayer]
    turns_S31F: Tensor
    """Complex: what turns the queries, keys and values of the token in a slot; values by nothing."""
    first_RD: Tensor
    """Hidden state that predicts the first token, with which nothing is read."""

    @property
    def advanced(self) -> list[Tensor]:
        """What a step counts up on the device."""
        return [self.cache.slot_1]


class LlamaGen(nn.Module):
    """See `gcpo_bench.training.types.Policy`. The transformer is trained, the image tokenizer is not."""

    parts: ClassVar = {
        "transformer": ("transformer.",),
        "layers": ("transformer.layers.", "transformer.norm."),
    }
    """What can be trained: all, as released; without the layers that read prompts and read and write tokens."""
    templates: ClassVar = TEMPLATES
    """The first is its own."""
    adapted = "transformer"
    """Where low-rank adapters go."""
    fixed_shapes = True
    """A step can be recorded: see `gcpo_bench.training.graphs`."""
    prompt_slots = 0
    """Least slots of a prompt in a cached decode: see `gcpo_bench.training.decoding.keep_one_layout`."""

    def __init__(self, size: Size, text: TextEncoder, template: str = "llamagen") -> None:
        super().__init__()
        if template not in TEMPLATES:
            raise ConfigError(f"unknown template {template!r}", hint=f"known: {', '.join(TEMPLATES)}")
        self.template = TEMPLATES[template]
        self.size = size
        self.text = text
        self.grid = (size.side, size.side)
        self.vocab_size = size.codes
        self.transformer = Transformer(size)
        self.vqmodel = ImageDecoder(
            codes=size.codes, channels=size.channels, multipliers=size.multipliers, latent=size.latent
        )
        self.recompute: Literal["auto", "always", "never"] = "auto"

    @property
    def outside(self) -> tuple[Weights, ...]:
        """What it reads beside its own weights, unless those are random."""
        return (llamagen_text.FLAN_T5,) if self.size.caption == llamagen_text.WIDTH else ()

    @property
    def text_encoder_bytes(self) -> int:
        """Memory of the published text encoder on the policy's device."""
        return llamagen_text.NUM_BYTES if self.outside else 0

    def initialize(self, generator: torch.Generator) -> None:
        """Random weights, and a small random text encoder: matrices normal 0.02, norms 1, biases 0.

        Convolutions and the unconditional states keep the size of their input, else all images would be grey.
        """
        self.text = llamagen_text.random(self.size.caption)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    deviation = parameter[0].numel() ** -0.5 if parameter.ndim == 4 else 0.02
                    fill_normal(parameter, deviation, generator)
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.GroupNorm) and module.bias is not None:
                    module.bias.zero_()
                if isinstance(module, nn.GroupNorm | nn.RMSNorm):
                    module.weight.fill_(1.0)
            fill_normal(self.transformer.cls_embedding.uncond_embedding, self.size.caption**-0.5, generator)

    # ------------------------------------------------------------ prompts

    def slots_for(self, texts: Sequence[str]) -> int:
        """What `start` pads these prompts to."""
        return _slots(max(self.text.length(self.template.format(text=text)) for text in texts))

    def captions(self, texts_P: Sequence[str], slots: int = 0) -> tuple[Tensor, Tensor]:
        """States of the text encoder (P, S, C), padded on the left, and bool (P, S): which slots hold one."""
        weight = self.transformer.tok_embeddings.weight
        states = [self.text(self.template.format(text=text), weight.device) for text in texts_P]
        slots = max(slots, _slots(max(map(len, states))))
        captions_PSC = weight.new_zeros(len(states), slots, self.size.caption)
        for caption_SC, own in zip(captions_PSC, states, strict=True):
            caption_SC[slots - len(own) :] = own
        lengths_P = torch.tensor([len(own) for own in states], device=weight.device)
        return captions_PSC, torch.arange(slots, device=weight.device) >= slots - lengths_P[:, None]

    def read(self, texts_P: Sequence[str], *, guided: bool = False, slots: int = 0) -> Prompts:
        """In at least so many slots. With `guided`, as many prompts again follow that are only as long as these."""
        captions_PSC, visible_PS = self.captions(texts_P, slots)
        embedder = self.transformer.cls_embedding
        if guided:
            unknown_PSC = embedder.uncond_embedding[-visible_PS.shape[1] :].expand_as(captions_PSC)
            captions_PSC, visible_PS = torch.cat([captions_PSC, unknown_PSC]), torch.cat([visible_PS, visible_PS])
        bias = attention_bias(causal(visible_PS), captions_PSC.dtype)
        x_PSD = embedder.cap_proj(captions_PSC)
        keys_values = []
        for layer in self._layers():
            q, k, v = layer.project(x_PSD, None)
            x_PSD = layer.finish(x_PSD, q, k, v, bias)
            keys_values.append((k, v))
        hidden_PD = self.transformer.norm(x_PSD[:, -1])
        return Prompts(keys_values=keys_values, visible_PS=visible_PS, hidden_PD=hidden_PD)

    def _layers(self) -> Sequence[Block]:
        return self.transformer.layers  # type: ignore[return-value]

    def _places(self) -> Tensor:
        """(T, head_dim / 2), in float32 also where the weights are bfloat16."""
        weight = self.transformer.tok_embeddings.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return places(self.size.side, self.size.width // self.size.heads, weight.device, dtype)

    # ------------------------------------------------------------ teacher forcing

    def hidden(self, texts_B: Sequence[str], tokens_BT: Tensor) -> Tensor:
        """Last hidden states (B, T, D), the one at t predicting token t."""
        texts_P, prompt_B = distinct(texts_B, tokens_BT.device)
        prompts = self.read(texts_P)
        x_BSD = self.transformer.tok_embeddings(tokens_BT[:, :-1])
        length = x_BSD.shape[1]
        turns_SF = self._places()[:length]
        before_SS = torch.ones(length, length, dtype=torch.bool, device=tokens_BT.device).tril()
        prompt_BSS = prompts.visible_PS[prompt_B, None].expand(-1, length, -1)
        visible = torch.cat([prompt_BSS, before_SS.expand(len(texts_B), -1, -1)], dim=-1)[:, None]
        bias = attention_bias(visible, x_BSD.dtype)
        again = self.recompute == "always" and torch.is_grad_enabled()

        def image_layer(layer: Block, x_BSD: Tensor, prompt_keys: Tensor, prompt_values: Tensor) -> Tensor:
            q, k, v = layer.project(x_BSD, turns_SF)
            keys, values = torch.cat([prompt_keys[prompt_B], k], dim=2), torch.cat([prompt_values[prompt_B], v], dim=2)
            return layer.finish(x_BSD, q, keys, values, bias)

        for layer, (keys, values) in zip(self._layers(), prompts.keys_values, strict=True):
            if again:
                x_BSD = checkpoint(image_layer, layer, x_BSD, keys, values, use_reentrant=False)
            else:
                x_BSD = image_layer(layer, x_BSD, keys, values)
        return torch.cat([prompts.hidden_PD[prompt_B, None], self.transformer.norm(x_BSD)], dim=1)

    def head(self, hidden: Tensor) -> Tensor:
        """(..., V)."""
        return self.transformer.output(hidden)  # type: ignore[no-any-return]

    # ------------------------------------------------------------ cached decoding

    @torch.no_grad()
    def start(self, texts_B: Sequence[str], *, guided: bool = False, reuse: DecodeState | None = None) -> DecodeState:
        """Each distinct prompt is read once, however many rows it has."""
        layers = [layer.cached() for layer in self._layers()]
        texts_P, prompt_R = distinct(texts_B, self.transformer.tok_embeddings.weight.device)
        if guided:
            prompt_R = torch.cat([prompt_R, prompt_R + len(texts_P)])
        prompts = self.read(texts_P, guided=guided, slots=self.prompt_slots)
        cache = KVCache.laid_out(
            prompts.hidden_PD,
            layers=self.size.layers,
            heads=self.size.heads,
            width=self.size.width // self.size.heads,
            prompt_RP=prompts.visible_PS[prompt_R],
            tokens=self.grid[0] * self.grid[1] - 1,  # the last token is never read
            reuse=reuse.cache if reuse else None,
        )
        for index, (keys, values) in enumerate(prompts.keys_values):
            cache.fill(index, keys[prompt_R], values[prompt_R])
        first_RD = prompts.hidden_PD[prompt_R]
        turns_TF = self._places()
        turns_SF = torch.ones(cache.slots, turns_TF.shape[1], dtype=turns_TF.dtype, device=turns_TF.device)
        turns_SF[cache.filled :][: len(turns_TF)] = turns_TF[: cache.slots - cache.filled]
        turns_S31F = torch.stack([turns_SF, turns_SF, torch.ones_like(turns_SF)], dim=1)[:, :, None]
        if reuse is not None and reuse.cache is cache:
            reuse.layers, reuse.first_RD = layers, first_RD
            reuse.turns_S31F.copy_(turns_S31F)
            return reuse
        return DecodeState(cache=cache, layers=layers, turns_S31F=turns_S31F, first_RD=first_RD)

    @torch.no_grad()
    def step(self, state: DecodeState, tokens_B: Tensor | None) -> Tensor:
        if tokens_B is None:
            return self.head(state.first_RD)
        x_RD = self.transformer.tok_embeddings(tokens_B)
        turns_131F = state.turns_S31F.index_select(0, state.cache.slot_1)

        def turn(qkv_RN: Tensor) -> Tensor:
            qkv_R3HE = qkv_RN.view(len(x_RD), 3, self.size.heads, -1)
            return turned(qkv_R3HE, turns_131F).flatten(1, 2)

        state.cache.open_slot()
        for index, layer in enumerate(state.layers):
            layer.advance(x_RD, turn, state.cache, index)
        state.cache.close_slot()
        return self.head(self.transformer.norm(x_RD))

    def work(self) -> Work:
        return Work(
            parameters=count(self.transformer.layers) + count(self.transformer.output),
            head=count(self.transformer.output),
            cache_per_slot=2 * self.size.layers * self.size.width,
            width=self.size.width,
            mlp=self.size.mlp,
            layers=self.size.layers,
        )

    # ------------------------------------------------------------ tokens as vectors and pixels

    def embed(self, tokens_BT: Tensor, kind: Literal["projected", "codebook"]) -> Tensor:
        """`projected` as the transformer reads a token, `codebook` its normalised entry of the image tokenizer."""
        found: Tensor = (
            self.transformer.tok_embeddings(tokens_BT) if kind == "projected" else self.vqmodel.quantize(tokens_BT)
        )
        return found

    def decoding_numbers(self, images: int) -> int:
        """What `decode` holds of so many images at most."""
        widest = widest_state(self.size.channels, self.size.multipliers, self.size.side)
        return min(images, DECODE_ROWS) * STATES * widest

    @torch.no_grad()
    def decode(self, tokens_BT: Tensor) -> npt.NDArray[np.uint8]:
        """Images (B, Y, X, 3)."""
        codes_BHW = tokens_BT.view(-1, *self.grid)
        parts = [self.vqmodel(part).float().cpu().numpy() for part in torch.split(codes_BHW, DECODE_ROWS)]
        pixels_BYXC = np.concatenate(parts).transpose(0, 2, 3, 1)
        return (127.5 * pixels_BYXC + 128).clip(0, 255).astype(np.uint8)  # rounds to the nearest, as released


def _slots(tokens: int) -> int:
    return min(up_to_multiple(tokens, PROMPT_MULTIPLE), MAX_TOKENS)


def count(module: nn.Module) -> int:
    """Numbers in its parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def build(name: str, *, template: str = "", folder: Path | None = None) -> LlamaGen:
    """The policy of a published size with unset weights; load or `initialize` them.

    Args:
        folder: of weights under a publisher's names; none is read without conversion.
    """
    if folder is not None:
        raise ConfigError(
            f"{folder} holds LlamaGen under other names, or another model",
            hint="gcpo-bench models fetch converts the published files; for others see docs/models.md",
        )
    size = SIZES[name]
    text = llamagen_text.flan_t5() if size.caption == llamagen_text.WIDTH else llamagen_text.random(size.caption)
    return LlamaGen(size, text, template or next(iter(TEMPLATES)))

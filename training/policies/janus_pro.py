"""Janus-Pro: transformers' modules and weight names, and our own pass through them.

One attention serves teacher forcing and cached decoding. A row's positions count its own prompt, so what it computes
does not depend on what else is in its batch (transformers counts the longest prompt's pads in).

Sources: deepseek-ai/Janus (template, unconditional branch, decoding of image tokens), transformers'
`JanusForConditionalGeneration` (modules).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    JanusConfig,
    JanusVisionConfig,
    JanusVQVAE,
    JanusVQVAEConfig,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.modeling_janus import JanusVQVAEAlignerMLP, JanusVQVAEHead

from gcpo_bench.errors import ConfigError, CorruptDataError

from ..types import Work
from .cached_layer import CachedLayer, Joined
from .kv_cache import KVCache
from .shared import attention_bias, causal, distinct, fill_normal, up_to_multiple, widest_state

TEMPLATES = {
    "janus-pro": "<|User|>: {text}\n\n<|Assistant|>:",
    "janus": "User: {text}\n\nAssistant:",
}
"""The released trainer uses `janus`, which Janus-Pro was not tuned with (deepseek-ai/Janus issue 210)."""
UNUSED = (
    "lm_head.",
    "model.vision_model.",
    "model.aligner.",
    "model.vqmodel.encoder.",
    "model.vqmodel.quant_conv.",
)
"""Of the published tensors: what understanding images and writing text take."""
BOS, PAD, BEGIN_OF_IMAGE = "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>"
TAKE_JANUS = "it is another model's; take tokenizer.json of the Janus checkpoint that the weights came from"
SPECIAL = (BOS, PAD, BEGIN_OF_IMAGE)
"""What a tokenizer must know by itself."""
PROMPT_MULTIPLE = 16
"""Prompt slots of a cached decode: few different shapes, so that memory and graphs serve again."""
DECODE_ROWS = 16
"""Images that the image decoder makes at once."""
STATES = 3
"""Feature maps of the largest size that it holds of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    width: int
    mlp: int
    layers: int
    heads: int
    words: int = 102_400
    side: int = 24
    codes: int = 16_384
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    latent: int = 256

    def config(self) -> JanusConfig:
        pixels = self.side * 2 ** (len(self.multipliers) - 1)
        return JanusConfig(
            text_config=LlamaConfig(
                hidden_size=self.width,
                intermediate_size=self.mlp,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.heads,
                vocab_size=self.words,
                max_position_embeddings=16_384,
                rms_norm_eps=1e-6,
            ),
            vision_config=JanusVisionConfig(
                image_size=pixels, patch_size=pixels // self.side, num_image_tokens=self.side**2
            ),
            vq_config=JanusVQVAEConfig(
                num_embeddings=self.codes,
                base_channels=self.channels,
                channel_multiplier=self.multipliers,
                latent_channels=self.latent,
                projection_dim=self.width,
                image_token_embed_dim=self.width,
            ),
        )


SIZES = {
    "janus-pro-1b": Size(width=2048, mlp=5632, layers=24, heads=16),
    "janus-pro-7b": Size(width=4096, mlp=11_008, layers=30, heads=32),
    "janus-pro-small": Size(
        width=256, mlp=704, layers=8, heads=4, words=320, channels=32, multipliers=(1, 2), latent=32
    ),
    "janus-pro-tiny": Size(
        width=64, mlp=128, layers=2, heads=4, words=320, side=6, codes=64, channels=32, multipliers=(1, 2), latent=32
    ),
}


@dataclass(slots=True, kw_only=True)
class DecodeState:
    """R rows, unconditional ones last, if any; P slots of prompt and T of image."""

    cache: KVCache
    layers: Sequence[CachedLayer]
    position_R: Tensor
    """int64: that of each row's next token. The begin-of-image token's is the number of words of the prompt."""
    turns_N22F: Tensor
    """What turns the two halves of a head's query or key at each position that a token may have."""
    still_RK22F: Tensor
    """What turns values: nothing."""

    @property
    def advanced(self) -> list[Tensor]:
        """What a step counts up on the device."""
        return [self.cache.slot_1, self.position_R]


class JanusPro(nn.Module):
    """See `gcpo_bench.training.types.Policy`. Only what image generation uses is kept: no vision tower, no text head.

    The language model with its word embeddings is trained; everything between it and pixels is frozen, as released.
    """

    published_type = "janus"
    parts: ClassVar = {
        "language-model": ("language_model.",),
        "transformer": ("language_model.layers.", "language_model.norm."),
        "generation": ("language_model.", "generation_"),
    }
    """What can be trained: with word embeddings, as released; without them; with the image token layers too."""
    templates: ClassVar = TEMPLATES
    """The first is its own."""
    adapted = "language_model"
    """Where low-rank adapters go."""
    fixed_shapes = True
    """A step can be recorded: see `gcpo_bench.training.graphs`."""
    prompt_slots = 0
    """Least slots of a prompt in a cached decode: see `gcpo_bench.training.decoding.keep_one_layout`."""

    def __init__(self, config: JanusConfig, tokenizer: PreTrainedTokenizerBase, template: str = "janus-pro") -> None:
        super().__init__()
        if template not in TEMPLATES:
            raise ConfigError(f"unknown template {template!r}", hint=f"known: {', '.join(TEMPLATES)}")
        self.template = TEMPLATES[template]
        self.tokenizer = tokenizer
        text: Any = config.text_config
        codes: Any = config.vq_config
        self.grid = (codes.num_patches, codes.num_patches)
        self.vocab_size = codes.num_embeddings
        self.language_model = LlamaModel(text)
        self.generation_embeddings = nn.Embedding(codes.num_embeddings, codes.embed_dim)
        self.generation_aligner = JanusVQVAEAlignerMLP(codes)
        self.generation_head = JanusVQVAEHead(codes)
        self.vqmodel = JanusVQVAE(codes)
        del self.vqmodel.encoder, self.vqmodel.quant_conv
        self.heads, self.key_heads = text.num_attention_heads, text.num_key_value_heads
        self.head_dim = text.hidden_size // text.num_attention_heads
        self.recompute: Literal["auto", "always", "never"] = "auto"
        special: Any = tokenizer.convert_tokens_to_ids([*SPECIAL])  # 1B's and 7B's differ
        self.bos, self.pad, self.begin_of_image = special

    def published_name(self, name: str) -> str:
        return f"model.{name}"

    def is_unused(self, published_name: str) -> bool:
        return published_name.startswith(UNUSED)

    def settings(self) -> dict[str, Any]:
        text: Any = self.language_model.config
        return pass_settings(text, self.vqmodel.config)

    def published_settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        read: Any = JanusConfig.from_dict(dict(config))
        return pass_settings(read.text_config, read.vq_config)

    def initialize(self, generator: torch.Generator) -> None:
        """Random weights: normal 0.02, norms 1, biases 0."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim > 1:
                    fill_normal(parameter, 0.02, generator)
                else:
                    parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)

    # ------------------------------------------------------------ prompts

    def _words(self, text: str) -> list[int]:
        return [self.bos, *self.tokenizer.encode(self.template.format(text=text), add_special_tokens=False)]

    def slots_for(self, texts: Sequence[str]) -> int:
        """What `start` pads these prompts to."""
        return up_to_multiple(max(len(self._words(text)) for text in texts), PROMPT_MULTIPLE)

    def prompt_ids(self, texts_B: Sequence[str], slots: int = 0) -> tuple[Tensor, Tensor]:
        """int64 (B, P), padded on the right to `slots` or the longest, and the lengths (B,); without the begin-of-image
        token."""
        rows = [self._words(text) for text in texts_B]
        most = self.language_model.config.max_position_embeddings - self.grid[0] * self.grid[1] - 1
        for row, text in zip(rows, texts_B, strict=True):
            if len(row) > most:
                raise ConfigError(
                    f"a prompt of {len(row)} text tokens, and Janus reads {most}: {text[:60]!r}...",
                    hint="shorten the prompt, or leave it out of the prompt set",
                )
        slots = max(slots, *map(len, rows))
        device = self.generation_embeddings.weight.device
        ids_BP = torch.tensor([row + [self.pad] * (slots - len(row)) for row in rows], device=device)
        return ids_BP, torch.tensor([len(row) for row in rows], device=device)

    def unconditional(self, ids_BP: Tensor) -> Tensor:
        """The same lengths with every word but the first replaced by padding, which is attended to."""
        ids_BP = torch.full_like(ids_BP, self.pad)
        ids_BP[:, 0] = self.bos
        return ids_BP

    def word_vectors(self, ids: Tensor) -> Tensor:
        return self.language_model.embed_tokens(ids)  # type: ignore[no-any-return]

    def begin(self, rows: int) -> Tensor:
        """(rows, 1, D): the input that predicts the first image token."""
        index = torch.full((rows, 1), self.begin_of_image, device=self.generation_embeddings.weight.device)
        return self.word_vectors(index)

    # ------------------------------------------------------------ transformer

    def _block(self, layer: Any, x_BSD: Tensor, turns: tuple[Tensor, Tensor], bias: Tensor) -> tuple[Tensor, ...]:
        """Of a layer: its output (B, S, D), and keys and values, (B, H, S, E) each.

        Args:
            turns: cosines and sines, each (1 or B, 1, S, E).
            bias: added to scores, broadcast to (B, 1, S, S).
        """
        attention = layer.self_attn
        normed = norm(layer.input_layernorm, x_BSD)
        shape = (*x_BSD.shape[:2], -1, self.head_dim)
        q, k, v = (
            project(normed).view(shape).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        k = rotate(k, *turns)
        seen = F.scaled_dot_product_attention(
            rotate(q, *turns), k, v, attn_mask=bias, enable_gqa=self.heads != self.key_heads
        )
        x_BSD = x_BSD + attention.o_proj(seen.transpose(1, 2).flatten(2))
        return x_BSD + layer.mlp(norm(layer.post_attention_layernorm, x_BSD)), k, v

    def _turns(self, like: Tensor, positions_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of rotary positions, each (B, 1, S, E), in the type of `like`."""
        cos_BSE, sin_BSE = self.language_model.rotary_emb(like, positions_BS)
        return cos_BSE[:, None], sin_BSE[:, None]

    def hidden(self, texts_B: Sequence[str], tokens_BT: Tensor) -> Tensor:
        """Last hidden states (B, T, D), the one at t predicting token t."""
        ids_BP, lengths_B = self.prompt_ids(texts_B)
        rows, prompt = ids_BP.shape
        x_BSD = torch.cat([self.word_vectors(ids_BP), self.begin(rows), self.token_vectors(tokens_BT[:, :-1])], dim=1)
        slots = torch.arange(x_BSD.shape[1], device=ids_BP.device)
        turns = self._turns(x_BSD, torch.where(slots < prompt, slots, lengths_B[:, None] + slots - prompt))
        own_BS = (slots < lengths_B[:, None]) | (slots >= prompt)
        bias = attention_bias(causal(own_BS), x_BSD.dtype)
        again = self.recompute == "always" and torch.is_grad_enabled()
        for layer in self.language_model.layers:
            if again:
                x_BSD = checkpoint(
                    lambda *given: self._block(*given)[0], layer, x_BSD, turns, bias, use_reentrant=False
                )
            else:
                x_BSD = self._block(layer, x_BSD, turns, bias)[0]
        return norm(self.language_model.norm, x_BSD[:, prompt:])

    def head(self, hidden: Tensor) -> Tensor:
        """(..., V)."""
        return self.generation_head(hidden)  # type: ignore[no-any-return]

    # ------------------------------------------------------------ cached decoding

    @torch.no_grad()
    def start(self, texts_B: Sequence[str], *, guided: bool = False, reuse: DecodeState | None = None) -> DecodeState:
        """Each distinct prompt is read once, however many rows it has."""
        layers = self._cached_layers()
        texts_P, row_of = distinct(texts_B, self.generation_embeddings.weight.device)
        ids, lengths = self.prompt_ids(texts_P, max(self.prompt_slots, self.slots_for(texts_P)))
        if guided:
            row_of = torch.cat([row_of, row_of + len(texts_P)])
            ids, lengths = torch.cat([ids, self.unconditional(ids)]), torch.cat([lengths, lengths])
        x = self.word_vectors(ids)
        slots = torch.arange(ids.shape[1], device=ids.device)
        own = slots < lengths[:, None]
        cache = KVCache.laid_out(
            x,
            layers=len(self.language_model.layers),
            heads=self.key_heads,
            width=self.head_dim,
            prompt_RP=own[row_of],
            tokens=self.grid[0] * self.grid[1],
            reuse=reuse.cache if reuse else None,
        )
        turns, bias = self._turns(x, slots[None]), attention_bias(causal(own), x.dtype)
        for index, layer in enumerate(self.language_model.layers):
            x, k, v = self._block(layer, x, turns, bias)
            cache.fill(index, k[row_of], v[row_of])
        if reuse is not None and reuse.cache is cache:
            reuse.position_R.copy_(lengths[row_of])
            reuse.layers = layers
            return reuse
        cos_NE, sin_NE = (turn[0, 0] for turn in self._turns(x, torch.arange(cache.slots, device=ids.device)[None]))
        still_22F = rotations(torch.ones_like(cos_NE[:1]), torch.zeros_like(sin_NE[:1]))[0]
        return DecodeState(
            cache=cache,
            layers=layers,
            position_R=lengths[row_of],
            turns_N22F=rotations(cos_NE, sin_NE),
            still_RK22F=still_22F.expand(len(row_of), self.key_heads, -1, -1, -1),
        )

    def _cached_layers(self) -> list[CachedLayer]:
        layers: Any = self.language_model.layers
        return [
            CachedLayer(
                attention_norm=partial(norm, layer.input_layernorm),
                mlp_norm=partial(norm, layer.post_attention_layernorm),
                qkv=Joined(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                out=Joined(layer.self_attn.o_proj),
                gate_up=Joined(layer.mlp.gate_proj, layer.mlp.up_proj),
                down=Joined(layer.mlp.down_proj),
                heads=self.heads,
            )
            for layer in layers
        ]

    @torch.no_grad()
    def step(self, state: DecodeState, tokens_B: Tensor | None) -> Tensor:
        x_RD = self.begin(len(state.position_R))[:, 0] if tokens_B is None else self.token_vectors(tokens_B)
        turns_R122F = state.turns_N22F.index_select(0, state.position_R)[:, None]
        turns_RT22F = turns_R122F.expand(-1, self.heads + self.key_heads, -1, -1, -1)
        turn = partial(turn_halves, turns_RH22F=torch.cat([turns_RT22F, state.still_RK22F], dim=1))
        state.cache.open_slot()
        for index, layer in enumerate(state.layers):
            layer.advance(x_RD, turn, state.cache, index)
        state.cache.close_slot()
        state.position_R += 1
        return self.head(norm(self.language_model.norm, x_RD))

    def work(self) -> Work:
        layers = self.language_model.layers
        return Work(
            parameters=count(layers) + count(self.generation_head),
            head=count(self.generation_head),
            cache_per_slot=2 * len(layers) * self.key_heads * self.head_dim,
            width=self.language_model.config.hidden_size,
            mlp=self.language_model.config.intermediate_size,
            layers=len(layers),
        )

    # ------------------------------------------------------------ tokens as vectors and pixels

    def token_vectors(self, tokens_BT: Tensor) -> Tensor:
        """(B, T, D), as the transformer reads image tokens."""
        return self.generation_aligner(self.generation_embeddings(tokens_BT))  # type: ignore[no-any-return]

    def embed(self, tokens_BT: Tensor, kind: Literal["projected", "codebook"]) -> Tensor:
        """`projected` as the transformer reads a token, `codebook` its normalised entry of the image tokenizer."""
        if kind == "projected":
            return self.token_vectors(tokens_BT)
        return F.normalize(self.vqmodel.quantize.embedding(tokens_BT), dim=-1)

    def decoding_numbers(self, images: int) -> int:
        """What `decode` holds of so many images at most."""
        codes: Any = self.vqmodel.config
        widest = widest_state(codes.base_channels, codes.channel_multiplier, self.grid[0])
        return min(images, DECODE_ROWS) * STATES * widest

    @torch.no_grad()
    def decode(self, tokens_BT: Tensor) -> npt.NDArray[np.uint8]:
        """Images (B, Y, X, 3)."""
        parts = [self.vqmodel.decode(part).float().cpu().numpy() for part in torch.split(tokens_BT, DECODE_ROWS)]  # type: ignore[arg-type]
        images_BCYX = np.concatenate(parts)
        return ((images_BCYX + 1) / 2 * 255).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def pass_settings(text: Any, codes: Any) -> dict[str, Any]:
    """What the pass uses of a configuration and no tensor's shape tells."""
    names = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps")
    found = {f"text_config.{name}": getattr(text, name) for name in names}
    rope = {name: value for name, value in text.rope_parameters.items() if name != "type"}  # `rope_type`, formerly
    found |= {f"text_config.rope_parameters.{name}": value for name, value in rope.items()}
    return found | {"vq_config.num_patches": codes.num_patches, "vq_config.hidden_act": codes.hidden_act}


def count(module: nn.Module) -> int:
    """Numbers in its parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def norm(module: Any, x: Tensor) -> Tensor:
    """What a LlamaRMSNorm computes, in one kernel where there is one for it (on a GPU, torch 2.9 and newer)."""
    return F.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)


def rotate(x_BHSE: Tensor, cos_B1SE: Tensor, sin_B1SE: Tensor) -> Tensor:
    """Rotary positions, halves paired (RoFormer, arXiv 2104.09864, in the layout of Llama's weights)."""
    first, second = x_BHSE.chunk(2, dim=-1)
    return x_BHSE * cos_B1SE + torch.cat([-second, first], dim=-1) * sin_B1SE


def rotations(cos_NE: Tensor, sin_NE: Tensor) -> Tensor:
    """(N, 2, 2, F): `rotate` as a product of matrices, [[cos, -sin], [sin, cos]] for each of F = E / 2 pairs."""
    cos_NF, sin_NF = (table.chunk(2, dim=-1)[0] for table in (cos_NE, sin_NE))
    return torch.stack([cos_NF, -sin_NF, sin_NF, cos_NF], dim=1).view(len(cos_NE), 2, 2, -1)


def turn_halves(x_RN: Tensor, turns_RH22F: Tensor) -> Tensor:
    """(R, H E) to (R, H, E): every head turned by its matrices, in two kernels."""
    rows, heads, _, _, pairs = turns_RH22F.shape
    return (x_RN.view(rows, heads, 1, 2, pairs) * turns_RH22F).sum(dim=3).flatten(2)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, for random weights, which know no words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=BOS, pad_token=PAD)  # type: ignore[no-untyped-call]
    tokenizer.add_special_tokens({"additional_special_tokens": [BEGIN_OF_IMAGE]})
    return tokenizer


def build(name: str, *, template: str = "", folder: Path | None = None) -> JanusPro:
    """The policy of a published size with unset weights; load or `initialize` them.

    Args:
        folder: of published weights, whose tokenizer is taken; without it a token is a byte.
    """
    size = SIZES[name]
    return JanusPro(size.config(), _tokenizer(folder, size.words), template or next(iter(TEMPLATES)))


def _tokenizer(folder: Path | None, words: int) -> PreTrainedTokenizerBase:
    """That of `folder`, once it knows `SPECIAL` and no word beyond the `words` of the model."""
    if folder is None:
        return byte_tokenizer()
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CorruptDataError(f"{path} is missing", hint="fetch the model again, with its tokenizer")
    try:
        inner = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise CorruptDataError(f"{path} is no tokenizer: {error}", hint="fetch the model again") from error
    vocabulary = inner.get_vocab()
    # before it is wrapped: transformers gives a special token that is not there the next free number
    if lacking := [token for token in SPECIAL if token not in vocabulary]:
        raise CorruptDataError(f"{path} does not know {' and '.join(map(repr, lacking))}", hint=TAKE_JANUS)
    if (last := max(vocabulary.values())) >= words:
        raise CorruptDataError(f"{path} numbers words up to {last}, and the model has {words}", hint=TAKE_JANUS)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=BOS, pad_token=PAD)  # type: ignore[no-untyped-call]

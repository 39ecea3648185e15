"""The embedded world's policy: a small decoder-only transformer over prompt words and image tokens.

A sequence is `PROMPT_WORDS` words followed by the image. The input that predicts image token t is the token before it
plus the place (row, column) of t itself. The unconditional branch of guidance reads a prompt of padding only, as it did
in a tenth of pretraining. Every prompt has the same padded length, so a row never depends on what else is in the batch.

Words do not read each other, only the image reads them. This is meant to let what is learned of "red" and of "circle"
serve "red circle" too, which no caption may have named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcpo_bench import scenes
from gcpo_bench.errors import ConfigError

from ..types import Work
from .shared import fill_normal

PROMPT_WORDS = 10
PAD = 0

Caption = str | Sequence[str | None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    width: int = 96
    layers: int = 3
    heads: int = 4


@dataclass(slots=True)
class DecodeState:
    """Keys and values read so far, one place more a step, and the token tables, put together once."""

    keys_LBHSE: Tensor
    """layers, rows, heads, places, head width."""
    values_LBHSE: Tensor
    tokens_VD: Tensor
    head_VD: Tensor
    length: int
    """Places filled."""


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def project(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, S, head width)."""
        rows, places, width = x_BSD.shape
        qkv = self.qkv(x_BSD).view(rows, places, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def merge(self, attended_BHSE: Tensor) -> Tensor:
        return self.out(attended_BHSE.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.RMSNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def mlp(self, x_BSD: Tensor) -> Tensor:
        return self.down(F.relu(self.up(self.mlp_norm(x_BSD))).square())  # type: ignore[no-any-return]

    def read(self, words_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Words after this block, and the keys and values they offer. A word attends to itself alone."""
        _, key, value = self.attention.project(self.attention_norm(words_BSD))
        words_BSD = words_BSD + self.attention.merge(value)
        return words_BSD + self.mlp(words_BSD), key, value

    def forward(self, words_BSD: Tensor, image_BTD: Tensor, visible_TS: Tensor) -> tuple[Tensor, Tensor]:
        """Words and image after this block; `visible_TS` says which places each image token may look at."""
        words_BSD, word_key, word_value = self.read(words_BSD)
        query, key, value = self.attention.project(self.attention_norm(image_BTD))
        attended = F.scaled_dot_product_attention(
            query, torch.cat([word_key, key], dim=2), torch.cat([word_value, value], dim=2), attn_mask=visible_TS
        )
        image_BTD = image_BTD + self.attention.merge(attended)
        return words_BSD, image_BTD + self.mlp(image_BTD)

    def extend(self, token_B1D: Tensor, keys_BHSE: Tensor, values_BHSE: Tensor, place: int) -> Tensor:
        """`forward` for the one image token at `place`, which reads and extends the cache."""
        query, key, value = self.attention.project(self.attention_norm(token_B1D))
        keys_BHSE[:, :, place : place + 1] = key
        values_BHSE[:, :, place : place + 1] = value
        attended = F.scaled_dot_product_attention(query, keys_BHSE[:, :, : place + 1], values_BHSE[:, :, : place + 1])
        token_B1D = token_B1D + self.attention.merge(attended)
        return token_B1D + self.mlp(token_B1D)


class TokenTable(nn.Module):
    """A vector a token: its colour's, plus its mask's, plus its own.

    The shared parts let what is learned of one colour or shape serve all others; the own part holds what they cannot,
    such as which colour goes with which of two shapes.
    """

    def __init__(self, tokenizer: scenes.Tokenizer, width: int) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.zeros(tokenizer.vocab_size, width))
        self.colors = nn.Parameter(torch.zeros(int(tokenizer.colors_V.max()) + 1, width))
        self.masks = nn.Parameter(torch.zeros(int(tokenizer.masks_V.max()) + 1, width))
        self.register_buffer("colors_V", torch.from_numpy(tokenizer.colors_V), persistent=False)
        self.register_buffer("masks_V", torch.from_numpy(tokenizer.masks_V), persistent=False)

    def table(self) -> Tensor:
        """(V, D)."""
        return self.own + self.colors[self.colors_V] + self.masks[self.masks_V]  # type: ignore[index]


class Head(TokenTable):
    """Output layer: a token's logit is the product of the hidden state and the token's vector."""

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return F.linear(hidden, self.table())


class ScenesPolicy(nn.Module):
    """About 0.5 M parameters; see `gcpo_bench.training.types.Policy`."""

    def __init__(self, world_name: str, architecture: Architecture | None = None) -> None:
        super().__init__()
        self.architecture = architecture or Architecture()
        self.tokenizer = scenes.tokenizer(world_name)
        self.grid = self.tokenizer.world.grid
        self.vocab_size = self.tokenizer.vocab_size
        self.word_ids = {word: index for index, word in enumerate(scenes.words(), start=PAD + 1)}
        width, side = self.architecture.width, self.tokenizer.world.side
        self.words = nn.Embedding(len(self.word_ids) + 1, width)
        self.word_places = nn.Parameter(torch.zeros(PROMPT_WORDS, width))
        self.tokens = TokenTable(self.tokenizer, width)
        self.begin_of_image = nn.Parameter(torch.zeros(width))
        self.rows = nn.Parameter(torch.zeros(side, width))
        self.cols = nn.Parameter(torch.zeros(side, width))
        self.blocks = nn.ModuleList(Block(width, self.architecture.heads) for _ in range(self.architecture.layers))
        self.norm = nn.RMSNorm(width)
        self.head = Head(self.tokenizer, width)
        tokens = self.grid[0] * self.grid[1]
        visible_TS = torch.ones(tokens, PROMPT_WORDS + tokens, dtype=torch.bool).tril(PROMPT_WORDS)
        self.register_buffer("visible_TS", visible_TS, persistent=False)
        codes = torch.from_numpy(self.tokenizer.codebook.reshape(self.vocab_size, -1).astype(np.float32) / 255)
        self.register_buffer("codes_VD", codes, persistent=False)

    def initialize(self, generator: torch.Generator) -> None:
        """Random weights from one generator: normal 0.02, projections into the residual stream scaled down, head 0."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim == 1 and "norm" in name:
                    parameter.fill_(1.0)
                elif name.startswith("head.") or name.endswith(".own"):
                    parameter.zero_()
                else:
                    fill_normal(parameter, 0.02, generator)
                if name.endswith(("out.weight", "down.weight")):
                    parameter.div_((2 * self.architecture.layers) ** 0.5)

    # ------------------------------------------------------------ prompts

    def prompt_ids(self, texts_B: Sequence[Caption]) -> Tensor:
        """int64 (B, PROMPT_WORDS); None is the unconditional prompt, or in a list of words one that is left out."""
        return torch.tensor([self._ids(text) for text in texts_B], device=self.begin_of_image.device)

    def _ids(self, text: Caption) -> list[int]:
        given = text.lower().split() if isinstance(text, str) else list(text or ())
        unknown = [word for word in given if word is not None and word not in self.word_ids]
        if unknown:
            raise ConfigError(
                f"the embedded world does not know {unknown[0][:40]!r}", hint=f"its words: {', '.join(self.word_ids)}"
            )
        if len(given) > PROMPT_WORDS:
            raise ConfigError(
                f"the prompt has {len(given)} words, the embedded world reads {PROMPT_WORDS}", hint="shorten the prompt"
            )
        ids = [PAD if word is None else self.word_ids[word] for word in given]
        return ids + [PAD] * (PROMPT_WORDS - len(ids))

    # ------------------------------------------------------------ teacher forcing

    def _places(self) -> Tensor:
        """What is added to the input that predicts each token: (T, D)."""
        return (self.rows[:, None] + self.cols[None, :]).flatten(0, 1)

    def hidden(self, texts_B: Sequence[Caption], tokens_BT: Tensor) -> Tensor:
        """Last hidden states (B, T, D), the one at t predicting token t."""
        words_BSD = self.words(self.prompt_ids(texts_B)) + self.word_places
        before_BTD = F.embedding(tokens_BT[:, :-1], self.tokens.table())
        begin = self.begin_of_image.expand(len(tokens_BT), 1, -1)
        image_BTD = torch.cat([begin, before_BTD], dim=1) + self._places()
        for block in self.blocks:
            words_BSD, image_BTD = block(words_BSD, image_BTD, self.visible_TS)
        return self.norm(image_BTD)  # type: ignore[no-any-return]

    # ------------------------------------------------------------ cached decoding

    def start(self, texts_B: Sequence[str], *, guided: bool = False, reuse: DecodeState | None = None) -> DecodeState:
        captions: list[str | None] = [*texts_B, *([None] * len(texts_B) if guided else [])]
        arch, places = self.architecture, PROMPT_WORDS + self.grid[0] * self.grid[1]
        shape = (arch.layers, len(captions), arch.heads, places, arch.width // arch.heads)
        weight = self.begin_of_image
        state = DecodeState(
            keys_LBHSE=weight.new_zeros(shape),
            values_LBHSE=weight.new_zeros(shape),
            tokens_VD=self.tokens.table(),
            head_VD=self.head.table(),
            length=PROMPT_WORDS,
        )
        words_BSD = self.words(self.prompt_ids(captions)) + self.word_places
        for layer, block in enumerate(self.blocks):
            words_BSD, key, value = block.read(words_BSD)  # type: ignore[operator]
            state.keys_LBHSE[layer, :, :, :PROMPT_WORDS] = key
            state.values_LBHSE[layer, :, :, :PROMPT_WORDS] = value
        return state

    def step(self, state: DecodeState, tokens_B: Tensor | None) -> Tensor:
        t = state.length - PROMPT_WORDS
        row, col = divmod(t, self.grid[1])
        rows = state.keys_LBHSE.shape[1]
        before_BD = self.begin_of_image.expand(rows, -1) if tokens_B is None else state.tokens_VD[tokens_B]
        x_B1D = (before_BD + self.rows[row] + self.cols[col])[:, None]
        for layer, block in enumerate(self.blocks):
            x_B1D = block.extend(x_B1D, state.keys_LBHSE[layer], state.values_LBHSE[layer], state.length)  # type: ignore[operator]
        state.length += 1
        return F.linear(self.norm(x_B1D[:, 0]), state.head_VD)

    def work(self) -> Work:
        arch = self.architecture
        head = self.vocab_size * arch.width
        return Work(
            parameters=sum(parameter.numel() for parameter in self.blocks.parameters()) + head,
            head=head,
            cache_per_slot=2 * arch.layers * arch.width,
            width=arch.width,
            mlp=4 * arch.width,
            layers=arch.layers,
        )

    # ------------------------------------------------------------ tokens as vectors and pixels

    def embed(self, tokens_BT: Tensor, kind: Literal["projected", "codebook"]) -> Tensor:
        """(B, T, D): `projected` as the transformer reads a token, `codebook` the pixels of its patch."""
        table: Tensor = self.tokens.table() if kind == "projected" else self.codes_VD  # type: ignore[assignment]
        return table[tokens_BT]

    def decode(self, tokens_BT: Tensor) -> npt.NDArray[np.uint8]:
        """Images (B, Y, X, 3)."""
        return self.tokenizer.decode(tokens_BT.cpu().numpy())


def build(name: str, *, template: str = "") -> ScenesPolicy:
    """The policy of a world with unset weights; load or `initialize` them. Raises ConfigError for a template."""
    if template:
        raise ConfigError(f"{name} takes prompts as they are, not in a template", hint="leave policy.template empty")
    return ScenesPolicy(name)

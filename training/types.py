"""What flows between the parts of training: frozen, complete when made, shapes checked once.

Dimensions, as suffixes of tensor names: P prompts a step, G images a prompt, B = P*G rows (a prompt's rows are
adjacent), T = H*W image tokens in raster order, V codebook size, D token-embedding width; images are B, C, Y, X.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from gcpo_bench.datasets import Prompt


def _require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {shape}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What sampling one token sequence per row leaves behind; the B x T x V logits are never kept."""

    tokens_BT: Tensor
    """int64 in [0, V)."""
    logprobs_BT: Tensor
    """float32, log pi(token | prompt, tokens before) of the conditional distribution at temperature 1."""
    entropy_BT: Tensor
    """float32 nats, of the distribution that `entropy_source` names."""

    def __post_init__(self) -> None:
        shape = tuple(self.tokens_BT.shape)
        _require_shape("logprobs_BT", self.logprobs_BT, shape)
        _require_shape("entropy_BT", self.entropy_BT, shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A step's images: P prompts, G images each."""

    prompts: tuple[Prompt, ...]
    group_size: int
    grid: tuple[int, int]
    tokens_BT: Tensor
    logprobs_BT: Tensor
    entropy_BT: Tensor

    def __post_init__(self) -> None:
        shape = (len(self.prompts) * self.group_size, self.grid[0] * self.grid[1])
        _require_shape("tokens_BT", self.tokens_BT, shape)
        _require_shape("logprobs_BT", self.logprobs_BT, shape)
        _require_shape("entropy_BT", self.entropy_BT, shape)

    @property
    def texts_B(self) -> list[str]:
        return [prompt.text for prompt in self.prompts for _ in range(self.group_size)]

    @property
    def prompts_B(self) -> list[Prompt]:
        return [prompt for prompt in self.prompts for _ in range(self.group_size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSignals:
    """What selectors may look at: one number a token and criterion."""

    grid: tuple[int, int]
    entropy_BT: Tensor
    """float32 nats."""
    similarity_BT: Tensor
    """float32, mean pairwise cosine within the group; the same for each row of a group. NaN where nobody reads it."""
    logprobs_BT: Tensor
    """float32, of the sampled token."""
    noise_BT: Tensor
    """float32 uniform in [0, 1): the only randomness a selector has. NaN where nobody reads it."""

    def __post_init__(self) -> None:
        shape = (self.entropy_BT.shape[0], self.grid[0] * self.grid[1])
        for name in ("entropy_BT", "similarity_BT", "logprobs_BT", "noise_BT"):
            _require_shape(name, getattr(self, name), shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which tokens are trained on, and which criterion chose them."""

    selected_BT: Tensor
    """bool; True is trained on."""
    subsets: Mapping[str, Tensor]
    """selector name -> bool BT, what each selector chose (before a complement is taken)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What the loss needs beside the policy's current log-probs."""

    old_logprobs_BT: Tensor | None
    """float32, of the policy that sampled; None where the current policy is that policy (one update a rollout)."""
    ref_logprobs_BT: Tensor
    advantages_B: Tensor
    selected_BT: Tensor
    """bool; True is trained on."""
    policy_denominator: float
    """What the summed policy term is divided by; global, so that micro-batches add up to the full batch."""
    kl_denominator: float
    """What the summed divergence is divided by."""
    image_counts_B: Tensor | None = None
    """Each image's selected tokens, where its own terms are divided by their number first; None where they are not."""

    def __post_init__(self) -> None:
        shape = tuple(self.selected_BT.shape)
        if self.selected_BT.dtype != torch.bool:
            raise ValueError(f"selected_BT is {self.selected_BT.dtype}, expected bool")
        _require_shape("ref_logprobs_BT", self.ref_logprobs_BT, shape)
        _require_shape("advantages_B", self.advantages_B, shape[:1])
        if self.old_logprobs_BT is not None:
            _require_shape("old_logprobs_BT", self.old_logprobs_BT, shape)
        if self.image_counts_B is not None:
            _require_shape("image_counts_B", self.image_counts_B, shape[:1])

    def rows(self, rows: slice) -> Batch:
        """The same batch, some rows only; denominators stay those of the whole."""
        return Batch(
            old_logprobs_BT=None if self.old_logprobs_BT is None else self.old_logprobs_BT[rows],
            ref_logprobs_BT=self.ref_logprobs_BT[rows],
            advantages_B=self.advantages_B[rows],
            selected_BT=self.selected_BT[rows],
            policy_denominator=self.policy_denominator,
            kl_denominator=self.kl_denominator,
            image_counts_B=None if self.image_counts_B is None else self.image_counts_B[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    loss: Tensor
    """Scalar, carries the gradient."""
    metrics: Mapping[str, Tensor]
    """Detached scalars that add up over micro-batches: "loss/policy", "loss/kl", "loss/total"."""
    weights_BT: Tensor
    """Detached weights of the policy term."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardOutput:
    values_B: Sequence[float]
    """What training maximises."""
    anomalies: Mapping[str, Sequence[float]]
    """Per image, logged beside the reward: "extra_objects", "unknown_blobs", "strict", ..."""
    terms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Of a weighted sum: its rewards by name, before their weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A rollout and everything known about it before the update."""

    rollout: Rollout
    reward: RewardOutput
    rewards_B: Tensor
    advantages_B: Tensor
    signals: TokenSignals
    selection: Selection
    ref_logprobs_BT: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What decoding a token takes, whoever does it: for floors and estimates."""

    parameters: int
    """Of the transformer's layers and the output layer: read once a step, 2 FLOPs each a row."""
    head: int
    """Of `parameters`, those of the output layer."""
    cache_per_slot: int
    """Keys and values, numbers a row and token."""
    width: int
    mlp: int
    """Width inside a layer's MLP."""
    layers: int


class Selector(Protocol):
    def __call__(self, signals: TokenSignals, taken_BT: Tensor) -> Tensor:
        """bool BT: the tokens it takes, none of them where `taken_BT` is True."""
        ...


class Weighting(Protocol):
    """May have an attribute `detached`: True promises that no gradient flows through the factor, so that the output
    layer is differentiated at the selected tokens only."""

    def __call__(self, logprobs_BT: Tensor, ref_logprobs_BT: Tensor, selected_BT: Tensor) -> Tensor:
        """float BT: the factor of the policy term; carries gradient only where the method says so."""
        ...


class Reward(Protocol):
    def __call__(self, images_BYXC: Any, prompts_B: Sequence[Prompt]) -> RewardOutput:
        """images: numpy uint8 (B, Y, X, 3)."""
        ...


class Policy(Protocol):
    """An autoregressive image policy; a torch module."""

    grid: tuple[int, int]
    vocab_size: int

    def start(self, texts_B: Sequence[str], *, guided: bool = False, reuse: Any = None) -> Any:
        """Read the prompts: the state of a cached decode before its first image token.

        With `guided`, as many rows again follow, one a prompt, that know nothing of it. `reuse` is a state that is no
        longer needed: its memory may be taken, and then it is what is returned.
        """
        ...

    def step(self, state: Any, tokens_B: Tensor | None) -> Tensor:
        """Logits (B, V) of the next token after `tokens_B` (None before the first); advances `state`."""
        ...

    def hidden(self, texts_B: Sequence[str], tokens_BT: Tensor) -> Tensor:
        """Last hidden states (B, T, D) by teacher forcing, conditional branch: the one at t predicts token t."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        ...

    def embed(self, tokens_BT: Tensor, kind: Literal["projected", "codebook"]) -> Tensor:
        """Token embeddings (B, T, D)."""
        ...

    def decode(self, tokens_BT: Tensor) -> Any:
        """numpy uint8 images (B, Y, X, 3)."""
        ...

    def work(self) -> Work: ...

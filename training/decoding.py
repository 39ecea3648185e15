"""Sampling image tokens from any policy: cached steps, guidance, and what training needs recorded on the fly.

Each row's token is the inverse of the cumulative distribution at that row's own uniform number, so a sample depends on
its address in `gcpo_bench.streams` and not on the batch it is drawn in. Logits live for one step only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .graphs import GraphedDecoder
from .health import check_probabilities
from .parallel import Workers
from .types import Policy, Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """What a token is drawn from, given the logits."""

    guidance_scale: float = 1.0
    """s in u + s (c - u); at 1 the unconditional rows are not computed."""
    temperature: float = 1.0
    """Divides the guided logits."""
    top_k: int = 0
    """Tokens kept, 0 for all."""
    top_p: float = 1.0
    """Probability mass kept."""
    entropy_source: Literal["sampling", "conditional"] = "sampling"
    """`sampling`, the guided distribution at this temperature before top-k and top-p cut it; `conditional`, the
    conditional distribution at temperature 1."""

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0

    def choose(self, logits: Tensor, uniforms_B: Tensor, forced_B: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """A row's token, its conditional log-probability, and the entropy. `logits` (B, or 2B where guided, V)."""
        logits = logits.float()
        conditional_BV = mixed_BV = logits[: len(uniforms_B)]
        if self.guided:
            unconditional_BV = logits[len(uniforms_B) :]
            mixed_BV = unconditional_BV + self.guidance_scale * (conditional_BV - unconditional_BV)
        if self.temperature != 1.0:
            mixed_BV = mixed_BV / self.temperature
        same = mixed_BV is conditional_BV
        conditional_BV = torch.log_softmax(conditional_BV, dim=-1)
        sampling_BV = conditional_BV if same else torch.log_softmax(mixed_BV, dim=-1)
        probabilities_BV = sampling_BV.exp()
        kept_BV = truncate(sampling_BV, self.top_k, self.top_p)
        tokens_B = draw(probabilities_BV if kept_BV is sampling_BV else kept_BV.exp(), uniforms_B)
        if forced_B is not None:
            tokens_B = torch.where(forced_B >= 0, forced_B, tokens_B)
        logprobs_B = conditional_BV.gather(1, tokens_B[:, None])[:, 0]
        entropy_B = entropy(probabilities_BV if self.entropy_source == "sampling" else conditional_BV.exp())
        return tokens_B, logprobs_B, entropy_B


@torch.no_grad()
def sample(
    policy: Policy,
    texts_B: Sequence[str],
    uniforms_BT: Tensor,
    *,
    forced_BT: Tensor | None = None,
    graphs: bool | None = None,
    **distribution: Any,
) -> Samples:
    """One image a row.

    Args:
        texts_B: prompts.
        uniforms_BT: float32 in [0, 1), one a token.
        forced_BT: int64 tokens that are put in place of drawn ones; -1 where the policy draws.
        graphs: decode in steps of fixed shapes, which are recorded on a GPU; None: there, if the policy can.
        distribution: fields of `Distribution`.
    Raises:
        TrainingError: the policy's probabilities are not finite.
    """
    settings = Distribution(**distribution)
    uniforms_TB = uniforms_BT.t().contiguous()
    forced_TB = None if forced_BT is None else forced_BT.t()
    if graphs is None:
        graphs = uniforms_BT.is_cuda and getattr(policy, "fixed_shapes", False)
    decode = _graphed if graphs else _stepwise
    tokens_TB, logprobs_TB, entropy_TB = decode(policy, texts_B, uniforms_TB, forced_TB, settings)
    check_probabilities(entropy_TB)
    return Samples(
        tokens_BT=tokens_TB.t().contiguous(),
        logprobs_BT=logprobs_TB.t().contiguous(),
        entropy_BT=entropy_TB.t().contiguous(),
    )


def _stepwise(
    policy: Policy, texts_B: Sequence[str], uniforms_TB: Tensor, forced_TB: Tensor | None, settings: Distribution
) -> list[Tensor]:
    state = policy.start(texts_B, guided=settings.guided)
    # laid out before: small results that stay, each between two steps' large ones, would keep the C library from giving
    # the large ones' memory to the next step
    tokens_TB = torch.empty_like(uniforms_TB, dtype=torch.int64)
    logprobs_TB, entropy_TB = torch.empty_like(uniforms_TB), torch.empty_like(uniforms_TB)
    before_R: Tensor | None = None
    for token, uniforms_B in enumerate(uniforms_TB):
        forced_B = None if forced_TB is None else forced_TB[token]
        chosen = settings.choose(policy.step(state, before_R), uniforms_B, forced_B)
        tokens_TB[token], logprobs_TB[token], entropy_TB[token] = chosen
        before_R = tokens_TB[token].repeat(1 + settings.guided)
    return [tokens_TB, logprobs_TB, entropy_TB]


_DECODERS: WeakKeyDictionary[Policy, tuple[object, GraphedDecoder]] = WeakKeyDictionary()
"""The last decoder of each policy, and what it is for: it holds a cache and its graphs."""


def _graphed(
    policy: Policy, texts_B: Sequence[str], uniforms_TB: Tensor, forced_TB: Tensor | None, settings: Distribution
) -> list[Tensor]:
    wanted = settings, forced_TB is not None
    known, decoder = _DECODERS.get(policy, (None, None))
    if decoder is None or known != wanted:
        decoder = GraphedDecoder(policy, settings.choose, guided=settings.guided, forced=forced_TB is not None)
        _DECODERS[policy] = (wanted, decoder)
    decoded = decoder(texts_B, uniforms_TB, forced_TB)
    found = decoded.tokens_TB, decoded.logprobs_TB, decoded.entropy_TB
    return [each_TB[:, : len(texts_B)].clone() for each_TB in found]


def keep_one_layout(policy: Policy, texts: Sequence[str]) -> None:
    """Pad every prompt of a cached decode to the longest of `texts`, if the policy can.

    The cache then has the same layout in all batches, and graphs are recorded once. No number changes.
    """
    if hasattr(policy, "prompt_slots"):
        policy.prompt_slots = policy.slots_for(texts)  # type: ignore[attr-defined]


def sample_in_batches(
    policy: Policy,
    texts_B: Sequence[str],
    uniforms_BT: Tensor,
    *,
    batch_rows: int,
    workers: Workers | None = None,
    **options: Any,
) -> Samples:
    """`sample`, `batch_rows` images at once, one batch a thread of `workers`, in any of their processes."""

    def part(rows: slice) -> Samples:
        return sample(policy, texts_B[rows], uniforms_BT[rows], **options)

    workers = workers or Workers(1)
    parts = list(workers.map(part, workers.parts(len(texts_B), batch_rows)))
    return Samples(
        tokens_BT=torch.cat([part.tokens_BT for part in parts]),
        logprobs_BT=torch.cat([part.logprobs_BT for part in parts]),
        entropy_BT=torch.cat([part.entropy_BT for part in parts]),
    )


def truncate(logprobs_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Log-probabilities with everything outside the top k tokens and the top p mass at -inf; not renormalised.

    The mass is that of the whole row, whatever `top_k`.
    """
    if top_p < 1.0:
        ordered_BV, order_BV = logprobs_BV.sort(dim=-1, descending=True, stable=True)
        # float64, and against the row's own sum: in float32 neither many small terms nor their total of 1 are exact
        mass_BV = ordered_BV.double().exp()
        mass_before_BV = mass_BV.cumsum(dim=-1) - mass_BV
        outside_BV = mass_before_BV >= top_p * mass_BV.sum(dim=-1, keepdim=True)
        logprobs_BV = logprobs_BV.masked_fill(
            torch.zeros_like(outside_BV).scatter_(1, order_BV, outside_BV), float("-inf")
        )
    if 0 < top_k < logprobs_BV.shape[1]:
        least = logprobs_BV.topk(top_k, dim=-1).values[:, -1:]
        logprobs_BV = logprobs_BV.masked_fill(logprobs_BV < least, float("-inf"))
    return logprobs_BV


def draw(probabilities_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """int64 (B,): the token at which the cumulative probability passes u; the row need not sum to 1."""
    # float64: in float32 the last of many small terms could be rounded away, and u * total could reach the total
    cumulative_BV = probabilities_BV.cumsum(dim=-1, dtype=torch.float64)
    target_B = uniforms_B * cumulative_BV[:, -1]
    tokens_B = torch.searchsorted(cumulative_BV, target_B[:, None], right=True)[:, 0]
    return tokens_B.clamp_(max=probabilities_BV.shape[1] - 1)


def entropy(probabilities_BV: Tensor) -> Tensor:
    """Nats, (B,)."""
    entropy_B: Tensor = torch.special.entr(probabilities_BV).sum(dim=-1)
    return entropy_B

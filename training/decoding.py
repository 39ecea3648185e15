"""Sampling image tokens from any policy: cached steps, guidance, and what training needs recorded on the fly.

Each row's token is the inverse of the cumulative distribution at that row's own uniform number, so a sample depends on
its address in `gcpo_bench.streams` and not on the batch it is drawn in. Logits live for one step only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .parallel import Workers, slices
from .types import Policy, Samples


@torch.no_grad()
def sample(
    policy: Policy,
    texts_B: Sequence[str],
    uniforms_BT: Tensor,
    *,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    entropy_source: Literal["sampling", "conditional"] = "sampling",
    forced_BT: Tensor | None = None,
) -> Samples:
    """One image a row.

    Args:
        texts_B: prompts.
        uniforms_BT: float32 in [0, 1), one a token.
        guidance_scale: s in u + s (c - u); at 1 the unconditional rows are not computed.
        temperature: divides the guided logits.
        top_k: tokens kept, 0 for all. top_p: probability mass kept.
        entropy_source: `sampling`, the guided distribution at this temperature before top-k and top-p cut it;
            `conditional`, the conditional distribution at temperature 1.
        forced_BT: int64 tokens that are put in place of drawn ones; -1 where the policy draws.
    """
    guided = guidance_scale != 1.0
    rows = len(texts_B)
    state = policy.start(texts_B, guided=guided)
    tokens: Tensor | None = None
    tokens_T, logprobs_T, entropy_T = [], [], []
    for t in range(uniforms_BT.shape[1]):
        previous = torch.cat([tokens, tokens]) if guided and tokens is not None else tokens
        logits = policy.step(state, previous).float()
        conditional_BV = logits[:rows]
        mixed_BV = logits[rows:] + guidance_scale * (conditional_BV - logits[rows:]) if guided else conditional_BV
        conditional_BV = torch.log_softmax(conditional_BV, dim=-1)
        same = not guided and temperature == 1.0
        sampling_BV = conditional_BV if same else torch.log_softmax(mixed_BV / temperature, dim=-1)
        tokens = draw(truncate(sampling_BV, top_k, top_p), uniforms_BT[:, t])
        if forced_BT is not None:
            tokens = torch.where(forced_BT[:, t] >= 0, forced_BT[:, t], tokens)
        tokens_T.append(tokens)
        logprobs_T.append(conditional_BV.gather(1, tokens[:, None])[:, 0])
        entropy_T.append(entropy(sampling_BV if entropy_source == "sampling" else conditional_BV))
    return Samples(
        tokens_BT=torch.stack(tokens_T, dim=1),
        logprobs_BT=torch.stack(logprobs_T, dim=1),
        entropy_BT=torch.stack(entropy_T, dim=1),
    )


def sample_in_batches(
    policy: Policy,
    texts_B: Sequence[str],
    uniforms_BT: Tensor,
    *,
    batch_rows: int,
    workers: Workers | None = None,
    **options: object,
) -> Samples:
    """`sample`, `batch_rows` images at once, one batch a thread of `workers`."""

    def part(rows: slice) -> Samples:
        return sample(policy, texts_B[rows], uniforms_BT[rows], **options)  # type: ignore[arg-type]

    parts = (workers or Workers(1)).map(part, slices(len(texts_B), batch_rows))
    return Samples(
        tokens_BT=torch.cat([part.tokens_BT for part in parts]),
        logprobs_BT=torch.cat([part.logprobs_BT for part in parts]),
        entropy_BT=torch.cat([part.entropy_BT for part in parts]),
    )


def truncate(logprobs_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Log-probabilities with everything outside the top k tokens and the top p mass at -inf; not renormalised."""
    if 0 < top_k < logprobs_BV.shape[1]:
        least = logprobs_BV.topk(top_k, dim=-1).values[:, -1:]
        logprobs_BV = logprobs_BV.masked_fill(logprobs_BV < least, float("-inf"))
    if top_p < 1.0:
        ordered, order = logprobs_BV.exp().sort(dim=-1, descending=True, stable=True)
        mass_before = ordered.cumsum(dim=-1) - ordered
        outside = (mass_before >= top_p).scatter(1, order, mass_before >= top_p)
        logprobs_BV = logprobs_BV.masked_fill(outside, float("-inf"))
    return logprobs_BV


def draw(logprobs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """int64 (B,): the token at which the cumulative probability passes u; the row need not sum to 1."""
    # float64: in float32 the last of many small terms could be rounded away, and u * total could reach the total
    cumulative_BV = logprobs_BV.exp().cumsum(dim=-1, dtype=torch.float64)
    target_B = uniforms_B.double() * cumulative_BV[:, -1]
    tokens_B = torch.searchsorted(cumulative_BV, target_B[:, None], right=True)[:, 0]
    return tokens_B.clamp_(max=logprobs_BV.shape[1] - 1)


def entropy(logprobs_BV: Tensor) -> Tensor:
    """Nats, (B,)."""
    entropy_B: Tensor = torch.special.entr(logprobs_BV.exp()).sum(dim=-1)
    return entropy_B

"""Random inputs for the tests of selection and loss; the oracles beside this file use none of the package."""

from __future__ import annotations

import torch
from torch import Tensor

from gcpo_bench.training.signals import group_similarity
from gcpo_bench.training.types import Batch, TokenSignals


def make_embeddings(rows: int, num_tokens: int, seed: int, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, num_tokens, width, generator=generator, dtype=torch.float64)


def make_signals(rows: int, grid: tuple[int, int], seed: int, group_size: int = 4) -> TokenSignals:
    """float64; `rows` a multiple of `group_size`."""
    num_tokens = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(seed + 10_000)
    draw = torch.rand(3, rows, num_tokens, generator=generator, dtype=torch.float64)
    return TokenSignals(
        grid=grid,
        entropy_BT=4 * draw[0],
        similarity_BT=group_similarity(make_embeddings(rows, num_tokens, seed), group_size),
        logprobs_BT=-6 * draw[1],
        noise_BT=draw[2],
    )


def make_batch(
    rows: int, num_tokens: int, seed: int, *, spread: float, share: float = 0.3, old_spread: float | None = None
) -> tuple[Tensor, Batch]:
    """Policy log-probs and a batch whose reference lies `spread` (std, nats) away; denominators count the selected.

    `old_spread` puts the sampling policy that far away too; None leaves the current policy as the one that sampled.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logprobs_BT = -3 - normal(rows, num_tokens).abs()
    ref_logprobs_BT = logprobs_BT - spread * normal(rows, num_tokens)
    advantages_B = normal(rows)
    selected_BT = torch.rand(rows, num_tokens, generator=generator) < share
    selected_BT[:, 0] = True
    old_logprobs_BT = None if old_spread is None else logprobs_BT + old_spread * normal(rows, num_tokens)
    count = float(selected_BT.sum())
    batch = Batch(
        old_logprobs_BT=old_logprobs_BT,
        ref_logprobs_BT=ref_logprobs_BT,
        advantages_B=advantages_B,
        selected_BT=selected_BT,
        policy_denominator=count,
        kl_denominator=count,
    )
    return logprobs_BT, batch

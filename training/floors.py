"""The least a step can take: bytes that must move, arithmetic that must be done."""

from __future__ import annotations

from .types import Work


def rollout_bytes(work: Work, rows: int, tokens: int, element_bytes: int, prompt: int = 16) -> float:
    """The weights once a token; of each row's cache, on average, the prompt and half the image."""
    return element_bytes * tokens * (work.parameters + rows * work.cache_per_slot * (prompt + tokens / 2))


def rollout_flops(work: Work, rows: int, tokens: int) -> float:
    """2 a weight, row and token."""
    return 2.0 * work.parameters * rows * tokens


def update_flops(
    work: Work,
    images: int,
    tokens: int,
    *,
    differentiated: float = 1.0,
    passes: int = 1,
    adapters: bool = False,
    recomputes: bool = False,
) -> float:
    """A weight and token: reference 2; a pass of the policy forward 2, backward 4, and 2 where layers run again.

    Args:
        differentiated: share of the tokens at which the output layer has a backward pass.
        passes: epochs over the images.
        adapters: the weights are frozen, whose backward pass then computes the gradient of its input alone, 2.
    """
    head, layers = work.head, work.parameters - work.head
    backward = 2.0 if adapters else 4.0
    forward = 2.0 * work.parameters
    one = forward + backward * (layers + differentiated * head) + 2.0 * recomputes * layers
    return images * tokens * (forward + passes * one)

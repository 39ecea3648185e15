"""The least a step can take: bytes that must move, arithmetic that must be done."""

from __future__ import annotations

from .types import Work


def rollout_bytes(work: Work, rows: int, tokens: int, element_bytes: int, prompt: int = 16) -> float:
    """The weights once a token; of each row's cache, on average, the prompt and half the image."""
    return element_bytes * tokens * (work.parameters + rows * work.cache_per_slot * (prompt + tokens / 2))


def rollout_flops(work: Work, rows: int, tokens: int) -> float:
    """2 a weight, row and token."""
    return 2.0 * work.parameters * rows * tokens


def update_flops(work: Work, images: int, tokens: int) -> float:
    """Forward 2, backward 4, reference 2, a weight and token."""
    return 8.0 * work.parameters * images * tokens

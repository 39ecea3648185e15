"""Two pictures that anything that sees tells apart: what self-tests show."""

from __future__ import annotations

import numpy as np

from .types import Image

SIDE = 64


def plain_pictures() -> list[Image]:
    """A red disc on white, and black and white stripes."""
    rows, cols = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    disc = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    disc[rows**2 + cols**2 < (SIDE / 4) ** 2] = (220, 30, 30)
    stripes = np.zeros_like(disc)
    stripes[:, ::2] = 255
    return [disc, stripes]

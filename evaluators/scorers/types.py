"""What every scorer is, and what it may say of an image.

Dimensions: B images, T text tokens, D width of a feature, C, Y, X channels, height, width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
"""uint8 (Y, X, 3), RGB."""
Images = Sequence[Image] | npt.NDArray[np.uint8]
"""Pictures of any sizes, or a batch (B, Y, X, 3)."""


@dataclass(frozen=True, slots=True)
class Unscored:
    """No score, and why. Never counted as a number."""

    reason: str
    may_pass: bool = False
    """Whether it may be scored another time: a program that died, a server that is busy."""


Score = float | Unscored


class Scorer(Protocol):
    @property
    def name(self) -> str:
        """As registered: hps-v2.1, pickscore, ..."""
        ...

    @property
    def unit(self) -> str:
        """Raw scale: cosine, logit, points, ..."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """What makes two scores comparable: weights digest, preprocessing, precision. Plain JSON values."""
        ...

    def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
        """The raw score of each image for its prompt, in order.

        Raises ValueError where images and prompts differ in number or an image is not uint8 (Y, X, 3).
        """
        ...


def check_images(images: Images, prompts: Sequence[str]) -> list[Image]:
    """The images one by one. Raises ValueError as `Scorer.score` says."""
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images for {len(prompts)} prompts")
    for image in images:
        check_image(image)
    return list(images)


def check_image(image_YXC: Image) -> None:
    if image_YXC.dtype != np.uint8 or image_YXC.ndim != 3 or image_YXC.shape[2] != 3 or not image_YXC.size:
        raise ValueError(f"an image is {image_YXC.dtype} {image_YXC.shape}, expected uint8 (Y, X, 3), not empty")


MAX_ASPECT = 64
"""Longer pictures are not scored. With the shortest side at 224 they would not fit into memory; with the longest side
at 224 the other would come to 0 pixels, or to 1, which torch 2.13's antialiased resize gets wrong."""


def aspect_problem(height: int, width: int) -> str:
    """Why a picture of this size is not scored; empty where it is."""
    short, long = sorted((height, width))
    return f"the image is {height}x{width} pixels: too long for its width" if long > MAX_ASPECT * short else ""


def finite(values: Sequence[float], what: str) -> list[Score]:
    """The values; one that is no number becomes Unscored, with `what` in the reason."""
    return [value if math.isfinite(value) else Unscored(f"{what} is {value}") for value in values]

"""Pixels as the published scorers see them, written out in Pillow and torch, without torchvision.

Every step that published code takes differently is a field, and the whole is part of a score's identity:

* `resample`: CLIP's own preprocessing resizes the 8-bit picture with Pillow (always antialiased) and rounds; HPSv2
  turns it into floats first and resizes those, so nothing is rounded or clipped.
* `antialias`: HPSv2's float resize was not antialiased up to torchvision 0.16 and is since 0.17 (pytorch/vision#7949),
  so an HPS score depends on the torchvision beside it.
* `fit`: HPSv2 scores with the longest side at 224 and zeros around (its `light_augmentation`), CLIP with the shortest
  side at 224 and the middle cut out, BLIP-VQA with both sides stretched.
* `halves`: where the middle is cut out of an odd rest, torchvision rounds half to even and transformers down.

Sources: tgxs002/HPSv2 `src/open_clip/transform.py`, openai/CLIP `clip.py`, torchvision `transforms.functional`,
transformers `CLIPImageProcessor`, salesforce/BLIP `demo`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as Pictures
from torch import Tensor

from .types import Image, aspect_problem, check_image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_PILLOW = {"bicubic": Pictures.Resampling.BICUBIC, "bilinear": Pictures.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    size: int = 224
    """Side of the square that the model sees."""
    resample: Literal["pillow", "float"] = "pillow"
    """What is resized: the 8-bit picture, or floats in [0, 1]."""
    filter: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = True
    """Only a float resize can do without."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    halves: Literal["even", "down"] = "even"
    """Rounding of the crop's offset."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if self.resample == "pillow" and not self.antialias:
            raise ValueError("Pillow always antialiases; antialias=False needs resample='float'")

    @property
    def identity(self) -> Mapping[str, Any]:
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    def __call__(self, image_YXC: Image) -> Tensor:
        """float32 (3, size, size), normalised.

        Raises ValueError for another dtype or shape, and for a picture more than `MAX_ASPECT` times as long as wide.
        """
        check_image(image_YXC)
        height, width = image_YXC.shape[:2]
        if self.fit != "stretch" and (problem := aspect_problem(height, width)):
            raise ValueError(problem)
        target = self._target(height, width)
        if self.resample == "pillow":
            pixels_CYX = floats(_resize_pillow(image_YXC, target, self.filter))
        else:
            pixels_CYX = resize_floats(floats(image_YXC), target, self.filter, antialias=self.antialias)
        if self.fit == "crop":
            pixels_CYX = self._crop(pixels_CYX)
        elif self.fit == "pad":
            pixels_CYX = _pad(pixels_CYX, self.size)
        return normalize(pixels_CYX, self.mean, self.std)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to resize to."""
        if self.fit == "stretch":
            return self.size, self.size
        if self.fit == "pad":
            scale = self.size / max(height, width)
            return round(height * scale), round(width * scale)
        short, long = sorted((height, width))
        longer = int(self.size * long / short)
        return (self.size, longer) if height <= width else (longer, self.size)

    def _crop(self, pixels_CYX: Tensor) -> Tensor:
        rests = [side - self.size for side in pixels_CYX.shape[1:]]
        top, left = (round(rest / 2) if self.halves == "even" else rest // 2 for rest in rests)
        return pixels_CYX[:, top : top + self.size, left : left + self.size]


def floats(image_YXC: Image) -> Tensor:
    """float32 (3, Y, X) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image_YXC.transpose(2, 0, 1))).float() / 255


def _resize_pillow(image_YXC: Image, target: tuple[int, int], name: str) -> Image:
    if image_YXC.shape[:2] == target:
        return image_YXC
    picture = Pictures.fromarray(image_YXC).resize((target[1], target[0]), _PILLOW[name])
    return np.asarray(picture)


def resize_floats(pixels_CYX: Tensor, target: tuple[int, int], name: str, *, antialias: bool) -> Tensor:
    """Resized to `target` (height, width). Bicubic overshoots [0, 1], and published code leaves that."""
    if tuple(pixels_CYX.shape[1:]) == target:
        return pixels_CYX
    return F.interpolate(pixels_CYX[None], target, mode=name, align_corners=False, antialias=antialias)[0]


def _pad(pixels_CYX: Tensor, size: int) -> Tensor:
    """Zeros around it, the odd row or column below or to the right."""
    down, across = (size - side for side in pixels_CYX.shape[1:])
    return F.pad(pixels_CYX, (across // 2, across - across // 2, down // 2, down - down // 2))


def normalize(pixels_CYX: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    mean_C, std_C = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (pixels_CYX - mean_C) / std_C


CLIP = Preprocessing()
"""openai/CLIP and ImageReward."""
CLIP_TRANSFORMERS = Preprocessing(halves="down")
"""transformers' CLIP processor: PickScore, LAION aesthetic."""
CLIP_FLOAT_BILINEAR = Preprocessing(resample="float", filter="bilinear")
"""CLIPScore as DiffusionNFT computes it."""
HPS = Preprocessing(resample="float", fit="pad")
"""HPSv2 beside torchvision 0.17 or newer."""
HPS_NO_ANTIALIAS = Preprocessing(resample="float", fit="pad", antialias=False)
"""HPSv2 beside torchvision 0.16 or older."""
BLIP_VQA = Preprocessing(size=480, fit="stretch")
"""BLIP-VQA at the size it was trained for."""

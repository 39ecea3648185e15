"""Depth of a picture with DPT, on transformers' classes, as T2I-CompBench makes it for its 3D positions.

The picture at 480 x 480 (Pillow's bilinear filter) with mean and deviation 0.5; the network's map from its least value
to its greatest as 0 to 1; bilinear, corners aligned, to the picture's size; 8 bits, cut off, not rounded; with Pillow
to the detector's frame. Larger is nearer. A map of one value is 0 everywhere.

The original runs the network in half precision on CUDA; here it is single.

Sources: Karine-Huang/T2I-CompBench 1b70949, described from reading (its file is not free, none of its code is used);
arXiv 2103.13413; transformers#28292 on the weights that are never there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import DPTForDepthEstimation

from gcpo_bench.catalogue import COMPBENCH_DEPTH
from gcpo_bench.errors import CorruptDataError

from ..compbench import frame_size
from ..scorers.compute import inference, require_numbers
from .mask2former import rows_on
from .pretrained import load_model

SIDE = 480
UNUSED = r"neck\.fusion_stage\.layers\.0\.residual_layer1\."
"""The first fusion layer has nothing to add, so published files hold no weights for it."""

UInt8 = npt.NDArray[np.uint8]


def preprocess(image_YXC: UInt8) -> Tensor:
    """An RGB image, stretched and normalised: float32 (3, 480, 480)."""
    scaled = Image.fromarray(image_YXC).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels_CYX = torch.from_numpy(np.array(scaled).transpose(2, 0, 1)).float() / 255
    return (pixels_CYX - 0.5) / 0.5


def to_frame(depth_YX: Tensor, height: int, width: int) -> UInt8:
    """The network's map as 8 bits in the detector's frame of a picture of this size."""
    low, high = depth_YX.min(), depth_YX.max()
    share_YX = (depth_YX - low) / (high - low) if high > low else torch.zeros_like(depth_YX)
    full_YX = F.interpolate(share_YX[None, None], size=(height, width), mode="bilinear", align_corners=True)[0, 0]
    levels_YX = (255 * full_YX).clamp(0, 255).to(torch.uint8).cpu().numpy()
    frame_height, frame_width = frame_size(height, width)
    return np.asarray(Image.fromarray(levels_YX).resize((frame_width, frame_height), Image.Resampling.BILINEAR))


class Depth:
    """On a CPU one image at a time, so that no number depends on a batch."""

    def __init__(self, model: DPTForDepthEstimation, *, device: str = "cpu", rows: int | None = None) -> None:
        """`rows` images go through the network together; None: 1 on a CPU, `ROWS_ON_GPU` elsewhere."""
        network: Any = model.train(mode=False)  # whose `to` is typed for transformers' own wrappers only
        network.dpt.embeddings.image_size = (SIDE, SIDE)  # places are interpolated from those it was trained with
        self.model = network.to(device)
        self.device = device
        self.rows = rows or rows_on(device)

    def __call__(self, image_YXC: UInt8) -> UInt8:
        """The depth map (Y, X) in the detector's frame, of an RGB image, uint8 (Y, X, 3)."""
        return next(self.maps([image_YXC]))

    def maps(self, images: Sequence[UInt8]) -> Iterator[UInt8]:
        """The same for each image, in order; images of any sizes may go through the network together."""
        for start in range(0, len(images), self.rows):
            yield from self._together(images[start : start + self.rows])

    @inference
    def _together(self, images: Sequence[UInt8]) -> list[UInt8]:
        pixels_BCYX = torch.stack([preprocess(image_YXC) for image_YXC in images]).to(self.device)
        depths_BYX = self.model(pixel_values=pixels_BCYX).predicted_depth.float()
        require_numbers(depths_BYX, "DPT")
        return [
            to_frame(depth_YX, *image_YXC.shape[:2]) for depth_YX, image_YXC in zip(depths_BYX, images, strict=True)
        ]


def load(folder: Path, *, device: str = "cpu") -> tuple[Depth, str]:
    """The network in a transformers folder and its checksum. Raises as `load_model` does."""
    model, digest = load_model(DPTForDepthEstimation, folder, unused=UNUSED)
    if not model.config.is_hybrid:
        raise CorruptDataError(
            f"{folder} is no hybrid DPT", hint=f"published scores are made with {COMPBENCH_DEPTH.source}"
        )
    return Depth(model, device=device), digest

"""OpenCV's bilinear resize of 8-bit images, to the bit, without OpenCV.

A detector's scores near a threshold depend on every grey level of its input, and published detectors were run behind
`cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)`. That function samples without antialiasing and computes in
fixed point: weights of 11 bits, two of the four fractional steps truncated. Source: OpenCV, `imgproc/src/resize.cpp`
(behaviour; compared with 4.10 and 5.0 on 15 sizes, no difference).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8 = npt.NDArray[np.uint8]
Int32 = npt.NDArray[np.int32]
WEIGHT_ONE = 2048
"""What a weight of 1 is in fixed point."""


def resize_bilinear(image_YXC: UInt8, height: int, width: int) -> UInt8:
    """`cv2.resize` with INTER_LINEAR: (Y, X, 3) uint8 to (height, width, 3) uint8."""
    old_height, old_width = image_YXC.shape[:2]
    if (old_height, old_width) == (height, width):
        return image_YXC
    if (old_height, old_width) == (2 * height, 2 * width):  # OpenCV averages the four pixels then
        sums = image_YXC.reshape(height, 2, width, 2, -1).astype(np.uint16).sum(axis=(1, 3))
        halved: UInt8 = ((sums + 2) >> 2).astype(np.uint8)
        return halved
    left, right, left_weight, right_weight = _taps(width, old_width, clamp_weights=True)
    top, bottom, top_weight, bottom_weight = _taps(height, old_height, clamp_weights=False)
    pixels = image_YXC.astype(np.int32)
    rows = (pixels[:, left] * left_weight[:, None] + pixels[:, right] * right_weight[:, None]) >> 4
    above = (rows[top] * top_weight[:, None, None]) >> 16
    below = (rows[bottom] * bottom_weight[:, None, None]) >> 16
    resized: UInt8 = ((above + below + 2) >> 2).astype(np.uint8)
    return resized


def resize_antialiased(image_YXC: UInt8, height: int, width: int) -> UInt8:
    """Bilinear with a filter as wide as a reduction needs it: Pillow's. (Y, X, 3) uint8 to (height, width, 3)."""
    return np.asarray(Image.fromarray(image_YXC).resize((width, height), Image.Resampling.BILINEAR))


def _taps(new: int, old: int, *, clamp_weights: bool) -> tuple[Int32, Int32, Int32, Int32]:
    """The two source indices of each new position and their fixed-point weights.

    Beyond the border OpenCV repeats the pixel: across a row by weight 0, down a column by asking for one row twice.
    """
    position = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    first = np.floor(position)
    fraction = position - first
    if clamp_weights:
        fraction[(first < 0) | (first >= old - 1)] = 0
    index = first.astype(np.int32)
    return (
        np.clip(index, 0, old - 1),
        np.clip(index + 1, 0, old - 1),
        np.rint((np.float32(1) - fraction) * np.float32(WEIGHT_ONE)).astype(np.int32),
        np.rint(fraction * np.float32(WEIGHT_ONE)).astype(np.int32),
    )

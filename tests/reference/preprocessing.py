"""Resizing as sums over pixels, in float64, from the kernels' definitions.

Sources: Keys' cubic convolution; Pillow and PyTorch's antialiased resize stretch it (a = -0.5) by the reduction and
renormalise at the border; PyTorch's plain bicubic has a = -0.75 and repeats the border. Pixel centres are at halves.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def cubic(x: float, a: float) -> float:
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


def weights(old: int, new: int, *, name: str, antialias: bool) -> Array:
    """(new, old): the share of each old pixel in each new one."""
    scale = old / new
    stretch = max(scale, 1.0) if antialias else 1.0
    a = -0.5 if antialias else -0.75
    support = 2.0 if name == "bicubic" else 1.0
    matrix = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * scale - 0.5
        reach = math.ceil(support * stretch)
        for position in range(math.floor(centre) - reach, math.floor(centre) + reach + 2):
            distance = (position - centre) / stretch
            share = cubic(distance, a) if name == "bicubic" else triangle(distance)
            if antialias and not 0 <= position < old:
                continue
            matrix[row, min(max(position, 0), old - 1)] += share
    normalised: Array = matrix / matrix.sum(axis=1, keepdims=True)
    return normalised


def resize(image_YXC: Array, height: int, width: int, *, name: str = "bicubic", antialias: bool = True) -> Array:
    down = weights(image_YXC.shape[0], height, name=name, antialias=antialias)
    across = weights(image_YXC.shape[1], width, name=name, antialias=antialias)
    resized: Array = np.einsum("ay,bx,yxc->abc", down, across, image_YXC)
    return resized


def hps(image_YXC: npt.NDArray[np.uint8], size: int, *, antialias: bool) -> Array:
    """HPSv2's picture before normalisation, (3, size, size): longest side to `size`, zeros around."""
    height, width = image_YXC.shape[:2]
    scale = size / max(height, width)
    new_height, new_width = round(height * scale), round(width * scale)
    canvas = np.zeros((size, size, 3))
    top, left = (size - new_height) // 2, (size - new_width) // 2
    small = resize(image_YXC / 255.0, new_height, new_width, antialias=antialias)
    canvas[top : top + new_height, left : left + new_width] = small
    return canvas.transpose(2, 0, 1)

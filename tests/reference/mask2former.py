"""mmdet's instance post-processing and OpenCV's bilinear resize, one number at a time, as oracles for the fast code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def interpolate(plane_YX: Array, size: tuple[int, int]) -> Array:
    """Bilinear with pixel centres at halves (align_corners False), border pixels repeated."""
    result = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            sy = max((y + 0.5) * plane_YX.shape[0] / size[0] - 0.5, 0.0)
            sx = max((x + 0.5) * plane_YX.shape[1] / size[1] - 0.5, 0.0)
            y0, x0 = int(sy), int(sx)
            y1, x1 = min(y0 + 1, plane_YX.shape[0] - 1), min(x0 + 1, plane_YX.shape[1] - 1)
            fy, fx = sy - y0, sx - x0
            top = plane_YX[y0, x0] * (1 - fx) + plane_YX[y0, x1] * fx
            bottom = plane_YX[y1, x0] * (1 - fx) + plane_YX[y1, x1] * fx
            result[y, x] = top * (1 - fy) + bottom * fy
    return result


def instances(
    class_logits_QL: Array,
    mask_logits_QYX: Array,
    padded: tuple[int, int],
    unpadded: tuple[int, int],
    original: tuple[int, int],
    count: int = 100,
) -> list[tuple[int, int, float, list[float], Array]]:
    """(query, class, confidence, box, mask) of the `count` most probable pairs, in the order of (query, class)."""
    pairs = []
    for query, logits_L in enumerate(class_logits_QL.tolist()):
        total = sum(math.exp(logit) for logit in logits_L)
        pairs += [(math.exp(logit) / total, query, label) for label, logit in enumerate(logits_L[:-1])]
    chosen = sorted(pairs, key=lambda pair: (-np.float32(pair[0]), pair[1], pair[2]))[:count]
    found = []
    for probability, query, label in sorted(chosen, key=lambda pair: pair[1:]):
        logits_YX = interpolate(interpolate(mask_logits_QYX[query], padded)[: unpadded[0], : unpadded[1]], original)
        inside = [(y, x) for y in range(original[0]) for x in range(original[1]) if logits_YX[y, x] > 0]
        quality = sum(1 / (1 + math.exp(-logits_YX[place])) for place in inside) / (len(inside) + 1e-6)
        box = [0.0] * 4
        if inside:
            rows, columns = [y for y, _ in inside], [x for _, x in inside]
            box = [float(min(columns)), float(min(rows)), max(columns) + 1.0, max(rows) + 1.0]
        found.append((query, label, probability * quality, box, logits_YX > 0))
    return found


def resized(image_YXC: Array, height: int, width: int) -> Array:
    """OpenCV's INTER_LINEAR on bytes, pixel by pixel, in integers of any size; not for exact halves."""

    def taps(place: int, new: int, old: int, across: bool) -> tuple[int, int, int, int]:
        position = np.float32((place + 0.5) * (1 / (new / old)) - 0.5)
        first = math.floor(position)
        fraction = np.float32(position - np.float32(first))
        if across and (first < 0 or first >= old - 1):
            fraction = np.float32(0)
        near, far = round(float((np.float32(1) - fraction) * 2048)), round(float(fraction * 2048))
        return min(max(first, 0), old - 1), min(max(first + 1, 0), old - 1), near, far

    result = np.zeros((height, width, 3), dtype=np.uint8)
    for y in range(height):
        y0, y1, top, bottom = taps(y, height, image_YXC.shape[0], False)
        for x in range(width):
            x0, x1, left, right = taps(x, width, image_YXC.shape[1], True)
            for c in range(3):
                above = int(image_YXC[y0, x0, c]) * left + int(image_YXC[y0, x1, c]) * right
                below = int(image_YXC[y1, x0, c]) * left + int(image_YXC[y1, x1, c]) * right
                result[y, x, c] = ((top * (above >> 4) >> 16) + (bottom * (below >> 4) >> 16) + 2) >> 2
    return result

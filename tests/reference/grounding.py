"""Grounding DINO's boxes and T2I-CompBench's depth in plain loops, written from their description."""

from __future__ import annotations

import math
from typing import Any

Box = tuple[float, float, float, float]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def corners(box: Any, height: int, width: int) -> list[float]:
    """From centre, width and height as shares of the image."""
    cx, cy, w, h = (float(each) for each in box)
    sides = [(cx - w / 2, width), (cy - h / 2, height), (cx + w / 2, width), (cy + h / 2, height)]
    return [min(max(share, 0.0), 1.0) * length for share, length in sides]


def share_of_union(a: Any, b: Any) -> float:
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    common = across * down if across > 0 and down > 0 else 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return float(common / union) if union > 0 else 0.0


def labelled(
    names: list[str], boxes: list[Box], words: list[list[list[float]]], box: float, text: float, nms: float
) -> list[tuple[str, float, Box]]:
    """`words` holds the probability of every word of every name for every box."""
    found: list[tuple[str, float, Box]] = []
    for row in range(len(boxes)):
        best: tuple[str, float, Box] | None = None
        for name, values in zip(names, words[row], strict=True):
            if not values or max(values) <= box:
                continue
            if any(value <= text for value in values):
                continue
            if best is None or max(values) > best[1]:
                best = (name, max(values), boxes[row])
        if best is not None:
            found.append(best)
    kept: list[tuple[str, float, Box]] = []
    for candidate in sorted(found, key=lambda each: -each[1]):
        is_new = True
        for other in kept:
            if other[0] == candidate[0] and share_of_union(other[2], candidate[2]) > nms:
                is_new = False
        if is_new:
            kept.append(candidate)
    return kept


def depth_levels(depth: list[list[float]], height: int, width: int) -> list[list[int]]:
    """0 to 255 at a picture's size: from least to greatest, bilinear with corners aligned, cut off."""
    low = min(min(row) for row in depth)
    high = max(max(row) for row in depth)
    rows, cols = len(depth), len(depth[0])
    levels = []
    for y in range(height):
        at_y = y * (rows - 1) / (height - 1) if height > 1 else 0.0
        line = []
        for x in range(width):
            at_x = x * (cols - 1) / (width - 1) if width > 1 else 0.0
            top, left = int(at_y), int(at_x)
            below, right = min(top + 1, rows - 1), min(left + 1, cols - 1)
            v, u = at_y - top, at_x - left
            upper = depth[top][left] * (1 - u) + depth[top][right] * u
            lower = depth[below][left] * (1 - u) + depth[below][right] * u
            value = upper * (1 - v) + lower * v
            line.append(int(255 * (value - low) / (high - low)) if high > low else 0)
        levels.append(line)
    return levels

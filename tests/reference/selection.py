"""Selection written out, position by position, in Python floats (float64): the oracle of the vectorised code.

From the description of the released algorithm, not from its code. All maps are lists in raster order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Numbers = Sequence[float]


def smoothed(values: Numbers, height: int, width: int) -> list[float]:
    """Mean of each position with its up-left, up, up-right and left neighbours, those that exist."""
    means = []
    for row in range(height):
        for column in range(width):
            seen = [values[row * width + column]]
            for down, right in ((-1, -1), (-1, 0), (-1, 1), (0, -1)):
                other_row, other_column = row + down, column + right
                if 0 <= other_row < height and 0 <= other_column < width:
                    seen.append(values[other_row * width + other_column])
            means.append(sum(seen) / len(seen))
    return means


def gradient_length(values: Numbers, height: int, width: int) -> list[float]:
    """Central differences inside, one-sided at the border, none along a side of length 1."""

    def slope(before: float, here: float, after: float, has_before: bool, has_after: bool) -> float:
        if has_before and has_after:
            return (after - before) / 2
        if has_after:
            return after - here
        return here - before if has_before else 0.0

    lengths = []
    for row in range(height):
        for column in range(width):
            here = values[row * width + column]
            up = values[(row - 1) * width + column] if row > 0 else math.nan
            down = values[(row + 1) * width + column] if row < height - 1 else math.nan
            left = values[row * width + column - 1] if column > 0 else math.nan
            right = values[row * width + column + 1] if column < width - 1 else math.nan
            across = slope(left, here, right, column > 0, column < width - 1)
            along = slope(up, here, down, row > 0, row < height - 1)
            lengths.append(math.sqrt(along * along + across * across))
    return lengths


def pair_similarity(embeddings: Sequence[Sequence[Numbers]]) -> list[float]:
    """Mean cosine over all ordered pairs of different images. `embeddings[image][position]` is a vector."""
    group = len(embeddings)
    means = []
    for position in range(len(embeddings[0])):
        total = 0.0
        for first in range(group):
            for second in range(group):
                if first != second:
                    total += _cosine(embeddings[first][position], embeddings[second][position])
        means.append(total / (group * (group - 1)))
    return means


def _cosine(first: Numbers, second: Numbers) -> float:
    norms = math.sqrt(sum(x * x for x in first)) * math.sqrt(sum(x * x for x in second))
    return sum(x * y for x, y in zip(first, second, strict=True)) / norms


def highest(values: Numbers, candidates: Sequence[int], count: int) -> set[int]:
    """The `count` candidates of highest value; among equals the lower position."""
    return set(sorted(candidates, key=lambda position: (-values[position], position))[:count])


def released_sets(
    entropy: Numbers, similarity: Numbers, height: int, width: int
) -> tuple[set[int], set[int], set[int]]:
    """Initial, structural and diverse positions of one image, as the released code finds them at 10 % each."""
    num_tokens = height * width
    count = num_tokens // 10
    initial = set(range(count))
    window = range(count, count + num_tokens * 8 // 10)
    structural = highest(gradient_length(smoothed(entropy, height, width), height, width), window, count)
    left_over = [position for position in range(num_tokens) if position not in initial | structural]
    diverse = highest([-value for value in similarity], left_over, count)
    return initial, structural, diverse


def printed_sets(entropy: Numbers, similarity: Numbers, height: int, width: int) -> tuple[set[int], set[int], set[int]]:
    """The same sets as the paper prints them: no window, and sets that may overlap."""
    everywhere = range(height * width)
    count = len(everywhere) // 10
    structural = highest(gradient_length(smoothed(entropy, height, width), height, width), everywhere, count)
    return set(range(count)), structural, highest([-value for value in similarity], everywhere, count)

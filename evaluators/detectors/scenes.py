"""Finds the objects of the embedded world in an image, from its pixels alone, and says what else is there.

The image may come from any policy, also one that was rewarded for fooling a detector. So an object is only what looks
like one: a connected blob, alone, of an object's size, in one palette colour, in one shape and clearly no other, hollow
only where the shape is. Everything else that is not background counts as an unknown blob, down to a single pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from gcpo_bench.errors import ConfigError
from gcpo_bench.scenes import BACKGROUND, COLORS, SHAPES, WORLDS, World, shape_mask

from ..types import Detection

COLOR_TOLERANCE = 24.0
"""Farthest a pixel may be from its palette colour, Euclidean RGB; the palette's nearest two are 85 apart."""
MIN_IOU = 0.8
"""With the shape drawn in the blob's own box. Two shapes overlap by up to 0.83, hence also a margin."""
MIN_MARGIN = 0.05
"""By which the best shape must beat the second."""
MIN_PURITY = 0.8
"""Share of the blob in its most frequent colour."""
SIZE_TOLERANCE = 1
"""Pixels by which each side may differ from an object's size."""

COLOR_NAMES = tuple(COLORS)
_BACKGROUND = len(COLORS)
_UNKNOWN = _BACKGROUND + 1
_PALETTE = np.array([*COLORS.values(), BACKGROUND], dtype=np.float32)
_TOUCHING = np.ones((3, 3), dtype=bool)  # corners count: diagonal neighbours are one blob

Found = tuple[tuple[Detection, ...], int]
"""Objects in raster order of their first pixel, and the number of other blobs."""


def detect(images_BYXC: npt.NDArray[np.uint8]) -> list[Found]:
    """Objects and number of unknown blobs of each image.

    Args:
        images_BYXC: uint8 (B, Y, X, 3), pictures as large as those of a registered world.
    Raises:
        ValueError: for another dtype or number of dimensions. ConfigError: for a size no world has.
    """
    worlds = worlds_of(images_BYXC)
    # image by image: one fits the cache, a batch does not
    return [_detect(nearest_colors(image_YXC), worlds) for image_YXC in images_BYXC]


def worlds_of(images_BYXC: npt.NDArray[np.uint8]) -> tuple[World, ...]:
    """The worlds whose pictures have this size, at least one; raises as `detect` does."""
    if images_BYXC.dtype != np.uint8 or images_BYXC.ndim != 4 or images_BYXC.shape[3] != 3:
        raise ValueError(f"images_BYXC is {images_BYXC.dtype} {images_BYXC.shape}, expected uint8 (B, Y, X, 3)")
    height, width = images_BYXC.shape[1:3]
    worlds = tuple(world for world in WORLDS.values() if world.pixels == height == width)
    if not worlds:
        sizes = ", ".join(f"{world.pixels}x{world.pixels} ({world.name})" for world in WORLDS.values())
        raise ConfigError(
            f"images are {height}x{width} pixels, and no embedded world has that size", hint=f"use {sizes}"
        )
    return worlds


def nearest_colors(image_YXC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Index into `COLORS` of each pixel, (Y, X); one more is background, two more is near no palette colour."""
    pixels_N3 = image_YXC.reshape(-1, 3).astype(np.float32)
    # |x - p|^2 = |x|^2 - 2 x.p + |p|^2; all sums stay below 2^24, so float32 is exact
    distance_NK = pixels_N3 @ (-2 * _PALETTE.T) + (_PALETTE**2).sum(axis=1)
    nearest_N = distance_NK.argmin(axis=1)
    squared_N = np.take_along_axis(distance_NK, nearest_N[:, None], axis=1)[:, 0] + (pixels_N3**2).sum(axis=1)
    nearest_N[squared_N > COLOR_TOLERANCE**2] = _UNKNOWN
    colors_YX: npt.NDArray[np.uint8] = nearest_N.astype(np.uint8).reshape(image_YXC.shape[:2])
    return colors_YX


def _detect(colors_YX: npt.NDArray[np.uint8], worlds: Sequence[World]) -> Found:
    labels_YX, number = ndimage.label(colors_YX != _BACKGROUND, structure=_TOUCHING)
    found: list[Detection] = []
    for blob, box in enumerate(ndimage.find_objects(labels_YX), start=1):
        detection = _recognize(colors_YX, labels_YX[box] == blob, box, worlds)
        if detection is not None:
            found.append(detection)
    return tuple(found), number - len(found)


def _recognize(
    colors_YX: npt.NDArray[np.uint8], blob_YX: npt.NDArray[np.bool_], box: tuple[slice, slice], worlds: Sequence[World]
) -> Detection | None:
    """The object that this blob is, or None."""
    rows, cols = box
    if not any(_has_a_place(rows, cols, world) for world in worlds):
        return None
    counts = np.bincount(colors_YX[box][blob_YX], minlength=_UNKNOWN + 1)
    color = int(counts.argmax())
    purity = counts[color] / counts.sum()
    if color == _UNKNOWN or purity < MIN_PURITY:
        return None
    templates = _templates(*blob_YX.shape)
    overlaps_S = _overlaps(blob_YX, templates)
    second, best = np.sort(overlaps_S)[-2:]
    shape = int(overlaps_S.argmax())
    if best < MIN_IOU or best - second < MIN_MARGIN:
        return None
    if best < 1 and _holes(blob_YX) != templates.holes_S[shape]:  # a perfect blob has the shape's holes
        return None
    return Detection(
        label=SHAPES[shape],
        confidence=float(best * purity),
        box=(float(cols.start), float(rows.start), float(cols.stop), float(rows.stop)),
        color=COLOR_NAMES[color],
    )


def _has_a_place(rows: slice, cols: slice, world: World) -> bool:
    """Whether an object of the world can fill this box.

    At the border only the exact boxes of whole objects will do: anything else there may be the rest of one cut off.
    """
    height, width = rows.stop - rows.start, cols.stop - cols.start
    sizes = [size for size in world.sizes if max(abs(height - size), abs(width - size)) <= SIZE_TOLERANCE]
    if rows.start > 0 and cols.start > 0 and rows.stop < world.pixels and cols.stop < world.pixels:
        return bool(sizes)
    starts = (rows.start, cols.start)
    return any(
        height == width == size and all((start - (world.patch - size) // 2) % world.patch == 0 for start in starts)
        for size in sizes
    )


@dataclass(frozen=True, slots=True)
class _Templates:
    """Every shape drawn in one box."""

    shapes_SYX: npt.NDArray[np.bool_]
    areas_S: npt.NDArray[np.int64]
    holes_S: tuple[int, ...]


@cache
def _templates(height: int, width: int) -> _Templates:
    shapes_SYX = np.stack([shape_mask(shape, height, width) for shape in SHAPES])
    return _Templates(shapes_SYX, shapes_SYX.sum(axis=(1, 2)), tuple(_holes(shape_YX) for shape_YX in shapes_SYX))


def _overlaps(blob_YX: npt.NDArray[np.bool_], templates: _Templates) -> npt.NDArray[np.float64]:
    """IoU with each shape."""
    common_S = (templates.shapes_SYX & blob_YX).sum(axis=(1, 2))
    overlaps_S: npt.NDArray[np.float64] = common_S / (templates.areas_S + blob_YX.sum() - common_S)
    return overlaps_S


def _holes(blob_YX: npt.NDArray[np.bool_]) -> int:
    """Gaps that the blob encloses: 1 in a ring, none in the other shapes."""
    return int(ndimage.label(~np.pad(blob_YX, 1))[1]) - 1

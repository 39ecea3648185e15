"""What T2I-CompBench's positions and numbers are judged by: boxes of named objects, and how near each of them is.

UniDet, the published detector, cannot be run here; Grounding DINO stands in. So these are scores of their own, and what
was looked with says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gcpo_bench.errors import CorruptDataError

from ..compbench import box_depth
from ..scorers.compute import exactness, usable_device
from ..scorers.tokens import words_digest
from . import depth as depths
from . import grounding_dino

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Eyes:
    detector: grounding_dino.GroundingDino
    depth: depths.Depth | None

    def __call__(self, images: Sequence[UInt8], names: Sequence[Sequence[str]]) -> Iterator[dict[str, list[Any]]]:
        """Of each image, as plain values: `size`, height and width of the picture, and lists that hold one value a box:
        `boxes`, in the detector's frame, and for each name `surest` and `least`, see `grounding`.

        With depth also `depths`: means over the box, 0 to 1, larger where nearer; the first with rows and columns
        exchanged, as published, the second without; None where a box holds no pixel.
        """
        depths = repeat(None) if self.depth is None else self.depth.maps(images)
        for image_YXC, found, depth_YX in zip(images, self.detector.detect(images, names), depths, strict=False):
            seen: dict[str, list[Any]] = {
                "size": list(image_YXC.shape[:2]),
                "boxes": [list(each.box) for each in found],
                "surest": [list(each.surest) for each in found],
                "least": [list(each.least) for each in found],
            }
            if depth_YX is not None:
                seen["depths"] = [
                    [_known(box_depth(each.box, depth_YX, exchanged=exchanged) / 255) for exchanged in (True, False)]
                    for each in found
                ]
            yield seen


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def build(detector: Path, *, depth: Path | None = None, device: str | None = None) -> tuple[Eyes, dict[str, Any]]:
    """The networks in these folders, and what they are.

    Raises:
        PrerequisiteError: weights are missing. CorruptDataError: they are not what they should be, or the self-test
        fails. ConfigError: there is no such device.
    """
    device = usable_device(device)
    network, digest = grounding_dino.load(detector, device=device)
    origin = {
        "detector": "grounding-dino",
        "detector_digest": digest,
        "detector_words": words_digest(network.tokenizer),
        "device": device.partition(":")[0],
    }
    if depth is None:
        eyes = Eyes(network, None)
    else:
        map_maker, depth_digest = depths.load(depth, device=device)
        eyes = Eyes(network, map_maker)
        origin |= {"depth": "dpt", "depth_digest": depth_digest}
    self_test(eyes)
    return eyes, {**origin, **exactness(device)}


def self_test(eyes: Eyes) -> None:
    """Raises CorruptDataError where a network's numbers are none, or others for the same picture."""
    page_YXC = np.full((64, 64, 3), 255, dtype=np.uint8)
    page_YXC[16:48, 16:48] = (220, 30, 30)
    first, again = (list(eyes([page_YXC], [["square", "dog"]])) for _ in range(2))
    if first != again:
        raise _broken("it sees something else in the same picture")
    if eyes.depth is not None and not np.ptp(eyes.depth(page_YXC)):
        raise _broken("everything is equally near")


def _broken(what: str) -> CorruptDataError:
    return CorruptDataError(
        f"T2I-CompBench's detector fails its self-test: {what}",
        hint="its weights are not what they should be: fetch them again; no score of theirs can be trusted",
    )

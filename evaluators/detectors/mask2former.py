"""Mask2Former, the detector of GenEval, on transformers' classes: an RGB image in, labelled instances with masks out.

No mmcv and no mmdet: the network is `Mask2FormerForUniversalSegmentation`, and what mmdet does before and after it is
written out here. Weights come through `mask2former_weights`.

Sources: mmdet 2.28 `mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco` (test pipeline; `instance_postprocess` with
panoptic_on False, instance_on True, max_per_image 100); Mask2Former, arXiv 2112.01527. Departures:

1. Of equally probable (query, class) pairs at the cut of 100 the first are taken; mmdet leaves that to `topk`.
2. Instances come in the order of (query, class); mmdet leaves theirs unsorted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation

from gcpo_bench.geneval_prompts import CLASSES

from ..scorers.compute import inference, require_numbers
from .resize import resize_antialiased, resize_bilinear

LONG_SIDE, SHORT_SIDE = 1333, 800
"""Pixels an image is scaled to fit into."""
PAD_MULTIPLE = 32
PAD_VALUE = 128
MEAN = np.array([123.675, 116.28, 103.53], dtype=np.float32)
STD = np.array(
    [58.395, 57.12, 57.375], dtype=np.float64
)  # OpenCV subtracts in single and multiplies in double precision
MAX_INSTANCES = 100
ROWS_ON_GPU = 8
"""Images of one size that go through the network together; on a CPU one does, whose numbers depend on no other."""
QUERIES_AT_ONCE = 10
"""Masks enlarged at once; it bounds memory and changes no number."""

UInt8 = npt.NDArray[np.uint8]
T = TypeVar("T")
Size = tuple[int, int]
"""Height, width."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Instance:
    """One (query, class) pair: a mask, what it shows, and how sure the network is."""

    label: str
    confidence: float
    """Class probability times the mean of the mask's probability inside it; a float32 number."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom of the mask, in pixels; right and bottom exclusive. Zeros where the mask is empty."""
    mask_YX: npt.NDArray[np.bool_]


# ---------------------------------------------------------------- before the network


def scaled_size(height: int, width: int) -> Size:
    """The largest size of the same proportions that fits into 1333 x 800, either way round."""
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def preprocess(image_YXC: UInt8, *, antialias: bool = False) -> tuple[npt.NDArray[np.float32], Size]:
    """An RGB image, scaled, padded and normalised: float32 (3, Y, X), and the size that is not padding.

    `antialias=False` is what mmdet does: bilinear samples, also where the image becomes smaller.
    """
    height, width = scaled_size(*image_YXC.shape[:2])
    scaled_YXC = (resize_antialiased if antialias else resize_bilinear)(image_YXC, height, width)
    padded_YXC = np.full(
        (*(-(-side // PAD_MULTIPLE) * PAD_MULTIPLE for side in (height, width)), 3), PAD_VALUE, "uint8"
    )
    padded_YXC[:height, :width] = scaled_YXC
    normalized_YXC = (padded_YXC.astype(np.float32) - MEAN) * (1 / STD)
    return np.ascontiguousarray(normalized_YXC.transpose(2, 0, 1), dtype=np.float32), (height, width)


# ---------------------------------------------------------------- after the network


@dataclass(frozen=True, slots=True, eq=False)
class _Masks:
    """What each query's mask looks like at the image's own size."""

    quality_Q: Tensor
    """Mean probability inside the mask."""
    boxes_Q4: Tensor
    masks_QYX: Tensor
    """bool."""


def instances(
    class_logits_QL: Tensor,
    mask_logits_QYX: Tensor,
    *,
    padded: Size,
    unpadded: Size,
    original: Size,
    classes: tuple[str, ...] = CLASSES,
    min_confidence: float = -1.0,
) -> list[Instance]:
    """The 100 most probable (query, class) pairs of one image, in the order of (query, class).

    Args:
        class_logits_QL: float; the last class is "no object".
        mask_logits_QYX: float, at a quarter of the padded size.
        padded, unpadded: sizes of the network's input with and without its padding.
        original: size of the image; masks and boxes are in its pixels.
        min_confidence: pairs that are not above it are left out, and their masks not kept.
    """
    probabilities_QL = class_logits_QL.float().softmax(dim=-1)[:, :-1]
    require_numbers(probabilities_QL, "Mask2Former")
    require_numbers(mask_logits_QYX, "Mask2Former")
    if probabilities_QL.shape[1] != len(classes):
        raise ValueError(f"the network tells {probabilities_QL.shape[1]} classes apart, {len(classes)} are named")
    flat_N = probabilities_QL.flatten()
    chosen_N = flat_N.sort(descending=True, stable=True).indices[:MAX_INSTANCES].sort().values
    found: list[Instance] = []
    queries_N = chosen_N // len(classes)
    for queries in torch.unique(queries_N).split(QUERIES_AT_ONCE):
        masks = _full_size(mask_logits_QYX[queries], padded, unpadded, original)
        rows = {query: row for row, query in enumerate(queries.tolist())}
        for pair in chosen_N[torch.isin(queries_N, queries)].tolist():
            row = rows[pair // len(classes)]
            confidence = float(flat_N[pair] * masks.quality_Q[row])
            if confidence > min_confidence:
                left, top, right, bottom = masks.boxes_Q4[row].tolist()
                found.append(
                    Instance(
                        label=classes[pair % len(classes)],
                        confidence=confidence,
                        box=(left, top, right, bottom),
                        mask_YX=masks.masks_QYX[row].cpu().numpy(),
                    )
                )
    return found


def _full_size(logits_QYX: Tensor, padded: Size, unpadded: Size, original: Size) -> _Masks:
    logits = F.interpolate(logits_QYX[None].float(), size=padded, mode="bilinear", align_corners=False)
    logits = logits[..., : unpadded[0], : unpadded[1]]
    logits_QYX = F.interpolate(logits, size=original, mode="bilinear", align_corners=False)[0]
    masks_QYX = logits_QYX > 0
    inside_QYX = masks_QYX.float()
    quality_Q = (logits_QYX.sigmoid() * inside_QYX).flatten(1).sum(1) / (inside_QYX.flatten(1).sum(1) + 1e-6)
    return _Masks(quality_Q, _boxes(masks_QYX), masks_QYX)


def _boxes(masks_QYX: Tensor) -> Tensor:
    """float32 (Q, 4): the tight box of each mask, zeros for an empty one."""
    edges = []
    for occupied in (masks_QYX.any(dim=1), masks_QYX.any(dim=2)):
        filled = occupied.int()
        first = filled.argmax(dim=1)
        end = filled.shape[1] - filled.flip(1).argmax(dim=1)
        edges += [first, torch.where(occupied.any(dim=1), end, 0)]
    left, right, top, bottom = edges
    return torch.stack([left, top, right, bottom], dim=1).float()


# ---------------------------------------------------------------- the detector


class Detector(Protocol):
    def detect(self, images: Sequence[UInt8], min_confidence: float = -1.0) -> Iterator[list[Instance]]:
        """The instances above `min_confidence` in each RGB image, uint8 (Y, X, 3)."""
        ...


def rows_on(device: str) -> int:
    return 1 if torch.device(device).type == "cpu" else ROWS_ON_GPU


def portions(items: Iterable[T], rows: int, key: Callable[[Any], Any] = np.shape) -> Iterator[list[T]]:
    """Neighbours of one key, by default images of one size, `rows` at most."""
    for _, run in groupby(items, key=key):
        alike = list(run)
        yield from (alike[start : start + rows] for start in range(0, len(alike), rows))


class Mask2Former:
    """Finds instances of COCO's classes; on a CPU one image at a time, as GenEval runs it."""

    def __init__(
        self,
        model: Mask2FormerForUniversalSegmentation,
        *,
        device: str = "cpu",
        antialias: bool = False,
        classes: tuple[str, ...] = CLASSES,
        rows: int | None = None,
    ) -> None:
        """`rows` go through the network together; None: 1 on a CPU, `ROWS_ON_GPU` elsewhere."""
        network: Any = model.train(mode=False)  # whose `to` is typed for transformers' own wrappers only
        self.model = network.to(device)
        self.device = device
        self.antialias = antialias
        self.classes = classes
        self.rows = rows or rows_on(device)

    def __call__(self, image_YXC: UInt8, min_confidence: float = -1.0) -> list[Instance]:
        """The instances above `min_confidence` in an RGB image, uint8 (Y, X, 3)."""
        return next(self.detect([image_YXC], min_confidence))

    def detect(self, images: Sequence[UInt8], min_confidence: float = -1.0) -> Iterator[list[Instance]]:
        """The same for each image, in order. Neighbours of one size may go through the network together."""
        for alike in portions(images, self.rows):
            yield from self._together(alike, min_confidence)

    @inference
    def _together(self, images_BYXC: Sequence[UInt8], min_confidence: float) -> list[list[Instance]]:
        prepared = [preprocess(image_YXC, antialias=self.antialias) for image_YXC in images_BYXC]
        pixels_BCYX = np.stack([pixels_CYX for pixels_CYX, _ in prepared])
        output = self.model(pixel_values=torch.from_numpy(pixels_BCYX).to(self.device))
        return [
            instances(
                class_logits_QL,
                mask_logits_QYX,
                padded=(pixels_BCYX.shape[2], pixels_BCYX.shape[3]),
                unpadded=prepared[0][1],
                original=(images_BYXC[0].shape[0], images_BYXC[0].shape[1]),
                classes=self.classes,
                min_confidence=min_confidence,
            )
            for class_logits_QL, mask_logits_QYX in zip(
                output.class_queries_logits, output.masks_queries_logits, strict=True
            )
        ]

"""What GenEval sees in an image: objects with boxes and, where a prompt asks for them, colours.

The fidelity says how the image reaches the two networks; see `evaluators.fidelity`.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import Mask2FormerForUniversalSegmentation
from transformers.utils import logging as transformers_logging

from gcpo_bench.catalogue import GENEVAL_CLASSIFIER, GENEVAL_DETECTOR
from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.weights import locate, model_digest

from ..fidelity import BACKENDS, MIN_CONFIDENCE, Fidelity
from ..scorers.compute import exactness, usable_device
from ..scorers.tokens import words_digest
from ..types import Detection
from . import colors, mask2former_weights, mmdet
from .mask2former import ROWS_ON_GPU, Detector, Instance, Mask2Former, instances, preprocess

UInt8 = npt.NDArray[np.uint8]
TRANSFORMERS, MMDET = BACKENDS
CLASSIFIED = 16
"""Of a class that a colour is asked of, the colours of so many of the surest objects are told: all that can count."""


@dataclass(frozen=True, slots=True)
class GenEvalVision:
    """Images in, detections out."""

    detector: Detector
    classifier: colors.ColorClassifier
    fidelity: Fidelity

    def __call__(self, images: Sequence[UInt8], colored: Sequence[Collection[str]]) -> Iterator[list[Detection]]:
        """Objects above `MIN_CONFIDENCE` in each RGB image, those of its classes in `colored` with their colour."""
        if quality := self.fidelity.jpeg_quality:
            images = [through_jpeg(image_YXC, quality) for image_YXC in images]
        shown = [np.ascontiguousarray(each[..., ::-1]) for each in images] if self.fidelity.swap_red_blue else images
        found_in = zip(images, self.detector.detect(shown, MIN_CONFIDENCE), colored, strict=True)
        while some := list(islice(found_in, ROWS_ON_GPU if self.classifier.together else 1)):
            asked = [(image, index) for image, (_, found, labels) in enumerate(some) for index in _asked(found, labels)]
            told = self.classifier.tell([(some[image][0], some[image][1][index]) for image, index in asked])
            names = dict(zip(asked, told, strict=True))
            for image, (_, found, _) in enumerate(some):
                yield [
                    Detection(
                        label=each.label, confidence=each.confidence, box=each.box, color=names.get((image, index))
                    )
                    for index, each in enumerate(found)
                ]


def _asked(found: Sequence[Instance], colored: Collection[str]) -> list[int]:
    """Whose colour is asked, class by class; as `geneval.keep` orders them: surest first, of equals the later one."""
    rows: list[int] = []
    for label in sorted(colored):
        of_class = (index for index, each in enumerate(found) if each.label == label)
        rows += sorted(of_class, key=lambda index: (-found[index].confidence, -index))[:CLASSIFIED]
    return rows


def through_jpeg(image_YXC: UInt8, quality: int) -> UInt8:
    """The image as a client that sends JPEG lets a server see it."""
    buffer = io.BytesIO()
    Image.fromarray(image_YXC).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as picture:
        return np.asarray(picture.convert("RGB"))


def build(
    fidelity: Fidelity,
    *,
    backend: str = TRANSFORMERS,
    detector: Path | None = None,
    classifier: Path | None = None,
    device: str = "",
) -> tuple[GenEvalVision, dict[str, Any]]:
    """GenEval's eyes, and which weights they have.

    Args:
        backend: whose code runs the detector, one of `BACKENDS`.
        detector: an mmdet checkpoint or a transformers folder instead of the published one.
        classifier: a CLIP folder instead of the published one.
        device: "cpu", "cuda", "cuda:1"; empty for a GPU where there is one.
    Raises:
        PrerequisiteError: weights are missing. CorruptDataError: they are not what they should be, or the self-test
        fails. ConfigError: there is no such device, or the backend cannot read these weights.
    """
    device = usable_device(device)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    eyes, origin = (_mmdet if backend == MMDET else _transformers)(detector, device, fidelity.antialias)
    folder = classifier or locate(GENEVAL_CLASSIFIER)
    model, tokenizer = colors.load(folder, "quick_gelu" if fidelity.quick_gelu else "gelu")
    vision = GenEvalVision(
        eyes,
        colors.ColorClassifier(model, tokenizer, device=device, half_precision=fidelity.half_precision),
        fidelity,
    )
    self_test(vision)
    label = "" if classifier else color_test(vision.classifier)
    return vision, {
        **origin,
        **({"label": label} if label else {}),
        "classifier": "published" if classifier is None else "other",
        "classifier_digest": model_digest(folder),
        "classifier_words": words_digest(tokenizer),
        "device": device.partition(":")[0],
    }


def _mmdet(path: Path | None, device: str, antialias: bool) -> tuple[Detector, dict[str, Any]]:
    if path is not None and path.is_dir():
        raise ConfigError(
            f"{path} is a folder in transformers' layout, which mmdet does not read",
            hint="name an mmdet checkpoint, or leave --option backend=mmdet out",
        )
    file = path or locate(GENEVAL_DETECTOR)
    network, digest = mmdet.load(file, sha256_prefix=_prefix(path), device=device)
    origin = {"backend": MMDET, **mmdet.versions(), **_origin(digest), **exactness(device)}
    return mmdet.MmdetMask2Former(network, device=device, antialias=antialias), origin


def _transformers(path: Path | None, device: str, antialias: bool) -> tuple[Detector, dict[str, Any]]:
    network, origin = _network(path)
    return Mask2Former(network, device=device, antialias=antialias), {
        "backend": TRANSFORMERS,
        **origin,
        **exactness(device),
    }


def _network(path: Path | None) -> tuple[Mask2FormerForUniversalSegmentation, dict[str, Any]]:
    if path is not None and path.is_dir():
        try:
            loaded: Any = Mask2FormerForUniversalSegmentation.from_pretrained(
                path, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CorruptDataError(
                f"{path} holds no Mask2Former that can be used: {reason}",
                hint="it is to be a folder in transformers' layout, or an mmdet checkpoint",
            ) from error
        model, loading = loaded
        if absent := sorted(name for name in loading["missing_keys"] if not mask2former_weights.OURS.search(name)):
            raise CorruptDataError(
                f"{path} lacks {len(absent)} of the detector's weights, the first is {absent[0]!r}",
                hint="fetch the folder again",
            )
        return model, {"detector": "other", "detector_digest": model_digest(path)}
    file = path or locate(GENEVAL_DETECTOR)
    model, digest = mask2former_weights.load(file, sha256_prefix=_prefix(path))
    return model, _origin(digest)


def _prefix(path: Path | None) -> str:
    """How the digest of the checkpoint must begin."""
    return GENEVAL_DETECTOR.sha256 if path is None else ""


def _origin(digest: str) -> dict[str, str]:
    is_published = digest.startswith(GENEVAL_DETECTOR.sha256)
    return {"detector": "published" if is_published else "other", "detector_digest": f"sha256:{digest}"}


# ---------------------------------------------------------------- self-test


def self_test(vision: GenEvalVision) -> None:
    """Raises CorruptDataError where a step with a known outcome gives another one.

    Steps before and after the networks are checked by value, the networks themselves by running them on a picture:
    numbers must be finite and boxes inside the picture.
    """
    page_YXC = np.zeros((40, 60, 3), dtype=np.uint8)
    page_YXC[:, :, 0] = 255
    page_YXC[10:30, 20:50] = (0, 0, 255)
    pixels_CYX, _ = preprocess(page_YXC)
    _expect("red is the first channel", pixels_CYX[0, 0, 0] > 2 > 0 > pixels_CYX[2, 0, 0])
    mask_YX = torch.full((8, 8), -9.0)
    mask_YX[2:6, 4:] = 9.0
    (found,) = instances(
        torch.tensor([[0.0, 9.0, 0.0]]), mask_YX[None], padded=(32, 32), unpadded=(32, 32), original=(32, 32),
        classes=("a", "b"), min_confidence=0.5,
    )  # fmt: skip
    _expect("a mask has its box", (found.label, found.box) == ("b", (16.0, 8.0, 32.0, 24.0)))
    blue = Instance(label="cup", confidence=1.0, box=(20, 10, 50, 30), mask_YX=(page_YXC == (0, 0, 255)).all(axis=-1))
    cut_YXC = np.asarray(colors.crop(page_YXC, blue))
    _expect("a crop shows its object", cut_YXC.shape == (20, 30, 3) and (cut_YXC == (0, 0, 255)).all())
    _expect("a colour is one of ten", vision.classifier(page_YXC, [blue])[0] in colors.COLORS)
    seen, blank = (next(vision.detector.detect([each])) for each in (page_YXC, np.zeros_like(page_YXC)))
    _expect("the detector sees another picture otherwise", _numbers(seen) != _numbers(blank))
    for each in seen:
        left, top, right, bottom = each.box
        inside = 0 <= left <= right <= 60 and 0 <= top <= bottom <= 40
        _expect("the detector's numbers are in range", 0 <= each.confidence <= 1 and inside)


def _numbers(found: Sequence[Instance]) -> list[tuple[float, tuple[float, float, float, float]]]:
    return [(each.confidence, each.box) for each in found]


SWATCHES = {"red": (230, 20, 20), "green": (20, 160, 40), "blue": (20, 40, 220), "yellow": (255, 230, 0)}


def color_test(classifier: colors.ColorClassifier) -> str:
    """What is strange about its answers to plain colours, to be told with every score; empty where nothing is.

    Raises CorruptDataError where all four are one colour to it: weights that were never trained, or are another's.
    """
    names = {}
    for color, rgb in SWATCHES.items():
        patch_YXC = np.full((64, 64, 3), rgb, dtype=np.uint8)
        whole = Instance(label="cup", confidence=1.0, box=(0, 0, 64, 64), mask_YX=np.ones((64, 64), dtype=bool))
        (names[color],) = classifier(patch_YXC, [whole])
    _expect(f"plain {', '.join(names)} are not all {names['red']}", len(set(names.values())) > 1)
    wrong = [f"{color} {name}" for color, name in names.items() if name != color]
    return f"the colour classifier calls plain {', '.join(wrong)}: do not trust colours" if len(wrong) > 1 else ""


def _expect(what: str, holds: object) -> None:
    if not holds:
        raise CorruptDataError(
            f"evaluator 'geneval' self-test failed: {what}",
            hint="reinstall gcpo-bench and its dependencies, and fetch the weights again; no score can be trusted",
        )

"""HPS v2.0 and v2.1 (Human Preference Score v2, arXiv 2306.09341): cosine of picture and prompt in a tuned ViT-H-14.

Raw scale: the cosine, about 0.2 to 0.35; tables print it times 100. The two versions are not comparable.
Source: tgxs002/HPSv2 `hpsv2/img_score.py`, `src/training/train.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gcpo_bench.catalogue import CLIP_WORDS, HPS_V20, HPS_V21
from gcpo_bench.weights import Weights, locate

from .clip import Clip, load
from .clip_weights import Architecture
from .compute import CPU, Compute, Precision, on
from .images import HPS as PREPROCESSING
from .images import Preprocessing
from .types import Images, Score, check_images, finite

OBSERVER = 1
"""Raised when a score can change; pictures that were scored before are then scored again."""
Version = Literal["v2.0", "v2.1"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HPS:
    clip: Clip
    version: Version = "v2.1"
    unit: str = "cosine"

    @property
    def name(self) -> str:
        return f"hps-{self.version}"

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"scorer": self.name, "observer": OBSERVER, **self.clip.identity}

    def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
        return finite(self.clip.cosines(check_images(images, prompts), prompts), "the cosine")


def load_hps(
    weights: Path,
    tokenizer: Path,
    *,
    version: Version = "v2.1",
    preprocessing: Preprocessing = PREPROCESSING,
    architecture: str | Architecture = "ViT-H-14",
    compute: Compute = CPU,
) -> HPS:
    """From HPS_v2.1_compressed.pt (or v2) and CLIP's tokenizer; raises as `clip.load` does."""
    clip = load(weights, tokenizer, architecture, preprocessing, compute=compute)
    return HPS(clip=clip, version=version)


def hps_v21(
    *,
    device: str | None = None,
    precision: Precision = "float32",
    antialias: bool = True,
    fit: Literal["pad", "crop"] = "pad",
) -> HPS:
    """From the weights folder; on the GPU where there is one, or on `device`."""
    return _published("v2.1", HPS_V21, replace(PREPROCESSING, antialias=antialias, fit=fit), on(device, precision))


def hps_v20(
    *,
    device: str | None = None,
    precision: Precision = "float32",
    antialias: bool = True,
    fit: Literal["pad", "crop"] = "pad",
) -> HPS:
    """As `hps_v21`."""
    return _published("v2.0", HPS_V20, replace(PREPROCESSING, antialias=antialias, fit=fit), on(device, precision))


def _published(version: Version, row: Weights, preprocessing: Preprocessing, compute: Compute) -> HPS:
    return load_hps(locate(row), locate(CLIP_WORDS), version=version, preprocessing=preprocessing, compute=compute)

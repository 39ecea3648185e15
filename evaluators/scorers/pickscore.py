"""PickScore v1 (arXiv 2305.01569): exp(logit_scale) * cosine in a tuned ViT-H-14, as its own code gives it.

Raw scale about 20 to 23. Flow-GRPO divides by 26, the GCPO reward by 100; evalscope gives the bare cosine.
Source: yuvalkirstain/PickScore, the model card's code: transformers' processor, so the crop rounds down and HTML
entities stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcpo_bench.catalogue import CLIP_WORDS, PICKSCORE
from gcpo_bench.weights import locate

from .clip import Clip, load
from .clip_weights import Architecture
from .compute import CPU, Compute, Precision, on
from .images import CLIP_TRANSFORMERS, Preprocessing
from .types import Images, Score, check_images, finite

OBSERVER = 1
"""Raised when a score can change; pictures that were scored before are then scored again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PickScore:
    clip: Clip
    name: str = "pickscore"
    unit: str = "logit"

    @property
    def scale(self) -> float:
        """exp(logit_scale), part of the weights; a score divided by it is the cosine."""
        return math.exp(self.clip.model.logit_scale.item())

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"scorer": self.name, "observer": OBSERVER, **self.clip.identity, "scale": self.scale}

    def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
        cosines = self.clip.cosines(check_images(images, prompts), prompts)
        return finite([self.scale * cosine for cosine in cosines], "the logit")


def load_pickscore(
    weights: Path,
    tokenizer: Path,
    *,
    architecture: str | Architecture = "ViT-H-14",
    preprocessing: Preprocessing = CLIP_TRANSFORMERS,
    compute: Compute = CPU,
) -> PickScore:
    """From the folder PickScore_v1 and CLIP's tokenizer; raises as `clip.load` does."""
    return PickScore(clip=load(weights, tokenizer, architecture, preprocessing, unescape=False, compute=compute))


def pickscore(*, device: str | None = None, precision: Precision = "float32") -> PickScore:
    """From the weights folder, on the GPU where there is one."""
    return load_pickscore(locate(PICKSCORE), locate(CLIP_WORDS), compute=on(device, precision))

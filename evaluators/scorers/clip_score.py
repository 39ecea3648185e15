"""CLIPScore: cosine of picture and prompt in OpenAI's CLIP, ViT-L/14 or ViT-B/32 (with QuickGELU).

Raw scale: the cosine, about 0.2 to 0.35. T2I-CompBench uses ViT-B/32. With ViT-L/14 there are two ways to resize, which
are scorers of their own: `clip-score` as CLIP itself does it (Pillow, bicubic), `clip-score-tensor` as DiffusionNFT
(bilinear, on floats; `images.CLIP_FLOAT_BILINEAR`). torchmetrics prints max(0, mean of 100 * cosine): its 0 lies under
the mean over all pairs, not under each pair.
Sources: Karine-Huang/T2I-CompBench `CLIPScore_eval`, NVlabs/DiffusionNFT `clip_scorer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcpo_bench.catalogue import CLIP_B32, CLIP_SCORER, CLIP_WORDS
from gcpo_bench.weights import locate

from .clip import Clip, load
from .clip_weights import Architecture
from .compute import CPU, Compute, Precision, on
from .images import CLIP, CLIP_FLOAT_BILINEAR, Preprocessing
from .types import Images, Score, check_images, finite

OBSERVER = 1
"""Raised when a score can change; pictures that were scored before are then scored again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipScore:
    clip: Clip
    name: str = "clip-score"
    unit: str = "cosine"

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"scorer": self.name, "observer": OBSERVER, **self.clip.identity}

    def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
        return finite(self.clip.cosines(check_images(images, prompts), prompts), "the cosine")


def load_clip_score(
    weights: Path,
    tokenizer: Path,
    *,
    name: str = "clip-score",
    architecture: str | Architecture = "ViT-L-14",
    preprocessing: Preprocessing = CLIP,
    compute: Compute = CPU,
) -> ClipScore:
    """From OpenAI's weights and tokenizer; raises as `clip.load` does."""
    return ClipScore(clip=load(weights, tokenizer, architecture, preprocessing, compute=compute), name=name)


def clip_score(*, device: str | None = None, precision: Precision = "float32") -> ClipScore:
    """ViT-L/14 from the weights folder, on the GPU where there is one."""
    return load_clip_score(locate(CLIP_SCORER), locate(CLIP_WORDS), compute=on(device, precision))


def clip_score_tensor(*, device: str | None = None, precision: Precision = "float32") -> ClipScore:
    """As `clip_score`, with DiffusionNFT's resize."""
    return load_clip_score(
        locate(CLIP_SCORER),
        locate(CLIP_WORDS),
        name="clip-score-tensor",
        preprocessing=CLIP_FLOAT_BILINEAR,
        compute=on(device, precision),
    )


def clip_score_b32(*, device: str | None = None, precision: Precision = "float32") -> ClipScore:
    """ViT-B/32 from the weights folder, on the GPU where there is one."""
    return load_clip_score(
        locate(CLIP_B32),
        locate(CLIP_WORDS),
        name="clip-score-b32",
        architecture="ViT-B-32",
        compute=on(device, precision),
    )

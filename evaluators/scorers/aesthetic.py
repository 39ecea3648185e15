"""LAION aesthetic predictor v2: a linear head on OpenAI's ViT-L/14 picture features of unit length; reads no prompt.

Raw scale about 1 to 10, typically 5 to 6.5. With the wrong activation in CLIP (plain GELU) one picture was measured at
4.44 instead of 5.05 (ailia-models issue 1810); `clip_weights` refuses that.
Source: christophschuhmann/improved-aesthetic-predictor, as Flow-GRPO uses it: transformers' processor, float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcpo_bench.catalogue import AESTHETIC_HEAD, CLIP_SCORER
from gcpo_bench.files import checksum
from gcpo_bench.weights import locate

from .checkpoints import fill, read_state
from .clip import Clip, load
from .clip_weights import Architecture
from .compute import CPU, Compute, Precision, inference, on
from .heads import Head
from .images import CLIP_TRANSFORMERS, Preprocessing
from .types import Images, Score, check_images, finite

OBSERVER = 1
"""Raised when a score can change; pictures that were scored before are then scored again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aesthetic:
    clip: Clip
    head: Head
    head_weights: str
    """Checksum."""
    name: str = "aesthetic"
    unit: str = "points"

    def __post_init__(self) -> None:
        self.clip.compute.place(self.head)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"scorer": self.name, "observer": OBSERVER, **self.clip.identity, "head": self.head_weights}

    @inference
    def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
        values: list[float] = []
        pictures = check_images(images, prompts)
        for portion in self.clip.compute.portions(len(pictures)):
            values += self.head(self.clip.picture_features(pictures[portion]).float()).tolist()
        return finite(values, "the prediction")


def load_aesthetic(
    weights: Path,
    head: Path,
    *,
    architecture: str | Architecture = "ViT-L-14",
    preprocessing: Preprocessing = CLIP_TRANSFORMERS,
    compute: Compute = CPU,
) -> Aesthetic:
    """From OpenAI's ViT-L/14 and sac+logos+ava1-l14-linearMSE.pth; raises as `load_clip` does."""
    state, digest = read_state(head), checksum(head)
    clip = load(weights, None, architecture, preprocessing, compute=compute)
    width = clip.model.visual_projection.out_features
    return Aesthetic(
        clip=clip, head=fill(lambda: Head(width), state, "LAION's aesthetic predictor"), head_weights=digest
    )


def aesthetic(*, device: str | None = None, precision: Precision = "float32") -> Aesthetic:
    """From the weights folder, on the GPU where there is one."""
    return load_aesthetic(locate(CLIP_SCORER), locate(AESTHETIC_HEAD), compute=on(device, precision))

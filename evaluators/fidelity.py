"""Whose GenEval is run? How an image reaches detector and classifier, as named flags that every score carries.

Three programs call themselves GenEval and see different pixels:

* `official`: GenEval's own script in its own environment (af4902f; open_clip 2.20.0), which made the published numbers.
* `reward-server`: what Flow-GRPO and GCPO trained against (reward-server 92ac29f). Its clients send JPEG, it hands RGB
  arrays to a detector that takes them for BGR, and its open_clip (2.31.0) runs CLIP with the wrong activation.
* `fixed`: as `official`, with an antialiased reduction of images larger than the detector's input, and single precision
  throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gcpo_bench.errors import ConfigError, did_you_mean

MIN_CONFIDENCE = 0.1
"""Detections below are not kept, and no threshold may be set lower; GenEval's own are 0.3 and 0.9."""

BACKENDS = ("transformers", "mmdet")
"""Whose code runs the detector; the first is the default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    name: str
    swap_red_blue: bool = False
    """The detector sees the channels in the wrong order."""
    jpeg_quality: int = 0
    """Images pass through JPEG of this quality first; 0 leaves them as they are."""
    quick_gelu: bool = True
    """CLIP runs with the activation it was trained with, not with GELU."""
    antialias: bool = False
    """Images are made smaller with an antialiasing filter; the original takes bare bilinear samples."""
    half_precision: bool = True
    """On CUDA the colour classifier runs in float16, as the original does; no effect on CPU."""


FIDELITIES: Mapping[str, Fidelity] = {
    each.name: each
    for each in (
        Fidelity(name="official"),
        Fidelity(name="reward-server", swap_red_blue=True, jpeg_quality=75, quick_gelu=False),
        Fidelity(name="fixed", antialias=True, half_precision=False),
    )
}


def get(name: str) -> Fidelity:
    """Raises ConfigError for a name that is none."""
    if name not in FIDELITIES:
        raise ConfigError(f"unknown fidelity {name!r}", hint=did_you_mean(name, FIDELITIES))
    return FIDELITIES[name]


def backend(name: str | None) -> str:
    """The default for None. Raises ConfigError for a name that is none."""
    if name is not None and name not in BACKENDS:
        raise ConfigError(f"GenEval's backend cannot be {name!r}", hint=f"known: {', '.join(BACKENDS)}")
    return name or BACKENDS[0]

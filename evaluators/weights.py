"""Published weights that evaluators read: what they are for, where they come from, how to know that a copy is right.

None is shipped, and nothing is downloaded behind the user's back. They lie in the weights folder (see
`gcpo_bench.files.storage`), each under its own name, or wherever an option points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gcpo_bench.errors import ConfigError, PrerequisiteError, did_you_mean
from gcpo_bench.files import storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One published checkpoint: a file, or a folder in transformers' layout."""

    name: str
    """Its file or folder in the weights folder."""
    purpose: str
    source: str
    """URL of the file, or hub id of the folder."""
    licence: str
    size: str
    """About how much there is to fetch."""
    files: tuple[str, ...] = ()
    """What a folder must hold; empty for a single file."""
    sha256: str = ""
    """Of the file, or how it begins; empty where it is not known."""

    @property
    def path(self) -> Path:
        return storage("weights") / self.name


_MASK2FORMER = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"
_HUB_FILES = ("config.json", "model.safetensors")
_TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")

_WEIGHTS = (
    Weights(
        name=f"{_MASK2FORMER}_20220504_001756-743b7d99.pth",
        purpose="GenEval's detector: Mask2Former, Swin-S, COCO instances, as trained by mmdet 2.x",
        source=f"https://download.openmmlab.com/mmdetection/v2.0/mask2former/{_MASK2FORMER}/"
        f"{_MASK2FORMER}_20220504_001756-743b7d99.pth",
        licence="Apache-2.0",
        size="275 MB",
        sha256="743b7d99",  # OpenMMLab's file names end in the first eight digits
    ),
    Weights(
        name="clip-vit-large-patch14",
        purpose="GenEval's colour classifier",
        source="openai/clip-vit-large-patch14",
        licence="MIT",
        size="1.7 GB",
        files=(*_HUB_FILES, *_TOKENIZER_FILES),
    ),
    Weights(
        name="mask2former-swin-small-coco-instance",
        purpose="a stand-in for GenEval's detector: the same network as trained by its authors; other scores",
        source="facebook/mask2former-swin-small-coco-instance",
        licence="see the model card",
        size="275 MB",
        files=_HUB_FILES,
    ),
)
WEIGHTS: Mapping[str, Weights] = {each.name: each for each in _WEIGHTS}
GENEVAL_DETECTOR, GENEVAL_CLASSIFIER = _WEIGHTS[0], _WEIGHTS[1]


def get(name: str) -> Weights:
    """Raises ConfigError for a name that is none."""
    if name not in WEIGHTS:
        raise ConfigError(f"unknown weights {name!r}", hint=did_you_mean(name, WEIGHTS))
    return WEIGHTS[name]


def locate(weights: Weights) -> Path:
    """Where these weights lie. Raises PrerequisiteError, with what to do, where a file is missing."""
    path = weights.path
    missing = [name for name in weights.files if not (path / name).is_file()]
    if path.exists() and not missing:
        return path
    what = f"{path / missing[0]}" if missing and path.exists() else f"{path}"
    how = f"download {weights.source} to {path}"
    if weights.files:
        how = f"hf download {weights.source} --local-dir {path}"
    raise PrerequisiteError(f"{weights.purpose}: {what} is missing ({weights.size})", hint=how)

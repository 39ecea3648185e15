"""Where the published weights of the scorers come from, and where they are looked for.

Nothing is downloaded here. Each row lies in the weights folder (`gcpo_bench.files.storage`) under its name. Sizes
marked `about` and licences marked `?` were not checked at their source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gcpo_bench.errors import CorruptDataError, PrerequisiteError
from gcpo_bench.files import storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    name: str
    """File or folder in the weights folder."""
    source: str
    """Hub id, or where else it is published."""
    licence: str
    size: str
    files: tuple[str, ...] = ()
    """What a folder must hold; empty for a single file."""
    sha256: str = ""
    """Of the file, or how it begins; empty where it is not known."""
    num_bytes: int | None = None
    """Exact size where it is known; another one is refused."""

    @property
    def path(self) -> Path:
        return storage("weights") / self.name


_CLIP_WORDS = ("vocab.json", "merges.txt")
CLIP_L14 = Published(
    name="clip-vit-large-patch14",
    source="openai/clip-vit-large-patch14",
    licence="MIT",
    size="about 1.7 GB",
    files=("config.json", "model.safetensors"),
)
CLIP_B32 = Published(
    name="clip-vit-base-patch32",
    source="openai/clip-vit-base-patch32",
    licence="MIT",
    size="about 0.6 GB",
    files=("config.json",),
)
CLIP_TOKENIZER = Published(
    name="clip-vit-large-patch14",
    source="openai/clip-vit-large-patch14",
    licence="MIT",
    size="2 MB without the weights",
    files=_CLIP_WORDS,
)
BERT_TOKENIZER = Published(
    name="bert-base-uncased",
    source="google-bert/bert-base-uncased",
    licence="Apache-2.0",
    size="0.2 MB without the weights",
    files=("vocab.txt",),
)
HPS_V20 = Published(name="HPS_v2_compressed.pt", source="xswu/HPSv2", licence="Apache-2.0", size="about 2.0 GB")
HPS_V21 = Published(name="HPS_v2.1_compressed.pt", source="xswu/HPSv2", licence="Apache-2.0", size="about 2.0 GB")
PICKSCORE = Published(
    name="PickScore_v1",
    source="yuvalkirstain/PickScore_v1",
    licence="MIT?",
    size="about 3.9 GB",
    files=("config.json",),
)
AESTHETIC_HEAD = Published(
    name="sac+logos+ava1-l14-linearMSE.pth",
    source="github.com/christophschuhmann/improved-aesthetic-predictor",
    licence="Apache-2.0?",
    size="3.7 MB",
    num_bytes=3_714_759,
)
IMAGE_REWARD = Published(name="ImageReward.pt", source="THUDM/ImageReward", licence="Apache-2.0", size="1.8 GB")
BLIP_VQA = Published(
    name="model_base_vqa_capfilt_large.pth",
    source="https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/model_base_vqa_capfilt_large.pth",
    licence="BSD-3-Clause",
    size="1.5 GB",
)

NEEDS: Mapping[str, Sequence[Published]] = {
    "hps-v2.0": (HPS_V20, CLIP_TOKENIZER),
    "hps-v2.1": (HPS_V21, CLIP_TOKENIZER),
    "clip-score": (CLIP_L14, CLIP_TOKENIZER),
    "clip-score-b32": (CLIP_B32, CLIP_TOKENIZER),
    "pickscore": (PICKSCORE, CLIP_TOKENIZER),
    "aesthetic": (CLIP_L14, AESTHETIC_HEAD),
    "image-reward": (IMAGE_REWARD, BERT_TOKENIZER),
    "blip-vqa": (BLIP_VQA, BERT_TOKENIZER),
}
"""Scorer -> what must lie in the weights folder."""


def find(row: Published) -> Path:
    """The file or folder.

    Raises PrerequisiteError where it is not there, CorruptDataError where it has not its published size.
    """
    missing = [row.path / name for name in row.files if not (row.path / name).is_file()]
    if missing or not row.path.exists():
        raise PrerequisiteError(
            f"{missing[0] if missing else row.path} is missing",
            hint=f"put {row.name} ({row.size}, {row.licence}) from {row.source} into {storage('weights')}",
        )
    if row.num_bytes is not None and row.path.stat().st_size != row.num_bytes:
        raise CorruptDataError(
            f"{row.path} has {row.path.stat().st_size:,} bytes, published are {row.num_bytes:,}", hint="fetch it again"
        )
    return row.path


def require(scorers: Sequence[str]) -> None:
    """Raises PrerequisiteError that names everything these scorers lack, before anything is loaded."""
    lacking: dict[str, PrerequisiteError] = {}
    for scorer in scorers:
        for row in NEEDS.get(scorer, ()):
            try:
                find(row)
            except PrerequisiteError as error:
                lacking.setdefault(scorer, error)
    if lacking:
        raise PrerequisiteError(
            "; ".join(f"{scorer}: {error}" for scorer, error in lacking.items()),
            hint="; ".join(dict.fromkeys(error.hint for error in lacking.values())),
        )

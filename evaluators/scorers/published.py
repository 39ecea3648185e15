"""Where the published weights of the scorers come from, and where they are looked for.

Nothing is downloaded here. A file or folder is looked for under the models folder: `$GCPO_BENCH_MODELS`, else
`~/.cache/gcpo-bench/models`. Sizes marked `about` and licences marked `?` are from memory and were not checked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gcpo_bench.errors import CorruptDataError, PrerequisiteError

MODELS_VARIABLE = "GCPO_BENCH_MODELS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    path: str
    """File or folder under the models folder."""
    source: str
    """Where it is published."""
    licence: str
    size: str
    num_bytes: int | None = None
    """Exact size where it is known; another one is refused."""
    sha256: str | None = None
    """Digest, or its published first digits, where known."""


PUBLISHED: Mapping[str, Published] = {
    "hps-v2.0": Published(
        path="HPS_v2_compressed.pt", source="huggingface.co/xswu/HPSv2", licence="Apache-2.0", size="about 2.0 GB"
    ),
    "hps-v2.1": Published(
        path="HPS_v2.1_compressed.pt", source="huggingface.co/xswu/HPSv2", licence="Apache-2.0", size="about 2.0 GB"
    ),
    "clip-vit-l-14": Published(
        path="clip-vit-large-patch14",
        source="huggingface.co/openai/clip-vit-large-patch14",
        licence="MIT",
        size="about 1.7 GB",
    ),
    "clip-vit-b-32": Published(
        path="clip-vit-base-patch32",
        source="huggingface.co/openai/clip-vit-base-patch32",
        licence="MIT",
        size="about 0.6 GB",
    ),
    "pickscore": Published(
        path="PickScore_v1", source="huggingface.co/yuvalkirstain/PickScore_v1", licence="MIT?", size="about 3.9 GB"
    ),
    "aesthetic": Published(
        path="sac+logos+ava1-l14-linearMSE.pth",
        source="github.com/christophschuhmann/improved-aesthetic-predictor",
        licence="Apache-2.0?",
        size="3.7 MB",
        num_bytes=3_714_759,
    ),
    "image-reward": Published(
        path="ImageReward.pt", source="huggingface.co/THUDM/ImageReward", licence="Apache-2.0", size="1.8 GB"
    ),
    "blip-vqa": Published(
        path="model_base_vqa_capfilt_large.pth",
        source="storage.googleapis.com/sfr-vision-language-research/BLIP/models",
        licence="BSD-3-Clause",
        size="1.5 GB",
    ),
    "clip-tokenizer": Published(
        path="clip-vit-large-patch14",
        source="huggingface.co/openai/clip-vit-large-patch14 (tokenizer.json)",
        licence="MIT",
        size="2 MB",
    ),
    "bert-tokenizer": Published(
        path="bert-base-uncased",
        source="huggingface.co/google-bert/bert-base-uncased (tokenizer.json)",
        licence="Apache-2.0",
        size="0.5 MB",
    ),
}


def models_folder() -> Path:
    given = os.environ.get(MODELS_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "gcpo-bench" / "models"


def find(name: str) -> Path:
    """The file or folder of a row of `PUBLISHED`.

    Raises PrerequisiteError where it is not there, CorruptDataError where it has not its published size.
    """
    row = PUBLISHED[name]
    path = models_folder() / row.path
    if not path.exists():
        raise PrerequisiteError(
            f"the weights {name!r} are not at {path}",
            hint=f"put {row.path} ({row.size}, {row.licence}) from {row.source} there, or set {MODELS_VARIABLE}",
        )
    if row.num_bytes is not None and path.stat().st_size != row.num_bytes:
        raise CorruptDataError(
            f"{path} has {path.stat().st_size:,} bytes, published are {row.num_bytes:,}", hint="fetch it again"
        )
    return path

"""The published weights of the scorers. Nothing is downloaded here; see `evaluators.weights` for where they lie.

Sizes with `about` and licences with `?` were not checked at their source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gcpo_bench.errors import CorruptDataError, PrerequisiteError

from ..weights import Weights

_HUB = "https://huggingface.co"
_CLIP_WORDS = ("vocab.json", "merges.txt")

CLIP_L14 = Weights(
    name="clip-vit-large-patch14",
    purpose="CLIP ViT-L/14 of OpenAI, for CLIPScore and the aesthetic predictor",
    source="openai/clip-vit-large-patch14",
    licence="MIT",
    size="about 1.7 GB",
    files=("config.json", "model.safetensors", *_CLIP_WORDS),
)
CLIP_TOKENIZER = Weights(
    name=CLIP_L14.name,
    purpose="CLIP's tokenizer",
    source=CLIP_L14.source,
    licence="MIT",
    size="2 MB without the weights",
    files=_CLIP_WORDS,
)
CLIP_B32 = Weights(
    name="clip-vit-base-patch32",
    purpose="CLIP ViT-B/32 of OpenAI, for T2I-CompBench's CLIPScore",
    source="openai/clip-vit-base-patch32",
    licence="MIT",
    size="about 0.6 GB",
    files=("config.json",),  # its weights are found in either format
)
BERT_TOKENIZER = Weights(
    name="bert-base-uncased",
    purpose="BERT's tokenizer",
    source="google-bert/bert-base-uncased",
    licence="Apache-2.0",
    size="0.2 MB without the weights",
    files=("vocab.txt",),
)
HPS_V20 = Weights(
    name="HPS_v2_compressed.pt",
    purpose="HPS v2.0",
    source=f"{_HUB}/xswu/HPSv2/resolve/main/HPS_v2_compressed.pt",
    licence="Apache-2.0",
    size="about 2.0 GB",
)
HPS_V21 = Weights(
    name="HPS_v2.1_compressed.pt",
    purpose="HPS v2.1",
    source=f"{_HUB}/xswu/HPSv2/resolve/main/HPS_v2.1_compressed.pt",
    licence="Apache-2.0",
    size="about 2.0 GB",
)
PICKSCORE = Weights(
    name="PickScore_v1",
    purpose="PickScore v1",
    source="yuvalkirstain/PickScore_v1",
    licence="MIT?",
    size="about 3.9 GB",
    files=("config.json",),
)
AESTHETIC_HEAD = Weights(
    name="sac+logos+ava1-l14-linearMSE.pth",
    purpose="the head of LAION's aesthetic predictor v2",
    source="https://github.com/christophschuhmann/improved-aesthetic-predictor",
    licence="Apache-2.0?",
    size="3,714,759 bytes",
)
IMAGE_REWARD = Weights(
    name="ImageReward.pt",
    purpose="ImageReward v1.0",
    source=f"{_HUB}/THUDM/ImageReward/resolve/main/ImageReward.pt",
    licence="Apache-2.0",
    size="1.8 GB",
)
BLIP_VQA = Weights(
    name="model_base_vqa_capfilt_large.pth",
    purpose="BLIP-VQA, for T2I-CompBench's attributes",
    source="https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/model_base_vqa_capfilt_large.pth",
    licence="BSD-3-Clause",
    size="1.5 GB",
)

NUM_BYTES = {AESTHETIC_HEAD.name: 3_714_759}
"""Exact sizes, where no digest is known."""
NEEDS: Mapping[str, Sequence[Weights]] = {
    "hps-v2.0": (HPS_V20, CLIP_TOKENIZER),
    "hps-v2.1": (HPS_V21, CLIP_TOKENIZER),
    "hpsv2-package-v2.0": (HPS_V20,),
    "hpsv2-package-v2.1": (HPS_V21,),
    "clip-score": (CLIP_L14,),
    "clip-score-b32": (CLIP_B32, CLIP_TOKENIZER),
    "pickscore": (PICKSCORE, CLIP_TOKENIZER),
    "aesthetic": (CLIP_L14, AESTHETIC_HEAD),
    "image-reward": (IMAGE_REWARD, BERT_TOKENIZER),
    "blip-vqa": (BLIP_VQA, BERT_TOKENIZER),
}
"""Scorer -> what must be on this machine."""


def single_files() -> dict[str, Weights]:
    """Those that are one file with an address of its own, by name: what `gcpo-bench models fetch` can bring."""
    rows = (weights for of_scorer in NEEDS.values() for weights in of_scorer)
    return {weights.name: weights for weights in rows if not weights.files and weights.source.endswith(weights.name)}


def find(weights: Weights) -> Path:
    """The file or folder. Raises PrerequisiteError where it is not there, CorruptDataError where its size is wrong."""
    path = weights.path
    missing = [path / name for name in weights.files if not (path / name).is_file()]
    if missing or not path.exists():
        if weights.name in single_files():
            how = f"gcpo-bench models fetch {weights.name}, or with --from FOLDER where there is no network"
        elif weights.files:
            how = f"hf download {weights.source} --local-dir {path}"
        else:
            how = f"download {weights.source} to {path}"
        raise PrerequisiteError(
            f"{weights.purpose}: {missing[0] if missing else path} is missing ({weights.size}, {weights.licence})",
            hint=how,
        )
    expected = NUM_BYTES.get(weights.name)
    if expected is not None and path.stat().st_size != expected:
        raise CorruptDataError(
            f"{path} has {path.stat().st_size:,} bytes, published are {expected:,}", hint="fetch it again"
        )
    return path


def require(scorers: Sequence[str]) -> None:
    """Raises PrerequisiteError that names everything these scorers lack, before anything is loaded."""
    lacking: dict[str, str] = {}
    for scorer in scorers:
        for weights in NEEDS.get(scorer, ()):
            try:
                find(weights)
            except PrerequisiteError as error:
                lacking[f"{scorer}: {error}"] = error.hint
    if lacking:
        raise PrerequisiteError("; ".join(lacking), hint="; ".join(dict.fromkeys(lacking.values())))

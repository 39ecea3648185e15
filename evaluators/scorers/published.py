"""Which published weights each scorer reads; what they are is in `gcpo_bench.catalogue`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gcpo_bench import catalogue
from gcpo_bench.errors import PrerequisiteError
from gcpo_bench.weights import Weights, locate

NEEDS: Mapping[str, Sequence[Weights]] = {
    "hps-v2.0": (catalogue.HPS_V20, catalogue.CLIP_WORDS),
    "hps-v2.1": (catalogue.HPS_V21, catalogue.CLIP_WORDS),
    "hpsv2-package-v2.0": (catalogue.HPS_V20,),
    "hpsv2-package-v2.1": (catalogue.HPS_V21,),
    "clip-score": (catalogue.CLIP_SCORER,),
    "clip-score-b32": (catalogue.CLIP_B32, catalogue.CLIP_WORDS),
    "pickscore": (catalogue.PICKSCORE, catalogue.CLIP_WORDS),
    "aesthetic": (catalogue.CLIP_SCORER, catalogue.AESTHETIC_HEAD),
    "image-reward": (catalogue.IMAGE_REWARD, catalogue.BERT_WORDS),
    "blip-vqa": (catalogue.BLIP_VQA, catalogue.BERT_WORDS),
}
"""Scorer -> what must be on this machine."""


def require(scorers: Sequence[str]) -> None:
    """Raises PrerequisiteError that names everything these scorers lack, before anything is loaded."""
    lacking: dict[str, str] = {}
    for scorer in scorers:
        for weights in NEEDS.get(scorer, ()):
            try:
                locate(weights)
            except PrerequisiteError as error:
                lacking[f"{scorer}: {error}"] = error.hint
    if lacking:
        raise PrerequisiteError("; ".join(lacking), hint="; ".join(dict.fromkeys(lacking.values())))

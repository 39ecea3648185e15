"""The published weights that policies and evaluators read: what for, from where, under which licence.

To add one, add it here; `gcpo-bench models` lists, fetches and verifies it. Licences with `?` were not checked at their
source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from gcpo_bench.errors import ConfigError, PrerequisiteError, did_you_mean
from gcpo_bench.files import storage
from gcpo_bench.weights import MODEL_FILES, RECORD, Weights, local

_HUB = "https://huggingface.co"
_SAFETENSORS = ("config.json", "*.safetensors")
_JANUS = "gcpo_bench.training.published:check_folder"
_LLAMAGEN = "gcpo_bench.training.policies.llamagen_checkpoint"
_MODEL_FILE = "|".join(MODEL_FILES)
_LLAMAGEN_TOKENIZER = "vq_ds16_t2i.pt|vq_ds16_t2i.safetensors"
_MASK2FORMER = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"
_MODEL = ("config.json", "model.safetensors")
_CLIP_WORDS = ("vocab.json", "merges.txt")
_CLIP_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")

# ---------------------------------------------------------------- policies

_POLICIES = (
    Weights(
        name="janus-pro-1b",
        purpose="the policy janus-pro-1b, as converted for transformers",
        source="deepseek-community/Janus-Pro-1B",
        licence="DeepSeek model licence",
        bytes_about=4_200_000_000,
        files=(*_SAFETENSORS, "tokenizer.json"),
        more_files=("*.json",),
        check=_JANUS,
    ),
    Weights(
        name="janus-pro-7b",
        purpose="the policy janus-pro-7b, as converted for transformers",
        source="deepseek-community/Janus-Pro-7B",
        licence="DeepSeek model licence",
        bytes_about=14_900_000_000,
        files=(*_SAFETENSORS, "tokenizer.json"),
        more_files=("*.json",),
        check=_JANUS,
    ),
    Weights(
        name="llamagen-xl-256",
        purpose="the policy llamagen-xl-256, converted when fetched",
        source="peizesun/llamagen_t2i",
        licence="MIT",
        bytes_about=6_700_000_000,
        files=(f"t2i_XL_stage1_256.pt|{_MODEL_FILE}", _LLAMAGEN_TOKENIZER),
        check=f"{_LLAMAGEN}:check_folder",
        convert=f"{_LLAMAGEN}:convert_folder",
        converted_bytes=3_282_000_000,
    ),
    Weights(
        name="llamagen-xl-512",
        purpose="the policy llamagen-xl-512, converted when fetched",
        source="peizesun/llamagen_t2i",
        licence="MIT",
        bytes_about=6_700_000_000,
        files=(f"t2i_XL_stage2_512.pt|{_MODEL_FILE}", _LLAMAGEN_TOKENIZER),
        check=f"{_LLAMAGEN}:check_folder",
        convert=f"{_LLAMAGEN}:convert_folder",
        converted_bytes=3_282_000_000,
    ),
    Weights(
        name="flan-t5-xl",
        purpose="the text encoder of LlamaGen",
        source="google/flan-t5-xl",
        licence="Apache-2.0",
        bytes_about=11_400_000_000,
        files=_SAFETENSORS,
        more_files=("*.json",),
    ),
)

# ---------------------------------------------------------------- evaluators

GENEVAL_DETECTOR = Weights(
    name=f"{_MASK2FORMER}_20220504_001756-743b7d99.pth",
    purpose="GenEval's detector: Mask2Former, Swin-S, COCO instances, as trained by mmdet 2.x",
    source=f"https://download.openmmlab.com/mmdetection/v2.0/mask2former/{_MASK2FORMER}/"
    f"{_MASK2FORMER}_20220504_001756-743b7d99.pth",
    licence="Apache-2.0",
    bytes_about=275_000_000,
    sha256="743b7d99",  # OpenMMLab's file names end in the first eight digits
)
META_DETECTOR = Weights(
    name="mask2former-swin-small-coco-instance",
    purpose="a stand-in for GenEval's detector: the same network as trained by its authors; other scores",
    source="facebook/mask2former-swin-small-coco-instance",
    licence="see the model card",
    bytes_about=275_000_000,
    files=_MODEL,
)
CLIP_L14 = Weights(
    name="clip-vit-large-patch14",
    purpose="CLIP ViT-L/14: GenEval's colours, CLIPScore, the aesthetic predictor",
    source="openai/clip-vit-large-patch14",
    licence="MIT",
    bytes_about=1_700_000_000,
    files=(*_MODEL, *_CLIP_WORDS, *_CLIP_TOKENIZER),
)
GENEVAL_CLASSIFIER = replace(CLIP_L14, purpose="GenEval's colour classifier", files=(*_MODEL, *_CLIP_TOKENIZER))
CLIP_SCORER = replace(CLIP_L14, purpose="CLIPScore, aesthetic predictor", files=(*_MODEL, *_CLIP_WORDS))
CLIP_WORDS = replace(CLIP_L14, purpose="CLIP's tokenizer", files=_CLIP_WORDS)
CLIP_B32 = Weights(
    name="clip-vit-base-patch32",
    purpose="CLIP ViT-B/32: T2I-CompBench's CLIPScore",
    source="openai/clip-vit-base-patch32",
    licence="MIT",
    bytes_about=610_000_000,
    files=("config.json", _MODEL_FILE),
)
BERT_WORDS = Weights(
    name="bert-base-uncased",
    purpose="BERT's tokenizer",
    source="google-bert/bert-base-uncased",
    licence="Apache-2.0",
    bytes_about=232_000,
    files=("vocab.txt",),
)
HPS_V20 = Weights(
    name="HPS_v2_compressed.pt",
    purpose="HPS v2.0",
    source=f"{_HUB}/xswu/HPSv2/resolve/main/HPS_v2_compressed.pt",
    licence="Apache-2.0",
    bytes_about=2_000_000_000,
)
HPS_V21 = Weights(
    name="HPS_v2.1_compressed.pt",
    purpose="HPS v2.1",
    source=f"{_HUB}/xswu/HPSv2/resolve/main/HPS_v2.1_compressed.pt",
    licence="Apache-2.0",
    bytes_about=2_000_000_000,
)
PICKSCORE = Weights(
    name="PickScore_v1",
    purpose="PickScore v1",
    source="yuvalkirstain/PickScore_v1",
    licence="MIT?",
    bytes_about=3_900_000_000,
    files=("config.json", _MODEL_FILE),
)
AESTHETIC_HEAD = Weights(
    name="sac+logos+ava1-l14-linearMSE.pth",
    purpose="the head of LAION's aesthetic predictor v2",
    source="https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth",
    licence="Apache-2.0?",
    bytes_about=3_714_759,
    num_bytes=3_714_759,
)
IMAGE_REWARD = Weights(
    name="ImageReward.pt",
    purpose="ImageReward v1.0",
    source=f"{_HUB}/THUDM/ImageReward/resolve/main/ImageReward.pt",
    licence="Apache-2.0",
    bytes_about=1_800_000_000,
)
BLIP_VQA = Weights(
    name="model_base_vqa_capfilt_large.pth",
    purpose="BLIP-VQA, for T2I-CompBench's attributes",
    source="https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/model_base_vqa_capfilt_large.pth",
    licence="BSD-3-Clause",
    bytes_about=1_500_000_000,
)
GROUNDING_DINO = {
    size: Weights(
        name=f"grounding-dino-{size}",
        purpose=f"T2I-CompBench's objects, with another detector than the published: Grounding DINO, {backbone}",
        source=f"IDEA-Research/grounding-dino-{size}",
        licence="Apache-2.0",
        bytes_about=bytes_about,
        files=("config.json", _MODEL_FILE, "vocab.txt"),
    )
    for size, backbone, bytes_about in (("base", "Swin-B", 933_000_000), ("tiny", "Swin-T", 690_000_000))
}
COMPBENCH_DEPTH = Weights(
    name="dpt-hybrid-midas",
    purpose="depth for T2I-CompBench's 3D positions: DPT hybrid, MiDaS",
    source="Intel/dpt-hybrid-midas",
    licence="Apache-2.0",
    bytes_about=490_000_000,
    files=("config.json", _MODEL_FILE),
)

_EVALUATORS = (
    GENEVAL_DETECTOR,
    META_DETECTOR,
    CLIP_L14,
    CLIP_B32,
    BERT_WORDS,
    HPS_V21,
    HPS_V20,
    PICKSCORE,
    AESTHETIC_HEAD,
    IMAGE_REWARD,
    BLIP_VQA,
    *GROUNDING_DINO.values(),
    COMPBENCH_DEPTH,
)
_ANY_JANUS = replace(
    _POLICIES[0],
    purpose="a policy, as others trained it",
    licence="see its page on the hub",
    bytes_about=0,  # told by the hub
    model_type="janus",
    check="gcpo_bench.training.published:check_any",
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CATALOGUE: dict[str, Weights] = {each.name: each for each in (*_POLICIES, *_EVALUATORS)}
POLICIES = tuple(each.name for each in _POLICIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """Weights that another program loads, in an environment or on a machine of its own. They are not fetched here."""

    name: str
    purpose: str
    source: str
    licence: str
    bytes_about: int
    how: str
    """How it is made known here."""
    variable: str = ""
    """The environment variable that does."""


_ELSEWHERE = (
    Elsewhere(
        name="deqa",
        purpose="DeQA-Score, in a program of its own",
        source="zhiyuanyou/DeQA-Score-Mix3",
        licence="MIT, LLaMA-2's terms",
        bytes_about=16_400_000_000,
        how="set GCPO_BENCH_DEQA to the command that starts it; see docs/scorers.md",
        variable="GCPO_BENCH_DEQA",
    ),
    Elsewhere(
        name="unified-reward",
        purpose="UnifiedReward, behind a chat server",
        source="CodeGoat24/UnifiedReward-7b-v1.5",
        licence="MIT",
        bytes_about=16_000_000_000,
        how="set GCPO_BENCH_UNIFIED_REWARD to the server's address; see docs/scorers.md",
        variable="GCPO_BENCH_UNIFIED_REWARD",
    ),
    Elsewhere(
        name="unidet",
        purpose="T2I-CompBench's own detector; its detections are read from a file",
        source="https://huggingface.co/shikunl/prismer, expert_weights/Unified_learned_OCIM_RS200_6x%2B2x.pth",
        licence="Apache-2.0?",
        bytes_about=0,
        how="evaluators/detectors/unidet_export.py, then: evaluate --option detections=FILE; see docs/t2i-compbench.md",
    ),
)
ELSEWHERE: dict[str, Elsewhere] = {each.name: each for each in _ELSEWHERE}

NEEDS: dict[str, tuple[Weights, ...]] = {
    "hps-v2.1": (HPS_V21, CLIP_WORDS),
    "hps-v2.0": (HPS_V20, CLIP_WORDS),
    "hpsv2-package-v2.1": (HPS_V21,),
    "hpsv2-package-v2.0": (HPS_V20,),
    "clip-score": (CLIP_SCORER,),
    "clip-score-tensor": (CLIP_SCORER,),
    "clip-score-b32": (CLIP_B32, CLIP_WORDS),
    "pickscore": (PICKSCORE, CLIP_WORDS),
    "aesthetic": (CLIP_SCORER, AESTHETIC_HEAD),
    "image-reward": (IMAGE_REWARD, BERT_WORDS),
    "blip-vqa": (BLIP_VQA, BERT_WORDS),
}
"""Scorer, reward or benchmark -> what must be on this machine."""
_BLIP = ("t2i-compbench-color", "t2i-compbench-shape", "t2i-compbench-texture")
NEEDS |= {
    **dict.fromkeys(
        ("geneval", "geneval-server", "geneval-server-dense", "geneval-server-strict"),
        (GENEVAL_DETECTOR, GENEVAL_CLASSIFIER),
    ),
    "hps": NEEDS["hps-v2.1"],
    "hps-benchmark": NEEDS["hps-v2.1"],
    "hps-gcpo400": NEEDS["hps-v2.1"],
    "drawbench": (HPS_V21, CLIP_SCORER, IMAGE_REWARD, BERT_WORDS, PICKSCORE, AESTHETIC_HEAD),
    **dict.fromkeys(_BLIP, NEEDS["blip-vqa"]),
    "t2i-compbench-non-spatial": NEEDS["clip-score-b32"],
    "t2i-compbench-spatial": (GROUNDING_DINO["base"],),
    "t2i-compbench-3d-spatial": (GROUNDING_DINO["base"], COMPBENCH_DEPTH),
    "t2i-compbench-numeracy": (GROUNDING_DINO["base"],),
    "t2i-compbench-complex": (*NEEDS["blip-vqa"], GROUNDING_DINO["base"], *NEEDS["clip-score-b32"]),
}
NEEDS["t2i-compbench"] = (*NEEDS["t2i-compbench-complex"], COMPBENCH_DEPTH)


def get(name: str) -> tuple[Weights, ...]:
    """Weights by their own name, that of a scorer or benchmark, or a hub id. Raises ConfigError for what is none."""
    if name in ELSEWHERE:
        raise ConfigError(f"{name} is not fetched here: {ELSEWHERE[name].purpose}", hint=ELSEWHERE[name].how)
    if name in CATALOGUE:
        return (CATALOGUE[name],)
    if name in NEEDS:
        return tuple({each.name: CATALOGUE[each.name] for each in NEEDS[name]}.values())
    if not HUB_ID.fullmatch(name):
        raise ConfigError(f"there are no published weights {name!r}", hint=did_you_mean(name, {**CATALOGUE, **NEEDS}))
    if len(found := of_hub(name)) > 1:
        raise ConfigError(
            f"{name} holds {' and '.join(each.name for each in found)}", hint=f"gcpo-bench models fetch {found[0].name}"
        )
    return found


def of_hub(hub_id: str) -> tuple[Weights, ...]:
    """What a repository on the Hugging Face hub holds; one that is not listed here is taken for a policy's."""
    listed = [each for each in CATALOGUE.values() if each.source.lower() == hub_id.lower()]
    return tuple(listed) or (replace(_ANY_JANUS, name=hub_id, source=hub_id),)


def fetched_from_hub(hub_id: str, model: str) -> Path | None:
    """Where a repository's weights lie, those of `model` first; None where they were not fetched, or this is no id."""
    found = of_hub(hub_id) if HUB_ID.fullmatch(hub_id) else ()
    return next((path for each in sorted(found, key=lambda each: each.name != model) if (path := local(each))), None)


def here() -> list[Weights]:
    """All that is listed, and what else was fetched from the hub."""
    folder = storage("weights")
    others = sorted(str(each.parent.relative_to(folder)) for each in folder.glob(f"*/*/{RECORD}"))
    return [*CATALOGUE.values(), *(each for name in others for each in of_hub(name) if each.name == name)]


def require(names: Iterable[str]) -> None:
    """Raises PrerequisiteError that names everything these scorers lack, before anything is loaded."""
    lacking = {name: [each for each in NEEDS.get(name, ()) if local(each) is None] for name in names}
    lacking = {name: missing for name, missing in lacking.items() if missing}
    if lacking:
        each = "; ".join(f"{name} lacks {' and '.join(row.name for row in rows)}" for name, rows in lacking.items())
        raise PrerequisiteError(
            f"weights are missing in {storage('weights')}: {each}",
            hint=f"gcpo-bench models fetch {' '.join(lacking)}, or with --from FOLDER where there is no network",
        )

"""Published weights that evaluators read: what they are for, where they come from, how to know that a copy is right.

None is shipped, and nothing is downloaded behind the user's back. They lie in the weights folder (see
`gcpo_bench.files.storage`), each under its own name, or wherever an option points.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError, did_you_mean
from gcpo_bench.files import sha256, storage, writing

TIMEOUT_S = 60


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
    one_of: tuple[str, ...] = ()
    """Of these a folder must hold one: the same weights in several formats."""
    sha256: str = ""
    """Of the file, or how it begins; empty where it is not known."""

    @property
    def path(self) -> Path:
        return storage("weights") / self.name


_MASK2FORMER = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"
MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_FILES = ("config.json", "model.safetensors")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

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
    *(
        Weights(
            name=f"grounding-dino-{size}",
            purpose=f"T2I-CompBench's objects, with another detector than the published: Grounding DINO, {backbone}",
            source=f"IDEA-Research/grounding-dino-{size}",
            licence="Apache-2.0",
            size=num_bytes,
            files=(*_HUB_FILES, "vocab.txt"),
        )
        for size, backbone, num_bytes in (("base", "Swin-B", "about 0.9 GB"), ("tiny", "Swin-T", "about 0.7 GB"))
    ),
    Weights(
        name="dpt-hybrid-midas",
        purpose="depth for T2I-CompBench's 3D positions: DPT hybrid, MiDaS",
        source="Intel/dpt-hybrid-midas",
        licence="Apache-2.0",
        size="about 0.5 GB",
        files=("config.json",),
        one_of=MODEL_FILES,
    ),
)
WEIGHTS: Mapping[str, Weights] = {each.name: each for each in _WEIGHTS}
GENEVAL_DETECTOR, GENEVAL_CLASSIFIER = _WEIGHTS[0], _WEIGHTS[1]
GROUNDING_DINO = {size: WEIGHTS[f"grounding-dino-{size}"] for size in ("base", "tiny")}
COMPBENCH_DEPTH = WEIGHTS["dpt-hybrid-midas"]


def get(name: str) -> Weights:
    """Raises ConfigError for a name that is none."""
    if name not in WEIGHTS:
        raise ConfigError(f"unknown weights {name!r}", hint=did_you_mean(name, WEIGHTS))
    return WEIGHTS[name]


def missing_files(weights: Weights, path: Path) -> list[str]:
    """What of these weights `path` lacks; for a single file its own name."""
    if not weights.files:
        return [] if path.is_file() else [path.name]
    missing = [name for name in weights.files if not (path / name).is_file()]
    return [*missing, *(() if _formats(weights, path) else weights.one_of[:1])]


def _formats(weights: Weights, path: Path) -> list[str]:
    """Those of `one_of` that are there."""
    return [name for name in weights.one_of if (path / name).is_file()]


def locate(weights: Weights) -> Path:
    """Where these weights lie. Raises PrerequisiteError, with what to do, where a file is missing."""
    path = weights.path
    if not (missing := missing_files(weights, path)):
        return path
    what = path / missing[0] if weights.files and path.exists() else path
    raise PrerequisiteError(
        f"{weights.purpose}: {what} is missing ({weights.size})",
        hint=f"gcpo-bench models fetch {weights.name}, or with --from FOLDER where there is no network",
    )


def require(wanted: Iterable[Weights]) -> None:
    """Raises PrerequisiteError that names everything that is missing, before anything is loaded."""
    lacking: dict[str, str] = {}
    for weights in wanted:
        try:
            locate(weights)
        except PrerequisiteError as error:
            lacking[str(error)] = error.hint
    if lacking:
        raise PrerequisiteError("; ".join(lacking), hint="; ".join(lacking.values()))


def verify(weights: Weights) -> str:
    """Raises PrerequisiteError where a file is missing, CorruptDataError where the digest is another.

    Returns what could be checked, in words.
    """
    return _check(weights, locate(weights))


def _check(weights: Weights, path: Path) -> str:
    if weights.files:
        count = len(weights.files) + len(_formats(weights, path))
        return f"{count} files are there; their publisher states no digest"
    digest = sha256(path)
    if not digest.startswith(weights.sha256):
        raise CorruptDataError(
            f"{path}: SHA-256 is {digest}, should begin with {weights.sha256}",
            hint="it was cut off in a download, or is another checkpoint; fetch it again",
        )
    return f"sha256 {digest}"


def fetch(weights: Weights, source: Path | None = None) -> Path:
    """Put weights into the weights folder: from `source`, a folder that holds them, or from where they are published.

    Raises PrerequisiteError where they cannot be had, CorruptDataError where they are not the published ones; what was
    there before is replaced only by what is whole.
    """
    path = weights.path
    building = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if source is not None:
                _copy(weights, source, building)
            elif weights.files:
                _from_hub(weights, building)
            else:
                _download(weights, building)
            _check(weights, building)
            if path.is_dir():
                shutil.rmtree(path)
            building.rename(path)
        finally:
            if building.is_dir():
                shutil.rmtree(building)
            building.unlink(missing_ok=True)
    return path


def _copy(weights: Weights, source: Path, target: Path) -> None:
    found = next((each for each in (source / weights.name, source) if not missing_files(weights, each)), None)
    if found is None:
        raise PrerequisiteError(
            f"{source} holds no {weights.name}" + (f" with {', '.join(weights.files)}" if weights.files else ""),
            hint=f"get it from {weights.source} and name the folder it lies in",
        )
    if not weights.files:
        shutil.copyfile(found, target)
        return
    target.mkdir()
    for name in (*weights.files, *_formats(weights, found)):
        shutil.copyfile(found / name, target / name)


def _from_hub(weights: Weights, target: Path) -> None:
    import huggingface_hub

    try:
        huggingface_hub.snapshot_download(
            weights.source, local_dir=target, allow_patterns=[*weights.files, *weights.one_of]
        )
    except Exception as error:  # the hub's client raises its own, httpx's and the system's errors
        raise _unreachable(weights, error) from error
    if missing := missing_files(weights, target):
        raise PrerequisiteError(
            f"{weights.source} has no {missing[0]}", hint=f"get it by hand, then: {_by_hand(weights)}"
        )


def _download(weights: Weights, target: Path) -> None:
    import http.client
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(weights.source, timeout=TIMEOUT_S) as response, target.open("wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
    except (urllib.error.URLError, TimeoutError, http.client.HTTPException) as error:
        raise _unreachable(weights, error) from error


def _unreachable(weights: Weights, error: Exception) -> PrerequisiteError:
    reason = " ".join(str(getattr(error, "reason", error)).split())[:200]
    return PrerequisiteError(
        f"{weights.source} cannot be fetched: {reason}", hint=f"get it by hand, then: {_by_hand(weights)}"
    )


def _by_hand(weights: Weights) -> str:
    return f"gcpo-bench models fetch {weights.name} --from FOLDER"

"""Published weights of policies: where they come from, where they lie on this machine, whether they are whole.

<models folder>/<name>/
  the files of the source, and what was converted from them
  gcpo-bench.json    written last: source and the checksum of each file

The models folder is `models` in `gcpo_bench.files.storage`.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcpo_bench.errors import ConfigError, CorruptDataError, GcpoBenchError, PrerequisiteError, did_you_mean
from gcpo_bench.files import checksum, read_json, storage, write_json, writing

RECORD = "gcpo-bench.json"
SPARE_BYTES = 1_000_000_000
"""Disk that stays free after a download."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Weights that others published."""

    hub_id: str
    """On the Hugging Face hub."""
    files: tuple[str, ...]
    """Patterns of the files that are needed."""
    bytes_about: int
    licence: str
    purpose: str
    convert: str = ""
    """`"module:function"` that makes what a policy loads of the files in a folder; called with name and folder."""


SAFETENSORS = ("*.safetensors", "*.safetensors.index.json", "*.json")
LLAMAGEN = "gcpo_bench.training.policies.llamagen_checkpoint:convert_folder"
PUBLISHED = {
    "janus-pro-1b": Published(
        hub_id="deepseek-community/Janus-Pro-1B",
        files=SAFETENSORS,
        bytes_about=4_200_000_000,
        licence="DeepSeek model licence",
        purpose="the policy janus-pro-1b, as converted for transformers",
    ),
    "janus-pro-7b": Published(
        hub_id="deepseek-community/Janus-Pro-7B",
        files=SAFETENSORS,
        bytes_about=14_900_000_000,
        licence="DeepSeek model licence",
        purpose="the policy janus-pro-7b, as converted for transformers",
    ),
    "llamagen-xl-256": Published(
        hub_id="peizesun/llamagen_t2i",
        files=("t2i_XL_stage1_256.pt", "vq_ds16_t2i.pt"),
        bytes_about=6_700_000_000,  # half of it made by conversion
        licence="MIT",
        purpose="the policy llamagen-xl-256, converted when fetched",
        convert=LLAMAGEN,
    ),
    "llamagen-xl-512": Published(
        hub_id="peizesun/llamagen_t2i",
        files=("t2i_XL_stage2_512.pt", "vq_ds16_t2i.pt"),
        bytes_about=6_700_000_000,
        licence="MIT",
        purpose="the policy llamagen-xl-512, converted when fetched",
        convert=LLAMAGEN,
    ),
    "flan-t5-xl": Published(
        hub_id="google/flan-t5-xl",
        files=SAFETENSORS,
        bytes_about=11_400_000_000,
        licence="Apache 2.0",
        purpose="the text encoder of LlamaGen",
    ),
}


def models_dir() -> Path:
    return storage("models")


def published(name: str) -> Published:
    """Raises ConfigError for a name that has no published weights."""
    if name not in PUBLISHED:
        raise ConfigError(f"there are no published weights of {name!r}", hint=did_you_mean(name, PUBLISHED))
    return PUBLISHED[name]


def local(name: str) -> Path | None:
    """The folder of weights that were fetched whole, if they were."""
    folder = models_dir() / name
    return folder if (folder / RECORD).is_file() else None


def require(name: str) -> Path:
    """`local`, or PrerequisiteError where it was not fetched."""
    published(name)
    folder = local(name)
    if folder is None:
        raise PrerequisiteError(f"{name} was not fetched", hint=f"gcpo-bench models fetch {name}")
    return folder


def fetch(name: str, from_folder: Path | None = None) -> Path:
    """Download a model's files, or take them from a folder; what is there already is not fetched again.

    An interrupted download goes on where it stopped.

    Raises:
        ConfigError: an unknown name, or a folder that is not there or holds something else.
        CorruptDataError: a file that is damaged or of another model, where files are converted.
        PrerequisiteError: no network, no such repository, a licence to accept first, or too little disk.
    """
    model, folder = published(name), models_dir() / name
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if from_folder is None:
        _require_disk(folder, model.bytes_about)
        _download(model, folder)
        source = model.hub_id
    else:
        _copy(model, from_folder, folder)
        source = str(from_folder.resolve())
    if model.convert:
        module, _, function = model.convert.partition(":")
        getattr(importlib.import_module(module), function)(name, folder)
    files = sorted(
        path for path in folder.iterdir() if path.is_file() and path.name != RECORD and not path.name.endswith(".tmp")
    )
    record = {path.name: {"bytes": path.stat().st_size, "checksum": checksum(path)} for path in files}
    write_json(folder / RECORD, {"name": name, "source": source, "files": record})
    return folder


def _require_disk(folder: Path, wanted: int) -> None:
    present = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    missing = wanted - present + SPARE_BYTES - shutil.disk_usage(folder).free
    if missing > 0:
        raise PrerequisiteError(
            f"{folder} needs {missing / 1e9:.1f} GB more than the disk has free",
            hint="free some space, or set GCPO_BENCH_HOME to a folder on another disk",
        )


def _download(model: Published, folder: Path) -> None:
    from huggingface_hub import errors, snapshot_download

    mend = f"check the network, or fetch {model.hub_id} elsewhere and take it with --from FOLDER"
    try:
        snapshot_download(model.hub_id, allow_patterns=list(model.files), local_dir=folder)
    except errors.GatedRepoError as error:
        raise PrerequisiteError(
            f"{model.hub_id} asks for its licence to be accepted",
            hint=f"accept it at https://huggingface.co/{model.hub_id}, then log in with: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise PrerequisiteError(f"the hub has no repository {model.hub_id}", hint=mend) from error
    except GcpoBenchError:
        raise
    except Exception as error:  # the network fails in many ways, and each library wraps them in its own
        if isinstance(error, OSError) and error.errno is not None:
            with writing(folder):
                raise
        reason = " ".join(str(error).split())[:200]
        raise PrerequisiteError(f"{model.hub_id} could not be fetched: {reason}", hint=mend) from error


def _copy(model: Published, source: Path, folder: Path) -> None:
    if not source.is_dir():
        raise ConfigError(f"there is no folder {source}", hint="name the folder that holds the model's files")
    found = sorted({path for pattern in model.files for path in source.glob(pattern)})
    needed = (name for name in model.files if name == "*.safetensors" or "*" not in name)
    if missing := [name for name in needed if not any(path.match(name) for path in found)]:
        what = missing[0].replace("*.safetensors", ".safetensors file")
        raise ConfigError(f"{source} holds no {what}", hint=f"it must hold the files of {model.hub_id} on the hub")
    _require_disk(folder, sum(path.stat().st_size for path in found))
    for path in found:
        if path.name == RECORD or path.resolve() == (folder / path.name).resolve():
            continue
        part = folder / f"{path.name}.tmp"
        with writing(part):
            shutil.copyfile(path, part)
            os.replace(part, folder / path.name)


def verify(folder: Path) -> Mapping[str, str]:
    """Read every file again; name -> checksum. Raises CorruptDataError for one that changed or is gone."""
    record: Any = read_json(folder / RECORD)
    try:
        expected = {name: str(entry["checksum"]) for name, entry in record["files"].items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise CorruptDataError(
            f"{folder / RECORD} is damaged", hint=f"fetch it again: delete {folder} first"
        ) from error
    for name, value in expected.items():
        found = checksum(folder / name)
        if found != value:
            raise CorruptDataError(
                f"{folder / name} is damaged: checksum {found}, expected {value}",
                hint=f"delete it and fetch the model again: gcpo-bench models fetch {folder.name}",
            )
    return expected

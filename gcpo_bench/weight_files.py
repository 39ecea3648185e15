"""What weight files say of themselves at their beginning and end: no tensor is read.

A safetensors file is the length of a header (8 bytes, little endian), the header (JSON: each tensor's type, shape and
place) and the tensors without a gap, so its size tells whether it was cut off. torch's archives are zip files, whose
list of contents comes last.

Source: huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.files import read_object, reading

SAFETENSORS, INDEX = ".safetensors", ".safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
"""More than that the safetensors library refuses too."""
BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
BYTES |= {"I8": 1, "U8": 1, "BOOL": 1}
"""Of the types that torch saves; what another type takes is not checked."""
POINTER = b"version https://git-lfs"
HINT = "delete it and fetch the model again"
ADAPTER = "adapter_config.json"
"""What PEFT writes beside adapters."""
MERGE = (
    "merge them with peft: PeftModel.from_pretrained(BASE, FOLDER).merge_and_unload().save_pretrained(NEW); name NEW"
)
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "module.", "base_model.model.")
"""What torch.compile, FSDP, DistributedDataParallel and PEFT put before or into a tensor's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file says of one tensor."""

    file: Path
    name: str
    """In the file."""
    dtype: str
    """In safetensors' words: F32, BF16, I64, ..."""
    shape: tuple[int, ...]


def check_whole(files: Iterable[Path]) -> None:
    """Raises CorruptDataError where a file is cut off or no file of its kind, or one that an index names is missing."""
    for path in files:
        if path.name.endswith(INDEX):
            indexed_files(path)
        elif path.suffix == SAFETENSORS:
            read_headers(path)
        elif path.name == "config.json":
            read_object(path)
        else:
            _check_archive(path)


def _check_archive(path: Path) -> None:
    """Only the newer of torch's two formats tells its end."""
    start = _start(path, 2)
    if start == b"PK" and not zipfile.is_zipfile(path):
        raise CorruptDataError(f"{path} is cut off: the end of the archive is missing", hint=HINT)


def _start(path: Path, count: int) -> bytes:
    with reading(path), path.open("rb") as file:
        start = file.read(max(count, len(POINTER)))
    if start.startswith(POINTER):
        raise CorruptDataError(
            f"{path} is a pointer of git-lfs, not the file itself", hint="git lfs pull, where it was cloned"
        )
    return start[:count]


def refuse_adapter(folder: Path) -> None:
    """Raises ConfigError for a folder with PEFT's adapters: alone they are no model, and beside one they change it."""
    if (folder / ADAPTER).is_file():
        base = read_object(folder / ADAPTER).get("base_model_name_or_path") or "a model that it does not name"
        raise ConfigError(f"{folder} holds PEFT adapters of {base}, which are not read", hint=MERGE)


def unwrapped(name: str) -> str:
    """A tensor's name without what training programs wrap a model into."""
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper).replace(f".{wrapper}", ".")
    return name


def model_files(folder: Path) -> list[Path]:
    """The safetensors files that make the model of a folder in transformers' layout; empty where it has none.

    As transformers, `model.safetensors` before an index: saving into a folder that held several files removes these,
    and leaves their index. Raises ConfigError as `refuse_adapter` does, CorruptDataError where both of them are whole,
    or a file that the index names is missing.
    """
    refuse_adapter(folder)
    index, single = folder / f"model{INDEX}", folder / f"model{SAFETENSORS}"
    files = sorted(folder.glob(f"*{SAFETENSORS}"))
    if not files or not index.is_file():
        return files
    if not single.is_file():
        return indexed_files(index)
    if any(path != single and path.is_file() for path in _indexed(index)):
        raise CorruptDataError(
            f"{folder} holds two models: {single.name}, which transformers reads, and the files of {index.name}",
            hint="move one of them to another folder, the index together with its files",
        )
    return [single]


def indexed_files(index: Path) -> list[Path]:
    """The files that an index distributes the tensors over. Raises CorruptDataError where one is missing."""
    files = _indexed(index)
    if missing := [path.name for path in files if not path.is_file()]:
        raise CorruptDataError(
            f"{index.parent} is not whole: {missing[0]} is missing ({len(missing)} of {len(files)} files)",
            hint="fetch the model again; an interrupted download goes on",
        )
    return files


def _indexed(index: Path) -> list[Path]:
    """What it names, there or not."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CorruptDataError(f"{index} is damaged: weight_map names no files", hint=HINT)
    return [index.parent / name for name in sorted(set(places.values()))]


def read_headers(path: Path) -> dict[str, Header]:
    """Tensor name -> what a safetensors file says of it. Raises CorruptDataError where the file cannot hold that."""
    with reading(path), path.open("rb") as file:
        length = int.from_bytes(_start(path, 8), "little")
        file.seek(8)
        text = file.read(length) if length <= MAX_HEADER_BYTES else b""
        tensor_bytes = path.stat().st_size - 8 - length
    if len(text) < max(length, 2):
        raise _cut_off(path, "its header is not all there")
    try:
        entries: dict[str, Any] = {name: each for name, each in json.loads(text).items() if name != "__metadata__"}
        headers = {
            name: Header(file=path, name=name, dtype=str(each["dtype"]), shape=_counts(each["shape"]))
            for name, each in entries.items()
        }
        spans = {name: _counts(each["data_offsets"], 2) for name, each in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptDataError(f"{path} is no safetensors file, or damaged: its header is none", hint=HINT) from error
    end = 0
    for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
        size = BYTES.get(headers[name].dtype)
        if start != end or stop < start or (size and size * math.prod(headers[name].shape) != stop - start):
            raise CorruptDataError(f"{path} is damaged: its header misplaces {name!r}", hint=HINT)
        end = stop
    if end != tensor_bytes:
        raise _cut_off(path, f"its tensors take {end:,} bytes, the file has {tensor_bytes:,}")
    return headers


def _counts(values: Any, length: int | None = None) -> tuple[int, ...]:
    if not isinstance(values, list) or length not in (None, len(values)):
        raise ValueError(values)
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(values)
    return tuple(values)


def _cut_off(path: Path, why: str) -> CorruptDataError:
    return CorruptDataError(f"{path} is no safetensors file, or cut off: {why}", hint=HINT)

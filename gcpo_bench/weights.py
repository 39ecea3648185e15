"""Published weights on this machine: where they lie, whether they are whole, how they get here.

None is shipped, and nothing is downloaded behind the user's back. In the weights folder (`weights` in
`gcpo_bench.files.storage`) each has its own name, a file or a folder. What was fetched is recorded with its checksums,
in the folder or beside the file; a copy that was put there by hand needs no record. What there is to fetch is listed in
`gcpo_bench.catalogue`.
"""

from __future__ import annotations

import fnmatch
import importlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gcpo_bench.errors import ConfigError, CorruptDataError, GcpoBenchError, PrerequisiteError
from gcpo_bench.files import checksum, checksum_of, read_json, sha256, storage, write_json, writing

RECORD = "gcpo-bench.json"
FETCHING = {"state": "fetching"}
"""The record of a folder while files are still coming; so half a download is not taken for all of it."""
SPARE_BYTES = 1_000_000_000
"""Disk that stays free after a download."""
TIMEOUT_S = 60

MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights in a folder in transformers' layout; the first that is there is read."""

State = Literal["there", "unfinished", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What others published: one file, or a folder of files."""

    name: str
    """Its file or folder in the weights folder."""
    purpose: str
    source: str
    """Address of the file, or id on the Hugging Face hub of the folder."""
    licence: str
    bytes_about: int
    """To be fetched, and made by `convert`."""
    files: tuple[str, ...] = ()
    """Patterns that a folder must hold a file of each; `a|b` where b will do if there is no a. Empty: a single file."""
    more_files: tuple[str, ...] = ()
    """Patterns of what is fetched too, where it is there."""
    sha256: str = ""
    """Of a single file, or how it begins; empty where it is not known."""
    num_bytes: int | None = None
    """Exact size of a single file, where its digest is not known."""
    convert: str = ""
    """`"module:function"` that makes what a policy loads of the files in a folder; called with name and folder."""

    @property
    def path(self) -> Path:
        return storage("weights") / self.name


# ---------------------------------------------------------------- on this machine


def missing_files(weights: Weights, path: Path) -> list[str]:
    """What of these weights `path` lacks; for a single file its own name."""
    if not weights.files:
        return [] if path.is_file() else [path.name]
    names = [each.name for each in path.iterdir() if each.is_file()] if path.is_dir() else []
    return [pattern for pattern in weights.files if not _chosen(pattern, names)]


def _chosen(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern of `Weights.files` asks for."""
    for choice in pattern.split("|"):
        if found := fnmatch.filter(names, choice):
            return found
    return []


def state(weights: Weights) -> State:
    path = weights.path
    if missing_files(weights, path):
        return "unfinished" if path.exists() else "missing"
    record = _record(path)
    unfinished = record == FETCHING or (weights.convert and record is None)
    return "unfinished" if unfinished else "there"


def local(weights: Weights) -> Path | None:
    """Where they lie, if they are there, whole."""
    return weights.path if state(weights) == "there" else None


def locate(weights: Weights) -> Path:
    """As `local`.

    Raises PrerequisiteError, with what to do, where a file is missing, CorruptDataError where it has another size.
    """
    if (path := local(weights)) is not None:
        _check_size(weights, path)
        return path
    lacking = missing_files(weights, weights.path)
    what = weights.path / lacking[0] if weights.files and lacking and weights.path.exists() else weights.path
    raise PrerequisiteError(
        f"{weights.purpose}: {what} {'is missing' if lacking else 'was not fetched to its end'} ({weights.licence})",
        hint=f"gcpo-bench models fetch {weights.name}, or with --from FOLDER where there is no network",
    )


def model_digest(folder: Path) -> str:
    """One checksum over the weights and config.json of a folder in transformers' layout: what makes the network.

    Raises PrerequisiteError where one of them is missing.
    """
    file = next((folder / name for name in MODEL_FILES if (folder / name).is_file()), None)
    if file is None or not (folder / "config.json").is_file():
        raise PrerequisiteError(
            f"{folder} holds no {'config.json' if file else ' or '.join(MODEL_FILES)}",
            hint="name a folder in transformers' layout",
        )
    return checksum_of(f"{checksum(file)} {checksum(folder / 'config.json')}".encode())


def verify(weights: Weights) -> str:
    """Read every file again, and compare with what was fetched or what the publisher states.

    Returns what could be checked, in words. Raises PrerequisiteError where a file is missing, CorruptDataError where
    one changed or is another.
    """
    path = locate(weights)
    recorded = recorded_checksums(path)
    for name, expected in recorded.items():
        file = path / name if weights.files else path
        if (found := checksum(file)) != expected:
            raise CorruptDataError(
                f"{file} is damaged: checksum {found}, fetched was {expected}",
                hint=f"delete it and fetch it again: gcpo-bench models fetch {weights.name}",
            )
    if published := _check(weights, path):
        return published
    if recorded:
        return f"{len(recorded)} files, as they were fetched"
    return "all files are there; they were not fetched by gcpo-bench, and their publisher states no digest"


def _check(weights: Weights, path: Path) -> str:
    """What the publisher states of a single file, in words; empty where that is nothing."""
    _check_size(weights, path)
    if not weights.sha256:
        return f"{weights.num_bytes:,} bytes, as published" if weights.num_bytes else ""
    digest = sha256(path)
    if not digest.startswith(weights.sha256):
        raise CorruptDataError(
            f"{path}: SHA-256 is {digest}, should begin with {weights.sha256}",
            hint="it was cut off in a download, or is another checkpoint; fetch it again",
        )
    return f"sha256 {digest}, as published"


def _check_size(weights: Weights, path: Path) -> None:
    if weights.num_bytes not in (None, path.stat().st_size):
        raise CorruptDataError(
            f"{path} has {path.stat().st_size:,} bytes, published are {weights.num_bytes:,}", hint="fetch it again"
        )


def _record_path(path: Path) -> Path:
    return path / RECORD if path.is_dir() else path.with_name(f"{path.name}.{RECORD}")


def _record(path: Path) -> Any:
    record = _record_path(path)
    return read_json(record) if record.is_file() else None


def recorded_checksums(path: Path) -> dict[str, str]:
    """Name -> checksum of what was fetched; empty where nothing is recorded."""
    record = _record(path)
    if record is None or record == FETCHING:
        return {}
    try:
        return {name: str(entry["checksum"]) for name, entry in record["files"].items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise CorruptDataError(
            f"{_record_path(path)} is damaged", hint=f"fetch it again: delete {path} and the record first"
        ) from error


# ---------------------------------------------------------------- fetching


def fetch(weights: Weights, source: Path | None = None) -> Path:
    """Put weights into the weights folder: from `source`, a folder that holds them, or from where they are published.

    What is there already is not fetched again; an interrupted download goes on where it stopped. A single file replaces
    what was there before only when it is whole.

    Raises:
        ConfigError: `source` holds something else.
        PrerequisiteError: no network, no such repository, a licence to accept first, or too little disk.
        CorruptDataError: they are not the published ones, or cannot be converted.
    """
    path = weights.path
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if weights.files:
        _fetch_folder(weights, source)
    else:
        _fetch_file(weights, source)
    files = [path] if path.is_file() else sorted(each for each in path.iterdir() if _is_weights(each))
    record = {each.name: {"bytes": each.stat().st_size, "checksum": checksum(each)} for each in files}
    origin = weights.source if source is None else str(source.resolve())
    write_json(_record_path(path), {"name": weights.name, "source": origin, "files": record})
    return path


def _is_weights(path: Path) -> bool:
    return path.is_file() and path.name != RECORD and not path.name.endswith(".tmp")


def _fetch_file(weights: Weights, source: Path | None) -> None:
    part = weights.path.with_name(f"{weights.path.name}.part")
    if source is None:
        _require_disk(weights.path.parent, weights.bytes_about - (part.stat().st_size if part.is_file() else 0))
        _download(weights, part)
    else:
        found = _found(weights, source)
        _require_disk(weights.path.parent, found.stat().st_size)
        with writing(part):
            shutil.copyfile(found, part)
    try:
        _check(weights, part)
    except CorruptDataError:
        part.unlink()  # going on with it would not mend it
        raise
    with writing(weights.path):
        os.replace(part, weights.path)


def _fetch_folder(weights: Weights, source: Path | None) -> None:
    path = weights.path
    found = None if source is None else _found(weights, source)
    with writing(path):
        path.mkdir(exist_ok=True)
    if state(weights) != "there":  # what was whole stays so, whatever comes of this
        write_json(path / RECORD, FETCHING)
    present = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    if found is None:
        _require_disk(path, weights.bytes_about - present)
        _from_hub(weights, path)
    else:
        _copy(weights, found, path)
    if missing := missing_files(weights, path):
        raise PrerequisiteError(
            f"{weights.source} has no {missing[0]}", hint=f"get it by hand, then: {_by_hand(weights)}"
        )
    if weights.convert:
        module, _, function = weights.convert.partition(":")
        getattr(importlib.import_module(module), function)(weights, path)


def _require_disk(folder: Path, wanted: int) -> None:
    missing = wanted + SPARE_BYTES - shutil.disk_usage(folder).free
    if missing > 0:
        raise PrerequisiteError(
            f"{folder} needs {missing / 1e9:.1f} GB more than the disk has free",
            hint="free some space, or set GCPO_BENCH_HOME to a folder on another disk",
        )


def _found(weights: Weights, source: Path) -> Path:
    """The file or folder itself, which may lie in `source`."""
    if not source.is_dir():
        raise ConfigError(f"there is no folder {source}", hint="name the folder that holds the files")
    for each in (source / weights.name, source):
        if not missing_files(weights, each):
            return each
    lacking = missing_files(weights, source)[0] if weights.files else weights.name
    raise ConfigError(f"{source} holds no {lacking}", hint=f"it must hold what {weights.source} publishes")


def _wanted(weights: Weights, names: Sequence[str]) -> list[str]:
    chosen = (_chosen(pattern, names) for pattern in (*weights.files, *weights.more_files))
    return sorted({name for found in chosen for name in found})


def _copy(weights: Weights, source: Path, path: Path) -> None:
    names = _wanted(weights, [each.name for each in source.iterdir() if _is_weights(each)])
    _require_disk(path, sum((source / name).stat().st_size for name in names))
    for name in names:
        if (source / name).resolve() == (path / name).resolve():
            continue
        part = path / f"{name}.tmp"
        with writing(part):
            shutil.copyfile(source / name, part)
            os.replace(part, path / name)


def _from_hub(weights: Weights, path: Path) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        names = _wanted(weights, huggingface_hub.HfApi().list_repo_files(weights.source))
        huggingface_hub.snapshot_download(weights.source, allow_patterns=names, local_dir=path)
    except errors.GatedRepoError as error:
        raise PrerequisiteError(
            f"{weights.source} asks for its licence to be accepted",
            hint=f"accept it at https://huggingface.co/{weights.source}, then log in with: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise PrerequisiteError(
            f"the hub has no repository {weights.source}", hint=f"get it by hand, then: {_by_hand(weights)}"
        ) from error
    except GcpoBenchError:
        raise
    except Exception as error:  # the network fails in many ways, and each library wraps them in its own
        if isinstance(error, OSError) and error.errno is not None:
            with writing(path):
                raise
        raise _unreachable(weights, error) from error
    # without network the hub's client is content with a folder that holds anything at all
    if missing := [name for name in names if not (path / name).is_file()]:
        raise _unreachable(weights, f"{len(missing)} of {len(names)} files are missing, the first is {missing[0]}")


def _download(weights: Weights, part: Path) -> None:
    """Into `part`, from where it ends."""
    import http.client
    import urllib.error
    import urllib.request

    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(weights.source, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            goes_on = getattr(response, "status", None) == http.client.PARTIAL_CONTENT
            length = response.headers.get("Content-Length")
            with writing(part), part.open("ab" if goes_on else "wb") as file:
                shutil.copyfileobj(response, file, 1 << 20)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # which says that it is all here
            raise _unreachable(weights, error) from error
        return
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise _unreachable(weights, error) from error
    got = part.stat().st_size - (start if goes_on else 0)
    if length is not None and got != int(length):
        raise _unreachable(weights, f"it broke off after {part.stat().st_size:,} bytes; fetch again to go on")


def _unreachable(weights: Weights, error: Exception | str) -> PrerequisiteError:
    reason = " ".join(str(getattr(error, "reason", error)).split())[:200]
    return PrerequisiteError(
        f"{weights.source} could not be fetched: {reason}",
        hint=f"check the network, or get it elsewhere, then: {_by_hand(weights)}",
    )


def _by_hand(weights: Weights) -> str:
    return f"gcpo-bench models fetch {weights.name} --from FOLDER"

"""Published weights on this machine: where they lie, whether they are whole, how they get here.

None is shipped, and nothing is downloaded behind the user's back. In the weights folder (`weights` in
`gcpo_bench.files.storage`) each has its own name, a file or a folder. What was fetched is recorded with its checksums,
in the folder or beside the file; a copy that was put there by hand needs no record. What there is to fetch is listed in
`gcpo_bench.catalogue`.
"""

from __future__ import annotations

import fnmatch
import importlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError
from gcpo_bench.files import (
    DISK_FULL,
    NOT_WRITABLE,
    checksum,
    checksum_of,
    read_json,
    sha256,
    storage,
    write_json,
    writing,
)
from gcpo_bench.weight_files import check_whole, refuse_adapter

RECORD = "gcpo-bench.json"
FETCHING = {"state": "fetching"}
"""The record of a folder while files are still coming; so half a download is not taken for all of it."""
SPARE_BYTES = 1_000_000_000
"""Disk that stays free after a download."""
TIMEOUT_S = 60

BLOCK_BYTES = 1 << 20

Show = Callable[[int, int], None]
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
    """Patterns that a folder must hold a file of each; `a|b|c` where the first that is there will do. Empty: a single
    file."""
    more_files: tuple[str, ...] = ()
    """Patterns of what is fetched too, where it is there."""
    sha256: str = ""
    """Of a single file, or how it begins; empty where it is not known."""
    num_bytes: int | None = None
    """Exact size of a single file, where its digest is not known."""
    model_type: str = ""
    """What the hub says that a folder must be; empty where it is not asked."""
    check: str = ""
    """`"module:function"` that raises where a folder of the right files holds another model; called as `convert`."""
    convert: str = ""
    """`"module:function"` that makes what a policy loads of the files in a folder; called with this and the folder."""
    converted_bytes: int = 0
    """Of `bytes_about`, what `convert` makes."""

    @property
    def path(self) -> Path:
        return storage("weights") / self.name


# ---------------------------------------------------------------- on this machine


def missing_files(weights: Weights, path: Path) -> list[str]:
    """What of these weights `path` lacks; for a single file its own name."""
    if not weights.files:
        return [] if path.is_file() else [path.name]
    names = _names(path) if path.is_dir() else []
    return [pattern for pattern in weights.files if not _chosen(pattern, names)]


def _names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if _is_weights(each))


def files_of(weights: Weights, folder: Path) -> list[Path]:
    """For each of `weights.files` the first file of `folder` that it asks for; `folder` lacks none."""
    return [folder / _chosen(pattern, _names(folder))[0] for pattern in weights.files]


def _words(pattern: str) -> str:
    return pattern.replace("|", " or ")


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
    what = weights.path / _words(lacking[0]) if weights.files and lacking and weights.path.exists() else weights.path
    raise PrerequisiteError(
        f"{weights.purpose}: {what} {'is missing' if lacking else 'was not fetched to its end'} ({weights.licence})",
        hint=f"gcpo-bench models fetch {weights.name}, or with --from FOLDER where there is no network",
    )


def model_digest(folder: Path) -> str:
    """One checksum over the weights and config.json of a folder in transformers' layout: what makes the network.

    Raises PrerequisiteError where one of them is missing, ConfigError where adapters beside them change it.
    """
    refuse_adapter(folder)  # transformers would read them too, and their base instead of these weights
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
    one changed, was cut off or is another model's.
    """
    path = locate(weights)
    _check_content(weights, path)
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


def _check_content(weights: Weights, path: Path) -> None:
    """Raises CorruptDataError or ConfigError where files are cut off, incomplete or another model's."""
    if not weights.files:
        check_whole([path])
        return
    check_whole(path / name for name in _wanted(weights, _names(path)))
    if weights.check:
        _call(weights.check, weights, path)


def _call(target: str, weights: Weights, folder: Path) -> None:
    module, _, function = target.partition(":")
    getattr(importlib.import_module(module), function)(weights, folder)


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


def recorded_checksums(path: Path, *, unchanged: bool = False) -> dict[str, str]:
    """Name -> checksum of what was fetched; empty where nothing is recorded.

    With `unchanged`, only of files whose size and time of writing still are those recorded.
    """
    record = _record(path)
    if record is None or record == FETCHING:
        return {}
    folder = path if path.is_dir() else path.parent
    try:
        return {
            name: str(entry["checksum"])
            for name, entry in record["files"].items()
            if not unchanged or stamp(folder / name) == (entry["bytes"], entry.get("written_ns"))
        }
    except (TypeError, KeyError, AttributeError) as error:
        raise CorruptDataError(
            f"{_record_path(path)} is damaged", hint=f"fetch it again: delete {path} and the record first"
        ) from error


def stamp(file: Path) -> tuple[int, int]:
    """Bytes, and nanoseconds at the last writing: what tells, unread, that a file is another; zeros where none is."""
    found = file.stat() if file.is_file() else None
    return (found.st_size, found.st_mtime_ns) if found else (0, 0)


# ---------------------------------------------------------------- fetching


def fetch(weights: Weights, source: Path | None = None, show: Show = lambda done, total: None) -> Path:
    """Put weights into the weights folder: from `source`, a folder that holds them, or from where they are published.

    `show` is called with the bytes done and the bytes in all while a single file is downloaded.

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
        _fetch_file(weights, source, show)
    files = [path] if path.is_file() else [path / name for name in _names(path)]
    record = {each.name: _entry(each) for each in files}
    origin = weights.source if source is None else str(source.resolve())
    write_json(_record_path(path), {"name": weights.name, "source": origin, "files": record})
    return path


def _entry(file: Path) -> dict[str, Any]:
    size, written_ns = stamp(file)
    return {"bytes": size, "written_ns": written_ns, "checksum": checksum(file)}


def _is_weights(path: Path) -> bool:
    return path.is_file() and path.name != RECORD and not path.name.endswith(".tmp")


def _fetch_file(weights: Weights, source: Path | None, show: Show) -> None:
    part = weights.path.with_name(f"{weights.path.name}.part")
    if source is None:
        _require_disk(weights.path.parent, weights.bytes_about - (part.stat().st_size if part.is_file() else 0))
        _download(weights, part, show)
    else:
        found = _found(weights, source)
        _require_disk(weights.path.parent, found.stat().st_size)
        with writing(part):
            shutil.copyfile(found, part)
    try:
        _check(weights, part)
        _check_content(weights, part)
    except CorruptDataError:
        part.unlink()  # going on with it would not mend it
        raise
    with writing(weights.path):
        os.replace(part, weights.path)


def _fetch_folder(weights: Weights, source: Path | None) -> None:
    path = weights.path
    if source is None:
        names = _from_hub(weights, path)
        _check_content(weights, path)
    else:
        found = _found(weights, source)
        _check_content(weights, found)  # before a file of it replaces one that is good
        names = _wanted(weights, _names(found))
        files = [found / name for name in names if (found / name).resolve() != (path / name).resolve()]
        _require_disk(path.parent, weights.converted_bytes + sum(each.stat().st_size for each in files))
        _begin(path)
        _copy(files, path)
    if source is None or files:
        for name in _of_any_choice(weights, _names(path)) - set(names):
            (path / name).unlink()  # of an earlier fetch from elsewhere
    if weights.convert:
        _call(weights.convert, weights, path)


def _begin(path: Path) -> None:
    with writing(path):
        path.mkdir(exist_ok=True)
    write_json(path / RECORD, FETCHING)


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
    lacking = _words(missing_files(weights, source)[0]) if weights.files else weights.name
    raise ConfigError(f"{source} holds no {lacking}", hint=f"it must hold what {weights.source} publishes")


def _wanted(weights: Weights, names: Sequence[str]) -> list[str]:
    chosen = (_chosen(pattern, names) for pattern in (*weights.files, *weights.more_files))
    return sorted({name for found in chosen for name in found})


def _of_any_choice(weights: Weights, names: Sequence[str]) -> set[str]:
    """As `_wanted`, not of the first choice alone."""
    choices = (choice for pattern in (*weights.files, *weights.more_files) for choice in pattern.split("|"))
    return {name for choice in choices for name in fnmatch.filter(names, choice)}


def _copy(files: Sequence[Path], path: Path) -> None:
    for file in files:
        part = path / f"{file.name}.tmp"
        with writing(part):
            shutil.copyfile(file, part)
            os.replace(part, path / file.name)


def _from_hub(weights: Weights, path: Path) -> list[str]:
    """Returns the names of the files, all of which are in `path` then."""
    import huggingface_hub

    with _hub_errors(weights, path):
        # the client tries other calls again and again; this one, once, so that it tells at once where no network is
        info = huggingface_hub.HfApi().model_info(weights.source, files_metadata=True, timeout=TIMEOUT_S)
    _require_type(weights, info.config)
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}
    if lacking := [pattern for pattern in weights.files if not _chosen(pattern, list(sizes))]:
        raise PrerequisiteError(
            f"{weights.source} has no {_words(lacking[0])}", hint=f"get it by hand, then: {_by_hand(weights)}"
        )
    names = _wanted(weights, list(sizes))
    _require_disk(path.parent, weights.converted_bytes + sum(sizes[name] for name in names) - _brought(path, names))
    if state(weights) != "there":  # what is whole stays so where the network fails
        _begin(path)
    with _hub_errors(weights, path):
        huggingface_hub.snapshot_download(weights.source, allow_patterns=names, local_dir=path)
    # without network the hub's client is content with a folder that holds anything at all
    if missing := [name for name in names if not (path / name).is_file()]:
        raise _unreachable(weights, f"{len(missing)} of {len(names)} files are missing, the first is {missing[0]}")
    return names


@contextmanager
def _hub_errors(weights: Weights, path: Path) -> Iterator[None]:
    """What the hub's client raises, as errors with a mend; its warnings say the same and are left out."""
    from huggingface_hub import errors

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except errors.GatedRepoError as error:
        raise PrerequisiteError(
            f"{weights.source} asks for its licence to be accepted",
            hint=f"accept it at https://huggingface.co/{weights.source}, then log in with: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise PrerequisiteError(
            f"the hub has no repository {weights.source}, or does not show it to you",
            hint=f"check its name; hf auth login, if it is private; or get it by hand, then: {_by_hand(weights)}",
        ) from error
    except Exception as error:  # the network fails in many ways, and each library wraps them in its own
        if isinstance(error, OSError) and error.errno in DISK_FULL | NOT_WRITABLE:
            with writing(path):
                raise
        raise _unreachable(weights, error) from error
    finally:
        logger.setLevel(level)


def _brought(path: Path, names: Sequence[str]) -> int:
    """Bytes of these files that are in `path`, with what an interrupted download left of them."""
    files = [*(path / name for name in names), *(path / ".cache").rglob("*")]
    return sum(each.stat().st_size for each in files if each.is_file())


def _require_type(weights: Weights, config: Mapping[str, Any] | None) -> None:
    found = (config or {}).get("model_type", weights.model_type) or "nameless"
    if weights.model_type and found != weights.model_type:
        raise ConfigError(
            f"{weights.source} holds a {found!r} model, and of the hub's only {weights.model_type!r} can be read",
            hint="Janus-Pro: deepseek-community/Janus-Pro-1B, -7B, or what was trained from them; "
            "LlamaGen: gcpo-bench models fetch llamagen-xl-256 --from FOLDER",
        )


def _download(weights: Weights, part: Path, show: Show) -> None:
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
            done = start if goes_on else 0
            total = done + int(length or 0)
            with writing(part):
                file = part.open("ab" if goes_on else "wb")
            with file:
                while block := response.read(BLOCK_BYTES):
                    with writing(part):
                        file.write(block)
                        file.flush()
                    done += len(block)
                    show(done, max(done, total))
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # which says that it is all here
            raise _unreachable(weights, error) from error
        return
    except (OSError, http.client.HTTPException) as error:  # of the network: those of the disk are ours by now
        raise _unreachable(weights, error) from error
    if length is not None and done != total:
        raise _unreachable(weights, f"it broke off after {done:,} bytes; fetch again to go on")


def _unreachable(weights: Weights, error: Exception | str) -> PrerequisiteError:
    reason = " ".join(str(getattr(error, "reason", error)).split())[:200]
    return PrerequisiteError(
        f"{weights.source} could not be fetched: {reason}",
        hint=f"check the network, or get it elsewhere, then: {_by_hand(weights)}",
    )


def _by_hand(weights: Weights) -> str:
    return f"gcpo-bench models fetch {weights.name} --from FOLDER"

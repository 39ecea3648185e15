"""Where a diffusers pipeline lies: a folder on this machine, or a repository of the Hugging Face hub.

Of a repository only `model_index.json` is fetched at first: it says which pipeline it is, so a wrong one is told before
gigabytes are. The commit that a revision stands for is looked up once, and everything is taken from that commit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from diffusers import DiffusionPipeline
from huggingface_hub import errors

from gcpo_bench.errors import ConfigError, CorruptDataError, GcpoBenchError, PrerequisiteError
from gcpo_bench.files import DISK_FULL, checksum, checksum_of, read_json

INDEX = "model_index.json"
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    name: str
    """Folder, or id on the hub."""
    folder: Path
    """Where its model_index.json lies."""
    commit: str
    """Of the hub's repository; empty for a folder."""
    index: Mapping[str, Any]
    """What model_index.json says: the pipeline's class, and component -> (library, class)."""

    def components(self) -> dict[str, tuple[str, str]]:
        """Component -> (library, class), those that are there."""
        found = {}
        for name, value in self.index.items():
            match value:
                case [str(library), str(class_name)] if not name.startswith("_"):
                    found[name] = (library, class_name)
        return found

    def digest(self) -> str:
        """What the weights and their configuration are: a commit of the hub, or a checksum over all files of a folder.

        Reading a folder takes about a second a gigabyte.
        """
        if self.commit:
            return f"commit {self.commit}"
        inside = (path for name in sorted(self.components()) for path in sorted((self.folder / name).rglob("*")))
        files = [self.folder / INDEX, *(path for path in inside if path.is_file())]
        sums = [[path.relative_to(self.folder).as_posix(), checksum(path)] for path in files]
        return checksum_of(json.dumps(sums).encode())

    def fetch(self, variant: str | None) -> Path:
        """The folder with all of it, after a download where it is not on this machine."""
        if not self.commit:
            return self.folder
        return Path(
            _from_hub(self.name, lambda: DiffusionPipeline.download(self.name, revision=self.commit, variant=variant))
        )


def locate(name: str, revision: str | None) -> Checkpoint:
    """Find a pipeline by its folder, or else by its id on the hub.

    Raises ConfigError where there is none, PrerequisiteError where it cannot be had, CorruptDataError for a damaged
    index.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision:
            raise ConfigError(f"{name} is a folder and has no revision {revision!r}", hint="leave revision out")
        if not (folder / INDEX).is_file():
            raise ConfigError(
                f"{name} holds no diffusers pipeline: it has no {INDEX}",
                hint="name the folder that a pipeline's save_pretrained wrote, or an id on the hub",
            )
        return Checkpoint(name=name, folder=folder, commit="", index=_index(folder / INDEX))
    path = Path(_from_hub(name, lambda: huggingface_hub.hf_hub_download(name, INDEX, revision=revision)))
    return Checkpoint(name=name, folder=path.parent, commit=path.parent.name, index=_index(path))


def _index(path: Path) -> dict[str, Any]:
    index = read_json(path)
    if not isinstance(index, dict) or "_class_name" not in index:
        raise CorruptDataError(f"{path} is damaged: it names no pipeline", hint="fetch it again")
    return index


def _from_hub(name: str, fetch: Callable[[], Result]) -> Result:
    try:
        return fetch()
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's errors
        raise _explained(name, error) from error


def _explained(name: str, error: Exception) -> GcpoBenchError:
    by_hand = f"on a machine with network: hf download {name} --local-dir FOLDER; then --generator diffusers:FOLDER"
    match error:
        case errors.HFValidationError():
            return ConfigError(
                f"{name!r} is neither a folder nor an id on the Hugging Face hub",
                hint=f"name a folder that holds {INDEX}, or an id such as stabilityai/stable-diffusion-xl-base-1.0",
            )
        case errors.GatedRepoError():
            return PrerequisiteError(
                f"{name} is gated: its terms must be accepted first",
                hint=f"accept them at https://huggingface.co/{name}, then log in on this machine: hf auth login",
            )
        case errors.RepositoryNotFoundError():
            return ConfigError(
                f"there is no folder {name!r} and no such repository on the hub, or it is private",
                hint="check the spelling; for a private one log in first: hf auth login",
            )
        case errors.RevisionNotFoundError():
            return ConfigError(f"{name} has no such revision", hint="use a branch, tag or commit of the repository")
        case errors.LocalEntryNotFoundError():
            return PrerequisiteError(
                f"there is no folder {name!r}, it is not in the hub's cache, and the hub cannot be reached",
                hint=by_hand,
            )
        case errors.EntryNotFoundError():
            return ConfigError(
                f"{name} holds no diffusers pipeline: it has no {INDEX}", hint="choose another repository"
            )
        case ValueError():  # diffusers', of what a repository holds
            return ConfigError(f"{name}: {one_line(error)}", hint="check the option variant, or leave it out")
        case OSError() if error.errno in DISK_FULL:
            return PrerequisiteError(
                f"{name} cannot be fetched: the disk is full", hint="free some space, or set HF_HOME to another disk"
            )
        case _:
            return PrerequisiteError(f"{name} cannot be fetched: {one_line(error)}", hint=by_hand)


def one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]

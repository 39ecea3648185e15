"""Whose images an evaluation outside a run judged: `source.json`, beside its samples.jsonl and scores.json.

{"kind": "folder" | "generator",
 "name": what tables call it,
 "images": what the samples' image paths are relative to; itself relative to the folder of source.json where it lies in
           the folder above or below that, else absolute,
 "generator": its settings, or null}

It is written before anything is scored, so whatever lies beside it is known by its name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gcpo_bench.errors import CorruptDataError, RunError
from gcpo_bench.files import read_json, write_json

FILE = "source.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    kind: Literal["folder", "generator"]
    name: str
    """What tables call it."""
    images: Path
    """What the samples' image paths are relative to."""
    generator: Mapping[str, Any] | None = None
    """Who drew the images and how, as plain JSON; None where nobody says."""


def write_source(out: Path, source: Source) -> None:
    """Record the source of the evaluation in `out`, the folder `evaluations/<name>/<benchmark>`."""
    place, images = out.resolve(), source.images.resolve()
    moves_along = images.is_relative_to(place.parent)  # such an evaluation can be copied elsewhere, images and all
    record = {
        "kind": source.kind,
        "name": source.name,
        "images": Path(os.path.relpath(images, place)).as_posix() if moves_along else str(images),
        "generator": None if source.generator is None else dict(source.generator),
    }
    write_json(out / FILE, record)


def read_source(out: Path) -> Source:
    """What `write_source` left in `out`.

    Raises RunError where there is none, CorruptDataError where the file is damaged.
    """
    path = out / FILE
    if not path.exists():
        raise RunError(f"{out} has no {FILE}", hint="evaluate the images again; the scores are found, not made again")
    match read_json(path):
        case {
            "kind": "folder" | "generator" as kind,
            "name": str(name),
            "images": str(images),
            "generator": dict() | None as generator,
        } if name and images:
            return Source(kind=kind, name=name, images=Path(os.path.normpath(out / images)), generator=generator)
        case _:
            raise CorruptDataError(f"{path} is damaged: it names no source", hint="evaluate the images again")

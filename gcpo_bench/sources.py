"""Images that no run drew: where they and their scores lie, and whose they are.

evaluations/<name>/
  generator.json   what drew the images and how; missing where somebody else did
  images/<prompt set>/
  <benchmark>/     samples.jsonl, scores.json, and source.json:

{"kind": "folder" | "generator",
 "name": what tables call it,
 "images": what the samples' image paths are relative to; itself relative to the folder of source.json where it lies in
           the folder above or below that, else absolute,
 "generator": its settings, or null}

source.json is written before anything is scored, so whatever lies beside it is known by its name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gcpo_bench.errors import CorruptDataError, RunError
from gcpo_bench.files import inline_yaml, read_json, write_json

FILE = "source.json"


@dataclass(frozen=True, slots=True)
class Collection:
    """The folder `evaluations/<name>` of a generator."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def images_dir(self, prompt_set: str) -> Path:
        """Where a prompt set's images go."""
        return self.path / "images" / prompt_set

    def evaluation_dir(self, benchmark: str) -> Path:
        """Where a benchmark's scores go."""
        return self.path / benchmark

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Keep the folder for images that are drawn like this; `settings` is plain JSON.

        Raises RunError where it holds images that were drawn otherwise: hours of work are not replaced unasked.
        """
        path = self.path / "generator.json"
        if next((self.path / "images").rglob("*.png"), None) is not None:
            self._refuse_others(_flat(read_json(path) if path.exists() else {}), _flat(dict(settings)))
        write_json(path, dict(settings))

    def _refuse_others(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        keys = dict.fromkeys([*before, *now])
        changed = [
            f"{key} is {inline_yaml(now.get(key))}, was {inline_yaml(before.get(key))}"
            for key in keys
            if before.get(key) != now.get(key)
        ]
        if changed:
            how = ", ".join(changed) if before else "nothing says how"
            raise RunError(
                f"{self.path} holds images that were drawn otherwise: {how}",
                hint="choose another --name or --out, or delete that folder",
            )


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, each in value.items() for key, leaf in _flat(each, f"{path}.{name}".strip(".")).items()}


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


def claim_source(out: Path, source: Source) -> None:
    """As `write_source`. Raises RunError where the evaluation there is of other images: it is not replaced unasked."""
    if other := other_images(out, source.images):
        raise RunError(
            f"{out} holds the scores of other images: {other}",
            hint=f"give these a --name or --out of their own; if they are the same, moved, delete {out / FILE}",
        )
    write_source(out, source)


def other_images(out: Path, images: Path) -> Path | None:
    """What the evaluation in `out` is of, if not of the images in this folder; None also where nobody says."""
    try:
        source = read_source(out)
    except (RunError, CorruptDataError):
        return None
    return None if source.images.resolve() == images.resolve() else source.images


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

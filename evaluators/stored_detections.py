"""Detections that another program left in a file, such as UniDet's, which cannot be run here.

JSON lines, one an image: `prompt_id`, `image_index`, and lists of the same length: `labels`, `confidences`, `boxes`
(left, top, right, bottom in T2I-CompBench's frame, where a square picture is 479 pixels wide), and for 3D positions
`depths` (mean of the depth map over the box, 0 to 1, larger where nearer; null where the box holds no pixel).

A line that cannot be used is named and left out; its image is then unscored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.files import checksum_of, read_bytes

from .compbench import FRAME_LONG

Address = tuple[str, int]
"""Prompt id and number of the image."""
SLACK = 0.5
"""Pixels that a box may reach beyond the frame."""
MISSING = "no detections of this image are given"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDetections:
    name: str
    """Of the file."""
    digest: str
    """Checksum of the file."""
    rows: Mapping[Address, Mapping[str, Any]]
    """`labels`, `confidences`, `boxes`, perhaps `depths`, of each image."""
    lines: Mapping[Address, int]
    """Number of the line that an image's detections stand in."""
    twice: frozenset[Address]
    """Images with more than one line, none of which is used."""
    notes: tuple[str, ...]
    """What is wrong with the file, a line each."""

    def problem(self, address: Address) -> str:
        """Why there are no detections of this image; empty where there are."""
        if address in self.twice:
            return "its detections are given more than once"
        return "" if address in self.rows else MISSING


def read(path: Path) -> StoredDetections:
    """Raises ConfigError where there is no such file, CorruptDataError where not a single line can be used."""
    if not path.is_file():
        raise ConfigError(f"there is no file of detections {path}", hint="--option detections=FILE")
    data = read_bytes(path)
    rows: dict[Address, dict[str, Any]] = {}
    lines: dict[Address, int] = {}
    twice: set[Address] = set()
    notes = []
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            address, row = _parse(line)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            notes.append(f"{path.name}: line {number} is no image's detections: {reason}")
            continue
        if address in lines:
            notes.append(
                f"{path.name}: line {number} is {shown(address)} again, as line {lines[address]}; none is used"
            )
            twice.add(address)
            rows.pop(address, None)
        else:
            rows[address], lines[address] = row, number
    if not rows:
        raise CorruptDataError(
            notes[0] if notes else f"{path.name} is empty", hint="no line of it can be used; see the documentation"
        )
    return StoredDetections(
        name=path.name,
        digest=checksum_of(data),
        rows=rows,
        lines=lines,
        twice=frozenset(twice),
        notes=tuple(notes),
    )


def shown(address: Address) -> str:
    return f"prompt {address[0]!r}, image {address[1]}"


def _parse(line: bytes) -> tuple[Address, dict[str, Any]]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    prompt_id, index = row["prompt_id"], row["image_index"]
    if not isinstance(prompt_id, str) or type(index) is not int:
        raise ValueError("prompt_id is to be a text, image_index a whole number")
    found: dict[str, Any] = {
        "labels": [_label(each) for each in _list(row["labels"])],
        "confidences": [_share(each, "a confidence") for each in _list(row["confidences"])],
        "boxes": [_box(each) for each in _list(row["boxes"])],
    }
    if "depths" in row:
        found["depths"] = [None if each is None else _share(each, "a depth") for each in _list(row["depths"])]
    if len({len(each) for each in found.values()}) > 1:
        raise ValueError("its lists are not equally long")
    return (prompt_id, index), found


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.40} is no list")
    return value


def _label(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r:.40} is no label")
    value.encode()  # half a character cannot be written down again: UnicodeEncodeError is a ValueError
    return value


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} as {what} is no number")
    return float(value)


def _share(value: Any, what: str) -> float:
    if not 0 <= _number(value, what) <= 1:
        raise ValueError(f"{value!r:.40} as {what} is not from 0 to 1")
    return float(value)


def _box(value: Any) -> list[float]:
    sides = [_number(each, "a side of a box") for each in _list(value)]
    if len(sides) != 4:
        raise ValueError("a box has four sides: left, top, right, bottom")
    left, top, right, bottom = sides
    if left > right or top > bottom:
        raise ValueError("a box ends before it begins: its sides are left, top, right, bottom")
    if min(left, top) < -SLACK or max(right, bottom) > FRAME_LONG + SLACK:
        raise ValueError(f"a box reaches beyond the frame of {FRAME_LONG} pixels: scale boxes to it")
    return sides

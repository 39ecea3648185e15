"""What was seen in images, kept on disk: the cache, the memory of a stopped evaluation, and what shards hand over.

<folder>/
  <look>.jsonl              one line with what was looked with, then one an image and question
  <look>-shard-2-of-7.jsonl the same, from one of several processes

<look> is a digest of weights and flags. An entry is found by the image's own checksum, not by its name; so a file that
is renamed, copied or put beside others is not looked at again, and one that changes is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcpo_bench.errors import CorruptDataError, RunError
from gcpo_bench.files import append_jsonl, read_jsonl

from .generate import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One image, looked at."""

    value: Any = None
    """What the benchmark saw; None where there is a problem."""
    problem: str = ""
    """Why the image cannot be scored."""
    note: str = ""
    """What is remarkable about the file."""


class Observations:
    """All that was seen with one look; new entries go to this process's own file."""

    def __init__(self, folder: Path, look: Mapping[str, Any], shard: tuple[int, int] | None = None) -> None:
        self.look = dict(look)
        key = digest(self.look)[:16]
        name = key if shard is None else f"{key}-shard-{shard[0]}-of-{shard[1]}"
        self._path = folder / f"{name}.jsonl"
        self._pattern = f"{key}*.jsonl"
        self._entries: dict[str, Seen] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes have added meanwhile."""
        for path in sorted(self._path.parent.glob(self._pattern)):
            self._read(path)

    def get(self, image_digest: str, question: Any) -> Seen | None:
        return self._entries.get(address(image_digest, question))

    def add(self, image_digest: str, question: Any, seen: Seen) -> None:
        """Kept at once, so that a stopped process loses nothing."""
        if not self._path.exists():
            append_jsonl(self._path, {"look": self.look})
        row = {"image": image_digest, "question": question}
        row |= {"problem": seen.problem} if seen.problem else {"value": seen.value}
        append_jsonl(self._path, row | ({"note": seen.note} if seen.note else {}))
        self._entries[address(image_digest, question)] = seen

    def _read(self, path: Path) -> None:
        for number, row in enumerate(read_jsonl(path), start=1):
            if "look" in row:
                continue
            if (
                not isinstance(row.get("image"), str)
                or "question" not in row
                or not ("value" in row) ^ ("problem" in row)
            ):
                raise CorruptDataError(
                    f"{path} is damaged: line {number} is no observation",
                    hint="delete that line or the file; what it held is looked at again",
                )
            seen = Seen(value=row.get("value"), problem=str(row.get("problem", "")), note=str(row.get("note", "")))
            self._entries[address(row["image"], row["question"])] = seen


def address(image_digest: str, question: Any) -> str:
    """Under which an observation is found."""
    return f"{image_digest} {digest(question)}"


def looks(folder: Path) -> list[dict[str, Any]]:
    """Everything that was looked with in this folder. Raises RunError where there is nothing."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        first = next(iter(read_jsonl(path)), {})
        if isinstance(first.get("look"), dict):
            found[digest(first["look"])] = first["look"]
    if not found:
        raise RunError(f"{folder} holds no stored observations", hint="evaluate once without --rescore")
    return list(found.values())

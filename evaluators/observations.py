"""What was seen in images, kept on disk: the cache, the memory of a stopped evaluation, and what shards hand over.

<folder>/
  <look>.jsonl              one line with what was looked with, then one an image and question
  <look>-shard-2-of-7.jsonl the same, from one of several processes

<look> is a digest of weights and flags; a benchmark of several parts has a file for each. An entry is found by the
image's own checksum, not by its name; so a file that is renamed, copied or put beside others is not looked at again,
and one that changes is. An entry marked as passing is good for the scores of now, and looked at again next time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcpo_bench.addresses import json_digest
from gcpo_bench.errors import CorruptDataError, RunError
from gcpo_bench.files import append_jsonl, read_jsonl


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One image, looked at."""

    value: Any = None
    """What the benchmark saw; None where there is a problem."""
    problem: str = ""
    """Why the image cannot be scored."""
    note: str = ""
    """What is remarkable about the file."""
    is_passing: bool = False
    """Whether another look may see something else."""


WHOLE = ""
"""The one part of a benchmark that has no others."""


class ObservationsByPart:
    """What each part of a benchmark saw."""

    def __init__(
        self, folder: Path, looks: Mapping[str, Mapping[str, Any]], shard: tuple[int, int] | None = None
    ) -> None:
        self._of = {part: Observations(folder, look, shard) for part, look in looks.items()}

    def refresh(self) -> None:
        for store in self._of.values():
            store.refresh()

    def lacking(self, image_digest: str, question: Any) -> list[str]:
        """The parts that have not looked yet, or may see something else now."""
        seen = {part: store.get(image_digest, question) for part, store in self._of.items()}
        return [part for part, each in seen.items() if each is None or each.is_passing]

    def get(self, image_digest: str, question: Any) -> Seen | None:
        """What all parts saw, by part; None where one has not looked."""
        seen: dict[str, Seen] = {}
        for part, store in self._of.items():
            each = store.get(image_digest, question)
            if each is None or each.problem:
                return each
            seen[part] = each
        values = {part: each.value for part, each in seen.items()}
        return Seen(
            value=values.get(WHOLE, values),
            note=next((each.note for each in seen.values() if each.note), ""),
            is_passing=any(each.is_passing for each in seen.values()),
        )

    def add(self, part: str, image_digest: str, question: Any, seen: Seen) -> None:
        self._of[part].add(image_digest, question, seen)


class Observations:
    """All that was seen with one look; new entries go to this process's own file."""

    def __init__(self, folder: Path, look: Mapping[str, Any], shard: tuple[int, int] | None = None) -> None:
        self.look = dict(look)
        key = json_digest(self.look)[:16]
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
        row |= {"note": seen.note} if seen.note else {}
        append_jsonl(self._path, row | ({"passing": True} if seen.is_passing else {}))
        self._take(address(image_digest, question), seen)

    def _take(self, place: str, seen: Seen) -> None:
        """Of two, the one that lasts; of equals, the later."""
        known = self._entries.get(place)
        if known is None or known.is_passing or not seen.is_passing:
            self._entries[place] = seen

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
            seen = Seen(
                value=row.get("value"),
                problem=str(row.get("problem", "")),
                note=str(row.get("note", "")),
                is_passing=row.get("passing") is True,
            )
            self._take(address(row["image"], row["question"]), seen)


def address(image_digest: str, question: Any) -> str:
    """Under which an observation is found."""
    return f"{image_digest} {json_digest(question)}"


def looks(folder: Path) -> list[dict[str, Any]]:
    """Everything that was looked with in this folder. Raises RunError where there is nothing."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        first = next(iter(read_jsonl(path)), {})
        if isinstance(first.get("look"), dict):
            found[json_digest(first["look"])] = first["look"]
    if not found:
        raise RunError(f"{folder} holds no stored observations", hint="evaluate once without --rescore")
    return list(found.values())

"""How the rows of one table were judged: what must be told with the numbers, and which rows were judged otherwise.

Numbers of unlike judgement may stand in one table only if it says so. Rows that were judged as the first one stand
unmarked; others get a mark each kind, and a line below the table says what it stands for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gcpo_bench.labels import label

from .comparisons import differing
from .evaluations import Evaluation, flatten
from .load import ReportData
from .tables import plain

SIGN = "§"
LIMIT = 400
"""Characters of a line below a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    marks: Mapping[str, str]
    """Row -> "§1" and so on; none for those judged as the first row."""
    labels: Mapping[str, str]
    """Row -> what its numbers must be quoted with; may be empty."""
    lines: tuple[str, ...]
    """What stands below the table."""

    def mark(self, row: str) -> str:
        return self.marks.get(row, "")

    def marked(self, row: str) -> str:
        """The row's name with its mark."""
        return f"{row} {self.marks[row]}" if row in self.marks else row


def judged(data: ReportData, benchmark: str) -> Judged:
    """Of every row that has scores on this benchmark."""
    rows = {row.label: row.evaluations(benchmark) for row in data.scored}
    rows = {name: evaluations for name, evaluations in rows.items() if evaluations}
    kinds: dict[str, list[str]] = {}
    for name, evaluations in rows.items():
        kinds.setdefault(_kind(evaluations), []).append(name)
    labels = {name: _label(evaluations) for name, evaluations in rows.items()}
    marks: dict[str, str] = {}
    lines: list[str] = []
    first: list[Evaluation] = []
    for number, names in enumerate(kinds.values()):
        told = labels[names[0]]
        if number == 0:
            first = rows[names[0]]
            lines += [f"{benchmark} judged with: {told}."] if told else []
            continue
        marks |= dict.fromkeys(names, f"{SIGN}{number}")
        difference = _difference(first, rows[names[0]])
        said = "; ".join(part for part in (told, f"differs in {difference}" if difference else "") if part)
        lines.append(f"{SIGN}{number} judged otherwise: {said}.")
    return Judged(marks=marks, labels=labels, lines=tuple(plain(line, LIMIT) for line in lines))


def _kind(evaluations: Sequence[Evaluation]) -> str:
    return json.dumps(
        sorted({json.dumps([e.judged_identity(), label(e.identity)], sort_keys=True) for e in evaluations})
    )


def _label(evaluations: Sequence[Evaluation]) -> str:
    """Of each kind once."""
    return plain(" / ".join(dict.fromkeys(filter(None, (label(each.identity) for each in evaluations)))), LIMIT)


def _difference(first: Sequence[Evaluation], other: Sequence[Evaluation]) -> str:
    known = flatten(first[0].judged_identity())
    unlike = (flatten(each.judged_identity()) for each in other)
    return "; ".join(dict.fromkeys(differing(known, each) for each in unlike if each != known))

"""Numbers as text: formats, Markdown and CSV tables that stay tables whatever a prompt contains."""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from .statistics import Interval

MINUS = "\u2212"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a spreadsheet formula begins."""
PROMPT_LIMIT = 160


def points(value: float, *, signed: bool = False) -> str:
    """A share as points of a hundred: 0.1234 -> "12.3"."""
    return number(100 * value, 1, signed=signed)


def number(value: float, digits: int, *, signed: bool = False) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", MINUS)


def seconds(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value:.2f} s"


def interval_text(interval: Interval, *, scale: float = 100.0, digits: int = 1, signed: bool = False) -> str:
    """`12.3 [10.1, 14.5]`."""
    value, low, high = (number(scale * x, digits, signed=signed) for x in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def plain(text: str, limit: int = PROMPT_LIMIT) -> str:
    """One visible line: control, bidirectional and separator characters are spelled out, long texts are cut."""
    shown = "".join(
        f"\\u{ord(c):04x}" if unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp", "Cs"} and c != "\n" else c
        for c in text
    )
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def without_place(value: Any) -> str:
    """A setting as text; of a path only its end, for where it lay says nothing to another machine."""
    text = str(value)
    return text.rstrip("/").rsplit("/", 1)[-1] if text.startswith(("/", "~/")) else text


def markdown_text(text: str, limit: int = PROMPT_LIMIT) -> str:
    """Text that Markdown shows as it is: no pipes, tags, links, emphasis or code."""
    return (
        re.sub(r"([\\`*_{}\[\]()#+!|<>~&$@-])", r"\\\1", plain(text, limit))
        .replace("\\<", "&lt;")
        .replace("\\>", "&gt;")
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numeric_from: int = 1) -> str:
    """Cells must be escaped already; columns from `numeric_from` on are right-aligned."""
    rule = ["---" if index < numeric_from else "---:" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)) + "\n"


LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\u2212": "$-$",
    "\u2013": "--",
    "\u2713": r"\checkmark",
    "\u00a7": r"\textsection{}",
    "\u2020": r"\dag{}",
    "\u2021": r"\ddag{}",
    "\u2026": r"\ldots{}",
    "\u221e": r"$\infty$",
}


def latex_text(text: str, limit: int = PROMPT_LIMIT) -> str:
    """Text that LaTeX prints as it is: no command, no maths, no comment."""
    return "".join(LATEX.get(character, character) for character in plain(text, limit))


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, align: str, caption: str, label: str) -> str:
    """A floating table with booktabs rules; cells are escaped here."""
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{latex_text(caption, 2000)}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        " & ".join(map(latex_text, header)) + r" \\",
        r"\midrule",
        *(" & ".join(map(latex_text, row)) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def csv_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """RFC 4180; text that a spreadsheet would take for a formula gets an apostrophe in front."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_csv_cell(cell) for cell in row] for row in rows)
    return buffer.getvalue()


def _csv_cell(cell: Any) -> Any:
    if isinstance(cell, float):
        return "" if math.isnan(cell) else repr(cell)
    if isinstance(cell, str):
        cell = plain(cell, limit=10_000)
        return f"'{cell}" if cell.startswith(FORMULA) else cell
    return cell


def jsonable(value: Any) -> Any:
    """The same with NaN and infinities as None, tuples as lists; for strict JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value

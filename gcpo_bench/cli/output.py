"""What commands print: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

WIDE = 200
"""Columns of a table that goes to a file or pipe, where nothing has to fit a screen."""


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False))


def shown(value: Any) -> str:
    """A value as people write it: a dash for what is not known, and of what only Python writes so, YAML."""
    from gcpo_bench.files import inline_yaml

    if value is None:
        return "-"
    return inline_yaml(value) if isinstance(value, (bool, list, tuple, dict)) else str(value)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "") -> None:
    """Columns whose name ends in `>` are set flush right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=visible(title) or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))  # Text: square brackets in values are no markup
    is_screen = sys.stdout.isatty()  # not what FORCE_COLOR says: a terminal without known width would cut names short
    Console(file=sys.stdout, force_terminal=is_screen, width=None if is_screen else WIDE).print(table)


def note(text: str) -> None:
    """A line for the reader at the screen; never part of the result."""
    sys.stderr.write(f"{visible(text)}\n")  # at once: a signal between text and line end would leave half a line
    sys.stderr.flush()


def visible(text: str) -> str:
    """With what would steer a terminal, or is no text, written out: names and messages come from anywhere."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)


def duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes for people: `3.4 MB`."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = 0
    while count >= 1000 and power < len(units) - 1:
        count /= 1000
        power += 1
    return f"{count:.0f} B" if power == 0 else f"{count:.1f} {units[power]}"


def shell_quote(words: Iterable[str]) -> str:
    import shlex

    return shlex.join(words)

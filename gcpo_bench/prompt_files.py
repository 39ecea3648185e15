"""Files of prompts: as benchmarks publish theirs, and as anybody writes their own.

A published file has one form, which is read strictly. One's own may be plain lines (.txt), JSON (.json, .jsonl,
.ndjson: a list, or an object a line) or a table (.csv, .tsv; commas, semicolons or tabs), in UTF-8 or UTF-16. A file of
another kind is refused: read as lines it would hold no known prompt, and that looks like good news.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.files import reading

Rows = list[tuple[str, dict[str, Any]]]
"""Text and metadata of each prompt, in order."""
TEXT_NAMES = ("prompt", "prompts", "caption", "text")
"""What keys and columns that hold the prompt are called, in any case; the first that is there is taken."""
DELIMITERS = ",;\t"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


# ---------------------------------------------------------------- published files


def read_geneval(text: str) -> Rows:
    """One JSON object a line: `prompt`, `tag`, `include`, perhaps `exclude`."""
    rows: Rows = []
    for number, line in enumerate(_lines(text), start=1):
        record = _object(line, number)
        rows.append((_text(record, number), {key: value for key, value in record.items() if key != "prompt"}))
    return rows


def read_lines(text: str) -> Rows:
    """One prompt a line."""
    return [(line.strip(), {}) for line in _lines(text) if line.strip()]


def read_csv(text: str) -> Rows:
    """Columns `Prompts` and `Category`."""
    rows = list(csv.DictReader(_lines(text)))
    if rows and "Prompts" not in rows[0]:
        raise ValueError("it has no column 'Prompts'")
    return [(row["Prompts"], {"tag": (row.get("Category") or "").strip()}) for row in rows]


def read_t2i_r1(text: str) -> Rows:
    """One JSON object a line: `prompt`, `task_type` and what is in the picture."""
    rows: Rows = []
    for number, line in enumerate(_lines(text), start=1):
        record = _object(line, number)
        rest = {key: value for key, value in record.items() if key not in {"prompt", "task_type"}}
        rows.append((_text(record, number), {"tag": str(record.get("task_type", "")), **rest}))
    return rows


def read_texts(text: str) -> Rows:
    """A JSON list of prompts."""
    try:
        texts = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is no JSON list of texts") from error
    if not isinstance(texts, list) or not all(isinstance(each, str) and each.strip() for each in texts):
        raise ValueError("it is no JSON list of texts")
    return [(each, {}) for each in texts]


def _lines(text: str) -> list[str]:
    """Without their ends, which may be CRLF. `str.splitlines` would also split at characters that prompts may hold."""
    return text.removesuffix("\n").replace("\r\n", "\n").split("\n")


def _object(line: str, number: int) -> dict[str, Any]:
    record = _parsed(line, number)
    if not isinstance(record, dict):
        raise ValueError(f"line {number} is no JSON object")
    return record


def _parsed(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is not JSON ({error})") from error


def _text(record: Mapping[str, Any], number: int) -> str:
    text = record.get("prompt")
    if not isinstance(text, str) or not text:
        raise ValueError(f"line {number} has no text in 'prompt'")
    return text


# ---------------------------------------------------------------- one's own


def read_own(path: Path) -> list[str]:
    """The prompts of anybody's file, in order; its name says of which kind it is.

    Raises ConfigError for a kind that is not known, CorruptDataError where it does not hold prompts of its kind.
    """
    read = _KINDS.get(path.suffix.lower())
    if read is None:
        raise ConfigError(
            f"{path}: files of prompts that end in {path.suffix} cannot be read",
            hint=f"write the prompts as one of {', '.join(filter(None, _KINDS))}",
        )
    with reading(path):
        content = path.read_bytes()
    try:
        prompts = [prompt.strip() for prompt in read(_decoded(content))]
        if not any(prompts):
            raise ValueError("it is empty")
        return [prompt for prompt in prompts if prompt]
    except (ValueError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise CorruptDataError(
            f"{path} cannot be read as prompts: {reason}",
            hint=f"one prompt a line (.txt), or JSON or a table that holds it under {TEXT_NAMES[0]!r}, in UTF-8",
        ) from error


def _decoded(content: bytes) -> str:
    """UTF-8, or UTF-16 that says so by its byte order mark; the mark is no part of the text."""
    try:
        return content.decode("utf-16" if content.startswith(UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not {error.encoding} text") from error


def _plain(text: str) -> list[str]:
    lines = [line for line, _ in read_lines(text)]
    if lines and lines[0][0] in "{[":
        raise ValueError("it holds JSON, not one prompt a line; name it .json")
    return lines


def _json(text: str) -> Iterable[str]:
    """Of a list of texts or objects, or of one object a line; blank lines are passed over."""
    try:
        whole = json.loads(text)
        records = [*enumerate(whole if isinstance(whole, list) else [whole], start=1)]
        unit = "entry"
    except (ValueError, RecursionError):
        records = [(row, _parsed(line, row)) for row, line in enumerate(_lines(text), start=1) if line.strip()]
        unit = "line"
    for number, record in records:
        if isinstance(record, dict):
            values = {key.lower(): value for key, value in record.items()}
            record = next((values[name] for name in TEXT_NAMES if name in values), None)
        if not isinstance(record, str):
            raise ValueError(f"{unit} {number} has no text in {_names()}")
        yield record


def _table(text: str) -> Iterable[str]:
    """Of the column that holds prompts, with whichever delimiter the first line shows one."""
    for delimiter in DELIMITERS:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [name.strip().lower() for name in next(rows, [])]
        if column := next((name for name in TEXT_NAMES if name in header), None):
            break
    else:
        raise ValueError(f"it has no column {_names()}")
    for row in rows:
        if row and len(row) != len(header):  # a comma that was meant as part of the prompt would cut it
            raise ValueError(f"line {rows.line_num} has {len(row)} cells, its header {len(header)}")
        yield row[header.index(column)] if row else ""


def _names() -> str:
    return " or ".join(map(repr, TEXT_NAMES))


_KINDS: Mapping[str, Callable[[str], Iterable[str]]] = {
    ".txt": _plain,
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _json),
    **dict.fromkeys((".csv", ".tsv"), _table),
    "": _plain,
}

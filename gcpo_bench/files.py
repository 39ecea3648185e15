"""Files that survive a kill, a full disk and a stranger: atomic writes, checked reads, checksums.

Everything a run leaves behind goes through here, so that the same few failures give the same few messages.

A JSON object that is written here, and each line of a file of them, ends with a checksum of its other keys (`xxh3`);
YAML ends with a comment that says that of the lines above. Reading verifies it and takes it off; what has none, because
another program or an older version wrote it, is taken as it is.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import xxhash
import yaml

from gcpo_bench import leftovers
from gcpo_bench.errors import CorruptDataError, PrerequisiteError

MAX_YAML_BYTES = 1_000_000
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NOT_WRITABLE = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ENOENT,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EIO,
        errno.ENXIO,
        errno.ESTALE,
    }
)
SEAL = "xxh3"
"""Key of an object's own checksum."""
SEAL_LINE = re.compile(r"# xxh3 of the lines above: ([0-9a-f]{32})\n?")
MEND = "restore it from a copy, or delete it and make it again"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full disk and a folder that may not be written into a PrerequisiteError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise PrerequisiteError(
                f"{path}: the disk is full ({error.strerror}); what was written before is safe",
                hint="free some space and run the same command again (train: with --resume), or choose another folder",
            ) from error
        if error.errno in NOT_WRITABLE:
            raise PrerequisiteError(
                f"{path} cannot be written: {error.strerror}",
                hint="choose a folder you may write to (for runs: --runs-dir), or mend its permissions",
            ) from error
        raise


@contextmanager
def reading(path: Path, hint: str = MEND) -> Iterator[None]:
    """Turns a file that is missing, unreadable or not text into an error that names `path`."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        mend = hint if hint != MEND else "restore it from a copy, or start over under another --name"
        raise CorruptDataError(f"{path} is missing or not a file", hint=mend) from error
    except PermissionError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}", hint="mend its permissions") from error
    except OSError as error:  # a failing disk, a lost server, a name that is too long
        raise PrerequisiteError(
            f"{path} cannot be read: {error.strerror}", hint="look at its disk, or leave it out"
        ) from error
    except UnicodeDecodeError as error:
        raise _corrupt(path, "it is not UTF-8 text", hint) from error


def _corrupt(path: Path, why: str, hint: str = MEND) -> CorruptDataError:
    return CorruptDataError(f"{path} is damaged: {why}", hint=hint)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A plain file to read. A pipe or device, which may never end, counts as no file; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # non-blocking: a pipe is not waited for
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise IsADirectoryError(errno.EISDIR, "it is no plain file", str(path))
            yield file
        finally:
            os.close(descriptor)


def read_bytes(path: Path, hint: str = MEND) -> bytes:
    with reading(path, hint), opened(path) as file:
        return file.read()


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` at once, when the block ends: readers see the old content or the
    new, never a part. Makes missing folders.

    `sync=False` skips the wait for the disk; right for many small files that can be made again, such as images.
    Raises PrerequisiteError where the disk is full or the folder may not be written; `path` then keeps its old content,
    as it does when the block fails.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with leftovers.file_for(path) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
            os.replace(file.name, path)


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """`replacing` with `data`."""
    with replacing(path, sync=sync) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with a checksum of its other keys, in their order, at its end."""
    content = {key: value for key, value in record.items() if key != SEAL}
    return {**content, SEAL: _seal_of(content)}


def unsealed(path: Path, record: dict[str, Any], what: str = "it", hint: str = MEND) -> dict[str, Any]:
    """The record without its checksum. Raises CorruptDataError naming `path` where that is of other content."""
    content = {key: value for key, value in record.items() if key != SEAL}
    if SEAL in record and record[SEAL] != _seal_of(content):
        raise _corrupt(path, f"{what} was changed after it was written", hint)
    return content


def _seal_of(content: Mapping[str, Any]) -> str:
    # of the values, so that another layout of the same ones is no damage
    return xxhash.xxh3_128_hexdigest(json.dumps(content, separators=(",", ":")).encode("ascii"))


def _dumped(value: Any, indent: int | None = None) -> bytes:
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    try:
        return text.encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # a file name that is no text, which JSON can only hold escaped
        return json.dumps(value, indent=indent, allow_nan=False).encode("ascii") + b"\n"


def write_json(path: Path, value: Any) -> None:
    """An object gets its checksum. Raises ValueError for NaN and infinities, which JSON does not have."""
    write_bytes(path, _dumped(sealed(value) if isinstance(value, Mapping) else value, indent=1))


def read_json(path: Path, hint: str = MEND) -> Any:
    """Raises CorruptDataError with this hint where it is no JSON or does not fit its checksum."""
    data = read_bytes(path, hint)
    try:
        with reading(path, hint):
            value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"it is not JSON ({error})", hint) from error
    return unsealed(path, value, hint=hint) if isinstance(value, dict) else value


def read_object(path: Path) -> dict[str, Any]:
    """As `read_json`, of a file that holds a JSON object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise _corrupt(path, "it is not a JSON object")
    return value


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line with its checksum, whole or not at all. A torn last line, left by a kill, is dropped first.

    Raises ValueError for NaN and infinities.
    """
    line = _dumped(sealed(row))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            size = _mend_tail(path, file.fileno())
            try:
                written = os.write(file.fileno(), line)
                if written < len(line):  # a nearly full disk takes a part first and fails on the next call
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise


def _mend_tail(path: Path, descriptor: int) -> int:
    """Make the file end with a whole line; its size in bytes then."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    content = os.pread(descriptor, size, 0)
    start = content.rfind(b"\n") + 1
    if _is_cut(content[start:]):
        os.ftruncate(descriptor, start)
        return start
    _parse_line(path, content.count(b"\n") + 1, content[start:])
    os.write(descriptor, b"\n")
    return size + 1


def _is_cut(line: bytes) -> bool:
    """Whether this is the beginning of a JSON object; one that is whole, with whatever behind it, is not."""
    try:
        value, _ = json.JSONDecoder().raw_decode(line.decode("utf-8", "replace"))
        return not isinstance(value, dict)
    except (ValueError, RecursionError):
        return True


def read_jsonl(path: Path, forgive_torn_tail: bool = True, hint: str = MEND) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, one a line.

    A last line without a line end that is no whole object was cut off by a kill and is left out where
    `forgive_torn_tail`; any other bad line raises CorruptDataError with its number.
    """
    return parse_jsonl(path, read_bytes(path, hint), forgive_torn_tail, hint)


def parse_jsonl(path: Path, data: bytes, forgive_torn_tail: bool = True, hint: str = MEND) -> list[dict[str, Any]]:
    """As `read_jsonl`, of a file's content."""
    *lines, tail = data.split(b"\n")
    if tail and not (forgive_torn_tail and _is_cut(tail)):
        lines.append(tail)
    return [_parse_line(path, number, line, hint) for number, line in enumerate(lines, start=1)]


def _parse_line(path: Path, number: int, line: bytes, hint: str = MEND) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"line {number} is not JSON", hint) from error
    if not isinstance(row, dict):
        raise _corrupt(path, f"line {number} is not a JSON object", hint)
    return unsealed(path, row, f"line {number}", hint)


def sync(path: Path) -> None:
    """Wait until what was appended to a file is on the disk; nothing where there is none."""
    if path.exists():
        with writing(path), path.open("rb") as file:
            os.fsync(file.fileno())


def checksum(path: Path, hint: str = MEND) -> str:
    """`"xxh3:<32 hex digits>"` of the file's bytes."""
    digest = xxhash.xxh3_128()
    with reading(path, hint), opened(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"xxh3:{digest.hexdigest()}"


def check_files(folder: Path, checksums: Any, hint: str = MEND) -> None:
    """Raises CorruptDataError for a file of `folder` that has not the checksum given under its name, or is gone."""
    if not isinstance(checksums, dict):
        raise _corrupt(folder, f"its checksums are {checksums!r}", hint)
    for name, expected in checksums.items():
        found = checksum(folder / name, hint)
        if found != expected:
            raise _corrupt(folder / name, f"checksum {found}, expected {expected}", hint)


def checksum_of(data: bytes) -> str:
    """`checksum` of a file with this content."""
    return f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes: what publishers state."""
    with reading(path), opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


NUMBER_LIKE = list("-+.0123456789")
INTEGER = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
"""What YAML 1.2 takes for numbers (its core schema). PyYAML follows 1.1, where 010 is 8, 08 a text and 1e-4 too."""


class _PlainLoader(yaml.SafeLoader):
    """YAML 1.2 without aliases (they can swell a small file to gigabytes) and without doubled keys.

    Where 1.1 differs it surprises: `no` is false there, 010 is 8, 1:30 is 90, 2024-01-01 a date.
    """

    yaml_implicit_resolvers: dict[str | None, list[Any]] = {}  # none of those of 1.1  # noqa: RUF012

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"aliases are not allowed (line {line})")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key is no single value (line {line})")
            if key_node.value in seen:
                raise yaml.YAMLError(f"key {key_node.value!r} is given twice (line {line})")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> Any:
        text = str(node.value)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


class _StoredLoader(_PlainLoader):
    """For what `dump_yaml` wrote: no number with leading zeros, but in older versions a text like 08, unquoted."""

    def construct_yaml_int(self, node: Any) -> Any:
        text = str(node.value)
        is_text = text.lstrip("-+")[:1] == "0" and text.lstrip("-+0") != ""
        return text if is_text else super().construct_yaml_int(node)


class _PlainDumper(yaml.SafeDumper):
    """Writes what `_PlainLoader` reads back as the same value."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # a list that occurs twice is written twice


for _loader in (_PlainLoader, _StoredLoader):
    _loader.add_constructor("tag:yaml.org,2002:int", _loader.construct_yaml_int)
_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), None)
_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), None)
for _class in (_PlainLoader, _PlainDumper):  # the dumper knows those of 1.1 too: it quotes what either takes for more
    _class.add_implicit_resolver("tag:yaml.org,2002:int", INTEGER, NUMBER_LIKE)
    _class.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, NUMBER_LIKE)


def parse_yaml(text: str, *, stored: bool = False) -> Any:
    """One YAML document of plain values, `stored` by `dump_yaml` or written by somebody.

    Raises ValueError with a one-line reason.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f"it is larger than {MAX_YAML_BYTES:,} bytes")
    try:
        return yaml.load(text, Loader=_StoredLoader if stored else _PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ValueError(f"{error.problem or error}{line}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def read_yaml(path: Path) -> Any:
    """`parse_yaml` of a file that no run made. Raises OSError where it cannot be read, else as that."""
    with opened(path) as file:
        data = file.read(MAX_YAML_BYTES + 1)
    return parse_yaml(data.decode("utf-8"))


def sealed_text(text: str) -> str:
    """YAML with its checksum in a last line, a comment."""
    return f"{text}# xxh3 of the lines above: {xxhash.xxh3_128_hexdigest(text.encode())}\n"


def has_broken_seal(text: str) -> bool:
    """Whether the last line is a checksum of other lines than those above it."""
    above, _, last = text.rstrip("\n").rpartition("\n")
    found = SEAL_LINE.fullmatch(last)
    return found is not None and found[1] != xxhash.xxh3_128_hexdigest(f"{above}\n".encode())


def dump_yaml(value: Any) -> str:
    # ASCII only: PyYAML writes some control characters, such as U+0085, in a way it does not read back
    return yaml.dump(value, Dumper=_PlainDumper, sort_keys=False)


def inline_yaml(value: Any) -> str:
    """A plain value in one line, as after `-o key=`: null, true, [0.1, 0.9]; texts and numbers as they are."""
    if isinstance(value, str) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return str(value)
    text = yaml.dump(value, Dumper=_PlainDumper, default_flow_style=True, sort_keys=False, width=math.inf)
    return text.removesuffix("...\n").strip()


def storage(kind: str) -> Path:
    """Where what was fetched is kept: `$GCPO_BENCH_HOME/<kind>`, or `~/.cache/gcpo-bench/<kind>`."""
    if home := os.environ.get("GCPO_BENCH_HOME"):
        return Path(home) / kind
    try:
        return Path.home() / ".cache" / "gcpo-bench" / kind
    except RuntimeError as error:  # a container's user without name and HOME
        hint = "set GCPO_BENCH_HOME to a folder"
        raise PrerequisiteError("there is no home folder for what is fetched", hint=hint) from error

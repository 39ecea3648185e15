"""Headers of weight files, beside what the safetensors library reads of the same files."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from gcpo_bench.errors import CorruptDataError
from gcpo_bench.weight_files import BYTES, Header, check_whole, read_headers

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.zeros(0, 4),
    "c": torch.ones(5, dtype=torch.bfloat16),
    "d": torch.tensor(3),
}
CONTENT = save(TENSORS, metadata={"format": "pt"})


def test_headers_say_what_the_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(CONTENT)
    headers = read_headers(path)
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        expected = {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
    assert {name: (each.dtype, each.shape) for name, each in headers.items()} == expected
    assert headers["c"] == Header(file=path, name="c", dtype="BF16", shape=(5,))


@given(end=st.integers(0, len(CONTENT) - 1))
def test_a_file_that_was_cut_off_anywhere_is_refused(end: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(CONTENT[:end])
        with pytest.raises(CorruptDataError):
            read_headers(path)


@given(place=st.integers(0, CONTENT.index(b"}}") + 8), byte=st.integers(0, 255))
def test_what_the_library_refuses_is_refused(place: int, byte: int) -> None:
    changed = bytearray(CONTENT)
    changed[place] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(changed)
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            try:
                headers = read_headers(path)
            except CorruptDataError:
                return
            assert any(each.dtype not in BYTES for each in headers.values())  # which may be a type to come
        else:
            read_headers(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"", "cut off: its header is not all there"),
        ("a.safetensors", CONTENT + b"more", "cut off: its tensors take"),
        ("a.safetensors", (2).to_bytes(8, "little") + b"[]", "its header is none"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid ...", "is a pointer of git-lfs"),
        ("a.pt", b"version https://git-lfs.github.com/spec/v1\noid ...", "is a pointer of git-lfs"),
        ("a.pt", b"PK\x03\x04 and no end", "cut off: the end of the archive is missing"),
        ("config.json", b"[]", "config.json is damaged: it is not a JSON object"),
        ("model.safetensors.index.json", b"[1]", "is damaged: it is not a JSON object"),
        ("model.safetensors.index.json", b'{"weight_map": 3}', "is damaged: weight_map names no files"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": ["b"]}}', "is damaged: weight_map names no files"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "b", "c": "d"}}', r"not whole: b is missing \(2 of 2"),
    ],
)
def test_what_is_not_whole_is_told_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptDataError, match=message) as error:
        check_whole([tmp_path / name])
    assert "\n" not in str(error.value)


def test_whole_files_are_let_through(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "b.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "new.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "b.safetensors"}}))
    (tmp_path / "vocab.txt").write_text("a")
    check_whole(tmp_path.iterdir())

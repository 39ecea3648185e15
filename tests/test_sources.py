"""source.json: whose images were judged, wherever the evaluation is copied to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gcpo_bench.errors import CorruptDataError, RunError
from gcpo_bench.files import read_json
from gcpo_bench.sources import FILE, Source, read_source, write_source


@pytest.mark.parametrize(("images", "stored"), [("sdxl", ".."), ("sdxl/pictures", "../pictures"), ("sdxl/b", ".")])
def test_images_beside_the_scores_move_along_with_them(tmp_path: Path, images: str, stored: str) -> None:
    out = tmp_path / "sdxl" / "b"
    write_source(out, Source(kind="generator", name="sdxl", images=tmp_path / images, generator={"steps": 30}))
    assert json.loads((out / FILE).read_text())["images"] == stored
    shutil.copytree(tmp_path / "sdxl", tmp_path / "elsewhere" / "sdxl")
    found = read_source(tmp_path / "elsewhere" / "sdxl" / "b")
    assert found == Source(
        kind="generator", name="sdxl", images=tmp_path / "elsewhere" / images, generator={"steps": 30}
    )


def test_images_elsewhere_keep_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("evaluations/theirs/b")
    write_source(out, Source(kind="folder", name="theirs", images=Path("theirs")))
    assert read_json(out / FILE) == {
        "kind": "folder",
        "name": "theirs",
        "images": str(tmp_path / "theirs"),
        "generator": None,
    }
    assert read_source(out) == Source(kind="folder", name="theirs", images=tmp_path / "theirs")


@pytest.mark.parametrize(
    "record",
    [
        [],
        {},
        {"kind": "run", "name": "a", "images": "..", "generator": None},
        {"kind": "folder", "name": 7, "images": "..", "generator": None},
        {"kind": "folder", "name": "a", "images": "", "generator": None},
        {"kind": "folder", "name": "a", "images": "..", "generator": "sdxl"},
    ],
)
def test_what_names_no_source_is_refused(tmp_path: Path, record: Any) -> None:
    (tmp_path / FILE).write_text(json.dumps(record))
    with pytest.raises(CorruptDataError, match="it names no source"):
        read_source(tmp_path)


def test_no_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no source\.json"):
        read_source(tmp_path)

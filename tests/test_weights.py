"""Published weights on this machine: listed, imported, verified; nothing half-fetched is ever taken for whole."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError
from gcpo_bench.evaluators import weights
from gcpo_bench.evaluators.weights import WEIGHTS, Weights, fetch, get, locate, verify

from .conftest import Cli

CONTENT = b"a checkpoint"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path / "home"))
    for each in (FILE, FOLDER):
        monkeypatch.setitem(WEIGHTS, each.name, each)
    return tmp_path / "home" / "weights"


FILE = replace(
    weights.GENEVAL_DETECTOR,
    name="tiny.pth",
    source="https://localhost.invalid/tiny.pth",
    sha256=hashlib.sha256(CONTENT).hexdigest()[:8],
)
FOLDER = replace(weights.GENEVAL_CLASSIFIER, name="tiny-clip", source="nobody/tiny-clip", files=("a.json", "b.bin"))


def stick(tmp_path: Path, content: bytes = CONTENT) -> Path:
    folder = tmp_path / "stick"
    (folder / "tiny-clip").mkdir(parents=True)
    (folder / "tiny.pth").write_bytes(content)
    for name in (*FOLDER.files, "README.md"):
        (folder / "tiny-clip" / name).write_text(name)
    return folder


def test_weights_are_imported_and_found(tmp_path: Path, home: Path) -> None:
    for each in (FILE, FOLDER):
        with pytest.raises(PrerequisiteError, match="is missing") as error:
            locate(each)
        assert f"gcpo-bench models fetch {each.name}" in error.value.hint
    source = stick(tmp_path)
    assert fetch(FILE, source) == locate(FILE) == home / "tiny.pth"
    assert fetch(FOLDER, source) == locate(FOLDER) == fetch(FOLDER, source / "tiny-clip")
    assert sorted(path.name for path in (home / "tiny-clip").iterdir()) == ["a.json", "b.bin"]
    assert verify(FILE).startswith("sha256 ")
    assert "2 files are there" in verify(FOLDER)
    (home / "tiny-clip" / "b.bin").unlink()
    with pytest.raises(PrerequisiteError, match=r"b\.bin is missing"):
        locate(FOLDER)


def test_other_content_never_replaces_what_is_there(tmp_path: Path, home: Path) -> None:
    fetch(FILE, stick(tmp_path))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/tiny.pth").write_bytes(b"cut off")
    with pytest.raises(CorruptDataError, match=f"should begin with {FILE.sha256}"):
        fetch(FILE, tmp_path / "other")
    verify(FILE)
    assert [path.name for path in home.iterdir()] == ["tiny.pth"]
    (home / "tiny.pth").write_bytes(b"changed later")
    with pytest.raises(CorruptDataError, match="SHA-256 is"):
        verify(FILE)


def test_a_folder_without_them_is_told(tmp_path: Path) -> None:
    for each in (FILE, FOLDER):
        with pytest.raises(PrerequisiteError, match=f"holds no {each.name}"):
            fetch(each, tmp_path)


def test_without_network_the_mend_is_told(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    for each in (FILE, FOLDER):
        with pytest.raises(PrerequisiteError, match=r"tiny\S* cannot be fetched: no network") as error:
            fetch(each)
        assert error.value.hint.endswith("--from FOLDER")
    assert list(home.iterdir()) == []


def test_a_file_is_fetched_from_its_address(tmp_path: Path) -> None:
    address = (stick(tmp_path) / "tiny.pth").as_uri()
    fetch(replace(FILE, source=address))
    verify(FILE)


def test_every_entry_says_what_it_is_for() -> None:
    for each in WEIGHTS.values():
        assert isinstance(each, Weights)
        assert all((each.purpose, each.source, each.licence, each.size))
        assert bool(each.files) != each.source.startswith("https://")
    assert weights.GENEVAL_DETECTOR.name.endswith(f"-{weights.GENEVAL_DETECTOR.sha256}.pth")
    with pytest.raises(ConfigError, match="unknown weights 'clip'"):
        get("clip")


def test_the_command_line_lists_fetches_and_verifies(cli: Cli, tmp_path: Path) -> None:
    assert {row["state"] for row in json.loads(cli("models", "ls", "--json").out)} == {"missing"}
    assert cli("models", "verify").code == 0
    fetched = cli("models", "fetch", "tiny.pth", "tiny-clip", "--from", str(stick(tmp_path)))
    assert (fetched.code, len(fetched.out.splitlines())) == (0, 2)
    assert cli("models", "verify").out.startswith("tiny.pth: sha256 ")
    assert "tiny-clip" in cli("models", "ls").out
    missing = cli("models", "verify", "clip-vit-large-patch14")
    assert missing.code == 4
    assert "GenEval's colour classifier" in missing.err

"""Published weights: fetched from a folder, checked, named where they lie, and told apart from what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from gcpo_bench import models
from gcpo_bench.errors import PrerequisiteError

from .conftest import Cli


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path))
    return tmp_path / "models"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "stick"
    made.mkdir()
    save_file({"a": torch.arange(9.0)}, made / "model.safetensors")
    (made / "config.json").write_text('{"model_type": "janus"}', encoding="utf-8")
    (made / "notes.txt").write_text("not needed", encoding="utf-8")
    return made


def test_a_model_is_taken_from_a_folder_listed_and_verified(cli: Cli, source: Path, folder: Path) -> None:
    assert json.loads(cli("models", "ls", "--json").out)[0]["state"] == "missing"
    fetched = cli("models", "fetch", "janus-pro-1b", "--from", str(source))
    assert fetched.code == 0, fetched.err
    assert fetched.out.strip() == str(folder / "janus-pro-1b")
    assert {path.name for path in (folder / "janus-pro-1b").iterdir()} == {
        "model.safetensors",
        "config.json",
        "gcpo-bench.json",
    }
    assert json.loads(cli("models", "ls", "--json").out)[0]["state"] == "there"
    assert cli("models", "verify", "janus-pro-1b").code == 0


def test_a_file_that_changed_is_named(cli: Cli, source: Path, folder: Path) -> None:
    cli("models", "fetch", "janus-pro-1b", "--from", str(source))
    path = folder / "janus-pro-1b" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    damaged = cli("models", "verify", "janus-pro-1b")
    assert damaged.code == 5
    assert "model.safetensors is damaged" in damaged.err
    (folder / "janus-pro-1b" / "gcpo-bench.json").write_text("{}", encoding="utf-8")
    assert cli("models", "verify", "janus-pro-1b").code == 5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("fetch", "janus-pro-1c"), 2, "unknown weights 'janus-pro-1c'"),
        (("fetch", "janus-pro-1b", "--from", "nowhere"), 2, "there is no folder nowhere"),
        (("fetch", "janus-pro-1b", "--from", "."), 2, "holds no .safetensors file"),
        (("verify", "janus-pro-1b"), 4, "janus-pro-1b was not fetched"),
    ],
)
def test_what_cannot_be_fetched_is_told(cli: Cli, arguments: tuple[str, ...], code: int, message: str) -> None:
    refused = cli("models", *arguments)
    assert refused.code == code
    assert message in refused.err
    assert len(refused.err.splitlines()) == 2


def test_without_network_the_error_names_the_way_round(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused = cli("models", "fetch", "janus-pro-1b")
    assert refused.code == 4
    assert "deepseek-community/Janus-Pro-1B could not be fetched" in refused.err
    assert "--from FOLDER" in refused.err


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (errors.RepositoryNotFoundError, "the hub has no repository deepseek-community/Janus-Pro-1B", "--from FOLDER"),
        (errors.GatedRepoError, "asks for its licence to be accepted", "https://huggingface.co/deepseek-community"),
        (ConnectionError, "could not be fetched: it broke off", "check the network"),
    ],
)
def test_what_the_hub_refuses_is_told_with_its_mend(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Any, message: str, hint: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        made = error.__new__(error)  # the hub's errors want an answer of whichever client its version uses
        made.args = ("it broke off",)
        raise made

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    refused = cli("models", "fetch", "janus-pro-1b")
    assert refused.code == 4
    assert message in refused.err
    assert hint in refused.err
    assert models.local("janus-pro-1b") is None


def test_too_little_disk_is_told_before_the_download(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(PrerequisiteError, match=r"needs 4\.2 GB more than the disk has free"):
        models.fetch("janus-pro-1b")
    assert models.local("janus-pro-1b") is None

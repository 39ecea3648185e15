"""Published weights on this machine: listed, fetched, verified; nothing half-fetched is ever taken for whole."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from gcpo_bench import catalogue
from gcpo_bench.catalogue import CATALOGUE
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError
from gcpo_bench.registry import BENCHMARK_GROUPS, BENCHMARKS, SCORERS
from gcpo_bench.weights import RECORD, Weights, fetch, local, locate, state, verify

from .conftest import Cli

CONTENT = b"a checkpoint of a few bytes"
FILE = replace(
    catalogue.GENEVAL_DETECTOR,
    name="tiny.pth",
    source="https://localhost.invalid/tiny.pth",
    sha256=hashlib.sha256(CONTENT).hexdigest()[:8],
)
FOLDER = replace(
    catalogue.CLIP_B32,
    name="tiny-clip",
    source="nobody/tiny-clip",
    files=("a.json", "b.safetensors|b.bin"),
    more_files=("*.txt",),
)
HUB = SimpleNamespace(list_repo_files=lambda source: ["README.md", "a.json", "b.bin", "b.safetensors", "c.txt"])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path / "home"))
    for each in (FILE, FOLDER):
        monkeypatch.setitem(CATALOGUE, each.name, each)
    return tmp_path / "home" / "weights"


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    """Copies of both, of Janus-Pro, and what nobody asked for."""
    folder = tmp_path / "stick"
    for name in ("tiny-clip", "janus"):
        (folder / name).mkdir(parents=True)
    (folder / "tiny.pth").write_bytes(CONTENT)
    for name in ("a.json", "b.bin", "c.txt", "README.md"):
        (folder / "tiny-clip" / name).write_text(name)
    save_file({"a": torch.arange(9.0)}, folder / "janus" / "model.safetensors")
    (folder / "janus" / "config.json").write_text('{"model_type": "janus"}', encoding="utf-8")
    (folder / "janus" / "notes.txt").write_text("not needed", encoding="utf-8")
    return folder


# ---------------------------------------------------------------- from a folder


def test_weights_are_taken_from_a_folder_and_found(stick: Path, home: Path) -> None:
    for each in (FILE, FOLDER):
        assert state(each) == "missing"
        with pytest.raises(PrerequisiteError, match="is missing") as error:
            locate(each)
        assert f"gcpo-bench models fetch {each.name}" in error.value.hint
    assert fetch(FILE, stick) == locate(FILE) == home / "tiny.pth"
    assert fetch(FOLDER, stick) == locate(FOLDER) == fetch(FOLDER, stick / "tiny-clip")
    assert sorted(path.name for path in (home / "tiny-clip").iterdir()) == ["a.json", "b.bin", "c.txt", RECORD]
    assert verify(FILE).startswith("sha256 ")
    assert verify(FOLDER) == "3 files, as they were fetched"
    (home / "tiny-clip" / "b.bin").unlink()
    assert state(FOLDER) == "unfinished"
    with pytest.raises(PrerequisiteError, match=r"b\.safetensors\|b\.bin is missing"):
        locate(FOLDER)


def test_a_copy_put_there_by_hand_will_do(home: Path) -> None:
    (home / "tiny-clip").mkdir(parents=True)
    for name in ("a.json", "b.bin"):
        (home / "tiny-clip" / name).write_text(name)
    assert locate(FOLDER) == home / "tiny-clip"
    assert "not fetched by gcpo-bench" in verify(FOLDER)


def test_other_content_never_replaces_what_is_there(stick: Path, home: Path) -> None:
    fetch(FILE, stick)
    (stick / "tiny.pth").write_bytes(b"cut off")
    with pytest.raises(CorruptDataError, match=f"should begin with {FILE.sha256}"):
        fetch(FILE, stick)
    verify(FILE)
    assert sorted(path.name for path in home.iterdir()) == ["tiny.pth", f"tiny.pth.{RECORD}"]
    (home / "tiny.pth").write_bytes(b"changed later")
    with pytest.raises(CorruptDataError, match="is damaged: checksum"):
        verify(FILE)
    (home / f"tiny.pth.{RECORD}").unlink()
    with pytest.raises(CorruptDataError, match="SHA-256 is"):
        verify(FILE)


def test_a_size_that_is_not_the_published_one_is_told(home: Path) -> None:
    sized = replace(FILE, sha256="", num_bytes=len(CONTENT))
    home.mkdir(parents=True)
    sized.path.write_bytes(CONTENT)
    assert verify(sized) == "27 bytes, as published"
    sized.path.write_bytes(b"short")
    with pytest.raises(CorruptDataError, match="has 5 bytes, published are 27"):
        locate(sized)


@pytest.mark.parametrize("each", [FILE, FOLDER])
def test_a_folder_without_them_is_told(each: Weights, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no (tiny\.pth|a\.json)"):
        fetch(each, tmp_path)
    assert state(each) == "missing"


# ---------------------------------------------------------------- from the network

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def served() -> Iterator[tuple[Weights, list[Answer], list[str]]]:
    """The file behind an address, how the next requests are answered, and the ranges that were asked for."""
    answers: list[Answer] = []
    ranges: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ranges.append(self.headers.get("Range", ""))
            answers.pop(0)(self)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield replace(FILE, source=f"http://127.0.0.1:{server.server_port}/tiny.pth", bytes_about=27), answers, ranges
    server.shutdown()
    thread.join()


def answer(status: int, content: bytes, length: int) -> Answer:
    def reply(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(length))
        request.end_headers()
        request.wfile.write(content)

    return reply


def test_an_interrupted_download_goes_on_where_it_stopped(
    served: tuple[Weights, list[Answer], list[str]], home: Path
) -> None:
    weights, answers, ranges = served
    answers += [answer(200, CONTENT[:10], len(CONTENT)), answer(206, CONTENT[10:], len(CONTENT) - 10)]
    with pytest.raises(PrerequisiteError, match="broke off after 10 bytes; fetch again to go on"):
        fetch(weights)
    assert state(weights) == "missing"
    assert fetch(weights).read_bytes() == CONTENT
    assert ranges == ["", "bytes=10-"]
    assert sorted(path.name for path in home.iterdir()) == ["tiny.pth", f"tiny.pth.{RECORD}"]


def test_a_server_that_begins_anew_and_one_that_says_it_is_all_there(
    served: tuple[Weights, list[Answer], list[str]], home: Path
) -> None:
    weights, answers, ranges = served
    home.mkdir(parents=True)
    (home / "tiny.pth.part").write_bytes(b"???")
    answers.append(answer(200, CONTENT, len(CONTENT)))  # it knows no ranges
    assert fetch(weights).read_bytes() == CONTENT
    (home / "tiny.pth").rename(home / "tiny.pth.part")
    answers.append(answer(416, b"", 0))
    assert fetch(weights).read_bytes() == CONTENT
    assert ranges == ["bytes=3-", "bytes=27-"]


def test_what_a_server_refuses_or_sends_instead_is_told(
    served: tuple[Weights, list[Answer], list[str]], home: Path
) -> None:
    weights, answers, _ = served
    answers += [answer(404, b"", 0), answer(200, b"<html>log in first</html>", 25)]
    with pytest.raises(PrerequisiteError, match="could not be fetched: Not Found") as error:
        fetch(weights)
    assert error.value.hint.endswith("--from FOLDER")
    with pytest.raises(CorruptDataError, match="should begin with"):
        fetch(weights)
    assert list(home.iterdir()) == []


def test_of_two_formats_the_first_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot(source: str, *, allow_patterns: list[str], local_dir: Path) -> None:
        asked.append((source, allow_patterns))
        for name in allow_patterns:
            (local_dir / name).write_text(name)

    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HUB)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    fetch(FOLDER)
    assert asked == [("nobody/tiny-clip", ["a.json", "b.safetensors", "c.txt"])]
    assert state(FOLDER) == "there"


def test_half_a_folder_is_not_taken_for_whole(monkeypatch: pytest.MonkeyPatch, stick: Path) -> None:
    def half(source: str, *, local_dir: Path, **_: Any) -> None:
        for name in ("a.json", "b.safetensors"):
            (local_dir / name).write_text(name)
        raise ConnectionError("it broke off")

    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HUB)
    monkeypatch.setattr("huggingface_hub.snapshot_download", half)
    with pytest.raises(PrerequisiteError, match="could not be fetched: it broke off"):
        fetch(FOLDER)
    assert (state(FOLDER), local(FOLDER)) == ("unfinished", None)
    with pytest.raises(PrerequisiteError, match="was not fetched to its end"):
        locate(FOLDER)
    fetch(FOLDER, stick)
    with pytest.raises(PrerequisiteError):
        fetch(FOLDER)
    assert state(FOLDER) == "there"  # a failure later does not take away what was whole


def test_a_client_that_is_content_with_less_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HUB)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, local_dir, **__: (local_dir / "a.json").touch())
    with pytest.raises(PrerequisiteError, match=r"2 of 3 files are missing, the first is b\.safetensors"):
        fetch(FOLDER)
    assert state(FOLDER) == "unfinished"


def test_without_network_the_error_names_the_way_round(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("janus-pro-1b", "tiny-clip", "tiny.pth"):
        refused = cli("models", "fetch", name)
        assert refused.code == 4
        assert f"{CATALOGUE[name].source} could not be fetched" in refused.err
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

    monkeypatch.setattr("huggingface_hub.HfApi", lambda: SimpleNamespace(list_repo_files=refuse))
    refused = cli("models", "fetch", "janus-pro-1b")
    assert refused.code == 4
    assert message in refused.err
    assert hint in refused.err
    assert local(CATALOGUE["janus-pro-1b"]) is None


def test_too_little_disk_is_told_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(PrerequisiteError, match=r"needs 4\.2 GB more than the disk has free"):
        fetch(CATALOGUE["janus-pro-1b"])
    with pytest.raises(PrerequisiteError, match=r"needs 0\.3 GB more than the disk has free"):
        fetch(FILE)


# ---------------------------------------------------------------- the list and the command line


def test_every_entry_says_what_it_is_for() -> None:
    for name, each in CATALOGUE.items():
        assert name == each.name
        assert all((each.purpose, each.source, each.licence, each.bytes_about))
        assert bool(each.files) != each.source.startswith("https://")
    assert catalogue.GENEVAL_DETECTOR.name.endswith(f"-{catalogue.GENEVAL_DETECTOR.sha256}.pth")
    with pytest.raises(ConfigError, match="there are no published weights 'clip'"):
        catalogue.get("clip")


def test_a_benchmark_stands_for_all_that_it_needs() -> None:
    names = [each.name for each in catalogue.get("drawbench")]
    assert len(names) == len(set(names)) == 6
    assert catalogue.get("geneval") == (catalogue.GENEVAL_DETECTOR, catalogue.CLIP_L14)
    for name, needed in catalogue.NEEDS.items():
        assert name in {*SCORERS, *BENCHMARKS, *BENCHMARK_GROUPS, "blip-vqa"}  # which answers questions
        for each in needed:  # what is needed of a folder is among what is fetched of it
            assert set(each.files) <= set(CATALOGUE[each.name].files)


def test_the_doctor_says_what_a_benchmark_lacks(cli: Cli, stick: Path, home: Path) -> None:
    rows = {row["name"]: row for row in json.loads(cli("doctor", "--json").out)}
    assert rows["benchmark geneval"]["found"] == "lacks prompts, 2 of 2 weights"
    assert rows["benchmark geneval"]["mend"] == "gcpo-bench data fetch geneval; gcpo-bench models fetch geneval"
    assert rows["benchmark drawbench"]["mend"].startswith("gcpo-bench data fetch drawbench --from FOLDER; ")
    assert "GCPO_BENCH_DEQA names none" in rows["elsewhere: deqa"]["found"]
    assert {"disk of runs", "disk of weights", "elsewhere: unified-reward", "elsewhere: unidet"} <= rows.keys()
    assert rows["model janus-pro-1b"]["found"] == "not fetched"
    cli("models", "fetch", "janus-pro-1b", "tiny-clip", "--from", str(stick / "janus"))
    (home / "tiny-clip").mkdir(exist_ok=True)
    rows = {row["name"]: row for row in json.loads(cli("doctor", "--json").out)}
    assert rows["model janus-pro-1b"]["found"] == "ready"
    assert (rows["weights tiny-clip"]["state"], rows["weights tiny-clip"]["found"]) == ("warning", "not whole")


def test_the_command_line_lists_fetches_and_verifies(cli: Cli, stick: Path, home: Path) -> None:
    rows = {row["name"]: row for row in json.loads(cli("models", "ls", "--json").out)}
    assert {row["state"] for name, row in rows.items() if name not in catalogue.ELSEWHERE} == {"missing"}
    assert [rows[name]["state"] for name in ("deqa", "unified-reward", "unidet")] == ["elsewhere"] * 3
    table = cli("models", "ls").out
    assert all(shown in table for shown in ("743b7d99", "deepseek-community/Janus-Pro-1B", "DeQA-Score-Mix3"))
    refused = cli("models", "fetch", "deqa")
    assert (refused.code, "is not fetched here" in refused.err) == (2, True)
    assert cli("models", "verify").code == 0
    fetched = cli("models", "fetch", "tiny.pth", "tiny-clip", "--from", str(stick))
    assert (fetched.code, len(fetched.out.splitlines())) == (0, 2)
    policy = cli("models", "fetch", "janus-pro-1b", "--from", str(stick / "janus"))
    assert (policy.code, policy.out.strip()) == (0, str(home / "janus-pro-1b"))
    assert "gcpo-bench train --model janus-pro-1b" in policy.err
    assert {path.name for path in (home / "janus-pro-1b").iterdir()} == {"model.safetensors", "config.json", RECORD}
    states = {row["name"]: row["state"] for row in json.loads(cli("models", "ls", "--json").out)}
    assert {name for name, found in states.items() if found == "there"} == {"tiny.pth", "tiny-clip", "janus-pro-1b"}
    assert len(cli("models", "verify").out.splitlines()) == 3
    missing = cli("models", "verify", "clip-vit-large-patch14")
    assert missing.code == 4
    assert "GenEval's colours" in missing.err


def test_a_file_that_changed_is_named(cli: Cli, stick: Path, home: Path) -> None:
    cli("models", "fetch", "janus-pro-1b", "--from", str(stick / "janus"))
    path = home / "janus-pro-1b" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    damaged = cli("models", "verify", "janus-pro-1b")
    assert damaged.code == 5
    assert "model.safetensors is damaged" in damaged.err
    (home / "janus-pro-1b" / RECORD).write_text("{}", encoding="utf-8")
    assert cli("models", "verify", "janus-pro-1b").code == 5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("fetch", "janus-pro-1c"), 2, "there are no published weights 'janus-pro-1c'"),
        (("fetch", "janus-pro-1b", "--from", "nowhere"), 2, "there is no folder nowhere"),
        (("fetch", "janus-pro-1b", "--from", "."), 2, "holds no"),
        (("verify", "janus-pro-1b"), 4, "janus-pro-1b is missing"),
    ],
)
def test_what_cannot_be_done_is_told(cli: Cli, arguments: tuple[str, ...], code: int, message: str) -> None:
    refused = cli("models", *arguments)
    assert refused.code == code
    assert message in refused.err
    assert len(refused.err.splitlines()) == 2

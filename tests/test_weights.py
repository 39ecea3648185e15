"""Published weights on this machine: listed, fetched, verified; nothing half-fetched is ever taken for whole."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from gcpo_bench import catalogue
from gcpo_bench.catalogue import CATALOGUE
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError
from gcpo_bench.registry import BENCHMARK_GROUPS, BENCHMARKS, REWARDS, SCORERS
from gcpo_bench.resolve import resolve
from gcpo_bench.training import published, starts
from gcpo_bench.training.policies.janus_pro import SIZES
from gcpo_bench.weights import RECORD, Weights, fetch, local, locate, state, verify

from .conftest import Cli
from .hub_server import Hub, serving
from .miniatures import write_janus

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


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path / "home"))
    for each in (FILE, FOLDER):
        monkeypatch.setitem(CATALOGUE, each.name, each)
    return tmp_path / "home" / "weights"


def put(path: Path) -> None:
    path.write_bytes(save({"a": torch.arange(9.0)}) if path.suffix == ".safetensors" else path.name.encode())


@pytest.fixture
def stick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of both, of a Janus-Pro-1B that is a miniature, and what nobody asked for."""
    folder = tmp_path / "stick"
    (folder / "tiny-clip").mkdir(parents=True)
    (folder / "tiny.pth").write_bytes(CONTENT)
    for name in ("a.json", "b.bin", "c.txt", "README.md"):
        put(folder / "tiny-clip" / name)
    monkeypatch.setitem(SIZES, "janus-pro-1b", SIZES["janus-pro-tiny"])
    (write_janus(folder / "janus", shards=2) / "notes.txt").write_text("not needed", encoding="utf-8")
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
    with pytest.raises(PrerequisiteError, match=r"b\.safetensors or b\.bin is missing"):
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


def test_the_digest_of_a_start_is_that_of_the_files_that_are_there(
    stick: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(CATALOGUE["janus-pro-1b"], stick / "janus")
    by_hand = published.digest(stick / "janus")
    with monkeypatch.context() as context:
        context.setattr(published, "checksum", lambda path: pytest.fail(f"{path} was read"))
        assert published.digest(folder) == by_hand  # as recorded
    path = folder / "model-00002-of-00002.safetensors"
    tensors = load_file(path)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path)  # as large as before
    assert published.digest(folder) != by_hand
    save_file(tensors, path)
    assert published.digest(folder) == by_hand
    record = json.loads((folder / RECORD).read_text())
    del record["xxh3"]  # as earlier versions recorded
    for entry in record["files"].values():
        del entry["written_ns"]
    (folder / RECORD).write_text(json.dumps(record))
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path)
    assert published.digest(folder) != by_hand


# ---------------------------------------------------------------- what others made of them


def half_a_file(folder: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_of_two(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def other_shapes(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name][:-1].clone()}, path)


def numbers_of_another_kind(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name].int()}, path)


def written(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text, encoding="utf-8")

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (half_a_file, "model-00002-of-00002.safetensors is no safetensors file, or cut off: its tensors take"),
        (one_of_two, "is not whole: model-00002-of-00002.safetensors is missing (1 of 2 files)"),
        (other_shapes, "holds another model: 1 tensors differ"),
        (numbers_of_another_kind, "1 tensors are no floating point numbers"),
        (written("config.json", "[]"), "config.json is damaged: it is not a JSON object"),
        (written("config.json", '{"model_type": "llama"}'), "holds a 'llama' checkpoint, not 'janus'"),
        (written("config.json", '{"model_type": "janus", "text_config": 3}'), "config.json is damaged: Validation"),
        (written("config.json", '{"model_type": "janus"}'), "holds another model: 4 settings of config.json differ"),
        (written("model.safetensors.index.json", "[1]"), "index.json is damaged: it is not a JSON object"),
        (written("model.safetensors.index.json", '{"weight_map": 3}'), "weight_map names no files"),
        (written("tokenizer.json", "{}"), "tokenizer.json is no tokenizer"),
    ],
)
def test_weights_that_are_not_whole_or_anothers_are_not_taken(
    cli: Cli, stick: Path, home: Path, damage: Callable[[Path], None], message: str
) -> None:
    assert cli("models", "fetch", "janus-pro-1b", "--from", str(stick / "janus")).code == 0
    before = {path.name: path.read_bytes() for path in (home / "janus-pro-1b").iterdir()}
    damage(stick / "janus")
    refused = cli("models", "fetch", "janus-pro-1b", "--from", str(stick / "janus"))
    assert refused.code in {2, 5}
    assert message in refused.err
    assert len(refused.err.splitlines()) == 2
    assert {path.name: path.read_bytes() for path in (home / "janus-pro-1b").iterdir()} == before
    shutil.rmtree(home / "janus-pro-1b")
    shutil.copytree(stick / "janus", home / "janus-pro-1b")  # put there by hand
    damaged = cli("models", "verify", "janus-pro-1b")
    assert (damaged.code, damaged.err.replace(str(home / "janus-pro-1b"), str(stick / "janus"))) == (
        refused.code,
        refused.err,
    )


def test_a_miniature_is_not_taken_for_the_published_model(cli: Cli, tmp_path: Path) -> None:
    tiny = write_janus(tmp_path / "tiny")
    refused = cli("models", "fetch", "janus-pro-1b", "--from", str(tiny))
    assert refused.code == 5
    assert f"{tiny} holds another model" in refused.err
    assert local(CATALOGUE["janus-pro-1b"]) is None


def test_an_archive_that_was_cut_off_is_told_where_no_digest_is_known(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOGUE, "tiny.pth", replace(FILE, sha256=""))
    torch.save({"a": torch.zeros(9)}, tmp_path / "tiny.pth")
    assert cli("models", "fetch", "tiny.pth", "--from", str(tmp_path)).code == 0
    (tmp_path / "tiny.pth").write_bytes((tmp_path / "tiny.pth").read_bytes()[:-9])
    refused = cli("models", "fetch", "tiny.pth", "--from", str(tmp_path))
    assert refused.code == 5
    assert "is cut off: the end of the archive is missing" in refused.err
    assert cli("models", "verify", "tiny.pth").code == 0


def test_files_of_an_earlier_fetch_go_when_others_come(stick: Path, tmp_path: Path, home: Path) -> None:
    entry = CATALOGUE["janus-pro-1b"]
    fetch(entry, stick / "janus")
    fetch(entry, write_janus(tmp_path / "one-file"))
    assert [path.name for path in (home / "janus-pro-1b").glob("model*")] == ["model.safetensors"]
    assert "as they were fetched" in verify(entry)
    fetch(entry, home)  # from where they lie
    assert "as they were fetched" in verify(entry)


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
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that has the folder, in two formats."""
    folder = tmp_path / "on-the-hub"
    folder.mkdir()
    for name in ("README.md", "a.json", "b.bin", "b.safetensors", "c.txt"):
        put(folder / name)
    with serving(monkeypatch) as hub:
        hub.repositories["nobody/tiny-clip"] = folder
        yield hub


def test_of_two_formats_the_first_is_fetched(hub: Hub) -> None:
    fetch(FOLDER)
    assert sorted(hub.served) == ["a.json", "b.safetensors", "c.txt"]
    assert (state(FOLDER), verify(FOLDER)) == ("there", "3 files, as they were fetched")
    fetch(FOLDER)
    assert len(hub.served) == 3  # what is there already is not fetched again


def test_half_a_folder_is_not_taken_for_whole(hub: Hub, stick: Path) -> None:
    hub.lost.add("c.txt")
    with pytest.raises(PrerequisiteError, match="could not be fetched: 404"):
        fetch(FOLDER)
    assert (state(FOLDER), local(FOLDER)) == ("unfinished", None)
    with pytest.raises(PrerequisiteError, match="was not fetched to its end"):
        locate(FOLDER)
    fetch(FOLDER, stick)
    with pytest.raises(PrerequisiteError):
        fetch(FOLDER)
    assert state(FOLDER) == "there"  # a failure later does not take away what was whole


def test_a_client_that_is_content_with_less_is_not_believed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, local_dir, **__: (local_dir / "a.json").touch())
    with pytest.raises(PrerequisiteError, match=r"2 of 3 files are missing, the first is b\.safetensors"):
        fetch(FOLDER)
    assert state(FOLDER) == "unfinished"


def test_a_repository_that_lacks_a_file_is_told_before_the_others_come(hub: Hub, home: Path) -> None:
    (hub.repositories["nobody/tiny-clip"] / "a.json").unlink()
    with pytest.raises(PrerequisiteError, match=r"nobody/tiny-clip has no a\.json"):
        fetch(FOLDER)
    assert (hub.served, state(FOLDER)) == ([], "missing")


def test_what_was_cut_off_on_the_hub_is_not_taken(hub: Hub) -> None:
    path = hub.repositories["nobody/tiny-clip"] / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptDataError, match=r"b\.safetensors is no safetensors file, or cut off"):
        fetch(FOLDER)
    assert state(FOLDER) == "unfinished"


def test_a_hub_id_stands_for_what_it_holds(cli: Cli, hub: Hub, stick: Path, home: Path) -> None:
    hub.repositories["deepseek-community/Janus-Pro-1B"] = stick / "janus"
    asked = cli("train", "-o", "policy.weights=deepseek-community/Janus-Pro-1B", "--model", "janus-pro-1b")
    assert asked.code == 4
    assert "gcpo-bench models fetch deepseek-community/Janus-Pro-1B" in asked.err
    fetched = cli("models", "fetch", "deepseek-community/Janus-Pro-1B")
    assert (fetched.code, fetched.out.strip()) == (0, str(home / "janus-pro-1b"))
    assert (
        start_from("deepseek-community/Janus-Pro-1B")
        == start_from("packaged")
        == (
            home / "janus-pro-1b",
            published.digest(stick / "janus"),
        )
    )
    both = cli("models", "fetch", "peizesun/llamagen_t2i")
    assert both.code == 2
    assert "holds llamagen-xl-256 and llamagen-xl-512" in both.err


def start_from(weights: str) -> tuple[Path | None, str]:
    return starts.start_weights(resolve(None, [f"policy.weights={weights}"], {"model": "janus-pro-1b"}).config)


@pytest.mark.parametrize("source", [(), ("--from", "stick/janus")])
def test_other_weights_of_the_hub_that_fit_a_policy_are_fetched(
    cli: Cli, hub: Hub, stick: Path, home: Path, source: tuple[str, ...]
) -> None:
    hub.repositories["some-lab/Janus-tuned"] = stick / "janus"
    fetched = cli("models", "fetch", "some-lab/Janus-tuned", *source)
    assert (fetched.code, fetched.out.strip()) == (0, str(home / "some-lab" / "Janus-tuned"))
    assert "train --model janus-pro-1b -o policy.weights=some-lab/Janus-tuned" in fetched.err
    assert start_from("some-lab/Janus-tuned")[0] == home / "some-lab" / "Janus-tuned"
    listed = {row["name"]: row for row in json.loads(cli("models", "ls", "--json").out)}
    assert listed["some-lab/Janus-tuned"]["state"] == "there"
    assert cli("models", "verify").out.startswith("some-lab/Janus-tuned: 6 files, as they were fetched")


def test_what_is_on_the_hub_and_cannot_be_read_is_not_fetched(cli: Cli, hub: Hub, stick: Path, tmp_path: Path) -> None:
    llama = tmp_path / "llama"
    shutil.copytree(stick / "janus", llama)
    (llama / "config.json").write_text('{"model_type": "llama"}')
    hub.repositories |= {"some-lab/llama": llama, "some-lab/small": write_janus(tmp_path / "small")}
    refused = cli("models", "fetch", "some-lab/llama")
    assert refused.code == 2
    assert "some-lab/llama holds a 'llama' model" in refused.err
    assert hub.served == []
    unknown = cli("models", "fetch", "some-lab/nothing")
    assert (unknown.code, len(unknown.err.splitlines())) == (4, 2)
    assert "the hub has no repository some-lab/nothing" in unknown.err
    assert [row["name"] for row in json.loads(cli("models", "ls", "--json").out) if "/" in row["name"]] == []
    SIZES["janus-pro-1b"] = SIZES["janus-pro-small"]  # put back with the fixture
    other = cli("models", "fetch", "some-lab/small")
    assert other.code == 5
    assert "fits no policy. As janus-pro-1b: " in other.err
    assert "; as janus-pro-7b: " in other.err


def test_what_weights_can_be_is_said_where_there_are_none(cli: Cli) -> None:
    for source, hint in (
        ("frist", "or name a folder, or a hub id"),
        ("some/where", "models fetch some/where; or name"),
    ):
        refused = cli("train", "-o", f"policy.weights={source}")
        assert "policy.weights: " in refused.err
        assert hint in refused.err
        assert len(refused.err.splitlines()) == 2


def test_without_network_the_error_names_the_way_round(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    for name in ("janus-pro-1b", "tiny-clip", "tiny.pth"):
        refused = cli("models", "fetch", name)
        assert refused.code == 4
        assert f"{CATALOGUE[name].source} could not be fetched" in refused.err
        assert "--from FOLDER" in refused.err
        assert len(refused.err.splitlines()) == 2  # and not what the hub's client logs


def test_what_the_hub_refuses_is_told_with_its_mend(cli: Cli, hub: Hub, stick: Path) -> None:
    name = "deepseek-community/Janus-Pro-1B"
    refused = cli("models", "fetch", "janus-pro-1b")
    assert refused.code == 4
    assert f"the hub has no repository {name}" in refused.err
    assert "--from FOLDER" in refused.err
    hub.repositories[name] = stick / "janus"
    hub.gated.add(name)
    gated = cli("models", "fetch", name)
    assert gated.code == 4
    assert "asks for its licence to be accepted" in gated.err
    assert f"accept it at https://huggingface.co/{name}" in gated.err
    assert local(CATALOGUE["janus-pro-1b"]) is None


def test_too_little_disk_is_told_before_the_download(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum((hub.repositories["nobody/tiny-clip"] / name).stat().st_size for name in ("a.json", "b.safetensors"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9 + size))
    with pytest.raises(PrerequisiteError, match=r"needs 0\.0 GB more than the disk has free"):  # for c.txt
        fetch(FOLDER)
    with pytest.raises(PrerequisiteError, match=r"needs 0\.3 GB more than the disk has free"):
        fetch(FILE)
    assert (hub.served, state(FOLDER)) == ([], "missing")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9 + size + len("c.txt")))
    fetch(FOLDER)


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
        assert name in {*SCORERS, *REWARDS, *BENCHMARKS, *BENCHMARK_GROUPS, "blip-vqa"}  # which answers questions
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
    names = {path.name for path in (stick / "janus").iterdir()} - {"notes.txt"}
    assert {path.name for path in (home / "janus-pro-1b").iterdir()} == {*names, RECORD}
    states = {row["name"]: row["state"] for row in json.loads(cli("models", "ls", "--json").out)}
    assert {name for name, found in states.items() if found == "there"} == {"tiny.pth", "tiny-clip", "janus-pro-1b"}
    assert len(cli("models", "verify").out.splitlines()) == 3
    missing = cli("models", "verify", "clip-vit-large-patch14")
    assert missing.code == 4
    assert "GenEval's colours" in missing.err


def test_a_file_that_changed_is_named(cli: Cli, stick: Path, home: Path) -> None:
    cli("models", "fetch", "janus-pro-1b", "--from", str(stick / "janus"))
    path = home / "janus-pro-1b" / "model-00001-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    damaged = cli("models", "verify", "janus-pro-1b")
    assert damaged.code == 5
    assert f"{path.name} is damaged" in damaged.err
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

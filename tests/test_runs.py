"""The run directory: what it keeps through kills, full disks, damage and strangers."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcpo_bench import runs
from gcpo_bench.config import LossConfig, RunConfig, SelectionConfig, SelectorConfig
from gcpo_bench.errors import CorruptDataError, PrerequisiteError, RunError
from gcpo_bench.methods import METHODS
from gcpo_bench.resolve import resolve


@pytest.fixture
def run(tmp_path: Path) -> runs.Run:
    return runs.create(tmp_path / "runs", "first", RunConfig(num_steps=3))


# ---------------------------------------------------------------- names and folders


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "x" * 64, ".hidden", "..."])
def test_plain_names_are_taken(tmp_path: Path, name: str) -> None:
    assert runs.create(tmp_path, name, RunConfig()).path == tmp_path / name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/tmp/a", "a b", "x" * 65, "é", "a\n", "~a", "a\x00b"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="cannot be used") as error:
        runs.create(tmp_path / "runs", name, RunConfig())
    assert "--name" in error.value.hint
    assert not (tmp_path / "runs").exists()


def test_an_existing_run_is_never_replaced(run: runs.Run) -> None:
    before = (run.path / "config.yaml").read_bytes()
    with pytest.raises(RunError, match="exists already") as error:
        runs.create(run.path.parent, "first", RunConfig(seed=9))
    assert "--resume --name first" in error.value.hint
    assert (run.path / "config.yaml").read_bytes() == before
    assert [path.name for path in run.path.parent.iterdir()] == ["first"]  # nothing half made is left


def test_a_link_that_leads_outside_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="exists already"):
        runs.create(tmp_path / "runs", "link", RunConfig())
    assert not (tmp_path / "elsewhere").exists()


def test_a_runs_folder_that_is_a_file_is_a_missing_prerequisite(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("I am a file")
    with pytest.raises(PrerequisiteError, match="cannot be written") as error:
        runs.create(tmp_path / "runs" / "deeper", "a", RunConfig())
    assert "--runs-dir" in error.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_a_missing_prerequisite(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PrerequisiteError, match="cannot be written"):
            runs.create(tmp_path / "runs", "a", RunConfig())
    finally:
        tmp_path.chmod(0o700)


def test_an_unknown_run_is_told_with_its_nearest_namesake(run: runs.Run) -> None:
    with pytest.raises(RunError, match="no run 'frist'") as error:
        runs.open_run("frist", run.path.parent)
    assert error.value.hint.startswith("did you mean 'first'?")


def test_a_run_is_found_by_name_and_by_path(run: runs.Run) -> None:
    assert runs.open_run("first", run.path.parent).path == run.path
    assert runs.open_run(str(run.path)).name == "first"
    assert runs.open_run(run.path).config == run.config


def test_a_foreign_folder_is_not_taken_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(CorruptDataError, match=r"is not a run: it has no config\.yaml"):
        runs.open_run("photos", tmp_path)
    assert runs.list_runs(tmp_path) == []


def test_listing_shows_runs_only_and_an_absent_folder_is_empty(run: runs.Run) -> None:
    (run.path.parent / "notes.txt").write_text("x")
    (run.path.parent / "~first.99").mkdir()
    assert runs.list_runs(run.path.parent) == [run.path]
    assert runs.list_runs(run.path / "nowhere") == []


def test_unused_names_count_up(run: runs.Run) -> None:
    root = run.path.parent
    assert runs.unused_name(root, "second") == "second"
    assert runs.unused_name(root, "first") == "first-2"
    runs.create(root, "first-2", RunConfig())
    assert runs.unused_name(root, "first") == "first-3"
    runs.check_name(runs.unused_name(root, "my_lab.policies:Mine/" + "x" * 99))


# ---------------------------------------------------------------- config.yaml


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_survives_being_written_and_read(tmp_path: Path, method: str) -> None:
    config = resolve(None, ["optimizer.learning_rate=1e-5"], {"method": method}).config
    runs.create(tmp_path, "a", config)
    assert runs.open_run("a", tmp_path).config == config


@given(
    beta=st.floats(0, 1e6),
    seed=st.integers(0, 2**32 - 1),
    ratio=st.floats(0, 1, exclude_min=True),
    options=st.dictionaries(
        st.text(max_size=8),
        st.one_of(st.booleans(), st.integers(), st.text(), st.floats(allow_nan=False, allow_infinity=False)),
        max_size=4,
    ),
)
def test_any_configuration_survives_being_written_and_read(
    tmp_path_factory: pytest.TempPathFactory, beta: float, seed: int, ratio: float, options: dict[str, object]
) -> None:
    root = tmp_path_factory.mktemp("runs")
    selectors = (SelectorConfig(name="random", ratio=ratio, options=options),)
    config = RunConfig(seed=seed, loss=LossConfig(beta=beta), selection=SelectionConfig(selectors=selectors))
    runs.create(root, "a", config)
    assert runs.open_run("a", root).config == config


@pytest.mark.parametrize(
    "text", ["0E0", "1e-4", "1:30", "no", "~", ".inf", "010", "\x85", "<<", "=", "2024-01-01", "- a"]
)
def test_words_that_look_like_something_else_stay_words(tmp_path: Path, text: str) -> None:
    shared = [text]
    selectors = (SelectorConfig(name="all", options={"x": text, text: shared, "again": shared}),)
    config = RunConfig(selection=SelectionConfig(selectors=selectors))
    runs.create(tmp_path, "a", config)
    assert runs.open_run("a", tmp_path).config == config


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seed: [",
        "- a list",
        "seed: -1",
        "loss: {beta: .nan}",
        "unknown_key: 1",
        "a: &x [1]\nb: *x",
        "seed: 1\nseed: 2",
        "!!python/object/apply:os.system ['true']",
        "[" * 100_000,
        "x" * 2_000_000,
    ],
    ids=["empty", "cut", "list", "range", "nan", "key", "alias", "double", "object", "deep", "large"],
)
def test_a_damaged_config_is_named_and_has_a_mend(run: runs.Run, text: str) -> None:
    (run.path / "config.yaml").write_text(text)
    with pytest.raises(CorruptDataError, match=r"config\.yaml is damaged") as error:
        runs.open_run("first", run.path.parent)
    assert len(str(error.value)) < 1000
    assert error.value.hint


def test_a_binary_config_is_damaged(run: runs.Run) -> None:
    (run.path / "config.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(CorruptDataError, match="not UTF-8"):
        runs.open_run("first", run.path.parent)


# ---------------------------------------------------------------- status and environment


def test_status_is_kept_and_a_new_run_is_created(run: runs.Run) -> None:
    assert run.status() == runs.Status("created", 0)
    run.set_status("failed", 7, "the loss is nan")
    assert runs.open_run(run.path).status() == runs.Status("failed", 7, "the loss is nan")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "dancing", "step": 1, "error": ""}', '{"step": 1}'])
def test_a_damaged_status_is_noticed(run: runs.Run, text: str) -> None:
    (run.path / "status.json").write_text(text)
    with pytest.raises(CorruptDataError, match=r"status\.json is damaged"):
        run.status()


def test_each_start_adds_an_environment(run: runs.Run) -> None:
    run.add_environment({"time": "one"})
    run.add_environment({"time": "two"})
    assert [record["time"] for record in run.environments()] == ["one", "two"]


# ---------------------------------------------------------------- metrics


def test_metrics_come_back_as_logged(run: runs.Run) -> None:
    rows = [{"step": step, "reward/mean": 0.1 * step} for step in (1, 2, 3)]
    for row in rows:
        run.log(row)
    assert runs.open_run(run.path).metrics() == rows


@pytest.mark.parametrize("step", [4, 1, 0, 2.0, "2", None, True])
def test_a_step_that_does_not_follow_the_last_one_is_refused(run: runs.Run, step: object) -> None:
    run.log({"step": 1})
    with pytest.raises(ValueError, match=r"step"):
        run.log({"step": step})  # type: ignore[dict-item]
    assert run.metrics() == [{"step": 1}]


def test_the_last_step_is_known_after_reopening(run: runs.Run) -> None:
    run.log({"step": 1})
    with pytest.raises(ValueError, match="step 1 comes after step 1"):
        runs.open_run(run.path).log({"step": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(run: runs.Run, value: float) -> None:
    with pytest.raises(ValueError, match=r"step 1 are not finite: loss/total"):
        run.log({"step": 1, "reward/mean": 0.5, "loss/total": value})
    assert run.metrics() == []


def test_a_torn_last_line_is_left_out_and_then_replaced(run: runs.Run) -> None:
    run.log({"step": 1})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2, "rew')
    again = runs.open_run(run.path)
    assert again.metrics() == [{"step": 1}]
    again.log({"step": 2})
    assert [json.loads(line)["step"] for line in run.metrics_path.read_text().splitlines()] == [1, 2]


def test_a_whole_last_line_without_line_end_is_kept(run: runs.Run) -> None:
    run.metrics_path.write_text('{"step": 1}\n{"step": 2}')
    assert [row["step"] for row in run.metrics()] == [1, 2]
    run.log({"step": 3})
    assert [row["step"] for row in run.metrics()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"step": 1}\n{"st\n{"step": 3}\n', 2),
        ('{"step": 1}\n{"st\n', 2),  # ended by a line end, so it was not cut off by a kill
        ("\n", 1),
        ('{"step": 1}\n[2]\n', 2),
        ('{"step": 1}\n{"step": 1}\n', 2),
        ('{"step": 2}\n', 1),
        ('{"step": 1}\n{"step": 2}x', 2),  # the line end was changed: no cut leaves a whole object and more
        ('{"step": 1}\n{"reward": 2}\n', 2),
        ('{"step": 1}\n\x00\x00\x00\n{"step": 2}\n', 2),
    ],
)
def test_any_other_bad_line_is_named(run: runs.Run, text: str, line: int) -> None:
    run.metrics_path.write_text(text)
    with pytest.raises(CorruptDataError, match=rf"metrics\.jsonl is damaged: line {line} "):
        run.metrics()


@given(cut=st.integers(0, 200))
def test_metrics_cut_anywhere_keep_every_whole_line(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    run = runs.create(tmp_path_factory.mktemp("runs"), "a", RunConfig())
    rows = [{"step": step, "reward/mean": step / 7} for step in range(1, 6)]
    for row in rows:
        run.log(row)
    content = run.metrics_path.read_bytes()[:cut]
    run.metrics_path.write_bytes(content)
    kept = run.metrics()
    assert kept == rows[: len(kept)]
    assert content.count(b"\n") <= len(kept) <= content.count(b"\n") + 1  # an object may be whole without its line end
    further = {"step": len(kept) + 1}
    runs.open_run(run.path).log(further)
    assert run.metrics() == [*kept, further]


def test_truncating_keeps_the_bytes_of_the_steps_before(run: runs.Run) -> None:
    for step in (1, 2, 3, 4):
        run.log({"step": step, "x": 1 / 3})
    lines = run.metrics_path.read_bytes().splitlines(keepends=True)
    with run.metrics_path.open("a") as file:
        file.write('{"torn')
    run.truncate_metrics(2)
    assert run.metrics_path.read_bytes() == b"".join(lines[:2])
    run.log({"step": 3})
    run.truncate_metrics(0)
    assert run.metrics() == []


# ---------------------------------------------------------------- checkpoints and token maps


def test_only_complete_checkpoints_count(run: runs.Run) -> None:
    for step in (400, 20, 1_234_567):
        folder = run.checkpoint_path(step)
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
    run.checkpoint_path(500).mkdir()  # killed while it was written
    (run.path / "checkpoints" / "step-abc").mkdir()
    assert run.checkpoint_path(400).name == "step-000400"
    assert run.checkpoint_steps() == [20, 400, 1_234_567]


def test_token_maps_come_back_in_order_of_step(run: runs.Run) -> None:
    for step in (10, 2):
        run.save_token_maps(step, {"selected": np.eye(3, dtype=bool), "prompts": np.array(["ä <script>"])})
    assert [step for step, _ in run.token_maps()] == [2, 10]
    arrays = run.token_maps()[0][1]
    assert arrays["selected"].dtype == bool
    assert arrays["prompts"].tolist() == ["ä <script>"]


def test_damaged_token_maps_are_named(run: runs.Run) -> None:
    run.save_token_maps(10, {"entropy": np.arange(5000.0)})
    path = run.path / "tokens" / "step-000010.npz"
    content = path.read_bytes()
    for damage in (b"", b"no archive", content[: len(content) // 2], content[:200] + b"\xff" * 64 + content[264:]):
        path.write_bytes(damage)
        with pytest.raises(CorruptDataError, match=r"step-000010\.npz is damaged"):
            run.token_maps()


def test_pickled_token_maps_are_refused(run: runs.Run) -> None:
    path = run.path / "tokens" / "step-000001.npz"
    path.parent.mkdir()
    np.savez(path, evil=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CorruptDataError, match=r"evil\.npy holds objects"):
        run.token_maps()


def test_checksums_tell_files_apart(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert runs.checksum(tmp_path / "a") == "xxh3:06b05ab6733a618578af5f94892f3950"  # XXH3-128 of "abc"
    with pytest.raises(CorruptDataError, match="missing"):
        runs.checksum(tmp_path / "b")


# ---------------------------------------------------------------- one writer, full disks, kills


def test_two_processes_cannot_train_one_run(run: runs.Run) -> None:
    code = f"""
        import pathlib
        from gcpo_bench import runs
        with runs.open_run(pathlib.Path({str(run.path)!r})).lock():
            print("held", flush=True)
            input()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="in use"), run.lock():
            pass
        holder.kill()  # a killed holder holds nothing
    with run.lock():
        pass


def _full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_old_file_and_leaves_no_litter(run: runs.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.set_status("running", 5)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", _full)
        with pytest.raises(PrerequisiteError, match=r"status\.json: the disk is full") as error:
            run.set_status("running", 6)
    assert error.value.exit_code == 4
    assert run.status().step == 5
    assert not list(run.path.glob("*.tmp"))


def test_a_file_that_is_not_written_to_its_end_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def write(content: bytes, *, whole: bool) -> None:
        with runs.replacing(path) as file:
            file.write(content)
            if not whole:
                raise KeyError

    with pytest.raises(KeyError):
        write(b"half", whole=False)
    assert list(tmp_path.iterdir()) == []
    write(b"old", whole=True)
    with pytest.raises(KeyError):
        write(b"half of the new one", whole=False)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("room", [0, 1, 9])
def test_a_line_that_does_not_fit_leaves_the_lines_before(
    run: runs.Run, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """The disk takes `room` bytes of the line and then no more."""
    run.log({"step": 1})
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr("os.write", lambda fd, data: write(fd, data[:room]) if room else _full())
        with pytest.raises(PrerequisiteError, match=r"metrics\.jsonl: the disk is full"):
            run.log({"step": 2})
    assert [row["step"] for row in run.metrics()] == [1]
    run.log({"step": 2})  # with room again it goes on
    assert [row["step"] for row in run.metrics()] == [1, 2]


def test_a_real_limit_on_file_size_loses_nothing(tmp_path: Path) -> None:
    """The operating system itself refuses to write more: RLIMIT_FSIZE stands in for a full disk."""
    code = f"""
        import pathlib, resource
        from gcpo_bench import runs
        from gcpo_bench.config import RunConfig
        from gcpo_bench.errors import PrerequisiteError
        run = runs.create(pathlib.Path({str(tmp_path)!r}), "a", RunConfig())
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            for step in range(1, 1000):
                run.log({{"step": step, "reward/mean": 0.5}})
        except PrerequisiteError as error:
            print(step, error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    failed_at, _, message = result.stdout.partition(" ")
    assert "the disk is full" in message
    assert [row["step"] for row in runs.open_run("a", tmp_path).metrics()] == list(range(1, int(failed_at)))


def test_a_writer_killed_at_random_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "a", RunConfig())
    code = f"""
        import pathlib
        from gcpo_bench import runs
        run = runs.open_run(pathlib.Path({str(run.path)!r}))
        rows = run.metrics()
        step = rows[-1]["step"] if rows else 0
        print("ready", flush=True)
        while True:
            step += 1
            run.log({{"step": step, "padding": 1 / 3, **{{f"key/{{i}}": i / 7 for i in range(20)}}}})
            run.set_status("running", step)
            print(step, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    rng = random.Random(0)
    before, told = 0, 0
    for _ in range(8):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(rng.randint(1, 20)):
                writer.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.002))
            writer.send_signal(signal.SIGKILL)
        steps = [row["step"] for row in run.metrics()]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) >= before
        assert run.status().step in {len(steps) - 1, len(steps), told}  # told: killed before it wrote the first status
        before, told = len(steps), run.status().step
    assert before > 8


def test_json_files_hold_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        runs.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []
    runs.write_json(tmp_path / "a.json", {"x": "é"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["x"] == "é"
    assert runs.read_json(tmp_path / "a.json") == {"x": "é"}

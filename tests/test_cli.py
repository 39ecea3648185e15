"""The command line as a user meets it: results on stdout, one `error:` and one `hint:` line, documented exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.activations import ACT2FN

from gcpo_bench import __version__, runs
from gcpo_bench.cli.output import duration, size
from gcpo_bench.cli.progress import describe, progress
from gcpo_bench.cli.sample import configuration
from gcpo_bench.cli.train import first_to_last
from gcpo_bench.config import RunConfig
from gcpo_bench.errors import CorruptDataError
from gcpo_bench.methods import METHODS
from gcpo_bench.registry import BENCHMARK_GROUPS, BENCHMARKS, POLICIES, REWARDS, SCORERS, SELECTORS, WEIGHTINGS, Entry
from gcpo_bench.reports.comparisons import sentences
from gcpo_bench.reports.load import load
from gcpo_bench.resolve import list_presets
from gcpo_bench.scenes import held_out_prompts

from .conftest import Cli, CliResult
from .processes import LIMIT_S
from .run_factory import make_run

SMALL = (
    *("--model", "scenes-8", "-o", "sampling.prompts_per_step=2", "-o", "sampling.group_size=2"),
    *("-o", "logging.tracked_prompts=1"),
)
"""Options of a run that takes moments."""


def refused(result: CliResult, code: int) -> str:
    """The error line, after checking that there is exactly one, one hint, and nothing else."""
    assert result.code == code, result.err
    lines = [line for line in result.err.splitlines() if line.startswith(("error:", "hint:"))]
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"], result.err
    assert all(len(line) > len("error: ") for line in lines)
    assert "Traceback" not in result.err
    return lines[0].removeprefix("error: ")


def in_process_of_its_own(arguments: Sequence[str], folder: Path, before: str = "", **variables: str) -> CliResult:
    """The command line in a fresh interpreter, after the statements `before`."""
    code = f"{textwrap.dedent(before)}\nfrom gcpo_bench.cli.app import run\nrun({list(arguments)!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )
    return CliResult(result.returncode, result.stdout, result.stderr)


# ---------------------------------------------------------------- looking around


def test_help_names_every_command_and_each_has_an_example(cli: Cli) -> None:
    top = cli("--help")
    assert top.code == 0
    for name in ("train", "evaluate", "report", "ls", "show", "sample", "doctor", "pretrain"):
        assert name in top.out
        assert f"Example: gcpo-bench {name}" in " ".join(cli(name, "--help").out.split())


def test_no_command_shows_the_help(cli: Cli) -> None:
    result = cli()
    assert result.code == 2
    assert result.out.startswith("Usage: gcpo-bench")


def test_version(cli: Cli) -> None:
    assert cli("--version") == CliResult(0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("methods", list(METHODS)),
        ("models", list(POLICIES)),
        ("rewards", list(REWARDS)),
        ("scorers", list(SCORERS)),
        ("selectors", list(SELECTORS)),
        ("weightings", list(WEIGHTINGS)),
        ("benchmarks", [*BENCHMARKS, *BENCHMARK_GROUPS]),
        ("presets", [preset.name for preset in list_presets()]),
    ],
)
def test_listings_hold_every_name_as_table_and_json(cli: Cli, kind: str, names: list[str]) -> None:
    rows = json.loads(cli("ls", kind, "--json").out)
    assert [row["name"] for row in rows] == names
    assert all(row["summary"] for row in rows)
    table = cli("ls", kind).out
    assert all(name in table for name in names)


def test_the_help_on_gcpo_paper_says_what_happens_at_the_start(cli: Cli) -> None:
    rows = {row["name"]: row["summary"] for row in json.loads(cli("ls", "methods", "--json").out)}
    assert "While policy == reference every weight is 0" in rows["gcpo-paper"]


def test_runs_are_listed_and_a_damaged_one_hides_no_other(cli: Cli, tmp_path: Path) -> None:
    assert "no runs" in cli("ls", "runs").out
    assert json.loads(cli("ls", "runs", "--json").out) == []
    good = runs.create(tmp_path / "runs", "good", RunConfig())
    good.log({"step": 1, "reward/mean": 0.25})
    bad = runs.create(tmp_path / "runs", "bad", RunConfig())
    (bad.path / "status.json").write_text("{")
    rows = {row["name"]: row for row in json.loads(cli("ls", "runs", "--json").out)}
    assert rows["bad"]["state"].startswith("damaged: ")
    assert (rows["good"]["state"], rows["good"]["reward"], rows["good"]["overall"]) == ("created", 0.25, None)
    assert "0.250" in cli("ls", "runs").out


def test_show_prints_values_with_their_origin(cli: Cli) -> None:
    result = cli("show", "scenes-tiny-grpo", "-o", "loss.beta=0.5", "--json")
    shown = json.loads(result.out)
    assert RunConfig.model_validate(shown["config"]).loss.beta == 0.5
    assert shown["origin"]["loss.beta"] == "-o"
    assert shown["origin"]["num_steps"] == "preset scenes-tiny-gcpo"
    row = next(
        line for line in cli("show", "scenes-tiny-grpo", "--seed", "4").out.splitlines() if line.startswith(" seed")
    )
    assert row.split() == ["seed", "4", "--seed"]


def test_lists_in_values_are_shown_as_they_are(cli: Cli) -> None:
    assert "[0.1, 0.9]" in cli("show").out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("gcpo-bench trai", "train"),
        ("gcpo-bench train --method gcpo-p", "gcpo-paper"),
        ("gcpo-bench train --model scenes-1", "scenes-12"),
        ("gcpo-bench train --preset scenes-t", "scenes-tiny-gcpo"),
        ("gcpo-bench ls meth", "methods"),
        ("gcpo-bench evaluate my-", "my-run"),
    ],
)
def test_the_shell_completes_names(tmp_path: Path, words: str, expected: str) -> None:
    runs.create(tmp_path / "runs", "my-run", RunConfig())
    variables = {
        "_GCPO_BENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    assert expected in in_process_of_its_own([], tmp_path, **variables).out.split()


def test_times_and_sizes_are_written_for_people() -> None:
    assert [duration(s) for s in (0.04, 9.94, 48, 200, 3600)] == ["0.0 s", "9.9 s", "48 s", "3 min 20 s", "1 h 0 min"]
    assert [size(n) for n in (0, 999, 3_400_000, 2.5e9)] == ["0 B", "999 B", "3.4 MB", "2.5 GB"]


@pytest.mark.parametrize("at_a_screen", [True, False])
def test_progress_shows_reward_divergence_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, at_a_screen: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: at_a_screen)
    monkeypatch.setenv("COLUMNS", "120")
    with progress("step", done=2) as show:
        for step in (3, 4):
            show(step, 4, describe({"reward/mean": 0.25 * step, "loss/kl_all": 0.00125, "time/step_s": 1.0}))
    out, err = capsys.readouterr()
    assert out == ""
    assert "reward 1.000  KL 0.0013" in err
    assert "4/4" in err
    assert "left" in err
    if not at_a_screen:
        assert [line[:8] for line in err.splitlines()] == ["step 3/4", "step 4/4"]


def test_progress_names_no_total_that_is_not_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as at a screen: the bar is drawn before the first call
    with progress("images", done=3):
        pass
    assert "images" in (err := capsys.readouterr().err)
    assert "3/" not in err


def test_a_long_job_leaves_about_twenty_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("images") as show:
        for done in range(0, 1001, 8):
            show(done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert 15 <= len(lines) <= 21
    assert lines[-1].startswith("images 1000/1000")


# ---------------------------------------------------------------- bad usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'"),
        (["train", "--sed", "1"], "No such option: --sed"),
        (["train", "--seed", "one"], "Invalid value for '--seed'"),
        (["train", "--seed"], "'--seed' requires an argument"),
        (["train", "extra"], "unexpected extra argument"),
        (["evaluate"], "Missing argument 'RUN...'"),
        (["ls", "things"], "'things' is not one of"),
        (["sample", "scenes-8"], "Missing argument 'prompt'"),
        (["sample", "scenes-8", "x", "-n", "0"], "Invalid value for '-n'"),
        (["train", "--preset", "scenes-gcpoo"], "unknown preset 'scenes-gcpoo'"),
        (["train", "--method", "gcp"], "unknown method 'gcp'"),
        (["train", "--model", "scenes-13"], "unknown model 'scenes-13'"),
        (["train", "--ratio", "0"], "--ratio is 0.0: must be a finite number above 0 and at most 1"),
        (["train", "--ratio", "1.5"], "--ratio is 1.5"),
        (["train", "--ratio", "nan"], "--ratio is nan"),
        (["train", "--seed", "-1"], "--seed is -1"),
        (["train", "--num-steps", "-1"], "--num-steps is -1"),
        (["train", "-o", "sampling.group_size=1"], "-o sampling.group_size is 1"),
        (["train", "-o", "sampling.group_siz=4"], "unknown key -o sampling.group_siz"),
        (["train", "-o", "nonsense"], "-o 'nonsense' is not key=value"),
        (["train", "-o", "policy.name=nowhere.module:Policy"], "no module 'nowhere.module'"),
        (["train", "--name", "a/b"], "run name 'a/b' cannot be used"),
        (["train", "--name", ".."], "run name '..' cannot be used"),
        (["train", "--name", "../../etc/x"], "cannot be used"),
        (["train", "--name", ""], "run name '' cannot be used"),
        (["train", "--resume"], "no unfinished run in runs that stands still"),
        (["train", "--resume", "--name", "nobody"], "no run 'nobody' in runs"),
        (["evaluate", "nobody"], "no run 'nobody' in runs"),
        (["report", "nobody"], "no run 'nobody' in runs"),
        (["report"], "no run in runs"),
        (["report", "--format", "pdf"], "unknown --format 'pdf'"),
        (["report", "--format", ","], "--format names no format"),
        (["sample", "nobody", "a red circle"], "no run 'nobody' in runs"),
        (["sample", "scenes-8", "x", "--guidance", "nan"], "--guidance"),
        (["sample", "scenes-8", "x", "-o", "policy.devise=cpu"], "unknown key -o policy.devise"),
        (["show", "nothing"], "unknown preset 'nothing'"),
        (["pretrain", "--model", "scenes-9"], "unknown model 'scenes-9'"),
    ],
)
def test_bad_usage_is_two_lines_and_exit_code_2(cli: Cli, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in refused(cli(*arguments), 2)
    assert not any((tmp_path / "runs").glob("*/checkpoints"))


def test_several_mistakes_are_told_in_one_line(cli: Cli) -> None:
    message = refused(cli("train", "--method", "gcp", "--ratio", "2", "-o", "loss.bta=1"), 2)
    assert message.startswith("3 problems: ")


def test_a_name_that_is_taken_is_refused_and_nothing_changes(cli: Cli, tmp_path: Path) -> None:
    run = runs.create(tmp_path / "runs", "mine", RunConfig(seed=3))
    for more in ([], ["--dry-run"]):
        assert "runs/mine exists already" in refused(cli("train", "--name", "mine", *more), 2)
    assert runs.open_run(run.path).config.seed == 3


@pytest.mark.parametrize("place", ["file", "file/deeper", "/proc/nowhere"])
def test_a_runs_folder_that_cannot_be_written_is_exit_code_4(cli: Cli, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("no folder")
    assert "cannot be written" in refused(cli("train", "--runs-dir", place, *SMALL), 4)


def test_a_missing_package_is_named_with_its_command(tmp_path: Path) -> None:
    runs.create(tmp_path / "runs", "a", RunConfig())
    before = "import sys\nsys.modules['matplotlib'] = None"
    result = in_process_of_its_own(["report", "a"], tmp_path, before)
    assert "'matplotlib' is missing" in refused(result, 4)
    assert "pip install matplotlib" in result.err


def test_a_defect_is_reported_without_traceback_unless_asked(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by zero\nsecond line")

    monkeypatch.setattr("gcpo_bench.resolve.list_presets", broken)
    assert refused(cli("ls", "presets"), 70) == "internal error: ZeroDivisionError: by zero second line"
    for arguments in (("--debug", "ls", "presets"), ("ls", "presets", "--debug")):
        assert "Traceback (most recent call last)" in cli(*arguments).err


@pytest.mark.parametrize("command", ["show", "ls methods", "--help"])
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path, command: str) -> None:
    line = f"{sys.executable} -m gcpo_bench {command} | true; echo codes ${{PIPESTATUS[@]}}"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "codes 0 0" in result.stdout
    assert result.stderr == ""


# ---------------------------------------------------------------- damaged runs


def test_damaged_files_are_exit_code_5(cli: Cli, tmp_path: Path) -> None:
    run = runs.create(tmp_path / "runs", "a", RunConfig())
    run.set_status("interrupted", 3)
    run.metrics_path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    assert "metrics.jsonl is damaged: line 2 is not JSON" in refused(cli("train", "--resume", "--name", "a"), 5)
    (run.path / "status.json").write_text("")
    with pytest.raises(CorruptDataError, match=r"status\.json is damaged"):
        run.status()
    # a resume mends that, and still refuses what it cannot mend
    assert "metrics.jsonl is damaged: line 2 is not JSON" in refused(cli("train", "--resume", "--name", "a"), 5)
    (run.path / "config.yaml").write_text("seed: [")
    for arguments in (
        ["train", "--resume", "--name", "a"],
        ["evaluate", "a"],
        ["sample", "a", "a star"],
        ["report", "a"],
    ):
        assert "config.yaml is damaged" in refused(cli(*arguments), 5)
    (run.path / "config.yaml").unlink()
    assert "is not a run" in refused(cli("evaluate", "a"), 5)


# ---------------------------------------------------------------- doctor


def test_doctor_finds_everything_here(cli: Cli) -> None:
    result = cli("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(result.out)}
    assert result.code == 0
    assert {checks[name]["state"] for name in ("torch", "numpy", "weights scenes-12", "runs folder")} == {"ok"}
    assert checks["runs folder"]["found"] == "runs can be written"
    assert (
        checks["optional: mmdet"]["found"] != "not installed"
        or "gcpo-bench[mmdet]" in checks["optional: mmdet"]["mend"]
    )


def test_doctor_fails_where_runs_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    result = cli("doctor", "--runs-dir", "file")
    assert "runs folder" in refused(result, 4)
    assert "file cannot be written" in result.out


def test_doctor_recognises_a_torchvision_that_breaks_transformers(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    (tmp_path / "torchvision-9.9.dist-info").mkdir()
    (tmp_path / "torchvision-9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 9.9\n"
    )
    result = in_process_of_its_own(["doctor"], tmp_path, PYTHONPATH=str(tmp_path))
    assert "9.9 does not work with this torch" in refused(result, 4)
    assert "pip uninstall torchvision" in result.err


def test_doctor_tells_an_activation_that_is_another(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row["name"]: row for row in json.loads(cli("doctor", "--json").out)}
    assert (rows["activation"]["state"], rows["antialias"]["state"]) == ("ok", "ok")
    monkeypatch.setitem(ACT2FN, "quick_gelu", type(ACT2FN["gelu"]))
    assert "activation: QuickGELU(1) is 0.841" in refused(cli("doctor"), 4)


def test_doctor_notices_weights_that_are_not_what_was_shipped(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gcpo_bench.cli.doctor.resources.files", lambda _: tmp_path)
    (tmp_path / "scenes-12.json").write_text('{"checksum": "xxh3:00"}')
    (tmp_path / "scenes-12.safetensors").write_bytes(b"something else")
    message = refused(cli("doctor"), 4)
    assert "weights scenes-12: checksum is xxh3:" in message
    assert "scenes-8.json is missing" in message


# ---------------------------------------------------------------- train, evaluate, report


def test_a_dry_run_says_what_would_run_and_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    result = cli("train", "--dry-run", *SMALL)
    assert result.code == 0
    for part in ("runs/gcpo-scenes-8-seed0", "initial 0.1 + structural 0.1 + diverse 0.1", "s a step", "MB"):
        assert part in result.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rewards", "text"),
    [
        ([0.5], "0.500 (one step)"),
        ([0.2, 0.8], "0.200 -> 0.800 (first and last step)"),
        ([0.2, 0.4, 0.9, 0.6, 0.8], "0.300 -> 0.700 (means of the first and last 2 steps)"),
        ([0.0] * 5 + [0.5] * 9 + [1.0] * 5, "0.000 -> 1.000 (means of the first and last 5 steps)"),
    ],
)
def test_the_first_and_the_last_reward_share_no_step(rewards: list[float], text: str) -> None:
    assert first_to_last(rewards) == text


def test_train_evaluate_report_and_sample_go_hand_in_hand(cli: Cli, tmp_path: Path) -> None:
    trained = cli("train", *SMALL, "--num-steps", "2")
    assert trained.code == 0, trained.err
    assert trained.out == "runs/gcpo-scenes-8-seed0\n"
    assert "step 1/2" in trained.err
    assert "next: gcpo-bench evaluate gcpo-scenes-8-seed0" in trained.err
    run = runs.open_run("gcpo-scenes-8-seed0", tmp_path / "runs")
    assert run.status() == runs.Status("finished", 2)
    assert [row["step"] for row in run.metrics()] == [1, 2]
    assert len(run.log_path.read_text().splitlines()) == 2
    assert len(run.environments()) == 1

    evaluate = ("evaluate", run.name, "--limit", "2", "--images-per-prompt", "1")
    scores = json.loads(cli(*evaluate, "--json").out)
    assert scores["run"] == run.name
    assert scores["metrics"]["overall"]["n"] == scores["difference"]["n"] == 12
    change = scores["metrics"]["overall"]["value"] - scores["start"]["metrics"]["overall"]["value"]
    assert scores["difference"]["value"] == pytest.approx(change)
    table = cli(*evaluate)
    assert table.code == 0
    assert "images" not in table.err.replace("images-per-prompt", ""), "what is known is not drawn again"
    for part in ("overall", "color_attr", "strict", "extra_objects", "start", "paired"):
        assert part in table.out
    said = sentences(load([run.path, tmp_path / "runs" / scores["start"]["run"]]), ["scenes"])
    assert table.out.splitlines()[-len(said) :] == said != []  # what the report says, in its words

    report = cli("report", "--format", "json,html")
    assert report.code == 0, report.err
    assert "report/report.html" in report.out.splitlines()
    assert all((tmp_path / line).stat().st_size > 0 for line in report.out.splitlines())

    listed = {row["name"]: row for row in json.loads(cli("ls", "runs", "--json").out)}
    assert listed[run.name]["overall"] == pytest.approx(scores["metrics"]["overall"]["value"])
    assert scores["start"]["run"] in listed

    prompt = held_out_prompts()[0].text
    sampled = cli("sample", run.name, prompt, "-n", "3", "--out", "three.png")
    assert sampled.code == 0, sampled.err
    assert sampled.out.splitlines()[0] == "three.png"
    assert [line.partition(":")[0] for line in sampled.out.splitlines()[1:]] == ["image 1", "image 2", "image 3"]
    with Image.open(tmp_path / "three.png") as picture:
        assert picture.size == (2 * 256 + 8, 2 * 256 + 8)


def test_samples_are_the_same_for_the_same_seed_only(cli: Cli, tmp_path: Path) -> None:
    def draw(*options: str) -> np.ndarray:
        assert cli("sample", "scenes-8", "a red circle", "-n", "1", "--out", "x.png", *options).code == 0
        return np.asarray(Image.open(tmp_path / "x.png"))

    first = draw()
    assert (draw() == first).all()
    assert (draw("--seed", "1") != first).any()
    likeliest = draw("--top-k", "1")
    assert (draw("--top-k", "1", "--seed", "1") == likeliest).all()  # nothing is left to chance
    assert (draw("--top-p", "0.000001", "--seed", "2") == likeliest).all()


@pytest.mark.parametrize("command", [["evaluate", "x"], ["ablate", "--ratio", "0.1"]])
def test_what_every_process_of_a_launcher_would_do_in_full_is_refused(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert "this is process 1 of 2, and each would do the same" in refused(cli(*command), 2)


def test_evaluation_images_are_drawn_from_the_tokens_that_are_asked_for(cli: Cli, tmp_path: Path) -> None:
    """With one token to choose from, the images of a prompt are the same picture."""
    assert cli("train", *SMALL, "--num-steps", "1", "--name", "cut", "-o", "evaluation.top_k=1").code == 0
    assert cli("evaluate", "cut", "--limit", "1", "--images-per-prompt", "2", "--no-start").code == 0
    run = runs.open_run("cut", tmp_path / "runs")
    pictures = [path.read_bytes() for path in sorted(run.images_dir("scenes-heldout").glob("*.png"))]
    assert len(pictures) == 12
    assert pictures[0::2] == pictures[1::2]
    assert runs.read_json(run.evaluation_dir("scenes") / "scores.json")["identity"]["top_k"] == 1


def test_samples_are_drawn_as_the_run_is_evaluated(cli: Cli, tmp_path: Path) -> None:
    def draw(*arguments: str) -> np.ndarray:
        drawn = cli("sample", *arguments, "-n", "2", "--out", "x.png")
        assert drawn.code == 0, drawn.err
        return np.asarray(Image.open(tmp_path / "x.png"))

    assert cli("train", *SMALL, "--num-steps", "1", "--name", "cut", "-o", "evaluation.top_k=1").code == 0
    prompt = held_out_prompts()[0].text
    own = draw("cut", prompt)
    assert (own[:, :256] == own[:, -256:]).all(), "with one token to draw from, both images are the same"
    free = draw("cut", prompt, "--top-k", "0")
    assert (free[:, :256] != free[:, -256:]).any()
    assert (draw("cut", prompt, "-o", "evaluation.top_k=0") == free).all()
    assert (draw("cut", prompt, "--top-k", "0", "-o", "sampling.batch_rows=1") == free).all()
    message = refused(cli("sample", "cut", prompt, "-o", "policy.template=other", "-o", "seed=9"), 2)
    assert "policy.template, seed: cut was trained with another value" in message


def test_a_start_is_drawn_by_its_preset_or_its_model(cli: Cli, tmp_path: Path) -> None:
    """A published model is drawn as its shipped presets evaluate it."""
    for name in ("scenes-gcpo", "scenes-12"):
        assert cli("sample", name, "a red circle", "-n", "1", "--out", f"{name}.png").code == 0
    pictures = [(tmp_path / f"{name}.png").read_bytes() for name in ("scenes-gcpo", "scenes-12")]
    assert pictures[0] == pictures[1]
    config, trained = configuration("llamagen-xl-256", tmp_path, ["policy.random_init=true"])
    assert trained is None
    assert config.policy.random_init
    assert config.policy.device == "cpu"
    assert config.evaluation.distribution() == {"guidance_scale": 7.5, "temperature": 1.0, "top_k": 1000}


@pytest.mark.parametrize("prompt", ["", "<script>alert('\"&')</script>", "word " * 400, "\u202e中文 \x00"])
def test_strange_prompts_do_no_harm(cli: Cli, prompt: str) -> None:
    result = cli("sample", "scenes-8", prompt, "-n", "1")
    assert result.code == 0 or refused(result, 2)


def test_names_are_found_unused(cli: Cli) -> None:
    for expected in ("gcpo-scenes-8-seed7", "gcpo-scenes-8-seed7-2"):
        result = cli("train", *SMALL, "--num-steps", "1", "--seed", "7")
        assert result.out == f"runs/{expected}\n", result.err


def test_resuming_asks_for_the_same_settings_and_names_what_differs(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", *SMALL, "--num-steps", "2", "--method", "grpo", "--name", "a").code == 0
    message = refused(cli("train", "--resume", "--name", "a", "--seed", "5", "-o", "loss.beta=0.9"), 2)
    assert "was made with other settings: loss.beta 0.01 -> 0.9, seed 0 -> 5" in message
    assert "sampling" not in message
    run = runs.open_run("a", tmp_path / "runs")
    assert (run.config.seed, len(run.metrics())) == (0, 2)

    finished = cli("train", "--resume", "--name", "a")
    assert finished.code == 0
    assert "is finished" in finished.err
    longer = cli("train", "--resume", "--name", "a", "--num-steps", "3", "-o", "logging.checkpoint_every=1")
    assert longer.code == 0, longer.err
    run = runs.open_run("a", tmp_path / "runs")
    assert (run.config.num_steps, run.config.method) == (3, "grpo")
    assert [row["step"] for row in run.metrics()] == [1, 2, 3]
    assert len(run.environments()) == 2


def test_a_run_is_not_compared_with_a_start_that_it_never_had(cli: Cli) -> None:
    few = ("-o", "evaluation.prompts_per_task=1", "-o", "evaluation.images_per_prompt=1")
    assert cli("train", *SMALL, *few, "--num-steps", "1", "--name", "first").code == 0
    assert cli("train", *SMALL, *few, "--num-steps", "1", "-o", "policy.weights=first", "--name", "second").code == 0
    assert cli("evaluate", "second").code == 0
    assert cli("train", "--resume", "--name", "first", "--num-steps", "2").code == 0
    assert "second began from weights" in refused(cli("evaluate", "second"), 2)
    assert cli("evaluate", "second", "--no-start").code == 0


def test_a_newest_checkpoint_that_was_deleted_is_made_again(cli: Cli, tmp_path: Path) -> None:
    every = ("-o", "logging.checkpoint_every=1", "-o", "logging.keep_checkpoints=2")
    assert cli("train", *SMALL, *every, "--num-steps", "3", "--name", "a").code == 0
    run = runs.open_run(tmp_path / "runs/a")
    weights = (run.checkpoint_path(3) / "policy.safetensors").read_bytes()
    rewards = [row["reward/mean"] for row in run.metrics()]
    shutil.rmtree(run.checkpoint_path(3))
    assert cli("train", "--resume", "--name", "a").code == 0
    assert (run.checkpoint_path(3) / "policy.safetensors").read_bytes() == weights
    assert [row["reward/mean"] for row in run.metrics()] == rewards


def test_a_resume_that_is_refused_leaves_the_run_as_it_was(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", *SMALL, "--num-steps", "2", "--name", "a").code == 0
    run = runs.open_run(tmp_path / "runs/a")
    files = ("config.yaml", "status.json", "metrics.jsonl", "environment.json")
    before = {name: (run.path / name).read_bytes() for name in files}

    told = refused(cli("train", "--resume", "--name", "a", "--num-steps", "1"), 2)
    assert "has trained 2 steps: 1 are fewer" in told
    weights = run.checkpoint_path(2) / "policy.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # found when it is loaded, after the run was opened
    refused(cli("train", "--resume", "--name", "a", "--num-steps", "4"), 5)
    assert {name: (run.path / name).read_bytes() for name in before} == before

    weights.write_bytes(whole)
    assert cli("train", "--resume", "--name", "a", "--num-steps", "3").code == 0
    assert runs.open_run(run.path).status().step == 3


def test_resume_without_a_name_takes_the_run_that_stopped_last(cli: Cli, tmp_path: Path) -> None:
    config = cli("show", *SMALL, "--num-steps", "1", "--json")
    shown = RunConfig.model_validate(json.loads(config.out)["config"])
    for name, when in (("older", 1), ("newer", 2), ("done", 3)):
        run = runs.create(tmp_path / "runs", name, shown)
        run.set_status("finished" if name == "done" else "interrupted", 0)
        os.utime(run.path, (when, when))
    assert cli("train", "--resume").out == "runs/newer\n"


def test_a_run_in_use_is_not_trained_twice(cli: Cli, tmp_path: Path) -> None:
    shown = RunConfig.model_validate(json.loads(cli("show", *SMALL, "--json").out)["config"])
    run = runs.create(tmp_path / "runs", "a", shown)
    with run.lock():
        assert "is in use" in refused(cli("train", "--resume", "--name", "a"), 2)
        assert "that stands still" in refused(cli("train", "--resume"), 2)
    assert run.status().state == "created"


def test_a_damaged_checkpoint_is_named(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", *SMALL, "--num-steps", "1", "--name", "a").code == 0
    weights = runs.open_run("a", tmp_path / "runs").checkpoint_path(1) / "policy.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for arguments in (
        ["evaluate", "a"],
        ["sample", "a", "a star"],
        ["train", "--resume", "--name", "a", "--num-steps", "2"],
    ):
        assert "policy.safetensors is damaged" in refused(cli(*arguments), 5)
    weights.write_bytes(b"")
    assert "policy.safetensors" in refused(cli("evaluate", "a"), 5)


def test_a_disk_that_fills_up_loses_nothing_written(tmp_path: Path) -> None:
    """No file may grow beyond 2 MB: metrics and weights fit, the optimiser's state after a step does not."""
    before = "import resource\nimport torch\nresource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))"
    result = in_process_of_its_own(["train", *SMALL, "--num-steps", "2", "--name", "a"], tmp_path, before)
    assert "the disk is full" in refused(result, 4)
    run = runs.open_run("a", tmp_path / "runs")
    assert run.status().state == "failed"
    assert [row["step"] for row in run.metrics()] == [1, 2]
    resumed = in_process_of_its_own(["train", "--resume", "--name", "a"], tmp_path)
    assert resumed.code == 0, resumed.err
    assert run.status() == runs.Status("finished", 2)


@pytest.mark.parametrize(
    ("number", "code", "state"), [(signal.SIGTERM, 75, "preempted"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, number: int, code: int, state: str) -> None:
    command = [sys.executable, "-m", "gcpo_bench", "train", *SMALL, "--num-steps", "5000", "--name", "a"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        metrics = tmp_path / "runs" / "a" / "metrics.jsonl"
        while not metrics.exists() and process.poll() is None:
            pass
        process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT_S)
    message = refused(CliResult(process.returncode, out, err), code)
    assert "the state is saved" in message
    assert "--resume --name a" in err
    run = runs.open_run("a", tmp_path / "runs")
    assert run.status().state == state
    assert run.checkpoint_steps()[-1] == run.status().step == run.metrics()[-1]["step"]


def test_pretraining_makes_weights_and_their_record(cli: Cli, tmp_path: Path) -> None:
    result = cli("pretrain", "--model", "scenes-8", "--max-steps", "2", "--out", "made")
    assert result.code == 0, result.err
    assert result.out == "made/scenes-8.safetensors\n"
    record = json.loads((tmp_path / "made" / "scenes-8.json").read_text())
    assert record["checksum"] == runs.checksum(tmp_path / "made" / "scenes-8.safetensors")


def test_a_watched_report_follows_the_runs_until_ctrl_c(tmp_path: Path) -> None:
    root, page = tmp_path / "runs", tmp_path / "report" / "report.html"
    root.mkdir()

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not (page.exists() and text in page.read_text(encoding="utf-8")):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(f"{text!r} does not appear")
            time.sleep(0.1)

    command = [sys.executable, "-m", "gcpo_bench", "report", "--watch", "1", "--format", "html"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        options: dict[str, Any] = {"prompts_per_task": 1, "steps": 2, "maps": False}
        make_run(root, "first", **options)
        wait_for("<b>first</b>")
        assert '<meta http-equiv="refresh" content="1">' in page.read_text(encoding="utf-8")
        make_run(root, "second", method="grpo", **options)
        wait_for("<b>second</b>")
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert out.split() == ["report/report.html"]
    assert 'http-equiv="refresh"' not in page.read_text(encoding="utf-8")


def test_a_benchmark_may_name_what_its_runs_are_compared_by(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab_bench.py").write_text(
        "from gcpo_bench.evaluators.scenes import ScenesBenchmark\n"
        "class Crowded(ScenesBenchmark):\n"
        "    name = 'crowded'\n"
        "    headline = 'extra_objects'\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(BENCHMARKS.entries, "crowded", Entry("lab_bench:Crowded", "objects too many"))
    assert cli("train", "--model", "scenes-8", "--num-steps", "1", "--name", "a").code == 0
    result = cli("evaluate", "a", "--bench", "crowded", "--limit", "2", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    expected = found["metrics"]["extra_objects"]["value"] - found["start"]["metrics"]["extra_objects"]["value"]
    assert found["difference"]["value"] == pytest.approx(expected, abs=1e-9)


def test_a_full_gpu_names_what_the_command_itself_can_lower(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def full(**_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("gcpo_bench.cli.app.app", full)
    evaluated, trained = cli("evaluate", "my-run"), cli("train")
    for result in (evaluated, trained):
        assert refused(result, 4).startswith("the GPU is out of memory: CUDA out of memory")
    assert "hint: lower --batch-size" in evaluated.err
    assert "sampling.batch_rows" not in evaluated.err
    assert "sampling.batch_rows" in trained.err


# ---------------------------------------------------------------- options that cannot act


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("train", "--model", "scenes-8", "-o", "policy.name=scenes-12"), "--model contradict each other"),
        (("train", "--method", "grpo", "-o", "weighting.clip=1"), "the weighting uniform has no clip"),
        (("train", "-o", "policy.recompute=always"), "scenes-12 always keeps its activations"),
        (("train", "-o", "optimizer.betas=[2, 3]"), "optimizer.betas.0 is 2: must be a finite number at least 0"),
        (("train", "-o", "selection.selectors.structural.options={window: [1, 0]}"), "window is [1, 0], expected"),
        (("show", "-o", "optimizer.min_rate=0.5"), "the rate is constant"),
        (("sample", "scenes-8", "a red circle", "-o", "loss.beta=1"), "-o loss.beta does nothing here"),
        (("sample", "scenes-8", "a red circle", "-o", "evaluation.seed=1"), "-o evaluation.seed does nothing here"),
        (
            ("sample", "scenes-8", "a red circle", "--top-k", "2", "-o", "evaluation.top_k=3"),
            "-o evaluation.top_k and --top-k are both given",
        ),
        (("bench", "select", "--model", "scenes-8", "-o", "loss.beta=1"), "-o loss.beta does nothing here"),
        (("bench", "update", "--model", "scenes-8", "-o", "policy.weights=x"), "-o policy.weights does nothing here"),
    ],
)
def test_an_option_that_cannot_act_is_refused_before_anything_is_made(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    assert problem in refused(cli(*arguments), 2)
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_changes_nothing_is_named(cli: Cli) -> None:
    shown = cli("show", "--method", "grpo", "-o", "loss.kl_tokens=all")
    assert shown.code == 0
    assert shown.err == "-o loss.kl_tokens changes nothing: every token is selected\n"


# ---------------------------------------------------------------- what is printed


def test_ls_alone_lists_what_there_is_to_list(cli: Cli) -> None:
    listed = cli("ls")
    assert listed.code == 0
    kinds = json.loads(cli("ls", "--json").out)
    assert {"presets", "methods", "models", "plans", "runs", "cells"} <= set(kinds)
    for kind in kinds:
        assert f"gcpo-bench ls {kind} " in listed.out
        assert cli("ls", kind).code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("show",),
        ("show", "janus-pro-7b-gcpo-hps"),
        ("show", "--method", "random"),
        ("ls",),
        ("ls", "methods"),
        ("ls", "runs", "--runs-dir", "mine"),
        ("models", "ls"),
        ("data", "ls"),
        ("train", "--model", "janus-pro-tiny", "--dry-run", "-o", "policy.random_init=true"),
        ("show", "-o", "loss.beta={a: null}"),
        ("show", "-o", "rewards=[true]"),
        ("show", "-o", "policy.lora=7"),
    ],
)
def test_nothing_is_printed_as_only_python_writes_it(cli: Cli, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "mine/damaged").mkdir(parents=True)
    (tmp_path / "mine/damaged/config.yaml").write_text("seed: 1\n")
    result = cli(*arguments)
    assert not re.search(r"\bNone\b|\bTrue\b|\bFalse\b|\{'|<[a-z_.]+ object", result.out + result.err), result

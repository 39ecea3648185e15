"""Files that were changed, cut or lost since they were written: no number is made from them without a word."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gcpo_bench import runs
from gcpo_bench.config import RunConfig
from gcpo_bench.errors import CorruptDataError, RunError, TrainingError
from gcpo_bench.evaluators import stored
from gcpo_bench.evaluators.observations import Observations, Seen
from gcpo_bench.files import append_jsonl, checksum, has_broken_seal, read_json, read_jsonl, sealed_text, write_json
from gcpo_bench.reports.load import load, load_run
from gcpo_bench.reports.page import summary
from gcpo_bench.resolve import resolve
from gcpo_bench.training import checkpoints, starts
from gcpo_bench.training.decoding import sample
from gcpo_bench.training.loop import train

from .conftest import Cli
from .run_factory import make_run, score_run


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> runs.Run:
    return runs.create(tmp_path / "runs", "first", RunConfig(num_steps=3))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and nothing beside it."""
    root = tmp_path_factory.mktemp("made") / "runs"
    config = resolve("scenes-tiny-grpo", ["logging.checkpoint_every=1"], {"num_steps": 2}).config
    train(config, runs.create(root, "first", config))
    return root


@pytest.fixture
def trained(two_steps: Path, cli: Cli) -> runs.Run:
    shutil.copytree(two_steps, "runs")
    return runs.open_run("first")


# ---------------------------------------------------------------- objects, lines and YAML


def test_one_changed_digit_in_an_object_is_noticed_and_another_layout_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"x": 0.125, "y": {"z": [1, "é", None, True]}, "n": 10**20}
    write_json(path, value)
    assert read_json(path) == value
    path.write_text(json.dumps(json.loads(path.read_text())))  # one line, and the letter escaped
    assert read_json(path) == value
    change(path, "0.125", "0.135")
    with pytest.raises(CorruptDataError, match=r"a\.json is damaged: it was changed after it was written"):
        read_json(path)


def test_what_another_program_wrote_without_a_checksum_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 1}')
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    append_jsonl(tmp_path / "a.jsonl", {"x": 2})
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert read_jsonl(tmp_path / "a.jsonl") == [{"x": 1}, {"x": 2}]


def test_a_changed_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for x in (0.25, 0.5, 0.75):
        append_jsonl(path, {"x": x})
    change(path, "0.5", "0.6")
    with pytest.raises(CorruptDataError, match=r"line 2 was changed after it was written"):
        read_jsonl(path)


@pytest.mark.parametrize("end", ["x", "\x8a", "}", "\x00"])
def test_a_last_line_end_that_was_changed_is_no_torn_tail(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.jsonl"
    append_jsonl(path, {"x": 1})
    append_jsonl(path, {"x": 2})
    path.write_bytes(path.read_bytes()[:-1] + end.encode("latin-1"))
    with pytest.raises(CorruptDataError, match="line 2"):
        read_jsonl(path)
    with pytest.raises(CorruptDataError, match="line 2"):
        append_jsonl(path, {"x": 3})


def test_a_name_that_is_no_text_is_kept(tmp_path: Path) -> None:
    name = b"a\xff.png".decode("utf-8", "surrogateescape")
    write_json(tmp_path / "a.json", {"file": name})
    append_jsonl(tmp_path / "a.jsonl", {"file": name})
    assert read_json(tmp_path / "a.json") == {"file": name}
    assert read_jsonl(tmp_path / "a.jsonl") == [{"file": name}]


def test_the_seal_of_yaml_is_a_comment_on_the_lines_above() -> None:
    text = sealed_text("beta: 0.01\n")
    assert not has_broken_seal(text)
    assert not has_broken_seal("beta: 0.01\n")
    assert has_broken_seal(text.replace("0.01", "5.01"))


# ---------------------------------------------------------------- a run's folder


def test_an_edited_config_is_refused_and_its_hint_trains_a_new_run(cli: Cli, trained: runs.Run) -> None:
    path = trained.path / "config.yaml"
    change(path, "beta: 0.01", "beta: 5.01")
    refused = cli("train", "--resume", "--name", "first", "--num-steps", "3")
    assert refused.code == 5
    assert "config.yaml was changed after it was written" in refused.err
    assert f"gcpo-bench train --preset {path} --name NAME" in refused.err
    assert cli("train", "--preset", str(path), "--name", "new", "--num-steps", "1").code == 0
    assert runs.open_run("new").config.loss.beta == 5.01


@pytest.mark.parametrize("num_steps", [2, 3])
def test_lost_metrics_are_not_passed_over(cli: Cli, trained: runs.Run, num_steps: int) -> None:
    trained.metrics_path.unlink()
    refused = cli("train", "--resume", "--name", "first", "--num-steps", str(num_steps + 1))
    assert refused.code == 5
    assert "metrics.jsonl is missing, and 2 steps were done" in refused.err
    with pytest.raises(CorruptDataError, match="2 steps were done"):
        load_run(trained.path)
    assert "damaged" in cli("ls", "runs").out


def test_metrics_cut_at_a_line_are_not_passed_over(trained: runs.Run) -> None:
    trained.metrics_path.write_bytes(trained.metrics_path.read_bytes().split(b"\n")[0] + b"\n")
    with pytest.raises(CorruptDataError, match="ends at step 1, and 2 steps were done"):
        load_run(trained.path)


def test_a_changed_number_in_metrics_is_noticed(trained: runs.Run) -> None:
    change(trained.metrics_path, '"reward/mean": 0.', '"reward/mean": 1.')
    with pytest.raises(CorruptDataError, match="line 1 was changed"):
        trained.metrics()


@pytest.mark.parametrize("damage", ["lost", "changed", "torn"])
def test_a_status_is_mended_by_the_hint_it_prints(cli: Cli, trained: runs.Run, damage: str) -> None:
    path = trained.path / "status.json"
    before = trained.status()
    content = path.read_text()
    path.write_text({"lost": "", "changed": content.replace('"step": 2', '"step": 1'), "torn": content[:20]}[damage])
    if damage == "lost":
        path.unlink()
    with pytest.raises(CorruptDataError) as caught:
        trained.status()
    command = caught.value.hint.partition("gcpo-bench ")[2].split()
    assert command == ["train", "--resume", "--name", "first"]
    assert cli(*command).code == 0
    assert trained.status() == before


def test_a_mended_status_goes_on_from_the_newest_checkpoint(cli: Cli, trained: runs.Run) -> None:
    (trained.path / "status.json").unlink()
    assert cli("train", "--resume", "--name", "first", "--num-steps", "3").code == 0
    assert [row["step"] for row in trained.metrics()] == [1, 2, 3]
    assert trained.status() == runs.Status("finished", 3)


def test_a_changed_record_of_the_start_weights_is_noticed(trained: runs.Run) -> None:
    record = trained.environments()[0]["start_weights"]
    change(trained.path / "environment.json", record, f"{record[:-1]}{'0' if record[-1] != '0' else '1'}")
    with pytest.raises(CorruptDataError, match=r"environment\.json is damaged: record 1 was changed"):
        trained.environments()


def test_a_changed_analysis_is_noticed_and_so_are_its_arrays(run: runs.Run) -> None:
    path = run.save_analysis("perturb", {"noise": "uniform"}, {"images": np.zeros((2, 2))})
    assert run.analyses()["perturb"][0] == {"noise": "uniform"}
    whole = path.read_bytes()
    change(path, "uniform", "uniforn")
    with pytest.raises(CorruptDataError, match=r"perturb\.json is damaged"):
        run.analyses()
    path.write_bytes(whole)
    other = runs.create(run.path.parent, "other", run.config)
    other.save_analysis("perturb", {"noise": "uniform"}, {"images": np.ones((2, 2))})
    path.with_suffix(".npz").write_bytes((other.path / "analyses" / "perturb.npz").read_bytes())
    with pytest.raises(CorruptDataError, match=r"perturb\.npz is damaged: checksum"):
        run.analyses()


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("name", ["policy.safetensors", "optimizer.pt", "state.json"])
def test_one_changed_byte_in_a_checkpoint_is_noticed(cli: Cli, trained: runs.Run, name: str) -> None:
    path = trained.checkpoint_path(2) / name
    content = bytearray(path.read_bytes())
    place = content.index(b'"step": 2') + 8 if name == "state.json" else len(content) - 200
    content[place] ^= 1
    path.write_bytes(content)
    refused = cli("train", "--resume", "--name", "first", "--num-steps", "3")
    assert refused.code == 5, refused.err
    assert f"{name} is damaged" in refused.err
    assert trained.metrics()[-1]["step"] == 2


@pytest.mark.parametrize(("key", "value", "told"), [("step", 1, "is of step 1"), ("model", "scenes-12", "'scenes-12'")])
def test_a_record_that_contradicts_its_folder_is_refused(
    cli: Cli, trained: runs.Run, key: str, value: object, told: str
) -> None:
    path = trained.checkpoint_path(2) / "state.json"
    write_json(path, {**read_json(path), key: value})
    refused = cli("train", "--resume", "--name", "first", "--num-steps", "3")
    assert refused.code == 5
    assert told in refused.err
    with pytest.raises(CorruptDataError, match=re.escape(told)):
        starts.load_policy(trained)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_though_their_checksum_fits(
    cli: Cli, trained: runs.Run, number: float
) -> None:
    folder = trained.checkpoint_path(2)
    policy = starts.load_policy(trained)
    next(iter(policy.parameters())).data.view(-1)[3] = number  # type: ignore[attr-defined]
    checkpoints.save_weights(policy, folder / "policy.safetensors")  # type: ignore[arg-type]
    state = read_json(folder / "state.json")
    state["checksums"]["policy.safetensors"] = checksum(folder / "policy.safetensors")
    write_json(folder / "state.json", state)
    for command in (("evaluate", "first", "--limit", "1"), ("sample", "first", "a photo of a red circle")):
        refused = cli(*command)
        assert refused.code == 5, refused.err
        assert "holds numbers that are not finite" in refused.err


def test_weights_that_became_infinite_are_not_kept_as_a_checkpoint(trained: runs.Run) -> None:
    policy = starts.load_policy(trained)
    next(iter(policy.parameters())).data.view(-1)[3] = math.nan  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="not finite at step 3"):
        checkpoints.save(trained, 3, policy, None, keep=9)  # type: ignore[arg-type]
    assert trained.checkpoint_steps()[-1] == 2


def test_tokens_are_not_drawn_from_probabilities_that_are_none(trained: runs.Run) -> None:
    policy = starts.load_policy(trained)
    for parameter in policy.parameters():  # type: ignore[attr-defined]
        parameter.data.fill_(math.nan)
    with pytest.raises(TrainingError, match="probabilities are not finite from token 0 on"):
        sample(policy, ["a photo of a red circle"], torch.zeros(1, 64))


# ---------------------------------------------------------------- evaluations


Damage = Callable[[Path], object]
DAMAGES: dict[str, Damage] = {
    "a digit of a sample": lambda folder: change(folder / "samples.jsonl", '{"hps-v2.1": 0.2', '{"hps-v2.1": 0.3'),
    "a sample is gone": lambda folder: (folder / "samples.jsonl").write_bytes(
        b"".join((folder / "samples.jsonl").read_bytes().splitlines(keepends=True)[:-1])
    ),
    "cut in the last line": lambda folder: (folder / "samples.jsonl").write_bytes(
        (folder / "samples.jsonl").read_bytes()[:-20]
    ),
    "no samples": lambda folder: (folder / "samples.jsonl").unlink(),
    "a digit of the scores": lambda folder: change(folder / "scores.json", '"n": 4', '"n": 5'),
    "the identity": lambda folder: change(folder / "scores.json", "abc123", "abc124"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_evaluation_is_read_by_nobody(tmp_path: Path, damage: Damage) -> None:
    run = make_run(tmp_path, "a", steps=2, maps=False, prompts_per_task=2)
    score_run(run, "hps-anime", 0.5)
    folder = run.evaluation_dir("hps-anime")
    before = stored.load(folder)
    damage(folder)
    with pytest.raises((CorruptDataError, RunError)):
        stored.load(folder)
    assert stored.known(folder, before.identity) is None
    with pytest.raises(CorruptDataError, match=r"hps-anime/(samples\.jsonl|scores\.json) is"):
        load([run.path])


def test_samples_without_scores_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", steps=2, maps=False, prompts_per_task=2)
    path = run.evaluation_dir("scenes") / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-30])  # it is written at once, so no kill leaves this
    with pytest.raises(CorruptDataError, match=r"samples\.jsonl is damaged"):
        load_run(run.path)


def test_a_changed_observation_is_noticed(tmp_path: Path) -> None:
    look = {"weights": "abc"}
    Observations(tmp_path, look).add("xxh3:1", "question", Seen(value=0.25))
    (path,) = tmp_path.glob("*.jsonl")
    change(path, "0.25", "0.35")
    with pytest.raises(CorruptDataError, match="line 2 was changed"):
        Observations(tmp_path, look)


# ---------------------------------------------------------------- unfinished runs


def unfinished(root: Path, name: str, seed: int = 0) -> runs.Run:
    run = make_run(root, name, seed=seed, steps=2, maps=False, prompts_per_task=2, draw=False)
    run.replace_config(run.config.model_copy(update={"num_steps": 14}))
    run.set_status("interrupted", 2)
    return run


def test_an_unfinished_run_is_no_baseline_and_passes_no_gate_unless_asked(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    unfinished(root, "cut")
    for command in (("baseline", "update", "cut"), ("gate", "cut")):
        if command[0] == "gate":
            assert cli("baseline", "update", "cut", "--unfinished").code == 0
        refused = cli(*command)
        assert refused.code == 2
        assert "cut is no finished run (step 2 of 14)" in refused.err
        assert "gcpo-bench train --resume --name cut" in refused.err
    assert cli("gate", "cut", "--unfinished").code in (0, 3)
    make_run(root, "whole", seed=1, steps=14, maps=False, prompts_per_task=2, draw=False)
    taken = cli("baseline", "update")
    assert taken.code == 0
    assert "cut is no finished run (step 2 of 14) and is left out" in taken.err
    assert "seeds 1" in taken.err


def test_an_unfinished_run_is_named_wherever_a_report_shows_its_numbers(tmp_path: Path) -> None:
    whole = make_run(tmp_path, "whole", seed=1, steps=14, maps=False, prompts_per_task=2, draw=False)
    data = load([unfinished(tmp_path, "cut").path, whole.path])
    assert sorted(variant.label for variant in data.trained) == ["gcpo", "gcpo [step 2 of 14]"]
    assert [variant.seeds for variant in data.trained if variant.unfinished] == [(0,)]
    assert "(1 unfinished)" in summary(data)


def test_scores_of_an_earlier_step_are_named(trained: runs.Run) -> None:
    score_run(trained, "hps-anime", 0.5)
    folder = trained.evaluation_dir("hps-anime")
    record = read_json(folder / "scores.json")
    first = checksum(trained.checkpoint_path(1) / "policy.safetensors")
    for weights, label in ((first, "grpo [scores of an earlier step]"), (trained.weights_digest(), "grpo")):
        record["identity"]["weights_digest"] = weights
        write_json(folder / "scores.json", record)
        data = load([trained.path])
        assert [variant.label for variant in data.trained] == [label]
    assert not any("trained on since" in line for line in data.notes)


def test_evaluating_an_unfinished_run_says_so(cli: Cli, trained: runs.Run) -> None:
    trained.replace_config(trained.config.model_copy(update={"num_steps": 14}))
    said = cli("evaluate", "first", "--limit", "1", "--images-per-prompt", "1", "--no-start")
    assert said.code == 0
    assert "first at step 2 of 14" in said.out
    assert "first is no finished run: its scores are those of step 2 of 14" in said.err

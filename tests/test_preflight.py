"""What a run lacks is told before there is a run, and a name is not taken by one that never began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gcpo_bench import runs
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError
from gcpo_bench.resolve import resolve
from gcpo_bench.training import memory, preflight, starts
from gcpo_bench.training.learner import build_learner
from gcpo_bench.training.optimizers import MasterAdamW

from .conftest import Cli

SETTINGS = (
    "policy.random_init=true",
    "rewards=[{name: redness}]",
    "sampling.prompts_per_step=1",
    "sampling.group_size=2",
    "logging.token_maps_every=0",
)
TINY = ("--model", "janus-pro-tiny", *(part for setting in SETTINGS for part in ("-o", setting)))
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


class Broken:
    gcpo_bench_part = "reward"

    def __init__(self) -> None:
        raise CorruptDataError("its weights are damaged", hint="fetch them again")


@pytest.fixture(autouse=True)
def nothing_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path / "home"))
    for name in ("GCPO_BENCH_UNIFIED_REWARD", "GCPO_BENCH_DEQA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        pytest.param(("policy.device=cuda",), 4, "torch sees no GPU", marks=NO_GPU),
        (("policy.device=mps",), 2, "policy.device 'mps' is not supported"),
        (("rewards=[{name: hps-v2.1}]",), 4, "hps-v2.1 lacks HPS_v2.1_compressed.pt"),
        (("rewards=[{name: geneval-server}]",), 4, "geneval-server lacks mask2former"),
        (("rewards=[{name: deqa}]",), 4, "needs a program of its own"),
        (("rewards=[{name: unified-reward}]",), 4, "runs behind a server"),
        (
            ("data.prompts=scenes-heldout", "sampling.prompts_per_step=289"),
            2,
            "a step takes 49 prompts of a task, and scenes-heldout has 48 of",
        ),
        (("data.prompts=t2i-r1",), 4, "the prompts of t2i-r1 are not on this machine"),
        (("rewards=[{name: 'tests.test_preflight:Broken'}]",), 5, "its weights are damaged"),
    ],
)
def test_a_run_that_cannot_begin_leaves_its_name_free(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 10**9)
    given = [part for option in options for part in ("-o", option)]
    refused = cli("train", *TINY, "--name", "small", "--num-steps", "1", *given)
    assert refused.code == code, refused.err
    assert message in refused.err
    assert not (tmp_path / "runs" / "small").exists()
    assert cli("train", *TINY, "--name", "small", "--num-steps", "0").code == 0


def test_a_machine_that_is_too_small_is_told_before_there_is_a_run(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 10**9)
    refused = cli("train", *TINY, "--model", "janus-pro-1b", "--name", "large")
    assert refused.code == 4
    assert "of main memory, 1 GB are free" in refused.err
    assert not (tmp_path / "runs").exists()


def test_the_dry_run_names_all_that_is_missing(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 10**9)
    told = cli("train", "--preset", "janus-pro-1b-gcpo-hps", "-o", "policy.device=cpu", "--dry-run")
    assert told.code == 0, told.err
    text = " ".join(told.out.split())
    for part in ("models fetch janus-pro-1b", "models fetch hps-v2.1", "data fetch t2i-r1", "1 GB are free"):
        assert part in text
    assert "not known on this CPU" in text
    assert "H200" not in text
    assert not (tmp_path / "runs").exists()
    assert "missing" not in cli("train", "--model", "scenes-8", "--dry-run").out


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("unified-reward", "UnifiedReward runs behind a server"),
        ("deqa", "needs a program of its own"),
        ("hps-v2.1", "hps-v2.1 lacks HPS_v2.1_compressed.pt"),
    ],
)
def test_dry_runs_of_a_small_model_name_what_is_missing_too(cli: Cli, reward: str, message: str) -> None:
    options = ("--model", "scenes-8", "-o", f"rewards=[{{name: {reward}}}]", "--dry-run")
    told = cli("train", *options)
    assert told.code == 0, told.err
    assert message in " ".join(told.out.split())
    planned = cli("ablate", "--methods", "grpo,gcpo", "--seeds", "0,1", *options)
    assert planned.code == 0, planned.err
    assert message in planned.err
    assert "how long is not known" in planned.err
    record = json.loads(cli("ablate", "--methods", "grpo,gcpo", "--seeds", "0,1", *options, "--json").out)
    assert record["seconds_per_step"] is None
    assert message in record["missing"][0]


def test_weights_of_another_model_are_told_from_their_names_alone(tmp_path: Path) -> None:
    start = resolve(None, SETTINGS, {"model": "janus-pro-tiny"}).config
    run = runs.create(tmp_path, "base", start)
    from gcpo_bench.training.loop import train

    train(start.model_copy(update={"num_steps": 0}), run)
    same = resolve(None, ["policy.weights=base"], {"model": "janus-pro-tiny"}).config
    preflight.require(same.model_copy(update={"rewards": start.rewards}), tmp_path)
    for model in ("llamagen-tiny", "scenes-8"):
        with pytest.raises(CorruptDataError, match="holds another model"):
            starts.check_start(resolve(None, ["policy.weights=base"], {"model": model}).config, tmp_path)
    (run.checkpoint_path(0) / "policy.safetensors").write_bytes(b"")
    with pytest.raises(CorruptDataError, match="is no safetensors file"):
        starts.check_start(same, tmp_path)


def test_what_memory_asks_for_may_change_on_resume_and_the_experiment_may_not(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", *TINY, "--name", "a", "--num-steps", "1").code == 0
    less = ("-o", "sampling.batch_rows=1", "-o", "optimizer.micro_batch_rows=1", "-o", "policy.recompute=always")
    resumed = cli("train", "--resume", "--name", "a", "--num-steps", "2", *less)
    assert resumed.code == 0, resumed.err
    config = runs.open_run("a", tmp_path / "runs").config
    assert (config.sampling.batch_rows, config.optimizer.micro_batch_rows, config.policy.recompute) == (1, 1, "always")
    for other in ("policy.device=cuda", "sampling.group_size=4", "optimizer.minibatches=2"):
        assert "was made with other settings" in cli("train", "--resume", "--name", "a", "-o", other).err


def test_a_run_without_a_step_takes_any_settings(cli: Cli, tmp_path: Path) -> None:
    config = resolve(None, SETTINGS, {"model": "janus-pro-tiny", "num_steps": 1}).config
    runs.create(tmp_path / "runs", "killed", config)
    resumed = cli("train", "--resume", "--name", "killed", "--seed", "4", "-o", "sampling.group_size=3")
    assert resumed.code == 0, resumed.err
    run = runs.open_run("killed", tmp_path / "runs")
    assert (run.config.seed, run.config.sampling.group_size, run.status().step) == (4, 3, 1)


@pytest.mark.parametrize(
    ("device", "message"),
    [("mps", "'mps' is not supported"), pytest.param("cuda", "torch sees no GPU", marks=NO_GPU)],
)
def test_bench_refuses_devices_as_training_does(cli: Cli, device: str, message: str) -> None:
    refused = cli("bench", "rollout", "--model", "janus-pro-1b", "-o", f"policy.device={device}")
    assert refused.code in (2, 4)
    assert message in refused.err
    assert len(refused.err.splitlines()) == 2


def test_bench_refuses_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["policy.random_init=true", "policy.recompute=never"]
    config: Any = resolve(None, options, {"model": "janus-pro-1b"}).config
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 20 * 10**9)
    memory.check_bench(config, "select", 8)
    with pytest.raises(PrerequisiteError, match="bench update of janus-pro-1b needs about"):
        memory.check_bench(config, "update", 8)


@pytest.mark.parametrize("name", ["nonsense", "mps", "meta"])
def test_other_devices_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        starts.usable_device(name)
    assert len(str(caught.value)) < 80


def test_the_second_gpu_is_not_taken_for_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert starts.usable_device("cuda").type == "cuda"
    with pytest.raises(PrerequisiteError, match=r"policy\.device is cuda:1, and torch sees 1 GPU"):
        starts.usable_device("cuda:1")


def test_adapters_in_bfloat16_have_float32_copies_and_the_estimate_counts_them() -> None:
    options = ["policy.random_init=true", "policy.dtype=bfloat16", "policy.lora={}"]
    tiny = resolve(None, options, {"model": "janus-pro-tiny"}).config
    assert isinstance(build_learner(tiny).optimizer.adamw, MasterAdamW)
    large = resolve(None, [*options, "policy.device=cuda"], {"model": "janus-pro-1b"}).config
    parts = memory.needed(large, starts.without_memory(large.policy)).held
    assert parts["float32 copies"] == parts["optimizer moments"] // 2

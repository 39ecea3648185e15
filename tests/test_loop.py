"""Training end to end on the embedded world: determinism, resume, signals, refusal to go on with nonsense."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from gcpo_bench import runs, stops
from gcpo_bench.config import OptimizerConfig, RunConfig
from gcpo_bench.errors import CorruptDataError, Interrupted, Preempted, RunError, TrainingError
from gcpo_bench.resolve import resolve
from gcpo_bench.training import checkpoints, health, starts
from gcpo_bench.training.estimate import estimate
from gcpo_bench.training.learner import build_learner
from gcpo_bench.training.loop import train, train_step
from gcpo_bench.training.metrics import peak_memory_bytes
from gcpo_bench.training.observation import draw_prompts
from gcpo_bench.training.pretrain import pretrain
from gcpo_bench.training.token_maps import tracked_prompts
from gcpo_bench.training.update import minibatches, rate_scale

SMALL = (
    "policy.name=scenes-8",
    "sampling.prompts_per_step=2",
    "sampling.group_size=2",
    "logging.checkpoint_every=3",
    "logging.token_maps_every=5",
    "logging.tracked_prompts=2",
    "loss.beta=0.1",
)
KILLS = int(os.environ.get("GCPO_BENCH_TEST_KILLS", "12"))


def config(*overrides: str, **flags: Any) -> RunConfig:
    return resolve(None, overrides, {"num_steps": 20, **flags}, shared=SMALL).config


def trained(root: Path, name: str, configuration: RunConfig) -> runs.Run:
    run = runs.create(root, name, configuration)
    train(configuration, run)
    return run


def outcome(run: runs.Run) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Everything that must be equal: metrics but for seconds and memory, and the last checkpoint's checksums."""
    rows = [
        {key: value for key, value in row.items() if not key.startswith(("time/", "throughput/", "memory/"))}
        for row in run.metrics()
    ]
    state = runs.read_json(run.checkpoint_path(checkpoints.latest_step(run)) / "state.json")
    return rows, state["checksums"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    return trained(tmp_path_factory.mktemp("runs"), "unbroken", config())


def in_child(work: Callable[[], object]) -> int:
    """Fork and run `work`; the child never returns into pytest. Cheaper than a new interpreter that imports torch."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def test_the_same_seed_gives_the_same_run(unbroken: runs.Run, tmp_path: Path) -> None:
    assert outcome(trained(tmp_path, "again", config())) == outcome(unbroken)


def test_twenty_steps_equal_seven_a_kill_and_thirteen(unbroken: runs.Run, tmp_path: Path) -> None:
    run = runs.create(tmp_path, "killed", config())

    def die_after_7(metrics: Any) -> None:
        if metrics["step"] == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    _, status = os.waitpid(in_child(lambda: train(run.config, run, on_step=die_after_7)), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5, 6, 7]
    train(run.config, run, resume=True)
    assert outcome(run) == outcome(unbroken)
    assert len(run.environments()) == 2


def test_kills_at_random_moments_lose_and_double_nothing(unbroken: runs.Run, tmp_path: Path) -> None:
    run = runs.create(tmp_path, "battered", config())
    rng = random.Random(0)
    for kill in range(KILLS):
        child = in_child(lambda: train(config(), runs.open_run("battered", tmp_path), resume=True))
        time.sleep(rng.uniform(0.0, 0.6))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        run = runs.open_run("battered", tmp_path)
        if run.checkpoint_steps():
            starts.load_policy(run)  # checksums verified
        steps = [row["step"] for row in run.metrics()]
        assert steps == list(range(1, len(steps) + 1)), f"after kill {kill}"
    train(run.config, run, resume=True)
    assert outcome(run) == outcome(unbroken)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, Interrupted)])
def test_a_signal_saves_and_the_run_goes_on_later(
    unbroken: runs.Run, tmp_path: Path, number: signal.Signals, error: type[Preempted | Interrupted]
) -> None:
    run = runs.create(tmp_path, "stopped", config())

    def stop_after_4(metrics: Any) -> None:
        if metrics["step"] == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(error, match="after step 4") as caught:
        train(run.config, run, on_step=stop_after_4)
    assert "--resume --name stopped" in caught.value.hint
    assert run.status().state == ("preempted" if error is Preempted else "interrupted")
    assert run.checkpoint_steps()[-1] == 4
    train(run.config, run, resume=True)
    assert run.status().state == "finished"
    assert outcome(run) == outcome(unbroken)


def test_a_second_signal_exits_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stops, "ECHO_S", 0.0)
    run = runs.create(tmp_path, "hurried", config())

    def twice(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            os.kill(os.getpid(), signal.SIGTERM)

    _, status = os.waitpid(in_child(lambda: train(run.config, run, on_step=twice)), 0)
    assert os.waitstatus_to_exitcode(status) == 75


def test_metrics_say_what_a_reader_needs(unbroken: runs.Run) -> None:
    row = unbroken.metrics()[-1]
    assert row["tokens/selected_fraction"] == pytest.approx(18 / 64)  # 3 floor(0.1 * 64) of 64
    assert row["tokens/selected/initial"] == row["tokens/selected/structural"] == pytest.approx(6 / 64)
    assert row["tokens/unselected_gradient_share"] == 0  # the weight is detached
    phases = sum(row[f"time/{name}_s"] for name in ("rollout", "reward", "reference", "selection", "update"))
    assert phases <= row["time/step_s"]
    # of the process, with all that it did before: no fixed bound holds, but that it has not shrunk since
    assert 1e8 < row["memory/peak_bytes"] <= peak_memory_bytes(torch.device("cpu"))
    assert {"reward/extra_objects", "reward/unknown_blobs", "loss/kl_all", "groups/zero_variance_share"} <= row.keys()


def test_the_first_step_has_no_divergence_and_unit_weights(unbroken: runs.Run) -> None:
    first, last = unbroken.metrics()[0], unbroken.metrics()[-1]
    assert first["loss/kl_all"] == 0
    assert first["weight/min"] == pytest.approx(1, abs=1e-5)
    assert last["loss/kl_all"] > 0


def test_token_maps_follow_the_tracked_prompts(unbroken: runs.Run) -> None:
    maps = unbroken.token_maps()
    assert [step for step, _ in maps] == [0, 5, 10, 15, 20]
    arrays = maps[-1][1]
    assert arrays["prompts"].tolist() == [prompt.text for prompt in tracked_prompts(unbroken.config.logging)]
    assert arrays["images"].shape == (2, 32, 32, 3)
    for name in ("entropy", "entropy_gradient", "similarity", "weight", "divergence"):
        assert arrays[name].shape == (2, 8, 8)
        assert np.isfinite(arrays[name]).all()
    union = arrays["subset/initial"] | arrays["subset/structural"] | arrays["subset/diverse"]
    np.testing.assert_array_equal(union, arrays["selected"])
    assert (maps[0][1]["divergence"] == 0).all()  # nothing learned yet


def test_a_run_of_no_steps_is_its_start(tmp_path: Path) -> None:
    run = trained(tmp_path, "none", config(num_steps=0))
    assert run.status().state == "finished"
    assert run.checkpoint_steps() == [0]
    assert checkpoints.weights_digest(run) == starts.packaged_weights("scenes-8")[1]


def test_only_the_newest_checkpoints_stay(unbroken: runs.Run) -> None:
    assert unbroken.checkpoint_steps() == [18, 20]
    assert sorted(path.name for path in (unbroken.path / "checkpoints").iterdir()) == ["step-000018", "step-000020"]


def test_threads_change_nothing_at_all(tmp_path: Path) -> None:
    split = ("sampling.batch_rows=5", "optimizer.micro_batch_rows=3")
    alone = trained(tmp_path, "alone", config(*split, "num_threads=1", num_steps=3))
    together = trained(tmp_path, "together", config(*split, "num_threads=3", num_steps=3))
    assert outcome(alone) == outcome(together)


def test_micro_batches_and_sampling_batches_change_nothing_but_rounding(tmp_path: Path) -> None:
    whole = trained(tmp_path, "whole", config(num_steps=2))
    split = trained(tmp_path, "split", config("optimizer.micro_batch_rows=1", "sampling.batch_rows=1", num_steps=2))
    for one, other in zip(outcome(whole)[0], outcome(split)[0], strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), key


def test_grpo_and_gcpo_see_the_same_prompts_and_noise_at_the_first_step(tmp_path: Path) -> None:
    gcpo = trained(tmp_path, "gcpo", config(num_steps=1)).metrics()[0]
    grpo = trained(tmp_path, "grpo", config(num_steps=1, method="grpo")).metrics()[0]
    assert gcpo["reward/mean"] == grpo["reward/mean"]
    assert gcpo["tokens/entropy"] == grpo["tokens/entropy"]
    assert grpo["tokens/selected_fraction"] == 1


def test_several_epochs_and_minibatches_make_several_updates(tmp_path: Path) -> None:
    run = trained(tmp_path, "epochs", config("optimizer.epochs=2", "optimizer.minibatches=2", num_steps=2))
    assert run.metrics()[0]["optimizer/updates"] == 4


def test_minibatches_share_out_every_row_once() -> None:
    configuration = config("optimizer.minibatches=3")
    parts = minibatches(configuration, 8, step=5, epoch=0)
    assert sorted(torch.cat(parts).tolist()) == list(range(8))
    assert [len(part) for part in parts] == [3, 3, 2]


def test_groups_without_variance_can_be_dropped(tmp_path: Path) -> None:
    run = trained(tmp_path, "drop", config("advantages.zero_variance=drop", num_steps=6))
    for row in run.metrics():
        # nothing to learn from: no update at all, rather than one of divergence alone
        assert (row["optimizer/updates"] == 0) == (row["groups/zero_variance_share"] == 1)


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize(
    ("schedule", "theirs", "options"),
    [
        ("constant", "constant_with_warmup", {}),
        ("linear", "linear", {}),
        ("cosine", "cosine", {}),
        ("cosine", "cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ],
)
def test_schedules_are_those_of_transformers(
    schedule: str, theirs: str, options: dict[str, float], warmup: int
) -> None:
    values = {"schedule": schedule, "warmup_steps": warmup, "min_rate": options.get("min_lr_rate", 0.0)}
    optimizer = OptimizerConfig.model_validate(values)
    oracle = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = transformers.get_scheduler(theirs, oracle, warmup, 20, scheduler_specific_kwargs=options)
    expected = []
    for _ in range(20):
        expected.append(oracle.param_groups[0]["lr"])
        oracle.step()
        scheduler.step()
    assert [rate_scale(optimizer, step, 20) for step in range(1, 21)] == pytest.approx(expected, abs=1e-12)


def test_a_run_shorter_than_its_warmup_only_warms_up() -> None:
    optimizer = OptimizerConfig(schedule="cosine", warmup_steps=40)
    assert [rate_scale(optimizer, step, 20) for step in (1, 11, 20)] == [0, 0.25, 0.475]


def test_prompts_of_a_step_are_distinct_and_visit_the_tasks_in_turn() -> None:
    configuration = config("sampling.prompts_per_step=8")
    prompts = draw_prompts(configuration, 1)
    assert len({prompt.id for prompt in prompts}) == 8
    assert len({prompt.tag for prompt in prompts}) == 6
    assert draw_prompts(configuration, 1) == prompts
    assert draw_prompts(configuration, 2) != prompts


def test_dry_run_measures_a_step_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cost = estimate(config())
    assert 0 < cost.seconds_per_step < 60
    assert cost.bytes_on_disk > 1_000_000
    assert list(tmp_path.iterdir()) == []


class NoisyReward:
    """Finite, but NaN for whatever comes third: a scorer that breaks in the middle of a run."""

    gcpo_bench_part = "reward"
    calls = 0

    def __call__(self, images_BYXC: Any, prompts_B: Any) -> Any:
        from gcpo_bench.training.types import RewardOutput

        type(self).calls += 1
        bad = float("nan") if type(self).calls > 8 else 0.0
        return RewardOutput(values_B=[bad, *range(len(prompts_B) - 1)], anomalies={})


class ConstantReward:
    gcpo_bench_part = "reward"

    def __call__(self, images_BYXC: Any, prompts_B: Any) -> Any:
        from gcpo_bench.training.types import RewardOutput

        return RewardOutput(values_B=[0.5] * len(prompts_B), anomalies={})


def test_a_reward_that_is_not_a_number_stops_the_run_before_anything_is_overwritten(tmp_path: Path) -> None:
    NoisyReward.calls = 0
    overrides = ("rewards=[{name: 'tests.test_loop:NoisyReward'}]", "logging.token_maps_every=0")
    run = runs.create(tmp_path, "nan", config(*overrides))
    with pytest.raises(TrainingError, match="is nan for prompt"):
        train(run.config, run)
    assert run.status().state == "failed"
    assert "is nan" in run.status().error
    assert run.checkpoint_steps() == [3, 6]
    starts.load_policy(run)
    assert run.metrics()[-1]["step"] == 8


class HalfReward:
    """0 and 1 in turn."""

    gcpo_bench_part = "reward"

    def __call__(self, images_BYXC: Any, prompts_B: Any) -> Any:
        from gcpo_bench.training.types import RewardOutput

        return RewardOutput(values_B=[float(row % 2) for row in range(len(prompts_B))], anomalies={})


def test_each_reward_of_a_sum_is_logged_by_its_name(tmp_path: Path) -> None:
    half, constant = "tests.test_loop:HalfReward", "tests.test_loop:ConstantReward"
    several = [{"name": half, "weight": 2.0}, {"name": constant, "weight": -1.0}, {"name": half, "weight": 0.0}]
    run = trained(tmp_path, "several", config("logging.token_maps_every=0", f"rewards={several}", num_steps=1))
    (row,) = run.metrics()
    terms = {key: value for key, value in row.items() if key.startswith("reward/term/")}
    assert terms == {f"reward/term/{half}": 0.5, f"reward/term/{constant}": 0.5, f"reward/term/{half}-2": 0.5}
    assert row["reward/mean"] == pytest.approx(2.0 * 0.5 - 0.5)  # weighted; a mean of 0.5, twice, less 0.5


class RaisingReward:
    gcpo_bench_part = "reward"

    def __call__(self, images_BYXC: Any, prompts_B: Any) -> Any:
        raise KeyError("missing")


class ShortReward:
    gcpo_bench_part = "reward"

    def __call__(self, images_BYXC: Any, prompts_B: Any) -> Any:
        from gcpo_bench.training.types import RewardOutput

        return RewardOutput(values_B=[0.5], anomalies={})


class NoReward:
    gcpo_bench_part = "reward"

    def __call__(self, images_BYXC: Any, prompts_B: Any) -> Any:
        return None


class RewardOfTexts:
    gcpo_bench_part = "reward"

    def __call__(self, images_BYXC: Any, prompts_B: Any) -> Any:
        from gcpo_bench.training.types import RewardOutput

        return RewardOutput(values_B=["good"] * len(prompts_B), anomalies={})  # type: ignore[list-item]


class RewardThatHidesItsMean:
    gcpo_bench_part = "reward"

    def __call__(self, images_BYXC: Any, prompts_B: Any) -> Any:
        from gcpo_bench.training.types import RewardOutput

        values = [float(row % 2) for row in range(len(prompts_B))]
        return RewardOutput(values_B=values, anomalies={"mean": [7.0] * len(prompts_B)})


class RewardOfOneAnomaly:
    gcpo_bench_part = "reward"

    def __call__(self, images_BYXC: Any, prompts_B: Any) -> Any:
        from gcpo_bench.training.types import RewardOutput

        return RewardOutput(values_B=[float(row % 2) for row in range(len(prompts_B))], anomalies={"odd": [1.0]})


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("RaisingReward", "RaisingReward' failed: KeyError: 'missing'"),
        ("ShortReward", "gave 1 values for 4 images"),
        ("NoReward", "its values are no list of numbers"),
        ("RewardOfTexts", "its values are no list of numbers"),
        ("RewardThatHidesItsMean", "gives an anomaly 'mean', under which the reward itself is logged"),
        ("RewardOfOneAnomaly", "gave 1 numbers of 'odd' for 4 images"),
    ],
)
def test_a_reward_of_ones_own_that_fails_is_named(tmp_path: Path, reward: str, message: str) -> None:
    run = runs.create(tmp_path, "bad", config(f"rewards=[{{name: 'tests.test_loop:{reward}'}}]"))
    with pytest.raises(TrainingError, match=message):
        train(run.config, run)
    assert run.status().state == "failed"


def test_a_run_without_reward_variance_stops_by_step_20(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "dead", config("rewards=[{name: 'tests.test_loop:ConstantReward'}]", num_steps=40))
    with pytest.raises(TrainingError, match="no group had differing rewards in 20 steps"):
        train(run.config, run)
    assert run.metrics()[-1]["step"] == 20


def test_a_run_whose_parameters_cannot_move_stops_by_step_20(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "stuck", config("weighting.detached=true", method="gcpo-paper", num_steps=40))
    with pytest.raises(TrainingError, match="no parameter moved in 20 steps") as caught:
        train(run.config, run)
    assert "weighting.form=exp" in caught.value.hint


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    learner = build_learner(config("loss.beta=1e300"))  # beyond float32, in which the loss is computed
    before = [parameter.clone() for parameter in learner.policy.parameters()]  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        train_step(learner, 1)
    after = list(learner.policy.parameters())  # type: ignore[attr-defined]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_health_names_the_number_that_went_bad() -> None:
    with pytest.raises(TrainingError, match="the loss is inf at step 3"):
        health.check_finite({"the loss": float("inf")}, 3)


# ---------------------------------------------------------------- checkpoints


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["policy.safetensors", "optimizer.pt"])
def test_a_damaged_checkpoint_is_noticed_and_named(tmp_path: Path, name: str) -> None:
    run = trained(tmp_path, "damaged", config(num_steps=2))
    flip_a_byte(run.checkpoint_path(2) / name)
    with pytest.raises(CorruptDataError, match=f"{name} is damaged: checksum"):
        train(run.config.model_copy(update={"num_steps": 4}), run, resume=True)


def test_a_truncated_weights_file_is_no_safetensors_file(tmp_path: Path) -> None:
    learner = build_learner(config())
    path = tmp_path / "weights.safetensors"
    checkpoints.save_weights(learner.policy, path)  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorruptDataError, match="is no safetensors file"):
        checkpoints.load_weights(learner.policy, path)  # type: ignore[arg-type]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    small, large = build_learner(config()), build_learner(config("policy.name=scenes-12"))
    path = tmp_path / "weights.safetensors"
    checkpoints.save_weights(large.policy, path)  # type: ignore[arg-type]
    with pytest.raises(CorruptDataError, match="holds another model"):
        checkpoints.load_weights(small.policy, path)  # type: ignore[arg-type]


def test_a_state_record_that_is_no_record_is_refused(tmp_path: Path) -> None:
    run = trained(tmp_path, "foreign", config(num_steps=1))
    (run.checkpoint_path(1) / "state.json").write_text(json.dumps({"hello": 1}))
    with pytest.raises(CorruptDataError, match="is no checkpoint record"):
        starts.load_policy(run)


def test_a_run_without_checkpoint_says_so(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "empty", config())
    with pytest.raises(RunError, match="has no checkpoint yet"):
        starts.load_policy(run)


def test_training_can_start_from_another_run(unbroken: runs.Run, tmp_path: Path) -> None:
    run = runs.create(unbroken.path.parent, "second", config("policy.weights=unbroken", num_steps=1))
    train(run.config, run)
    assert run.metrics()[0]["loss/kl_all"] == 0  # the reference is the run it started from
    _, digest = starts.start_weights(run.config, run.path.parent)
    assert digest == checkpoints.weights_digest(unbroken)


def test_training_can_start_from_what_pretrain_wrote(tmp_path: Path) -> None:
    pretrained = pretrain("scenes-8", tmp_path / "weights", max_steps=2)
    settings = config(f"policy.weights={tmp_path / 'weights'}", num_steps=1)
    assert starts.start_weights(settings)[1] == pretrained["checksum"]
    starts.start_policy(settings)


def test_a_run_whose_start_weights_changed_is_not_resumed(tmp_path: Path) -> None:
    pretrain("scenes-8", tmp_path / "weights", max_steps=2)
    run = trained(tmp_path / "runs", "a", config(f"policy.weights={tmp_path / 'weights'}", num_steps=2))
    first = run.environments()[0]["start_weights"]
    kept = {path: path.read_bytes() for path in (tmp_path / "weights").iterdir()}
    before = outcome(run), run.status()
    pretrain("scenes-8", tmp_path / "weights", max_steps=2, seed=1)
    longer = run.config.model_copy(update={"num_steps": 3})
    with pytest.raises(
        RunError, match=rf"a began from weights {first[:17]}, and where they were now lie xxh3:"
    ) as error:
        train(longer, run, resume=True)
    assert "put the first ones back" in error.value.hint
    assert first not in str(error.value)
    starts.load_policy(run)  # of which all was trained
    assert (outcome(run), run.status()) == before
    assert len(run.environments()) == 1
    for path, content in kept.items():
        path.write_bytes(content)
    train(longer, run, resume=True)
    assert [record["start_weights"] for record in run.environments()] == [first] * 2
    assert run.status().step == 3


def test_a_run_that_has_nothing_yet_may_begin_from_other_weights(tmp_path: Path) -> None:
    pretrain("scenes-8", tmp_path / "weights", max_steps=2)
    run = runs.create(tmp_path / "runs", "a", config(f"policy.weights={tmp_path / 'weights'}", num_steps=1))
    run.add_environment({"start_weights": "xxh3:0"})
    train(run.config, run, resume=True)
    assert run.status().state == "finished"


def test_a_pretraining_record_without_checksum_is_named(tmp_path: Path) -> None:
    (tmp_path / "scenes-8.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CorruptDataError, match=r"scenes-8\.json is damaged"):
        starts.start_weights(config(f"policy.weights={tmp_path}", num_steps=1))


def test_the_start_of_runs_with_equal_weights_is_one_run(unbroken: runs.Run) -> None:
    root = unbroken.path.parent
    start = starts.start_run(unbroken.config, root)
    assert start.config.num_steps == 0
    assert starts.start_run(unbroken.config, root).path == start.path
    _, digest = starts.packaged_weights("scenes-8")
    assert checkpoints.weights_digest(start) == digest

"""Every shipped preset for a large model: it can be read, is estimated without a GPU, and takes a step in miniature."""

from __future__ import annotations

import math

import pytest

from gcpo_bench.config import RunConfig
from gcpo_bench.registry import BENCHMARKS, POLICIES, PROMPT_SETS, REWARDS
from gcpo_bench.resolve import list_presets, resolve
from gcpo_bench.training.estimate import estimate
from gcpo_bench.training.learner import build_learner
from gcpo_bench.training.loop import train_step

LARGE = [preset.name for preset in list_presets() if not preset.name.startswith("scenes")]
MINIATURE = (
    "policy.random_init=true", "policy.device=cpu", "policy.dtype=float32", "data.prompts=scenes-train",
    "rewards=[{name: redness}]", "sampling.prompts_per_step=2", "sampling.group_size=4", "optimizer.warmup_steps=0",
)  # fmt: skip


def miniature(name: str) -> RunConfig:
    model = "llamagen-tiny" if name.startswith("llamagen") else "janus-pro-tiny"
    return resolve(name, MINIATURE, {"model": model}).config


def test_there_are_both_models_both_rewards_and_a_twin_of_each() -> None:
    for model in ("janus-pro-1b", "janus-pro-7b"):
        for reward in ("geneval", "hps"):
            assert {f"{model}-{method}-{reward}" for method in ("gcpo", "grpo", "official")} <= set(LARGE)
    assert {f"llamagen-{method}-hps" for method in ("gcpo", "grpo", "official")} <= set(LARGE)


@pytest.mark.parametrize("name", LARGE)
def test_its_names_are_registered_and_its_cost_is_estimated(name: str) -> None:
    config = resolve(name, (), {}).config
    assert config.policy.name in POLICIES
    assert config.data.prompts in PROMPT_SETS
    assert config.evaluation.benchmark in BENCHMARKS
    assert all(reward.name in REWARDS for reward in config.rewards)
    cost = estimate(config)
    assert cost.memory is not None
    assert cost.memory.parts["rewards"] > 1e9
    assert min(sum(phase.values()) for phase in cost.memory.in_turn.values()) > 4e8  # no phase was forgotten
    assert 5e9 < cost.peak_memory_bytes < 80e9  # one GPU of 80 GB
    assert 0.1 < cost.seconds_per_step < 20


@pytest.mark.parametrize("name", LARGE)
def test_it_takes_a_step_in_miniature(name: str) -> None:
    metrics = train_step(build_learner(miniature(name)), 1)
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["optimizer/gradient_norm"] > 0
    expected = {"grpo": 1.0}.get(resolve(name, (), {}).config.method)
    assert expected is None or metrics["tokens/selected_fraction"] == expected


def test_the_released_settings_are_those_of_the_released_scripts() -> None:
    janus, llamagen = (
        resolve(name, (), {}).config for name in ("janus-pro-1b-official-geneval", "llamagen-official-hps")
    )
    assert (janus.method, janus.policy.template, janus.weighting.detached) == ("gcpo-official", "janus", False)
    assert (janus.sampling.prompts_per_step, janus.sampling.group_size) == (8, 4)
    assert (janus.sampling.guidance_scale, janus.loss.beta) == (5.0, 0.01)
    assert (janus.optimizer.learning_rate, janus.optimizer.schedule, janus.num_steps) == (3e-6, "linear", 1600)
    assert resolve("janus-pro-1b-official-hps", (), {}).config.optimizer.learning_rate == 1e-6
    assert (llamagen.sampling.guidance_scale, llamagen.sampling.group_size) == (1.0, 8)
    assert (llamagen.optimizer.learning_rate, llamagen.loss.beta) == (1e-5, 0.04)
    schedule = llamagen.optimizer
    assert (schedule.schedule, schedule.min_rate, schedule.warmup_steps) == ("cosine", 0.1, math.ceil(0.1 * 1875))
    assert llamagen.selection.similarity_embedding == "codebook"

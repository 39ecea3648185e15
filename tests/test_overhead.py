"""Selecting is timed against steps that look at nothing, and a step computes no signal that nobody reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gcpo_bench import runs
from gcpo_bench.resolve import resolve
from gcpo_bench.training.learner import Learner, build_learner
from gcpo_bench.training.loop import train_step
from gcpo_bench.training.metrics import Stopwatch
from gcpo_bench.training.observation import draw_prompts, observe
from gcpo_bench.training.overhead import on_all_tokens, paired_steps

from .conftest import Cli

SMALL = ("sampling.prompts_per_step=2", "sampling.group_size=2", "num_threads=1")


def learner(method: str) -> Learner:
    return build_learner(resolve(None, SMALL, {"method": method, "model": "scenes-8"}).config)


@pytest.mark.parametrize(
    ("method", "similarity", "noise"),
    [
        ("grpo", False, False),
        ("grpo-daw", False, False),
        ("gcpo-init", False, False),
        ("gcpo-struct", False, False),
        ("top-entropy", False, False),
        ("gcpo", True, False),
        ("random", False, True),
    ],
)
def test_a_step_computes_no_signal_that_nobody_reads(method: str, similarity: bool, noise: bool) -> None:
    of = learner(method)
    embedded: list[int] = []
    embed = of.policy.embed
    of.policy.embed = lambda *given: embedded.append(1) or embed(*given)  # type: ignore[method-assign, func-returns-value]
    prompts = draw_prompts(of.config, 1)
    seen = observe(of, prompts, "rollout/1", Stopwatch())
    assert bool(embedded) == similarity
    assert bool(seen.signals.similarity_BT.isfinite().all()) == similarity
    assert bool(seen.signals.noise_BT.isfinite().all()) == noise


@pytest.mark.parametrize("method", ["grpo", "gcpo", "random", "low-confidence"])
def test_it_selects_as_if_all_signals_were_there(method: str) -> None:
    of = learner(method)
    prompts = draw_prompts(of.config, 1)
    few, every = (observe(of, prompts, "rollout/1", Stopwatch(), every_signal=each) for each in (False, True))
    assert torch.equal(few.selection.selected_BT, every.selection.selected_BT)
    assert every.signals.similarity_BT.isfinite().all()
    assert every.signals.noise_BT.isfinite().all()


def test_token_maps_show_every_signal_of_every_method(cli: Cli, tmp_path: Path) -> None:
    options = [word for text in (*SMALL, "logging.tracked_prompts=2") for word in ("-o", text)]
    assert (
        cli("train", "--model", "scenes-8", "--method", "grpo", "--num-steps", "1", "--name", "g", *options).code == 0
    )
    *_, (_, arrays) = runs.open_run(tmp_path / "runs/g").token_maps()
    assert arrays["similarity"].shape == (2, 8, 8)
    assert ((arrays["similarity"] >= -1) & (arrays["similarity"] <= 1)).all()


def test_the_other_step_is_grpos_on_the_same_policy() -> None:
    own = learner("gcpo")
    other = on_all_tokens(own)
    assert other.policy is own.policy
    assert other.optimizer is own.optimizer
    metrics: Any = train_step(other, 1)
    assert (metrics["tokens/selected_fraction"], metrics["weight/max"]) == (1.0, 1.0)


def test_the_command_times_pairs_and_keeps_them(cli: Cli, tmp_path: Path) -> None:
    options = [word for text in SMALL for word in ("-o", text)]
    assert cli("train", "--model", "scenes-8", "--num-steps", "1", "--name", "g", *options).code == 0
    result = cli("analyze", "overhead", "g", "--pairs", "2", "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert record.items() <= json.loads((tmp_path / "runs/g/analyses/overhead.json").read_text()).items()
    assert len(record["pairs"]) == 2
    assert all(0 < pair["selection_s"] < pair["selecting_s"] and pair["all_tokens_s"] > 0 for pair in record["pairs"])
    run = runs.open_run(tmp_path / "runs/g")
    assert (run.status().step, run.checkpoint_steps()) == (1, [0, 1])  # as training left it
    assert len(paired_steps(run, 1)) == 1
    cli("train", "--model", "scenes-8", "--method", "grpo", "--num-steps", "1", "--name", "all", *options)
    refused = cli("analyze", "overhead", "all")
    assert (refused.code, "selects no tokens" in refused.err) == (2, True)

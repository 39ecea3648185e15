"""What a large run is said to cost: published sizes, sums that add up, and a refusal before anything is allocated."""

from __future__ import annotations

import pytest
import torch

from gcpo_bench.config import RunConfig
from gcpo_bench.errors import PrerequisiteError
from gcpo_bench.methods import METHODS
from gcpo_bench.resolve import resolve
from gcpo_bench.training import starts
from gcpo_bench.training.estimate import estimate, selected_share
from gcpo_bench.training.floors import update_flops
from gcpo_bench.training.memory import Memory, needed, require_memory
from gcpo_bench.training.types import Work

from .conftest import Cli


def config(model: str, *overrides: str, method: str = "gcpo") -> RunConfig:
    gpu = ("policy.random_init=true", "policy.device=cuda", "policy.dtype=bfloat16", "sampling.guidance_scale=5")
    return resolve(None, [*gpu, *overrides], {"model": model, "method": method}).config


def memory(model: str, *overrides: str) -> Memory:
    found = config(model, *overrides)
    return needed(found, starts.without_memory(found.policy))


@pytest.mark.parametrize(
    ("model", "body", "head", "cache"),
    # body and head as counted from the published configurations; cache: 192 and 480 KiB a token and row in bfloat16
    [("janus-pro-1b", 1.233e9, 37.7e6, 192 * 1024), ("janus-pro-7b", 6.071e9, 83.9e6, 480 * 1024)],
)
def test_the_published_sizes(model: str, body: float, head: float, cache: int) -> None:
    policy = starts.without_memory(config(model).policy)
    work = policy.work()
    assert work.parameters - work.head == pytest.approx(body, rel=2e-3)
    assert work.head == pytest.approx(head, rel=2e-3)
    assert work.cache_per_slot * 2 == cache
    assert policy.grid == (24, 24)
    assert policy.vocab_size == 16_384


def test_adapters_bfloat16_and_recomputed_activations_save_what_they_should() -> None:
    full = memory("janus-pro-7b")
    adapters = memory("janus-pro-7b", "policy.lora={}")
    assert full.parts["reference"] == full.parts["weights"]
    assert adapters.parts["reference"] == 0
    assert adapters.parts["optimizer moments"] == pytest.approx(75e6 * 8, rel=0.1)  # rank 32 on all linear layers
    assert full.peak_bytes == sum(full.parts.values()) > 2 * adapters.peak_bytes
    kept = memory("janus-pro-1b", "policy.recompute=never")
    again = memory("janus-pro-1b", "policy.recompute=always")
    assert kept.in_turn["update"]["activations"] > 8 * again.in_turn["update"]["activations"]
    assert memory("janus-pro-1b", "policy.dtype=float32").parts["weights"] == 2 * kept.parts["weights"]


def test_the_text_encoder_beside_the_policy_is_counted() -> None:
    published = memory("llamagen-xl-256", "policy.random_init=false")
    assert published.parts["text encoder"] == 2 * 1_223_527_424  # the encoder half of flan-t5-xl, in bfloat16
    assert memory("llamagen-xl-256").parts["text encoder"] == 0  # with random weights it is a small one


def test_a_gpu_that_is_too_small_is_told_before_anything_is_allocated() -> None:
    require_memory(config("janus-pro-1b", "policy.lora={}", "sampling.batch_rows=8"), 80_000_000_000)
    with pytest.raises(PrerequisiteError, match=r"needs about \d+ GB of GPU memory, 24 GB are free") as caught:
        require_memory(config("janus-pro-7b"), 24_000_000_000)
    assert "what saves most first: policy.lora={}" in caught.value.hint  # the most goes to optimizer moments


# ---------------------------------------------------------------- arithmetic


def test_arithmetic_of_an_update_is_that_of_what_is_differentiated() -> None:
    work = Work(parameters=1000, head=200, cache_per_slot=8, width=4, mlp=16, layers=2)
    assert update_flops(work, 3, 10) == 30 * 8 * 1000
    # reference and policy forward 4 x 1000, backward 4 x 800 of the layers and 4 x 200 at a quarter of the tokens
    assert update_flops(work, 3, 10, differentiated=0.25) == 30 * (4000 + 3200 + 200)
    # the reference once, the policy twice
    assert update_flops(work, 3, 10, passes=2) == 30 * (2000 + 2 * 6000)
    # frozen weights: the gradient of the input alone
    assert update_flops(work, 3, 10, adapters=True) == 30 * 6000
    # the layers forward once more
    assert update_flops(work, 3, 10, recomputes=True) == 30 * (8000 + 2 * 800)


@pytest.mark.parametrize(
    ("method", "share"),
    [("gcpo", 0.3), ("gcpo-init", 0.1), ("random", 0.3), ("remaining", 0.7), ("grpo", 1.0), ("low-confidence", 1.0)],
)
def test_the_share_of_tokens_that_a_method_trains_on(method: str, share: float) -> None:
    assert selected_share(config("janus-pro-tiny", method=method).selection) == pytest.approx(share)


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_at_all_positions_is_priced(method: str) -> None:
    cost = estimate(config("janus-pro-1b", method=method))
    assert (cost.everywhere is not None) == (method in ("gcpo-official", "gcpo-paper"))
    if cost.everywhere:
        assert cost.everywhere.times == pytest.approx(1 / 0.3)
        # 4 FLOPs a weight of the output layer, 37.7 of 1,271 M, at the other 70 %
        assert cost.everywhere.more == pytest.approx(4 * 0.7 * 37.7 / (8 * 1271 - 4 * 0.7 * 37.7), rel=0.01)
        assert cost.seconds_per_step > estimate(config("janus-pro-1b")).seconds_per_step


def test_a_dry_run_of_a_large_model_says_what_is_computed(cli: Cli) -> None:
    options = ("policy.random_init=true", "policy.device=cuda", "policy.dtype=bfloat16", "rewards=[{name: hps-v2.1}]")
    result = cli(
        "train", "--model", "janus-pro-1b", "--method", "gcpo-official", "--dry-run",
        *(part for option in options for part in ("-o", option)),
    )  # fmt: skip
    assert result.code == 0, result.err
    text = " ".join(result.out.split())
    assert "computed floor" in text
    assert "gradient flows through the weight; its backward pass is 3.3 times" in text
    for part in ("keys and values", "activations", "rewards", "CUDA and fragments", "image decoding"):
        assert part in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(cli: Cli) -> None:
    result = cli("train", "--model", "janus-pro-tiny", "-o", "policy.random_init=true", "-o", "policy.device=cuda")
    assert result.code == 4
    assert "torch sees no GPU" in result.err

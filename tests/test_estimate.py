"""What a large run is said to cost: published sizes, sums that add up, and a refusal before anything is allocated."""

from __future__ import annotations

import pytest
import torch

from gcpo_bench.config import RunConfig
from gcpo_bench.errors import PrerequisiteError
from gcpo_bench.resolve import resolve
from gcpo_bench.training import starts
from gcpo_bench.training.estimate import estimate, require_memory

from .conftest import Cli


def config(model: str, *overrides: str) -> RunConfig:
    gpu = ("policy.random_init=true", "policy.device=cuda", "policy.dtype=bfloat16", "sampling.guidance_scale=5")
    return resolve(None, [*gpu, *overrides], {"model": model}).config


@pytest.mark.parametrize(
    ("model", "body", "head", "cache"),
    # body and head as counted from the published configurations; cache: 192 and 480 KiB a token and row in bfloat16
    [("janus-pro-1b", 1.233e9, 37.7e6, 192 * 1024), ("janus-pro-7b", 6.071e9, 83.9e6, 480 * 1024)],
)
def test_the_published_sizes(model: str, body: float, head: float, cache: int) -> None:
    policy = starts.without_memory(config(model).policy)
    work = policy.work()
    assert work.parameters == pytest.approx(body + head, rel=2e-3)
    assert work.cache_per_slot * 2 == cache
    assert policy.grid == (24, 24)
    assert policy.vocab_size == 16_384


def test_adapters_bfloat16_and_recomputed_activations_save_what_they_should() -> None:
    full = estimate(config("janus-pro-7b"))
    adapters = estimate(config("janus-pro-7b", "policy.lora={}"))
    assert not full.measured
    assert full.parts["reference"] == full.parts["weights"]
    assert adapters.parts["reference"] == 0
    assert adapters.parts["optimizer moments"] == pytest.approx(75e6 * 8, rel=0.1)  # rank 32 on all linear layers
    assert full.peak_memory_bytes == sum(full.parts.values()) > 3 * adapters.peak_memory_bytes
    kept = estimate(config("janus-pro-1b", "policy.recompute=never"))
    again = estimate(config("janus-pro-1b", "policy.recompute=always"))
    assert kept.parts["activations"] > 8 * again.parts["activations"]
    assert estimate(config("janus-pro-1b", "policy.dtype=float32")).parts["weights"] == 2 * kept.parts["weights"]


def test_the_text_encoder_beside_the_policy_is_counted() -> None:
    options = ["policy.device=cuda", "policy.dtype=bfloat16"]
    found = estimate(resolve(None, options, {"model": "llamagen-xl-256"}).config)
    assert found.parts["text encoder"] == 2 * 1_223_527_424  # the encoder half of flan-t5-xl, in bfloat16
    assert estimate(config("llamagen-xl-256")).parts["text encoder"] == 0  # with random weights it is a small one


def test_a_gpu_that_is_too_small_is_told_before_anything_is_allocated() -> None:
    require_memory(config("janus-pro-1b", "policy.lora={}", "sampling.batch_rows=8"), 80_000_000_000)
    with pytest.raises(PrerequisiteError, match=r"needs about \d+ GB of GPU memory, 24 GB are free") as caught:
        require_memory(config("janus-pro-7b"), 24_000_000_000)
    assert "policy.lora={}" in caught.value.hint


def test_a_dry_run_of_a_large_model_says_what_is_computed(cli: Cli) -> None:
    options = ("policy.random_init=true", "policy.device=cuda", "policy.dtype=bfloat16")
    result = cli(
        "train", "--model", "janus-pro-1b", "--method", "gcpo-official", "--dry-run",
        *(part for option in options for part in ("-o", option)),
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "computed floor" in result.out
    assert "keys and values" in result.out or "activations" in result.out
    assert "gradient flows through the weight" in result.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(cli: Cli) -> None:
    result = cli("train", "--model", "janus-pro-tiny", "-o", "policy.random_init=true", "-o", "policy.device=cuda")
    assert result.code == 4
    assert "torch sees no GPU" in result.err

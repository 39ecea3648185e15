"""What a run begins from: how it is put together, and what is recorded of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gcpo_bench import outside, runs
from gcpo_bench.config import PolicyConfig
from gcpo_bench.registry import POLICIES
from gcpo_bench.resolve import resolve
from gcpo_bench.training import starts

from .conftest import Cli
from .memory import peak_mb


def started(model: str, *overrides: str) -> tuple[Any, Any]:
    """A policy of random weights, and its settings."""
    config = resolve(None, ["policy.random_init=true", *overrides], {"model": model}).config
    return starts.start_policy(config), config.policy


# ---------------------------------------------------------------- how it is put together


def assert_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("model", ["scenes-8", "janus-pro-tiny", "llamagen-tiny"])
def test_a_start_is_what_its_classes_make_and_draw(model: str) -> None:
    """Though it is made without weights, which come later, in their type."""
    plain = POLICIES.load(model)(model)
    plain.initialize(torch.Generator().manual_seed(0))
    whole, half = (started(model, f"policy.dtype={dtype}")[0] for dtype in ("float32", "bfloat16"))
    assert_alike(whole.state_dict(), plain.state_dict())
    tables = {name: table for name, table in plain.named_buffers() if name not in plain.state_dict()}
    assert bool(tables) == (model != "llamagen-tiny")
    for policy in (whole, half):
        found = dict(policy.named_buffers())
        assert_alike({name: found[name] for name in tables}, tables)
    for name, tensor in half.state_dict().items():  # those that are scaled once drawn are rounded twice
        torch.testing.assert_close(tensor, plain.state_dict()[name].bfloat16(), rtol=2**-7, atol=0)


def test_only_the_thread_that_makes_a_policy_makes_no_weights() -> None:
    with starts._without_weights(), ThreadPoolExecutor(1) as other:
        assert nn.Linear(2, 3).weight.is_meta
        assert not other.submit(nn.Linear, 2, 3).result().weight.is_meta
    assert not nn.Linear(2, 3).weight.is_meta


def a_model_of_ones_own(name: str, template: str = "") -> nn.Module:
    """It reads its weights as it is made."""
    policy: nn.Module = POLICIES.load("scenes-8")("scenes-8")
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(0.3)
    return policy


a_model_of_ones_own.gcpo_bench_part = "model"  # type: ignore[attr-defined]


def test_a_model_of_ones_own_keeps_the_weights_that_it_reads() -> None:
    name = "tests.test_starts:a_model_of_ones_own"
    outside.allow([name])
    policy = starts.build(PolicyConfig(name=name, dtype="bfloat16"))
    for parameter in policy.parameters():
        assert torch.equal(parameter, torch.full(parameter.shape, 0.3, dtype=torch.bfloat16))


def test_a_start_takes_the_memory_of_its_weights_and_of_the_largest_in_float32() -> None:
    before = """
        from dataclasses import replace
        from gcpo_bench.resolve import resolve
        from gcpo_bench.training import starts
        from gcpo_bench.training.policies.janus_pro import SIZES

        config = resolve(None, ["policy.random_init=true", "policy.dtype=bfloat16"], {"model": "janus-pro-tiny"}).config
        starts.start_policy(config)  # what the libraries take is taken
        SIZES["janus-pro-tiny"] = replace(SIZES["janus-pro-tiny"], width=1024, mlp=4096, layers=6)
    """
    measured = "weights = list(starts.start_policy(config).parameters())"
    sizes = "[sum(each.nbytes for each in weights) / 1e6, max(each.numel() for each in weights) * 4e-6]"
    peak, (weights_mb, largest_mb) = peak_mb(before, measured, sizes)
    assert weights_mb > 200
    assert weights_mb < peak < weights_mb + largest_mb + 40


# ---------------------------------------------------------------- what is recorded


@pytest.mark.parametrize(
    ("model", "overrides", "template", "trained"),
    [
        ("scenes-8", (), None, "all"),
        ("janus-pro-tiny", (), "janus-pro", "language-model"),
        ("janus-pro-tiny", ("policy.template=janus", "policy.trained=transformer"), "janus", "transformer"),
        ("llamagen-tiny", (), "llamagen", "transformer"),
        ("llamagen-tiny", ("policy.template=gcpo", "policy.trained=layers"), "gcpo", "layers"),
    ],
)
def test_what_the_settings_leave_to_the_policy_is_written_out(
    model: str, overrides: tuple[str, ...], template: str | None, trained: str
) -> None:
    policy, config = started(model, *overrides)
    found = starts.text_and_parts(policy, config)
    prefixes = ("",) if trained == "all" else policy.parts[trained]
    learns = sum(parameter.numel() for name, parameter in policy.named_parameters() if name.startswith(prefixes))
    assert found == {"template": template, "trained": trained, "adapters": [], "trained_parameters": learns}
    assert template is None or policy.template == policy.templates[template]


def test_adapters_are_named_with_the_layers_that_have_one() -> None:
    policy, config = started("janus-pro-tiny", "policy.lora={rank: 2, targets: [q_proj, down_proj]}")
    assert starts.text_and_parts(policy, config) == {
        "template": "janus-pro",
        "trained": "adapters",
        "adapters": ["down_proj", "q_proj"],
        # two layers; q_proj is 64 x 64, down_proj 64 x 128
        "trained_parameters": 2 * 2 * ((64 + 64) + (128 + 64)),
    }


def test_every_start_of_a_run_records_them(cli: Cli, tmp_path: Path) -> None:
    options = ("policy.random_init=true", "rewards=[{name: redness}]", "sampling.prompts_per_step=1")
    given = [part for option in (*options, "sampling.group_size=2") for part in ("-o", option)]
    begun = cli("train", "--model", "janus-pro-tiny", *given, "--name", "a", "--num-steps", "1")
    assert begun.code == 0, begun.err
    assert cli("train", "--resume", "--name", "a", "--num-steps", "2").code == 0
    records = runs.open_run("a", tmp_path / "runs").environments()
    assert [(record["policy"]["template"], record["policy"]["trained"]) for record in records] == [
        ("janus-pro", "language-model")
    ] * 2

"""Cached steps of the large policies: how they are laid out, how little they launch, and what adapters add to them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gcpo_bench.config import LoraConfig
from gcpo_bench.training import decoding, graphs, lora
from gcpo_bench.training.decoding import keep_one_layout, sample
from gcpo_bench.training.kernels import KernelCount
from gcpo_bench.training.logprobs import token_logprobs
from gcpo_bench.training.policies import janus_pro, llamagen
from gcpo_bench.training.policies.cached_layer import Joined

TEXTS = ["a red circle", "two very big blue squares beside a dog", "x"]
MODELS: dict[str, Any] = {"janus-pro-tiny": janus_pro, "llamagen-tiny": llamagen}
LINEAR = {
    "janus-pro-tiny": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "llamagen-tiny": ["wqkv", "wo", "w1", "w2", "w3"],
}


def make_policy(name: str, adapted: list[str] | None = None) -> Any:
    policy = MODELS[name].build(name)
    policy.train(mode=False)
    policy.initialize(torch.Generator().manual_seed(0))
    if adapted is not None:
        lora.add(policy, LoraConfig(rank=2, alpha=4, targets=tuple(adapted)), torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter_name, parameter in policy.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(0.0, 0.3, generator=generator)
            elif parameter.ndim == 2 and "lora" not in parameter_name:
                parameter.mul_(5)  # so that what is attended to changes what comes out
    return policy


def uniforms(policy: Any, rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, policy.grid[0] * policy.grid[1], generator=generator)


# ---------------------------------------------------------------- kernels


@pytest.mark.parametrize(
    ("name", "adapted", "per_layer"),
    [
        ("janus-pro-tiny", False, 12),
        ("janus-pro-tiny", True, 20),  # two more at each of the four products
        ("llamagen-tiny", False, 11),  # neighbours are turned in one kernel
        ("llamagen-tiny", True, 19),
    ],
)
def test_a_layer_launches_few_kernels(
    monkeypatch: pytest.MonkeyPatch, name: str, adapted: bool, per_layer: int
) -> None:
    found = {}
    for layers in (1, 3):
        monkeypatch.setitem(MODELS[name].SIZES, name, replace(MODELS[name].SIZES[name], layers=layers))
        policy = make_policy(name, LINEAR[name] if adapted else None)
        counts = []
        for tokens in (2, 2, 3):  # the first lays the weights out
            with KernelCount() as kernels:
                sample(policy, TEXTS[:1], uniforms(policy, 1)[:, :tokens], guidance_scale=3.0)
            counts.append(kernels.count)
        found[layers] = counts[2] - counts[1]
    assert (found[3] - found[1]) / 2 == per_layer
    assert found[1] - per_layer <= 30  # reading and writing the token, guidance, the draw and what is recorded of it


def test_views_and_memory_are_no_kernels_and_a_norm_is_one() -> None:
    x = torch.rand(3, 4)
    with KernelCount() as kernels:
        torch.empty(3).view(3, 1).expand(3, 2)
        assert kernels.count == 0
        nn.RMSNorm(4)(x)
        before = kernels.count - 1  # of the module's own weight: made, and filled with ones
        torch.nn.functional.rms_norm(x, (4,))
        (x.t() + 1).exp_()
        assert kernels.count - before == 4


# ---------------------------------------------------------------- weights that lie together


@torch.no_grad()
def test_joined_layers_are_the_layers_and_hold_no_copy() -> None:
    layers = [nn.Linear(8, width, bias=False) for width in (4, 6, 2)]
    x_RN = torch.rand(3, 8)
    apart = torch.cat([layer(x_RN) for layer in layers], dim=1)
    parameters = [layer.weight for layer in layers]
    joined = Joined(*layers)
    torch.testing.assert_close(joined(x_RN), apart)
    torch.testing.assert_close(torch.cat([layer(x_RN) for layer in layers], dim=1), apart)
    assert all(layer.weight is parameter for layer, parameter in zip(layers, parameters, strict=True))
    memory = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    assert memory == {joined.weight_ON.untyped_storage().data_ptr()}
    assert joined.weight_ON.untyped_storage().nbytes() == 4 * 8 * (4 + 6 + 2)
    layers[1].weight.mul_(2)  # as an optimiser does
    torch.testing.assert_close(joined(x_RN), torch.cat([layer(x_RN) for layer in layers], dim=1))
    assert Joined(*layers).weight_ON.data_ptr() == joined.weight_ON.data_ptr()
    alone = copy.deepcopy(layers[1])
    alone.weight.zero_()
    torch.testing.assert_close(joined(x_RN), torch.cat([layer(x_RN) for layer in layers], dim=1))


@torch.no_grad()
def test_a_sum_is_added_to_in_place() -> None:
    layer, x_RN, sum_RO = nn.Linear(8, 4, bias=False), torch.rand(3, 8), torch.rand(3, 4)
    expected = sum_RO + layer(x_RN)
    Joined(layer).add_to(sum_RO, x_RN)
    torch.testing.assert_close(sum_RO, expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_policy_that_has_decoded_learns_as_before(name: str) -> None:
    policy, untouched = make_policy(name), make_policy(name)
    for step in range(2):
        tokens_BT = sample(policy, TEXTS, uniforms(policy, 3, step), guidance_scale=3.0).tokens_BT
        for each in (policy, untouched):
            parameters = [parameter for parameter in each.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(token_logprobs(each, TEXTS, tokens_BT).sum(), parameters, allow_unused=True)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter.add_(gradient, alpha=1e-5)
    for parameter, expected in zip(policy.parameters(), untouched.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected)
    noise = uniforms(policy, 3, seed=2)
    again, expected_ones = (sample(each, TEXTS, noise, guidance_scale=3.0) for each in (policy, untouched))
    assert torch.equal(again.tokens_BT, expected_ones.tokens_BT)


# ---------------------------------------------------------------- adapters


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("some", [False, True])
@torch.no_grad()
def test_sampled_logprobs_are_those_of_the_adapted_layers(name: str, some: bool) -> None:
    policy = make_policy(name, LINEAR[name][1::2] if some else LINEAR[name])
    samples = sample(policy, TEXTS, uniforms(policy, 3), guidance_scale=3.0)
    teacher_forced = token_logprobs(policy, TEXTS, samples.tokens_BT)  # through peft's own forward
    torch.testing.assert_close(samples.logprobs_BT, teacher_forced, atol=1e-4, rtol=0)
    with lora.off(policy):
        base = token_logprobs(policy, TEXTS, samples.tokens_BT)
        samples = sample(policy, TEXTS, uniforms(policy, 3), guidance_scale=3.0)
        teacher_forced = token_logprobs(policy, TEXTS, samples.tokens_BT)
    assert not torch.allclose(base, teacher_forced, atol=0.1)
    torch.testing.assert_close(samples.logprobs_BT, teacher_forced, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_adapters_in_bfloat16_differ_by_rounding_only(name: str) -> None:
    policy = make_policy(name, LINEAR[name]).bfloat16()
    samples = sample(policy, TEXTS, uniforms(policy, 3), guidance_scale=3.0)
    teacher_forced = token_logprobs(policy, TEXTS, samples.tokens_BT)
    assert (samples.logprobs_BT - teacher_forced).abs().max() < 0.1


# ---------------------------------------------------------------- one layout


@pytest.mark.parametrize("graphed", [False, True])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_more_prompt_slots_change_no_number(name: str, graphed: bool) -> None:
    policy, noise = make_policy(name), uniforms(make_policy(name), 3)
    before = sample(policy, TEXTS, noise, guidance_scale=3.0, graphs=graphed)
    keep_one_layout(policy, [*TEXTS, "a prompt that is longer than all the others are, and by more than sixteen words"])
    state = policy.start(TEXTS)
    assert policy.prompt_slots == state.cache.filled > policy.slots_for(TEXTS)
    after = sample(policy, TEXTS, noise, guidance_scale=3.0, graphs=graphed)
    assert torch.equal(after.tokens_BT, before.tokens_BT)
    torch.testing.assert_close(after.logprobs_BT, before.logprobs_BT, atol=1e-5, rtol=0)
    torch.testing.assert_close(after.entropy_BT, before.entropy_BT, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_run_records_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(graphs, "BUCKET", 8)
    recorded: list[int] = []
    record = graphs.GraphedDecoder._record

    def watched(decoder: graphs.GraphedDecoder, limit: int) -> graphs.Recorded:
        recorded.append(limit)
        return record(decoder, limit)

    monkeypatch.setattr(graphs.GraphedDecoder, "_record", watched)
    policy = make_policy(name)
    long = "a prompt that is longer than all the others are, and by more than sixteen words"
    keep_one_layout(policy, [*TEXTS, long])
    for seed, texts in enumerate((TEXTS, ["x"], [long, "x"], TEXTS)):  # other lengths, and fewer rows
        noise = uniforms(policy, len(texts), seed)
        fixed = sample(policy, texts, noise, guidance_scale=3.0, graphs=True)
        free = sample(policy, texts, noise, guidance_scale=3.0)
        assert torch.equal(fixed.tokens_BT, free.tokens_BT)
        torch.testing.assert_close(fixed.logprobs_BT, free.logprobs_BT, atol=1e-5, rtol=0)
    assert len(recorded) == len(set(recorded)) > 1


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_memory_of_a_cache_of_as_many_slots_serves_prompts_of_another_length(name: str) -> None:
    policy = make_policy(name)
    noise = uniforms(policy, 3)
    found, laid_out = [], []
    for more in (2, 10):
        policy.prompt_slots = policy.slots_for(TEXTS) + more
        found.append(sample(policy, TEXTS, noise, guidance_scale=3.0, graphs=True))
        laid_out.append(decoding._DECODERS[policy][1].state.cache)
    assert laid_out[0] is laid_out[1]
    assert torch.equal(found[0].tokens_BT, found[1].tokens_BT)
    torch.testing.assert_close(found[0].logprobs_BT, found[1].logprobs_BT, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_forced_tokens_are_put_in_place_of_drawn_ones(name: str) -> None:
    policy, noise = make_policy(name), uniforms(make_policy(name), 3)
    plain = sample(policy, TEXTS, noise).tokens_BT
    forced_BT = torch.full_like(plain, -1)
    forced_BT[:, 3:5] = (plain[:, 3:5] + 1) % policy.vocab_size
    free, fixed = (sample(policy, TEXTS, noise, forced_BT=forced_BT, graphs=graphed) for graphed in (False, True))
    assert torch.equal(free.tokens_BT[:, :3], plain[:, :3])
    assert torch.equal(free.tokens_BT[:, 3:5], forced_BT[:, 3:5])
    assert torch.equal(fixed.tokens_BT, free.tokens_BT)
    some = sample(policy, TEXTS[:2], noise[:2], forced_BT=forced_BT[:2], graphs=True)  # filled up to three rows
    assert torch.equal(some.tokens_BT, free.tokens_BT[:2])
    assert torch.equal(sample(policy, TEXTS, noise, graphs=True).tokens_BT, plain)


def test_a_policy_that_pads_nothing_is_left_alone() -> None:
    policy: Any = nn.Linear(2, 2)
    keep_one_layout(policy, ["x"])
    assert not hasattr(policy, "prompt_slots")
    assert decoding._DECODERS.get(policy) is None

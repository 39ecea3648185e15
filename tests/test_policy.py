"""The embedded policy and the sampler: what is sampled is what teacher forcing sees, in any batch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gcpo_bench import scenes, streams
from gcpo_bench.config import PolicyConfig
from gcpo_bench.errors import ConfigError
from gcpo_bench.registry import POLICIES
from gcpo_bench.training import starts
from gcpo_bench.training.decoding import draw, sample, sample_in_batches, truncate
from gcpo_bench.training.logprobs import token_logprobs
from gcpo_bench.training.policies.scenes import ScenesPolicy, build

TEXTS = [prompt.text for prompt in scenes.held_out_prompts()[::48]]


@pytest.fixture(scope="module")
def policy() -> ScenesPolicy:
    """Random weights with a head that is far from uniform: every path matters to the result."""
    policy = build("scenes-8")
    policy.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in policy.head.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return policy.eval()


def uniforms(rows: int, tokens: int = 64) -> torch.Tensor:
    return torch.from_numpy(np.stack([streams.uniforms(0, "test", "prompt", row, tokens) for row in range(rows)]))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_sampled_logprobs_equal_teacher_forced_ones(policy: ScenesPolicy, guidance_scale: float) -> None:
    samples = sample(policy, TEXTS, uniforms(6), guidance_scale=guidance_scale)
    torch.testing.assert_close(samples.logprobs_BT, token_logprobs(policy, TEXTS, samples.tokens_BT), atol=1e-4, rtol=0)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_an_image_does_not_depend_on_what_else_is_in_the_batch(policy: ScenesPolicy, guidance_scale: float) -> None:
    whole = sample(policy, TEXTS, uniforms(6), guidance_scale=guidance_scale).tokens_BT
    for batch_rows in (1, 4):
        parts = sample_in_batches(policy, TEXTS, uniforms(6), batch_rows=batch_rows, guidance_scale=guidance_scale)
        assert torch.equal(parts.tokens_BT, whole)


def test_guidance_1_samples_the_conditional_distribution(policy: ScenesPolicy) -> None:
    noise = uniforms(6)
    plain = sample(policy, TEXTS, noise)
    almost = sample(policy, TEXTS, noise, guidance_scale=1.0 + 1e-9)  # takes the guided path
    assert torch.equal(plain.tokens_BT, almost.tokens_BT)


def test_entropy_is_of_the_distribution_that_is_named(policy: ScenesPolicy) -> None:
    mixed = sample(policy, TEXTS, uniforms(6), guidance_scale=3.0, temperature=0.7)
    conditional = sample(policy, TEXTS, uniforms(6), guidance_scale=3.0, temperature=0.7, entropy_source="conditional")
    assert torch.equal(mixed.tokens_BT, conditional.tokens_BT)
    logprobs_BTV = policy.head(policy.hidden(TEXTS, conditional.tokens_BT)).log_softmax(-1)
    expected = -(logprobs_BTV.exp() * logprobs_BTV).sum(-1)
    torch.testing.assert_close(conditional.entropy_BT, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(mixed.entropy_BT, expected, atol=0.1)


def test_each_token_sees_only_the_tokens_before_it(policy: ScenesPolicy) -> None:
    tokens = sample(policy, TEXTS[:1], uniforms(1)).tokens_BT
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % policy.vocab_size
    before, after = (policy.head(policy.hidden(TEXTS[:1], t)) for t in (tokens, changed))
    torch.testing.assert_close(before[:, :21], after[:, :21])
    assert not torch.allclose(before[:, 21:], after[:, 21:])


@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_a_drawn_token_is_the_inverse_of_the_cumulative_distribution(seed: int, vocab: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(vocab, 0.3))
    u = float(rng.random(dtype=np.float32))
    token = int(draw(torch.from_numpy(probabilities)[None], torch.tensor([u]))[0])
    below, upto = probabilities[:token].sum(), probabilities[: token + 1].sum()
    assert below - 1e-12 <= u * probabilities.sum() <= upto + 1e-12


def test_the_largest_uniform_number_draws_a_possible_token() -> None:
    largest = torch.tensor([1 - 2**-24])
    assert draw(torch.tensor([[0.5, 0.5, 0.0]]), largest).item() == 1


def test_drawn_frequencies_are_the_probabilities() -> None:
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    noise = torch.from_numpy(streams.generator(0, "frequencies").random(20_000, dtype=np.float32))
    tokens = draw(probabilities.expand(20_000, 4), noise)
    frequencies = torch.bincount(tokens, minlength=4) / 20_000
    torch.testing.assert_close(frequencies, probabilities, atol=0.015, rtol=0)
    assert frequencies[1] == 0


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    logprobs = torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log()
    kept = [truncate(logprobs, k, p).isfinite()[0].tolist() for k, p in ((2, 1.0), (0, 0.75), (0, 0.45), (1, 0.9))]
    assert kept[0] == [True, False, True, False]
    assert kept[1] == [True, False, True, False]  # 0.5 is not yet 0.75, 0.8 is
    assert kept[2] == [True, False, False, False]
    assert kept[3] == [True, False, False, False]
    assert torch.equal(truncate(logprobs, 0, 1.0), logprobs)


@pytest.mark.parametrize("top_k", [0, 2000])
def test_top_p_keeps_what_float64_keeps(top_k: int) -> None:
    """In float32 the sum of 16,384 small terms, and the total that a softmax leaves, cut some rows elsewhere."""
    logits_BV = torch.randn(600, 16_384, generator=torch.Generator().manual_seed(3))
    logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
    exact_BV = np.exp(logprobs_BV.numpy().astype(np.float64))
    exact_BV /= exact_BV.sum(axis=-1, keepdims=True)
    order_BV = np.argsort(-exact_BV, axis=-1, kind="stable")
    ordered_BV = np.take_along_axis(exact_BV, order_BV, axis=-1)
    for top_p in (0.5, 0.9, 0.95):
        wanted_BV = np.cumsum(ordered_BV, axis=-1) - ordered_BV < top_p
        wanted_BV[:, top_k or 16_384 :] = False
        kept_BV = truncate(logprobs_BV, top_k, top_p).isfinite().numpy()
        assert (np.take_along_axis(kept_BV, order_BV, axis=-1) == wanted_BV).all()


def test_unknown_words_and_long_prompts_are_refused(policy: ScenesPolicy) -> None:
    with pytest.raises(ConfigError, match="does not know 'dog'") as caught:
        policy.prompt_ids(["a photo of a dog"])
    assert "circle" in caught.value.hint
    with pytest.raises(ConfigError, match="has 11 words"):
        policy.prompt_ids(["a " * 11])


def test_embeddings_are_the_transformers_or_the_pixels(policy: ScenesPolicy) -> None:
    tokens = torch.tensor([[0, 5, 0]])
    projected, codebook = policy.embed(tokens, "projected"), policy.embed(tokens, "codebook")
    assert projected.shape == (1, 3, policy.architecture.width)
    pixels = policy.tokenizer.codebook[5].reshape(-1) / 255
    np.testing.assert_allclose(codebook[0, 1].numpy(), pixels, rtol=1e-6)


@pytest.mark.parametrize("name", list(POLICIES))
def test_weights_are_cast_and_tables_that_are_in_no_checkpoint_are_not(name: str) -> None:
    cast, whole = (starts.without_memory(PolicyConfig(name=name, dtype=dtype)) for dtype in ("bfloat16", "float32"))
    weights, expected = cast.state_dict(), dict(whole.named_buffers())
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    for policy in (cast, cast.to("meta"), copy.deepcopy(cast)):
        for buffer_name, buffer in policy.named_buffers():
            if buffer_name not in weights:
                assert buffer.dtype == expected[buffer_name].dtype, buffer_name


def test_streams_are_addressed_not_ordered() -> None:
    first = streams.uniforms(0, "rollout/3", "p", 1, 8)
    streams.uniforms(0, "rollout/3", "p", 2, 8)
    np.testing.assert_array_equal(first, streams.uniforms(0, "rollout/3", "p", 1, 8))
    np.testing.assert_array_equal(first, streams.uniforms(0, "rollout/3", "p", 1, 16)[:8])
    others = [(1, "rollout/3", "p", 1), (0, "rollout/4", "p", 1), (0, "rollout/3", "q", 1), (0, "rollout/3", "p", 2)]
    assert all(not np.array_equal(first, streams.uniforms(*address, 8)) for address in others)
    assert 0 <= first.min() <= first.max() < 1

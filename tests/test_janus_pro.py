"""Janus-Pro in miniature: random weights in the real classes, against transformers' own pass, and through the loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import JanusForConditionalGeneration

from gcpo_bench import runs
from gcpo_bench.config import RunConfig
from gcpo_bench.errors import ConfigError
from gcpo_bench.resolve import resolve
from gcpo_bench.training import graphs
from gcpo_bench.training.decoding import sample, sample_in_batches
from gcpo_bench.training.learner import build_learner
from gcpo_bench.training.logprobs import token_logprobs
from gcpo_bench.training.policies.janus_pro import SIZES, JanusPro, build

from .conftest import Cli

TEXTS = ["a red circle", "two very big blue squares beside a dog", "x"]
TOKENS = 36
REWARD = """
from gcpo_bench.evaluators.types import SceneReward

class Redness:
    def __call__(self, images_BYXC, prompts_B):
        means = images_BYXC.mean(axis=(1, 2)) / 255
        return SceneReward(values_B=tuple(float(r - (g + b) / 2) for r, g, b in means), anomalies={})
"""


@pytest.fixture(scope="module")
def policy() -> JanusPro:
    made = build("janus-pro-tiny")
    made.train(mode=False)
    made.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)  # so that what is attended to changes what comes out
    return made


def uniforms(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, TOKENS, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_teacher_forced_logprobs_are_those_of_transformers(policy: JanusPro) -> None:
    theirs = JanusForConditionalGeneration(SIZES["janus-pro-tiny"].config())
    theirs.train(mode=False)
    loaded = theirs.load_state_dict({f"model.{name}": t for name, t in policy.state_dict().items()}, strict=False)
    assert loaded.unexpected_keys == []
    unused = ("vision_model", "model.aligner", "lm_head", "vqmodel.encoder", "vqmodel.quant_conv")
    assert [name for name in loaded.missing_keys if not any(part in name for part in unused)] == []
    tokens_BT = sample(policy, TEXTS, uniforms(3)).tokens_BT
    for text, tokens_T, ours_T in zip(TEXTS, tokens_BT, token_logprobs(policy, TEXTS, tokens_BT), strict=True):
        ids, _ = policy.prompt_ids([text])
        words = torch.cat([ids, torch.tensor([[policy.begin_of_image]])], dim=1)
        image = theirs.prepare_embeddings_for_image_generation(tokens_T[None, :-1])
        inputs = torch.cat([theirs.get_input_embeddings()(words), image], dim=1)
        hidden = theirs.model.language_model(inputs_embeds=inputs).last_hidden_state[:, ids.shape[1] :]
        logprobs = theirs.model.generation_head(hidden).log_softmax(-1)
        torch.testing.assert_close(ours_T, logprobs[0].gather(1, tokens_T[:, None])[:, 0], atol=1e-5, rtol=0)
    pixels = ((theirs.decode_image_tokens(tokens_BT) + 1) / 2 * 255).clip(0, 255).numpy()
    assert np.abs(policy.decode(tokens_BT) - pixels).max() <= 1


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampled_logprobs_are_the_teacher_forced_ones(policy: JanusPro, guidance: float) -> None:
    samples = sample(policy, TEXTS, uniforms(3), guidance_scale=guidance)
    torch.testing.assert_close(samples.logprobs_BT, token_logprobs(policy, TEXTS, samples.tokens_BT), atol=1e-4, rtol=0)
    assert len(torch.unique(samples.tokens_BT)) > 10


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_row_does_not_depend_on_its_batch(policy: JanusPro, guidance: float) -> None:
    texts = [text for text in TEXTS for _ in range(2)]
    whole = sample(policy, texts, uniforms(6), guidance_scale=guidance)
    for rows in (1, 4):
        parts = sample_in_batches(policy, texts, uniforms(6), batch_rows=rows, guidance_scale=guidance)
        assert torch.equal(parts.tokens_BT, whole.tokens_BT)
        torch.testing.assert_close(parts.logprobs_BT, whole.logprobs_BT, atol=1e-5, rtol=0)
        torch.testing.assert_close(parts.entropy_BT, whole.entropy_BT, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_steps_of_fixed_shapes_draw_the_same(
    policy: JanusPro, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    monkeypatch.setattr(graphs, "BUCKET", 16)  # several within an image
    for seed, texts in enumerate((TEXTS, TEXTS[::-1], TEXTS[:2])):  # the second batch reuses the first one's memory
        noise = uniforms(len(texts), seed)
        free = sample(policy, texts, noise, guidance_scale=guidance)
        fixed = sample(policy, texts, noise, guidance_scale=guidance, graphs=True)
        assert torch.equal(fixed.tokens_BT, free.tokens_BT)
        torch.testing.assert_close(fixed.logprobs_BT, free.logprobs_BT, atol=1e-5, rtol=0)
        torch.testing.assert_close(fixed.entropy_BT, free.entropy_BT, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_unconditional_branch_knows_the_length_of_the_prompt_and_nothing_else(policy: JanusPro) -> None:
    state = policy.start(["red", "cat", "a longer prompt"], guided=True)
    conditional, unconditional = policy.step(state, None).chunk(2)
    torch.testing.assert_close(unconditional[0], unconditional[1])
    assert not torch.allclose(conditional[0], conditional[1], atol=1e-3)
    ids, _ = policy.prompt_ids(["red"])
    words = [policy.bos, *[policy.pad] * (ids.shape[1] - 1), policy.begin_of_image]
    hidden = policy.language_model(inputs_embeds=policy.word_vectors(torch.tensor([words]))).last_hidden_state
    torch.testing.assert_close(unconditional[0], policy.generation_head(hidden[0, -1]), atol=1e-4, rtol=0)


def test_templates_differ_and_an_unknown_one_is_refused() -> None:
    for template, start in (("janus-pro", "<|User|>: a dog"), ("janus", "User: a dog")):
        policy = build("janus-pro-tiny", template=template)
        assert start in policy.tokenizer.decode(policy.prompt_ids(["a dog"])[0][0])
    with pytest.raises(ConfigError, match="unknown template 'llama'"):
        build("janus-pro-tiny", template="llama")


def test_only_the_language_model_learns() -> None:
    config = settings("gcpo")
    learner = build_learner(config)
    names = {name for name, p in learner.policy.named_parameters() if p.requires_grad}  # type: ignore[attr-defined]
    assert names
    assert all(name.startswith("language_model.") for name in names)


def settings(method: str) -> RunConfig:
    return resolve(None, ["policy.random_init=true"], {"method": method, "model": "janus-pro-tiny"}).config


@pytest.mark.parametrize("method", ["grpo", "gcpo", "gcpo-official"])
def test_it_trains_and_draws(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    (tmp_path / "pixels.py").write_text(REWARD, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    small = ("policy.random_init=true", "rewards=[{name: 'pixels:Redness'}]", "sampling.prompts_per_step=2",
             "sampling.group_size=4", "sampling.guidance_scale=2.0", "logging.tracked_prompts=1",
             "optimizer.learning_rate=1e-3")  # fmt: skip
    options = [part for setting in small for part in ("-o", setting)]
    trained = cli("train", "--model", "janus-pro-tiny", "--method", method, "--num-steps", "3", "--name", "a", *options)
    assert trained.code == 0, trained.err
    run = runs.open_run("a", tmp_path / "runs")
    rows = run.metrics()
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["loss/kl_all"] == pytest.approx(0, abs=1e-9)
    assert rows[2]["loss/kl_all"] > 0
    assert rows[0]["tokens/selected_fraction"] == pytest.approx({"grpo": 1.0}.get(method, 9 / 36))
    drawn = cli("sample", "a", "a red circle", "-n", "2", "--guidance", "2")
    assert drawn.code == 0, drawn.err


def test_a_model_without_packaged_weights_says_what_to_give(cli: Cli) -> None:
    refused = cli("train", "--model", "janus-pro-1b")
    assert refused.code == 2
    assert "no weights of janus-pro-1b ship with gcpo-bench" in refused.err
    assert "policy.weights" in refused.err

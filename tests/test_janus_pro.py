"""Janus-Pro in miniature: random weights in the real classes, against transformers' own pass, and through the loop."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import JanusForConditionalGeneration

from gcpo_bench import runs
from gcpo_bench.config import RunConfig
from gcpo_bench.errors import ConfigError, CorruptDataError, RunError
from gcpo_bench.resolve import resolve
from gcpo_bench.training import graphs, lora, published, starts
from gcpo_bench.training.decoding import sample, sample_in_batches
from gcpo_bench.training.learner import build_learner
from gcpo_bench.training.logprobs import token_logprobs
from gcpo_bench.training.policies.janus_pro import SIZES, JanusPro, build, byte_tokenizer

from .conftest import Cli

TEXTS = ["a red circle", "two very big blue squares beside a dog", "x"]
TOKENS = 36
REWARD = """
from gcpo_bench.evaluators.types import SceneReward

class Redness:
    gcpo_bench_part = "reward"

    def __call__(self, images_BYXC, prompts_B):
        means = images_BYXC.mean(axis=(1, 2)) / 255
        return SceneReward(values_B=tuple(float(r - (g + b) / 2) for r, g, b in means), anomalies={})
"""


def make_policy() -> JanusPro:
    made = build("janus-pro-tiny")
    made.train(mode=False)
    made.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)  # so that what is attended to changes what comes out
    return made


@pytest.fixture(scope="module")
def policy() -> JanusPro:
    return make_policy()


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
        torch.testing.assert_close(ours_T, their_logprobs(theirs, policy, text, tokens_T), atol=1e-5, rtol=0)
    pixels = ((theirs.decode_image_tokens(tokens_BT) + 1) / 2 * 255).clip(0, 255).numpy()
    assert np.abs(policy.decode(tokens_BT) - pixels).max() <= 1


def their_logprobs(theirs: Any, policy: JanusPro, text: str, tokens_T: torch.Tensor) -> torch.Tensor:
    """(T,) by transformers' own pass over one prompt and its image."""
    ids, _ = policy.prompt_ids([text])
    words = torch.cat([ids, torch.tensor([[policy.begin_of_image]])], dim=1)
    image = theirs.prepare_embeddings_for_image_generation(tokens_T[None, :-1])
    inputs = torch.cat([theirs.get_input_embeddings()(words), image], dim=1)
    hidden = theirs.model.language_model(inputs_embeds=inputs).last_hidden_state[:, ids.shape[1] :]
    logprobs: torch.Tensor = theirs.model.generation_head(hidden).float().log_softmax(-1)
    return logprobs[0].gather(1, tokens_T[:, None])[:, 0]


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
def test_a_cache_that_does_not_fit_is_given_up_before_the_next_is_made(
    policy: JanusPro, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
    held = []
    make = torch.Tensor.new_zeros

    def watched(like: torch.Tensor, shape: Any, **options: Any) -> torch.Tensor:
        held.append(len(alive))  # just before another is made
        made = make(like, shape, **options)
        alive.add(made)  # type: ignore[arg-type]
        return made

    monkeypatch.setattr(torch.Tensor, "new_zeros", watched)
    long = ["a prompt that takes some more slots than the others do"]
    for texts in (["x"], ["x"], long, ["x", "y"], ["x"]):
        noise = uniforms(len(texts))
        fixed = sample(policy, texts, noise, graphs=True)
        assert len(alive) == 1
        recorded = held.copy()
        free = sample(policy, texts, noise)
        assert torch.equal(fixed.tokens_BT, free.tokens_BT)
        held[:] = recorded
    assert held == [0] * 3  # the second batch took the first one's, the last one that of more rows


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


def test_a_prompt_longer_than_the_model_takes_is_refused(policy: JanusPro) -> None:
    with pytest.raises(ConfigError, match=r"a prompt of \d+ text tokens, and Janus reads 16347: 'xxx"):
        policy.start(["x" * 16_384])


def test_only_the_language_model_learns() -> None:
    config = settings("gcpo")
    learner = build_learner(config)
    names = {name for name, p in learner.policy.named_parameters() if p.requires_grad}  # type: ignore[attr-defined]
    assert names
    assert all(name.startswith("language_model.") for name in names)


def settings(method: str, *more: str) -> RunConfig:
    return resolve(None, ["policy.random_init=true", *more], {"method": method, "model": "janus-pro-tiny"}).config


SMALL = (
    "policy.random_init=true", "rewards=[{name: 'pixels:Redness'}]", "sampling.prompts_per_step=2",
    "sampling.group_size=4", "sampling.guidance_scale=2.0", "logging.tracked_prompts=1",
    "optimizer.learning_rate=1e-3", "optimizer.micro_batch_rows=3",
)  # fmt: skip


@pytest.fixture
def redness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pixels.py").write_text(REWARD, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


def train(cli: Cli, name: str, *overrides: str, method: str = "gcpo", steps: int = 3) -> None:
    options = [part for setting in (*SMALL, *overrides) for part in ("-o", setting)]
    base = ("train", "--model", "janus-pro-tiny", "--method", method, "--num-steps", str(steps), "--name", name)
    trained = cli(*base, *options)
    assert trained.code == 0, trained.err


@pytest.mark.parametrize("method", ["grpo", "gcpo", "gcpo-official"])
def test_it_trains_and_draws(cli: Cli, tmp_path: Path, redness: None, method: str) -> None:
    train(cli, "a", method=method)
    rows = runs.open_run("a", tmp_path / "runs").metrics()
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["loss/kl_all"] == pytest.approx(0, abs=1e-9)
    assert rows[2]["loss/kl_all"] > 0
    assert rows[0]["tokens/selected_fraction"] == pytest.approx({"grpo": 1.0}.get(method, 9 / 36))
    assert (rows[1]["tokens/unselected_gradient_share"] > 0) == (method == "gcpo-official")
    drawn = cli("sample", "a", "a photo of a red circle", "-n", "2", "--guidance", "2")
    assert drawn.code == 0, drawn.err


@pytest.mark.parametrize("options", [(), ("policy.lora={rank: 2}",), ("policy.dtype=bfloat16",)])
def test_a_resumed_run_is_the_unbroken_one(cli: Cli, tmp_path: Path, redness: None, options: tuple[str, ...]) -> None:
    train(cli, "whole", *options, steps=3)
    train(cli, "parts", *options, steps=1)
    resumed = cli("train", "--resume", "--name", "parts", "--num-steps", "3")
    assert resumed.code == 0, resumed.err
    whole, parts = (runs.open_run(name, tmp_path / "runs") for name in ("whole", "parts"))
    for file in ("policy.safetensors", "optimizer.pt"):
        assert (whole.checkpoint_path(3) / file).read_bytes() == (parts.checkpoint_path(3) / file).read_bytes()
    assert whole.metrics()[2]["reward/mean"] == parts.metrics()[2]["reward/mean"]


@torch.no_grad()
def test_in_bfloat16_sampled_logprobs_are_near_the_teacher_forced_ones() -> None:
    policy: Any = starts.start_policy(settings("gcpo", "policy.dtype=bfloat16"))
    for parameter in policy.parameters():
        parameter.mul_(5 if parameter.ndim > 1 else 1)
    samples = sample(policy, TEXTS, uniforms(3), guidance_scale=3.0)
    assert samples.logprobs_BT.dtype == samples.entropy_BT.dtype == torch.float32
    # two passes that round at other places; bfloat16 has 8 bits, logits here reach 10
    torch.testing.assert_close(samples.logprobs_BT, token_logprobs(policy, TEXTS, samples.tokens_BT), atol=0.05, rtol=0)


def test_adapters_alone_are_trained_and_kept_and_off_they_are_the_reference(
    cli: Cli, tmp_path: Path, redness: None
) -> None:
    train(cli, "a", "policy.lora={rank: 2, alpha: 4, targets: [q_proj, down_proj]}")
    run = runs.open_run("a", tmp_path / "runs")
    with safe_open(run.checkpoint_path(3) / "policy.safetensors", "pt") as file:
        names = set(file.keys())
    assert len(names) == 2 * 2 * 2  # layers, targets, matrices
    assert all("lora_" in name for name in names)
    trained, start = starts.load_policy(run), starts.start_policy(run.config)
    tokens = torch.randint(64, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        now, then = (token_logprobs(policy, TEXTS[:1], tokens) for policy in (trained, start))
        with lora.off(trained):  # type: ignore[arg-type]
            base = token_logprobs(trained, TEXTS[:1], tokens)
    assert not torch.allclose(now, then, atol=1e-4)
    assert torch.equal(base, then)
    assert cli("train", "--model", "janus-pro-tiny", "-o", f"policy.weights={run.path}").code == 2


def test_adapters_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="no layer 'w1'"):
        build_learner(settings("gcpo", "policy.lora={targets: [w1]}"))
    with pytest.raises(ConfigError, match="no part 'vision' to train"):
        build_learner(settings("gcpo", "policy.trained=vision"))
    with pytest.raises(ConfigError, match="takes no adapters"):
        build_learner(resolve(None, ["policy.lora={}"], {"model": "scenes-8"}).config)


def test_a_run_starts_from_what_another_has_trained(cli: Cli, tmp_path: Path, redness: None) -> None:
    train(cli, "first")
    train(cli, "second", "policy.random_init=false", "policy.weights=first", steps=1)
    first, second = (runs.open_run(name, tmp_path / "runs") for name in ("first", "second"))
    ours, theirs = starts.load_policy(first), starts.start_policy(second.config, tmp_path / "runs")
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):  # type: ignore[attr-defined]
        assert torch.equal(mine, other)


def test_what_is_frozen_is_that_of_the_start(cli: Cli, tmp_path: Path, redness: None, folder: Path) -> None:
    """A checkpoint lacks it, so other weights in the same place would make another policy."""
    train(cli, "a", "policy.random_init=false", f"policy.weights={folder}", steps=1)
    train(cli, "b", "policy.random_init=false", "policy.weights=a", steps=1)
    runs_of = {name: runs.open_run(name, tmp_path / "runs") for name in ("a", "b")}
    for run in runs_of.values():
        starts.load_policy(run)
    path = next(path for path in folder.glob("*.safetensors") if any("vqmodel" in name for name in load_file(path)))
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    for run in runs_of.values():
        with pytest.raises(RunError, match=r"runs/a began from weights xxh3:.*, and where they were now lie xxh3:"):
            starts.load_policy(run)
    for command in (("sample", "a", "x"), ("train", "--resume", "--name", "b", "--num-steps", "2")):
        refused = cli(*command)
        assert (refused.code, len(refused.err.splitlines())) == (2, 2)
        assert "put the first ones back" in refused.err


def test_recomputed_activations_change_no_gradient(policy: JanusPro) -> None:
    tokens = torch.randint(64, (3, TOKENS), generator=torch.Generator().manual_seed(0))
    parameters = [p for name, p in policy.named_parameters() if name.startswith("language_model.layers")]
    found = []
    for choice in ("never", "always"):
        policy.recompute = choice
        found.append(torch.autograd.grad(token_logprobs(policy, TEXTS, tokens).sum(), parameters))
    policy.recompute = "auto"
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


# ---------------------------------------------------------------- published weights


@pytest.fixture
def folder(policy: JanusPro, tmp_path: Path) -> Path:
    """Random weights as transformers saves Janus, in two files, with a tokenizer."""
    made = publish(policy, tmp_path / "Janus-tiny", max_shard_size="250KB")
    assert len(list(made.glob("*.safetensors"))) > 1
    return made


def publish(policy: JanusPro, made: Path, **options: Any) -> Path:
    config = SIZES["janus-pro-tiny"].config()
    vision: Any = config.vision_config
    vision.num_hidden_layers, vision.hidden_size = 1, 64
    model = JanusForConditionalGeneration(config)
    model.load_state_dict({f"model.{name}": t for name, t in policy.state_dict().items()}, strict=False)
    model.save_pretrained(made, **options)
    byte_tokenizer().save_pretrained(made)
    return made


def start_from(folder: Path, *more: str) -> JanusPro:
    config = resolve(None, [f"policy.weights={folder}", *more], {"model": "janus-pro-tiny"}).config
    return starts.start_policy(config)  # type: ignore[return-value]


def test_published_weights_are_read(policy: JanusPro, folder: Path) -> None:
    read = start_from(folder)
    for name, tensor in policy.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    assert read.tokenizer.convert_tokens_to_ids("<begin_of_image>") == policy.begin_of_image
    assert start_from(folder, "policy.dtype=bfloat16").generation_embeddings.weight.dtype == torch.bfloat16


@torch.no_grad()
def test_in_bfloat16_a_whole_image_is_that_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Head width and positions of the published models, where a rotary rate in bfloat16 is an angle wrong by 0.7."""
    size = replace(SIZES["janus-pro-tiny"], width=256, heads=2, side=24)
    monkeypatch.setitem(SIZES, "janus-pro-tiny", size)
    exact = make_policy()
    folder = publish(exact, tmp_path / "wide")
    published = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).train(mode=False)
    policy = start_from(folder, "policy.dtype=bfloat16")
    text, tokens_T = TEXTS[1], torch.randint(64, (24 * 24,), generator=torch.Generator().manual_seed(1))
    exact_T, ours_T = (token_logprobs(each, [text], tokens_T[None])[0] for each in (exact, policy))
    theirs_T = their_logprobs(published, policy, text, tokens_T)
    ours, theirs = (float((found_T - exact_T).abs().mean()) for found_T in (ours_T, theirs_T))
    assert ours < 1.1 * theirs < 0.04  # rounding of activations, no more of it than theirs; with rounded rates 0.15
    torch.testing.assert_close(ours_T, theirs_T, atol=0.1, rtol=0)
    samples = sample(policy, [text], torch.rand(1, 24 * 24, generator=torch.Generator().manual_seed(0)))
    again_BT = token_logprobs(policy, [text], samples.tokens_BT)
    torch.testing.assert_close(samples.logprobs_BT, again_BT, atol=0.1, rtol=0)


def test_published_weights_that_are_not_whole_or_not_janus_are_refused(folder: Path) -> None:
    first = next(
        path for path in sorted(folder.glob("*.safetensors")) if "language_model" in str(load_file(path).keys())
    )
    content = first.read_bytes()
    first.write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptDataError, match="is no safetensors file, or cut off"):
        start_from(folder)
    first.unlink()
    with pytest.raises(CorruptDataError, match="is not whole"):
        start_from(folder)
    first.write_bytes(content)
    tensors = load_file(first)
    name = next(name for name in tensors if "language_model" in name)
    save_file({**tensors, name: tensors[name][:-1].clone()}, first)
    with pytest.raises(CorruptDataError, match=f"1 tensors differ, first '{name}'"):
        start_from(folder)
    save_file({**tensors, "model.language_model.new": torch.zeros(1)}, first)
    with pytest.raises(CorruptDataError, match=r"first 'model\.language_model\.new'"):
        start_from(folder)
    save_file(tensors, first)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(ConfigError, match="holds a 'llama' checkpoint, not 'janus'"):
        start_from(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ConfigError, match=r"no \.safetensors file, only pytorch_model\.bin"):
        start_from(folder)


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """The folder in one file, its tensors changed."""
    tensors = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        path.unlink()
    save_file(change(tensors), folder / "model.safetensors")
    return folder


def test_of_a_new_file_and_an_old_index_the_one_that_transformers_reads_is_taken(
    policy: JanusPro, folder: Path, tmp_path: Path
) -> None:
    """Saving a second time, in one file, leaves the index of the first."""
    other = make_policy()
    with torch.no_grad():
        other.generation_embeddings.weight.add_(1)
    publish(other, folder)
    assert (folder / "model.safetensors.index.json").is_file()
    assert torch.equal(start_from(folder).generation_embeddings.weight, other.generation_embeddings.weight)
    theirs = JanusForConditionalGeneration.from_pretrained(folder).model.generation_embeddings.weight
    assert torch.equal(theirs, other.generation_embeddings.weight)


def test_a_folder_of_two_models_is_refused(policy: JanusPro, folder: Path, tmp_path: Path) -> None:
    new = publish(policy, tmp_path / "new")
    (new / "model.safetensors").rename(folder / "model.safetensors")
    for use in (start_from, published.digest):
        with pytest.raises(CorruptDataError, match=r"holds two models: model\.safetensors, which transformers reads"):
            use(folder)


@pytest.mark.parametrize(
    "wrapper",
    ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.", "module._orig_mod.", "_orig_mod.module."],
)
def test_names_that_training_programs_wrap_are_read(policy: JanusPro, folder: Path, wrapper: str) -> None:
    changed(folder, lambda tensors: {f"{wrapper}{name}": tensor for name, tensor in tensors.items()})
    for name, tensor in start_from(folder).state_dict().items():
        assert torch.equal(tensor, policy.state_dict()[name]), name


def test_wrappers_inside_a_name_are_read(policy: JanusPro, folder: Path) -> None:
    inside = "model.language_model.layers.0."
    changed(folder, lambda given: {n.replace(inside, f"{inside}_fsdp_wrapped_module."): t for n, t in given.items()})
    for name, tensor in start_from(folder).state_dict().items():
        assert torch.equal(tensor, policy.state_dict()[name]), name


def test_tensors_under_wrapped_and_plain_names_are_refused(folder: Path) -> None:
    changed(folder, lambda given: {**given, **{f"module.{name}": tensor + 1 for name, tensor in given.items()}})
    with pytest.raises(CorruptDataError, match="under the names of two programs"):
        start_from(folder)


@pytest.mark.parametrize("beside", [True, False])
def test_adapters_of_peft_are_refused_as_what_they_are(folder: Path, tmp_path: Path, cli: Cli, beside: bool) -> None:
    place = folder if beside else tmp_path / "adapters"
    place.mkdir(exist_ok=True)
    (place / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "a/Janus"}')
    save_file({"base_model.model.q_proj.lora_A.weight": torch.zeros(2, 2)}, place / "adapter_model.safetensors")
    refused = cli("train", "--model", "janus-pro-tiny", "-o", f"policy.weights={place}")
    assert refused.code == 2
    assert f"error: {place} holds PEFT adapters of a/Janus, which are not read" in refused.err
    assert "merge_and_unload" in refused.err


def test_adapters_that_are_not_merged_are_refused(folder: Path) -> None:
    changed(folder, lambda given: {**given, "base_model.model.model.q_proj.lora_A.default.weight": torch.zeros(2, 2)})
    with pytest.raises(ConfigError, match=r"holds adapters that are not merged, first 'model\.q_proj\.lora_A"):
        start_from(folder)


def test_deepseeks_own_format_is_told_from_another_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "multi_modality"}))
    with pytest.raises(ConfigError, match=r"a Janus under DeepSeek's own names \('multi_modality'\)") as error:
        start_from(folder)
    assert "deepseek-community/Janus-Pro-1B" in error.value.hint


def test_a_padded_vocabulary_is_told_from_another_model(folder: Path) -> None:
    name = "model.language_model.embed_tokens.weight"
    changed(folder, lambda given: {**given, name: torch.cat([given[name], given[name][:64]])})
    with pytest.raises(CorruptDataError, match=f"'{name}' has 384 rows, the model's 320: it was padded") as error:
        start_from(folder)
    assert "resize_token_embeddings(320)" in error.value.hint


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (["<｜▁pad▁｜>"], r"does not know '<｜▁pad▁｜>'"),
        (["<｜begin▁of▁sentence｜>"], r"does not know '<｜begin▁of▁sentence｜>'"),
        (
            ["<｜begin▁of▁sentence｜>", "<begin_of_image>"],
            r"does not know '<｜begin▁of▁sentence｜>' and '<begin_of_image>'",
        ),
        ([], r"numbers words up to 320, and the model has 320"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(folder: Path, cli: Cli, drop: list[str], message: str) -> None:
    """Special tokens that are not there would be given the next free numbers."""
    path = folder / "tokenizer.json"
    words = json.loads(path.read_text())
    words["added_tokens"] = [each for each in words["added_tokens"] if each["content"] not in drop]
    if not drop:
        words["model"]["vocab"]["beyond"] = 320
    path.write_text(json.dumps(words))
    with pytest.raises(CorruptDataError, match=message):
        start_from(folder)
    assert cli("train", "--model", "janus-pro-tiny", "-o", f"policy.weights={folder}").code == 5


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("text_config", "num_attention_heads"), 8, r"first 'text_config\.head_dim' \(file 8, model 16\)"),
        (("text_config", "num_key_value_heads"), 2, r"first 'text_config\.num_key_value_heads' \(file 2, model 4\)"),
        (("text_config", "rms_norm_eps"), 1e-5, r"first 'text_config\.rms_norm_eps' \(file 1e-05, model 1e-06\)"),
        (("text_config", "hidden_act"), "gelu", r"first 'text_config\.hidden_act' \(file gelu, model silu\)"),
        (("text_config", "rope_parameters", "rope_theta"), 5e5, r"rope_theta' \(file 500000\.0, model 10000\.0\)"),
        (("text_config", "rope_parameters", "factor"), 2.0, r"factor' \(file 2\.0, model none\)"),
        (("vision_config", "image_size"), 16, r"first 'vq_config\.num_patches' \(file 8, model 6\)"),
    ],
)
def test_a_configuration_that_makes_the_tensors_another_model_is_refused(
    folder: Path, path: tuple[str, ...], value: Any, message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    place = config
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    if path[-1] == "num_attention_heads":
        del place["head_dim"]  # which is then the width's share
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptDataError, match=rf"settings of config\.json differ, .*{message}"):
        start_from(folder)


def test_rotary_settings_in_their_older_form_are_understood(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["rope_parameters"]
    config["text_config"] |= {"rope_theta": 10_000, "rope_scaling": None}
    (folder / "config.json").write_text(json.dumps(config))
    start_from(folder)
    config["text_config"]["rope_theta"] = 500_000
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptDataError, match="rope_theta"):
        start_from(folder)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (lambda tensor: tensor.mul(torch.nan), "holds numbers that are not finite"),
        (lambda tensor: tensor.index_fill(0, torch.tensor([0]), -torch.inf), "holds numbers that are not finite"),
        (lambda tensor: tensor.int(), r"1 tensors are no floating point numbers, first '.*' \(I32\)"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(folder: Path, cli: Cli, numbers: Any, message: str) -> None:
    path = next(path for path in folder.glob("*.safetensors") if any("norm" in name for name in load_file(path)))
    tensors = load_file(path)
    name = next(name for name in tensors if "norm" in name)
    save_file({**tensors, name: numbers(tensors[name])}, path)
    with pytest.raises(CorruptDataError, match=message) as error:
        start_from(folder)
    assert name in str(error.value)
    assert cli("train", "--model", "janus-pro-tiny", "-o", f"policy.weights={folder}").code == 5


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "[]"),
        ("config.json", '{"model_type": "janus", "text_config": [1]}'),
        ("model.safetensors.index.json", "[1]"),
        ("model.safetensors.index.json", '{"weight_map": 3}'),
    ],
)
def test_damaged_json_is_told_in_one_line(folder: Path, cli: Cli, name: str, text: str) -> None:
    (folder / name).write_text(text)
    refused = cli("train", "--model", "janus-pro-tiny", "-o", f"policy.weights={folder}")
    assert refused.code == 5
    assert f"{name} is damaged" in refused.err
    assert [line.partition(":")[0] for line in refused.err.splitlines()[-2:]] == ["error", "hint"]


def test_a_model_without_weights_says_what_to_give(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path))
    monkeypatch.setattr("gcpo_bench.training.memory.free_memory_bytes", lambda: 10**12)
    refused = cli("train", "--model", "janus-pro-1b")
    assert refused.code == 4
    assert "there are no weights of janus-pro-1b here" in refused.err
    assert "gcpo-bench models fetch janus-pro-1b" in refused.err
    assert not (tmp_path / "runs").exists()

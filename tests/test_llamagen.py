"""LlamaGen in miniature: random weights in the real classes, against a written-out pass, as files, in the loop."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import JanusVQVAE, JanusVQVAEConfig, T5ForConditionalGeneration

from gcpo_bench import runs
from gcpo_bench.catalogue import CATALOGUE
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError
from gcpo_bench.resolve import resolve
from gcpo_bench.training import checkpoints, estimate, graphs, memory, starts
from gcpo_bench.training.decoding import sample, sample_in_batches
from gcpo_bench.training.logprobs import token_logprobs
from gcpo_bench.training.policies import llamagen_text
from gcpo_bench.training.policies.llamagen import SIZES, LlamaGen, build, places
from gcpo_bench.training.policies.llamagen_checkpoint import convert
from gcpo_bench.training.policies.llamagen_text import clean
from gcpo_bench.weights import RECORD, Weights, files_of, local

from .conftest import Cli
from .hub_server import serving
from .reference import llamagen as reference

TEXTS = ["a red circle", "two very big blue squares beside a dog", "x"]
TOKENS = 16
CPU = torch.device("cpu")


def make_policy() -> LlamaGen:
    made = build("llamagen-tiny")
    made.train(mode=False)
    made.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in made.transformer.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)  # so that what is attended to changes what comes out
    return made


@pytest.fixture(scope="module")
def policy() -> LlamaGen:
    return make_policy()


def uniforms(rows: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, TOKENS, generator=torch.Generator().manual_seed(seed))


def random_tokens(rows: int) -> Tensor:
    return torch.randint(0, 64, (rows, TOKENS), generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- the transformer


@torch.no_grad()
def test_logits_are_those_of_the_written_out_pass() -> None:
    policies = {dtype: make_policy().to(dtype) for dtype in (torch.float32, torch.float64)}
    texts, tokens_BT = TEXTS[1:], random_tokens(2)
    forced = {dtype: policy.head(policy.hidden(texts, tokens_BT)) for dtype, policy in policies.items()}
    decoded = {dtype: decode(policy, texts, tokens_BT) for dtype, policy in policies.items()}
    weights = policies[torch.float64].transformer.state_dict()
    for row, (text, tokens_T) in enumerate(zip(texts, tokens_BT.tolist(), strict=True)):
        states = policies[torch.float64].text(text, CPU).double()
        conditional = reference.logits(weights, states, tokens_T, heads=4, side=4)
        unconditional = reference.logits(weights, states, tokens_T, heads=4, side=4, unconditional=True)
        assert conditional.std() > 0.5
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
            torch.testing.assert_close(forced[dtype][row].double(), conditional, atol=tolerance, rtol=0)
            torch.testing.assert_close(decoded[dtype][row].double(), conditional, atol=tolerance, rtol=0)
            torch.testing.assert_close(decoded[dtype][2 + row].double(), unconditional, atol=tolerance, rtol=0)


def decode(policy: LlamaGen, texts: list[str], tokens_BT: Tensor) -> Tensor:
    """Logits (2B, T, V) of given tokens by cached steps, conditional rows first."""
    state = policy.start(texts, guided=True)
    first = policy.step(state, None)
    others = [policy.step(state, torch.cat([tokens_B, tokens_B])) for tokens_B in tokens_BT.T[:-1]]
    return torch.stack([first, *others], dim=1)


def test_gradients_are_those_of_the_written_out_pass() -> None:
    """Two rows share a prompt, which is read once: what both say about it must add up."""
    policy = make_policy().double()
    texts, tokens_BT = ["x", "x"], random_tokens(2)[:, :6]
    weights = {name: tensor.clone().requires_grad_() for name, tensor in policy.transformer.state_dict().items()}
    states = policy.text("x", CPU).double()
    total = torch.zeros((), dtype=torch.float64)
    for tokens_T in tokens_BT:
        logits_TV = reference.logits(weights, states, tokens_T.tolist(), heads=4, side=4)
        total = total + logits_TV.log_softmax(-1).gather(-1, tokens_T[:, None]).sum()
    logits_BTV = policy.head(policy.hidden(texts, tokens_BT))
    ours = logits_BTV.log_softmax(-1).gather(-1, tokens_BT[..., None]).sum()
    names, parameters = zip(*policy.transformer.named_parameters(), strict=True)
    found_ones = torch.autograd.grad(ours, parameters)
    expected_ones = torch.autograd.grad(total, [weights[name] for name in names])
    for name, found, expected in zip(names, found_ones, expected_ones, strict=True):
        assert torch.allclose(found, expected, atol=1e-10, rtol=1e-9), name


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_sampled_logprobs_are_the_teacher_forced_ones(policy: LlamaGen, guidance: float) -> None:
    samples = sample(policy, TEXTS, uniforms(3), guidance_scale=guidance)
    torch.testing.assert_close(samples.logprobs_BT, token_logprobs(policy, TEXTS, samples.tokens_BT), atol=1e-4, rtol=0)
    assert len(torch.unique(samples.tokens_BT)) > 10


@torch.no_grad()
def test_in_bfloat16_they_differ_by_rounding_only() -> None:
    policy = make_policy().bfloat16()
    samples = sample(policy, TEXTS, uniforms(3))
    difference = (samples.logprobs_BT - token_logprobs(policy, TEXTS, samples.tokens_BT)).abs()
    assert policy.hidden(TEXTS, samples.tokens_BT).dtype == torch.bfloat16
    assert difference.max() < 0.05


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(policy: LlamaGen, guidance: float) -> None:
    texts = [text for text in TEXTS for _ in range(2)]
    whole = sample(policy, texts, uniforms(6), guidance_scale=guidance)
    for rows in (1, 4):
        parts = sample_in_batches(policy, texts, uniforms(6), batch_rows=rows, guidance_scale=guidance)
        assert torch.equal(parts.tokens_BT, whole.tokens_BT)
        torch.testing.assert_close(parts.logprobs_BT, whole.logprobs_BT, atol=1e-5, rtol=0)
        torch.testing.assert_close(parts.entropy_BT, whole.entropy_BT, atol=1e-5, rtol=0)
    alone = torch.cat([policy.hidden([text], row[None]) for text, row in zip(texts, whole.tokens_BT, strict=True)])
    torch.testing.assert_close(policy.hidden(texts, whole.tokens_BT), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_steps_of_fixed_shapes_draw_the_same(
    policy: LlamaGen, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    monkeypatch.setattr(graphs, "BUCKET", 8)  # several within an image
    long = [f"{text} and one more very long text" for text in TEXTS]
    for seed, texts in enumerate((TEXTS, TEXTS[::-1], long, TEXTS[:2])):  # the second batch reuses the first's memory
        noise = uniforms(len(texts), seed)
        free = sample(policy, texts, noise, guidance_scale=guidance)
        fixed = sample(policy, texts, noise, guidance_scale=guidance, graphs=True)
        assert torch.equal(fixed.tokens_BT, free.tokens_BT)
        torch.testing.assert_close(fixed.logprobs_BT, free.logprobs_BT, atol=1e-5, rtol=0)
        torch.testing.assert_close(fixed.entropy_BT, free.entropy_BT, atol=1e-5, rtol=0)


def test_recomputed_activations_change_no_gradient(policy: LlamaGen) -> None:
    parameters = list(policy.transformer.parameters())
    found = []
    for choice in ("never", "always"):
        policy.recompute = choice
        found.append(torch.autograd.grad(token_logprobs(policy, TEXTS, random_tokens(3)).sum(), parameters))
    policy.recompute = "auto"
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@torch.no_grad()
def test_a_hidden_state_depends_on_the_tokens_before_it_only(policy: LlamaGen) -> None:
    tokens_BT = random_tokens(3)
    whole = policy.hidden(TEXTS, tokens_BT)
    for length in (1, 5):
        part = policy.hidden(TEXTS, tokens_BT[:, :length])
        torch.testing.assert_close(part, whole[:, :length], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_prompt_is_read_once_and_guidance_1_reads_no_unconditional_one(policy: LlamaGen) -> None:
    read: list[int] = []
    hook = policy.transformer.cls_embedding.cap_proj.register_forward_hook(lambda *call: read.append(len(call[2])))
    try:
        state = policy.start(["x", "a cat", "x", "x"])
        assert len(policy.step(state, None)) == 4
        state = policy.start(["x", "a cat", "x", "x"], guided=True)
        assert len(policy.step(state, None)) == 8
        policy.hidden(["x", "a cat", "x", "x"], random_tokens(4))
    finally:
        hook.remove()
    assert read == [2, 4, 2]


@torch.no_grad()
def test_the_unconditional_branch_knows_the_length_of_the_prompt_and_nothing_else(policy: LlamaGen) -> None:
    state = policy.start(["red", "cat", "a longer prompt"], guided=True)
    conditional, unconditional = policy.step(state, None).chunk(2)
    torch.testing.assert_close(unconditional[0], unconditional[1])
    assert not torch.allclose(unconditional[0], unconditional[2], atol=1e-3)
    assert not torch.allclose(conditional[0], conditional[1], atol=1e-3)


def test_training_mode_changes_nothing(policy: LlamaGen) -> None:
    assert not [module for module in policy.modules() if isinstance(module, nn.Dropout)]
    other = copy.deepcopy(policy).train()
    tokens_BT = random_tokens(3)
    assert torch.equal(other.hidden(TEXTS, tokens_BT), policy.hidden(TEXTS, tokens_BT))


@pytest.mark.parametrize(("name", "side", "head_dim"), [("llamagen-xl-512", 32, 64), ("llamagen-xl-256", 16, 64)])
def test_places_of_a_grid_are_its_rows_and_columns(name: str, side: int, head_dim: int) -> None:
    size = SIZES[name]
    assert (size.side, size.width // size.heads) == (side, head_dim)
    turns_TF = places(side, head_dim, CPU, torch.float64)
    expected = torch.tensor([reference.turns(place, side, head_dim) for place in range(side * side)])
    torch.testing.assert_close(turns_TF, expected.to(torch.complex128), atol=1e-6, rtol=0)
    single_TF = places(side, head_dim, CPU, torch.float32)
    torch.testing.assert_close(single_TF.to(torch.complex128), turns_TF, atol=1e-7, rtol=0)


# ---------------------------------------------------------------- names, sizes, pixels


def published_transformer_shapes(layers: int, width: int, mlp: int, caption: int, codes: int) -> dict[str, Any]:
    shapes: dict[str, Any] = {
        "cls_embedding.uncond_embedding": (120, caption),
        "cls_embedding.cap_proj.fc1.weight": (width, caption),
        "cls_embedding.cap_proj.fc2.weight": (width, width),
        "tok_embeddings.weight": (codes, width),
        "norm.weight": (width,),
        "output.weight": (codes, width),
    }
    for layer in range(layers):
        shapes |= {
            f"layers.{layer}.attention.wqkv.weight": (3 * width, width),
            f"layers.{layer}.attention.wo.weight": (width, width),
            f"layers.{layer}.feed_forward.w1.weight": (mlp, width),
            f"layers.{layer}.feed_forward.w3.weight": (mlp, width),
            f"layers.{layer}.feed_forward.w2.weight": (width, mlp),
            f"layers.{layer}.attention_norm.weight": (width,),
            f"layers.{layer}.ffn_norm.weight": (width,),
        }
    return shapes


def published_tokenizer_shapes() -> dict[str, Any]:
    """What of `vq_ds16_t2i.pt` makes pixels: widths 512, 256, 256, 128, 128 from 16 px tokens to pixels."""
    shapes: dict[str, Any] = {"quantize.embedding.weight": (16_384, 8)}

    def convolution(name: str, width: int, out: int, side: int) -> None:
        shapes.update({f"{name}.weight": (out, width, side, side), f"{name}.bias": (out,)})

    def residual(name: str, width: int, out: int) -> None:
        shapes.update({f"{name}.norm1.{part}": (width,) for part in ("weight", "bias")})
        convolution(f"{name}.conv1", width, out, 3)
        shapes.update({f"{name}.norm2.{part}": (out,) for part in ("weight", "bias")})
        convolution(f"{name}.conv2", out, out, 3)
        if width != out:
            convolution(f"{name}.nin_shortcut", width, out, 1)

    def attention(name: str) -> None:
        shapes.update({f"{name}.norm.{part}": (512,) for part in ("weight", "bias")})
        for part in ("q", "k", "v", "proj_out"):
            convolution(f"{name}.{part}", 512, 512, 1)

    convolution("post_quant_conv", 8, 256, 1)
    convolution("decoder.conv_in", 256, 512, 3)
    residual("decoder.mid.0", 512, 512)
    attention("decoder.mid.1")
    residual("decoder.mid.2", 512, 512)
    width = 512
    for level, out in enumerate((512, 256, 256, 128, 128)):
        for block in range(3):
            residual(f"decoder.conv_blocks.{level}.res.{block}", width, out)
            width = out
            if level == 0:
                attention(f"decoder.conv_blocks.0.attn.{block}")
        if level < 4:
            convolution(f"decoder.conv_blocks.{level}.upsample.conv", out, out, 3)
    shapes.update({f"decoder.norm_out.{part}": (128,) for part in ("weight", "bias")})
    convolution("decoder.conv_out", 128, 3, 3)
    return shapes


def shapes_of(module: nn.Module) -> dict[str, Any]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", ["llamagen-xl-256", "llamagen-xl-512"])
def test_the_full_model_has_the_published_names_shapes_and_size(name: str) -> None:
    with torch.device("meta"):
        policy = build(name)
    assert all(tensor.is_meta for tensor in policy.state_dict().values())
    assert shapes_of(policy.transformer) == published_transformer_shapes(36, 1280, 3584, 2048, 16_384)
    assert shapes_of(policy.vqmodel) == published_tokenizer_shapes()
    count = sum(parameter.numel() for parameter in policy.transformer.parameters())
    # 36 layers of 4 x 1280^2 + 3 x 1280 x 3584 + 2 x 1280, 2 x 16384 x 1280 for codes, 2048 x 1280 + 1280^2 for text
    assert count == 36 * (4 * 1280**2 + 3 * 1280 * 3584 + 2 * 1280) + 2 * 16_384 * 1280 + 3328 * 1280 + 1280
    assert count == 777_678_080
    # with the unconditional states, 4 bytes each: the 3.11 GB of the published files
    assert round(4 * (count + 120 * 2048) / 1e7) == 311
    # the published 775M counts the class-conditional sibling: 1,001 classes in place of the text
    assert round((count - 3328 * 1280 + 1001 * 1280) / 1e6) == 775
    assert policy.work().parameters == count - 16_384 * 1280 - 3328 * 1280 - 1280
    assert policy.work().cache_per_slot == 2 * 36 * 1280  # 180 KiB in bfloat16


def test_the_image_tokenizer_with_its_encoder_has_the_published_size() -> None:
    """72M: transformers' copy of the same architecture, whose other half is ours."""
    with torch.device("meta"):
        whole, ours = JanusVQVAE(JanusVQVAEConfig()), build("llamagen-xl-256").vqmodel
    count = sum(parameter.numel() for parameter in whole.parameters())
    encoder = sum(p.numel() for name, p in whole.named_parameters() if name.startswith(("encoder.", "quant_conv.")))
    assert round(count / 1e6) == 72
    assert round(4 * (count + 65_536) / 1e6) == 288  # MB of the published file, with its count of codes
    assert sum(parameter.numel() for parameter in ours.parameters()) == count - encoder


@torch.no_grad()
def test_pixels_are_those_of_transformers_copy_of_the_tokenizer(policy: LlamaGen) -> None:
    size = SIZES["llamagen-tiny"]
    theirs = JanusVQVAE(
        JanusVQVAEConfig(
            num_embeddings=size.codes,
            base_channels=size.channels,
            channel_multiplier=list(size.multipliers),
            latent_channels=size.latent,
            num_patches=4,
        )
    )
    theirs.train(mode=False)
    names = {"mid.0.": "mid.block_1.", "mid.1.": "mid.attn_1.", "mid.2.": "mid.block_2."}
    names |= {".conv_blocks.": ".up.", ".res.": ".block."}
    state = {}
    for name, tensor in policy.vqmodel.state_dict().items():
        for published, other in names.items():
            name = name.replace(published, other)
        state[name] = tensor
    loaded = theirs.load_state_dict(state, strict=False)
    assert loaded.unexpected_keys == []
    assert all(name.startswith(("encoder.", "quant_conv.")) for name in loaded.missing_keys)
    tokens_BT = random_tokens(3)
    codes: Any = tokens_BT
    expected = (127.5 * theirs.decode(codes) + 128).clip(0, 255).permute(0, 2, 3, 1).numpy()
    images_BYXC = policy.decode(tokens_BT)
    assert images_BYXC.shape == (3, 8, 8, 3)
    assert images_BYXC.dtype == np.uint8
    assert images_BYXC.std() > 20
    assert np.abs(images_BYXC - np.floor(expected)).max() <= 1


@torch.no_grad()
def test_embeddings_are_rows_of_the_two_tables(policy: LlamaGen) -> None:
    tokens_BT = random_tokens(2)
    assert torch.equal(policy.embed(tokens_BT, "projected"), policy.transformer.tok_embeddings.weight[tokens_BT])
    codes = policy.embed(tokens_BT, "codebook")
    table = policy.vqmodel.quantize.embedding.weight[tokens_BT]
    torch.testing.assert_close(codes * table.norm(dim=-1, keepdim=True), table)
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(2, TOKENS))


# ---------------------------------------------------------------- text


def test_the_text_encoder_is_no_part_of_the_policy(policy: LlamaGen) -> None:
    assert {name.partition(".")[0] for name in policy.state_dict()} == {"transformer", "vqmodel"}
    assert copy.deepcopy(policy).text is policy.text
    assert not any("T5" in type(module).__name__ for module in policy.modules())


def test_a_text_is_encoded_once_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamagen_text, "CACHED_TEXTS", 4)
    encoder = llamagen_text.random(32)
    first = encoder("a dog", CPU)
    assert first.shape == (6, 32)  # five bytes and the end of text
    assert encoder("a dog", CPU) is first
    for text in ("1", "2", "3"):
        encoder(text, CPU)
    assert encoder("a dog", CPU) is first  # read again, so not the oldest
    for text in ("4", "5", "6"):
        encoder(text, CPU)
    assert encoder("a dog", CPU) is first
    for text in ("7", "8", "9", "10"):
        encoder(text, CPU)
    again = encoder("a dog", CPU)
    assert again is not first
    assert torch.equal(again, first)
    assert len(encoder._states) == 4


def test_states_read_in_inference_mode_can_be_trained_with() -> None:
    policy = make_policy()
    places.cache_clear()
    with torch.inference_mode():
        samples = sample(policy, TEXTS, uniforms(3))
    token_logprobs(policy, TEXTS, samples.tokens_BT.clone()).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in policy.transformer.parameters())


def test_the_longest_prompt_fits_and_a_longer_one_is_refused(policy: LlamaGen) -> None:
    tokens_BT = random_tokens(1)
    assert policy.hidden(["x" * 119], tokens_BT).isfinite().all()
    with pytest.raises(ConfigError, match=r"a prompt of 121 text tokens, and LlamaGen reads 120: 'xxx") as refused:
        policy.hidden(["x" * 120], tokens_BT)
    assert "shorten the prompt" in refused.value.hint


@pytest.fixture
def models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path))
    return tmp_path / "weights"


def test_a_text_encoder_that_is_not_there_is_named_before_the_run_and_not_downloaded(
    entry: Weights, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = replace(SIZES["llamagen-tiny"], caption=llamagen_text.WIDTH)
    monkeypatch.setitem(SIZES, "llamagen-tiny", wide)
    made = build("llamagen-tiny")
    made.initialize(torch.Generator().manual_seed(0))
    source = write_published(made, tmp_path / "stick", *PUBLISHED)
    tokenizer, encoder = llamagen_text.random(32)._load()
    repository = tmp_path / "flan-t5"
    tokenizer.save_pretrained(repository)
    encoder.save_pretrained(repository)
    name = ("--name", "a", "-o", "rewards=[{name: redness}]")
    monkeypatch.setattr(estimate, "LARGE_PARAMETERS", 0)  # as for a model that is too large to try a step of
    with serving(monkeypatch) as hub:
        hub.repositories["google/flan-t5-xl"] = repository
        for _ in range(2):  # without the policy's weights, and with them
            told = cli("train", "--model", "llamagen-tiny", *name, "--dry-run")
            assert "gcpo-bench models fetch flan-t5-xl" in " ".join(told.out.split())
            assert cli("models", "fetch", "llamagen-tiny", "--from", str(source)).code == 0
        refused = cli("train", "--model", "llamagen-tiny", *name)
        assert refused.code == 4
        assert "the text encoder of LlamaGen" in refused.err
        assert "hint: gcpo-bench models fetch flan-t5-xl" in refused.err
        assert len(refused.err.splitlines()) == 2
        drawn = cli("sample", "llamagen-tiny", "a dog")
        assert (drawn.code, drawn.err) == (4, refused.err)
        with pytest.raises(PrerequisiteError, match="the text encoder of LlamaGen"):
            LlamaGen(SIZES["llamagen-tiny"], llamagen_text.flan_t5()).start(["x"])
        assert hub.served == []
    assert not (tmp_path / "runs").exists()
    (tmp_path / "weights" / "flan-t5-xl").mkdir()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "weights" / "flan-t5-xl" / file).write_text("{}", encoding="utf-8")
    damaged = cli("sample", "llamagen-tiny", "a dog")
    assert (damaged.code, len(damaged.err.splitlines())) == (5, 2)
    assert "flan-t5-xl cannot be loaded" in damaged.err


def test_a_fetched_text_encoder_is_the_encoder_half_of_t5(cli: Cli, models_folder: Path, tmp_path: Path) -> None:
    tokenizer, encoder = llamagen_text.random(32)._load()
    whole = T5ForConditionalGeneration(encoder.config)
    whole.load_state_dict(encoder.state_dict(), strict=False)
    source = tmp_path / "stick"
    tokenizer.save_pretrained(source)
    whole.save_pretrained(source)
    fetched = cli("models", "fetch", "flan-t5-xl", "--from", str(source))
    assert fetched.code == 0, fetched.err
    assert "next:" not in fetched.err
    states = llamagen_text.flan_t5()("a dog", CPU)
    assert states.dtype == torch.bfloat16
    torch.testing.assert_close(states.float(), llamagen_text.random(32)("a dog", CPU), atol=0.1, rtol=0)


def test_templates_differ_and_an_unknown_one_is_refused() -> None:
    assert build("llamagen-tiny").template.format(text="a dog") == "a dog"
    released = build("llamagen-tiny", template="gcpo").template.format(text="two {x}")
    assert clean(clean(released)) == "< >a photo of two x < soi >"
    with pytest.raises(ConfigError, match="unknown template 'janus'"):
        build("llamagen-tiny", template="janus")


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("A photo of a Bench.", "a photo of a bench."),
        ("a dog (brown) & a cat / a cow", "a dog brown a cat a cow"),
        ("see https://foo.com/x-y for <b>more</b> &lt;3", "see for more <3"),
        ("sunset_by_the_sea_shore.jpg from @nick", "from"),
        ("a-b_c-d-e", "a b c d e"),
        ("a “quoted” word—and ‘another’", 'a "quoted" word-and \'another'),
        ("free shipping, item ab1234, 20x30 cm, 1234567", "item , cm"),
        ("50%25 of 100%", "50% of 100%"),
        ("中文 dog", "dog"),
        ("", ""),
    ],
)
def test_captions_are_cleaned_as_released(caption: str, cleaned: str) -> None:
    assert clean(clean(caption)) == cleaned


# ---------------------------------------------------------------- published files


Wrap = Callable[[dict[str, Tensor]], Any]


def as_hugging_face(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names in which jadohu/LlamaGen-T2I holds a transformer."""
    layer_names = {
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    top_names = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("layers."):
            _, layer, part = name.removesuffix(".weight").split(".", 2)
            if part == "attention.wqkv":
                for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                    renamed[f"model.layers.{layer}.self_attn.{letter}_proj.weight"] = rows.contiguous()
            else:
                renamed[f"model.layers.{layer}.{layer_names[part]}.weight"] = tensor
        elif name.startswith("cls_embedding."):
            renamed[f"model.{name}"] = tensor
        else:
            top = name.removesuffix(".weight")
            renamed[f"{top_names[top]}.weight"] = tensor
    return renamed


def tokenizer_file_tensors(policy: LlamaGen) -> dict[str, Tensor]:
    """With the parts of the published file that are left out."""
    return {
        **policy.vqmodel.state_dict(),
        "encoder.conv_in.weight": torch.zeros(32, 3, 3, 3),
        "quant_conv.weight": torch.zeros(8, 32, 1, 1),
        "quantize.codebook_used": torch.zeros(65_536),
    }


@pytest.fixture
def published(policy: LlamaGen, tmp_path: Path) -> tuple[Path, Path]:
    """A transformer and an image tokenizer as files of the published form."""
    transformer, tokenizer = tmp_path / "t2i.pt", tmp_path / "vq.pt"
    torch.save({"model": policy.transformer.state_dict(), "steps": 3}, transformer)
    torch.save({"model": tokenizer_file_tensors(policy)}, tokenizer)
    return transformer, tokenizer


def converted(transformer: Path, tokenizer: Path, out: Path) -> LlamaGen:
    """The policy that starts from what `convert` wrote, found as `-o policy.weights=` finds it."""
    path = convert("llamagen-tiny", transformer, tokenizer, out)
    record = runs.read_json(out / "llamagen-tiny.json")
    made = build("llamagen-tiny")
    checkpoints.load_weights(made, path, expected_checksum=record["checksum"], whole=True)
    assert record["sources"]["transformer"]["checksum"] == runs.checksum(transformer)
    return made


def assert_same_weights(made: LlamaGen, policy: LlamaGen) -> None:
    expected = policy.state_dict()
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"model": tensors, "optimizer": {"state": {}}, "steps": 5, "args": argparse.Namespace(lr=1e-4)},
        lambda tensors: {"module": tensors},
        lambda tensors: {"state_dict": {**tensors, "freqs_cis": torch.zeros(3), "causal_mask": torch.zeros(2)}},
        lambda tensors: {**tensors, "layers.0.attention.kv_cache.k_cache": torch.zeros(2)},
        lambda tensors: {"model": as_hugging_face(tensors)},
        lambda tensors: {"model": {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}},
    ],
    ids=["model", "module", "state_dict", "bare", "hugging-face", "wrapped"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_published_files_become_the_policys_weights(
    policy: LlamaGen, published: tuple[Path, Path], tmp_path: Path, wrap: Wrap, zipped: bool
) -> None:
    torch.save(wrap(policy.transformer.state_dict()), published[0], _use_new_zipfile_serialization=zipped)
    assert_same_weights(converted(*published, tmp_path / "out"), policy)


def test_safetensors_files_and_folders_are_read_too(
    policy: LlamaGen, published: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "LlamaGen-T2I"
    folder.mkdir()
    names = as_hugging_face(policy.transformer.state_dict())
    assert "model.layers.1.self_attn.q_proj.weight" in names
    save_file({name: tensor.clone() for name, tensor in names.items()}, folder / "model.safetensors")
    convert("llamagen-tiny", folder, published[1], tmp_path / "out")
    tokenizer = tmp_path / "vq.safetensors"
    save_file(tokenizer_file_tensors(policy), tokenizer)
    assert_same_weights(converted(folder / "model.safetensors", tokenizer, tmp_path / "out"), policy)


def test_training_starts_from_converted_weights(policy: LlamaGen, published: tuple[Path, Path], tmp_path: Path) -> None:
    convert("llamagen-tiny", *published, tmp_path / "out")
    assert_same_weights(start_from(tmp_path / "out"), policy)
    half = start_from(tmp_path / "out", "policy.dtype=bfloat16")
    assert torch.equal(half.transformer.output.weight, policy.transformer.output.weight.bfloat16())


def start_from(folder: Path, *more: str) -> LlamaGen:
    config = resolve(None, [f"policy.weights={folder}", *more], {"model": "llamagen-tiny"}).config
    return starts.start_policy(config)  # type: ignore[return-value]


@pytest.fixture
def entry(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """What is published of LlamaGen, of which the miniature is taken for the 256 px model."""
    made = replace(CATALOGUE["llamagen-xl-256"], name="llamagen-tiny")
    monkeypatch.setitem(CATALOGUE, "llamagen-tiny", made)
    return made


def write_published(policy: LlamaGen, folder: Path, transformer: str, tokenizer: str) -> Path:
    """Both files, under the names and in the formats in which there are some."""
    folder.mkdir(exist_ok=True)
    own_names = transformer.startswith("t2i_")
    tensors = {name: tensor.clone() for name, tensor in policy.transformer.state_dict().items()}
    for file, content in (
        (transformer, tensors if own_names else as_hugging_face(tensors)),
        (tokenizer, tokenizer_file_tensors(policy)),
    ):
        if file.endswith(".safetensors"):
            save_file({name: tensor.clone() for name, tensor in content.items()}, folder / file)
        else:
            torch.save({"model": content} if own_names else content, folder / file)
    return folder


PUBLISHED = ("t2i_XL_stage1_256.pt", "vq_ds16_t2i.pt")


@pytest.mark.parametrize(
    "names",
    [
        PUBLISHED,
        ("model.safetensors", "vq_ds16_t2i.pt"),
        ("model.safetensors", "vq_ds16_t2i.safetensors"),
        ("pytorch_model.bin", "vq_ds16_t2i.pt"),
    ],
)
def test_fetched_files_are_converted_and_trained_from(
    policy: LlamaGen, entry: Weights, cli: Cli, tmp_path: Path, names: tuple[str, str]
) -> None:
    source = write_published(policy, tmp_path / "stick", *names)
    (source / "README.md").write_text("not needed", encoding="utf-8")
    fetched = cli("models", "fetch", "llamagen-tiny", "--from", str(source))
    assert fetched.code == 0, fetched.err
    found = {path.name for path in entry.path.iterdir()}
    assert found == {*names, "llamagen-tiny.safetensors", "llamagen-tiny.json", RECORD}
    config = resolve(None, [], {"model": "llamagen-tiny"}).config
    assert_same_weights(starts.start_policy(config), policy)  # type: ignore[arg-type]
    assert cli("models", "verify", "llamagen-tiny").code == 0


def test_files_that_are_not_there_are_named_with_what_will_do_instead(
    policy: LlamaGen, entry: Weights, cli: Cli, tmp_path: Path
) -> None:
    source = write_published(policy, tmp_path / "stick", *PUBLISHED)
    (source / PUBLISHED[1]).unlink()
    lacking = cli("models", "fetch", "llamagen-tiny", "--from", str(source))
    (source / PUBLISHED[0]).unlink()
    empty = cli("models", "fetch", "llamagen-tiny", "--from", str(source))
    assert lacking.code == empty.code == 2
    assert "holds no vq_ds16_t2i.pt or vq_ds16_t2i.safetensors" in lacking.err
    assert "holds no t2i_XL_stage1_256.pt or model.safetensors or pytorch_model.bin" in empty.err
    assert local(entry) is None


def test_what_was_fetched_last_is_what_is_converted(policy: LlamaGen, entry: Weights, cli: Cli, tmp_path: Path) -> None:
    """Of whichever files were there before, the published ones first among them."""
    other = make_policy()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    names = ("model.safetensors", PUBLISHED[0], "pytorch_model.bin", PUBLISHED[0])
    for turn, name in enumerate(names):
        made = (policy, other)[turn % 2]
        source = write_published(made, tmp_path / f"stick-{turn}", name, PUBLISHED[1])
        assert cli("models", "fetch", "llamagen-tiny", "--from", str(source)).code == 0
        assert [path.name for path in files_of(entry, entry.path)] == [name, PUBLISHED[1]]
        config = resolve(None, [], {"model": "llamagen-tiny"}).config
        assert_same_weights(starts.start_policy(config), made)  # type: ignore[arg-type]
    assert cli("models", "fetch", "llamagen-tiny", "--from", str(entry.path)).code == 0  # from where they lie


def test_a_damaged_file_is_not_taken_for_fetched(policy: LlamaGen, entry: Weights, cli: Cli, tmp_path: Path) -> None:
    source = write_published(policy, tmp_path / "stick", *PUBLISHED)
    path = source / PUBLISHED[1]
    path.write_bytes(path.read_bytes()[:-100])
    refused = cli("models", "fetch", "llamagen-tiny", "--from", str(source))
    assert refused.code == 5
    assert "is cut off" in refused.err
    assert local(entry) is None


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (lambda tensor: tensor.index_fill(0, torch.tensor([0]), torch.nan), "holds numbers that are not finite"),
        (lambda tensor: tensor.index_fill(0, torch.tensor([0]), torch.inf), "holds numbers that are not finite"),
        (lambda tensor: tensor.to(torch.int8), r"1 tensors are no floating point numbers, first"),
    ],
)
@pytest.mark.parametrize("file", [0, 1])
def test_weights_that_are_no_numbers_are_not_converted(
    policy: LlamaGen, entry: Weights, cli: Cli, tmp_path: Path, numbers: Any, message: str, file: int
) -> None:
    source = write_published(policy, tmp_path / "stick", *PUBLISHED)
    assert cli("models", "fetch", "llamagen-tiny", "--from", str(source)).code == 0
    before = {path.name: path.read_bytes() for path in entry.path.iterdir()}
    content = torch.load(source / PUBLISHED[file], weights_only=True)
    name = ("layers.1.attention.wo.weight", "decoder.conv_in.weight")[file]
    content["model"][name] = numbers(content["model"][name])
    torch.save(content, source / PUBLISHED[file])
    refused = cli("models", "fetch", "llamagen-tiny", "--from", str(source))
    assert refused.code == 5
    assert message in refused.err
    assert str(source / PUBLISHED[file]) in refused.err
    assert name in refused.err
    assert len(refused.err.splitlines()) == 2
    assert {path.name: path.read_bytes() for path in entry.path.iterdir()} == before
    shutil.copyfile(source / PUBLISHED[file], entry.path / PUBLISHED[file])
    assert cli("models", "verify", "llamagen-tiny").code == 5


@pytest.mark.parametrize("change", [lambda rows: rows[:-1], lambda rows: rows.double(), lambda rows: rows.sum()])
def test_projections_that_do_not_go_together_are_not_joined(
    policy: LlamaGen, published: tuple[Path, Path], tmp_path: Path, change: Any
) -> None:
    tensors = as_hugging_face(policy.transformer.state_dict())
    name = "model.layers.0.self_attn.k_proj.weight"
    torch.save({**tensors, name: change(tensors[name])}, published[0])
    with pytest.raises(CorruptDataError, match=r"first 'layers.0.attention.wqkv.weight' \(file none"):
        convert("llamagen-tiny", *published, tmp_path / "out")


def test_a_folder_under_other_names_must_be_converted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="holds LlamaGen under other names"):
        start_from(tmp_path)


class Foreign:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not run",)


def damage(name: str, tensors: dict[str, Tensor], path: Path) -> None:
    if name == "missing":
        del tensors["layers.1.ffn_norm.weight"]
    elif name == "extra":
        tensors["layers.2.ffn_norm.weight"] = torch.zeros(64)
    elif name == "shape":
        tensors["output.weight"] = torch.zeros(65, 64)
    elif name == "class-conditional":
        del tensors["cls_embedding.uncond_embedding"]
        tensors["cls_embedding.embedding_table.weight"] = torch.zeros(1001, 64)
    elif name == "half-projection":
        tensors.update(as_hugging_face(tensors))
        tensors = {key: tensors[key] for key in tensors if key.startswith(("model.", "lm_head."))}
        del tensors["model.layers.0.self_attn.k_proj.weight"]
    torch.save({"model": tensors}, path)
    if name == "cut":
        path.write_bytes(path.read_bytes()[:-3000])
    elif name == "legacy-cut":
        torch.save({"model": tensors}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-3000])
    elif name == "no-tensors":
        torch.save({"model": {"a": 1}}, path)
    elif name == "list":
        torch.save([torch.zeros(2)], path)
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1", encoding="utf-8")
    elif name == "foreign":
        torch.save({"model": tensors, "hook": Foreign()}, path)
    elif name == "bare-pickle":
        path.write_bytes(pickle.dumps(Foreign()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"1 of 20 tensors differ, first 'layers.1.ffn_norm.weight' \(file none, model \(64,\)\)"),
        ("extra", r"1 of 20 tensors differ, first 'layers.2.ffn_norm.weight' \(file \(64,\), model none\)"),
        ("shape", r"'output.weight' \(file \(65, 64\), model \(64, 64\)\)"),
        ("class-conditional", r"2 of 20 tensors differ, first 'cls_embedding.embedding_table.weight'"),
        ("half-projection", r"first 'layers.0.attention.wqkv.weight' \(file none"),
        ("cut", "is cut off"),
        ("legacy-cut", "no whole archive|no plain archive"),
        ("no-tensors", "holds no named tensors"),
        ("list", "holds no named tensors"),
        ("empty", "no whole archive|no plain archive"),
        ("text", "no plain archive of tensors: it is damaged, or no file of torch.save"),
        ("foreign", r"no plain archive of tensors: it refers to \S*print"),
        ("bare-pickle", "no plain archive of tensors"),
    ],
)
def test_a_file_that_is_something_else_is_named_and_leaves_nothing(
    policy: LlamaGen,
    published: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    message: str,
) -> None:
    damage(name, policy.transformer.state_dict(), published[0])
    with pytest.raises(CorruptDataError, match=message) as refused:
        convert("llamagen-tiny", *published, tmp_path / "out")
    assert str(published[0]) in str(refused.value)
    assert "\n" not in str(refused.value) + refused.value.hint
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out == ""


def test_swapped_and_absent_files_are_named(published: tuple[Path, Path], tmp_path: Path) -> None:
    transformer, tokenizer = published
    with pytest.raises(CorruptDataError, match=r"vq\.pt is not the transformer of this model") as swapped:
        convert("llamagen-tiny", tokenizer, transformer, tmp_path / "out")
    assert "vq_ds16_t2i.pt" in swapped.value.hint
    with pytest.raises(CorruptDataError, match=r"t2i\.pt is not the image tokenizer of this model"):
        convert("llamagen-tiny", transformer, transformer, tmp_path / "out")
    with pytest.raises(CorruptDataError, match=r"gone\.pt is missing"):
        convert("llamagen-tiny", tmp_path / "gone.pt", tokenizer, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PrerequisiteError, match="holds neither"):
        convert("llamagen-tiny", tmp_path / "empty", tokenizer, tmp_path / "out")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(CorruptDataError, match="no whole safetensors file"):
        convert("llamagen-tiny", cut, tokenizer, tmp_path / "out")


def test_no_cut_or_changed_byte_gives_a_traceback(policy: LlamaGen, published: tuple[Path, Path]) -> None:
    from gcpo_bench.training.policies.llamagen_checkpoint import read_tensors

    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(3)}}, buffer, _use_new_zipfile_serialization=False)
    whole = buffer.getvalue()
    generator = np.random.default_rng(0)
    for place in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[place] ^= int(generator.integers(1, 256))
        for content in (whole[:place], bytes(changed)):
            published[0].write_bytes(content)
            with contextlib.suppress(CorruptDataError):  # a changed number of a tensor cannot be seen
                read_tensors(published[0])


# ---------------------------------------------------------------- through the loop

SMALL = (
    "policy.random_init=true", "rewards=[{name: redness}]", "sampling.prompts_per_step=2", "sampling.group_size=4",
    "sampling.guidance_scale=2.0", "logging.tracked_prompts=1", "optimizer.learning_rate=1e-3",
    "optimizer.micro_batch_rows=3",
)  # fmt: skip
ADAPTERS = "policy.lora={rank: 2, targets: [wqkv, wo, w1, w2, w3]}"


def train(cli: Cli, name: str, *overrides: str, method: str = "gcpo", steps: int = 3) -> None:
    options = [part for setting in (*SMALL, *overrides) for part in ("-o", setting)]
    base = ("train", "--model", "llamagen-tiny", "--method", method, "--num-steps", str(steps), "--name", name)
    trained = cli(*base, *options)
    assert trained.code == 0, trained.err


@pytest.mark.parametrize("method", ["grpo", "gcpo", "gcpo-official"])
def test_it_trains_and_draws(cli: Cli, tmp_path: Path, method: str) -> None:
    train(cli, "a", method=method)
    rows = runs.open_run("a", tmp_path / "runs").metrics()
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["loss/kl_all"] == pytest.approx(0, abs=1e-9)
    assert rows[2]["loss/kl_all"] > 0
    assert rows[0]["tokens/selected_fraction"] == pytest.approx({"grpo": 1.0}.get(method, 3 / 16))
    drawn = cli("sample", "a", "a red circle", "-n", "2", "--guidance", "2")
    assert drawn.code == 0, drawn.err


@pytest.mark.parametrize("options", [(), (ADAPTERS,), ("policy.dtype=bfloat16", "policy.trained=layers")])
def test_a_resumed_run_is_the_unbroken_one(cli: Cli, tmp_path: Path, options: tuple[str, ...]) -> None:
    train(cli, "whole", *options, steps=3)
    train(cli, "parts", *options, steps=1)
    resumed = cli("train", "--resume", "--name", "parts", "--num-steps", "3")
    assert resumed.code == 0, resumed.err
    whole, parts = (runs.open_run(name, tmp_path / "runs") for name in ("whole", "parts"))
    for file in ("policy.safetensors", "optimizer.pt"):
        assert (whole.checkpoint_path(3) / file).read_bytes() == (parts.checkpoint_path(3) / file).read_bytes()


@pytest.mark.parametrize(
    ("options", "kept"),
    [((), "transformer."), (("policy.trained=layers",), "transformer.layers."), ((ADAPTERS,), "lora_")],
)
def test_what_is_trained_is_what_a_checkpoint_holds(
    cli: Cli, tmp_path: Path, options: tuple[str, ...], kept: str
) -> None:
    train(cli, "a", *options, steps=1)
    tensors = load_file(runs.open_run("a", tmp_path / "runs").checkpoint_path(1) / "policy.safetensors")
    assert tensors
    assert all(kept in name or name == "transformer.norm.weight" for name in tensors)


def test_a_gpu_that_is_too_small_is_told_before_it_starts() -> None:
    config = resolve(None, ["policy.random_init=true"], {"model": "llamagen-xl-512"}).config
    with pytest.raises(PrerequisiteError, match="llamagen-xl-512 needs about"):
        memory.require_memory(config, free_bytes=8_000_000_000)


@pytest.mark.parametrize("words", ["none", "empty"])
def test_a_text_encoder_without_words_is_refused(tmp_path: Path, words: str) -> None:
    """transformers makes a tokenizer without words of a folder that lacks its file: every caption would be the same."""
    _, encoder = llamagen_text.random(32)._load()
    encoder.save_pretrained(tmp_path)
    if words == "empty":
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    with pytest.raises(
        CorruptDataError, match=r"its tokenizer does not know English words.*is tokenizer\.json there\?"
    ):
        llamagen_text.load_encoder(tmp_path)


def test_a_text_encoder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    """transformers would go on with random ones."""
    tokenizer, encoder = llamagen_text.random(32)._load()
    tokenizer.save_pretrained(tmp_path)
    encoder.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("wo.weight"))
    save_file({other: each for other, each in tensors.items() if other != name}, tmp_path / "model.safetensors")
    with pytest.raises(CorruptDataError, match=f"1 of its weights are missing, the first is '{name}'"):
        llamagen_text.load_encoder(tmp_path)

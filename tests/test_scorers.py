"""Scorers in miniature: pixels, weights and scores against slow oracles; the same bits in any batch; plain errors."""

from __future__ import annotations

import gzip
import json
import math
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures
from safetensors.torch import save_file
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from gcpo_bench import catalogue
from gcpo_bench.catalogue import require
from gcpo_bench.config import RewardConfig
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError, TrainingError
from gcpo_bench.evaluators.scorers import images as pixels
from gcpo_bench.evaluators.scorers import random_weights
from gcpo_bench.evaluators.scorers.aesthetic import Aesthetic, load_aesthetic
from gcpo_bench.evaluators.scorers.blip_vqa import blip_vqa
from gcpo_bench.evaluators.scorers.blip_weights import BLIP_VQA, BlipSize
from gcpo_bench.evaluators.scorers.checkpoints import read_folder, read_state
from gcpo_bench.evaluators.scorers.clip import load as load_clip_features
from gcpo_bench.evaluators.scorers.clip_score import load_clip_score
from gcpo_bench.evaluators.scorers.clip_weights import (
    ARCHITECTURES,
    Architecture,
    clip_of,
    convert,
    load_clip,
    parameters,
)
from gcpo_bench.evaluators.scorers.compute import Compute
from gcpo_bench.evaluators.scorers.hps import HPS, load_hps
from gcpo_bench.evaluators.scorers.hps_package import HpsPackage
from gcpo_bench.evaluators.scorers.image_reward import DEVIATION, MEAN, ImageReward, ImageRewardModel, load_image_reward
from gcpo_bench.evaluators.scorers.images import Preprocessing
from gcpo_bench.evaluators.scorers.pickscore import PickScore, load_pickscore
from gcpo_bench.evaluators.scorers.plain_pictures import plain_pictures
from gcpo_bench.evaluators.scorers.rewards import ScorerReward
from gcpo_bench.evaluators.scorers.scales import SCALES, scale
from gcpo_bench.evaluators.scorers.tokens import bert_tokenizer, clip_ids, clip_tokenizer, words_digest
from gcpo_bench.evaluators.scorers.types import MAX_ASPECT, Scorer, Unscored
from gcpo_bench.registry import BENCHMARKS, REWARDS, SCORERS
from gcpo_bench.training.rewards import WeightedSum

from .reference import blip as blip_reference
from .reference import clip as clip_reference
from .reference import preprocessing as pixel_reference
from .scorer_factory import (
    BLIP,
    GELU,
    QUICK,
    arrays,
    bert_tokenizer_folder,
    blip_state,
    clip_tokenizer_folder,
    head_state,
    image_reward_state,
    open_clip_state,
    pictures,
    random_state,
    save,
    small,
)

PROMPTS = ["a red cube", "Two DOGS &amp; a cat", "", "ein Schloß im Nebel, " * 9]
SIZES = st.tuples(st.integers(1, 70), st.integers(1, 70))


def picture(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def raw_pixels(normalised_CYX: torch.Tensor) -> npt.NDArray[np.float64]:
    """Undo the normalisation."""
    mean, std = (np.array(values)[:, None, None] for values in (pixels.CLIP_MEAN, pixels.CLIP_STD))
    return np.asarray(normalised_CYX.double().numpy() * std + mean)


# ---------------------------------------------------------------- pixels


@given(size=SIZES, seed=st.integers(0, 99), antialias=st.booleans())
@settings(max_examples=60)
def test_hps_pixels_are_those_of_the_written_out_sums(size: tuple[int, int], seed: int, antialias: bool) -> None:
    image = picture(*size, seed=seed)
    if round(min(size) * 28 / max(size)) < 2:
        return  # too long at so small a size: see MAX_ASPECT
    ours = Preprocessing(size=28, resample="float", fit="pad", antialias=antialias)(image)
    assert (
        np.abs(raw_pixels(ours) - pixel_reference.hps(image, 28, antialias=antialias)).max() < 1e-5
    )  # single precision; a grey level is 4e-3


def test_hps_pixels_are_those_of_the_original_where_nothing_is_resized() -> None:
    image = picture(28, 20)
    ours = raw_pixels(Preprocessing(size=28, resample="float", fit="pad")(image))
    expected = np.zeros((3, 28, 28))
    expected[:, :, 4:24] = image.transpose(2, 0, 1) / 255
    assert np.abs(ours - expected).max() < 1e-6


def test_antialias_changes_hps_pixels_only_where_a_picture_shrinks() -> None:
    def difference(side: int) -> float:
        image = np.kron(picture(side // 8, side // 8), np.ones((8, 8, 1), dtype=np.uint8))
        return float((pixels.HPS(image) - pixels.HPS_NO_ANTIALIAS(image)).abs().mean())

    assert difference(224) == 0
    assert difference(384) > 0.03
    assert difference(1024) > difference(384)


@given(size=SIZES, seed=st.integers(0, 99))
@settings(max_examples=40)
def test_clip_pixels_are_those_of_pillow_and_transformers(size: tuple[int, int], seed: int) -> None:
    image = picture(*size, seed=seed)
    if max(size) > MAX_ASPECT * min(size):
        with pytest.raises(ValueError, match="too long"):
            Preprocessing(size=16)(image)
        return
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    expected_CYX = theirs(images=[Pictures.fromarray(image)], return_tensors="np")["pixel_values"][0]
    ours_CYX = Preprocessing(size=16, halves="down")(image)
    # they multiply by 1 / 255, we divide by 255
    assert np.abs(ours_CYX.numpy() - expected_CYX).max() < 1e-6


def test_the_crop_rounds_half_to_even_as_torchvision_does_or_down_as_transformers_does() -> None:
    image = np.zeros((16, 23, 3), dtype=np.uint8)
    image[:, :, 0] = np.arange(23)  # columns are numbered; 7 are left over
    first = {
        halves: round(255 * raw_pixels(Preprocessing(size=16, halves=halves)(image))[0, 0, 0])
        for halves in ("even", "down")
    }
    assert first == {"even": 4, "down": 3}


def test_stretching_takes_the_whole_picture() -> None:
    image = picture(30, 50)
    expected = np.asarray(Pictures.fromarray(image).resize((20, 20), Pictures.Resampling.BICUBIC))
    ours = raw_pixels(Preprocessing(size=20, fit="stretch")(image))
    assert np.abs(ours * 255 - expected.transpose(2, 0, 1)).max() < 1e-4


@pytest.mark.parametrize(
    "preset", [pixels.CLIP, pixels.HPS, pixels.HPS_NO_ANTIALIAS, pixels.CLIP_FLOAT_BILINEAR, pixels.BLIP_VQA]
)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (223, 225), (300, 224)])
def test_every_size_gives_a_square(preset: Preprocessing, size: tuple[int, int]) -> None:
    found = preset(picture(*size))
    assert found.shape == (3, preset.size, preset.size)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()


def test_what_is_no_picture_is_refused() -> None:
    for wrong in (
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="expected uint8"):
            pixels.CLIP(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="always antialiases"):
        Preprocessing(antialias=False)


# ---------------------------------------------------------------- CLIP weights


@pytest.mark.parametrize("architecture", [GELU, QUICK], ids=["gelu", "quick_gelu"])
@torch.no_grad()
def test_converted_clip_gives_the_features_of_open_clip(architecture: Architecture) -> None:
    state = open_clip_state(architecture)
    model, w = clip_of(state, architecture), arrays(state)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        image_CYX = rng.normal(size=(3, architecture.pixels, architecture.pixels)).astype(np.float32)
        ours = model.get_image_features(torch.from_numpy(image_CYX)[None]).pooler_output[0]
        theirs = clip_reference.picture_features(
            image_CYX.astype(np.float64), w, architecture.vision.heads, architecture.activation
        )
        assert np.abs(ours.numpy() - theirs).max() < 1e-5
        inner = rng.integers(1, architecture.words - 2, size=rng.integers(0, 18)).tolist()
        ids = [architecture.words - 2, *inner, architecture.words - 1]
        padded = ids + [0] * (architecture.context - len(ids))
        ours = model.get_text_features(torch.tensor([padded])).pooler_output[0]
        theirs = clip_reference.text_features(padded, w, architecture.text.heads, architecture.activation)
        assert np.abs(ours.numpy() - theirs).max() < 1e-5


def test_published_names_lead_to_every_weight_and_to_no_other() -> None:
    for name, shape in ARCHITECTURES.items():
        with torch.device("meta"):
            expected = CLIPModel(shape.config()).state_dict()
            shapes = clip_reference.published_shapes(
                width=shape.vision.width,
                layers=shape.vision.layers,
                patch=shape.patch,
                pixels=shape.pixels,
                text_width=shape.text.width,
                text_layers=shape.text.layers,
                words=shape.words,
                context=shape.context,
                embed=shape.embed,
            )
            given_ = convert({each: torch.empty(size) for each, size in shapes.items()})
        assert {each: value.shape for each, value in given_.items()} == {
            each: value.shape for each, value in expected.items()
        }, name


def test_the_architectures_have_as_many_weights_as_published() -> None:
    counts = {name: parameters(shape) for name, shape in ARCHITECTURES.items()}
    assert counts == {"ViT-H-14": 986_109_441, "ViT-L-14": 427_616_513, "ViT-B-32": 151_277_313}
    assert ARCHITECTURES["ViT-H-14"].activation == "gelu"
    assert ARCHITECTURES["ViT-L-14"].activation == ARCHITECTURES["ViT-B-32"].activation == "quick_gelu"


@torch.no_grad()
def test_every_layout_of_a_clip_checkpoint_loads_alike(tmp_path: Path) -> None:
    state = {name: value.float() for name, value in open_clip_state(GELU).items()}
    model = clip_of(state, GELU)
    extras = {"input_resolution": torch.tensor(24), "context_length": torch.tensor(20), "vocab_size": torch.tensor(514)}
    save(state, tmp_path / "bare.pt")
    save(state, tmp_path / "wrapped.pt", epoch=3)
    save(state | extras, tmp_path / "openai.pt")
    save_file(state, tmp_path / "state.safetensors")
    model.save_pretrained(tmp_path / "folder")
    torch.save(
        model.state_dict() | {"text_model.embeddings.position_ids": torch.arange(20)[None]}, tmp_path / "theirs.pt"
    )
    for name in ("bare.pt", "wrapped.pt", "openai.pt", "state.safetensors", "folder", "theirs.pt"):
        loaded, digest = load_clip(tmp_path / name, GELU)
        assert digest.startswith("xxh3:")
        assert all(torch.equal(value, loaded.state_dict()[each]) for each, value in model.state_dict().items()), name


def test_a_folder_with_its_weights_in_shards_loads(tmp_path: Path) -> None:
    clip_of(open_clip_state(GELU), GELU).save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    load_clip(tmp_path, GELU)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../other.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptDataError, match="outside its folder"):
        read_folder(tmp_path)


def test_half_precision_weights_become_single(tmp_path: Path) -> None:
    half = {name: value.half() for name, value in open_clip_state(GELU).items()}
    torch.save({"state_dict": half}, tmp_path / "half.pt")
    model, _ = load_clip(tmp_path / "half.pt", GELU)
    assert {each.dtype for each in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("visual.proj"), "1 missing: visual_projection.weight"),
        (lambda state: state.update(extra=torch.zeros(2)), "1 left over: extra"),
        (lambda state: state.update({"visual.proj": torch.zeros(3, 4)}), r"visual_projection.weight is \(4, 3\), not"),
        (lambda state: state.update({"visual.proj": torch.zeros(20, 16, dtype=torch.int64)}), "no floats"),
        (lambda state: state.update({"transformer.resblocks.0.strange.weight": torch.zeros(1)}), "left over"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: object, message: str) -> None:
    state = open_clip_state(GELU)
    change(state)  # type: ignore[operator]
    torch.save(state, tmp_path / "wrong.pt")
    with pytest.raises(CorruptDataError, match=message):
        load_clip(tmp_path / "wrong.pt", GELU)


def test_weights_of_another_model_are_one_sentence(tmp_path: Path) -> None:
    save(open_clip_state(QUICK), tmp_path / "quick.pt")
    with pytest.raises(CorruptDataError, match=r"not those of this CLIP; tensors .* missing: .* and") as caught:
        load_clip(tmp_path / "quick.pt", GELU)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = save(open_clip_state(GELU), tmp_path / "whole.pt").read_bytes()
    for name, content in {"cut.pt": whole[: len(whole) // 2], "empty.pt": b"", "text.pt": b"<html>404</html>"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorruptDataError, match=f"{name} are damaged"):
            read_state(tmp_path / name)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(CorruptDataError, match="damaged"):
        read_state(tmp_path / "cut.safetensors")
    torch.save({"state_dict": {"a": torch.zeros(1), "b": "text"}}, tmp_path / "mixed.pt")
    with pytest.raises(CorruptDataError, match="no tensor: b"):
        read_state(tmp_path / "mixed.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(CorruptDataError, match="holds list"):
        read_state(tmp_path / "list.pt")
    with pytest.raises(PrerequisiteError, match="are not there"):
        read_state(tmp_path / "none.pt")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_a_pickled_program_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"a": Evil()}}, tmp_path / "evil.pt")
    with pytest.raises(CorruptDataError, match="more than tensors"):
        read_state(tmp_path / "evil.pt")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", b"")
    with pytest.raises(CorruptDataError, match="TorchScript"):
        read_state(tmp_path / "script.pt")
    assert "executed" not in capsys.readouterr().out


def test_a_folder_with_the_wrong_activation_is_refused(tmp_path: Path) -> None:
    clip_of(open_clip_state(GELU), GELU).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "quick_gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptDataError, match="'quick_gelu', this scorer's weights use 'gelu'"):
        load_clip(tmp_path, GELU)
    with pytest.raises(PrerequisiteError, match=r"no config\.json"):
        load_clip(tmp_path / "nowhere", GELU) if (tmp_path / "nowhere").mkdir() is None else None  # type: ignore[func-returns-value]
    with pytest.raises(ConfigError, match="unknown CLIP architecture"):
        load_clip(tmp_path, "ViT-Z")


# ---------------------------------------------------------------- tokens


def test_long_texts_are_cut_and_end_with_the_end_token(tmp_path: Path) -> None:
    tokenizer = clip_tokenizer(clip_tokenizer_folder(tmp_path / "words"))
    ids_BT = clip_ids(tokenizer, ["ab", "x " * 100, ""], context=10)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert ids_BT.shape == (3, 10)
    assert ids_BT[:, 0].tolist() == [begin] * 3
    assert ids_BT[1, -1] == end
    assert ids_BT[2].tolist() == [begin, end] + [0] * 8
    assert (ids_BT == end).sum(dim=1).tolist() == [1, 1, 1]
    assert ids_BT.max() == end  # where open_clip takes the feature


def test_entities_are_undone_as_open_clip_does(tmp_path: Path) -> None:
    tokenizer = clip_tokenizer(clip_tokenizer_folder(tmp_path / "words"))
    plain, once, twice = (clip_ids(tokenizer, [text], 12) for text in ("a & b", "a &amp; b", "a &amp;amp; b"))
    assert torch.equal(plain, once)
    assert torch.equal(plain, twice)
    assert not torch.equal(plain, clip_ids(tokenizer, ["a &amp; b"], 12, unescape=False))


def test_openai_s_vocabulary_file_makes_the_same_tokenizer(tmp_path: Path) -> None:
    # the real file is 48,894 merges; these are as many, of pairs of letters and of what those make
    parts = list("abcdefghijklmnopqrstuvwxyz")
    merges: list[tuple[str, str]] = []
    while len(merges) < 48_894:
        longer = [(a, b) for a in parts for b in "abcdefghijklmnopqrstuvwxyz"]
        merges += longer[: 48_894 - len(merges)]
        parts = [a + b for a, b in longer]
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(["#version", *(" ".join(merge) for merge in merges), "left over", ""]))
    tokenizer = clip_tokenizer(path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (49_406, 49_407)
    # "ab" was the second merge: 512 + 1; but a word's last letter carries the end of word
    assert tokenizer.encode("abc", add_special_tokens=False) == [513, 256 + ord("c") - ord("!")]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CorruptDataError, match="damaged"):
        clip_tokenizer(path)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("a b\n" * 5)
    with pytest.raises(CorruptDataError, match="48,894 merges"):
        clip_tokenizer(path)


def test_a_missing_tokenizer_is_a_prerequisite(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="no CLIP tokenizer"):
        clip_tokenizer(tmp_path)
    with pytest.raises(PrerequisiteError, match="no BERT tokenizer"):
        bert_tokenizer(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptDataError, match="damaged"):
        clip_tokenizer(tmp_path)


# ---------------------------------------------------------------- scorers


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with everything, in miniature."""
    folder = tmp_path_factory.mktemp("models")
    save(open_clip_state(GELU, seed=3), folder / "hps.pt", epoch=1)
    save(open_clip_state(QUICK, seed=4), folder / "clip.pt")
    clip_of(open_clip_state(GELU, seed=5), GELU).save_pretrained(folder / "pickscore")
    save(head_state(QUICK.embed), folder / "head.pth")
    save(image_reward_state(BLIP), folder / "image-reward.pt")
    clip_tokenizer_folder(folder / "clip-tokenizer")
    bert_tokenizer_folder(folder / "bert-tokenizer")
    return folder


def make(name: str, files: Path, compute: Compute) -> Scorer:
    words = files / "clip-tokenizer"
    if name == "hps":
        return load_hps(
            files / "hps.pt", words, architecture=GELU, preprocessing=small(GELU, pixels.HPS), compute=compute
        )
    if name == "clip-score":
        return load_clip_score(
            files / "clip.pt", words, architecture=QUICK, preprocessing=small(QUICK, pixels.CLIP), compute=compute
        )
    if name == "pickscore":
        preset = small(GELU, pixels.CLIP_TRANSFORMERS)
        return load_pickscore(files / "pickscore", words, architecture=GELU, preprocessing=preset, compute=compute)
    if name == "aesthetic":
        preset = small(QUICK, pixels.CLIP_TRANSFORMERS)
        return load_aesthetic(
            files / "clip.pt", files / "head.pth", architecture=QUICK, preprocessing=preset, compute=compute
        )
    return load_image_reward(files / "image-reward.pt", files / "bert-tokenizer", size=BLIP, compute=compute)


LOCAL = (
    "hps-v2.1",
    "hps-v2.0",
    "clip-score",
    "clip-score-tensor",
    "clip-score-b32",
    "pickscore",
    "aesthetic",
    "image-reward",
)
NAMES = ("hps", "clip-score", "pickscore", "aesthetic", "image-reward")


def expected_cosine(architecture: Architecture, seed: int, image_CYX: npt.NDArray[np.float64], ids: list[int]) -> float:
    w = arrays(open_clip_state(architecture, seed=seed))
    a = clip_reference.picture_features(image_CYX, w, architecture.vision.heads, architecture.activation)
    b = clip_reference.text_features(ids, w, architecture.text.heads, architecture.activation)
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))


@pytest.mark.parametrize(
    ("name", "architecture", "seed", "preset", "unescape"),
    [
        ("hps", GELU, 3, pixels.HPS, True),
        ("clip-score", QUICK, 4, pixels.CLIP, True),
        ("pickscore", GELU, 5, pixels.CLIP_TRANSFORMERS, False),
    ],
)
def test_cosines_are_those_of_the_slow_model(
    files: Path, name: str, architecture: Architecture, seed: int, preset: Preprocessing, unescape: bool
) -> None:
    scorer = make(name, files, Compute())
    shown = pictures(len(PROMPTS))
    tokenizer = clip_tokenizer(files / "clip-tokenizer")
    ids_BT = clip_ids(tokenizer, PROMPTS, architecture.context, unescape=unescape)
    scale_ = math.exp(float(open_clip_state(architecture, seed=seed)["logit_scale"])) if name == "pickscore" else 1.0
    for score, image, ids in zip(scorer.score(shown, PROMPTS), shown, ids_BT.tolist(), strict=True):
        image_CYX = small(architecture, preset)(image).double().numpy()
        assert score == pytest.approx(scale_ * expected_cosine(architecture, seed, image_CYX, ids), abs=1e-5)


def head(w: dict[str, npt.NDArray[np.float64]], x: npt.NDArray[np.float64], prefix: str = "") -> float:
    for index in (0, 2, 4, 6, 7):
        x = w[f"{prefix}layers.{index}.weight"] @ x + w[f"{prefix}layers.{index}.bias"]
    return float(x[0])


def test_aesthetic_is_the_head_on_the_unit_feature(files: Path) -> None:
    scorer = make("aesthetic", files, Compute())
    w, head_w = arrays(open_clip_state(QUICK, seed=4)), arrays(head_state(QUICK.embed))
    shown = pictures(4)
    scores = scorer.score(shown, PROMPTS)
    for score, image in zip(scores, shown, strict=True):
        image_CYX = small(QUICK, pixels.CLIP_TRANSFORMERS)(image).double().numpy()
        feature = clip_reference.picture_features(image_CYX, w, QUICK.vision.heads, QUICK.activation)
        assert score == pytest.approx(head(head_w, feature / np.sqrt(feature @ feature)), abs=1e-5)
    assert scorer.score(shown, ["another prompt"] * 4) == scores


def test_image_reward_is_that_of_the_slow_model(files: Path) -> None:
    scorer = make("image-reward", files, Compute())
    towers = {name: arrays(state) for name, state in blip_state(BLIP).items()}
    head_w = arrays(head_state(BLIP.text_width, "mlp.", seed=4))
    tokenizer = bert_tokenizer(files / "bert-tokenizer")
    shown = pictures(len(PROMPTS))
    for score, image, prompt in zip(scorer.score(shown, PROMPTS), shown, PROMPTS, strict=True):
        encoded = tokenizer(prompt, padding="max_length", truncation=True, max_length=35)
        assert encoded["input_ids"][0] == tokenizer.cls_token_id
        image_CYX = Preprocessing(size=BLIP.pixels)(image).double().numpy()
        seen = blip_reference.vision(image_CYX, towers["vision"], BLIP.vision_heads)
        states = blip_reference.text(
            encoded["input_ids"], encoded["attention_mask"], seen, towers["text"], BLIP.text_heads
        )
        assert score == pytest.approx((head(head_w, states[0], "mlp.") - MEAN) / DEVIATION, abs=1e-5)


def test_image_reward_has_as_many_weights_as_published() -> None:
    size = BlipSize()
    with torch.device("meta"):
        model = ImageRewardModel(size)
        counted = sum(each.numel() for part in (model.vision, model.text) for each in part.parameters())
    assert counted == 445_278_720
    assert sum(each.numel() for each in model.head.parameters()) == 927_969  # 3.7 MB, as LAION's file
    assert BLIP_VQA.pixels == 480


@pytest.mark.parametrize("name", NAMES)
def test_a_score_has_the_same_bits_whatever_it_is_scored_with(files: Path, name: str) -> None:
    scorer = make(name, files, Compute())
    shown = pictures(9, seed=7)
    prompts = [PROMPTS[row % 4] for row in range(9)]
    together = scorer.score(shown, prompts)
    assert together == [scorer.score([image], [prompt])[0] for image, prompt in zip(shown, prompts, strict=True)]
    order = [3, 8, 0, 1]
    assert scorer.score([shown[row] for row in order], [prompts[row] for row in order]) == [
        together[row] for row in order
    ]
    assert len(set(together)) == 9 or name == "aesthetic"
    for batch_size in (2, 4, 64):
        batched = make(name, files, Compute(batch_size=batch_size)).score(shown, prompts)
        assert batched == pytest.approx(together, abs=5e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_a_list_of_pictures(files: Path, name: str) -> None:
    scorer = make(name, files, Compute())
    batch_BYXC = np.stack(pictures(3, sides=(24, 25)))
    assert scorer.score(batch_BYXC, PROMPTS[:3]) == scorer.score(list(batch_BYXC), PROMPTS[:3])
    assert scorer.score([], []) == []
    with pytest.raises(ValueError, match="3 images for 2 prompts"):
        scorer.score(batch_BYXC, PROMPTS[:2])
    with pytest.raises(ValueError, match="expected uint8"):
        scorer.score([batch_BYXC[0] / 255], PROMPTS[:1])


@pytest.mark.parametrize("name", NAMES)
def test_identity_is_plain_and_says_which_weights_and_pixels(files: Path, name: str) -> None:
    identity = make(name, files, Compute()).identity
    assert json.loads(json.dumps(identity)) == identity
    assert "xxh3:" in identity["weights"]
    assert identity["preprocessing"]["antialias"] is True
    assert make(name, files, Compute(batch_size=3)).identity == identity


@pytest.mark.parametrize("name", [*LOCAL, "blip-vqa"])
@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "cpu:cpu"])
def test_a_device_that_is_none_is_told_before_weights_are_read(
    name: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path))
    for each in catalogue.NEEDS[name]:
        files = [each.path / file.split("|")[0] for file in each.files] or [each.path]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as empty:  # reading it would be another error
                empty.truncate(each.num_bytes or 0)
    make = blip_vqa if name == "blip-vqa" else SCORERS.load(name)
    with pytest.raises(ConfigError, match=f"--device '{device}' cannot be used: ") as error:
        make(device=device)
    assert "\n" not in str(error.value)


def test_half_precision_is_for_cuda_only(files: Path) -> None:
    plain, asked = (make("hps", files, Compute(precision=precision)) for precision in ("float32", "autocast"))
    shown = pictures(2)
    assert asked.score(shown, PROMPTS[:2]) == plain.score(shown, PROMPTS[:2])
    assert asked.identity == plain.identity
    assert Compute(device="cuda", precision="autocast").identity == {
        "device": "cuda",
        "precision": "autocast",
        "tf32": False,
    }
    assert (Compute(device="cuda").rows, Compute().rows, Compute(batch_size=7).rows) == (32, 1, 7)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Compute(batch_size=0)


def test_options_that_change_scores_change_the_identity(files: Path) -> None:
    presets = [small(GELU, pixels.HPS), small(GELU, pixels.HPS_NO_ANTIALIAS), small(GELU, pixels.CLIP)]
    made = [
        load_hps(files / "hps.pt", files / "clip-tokenizer", architecture=GELU, preprocessing=preset)
        for preset in presets
    ]
    assert len({json.dumps(each.identity) for each in made}) == 3
    image = picture(90, 60)
    assert len({each.score([image], ["a"])[0] for each in made}) == 3


def test_another_vocabulary_is_another_identity(files: Path, tmp_path: Path) -> None:
    def swapped(folder: Path, name: str, first: str, second: str) -> Path:
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(first, "@@").replace(second, first).replace("@@", second))
        return folder

    image, text = picture(30, 30), ["a red dog"]
    clip_words = swapped(clip_tokenizer_folder(tmp_path / "clip"), "vocab.json", '"d"', '"e"')
    preset = small(GELU, pixels.HPS)
    known, other = (
        load_hps(files / "hps.pt", words, architecture=GELU, preprocessing=preset)
        for words in (files / "clip-tokenizer", clip_words)
    )
    assert known.score([image], text) != other.score([image], text)
    assert known.identity != other.identity
    bert_words = swapped(bert_tokenizer_folder(tmp_path / "bert"), "vocab.txt", "d\n", "e\n")
    reward, strange = (
        load_image_reward(files / "image-reward.pt", words, size=BLIP)
        for words in (files / "bert-tokenizer", bert_words)
    )
    assert reward.score([image], text) != strange.score([image], text)
    assert reward.identity != strange.identity


@pytest.mark.parametrize("more", [1, -1])
def test_a_clip_vocabulary_of_another_size_is_refused(files: Path, tmp_path: Path, more: int) -> None:
    """transformers numbers begin and end behind the words where the file lacks them."""
    path = clip_tokenizer_folder(tmp_path / "clip") / "vocab.json"
    words = json.loads(path.read_text())
    words = {**words, "zebra": len(words)} if more > 0 else {word: at for word, at in words.items() if at}
    path.write_text(json.dumps(words))
    with pytest.raises(CorruptDataError, match=r"the tokenizer in .* has \d+ words, the model \d+"):
        load_hps(files / "hps.pt", path.parent, architecture=GELU, preprocessing=small(GELU, pixels.HPS))


def test_the_same_vocabulary_in_other_files_is_the_same_identity(files: Path, tmp_path: Path) -> None:
    for name, read in (("clip-tokenizer", clip_tokenizer), ("bert-tokenizer", bert_tokenizer)):
        plain = read(files / name)
        plain.save_pretrained(tmp_path / name)
        assert not (tmp_path / name / "vocab.txt").exists()
        assert words_digest(read(tmp_path / name)) == words_digest(plain)


def test_texts_that_are_read_otherwise_are_another_identity(files: Path) -> None:
    clips = [
        load_clip_features(files / "hps.pt", files / "clip-tokenizer", GELU, small(GELU, pixels.HPS), unescape=unescape)
        for unescape in (True, False)
    ]
    assert clips[0].identity != clips[1].identity


def test_a_score_that_is_no_number_is_unscored(files: Path, tmp_path: Path) -> None:
    state = open_clip_state(GELU, seed=3)
    state["visual.proj"] *= 0
    weights = save(state, tmp_path / "zero.pt")
    preset = small(GELU, pixels.HPS)
    scorer = load_hps(weights, files / "clip-tokenizer", architecture=GELU, preprocessing=preset)
    assert scorer.score([picture(9, 9)], ["a"]) == [Unscored("the cosine is nan")]
    with pytest.raises(TrainingError, match="gave no score for prompt 'a dog': the cosine is nan"):
        ScorerReward(scorer)(picture(9, 9)[None], [Prompt(id="0", text="a dog")])


def test_clip_score_s_two_ways_to_resize_are_two_scorers() -> None:
    made = {name: random_weights.scorer(name, small=True, compute=Compute()) for name in CLIP_SCORES}
    assert [scorer.name for scorer in made.values()] == list(CLIP_SCORES)
    resized = [scorer.identity["preprocessing"] for scorer in made.values()]
    assert [(each["resample"], each["filter"]) for each in resized] == [("pillow", "bicubic"), ("float", "bilinear")]
    shown = pictures(2, sides=(300, 340))
    plain, tensor = (scorer.score(shown, PROMPTS[:2]) for scorer in made.values())
    assert plain != tensor
    assert plain == pytest.approx(tensor, abs=0.05)
    benchmark = BENCHMARKS.load("drawbench")(
        options={"scorers": "+".join(CLIP_SCORES), "scale.clip-score-tensor": "x100"}
    )
    assert benchmark.panel.names == CLIP_SCORES


CLIP_SCORES = ("clip-score", "clip-score-tensor")


def test_names_and_units(files: Path) -> None:
    made = [make(name, files, Compute()) for name in NAMES]
    assert [each.name for each in made] == ["hps-v2.1", "clip-score", "pickscore", "aesthetic", "image-reward"]
    assert all(each.unit for each in made)
    assert HPS(clip=made[0].clip, version="v2.0").name == "hps-v2.0"  # type: ignore[attr-defined]
    assert isinstance(made[2], PickScore)
    assert isinstance(made[3], Aesthetic)
    assert isinstance(made[4], ImageReward)


def test_display_scales() -> None:
    assert scale("hps-v2.1", "x100")(0.28) == pytest.approx(28)
    assert scale("pickscore", "/26")(22.1) == pytest.approx(0.85)
    assert scale("clip-score", "x100")(-0.1) == 0
    assert scale("image-reward", "raw")(-1.5) == -1.5
    assert scale("deqa", "/5")(4) == pytest.approx(0.8)
    assert set(SCALES) <= set(SCORERS)
    with pytest.raises(ConfigError, match="no display scale '/27'"):
        scale("pickscore", "/27")


# ---------------------------------------------------------------- as rewards, from the models folder


def test_missing_weights_say_where_to_get_them_and_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path))
    for name in LOCAL:
        with pytest.raises(PrerequisiteError, match="is missing") as caught:
            SCORERS.load(name)()
        assert str(tmp_path / "weights") in str(caught.value)
        assert "models fetch" in caught.value.hint or str(tmp_path / "weights") in caught.value.hint
        if name in REWARDS.entries:
            with pytest.raises(PrerequisiteError, match="is missing"):
                REWARDS.load(name)()
    with pytest.raises(PrerequisiteError, match=r"pickscore lacks PickScore_v1.*; image-reward lacks ImageReward\.pt"):
        require(["pickscore", "image-reward"])


def test_a_scorer_is_loaded_from_the_weights_folder(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, in miniature: only the architecture is another."""
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path))
    monkeypatch.setitem(ARCHITECTURES, "ViT-H-14", replace(GELU, pixels=224, patch=112))
    state = open_clip_state(ARCHITECTURES["ViT-H-14"], seed=8)
    folder = tmp_path / "weights"
    clip_tokenizer_folder(folder / "clip-vit-large-patch14")
    save(state, folder / "HPS_v2.1_compressed.pt", epoch=1)
    require(["hps-v2.1"])
    scorer = SCORERS.load("hps-v2.1")()
    image = picture(50, 40)
    expected = expected_cosine(
        ARCHITECTURES["ViT-H-14"],
        8,
        pixels.HPS(image).double().numpy(),
        clip_ids(scorer.clip.tokenizer, ["a dog"], GELU.context)[0].tolist(),
    )
    assert scorer.score([image], ["a dog"]) == pytest.approx([expected], abs=1e-5)
    trained_on = WeightedSum([RewardConfig(name="hps-v2.1", weight=10), RewardConfig(name="hps-v2.1", weight=-9)])
    output = trained_on(np.stack([image, image[::-1]]), [Prompt(id="0", text="a dog")] * 2)
    assert output.values_B == pytest.approx(scorer.score([image, image[::-1]], ["a dog"] * 2))


def test_hpsv2_s_own_code_is_an_option_that_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path))
    with pytest.raises(PrerequisiteError, match=r"HPS_v2\.1_compressed\.pt is missing"):
        SCORERS.load("hpsv2-package-v2.1")()
    save(open_clip_state(GELU), tmp_path / "weights" / "HPS_v2.1_compressed.pt")
    monkeypatch.setitem(sys.modules, "hpsv2", None)  # as where it is not installed
    with pytest.raises(PrerequisiteError, match="the package hpsv2 cannot be imported"):
        SCORERS.load("hpsv2-package-v2.1")()


def test_a_picture_on_which_hpsv2_fails_is_unscored() -> None:
    class Model(torch.nn.Module):
        """Like hpsv2's: features of unit length, and a fixed size of pictures."""

        def forward(self, pixels_BCYX: torch.Tensor, ids_BT: torch.Tensor) -> dict[str, torch.Tensor]:
            if pixels_BCYX.shape[2:] != (8, 8):
                raise RuntimeError("The size of tensor a (9) must match the size of tensor b (8)\nat dimension 1")
            half = pixels_BCYX.mean(dim=(1, 2, 3))[:, None]
            return {"image_features": half, "text_features": ids_BT[:, :1].float()}

    scorer = HpsPackage(
        model=Model(),
        preprocess=lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255,
        tokenize=lambda texts: torch.tensor([[len(text)] for text in texts]),
        version="v2.1",
        weights="xxh3:0",
        compute=Compute(),
    )
    scores = scorer.score([np.full((8, 8, 3), 51, np.uint8), picture(9, 8)], ["four", "a"])
    assert scores[0] == pytest.approx(0.8)
    assert scores[1] == Unscored("hpsv2 failed: The size of tensor a (9) must match the size of tensor b (8)")
    several = replace(scorer, compute=Compute(batch_size=4))  # as on a GPU: one that fails takes no other with it
    shown = [*(np.full((8, 8, 3), level, np.uint8) for level in (51, 102)), picture(9, 8), picture(9, 8), picture(8, 8)]
    texts = ["four", "four", "a", "b", "four"]
    alone = [scorer.score([image], [text])[0] for image, text in zip(shown, texts, strict=True)]
    assert [isinstance(each, Unscored) for each in several.score(shown, texts)] == [False, False, True, True, False]
    assert several.score(shown, texts)[2:4] == alone[2:4]
    assert several.score(shown[:2], texts[:2]) == pytest.approx(alone[:2])
    assert scorer.name == "hpsv2-package-v2.1"


def test_a_scorer_is_a_reward(files: Path) -> None:
    scorer = make("pickscore", files, Compute())
    batch_BYXC = np.stack(pictures(3, sides=(24, 25)))
    prompts = [Prompt(id=str(row), text=text) for row, text in enumerate(PROMPTS[:3])]
    output = ScorerReward(scorer)(batch_BYXC, prompts)
    assert list(output.values_B) == scorer.score(batch_BYXC, PROMPTS[:3])


def test_random_states_are_exact_in_single_precision() -> None:
    assert all(torch.equal(value, value.float().double()) for value in random_state({"a": (5, 5)}, 0).values())


def test_self_tests_show_a_red_disc_on_white_and_stripes() -> None:
    disc, stripes = plain_pictures()
    red = (disc == (220, 30, 30)).all(axis=-1)
    assert red[32, 32]
    assert (disc[~red] == 255).all()
    assert red.mean() == pytest.approx(math.pi / 4**2, rel=0.05)  # its radius is a quarter of the side
    assert (stripes[:, ::2] == 255).all()
    assert not stripes[:, 1::2].any()

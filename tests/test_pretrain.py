"""Starting weights: made from nothing, the same each time; those in the package are the ones their record names."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from gcpo_bench import runs, scenes, streams
from gcpo_bench.errors import ConfigError
from gcpo_bench.training.checkpoints import load_weights
from gcpo_bench.training.muon import Muon, orthogonalize
from gcpo_bench.training.policies.scenes import build
from gcpo_bench.training.pretrain import RECIPES, Recipe, pretrain, told_by, training_rows
from gcpo_bench.training.starts import packaged_weights


def test_the_same_seed_makes_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (
        pretrain("scenes-8", tmp_path / name, seed=seed, max_steps=3) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first["checksum"] == again["checksum"] != other["checksum"]
    assert first["steps"] == 3
    load_weights(build("scenes-8"), tmp_path / "a/scenes-8.safetensors", expected_checksum=first["checksum"])


def test_pretraining_learns(tmp_path: Path) -> None:
    losses: list[float] = []
    pretrain("scenes-8", tmp_path, max_steps=40, on_step=lambda metrics: losses.append(metrics["loss/total"]))
    assert losses[0] == pytest.approx(math.log(scenes.tokenizer("scenes-8").vocab_size), abs=0.1)  # knows nothing yet
    assert losses[-1] < 0.3 * losses[0]


def test_captions_are_of_the_training_grammar_and_a_tenth_is_dropped() -> None:
    policy = build("scenes-8")
    known = {prompt.text for prompt in scenes.train_prompts()}
    captions = [c for step in range(8) for c in training_rows(policy, Recipe(steps=1, word_dropout=0.0), 0, step)[0]]
    named = [" ".join(word or "?" for word in caption) for caption in captions if caption is not None]
    assert set(named) <= known
    assert 0.03 < 1 - len(named) / len(captions) < 0.2


def test_dropped_words_leave_the_others_in_their_places() -> None:
    policy = build("scenes-8")
    known = [prompt.text.split() for prompt in scenes.train_prompts()]
    captions = training_rows(policy, Recipe(steps=1, word_dropout=0.5, caption_dropout=0.0), 0, 1)[0]
    for caption in captions:
        assert caption is not None
        assert any(
            len(words) == len(caption) and all(c in (None, w) for c, w in zip(caption, words, strict=True))
            for words in known
        )
    dropped = [word is None for caption in captions for word in caption or ()]
    assert 0.3 < sum(dropped) / len(dropped) < 0.7
    ids = policy.prompt_ids([["a", None, "of"], "a photo of"])
    assert ids[0].tolist()[1] == 0
    assert ids[0].tolist()[::2] == ids[1].tolist()[::2]


def test_what_a_dropped_word_said_is_open_and_the_rest_still_holds() -> None:
    prompt = next(p for p in scenes.train_prompts() if p.text == "a photo of a red circle and an orange square")
    words: list[str | None] = [word if word not in ("red", "square") else None for word in prompt.text.split()]
    told = [told_by(prompt, words, streams.generator(0, "test", k)).metadata["include"] for k in range(60)]
    assert {first["class"] for first, _ in told} == {"circle"}
    assert not any("color" in first for first, _ in told)
    assert {second["class"] for _, second in told} == set(scenes.SHAPES) - {"circle"}
    assert {second["color"] for _, second in told} == {"orange"}


def test_dropped_number_and_relation_are_open() -> None:
    counting = next(p for p in scenes.train_prompts() if p.text == "a photo of two squares")
    told = [
        told_by(counting, ["a", "photo", "of", None, "squares"], streams.generator(0, "test", k)) for k in range(30)
    ]
    assert {item.metadata["include"][0]["count"] for item in told} == set(scenes.NUMBERS)
    position = next(p for p in scenes.train_prompts() if p.text == "a photo of a circle left of a square")
    words = ["a", "photo", "of", "a", "circle", None, "of", "a", "square"]
    assert not any(
        "position" in clause for clause in told_by(position, words, streams.generator(0, "test")).metadata["include"]
    )


def test_a_whole_caption_binds_the_whole_picture() -> None:
    for prompt in scenes.train_prompts()[::97]:
        assert told_by(prompt, prompt.text.split(), streams.generator(0, "test")) == prompt


@pytest.mark.parametrize("model", sorted(RECIPES))
def test_packaged_weights_match_their_record(model: str) -> None:
    path, expected = packaged_weights(model)
    assert runs.checksum(path) == expected
    load_weights(build(model), path, expected_checksum=expected)
    record = runs.read_json(path.with_suffix(".json"))
    assert record["command"].startswith(f"gcpo-bench pretrain --model {model} --seed ")
    assert record["steps"] == (RECIPES[model].stop_after or RECIPES[model].steps)
    assert path.stat().st_size < 4_000_000


def test_a_model_without_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pretraining recipe"):
        pretrain("janus-pro-1b", tmp_path)


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
def test_orthogonalizing_pulls_singular_values_towards_1(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalize(matrix)
    singular = torch.linalg.svdvals(result)
    assert 0.6 < singular.min() <= singular.max() < 1.3
    # the singular vectors stay: the result is near U V^T
    assert torch.linalg.matrix_norm(result - left @ right, ord=2) < 0.4


def test_muon_descends_a_quadratic() -> None:
    target = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([weight], lr=0.05)
    for _ in range(200):
        loss = (weight - target).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss < 0.01 * target.square().mean()

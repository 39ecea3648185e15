"""The embedded world: what may be asked, what is drawn, and that tokenizing loses nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcpo_bench import scenes
from gcpo_bench.addresses import prompts_digest
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError
from gcpo_bench.scenes import COLORS, HELD_OUT_COLORED, HELD_OUT_ORDERS, SHAPES, TASKS, WORLDS

worlds = st.sampled_from(sorted(WORLDS))
prompts = st.sampled_from(scenes.train_prompts() + scenes.held_out_prompts())


def order(prompt: Prompt) -> tuple[str, ...]:
    """Shapes as the caption names them."""
    singular = {word: shape for shape in SHAPES for word in (shape, scenes.plural(shape))}
    return tuple(singular[word] for word in prompt.text.split() if word in singular)


def test_each_task_has_48_held_out_prompts_and_no_text_or_id_twice() -> None:
    held_out = scenes.held_out_prompts()
    assert Counter(prompt.tag for prompt in held_out) == dict.fromkeys(TASKS, 48)
    everything = held_out + scenes.train_prompts()
    assert len({prompt.text for prompt in everything}) == len({prompt.id for prompt in everything}) == len(everything)


def test_no_training_caption_names_a_held_out_combination() -> None:
    for prompt in scenes.train_prompts():
        assert order(prompt) not in HELD_OUT_ORDERS
        for clause in prompt.metadata["include"]:
            assert (clause.get("color"), clause["class"]) not in HELD_OUT_COLORED


def test_every_held_out_prompt_but_those_held_out_by_wording_holds_a_held_out_combination() -> None:
    for prompt in scenes.held_out_prompts():
        named = {(clause.get("color"), clause["class"]) for clause in prompt.metadata["include"]}
        assert (
            prompt.tag == "single_object"
            or order(prompt) in HELD_OUT_ORDERS
            or named & HELD_OUT_COLORED
            or prompt.tag == "counting"
        )


def test_held_out_combinations_are_spread_evenly() -> None:
    assert set(Counter(shape for _, shape in HELD_OUT_COLORED).values()) == {1}
    assert set(Counter(color for color, _ in HELD_OUT_COLORED).values()) == {1}
    for place in (0, 1):
        assert sorted(pair[place] for pair in HELD_OUT_ORDERS) == sorted(SHAPES)


def test_every_number_of_every_shape_is_counted_in_training_and_in_evaluation() -> None:
    for prompts_of in (scenes.train_prompts(), scenes.held_out_prompts()):
        counted = {
            (clause["class"], clause["count"])
            for prompt in prompts_of
            if prompt.tag == "counting"
            for clause in prompt.metadata["include"]
        }
        assert len(counted) == len(SHAPES) * len(scenes.NUMBERS)


def test_the_other_order_of_a_held_out_pair_occurs_in_training() -> None:
    known = {order(prompt) for prompt in scenes.train_prompts()}
    assert {(second, first) for first, second in HELD_OUT_ORDERS} <= known


def test_held_out_prompts_use_no_word_that_training_does_not() -> None:
    assert {word for prompt in scenes.held_out_prompts() for word in prompt.text.split()} <= set(scenes.words())


def test_prompts_follow_genevals_schema() -> None:
    by_text = {prompt.text: prompt.metadata for prompt in scenes.train_prompts()}
    # the object that a relation refers to comes first, and counting excludes one more
    assert by_text["a photo of a circle left of a square"]["include"] == [
        {"class": "square", "count": 1},
        {"class": "circle", "count": 1, "position": ["left of", 0]},
    ]
    counting = by_text["a photo of three circles"]
    assert counting["exclude"] == [{"class": "circle", "count": 4}]
    assert "a photo of an orange circle" in by_text


@settings(max_examples=60, deadline=None)
@given(world_name=worlds, prompt=prompts, seed=st.integers(0, 10_000))
def test_tokenizing_a_scene_loses_no_pixel(world_name: str, prompt: Prompt, seed: int) -> None:
    world, tokenizer = WORLDS[world_name], scenes.tokenizer(world_name)
    image = scenes.render(scenes.sample_scene(prompt, world, np.random.default_rng(seed)), world)
    tokens = tokenizer.encode(image[None])
    assert tokens.shape == (1, world.side**2)
    assert 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size
    np.testing.assert_array_equal(tokenizer.decode(tokens)[0], image)


@settings(max_examples=60, deadline=None)
@given(world_name=worlds, prompt=prompts, seed=st.integers(0, 10_000))
def test_a_scene_holds_what_the_prompt_asks_and_nothing_else(world_name: str, prompt: Prompt, seed: int) -> None:
    scene = scenes.sample_scene(prompt, WORLDS[world_name], np.random.default_rng(seed))
    asked = Counter({clause["class"]: clause["count"] for clause in prompt.metadata["include"]})
    assert Counter(item.shape for item in scene) == asked
    for first in range(len(scene)):
        for second in range(first):
            apart = max(abs(scene[first].row - scene[second].row), abs(scene[first].col - scene[second].col))
            assert apart >= WORLDS[world_name].spacing


def test_the_same_seed_draws_the_same_scene() -> None:
    prompt, world = scenes.held_out_prompts()[100], WORLDS["scenes-12"]
    first, again = (scenes.sample_scene(prompt, world, np.random.default_rng(7)) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("size", [10, 12])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_box(shape: str, size: int) -> None:
    mask = scenes.shape_mask(shape, size, size)
    assert mask[0].any()
    assert mask[-1].any()
    assert mask[:, 0].any()
    assert mask[:, -1].any()


@pytest.mark.parametrize("world_name", sorted(WORLDS))
def test_tokens_factor_into_colour_and_mask(world_name: str) -> None:
    tokenizer = scenes.tokenizer(world_name)
    palette = np.array([scenes.BACKGROUND, *COLORS.values()])
    for token, patch in enumerate(tokenizer.codebook):
        painted = (patch != scenes.BACKGROUND).any(axis=-1)
        assert (patch[painted] == palette[tokenizer.colors_V[token]]).all()
        assert painted.any() == bool(tokenizer.masks_V[token])
    pairs = set(zip(tokenizer.colors_V.tolist(), tokenizer.masks_V.tolist(), strict=True))
    assert len(pairs) == tokenizer.vocab_size


def test_a_patch_no_scene_can_hold_becomes_the_nearest_one() -> None:
    tokenizer, world = scenes.tokenizer("scenes-8"), WORLDS["scenes-8"]
    image = scenes.render((), world)
    image[0, 0] += 3  # a speck that is almost background
    assert tokenizer.encode(image[None])[0, 0] == 0


def test_unknown_names_are_told_with_a_guess() -> None:
    with pytest.raises(ConfigError, match="unknown world 'scenes-21'") as caught:
        scenes.get_world("scenes-21")
    assert "did you mean 'scenes-12'" in caught.value.hint
    with pytest.raises(ConfigError, match="unknown shape 'hart'"):
        scenes.shape_mask("hart", 10, 10)


def test_the_prompts_are_those_that_published_scores_are_of() -> None:
    """Another set under the same name would make every committed score, and every stored one, untrue."""
    assert prompts_digest(scenes.held_out_prompts()).startswith("b6b21c036dfe084b")
    assert prompts_digest(scenes.train_prompts()).startswith("f59b20ec95bba1f4")

"""T2I-CompBench's arithmetic against plain loops, on thousands of random detections and on cases done by hand."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from gcpo_bench.evaluators import compbench
from gcpo_bench.evaluators.compbench import (
    LOCALITIES_2D,
    LOCALITIES_3D,
    Nouns,
    asked_numbers,
    attribute_score,
    box_depth,
    complex_key,
    complex_pair,
    complex_parts,
    distinct,
    frame_size,
    from_frame,
    numeracy,
    pair,
    questions,
    read_nouns,
    spatial_2d,
    spatial_3d,
    three_in_one,
    without_adjectives,
)
from gcpo_bench.evaluators.types import Detection

from .reference import compbench as reference

PUBLISHED = Path(os.environ.get("GCPO_BENCH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
NOUNS = read_nouns(
    "dog - dogs\ncat - cats\nfish - fish\nman - men\nteddy bear - teddy bears\nship - ships\nphone - phones"
)
LABELS = ("dog", "cat", "person", "phone", "microphone", "wild cat", "catfish", "boat", "fish", "bear, teddy bear")

# few values, so that ties, shared borders, equal and empty boxes are frequent
SIDES = (0.0, 10.0, 20.0, 40.0, 95.5, 190.0, 245.5, 300.0, 479.0)
CONFIDENCES = (0.1, 0.25, 0.5, 0.5, 0.75, 0.999, 1.0)
NAMES = ("dog", "cat", "man", "girl", "phone", "fish")
SCENES = 3000


def found(label: str, confidence: float, *box: float) -> Detection:
    return Detection(label=label, confidence=confidence, box=(box[0], box[1], box[2], box[3]))


def scene(rng: random.Random, most: int = 20, sides: Sequence[float] = SIDES) -> list[Detection]:
    detections = []
    for _ in range(rng.randint(0, most)):
        (left, right), (top, bottom) = (sorted(rng.choices(sides, k=2)) for _ in range(2))
        detections.append(found(rng.choice(LABELS), rng.choice(CONFIDENCES), left, top, right, bottom))
    return detections


def plain(detections: list[Detection]) -> reference.Found:
    return [(each.label, each.confidence, each.box) for each in detections]


# ---------------------------------------------------------------- against plain loops


def test_2d_scores_are_those_of_the_plain_loops() -> None:
    rng = random.Random(1)
    scores = []
    for _ in range(SCENES):
        detections, nouns = scene(rng), rng.choices(NAMES, k=rng.randint(1, 3))
        prompt = f"a {nouns[0]} {rng.choice([*LOCALITIES_2D, 'under', 'nearby'])} a {nouns[-1]}"
        scores.append(spatial_2d(prompt, pair(nouns), detections))
        assert scores[-1] == reference.spatial_2d(prompt, nouns, plain(detections)), (prompt, detections)
    assert 0.2 < np.mean(np.array(scores) > 0) < 0.9  # scenes of both kinds


def test_3d_scores_are_those_of_the_plain_loops() -> None:
    rng = random.Random(2)
    positions = 0
    for _ in range(SCENES):
        detections = scene(rng, most=8, sides=(0.0, 5.0, 5.5, 10.0, 18.0, 24.9, 30.0))  # small, for quick loops
        nouns = rng.choices(NAMES, k=rng.randint(1, 3))
        prompt = f"a {nouns[0]} {rng.choice([*LOCALITIES_3D, 'hidden by', 'beside'])} a {nouns[-1]}"
        depth_YX = np.array(rng.choices([0.0, 0.5, 1.0], k=900)).reshape(30, 30)[
            : rng.choice([20, 30]), : rng.choice([9, 30])
        ]
        expected = reference.spatial_3d(prompt, nouns, plain(detections), depth_YX)
        depths = [box_depth(each.box, depth_YX) for each in detections]
        assert spatial_3d(prompt, pair(nouns), detections, depths) == pytest.approx(expected, abs=1e-12)
        positions += expected > 0.5
    assert positions > 20


def test_numeracy_is_that_of_the_plain_loops() -> None:
    rng = random.Random(3)
    words = {number: word for word, number in compbench.NUMBERS.items()} | {1: "one"}
    written = {"person": "man", "boat": "ship"}
    for _ in range(SCENES):
        detections = scene(rng)
        names = rng.choices(["dog", "cat", "person", "fish", "boat", "teddy bear"], k=rng.randint(1, 4))
        asked = [(name, rng.randint(1, 8)) for name in names]
        phrases = []
        for name, number in asked:
            noun = written.get(name, name)
            phrases.append(f"{words[number]} {noun if number == 1 else NOUNS.plural_of[noun]}")
        prompt = " and ".join(phrases)
        assert asked_numbers(prompt, NOUNS) == asked
        expected = reference.numeracy(asked, plain(detections))
        assert numeracy(prompt, NOUNS, detections) == pytest.approx(expected, abs=1e-12), (prompt, detections)


# ---------------------------------------------------------------- by hand


def test_both_objects_in_place() -> None:
    seen = [found("dog", 0.8, 0, 200, 100, 300), found("cat", 0.6, 300, 200, 400, 300)]
    assert spatial_2d("a dog on the left of a cat", ("dog", "cat"), seen) == pytest.approx(0.25 * 1.4 + 0.5)
    assert spatial_2d("a dog on the right of a cat", ("dog", "cat"), seen) == 0  # 0.35 is below 0.5
    assert spatial_2d("a dog on top of a cat", ("dog", "cat"), seen) == 0
    assert spatial_2d("a dog next to a cat", ("dog", "cat"), seen) == pytest.approx(0.85)  # |dy| is 0


def test_far_from_each_other_is_a_little_near() -> None:
    seen = [found("dog", 1, 0, 0, 100, 100), found("cat", 1, 300, 200, 400, 300)]  # 300 across, 200 down
    assert spatial_2d("a dog near a cat", ("dog", "cat"), seen) == pytest.approx(0.5 + 150 / 300 / 2)


def test_overlapping_objects_lose_position() -> None:
    seen = [found("dog", 1, 0, 0, 100, 100), found("cat", 1, 50, 0, 150, 100)]  # IoU 5000 / 15000
    assert spatial_2d("a dog on the left of a cat", ("dog", "cat"), seen) == pytest.approx(0.5 + 0.1 / (1 / 3) / 2)


def test_people_are_persons_and_labels_must_be_equal_in_2d() -> None:
    seen = [found("person", 1, 0, 0, 10, 10), found("microphone", 1, 40, 0, 50, 10)]
    assert pair(["girl", "road", "phone"]) == ("person", "phone")
    assert spatial_2d("a girl next to a phone", ("person", "phone"), seen) == 0  # the person alone is 0.25
    assert spatial_3d("a girl in front of a phone", ("person", "phone"), seen, [0.0, 0.0]) == 0.5


def test_depth_is_read_with_rows_and_columns_exchanged() -> None:
    depth_YX = np.zeros((479, 479))
    depth_YX[0:50, 100:200] = 1.0  # rows 0 to 50: what the box from x = 0 to 50 and y = 100 to 200 is given
    seen = [found("dog", 1, 0, 100, 50, 200), found("cat", 1, 10, 100, 60, 200)]
    common = 40 / 60
    assert common > 0.5
    depths = [box_depth(each.box, depth_YX) for each in seen]
    assert depths == [1.0, 0.8]
    assert [box_depth(each.box, depth_YX, exchanged=False) for each in seen] == [0.0, 0.0]
    assert spatial_3d("a dog in front of a cat", ("dog", "cat"), seen, depths) == 1
    assert spatial_3d("a dog behind a cat", ("dog", "cat"), seen, depths) == 0.5
    apart = [seen[0], found("cat", 1, 200, 100, 250, 200)]
    assert spatial_3d("a dog in front of a cat", ("dog", "cat"), apart, [1.0, 0.0]) == 0.5  # no overlap, no position


def test_an_empty_box_has_no_depth() -> None:
    seen = [found("dog", 1, 5, 5, 5.5, 80), found("cat", 1, 5, 5, 90, 80)]
    depths = [box_depth(each.box, np.ones((479, 479))) for each in seen]
    assert np.isnan(depths[0])
    assert spatial_3d("a dog behind a cat", ("dog", "cat"), seen, depths) == 0.5


def test_of_several_hits_the_last_before_both_are_known_counts() -> None:
    seen = [
        found("cat", 0.9, 0, 0, 10, 10),
        found("wild cat", 0.8, 0, 0, 10, 10),
        found("dog", 0.7, 0, 0, 10, 10),
        found("catfish", 0.6, 0, 0, 10, 10),
    ]
    score = spatial_3d("a cat beside a dog", ("cat", "dog"), seen, [0.0] * 4)
    assert score == pytest.approx(0.25 * 0.8 + 0.25 * 0.7)
    assert spatial_3d("a fish beside a cat", ("fish", "cat"), seen, [0.0] * 4) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("two dogs", [("dog", 2)]),
        ("a dog, three cats and one man", [("dog", 1), ("cat", 3), ("person", 1)]),
        ("Four fish", [("fish", 4)]),
        ("one fish", [("fish", 1)]),
        ("two teddy bears and a teddy bear", [("teddy bear", 2), ("teddy bear", 1)]),
        ("a dogs", [("dog", 1)]),
        ("two dog", [("dog", 2)]),
        ("three ships", [("boat", 3)]),
        ("two red dogs", []),
        ("dogs", []),
    ],
)
def test_numbers_and_their_objects(prompt: str, asked: list[tuple[str, int]]) -> None:
    assert asked_numbers(prompt, NOUNS) == asked


def test_an_object_seen_twice_counts_once_and_names_are_taken_over() -> None:
    whole, part = found("dog", 0.9, 0, 0, 99, 99), found("dog", 0.5, 0, 0, 49, 99)  # the part lies in the whole
    assert distinct([part, whole, found("cat", 0.4, 0, 0, 99, 99)]) == [whole, found("cat", 0.4, 0, 0, 99, 99)]
    assert numeracy("one dog", NOUNS, [whole, part]) == 1
    assert numeracy("two dogs", NOUNS, [whole, part]) == 0.5
    cats = [found("wild cat", 0.9, 0, 0, 9, 9), found("catfish", 0.8, 50, 50, 99, 99)]
    assert numeracy("two cats", NOUNS, cats) == 1
    # "cat" took the label over, so no fish is left
    assert numeracy("two cats and one fish", NOUNS, cats) == 0.5
    assert numeracy("one fish and two cats", NOUNS, cats) == pytest.approx(0.5 + 0.25)
    assert numeracy("one dog", NOUNS, []) == 0
    with pytest.raises(ValueError, match="no number of objects"):
        numeracy("dogs", NOUNS, cats)


def test_attributes_are_a_product_that_passes_through_four_decimals() -> None:
    assert attribute_score([]) == 1
    assert attribute_score([0.5, 0.5]) == 0.25
    assert attribute_score([0.12344999, 1.0]) == 0.1234
    assert attribute_score([0.00004]) == 0
    assert attribute_score([0.3333] * 3) == 0.037


def test_questions_leave_out_places_and_what_is_beyond_the_eighth() -> None:
    assert questions(["a red cube", "top", "the left", "a top"]) == ("a red cube?", "a top?")
    assert len(questions([f"thing {row}" for row in range(12)])) == 8
    assert questions([]) == ()


def test_three_in_one_takes_what_the_prompt_is_about() -> None:
    spatial, action = {complex_key("The red hat was on top of the rack.")}, {complex_key("A dog eats.")}
    scores = {"attribute": 0.9, "spatial": 0.6, "clip": 0.2}

    def score(prompt: str) -> float:
        return three_in_one({part: scores[part] for part in complex_parts(prompt, spatial, action)})

    assert score("The red hat was on top of the rack. ") == pytest.approx(0.75)
    assert score("a dog eats") == pytest.approx(0.55)
    assert score("A cat sleeps.") == pytest.approx(1.7 / 3)


def words(text: str) -> list[tuple[str, str]]:
    """`hat/NOUN on/ADP` -> words with their parts of speech; X where none is given."""
    return [(word, kind or "X") for word, _, kind in (each.partition("/") for each in text.split())]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the red/ADJ hat/NOUN was on top of the brown/ADJ coat/NOUN rack/NOUN .", ("hat", "coat")),
        ("the red/ADJ hat/NOUN was on the left of the girl/NOUN .", ("hat", "person")),
        ("the cat/NOUN sat near Big/PROPN Ben/PROPN .", ("cat", "Ben")),  # no noun after it: the end of a name
        ("the cat/NOUN sat near Big/PROPN Ben/PROPN", None),  # at the prompt's end a name has no end
        ("Tom/PROPN sat next to the dog/NOUN", ("Tom", "dog")),
        ("the cat/NOUN sat near the dog/NOUN near the tree/NOUN", None),  # four objects
        ("the cat/NOUN sat on the dog/NOUN .", None),
        ("near the dog/NOUN", None),  # one object
        ("the dog/NOUN was near", None),
        ("", None),
    ],
)
def test_the_objects_of_a_complex_prompt_stand_around_its_preposition(
    text: str, expected: tuple[str, str] | None
) -> None:
    assert complex_pair(words(text)) == expected
    assert reference.complex_objects(words(text)) == (list(expected) if expected else None)


def test_the_objects_of_random_words_are_those_of_the_plain_loops() -> None:
    rng = random.Random(4)
    pieces = ["cat/NOUN", "Tom/PROPN", "red/ADJ", "on top of", "next to", "near", "on the left", "on the", "left", "."]
    found_any = 0
    for _ in range(SCENES):
        prompt = words(" ".join(rng.choices(pieces, k=rng.randint(0, 9))))
        expected = reference.complex_objects(prompt)
        assert complex_pair(prompt) == (tuple(expected) if expected else None), prompt
        found_any += expected is not None
    assert found_any > SCENES / 10


def test_clip_is_asked_without_adjectives() -> None:
    assert without_adjectives(words("the red/ADJ hat/NOUN .")) == "the hat ."


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 512), (479, 479)), ((1024, 1024), (479, 479)), ((480, 640), (360, 480)), ((640, 480), (480, 360))],
)
def test_the_frame_has_479_pixels_on_its_short_side_and_480_at_most(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert frame_size(*size) == expected  # int(479 * 640 / 480) = 638 is too long; int(480 * 479 / 638) = 360
    (height, width), (frame_height, frame_width) = size, expected
    assert from_frame((0, 0, frame_width, frame_height), height, width) == (0, 0, width, height)
    half = from_frame((frame_width / 4, 0, frame_width / 2, frame_height / 2), height, width)
    assert half == (width / 4, 0, width / 2, height / 2)


def test_damaged_lists_of_nouns_are_refused() -> None:
    with pytest.raises(ValueError, match="line 2"):
        read_nouns("dog - dogs\ncats\n")
    assert isinstance(NOUNS, Nouns)
    with pytest.raises(ValueError, match="no noun"):
        pair([])


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no copies of the published sets here")
def test_every_published_numeracy_prompt_asks_for_something() -> None:
    nouns = read_nouns((PUBLISHED / "t2i-compbench" / "new_objects.txt").read_text())
    assert len(nouns.plural_of) == 88
    prompts = (PUBLISHED / "t2i-compbench" / "numeracy_val.txt").read_text().strip().splitlines()
    asked = [asked_numbers(prompt, nouns) for prompt in prompts]
    assert len(asked) == 300
    assert min(map(len, asked)) >= 1
    spatial = (PUBLISHED / "t2i-compbench" / "spatial_val.txt").read_text().strip().splitlines()
    assert all(compbench.locality(prompt, LOCALITIES_2D) for prompt in spatial)

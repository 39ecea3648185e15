"""GenEval's arithmetic against a slow oracle, and by hand where a reader can follow the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.evaluators.geneval import RELATIONS, GenEval, Options, keep, overlap, relations, summarize
from gcpo_bench.evaluators.types import Detection

from .reference import geneval as oracle

CLASSES = ("cat", "dog", "cup")
COLORS = ("red", "green", "blue")
judge = GenEval(CLASSES, COLORS)


def thing(
    label: str = "cat",
    confidence: float = 1.0,
    at: tuple[float, float] = (0, 0),
    color: str | None = "red",
    size: float = 10,
) -> Detection:
    return Detection(label=label, confidence=confidence, box=(*at, at[0] + size, at[1] + size), color=color)


def prompt(include: Any, tag: str = "two_object", **more: Any) -> Prompt:
    return Prompt(id="p-7", text="a prompt", metadata={"tag": tag, "include": include, **more})


def random_detection(rng: np.random.Generator, crowd: list[Detection]) -> Detection:
    near_edges = (0.3, float(np.nextafter(np.float32(0.3), np.float32(1))), 0.9, 0.90000001, 0.9000001, 1.0, 0.5, 0.29)
    confidence = float(rng.choice(near_edges)) if rng.random() < 0.5 else float(rng.random())
    if crowd and rng.random() < 0.25:  # identical boxes have no relation
        box = crowd[int(rng.integers(len(crowd)))].box
    else:
        left, top = (float(v) for v in rng.integers(0, 40, size=2))
        width, height = (float(v) for v in rng.integers(0, 30, size=2))  # 0: an empty mask's box
        box = (left, top, left + width, top + height)
    return Detection(label=str(rng.choice(CLASSES)), confidence=confidence, box=box, color=str(rng.choice(COLORS)))


def random_metadata(rng: np.random.Generator) -> dict[str, Any]:
    include: list[dict[str, Any]] = []
    for i in range(int(rng.integers(1, 4))):
        need: dict[str, Any] = {"class": str(rng.choice(CLASSES)), "count": int(rng.integers(1, 4))}
        if rng.random() < 0.4:
            need["color"] = str(rng.choice(COLORS))
        if i and rng.random() < 0.6:
            need["position"] = [str(rng.choice(RELATIONS)), int(rng.integers(i))]
        include.append(need)
    metadata: dict[str, Any] = {"tag": str(rng.choice(["counting", "position", "colors"])), "include": include}
    if rng.random() < 0.4:
        metadata["exclude"] = [{"class": str(rng.choice(CLASSES)), "count": int(rng.integers(1, 5))}]
    return metadata


def test_verdict_reason_and_dense_score_equal_the_slow_oracle() -> None:
    rng = np.random.default_rng(1)
    outcomes: set[tuple[bool, bool]] = set()
    complaints: set[str] = set()
    for _ in range(2500):
        found: list[Detection] = []
        for _ in range(int(rng.choice([0, 1, 2, 3, 5, 9, 60]))):  # 60: more than 16 of a class
            found.append(random_detection(rng, found))
        metadata = random_metadata(rng)
        got = judge(found, prompt(**metadata))
        objects = oracle.kept_objects(found, metadata["tag"])
        assert (got.correct, got.reason) == oracle.official(objects, metadata, COLORS)
        strict, dense = oracle.reward_server(objects, metadata)
        assert got.strict == strict
        assert got.dense == pytest.approx(dense, abs=1e-12)
        outcomes.add((got.correct, got.strict))
        complaints |= {line.split(" ")[0] for line in got.reason.splitlines()}
    # the draw reached every combination of the two verdicts and each kind of complaint
    assert outcomes == {(True, True), (True, False), (False, True), (False, False)}
    assert complaints == {"expected", "no"}


def test_suppression_of_overlaps_equals_the_slow_oracle() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        found: list[Detection] = []
        for _ in range(25):
            found.append(random_detection(rng, found))
        limit = float(rng.choice([0.0, 0.1, 0.5, 0.9, 1.0]))
        assert keep(found, "colors", Options(max_overlap=limit)) == oracle.kept_objects(found, "colors", 16, limit)


def test_relations_equal_the_slow_oracle() -> None:
    rng = np.random.default_rng(3)
    seen: set[tuple[str, ...]] = set()
    for _ in range(3000):
        a, b = ((x, y, x + w, y + h) for x, y, w, h in rng.integers(0, 50, size=(2, 4)).tolist())
        assert list(relations(a, b)) == oracle.relation_names(a, b)
        seen.add(relations(a, b))
    assert len(seen) == 9  # none, four single ones, four corners


def test_a_confidence_equal_to_the_threshold_in_float32_is_not_enough() -> None:
    just_above = float(np.nextafter(np.float32(0.3), np.float32(1)))
    assert keep([thing(confidence=0.3), thing(confidence=0.3 + 1e-9)], "colors") == {}  # both round to float32(0.3)
    assert len(keep([thing(confidence=just_above)], "colors")["cat"]) == 1
    assert keep([thing(confidence=0.9)], "counting") == {}
    assert len(keep([thing(confidence=0.91)], "counting")["cat"]) == 1


def test_the_sixteen_most_confident_of_a_class_are_kept() -> None:
    found = [thing(confidence=0.4 + 0.02 * i) for i in range(20)]
    assert [d.confidence for d in keep(found, "colors")["cat"]] == [0.4 + 0.02 * i for i in range(19, 3, -1)]


def test_of_equally_confident_objects_the_later_comes_first() -> None:
    first, second = thing(color="red"), thing(color="blue")
    assert keep([first, second], "colors") == {"cat": [second, first]}


def test_iou_counts_the_last_pixel() -> None:
    # 10x10 -> 11*11 = 121 each; shifted by 5: 6*11 = 66 common; 66 / (242 - 66)
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(66 / 176)
    assert overlap((0, 0, 10, 10), (11, 0, 20, 10)) == 0
    assert overlap((5, 5, 4, 4), (9, 9, 8, 8)) == 0  # boxes without any pixel


def test_a_relation_needs_more_than_a_tenth_of_both_sizes() -> None:
    # two boxes of 10: dead zone 2; at 2 no relation, at 4 (4 - 2) / 4 = 0.5 is not enough, at 5 (5 - 2) / 5 = 0.6 is
    other = (0.0, 0.0, 10.0, 10.0)
    assert [relations((dx, 0, dx + 10, 10), other) for dx in (2, 4, 5)] == [(), (), ("right of",)]
    assert relations((50, 60, 60, 70), other) == ("right of", "below")
    assert relations(other, other) == ()


def test_extra_objects_are_accepted_but_not_strictly() -> None:
    verdict = judge([thing(), thing(), thing("dog")], prompt([{"class": "cat", "count": 1}]))
    assert verdict.correct
    assert not verdict.strict
    assert verdict.dense == 0.0  # 1 - |1 - 2| / 1


def test_far_too_many_objects_give_a_negative_dense_score() -> None:
    verdict = judge([thing() for _ in range(30)], prompt([{"class": "cat", "count": 1}]))
    assert verdict.dense == -14.0  # 16 are kept: 1 - |1 - 16| / 1


def test_a_wrong_position_still_scores_half_of_its_part() -> None:
    need = [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}]
    verdict = judge([thing("cat"), thing("dog", at=(50, 0))], prompt(need))
    assert not verdict.correct
    assert verdict.reason == "expected dog left of target, found right of target"
    assert verdict.dense == pytest.approx(3 / 4)  # counts 1, 1; position 0 and then 1


def test_a_position_without_its_target_is_wrong() -> None:
    need = [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}]
    verdict = judge([thing("dog")], prompt(need))
    assert verdict.reason == "expected cat>=1, found 0\nno target for dog to be left of"
    assert verdict.dense == pytest.approx(1 / 3)  # 0, 1, 0


def test_the_reason_names_the_colours_found() -> None:
    verdict = judge(
        [thing(color="blue"), thing(color="green", confidence=0.8)],
        prompt([{"class": "cat", "count": 2, "color": "red"}]),
    )
    assert verdict.reason == "expected red cat>=2, found 0 red; and 1 green, 1 blue"


def test_excluded_classes_count_every_kept_object() -> None:
    need = prompt([{"class": "cat", "count": 2}], "counting", exclude=[{"class": "cat", "count": 3}])
    assert judge([thing(), thing()], need).correct
    assert judge([thing(), thing(), thing(confidence=0.85)], need).correct  # below counting's threshold
    verdict = judge([thing(), thing(), thing()], need)
    assert verdict.reason == "expected cat<3, found 3"
    assert not verdict.strict


def test_an_object_without_colour_cannot_be_judged_by_colour() -> None:
    assert judge([thing(color=None)], prompt([{"class": "cat", "count": 1}])).correct
    with pytest.raises(ValueError, match="classify the kept objects first"):
        judge([thing(color=None)], prompt([{"class": "cat", "count": 1, "color": "red"}]))


CAT = {"class": "cat", "count": 1}


@pytest.mark.parametrize(
    ("metadata", "message", "hint"),
    [
        ({"include": [{**CAT, "class": "cta"}]}, "include[0].class is 'cta'", "did you mean 'cat'"),
        ({"include": [{**CAT, "color": "grene"}]}, "include[0].color is 'grene'", "did you mean 'green'"),
        ({"include": [{"count": 1}]}, "include[0].class is None", "known: cat"),
        ({"include": [{"class": "cat"}]}, "include[0].count is None", "whole number"),
        ({"include": [{**CAT, "count": 0}]}, "include[0].count is 0", "whole number"),
        ({"include": [{**CAT, "count": True}]}, "include[0].count is True", "whole number"),
        ({"include": [{**CAT, "colour": "red"}]}, "include[0].colour is no field", "did you mean 'color'"),
        ({"include": [CAT, {**CAT, "position": ["left", 0]}]}, "include[1].position is 'left'", "left of"),
        ({"include": [CAT, {**CAT, "position": ["above", 1]}]}, "refers to include 1", "earlier entry"),
        ({"include": [CAT, {**CAT, "position": ["above", -1]}]}, "refers to include -1", "earlier entry"),
        ({"include": [CAT, {**CAT, "position": "above"}]}, "include[1].position is 'above'", "[relation, index]"),
        ({"include": ["cat"]}, "include[0] is 'cat'", "an object with"),
        ({"include": "cat"}, "include is 'cat'", "list of objects"),
        ({"include": []}, "include is empty", "must demand something"),
        ({"include": [CAT], "exclude": [{"class": "cow", "count": 2}]}, "exclude[0].class is 'cow'", "known"),
        ({"include": [CAT], "exclude": [{**CAT, "color": "red"}]}, "exclude[0].color is no field", "known"),
    ],
)
def test_bad_metadata_is_refused_with_prompt_and_field(metadata: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(CorruptDataError) as error:
        judge([thing()], Prompt(id="p-7", text="", metadata={"tag": "colors", **metadata}))
    assert "prompt 'p-7': metadata field" in str(error.value)
    assert message in str(error.value)
    assert hint in error.value.hint


@pytest.mark.parametrize("wrong", [{"threshold": 1.5}, {"max_overlap": -0.1}, {"max_objects": 0}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Options(**wrong)


def test_the_summary_weighs_every_task_alike() -> None:
    summary = summarize(
        [
            ("a", "colors", True),
            ("a", "colors", False),
            ("b", "colors", False),
            ("b", "colors", False),
            ("c", "one", True),
        ]
    )
    assert summary.tasks == {"colors": 0.25, "one": 1.0}
    assert list(summary.tasks) == ["colors", "one"]
    assert summary.overall == 0.625  # (1/4 + 1) / 2
    assert summary.images == 0.4  # 2 of 5
    assert summary.prompts == pytest.approx(2 / 3)  # a and c


def test_a_summary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        summarize([])

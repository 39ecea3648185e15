"""The benchmark and rewards of the embedded world: the truth scores 1, tricks score 0, errors of the mean are right."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.evaluators import geneval, scenes
from gcpo_bench.evaluators.scenes import ANOMALIES, ScenesBenchmark, golden_cases, judge, self_test
from gcpo_bench.evaluators.types import SampleScore
from gcpo_bench.registry import BENCHMARKS, REWARDS
from gcpo_bench.scenes import (
    COLORS,
    SHAPES,
    TASKS,
    WORLDS,
    SceneObject,
    held_out_prompts,
    render,
    sample_scene,
    tokenizer,
    train_prompts,
)

REWARD_NAMES = ("geneval", "geneval-dense", "scene-strict")


def true_images(prompts: tuple[Prompt, ...], world: str) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(11)
    return np.stack([render(sample_scene(prompt, WORLDS[world], rng), WORLDS[world]) for prompt in prompts])


def item(shape: str, color: str, row: int, col: int, size: int = 12) -> SceneObject:
    return SceneObject(shape=shape, color=color, size=size, row=row, col=col)


def picture(*items: SceneObject, world: str = "scenes-12") -> npt.NDArray[np.uint8]:
    return render(items, WORLDS[world])


def asked(*include: dict[str, Any], tag: str = "two_object", **more: Any) -> Prompt:
    return Prompt(id="x", text="x", metadata={"tag": tag, "include": list(include), **more})


CIRCLE = {"class": "circle", "count": 1}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("tokenized", [False, True], ids=["rendered", "through the tokenizer"])
def test_every_true_picture_is_exactly_right(world: str, tokenized: bool) -> None:
    prompts = (*held_out_prompts(), *train_prompts()[::19])
    images = true_images(prompts, world)
    if tokenized:
        codec = tokenizer(world)
        images = codec.decode(codec.encode(images))
    for (values, reason, found), prompt in zip(judge(images, prompts), prompts, strict=True):
        assert values == {"correct": 1, "strict": 1, "extra_objects": 0, "unknown_blobs": 0, "dense": 1}, prompt.text
        assert reason == ""
        assert len(found) == sum(clause["count"] for clause in prompt.metadata["include"])


def test_a_picture_of_another_prompt_is_hardly_ever_right() -> None:
    prompts = held_out_prompts()
    images = true_images(prompts, "scenes-12")
    by_task = {tag: [i for i, prompt in enumerate(prompts) if prompt.tag == tag] for tag in TASKS}
    # within a task, the picture of the prompt 20 places on
    others = [rows[(k + 20) % len(rows)] for rows in by_task.values() for k in range(len(rows))]
    values = [values["strict"] for values, _, _ in judge(images[others], prompts)]
    same = [
        prompts[i].metadata["include"] == prompts[j].metadata["include"]
        for i, j in zip(range(288), others, strict=True)
    ]
    assert np.mean(values) - np.mean(same) < 0.15


def test_an_empty_canvas_is_never_right() -> None:
    prompts = held_out_prompts()
    for values, reason, found in judge(np.stack([picture()] * len(prompts)), prompts):
        assert (values["correct"], values["strict"]) == (0, 0)
        assert "found 0" in reason
        assert reason.endswith("in the picture: no object")
        assert found == ()


def test_covering_the_canvas_with_objects_is_right_for_geneval_and_wrong_strictly() -> None:
    """The known way to please GenEval: draw everything."""
    crowd = [item(shape, "red", 1 + 4 * (i // 3), 1 + 4 * (i % 3)) for i, shape in enumerate(SHAPES)]
    ((values, reason, _),) = judge(picture(*crowd)[None], [asked(CIRCLE)])
    assert (values["correct"], values["strict"], values["extra_objects"]) == (1, 0, 7)
    assert "not asked for: 7 objects, 0 unknown blobs" in reason


def test_specks_are_right_for_geneval_and_wrong_strictly() -> None:
    image = picture(item("circle", "red", 1, 1))
    image[40, 40] = COLORS["blue"]
    ((values, reason, _),) = judge(image[None], [asked(CIRCLE)])
    assert (values["correct"], values["strict"], values["unknown_blobs"]) == (1, 0, 1)
    assert reason == "not asked for: 0 objects, 1 unknown blob\nin the picture: 1 red circle"


def test_an_uncertain_extra_object_hides_from_counting_but_not_from_strict() -> None:
    image = picture(*(item("square", "red", 1, 1 + 4 * k) for k in range(3)))
    image[0:4, 0:4] = picture()[0, 0]  # a bite out of the first: below counting's 0.9
    need = asked({"class": "square", "count": 2}, tag="counting", exclude=[{"class": "square", "count": 3}])
    ((values, _, found),) = judge(image[None], [need])
    assert len(found) == 3
    assert (values["correct"], values["strict"], values["extra_objects"]) == (1, 0, 1)


def test_the_reason_says_what_was_expected_and_what_is_there() -> None:
    image = picture(item("circle", "blue", 1, 1), item("square", "red", 1, 8))
    ((_, reason, _),) = judge(image[None], [asked({**CIRCLE, "color": "red"}, {"class": "square", "count": 1})])
    assert reason == "expected red circle>=1, found 0 red; and 1 blue\nin the picture: 1 blue circle, 1 red square"


@pytest.mark.parametrize("world", WORLDS)
def test_images_of_each_world_are_accepted_whatever_the_benchmark_expects(world: str) -> None:
    prompts = held_out_prompts()[:3]
    scored = ScenesBenchmark("scenes-8").score(true_images(prompts, world), prompts)
    assert [values["strict"] for values, _, _ in scored] == [1, 1, 1]


def test_images_and_prompts_must_be_equally_many() -> None:
    with pytest.raises(ValueError, match="2 images for 1 prompts"):
        judge(np.stack([picture()] * 2), [asked(CIRCLE)])


def test_the_benchmark_says_which_images_it_cannot_score() -> None:
    benchmark = ScenesBenchmark()
    assert benchmark.problem(picture()) == ""
    assert "images are 20x20 pixels" in benchmark.problem(np.zeros((20, 20, 3), dtype=np.uint8))
    with pytest.raises(ConfigError, match="unknown world 'scenes-9'"):
        ScenesBenchmark("scenes-9")


# ---------------------------------------------------------------- self-test


@pytest.mark.parametrize("world", WORLDS)
def test_the_self_test_holds_right_and_wrong_pictures_and_passes(world: str) -> None:
    assert {case.expected[0] for case in golden_cases(world)} == {0, 1}
    self_test(world)


@pytest.mark.parametrize("name", REWARD_NAMES)
def test_no_score_comes_from_an_evaluator_that_fails_its_self_test(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = golden_cases("scenes-12")
    broken = dataclasses.replace(first, expected=(0, 0, 0, 0))
    monkeypatch.setattr(scenes, "golden_cases", lambda world: (broken, *rest))
    for score in (REWARDS.load(name)(), ScenesBenchmark().score):
        with pytest.raises(CorruptDataError, match="evaluator 'scenes' self-test failed: the asked object") as error:
            score(picture()[None], [asked(CIRCLE)])
        assert error.value.exit_code == 5


def test_the_self_test_notices_a_broken_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "detect", lambda images: [((), 0)] * len(images))
    with pytest.raises(CorruptDataError, match="self-test failed"):
        self_test("scenes-12")


# ---------------------------------------------------------------- rewards


def test_each_reward_gives_its_value_and_the_anomalies() -> None:
    prompts = [asked(CIRCLE)] * 3
    images = np.stack(
        [
            picture(item("circle", "red", 1, 1)),
            picture(item("circle", "red", 1, 1), item("circle", "blue", 5, 1), item("star", "blue", 5, 9)),
            picture(),
        ]
    )
    outputs = {name: REWARDS.load(name)()(images, prompts) for name in REWARD_NAMES}
    assert outputs["geneval"].values_B == (1, 1, 0)
    assert outputs["geneval-dense"].values_B == (1, 0, 0)  # two circles: 1 - |1 - 2| / 1
    assert outputs["scene-strict"].values_B == (1, 0, 0)
    for output in outputs.values():
        assert tuple(output.anomalies) == ANOMALIES
        assert output.anomalies["correct"] == (1, 1, 0)
        assert output.anomalies["strict"] == (1, 0, 0)
        assert output.anomalies["extra_objects"] == (0, 2, 0)
        assert output.anomalies["unknown_blobs"] == (0, 0, 0)


# ---------------------------------------------------------------- summary


def sample(prompt_id: str, tag: str, index: int, correct: float, unscored: str = "", **values: float) -> SampleScore:
    zero = {"strict": 0.0, "extra_objects": 0.0, "unknown_blobs": 0.0}
    return SampleScore(
        prompt_id=prompt_id,
        prompt=prompt_id,
        tag=tag,
        image_index=index,
        image=f"{prompt_id}-{index}.png",
        values={} if unscored else {**zero, "correct": correct, **values},
        reason="",
        unscored=unscored,
    )


def test_the_summary_gives_values_and_errors_by_hand() -> None:
    rows = {"a": (1, 1), "b": (1, 0), "c": (0, 0), "d": (1, 1), "e": (0, 1)}
    tags = {"a": "colors", "b": "colors", "c": "colors", "d": "one", "e": "one"}
    samples = [sample(p, tags[p], k, v, extra_objects=2.0 * k) for p, pair in rows.items() for k, v in enumerate(pair)]
    metrics = ScenesBenchmark().summarize(samples)
    # colours: prompt means 1, .5, 0: mean .5, s^2 = .25; one: 1, .5: mean .75, s^2 = .125
    assert metrics["task/colors"].value == 0.5
    assert metrics["task/colors"].stderr == pytest.approx(math.sqrt(0.25 / 3))
    assert metrics["task/one"].value == 0.75
    assert metrics["overall"].value == 0.625
    assert metrics["overall"].stderr == pytest.approx(math.sqrt((0.25 / 3 + 0.125 / 2) / 4))
    assert metrics["overall"].n == 5
    assert metrics["images_correct"].value == pytest.approx(6 / 10)
    assert metrics["prompts_correct"].value == pytest.approx(4 / 5)
    # any image right: colours 1, 1, 0 with s^2 = 1/3; one 1, 1 with 0; weights 3/5 and 2/5
    assert metrics["prompts_correct"].stderr == pytest.approx(math.sqrt(0.6**2 * (1 / 3) / 3))
    assert metrics["extra_objects"].value == 1.0
    assert not metrics["extra_objects"].higher_is_better
    assert metrics["extra_objects"].unit == "per image"
    assert list(metrics)[:3] == ["overall", "task/colors", "task/one"]
    official = geneval.summarize([(s.prompt_id, s.tag, bool(s.values["correct"])) for s in samples])
    assert official.overall == pytest.approx(metrics["overall"].value)
    assert official.images == pytest.approx(metrics["images_correct"].value)
    assert official.prompts == pytest.approx(metrics["prompts_correct"].value)


def test_the_error_of_the_overall_score_is_the_spread_over_draws_of_prompts() -> None:
    rng = np.random.default_rng(4)
    values, errors = [], []
    for _ in range(400):
        chance = {tag: rng.beta(2, 2, size=12) for tag in ("colors", "counting")}
        samples = [
            sample(f"{tag}-{i}", tag, k, float(rng.random() < chance[tag][i]))
            for tag in chance
            for i in range(12)
            for k in range(2)
        ]
        overall = ScenesBenchmark().summarize(samples)["overall"]
        values.append(overall.value)
        errors.append(overall.stderr)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.12)  # 400 draws: the spread is known to 3.5 %


def test_unscored_images_are_counted_and_not_averaged() -> None:
    samples = [
        sample("a", "one", 0, 1),
        sample("a", "one", 1, 0, "missing"),
        sample("b", "one", 0, 1),
        sample("c", "two", 0, 0, "missing"),
    ]
    metrics = ScenesBenchmark().summarize(samples)
    assert metrics["overall"].value == 1
    assert metrics["overall"].unscored == 2
    assert metrics["task/one"].unscored == 1
    assert metrics["extra_objects"].unscored == 2
    assert ScenesBenchmark().summarize([samples[1]]) == {}


def test_a_single_prompt_has_no_known_error() -> None:
    assert math.isnan(ScenesBenchmark().summarize([sample("a", "one", 0, 1)])["overall"].stderr)


def test_the_registry_offers_the_benchmark_under_its_name() -> None:
    benchmark = BENCHMARKS.load("scenes")(world="scenes-8")
    assert benchmark.name == "scenes"
    assert len(benchmark.prompts()) == 288

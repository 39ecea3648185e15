"""The GenEval benchmark's arithmetic: stored observations to verdicts and published sums, against slow oracles."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.evaluators import fidelity, geneval, geneval_benchmark
from gcpo_bench.evaluators.detectors import colors as clip_colors
from gcpo_bench.evaluators.geneval_benchmark import GenEvalBenchmark
from gcpo_bench.evaluators.types import Detection, SampleScore
from gcpo_bench.geneval_prompts import COLORS
from gcpo_bench.registry import BENCHMARKS

from .reference import geneval as oracle

CLASSES = ("cow", "wine glass", "tv remote")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def random_observation(rng: np.random.Generator) -> list[list[Any]]:
    """Up to 60 detections: at thresholds, tied, empty, identical and overlapping ones among them."""
    edges = (0.3, float(np.nextafter(np.float32(0.3), np.float32(1))), 0.9, 0.9000001, 0.5, 0.5, 0.1001)
    rows: list[list[Any]] = []
    for _ in range(int(rng.choice([0, 1, 2, 3, 5, 9, 60]))):
        confidence = float(rng.choice(edges)) if rng.random() < 0.5 else float(np.float32(rng.uniform(0.1, 1)))
        if rows and rng.random() < 0.25:
            box = rows[int(rng.integers(len(rows)))][2]
        else:
            left, top, width, height = (float(v) for v in rng.integers(0, 40, size=4))
            box = [left, top, left + width, top + height]
        rows.append([str(rng.choice(CLASSES)), confidence, box, str(rng.choice(COLORS))])
    return rows


def random_prompt(rng: np.random.Generator) -> Prompt:
    """Any demand the schema allows: chained positions, a class twice, exclusions."""
    include: list[dict[str, Any]] = []
    for i in range(int(rng.integers(1, 5))):
        need: dict[str, Any] = {"class": str(rng.choice(CLASSES)), "count": int(rng.integers(1, 4))}
        if rng.random() < 0.4:
            need["color"] = str(rng.choice(COLORS))
        if i and rng.random() < 0.6:
            need["position"] = [str(rng.choice(geneval.RELATIONS)), int(rng.integers(i))]
        include.append(need)
    metadata: dict[str, Any] = {"tag": str(rng.choice(TAGS)), "include": include}
    if rng.random() < 0.4:
        metadata["exclude"] = [{"class": str(rng.choice(CLASSES)), "count": int(rng.integers(1, 5))}]
    return Prompt(id="p", text="", metadata=metadata)


def as_detections(observation: list[list[Any]]) -> list[Detection]:
    return [Detection(label=row[0], confidence=row[1], box=tuple(row[2]), color=row[3]) for row in observation]


def test_verdicts_from_stored_observations_equal_the_slow_oracle() -> None:
    rng = np.random.default_rng(11)
    benchmark = GenEvalBenchmark()
    seen: set[tuple[bool, bool]] = set()
    for _ in range(3000):
        observation, prompt = random_observation(rng), random_prompt(rng)
        objects = oracle.kept_objects(as_detections(observation), prompt.tag)
        values, reason, kept = benchmark.judge(json.loads(json.dumps(observation)), prompt)
        correct, want_reason = oracle.official(objects, prompt.metadata, COLORS)
        strict, dense = oracle.reward_server(objects, prompt.metadata)
        assert (values["correct"], values["strict"], reason) == (float(correct), float(strict), want_reason)
        assert values["dense"] == pytest.approx(dense, abs=1e-12)
        assert sorted(map(id, kept)) == sorted({id(each) for each in kept})
        assert len(kept) == sum(len(found) for found in objects.values())
        seen.add((correct, strict))
    assert len(seen) == 4


@pytest.mark.parametrize(
    "options", [{"threshold": 0.5}, {"counting_threshold": "0.4"}, {"max_objects": "2"}, {"max_overlap": 0.3}]
)
def test_options_change_verdicts_as_in_the_arithmetic(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(5)
    numbers: dict[str, Any] = {key: int(v) if key == "max_objects" else float(v) for key, v in options.items()}
    benchmark, plain = GenEvalBenchmark(options=options), geneval.GenEval(CLASSES, COLORS, geneval.Options(**numbers))
    changed = 0
    for _ in range(300):
        observation, prompt = random_observation(rng), random_prompt(rng)
        values, reason, _ = benchmark.judge(observation, prompt)
        verdict = plain(as_detections(observation), prompt)
        assert (values["correct"], reason) == (float(verdict.correct), verdict.reason)
        changed += values != GenEvalBenchmark().judge(observation, prompt)[0]
    assert changed
    assert benchmark.settings() != GenEvalBenchmark().settings()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"treshold": 0.4}, "GenEval has no option 'treshold'"),
        ({"threshold": "much"}, "a GenEval option is no number"),
        ({"threshold": 0.05}, "detections below 0.1 are not kept"),
        ({"max_objects": 17}, "colours are told of 16 objects at most"),
        ({"max_overlap": 2}, "outside [0, 1]"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        GenEvalBenchmark(options=options)
    assert message in str(error.value)


def test_only_classes_whose_colour_is_asked_are_classified() -> None:
    include = [
        {"class": "wine glass", "count": 1, "color": "red"},
        {"class": "cow", "count": 2},
        {"class": "book", "count": 1, "color": "blue"},
    ]
    prompt = Prompt(id="p", text="", metadata={"tag": "color_attr", "include": include})
    assert GenEvalBenchmark().question(prompt) == ["book", "wine glass"]


def test_a_prompt_that_asks_for_the_unknown_is_named() -> None:
    bad = Prompt(id="00017", text="", metadata={"tag": "colors", "include": [{"class": "unicorn", "count": 1}]})
    assert "prompt '00017': metadata field include[0].class is 'unicorn'" in GenEvalBenchmark().unfit(bad)


def test_the_classifier_and_the_arithmetic_know_the_same_colours() -> None:
    assert clip_colors.COLORS == COLORS


# ---------------------------------------------------------------- sums


def test_the_sums_are_genevals_over_all_553_prompts() -> None:
    """Numbers of prompts as published; the sums written out in plain Python."""
    rng = np.random.default_rng(3)
    samples = [
        SampleScore(
            prompt_id=f"{tag}-{i}", prompt="", tag=tag, image_index=k, image="", reason="",
            values={"correct": float(rng.random() < 0.6), "strict": float(rng.random() < 0.4), "dense": rng.random()},
        )
        for tag, count in zip(TAGS, (80, 99, 80, 94, 100, 100), strict=True)
        for i in range(count)
        for k in range(4)
    ]  # fmt: skip
    metrics = GenEvalBenchmark().summarize(samples)
    tasks = {}
    for tag in TAGS:
        correct = [sample.values["correct"] for sample in samples if sample.tag == tag]
        tasks[tag] = sum(correct) / len(correct)
        assert metrics[f"task/{tag}"].value == pytest.approx(tasks[tag], abs=1e-12)
    assert f"{metrics['overall'].value:.5f}" == f"{sum(tasks.values()) / 6:.5f}"
    assert metrics["images_correct"].value == pytest.approx(sum(s.values["correct"] for s in samples) / 2212)
    right = {sample.prompt_id for sample in samples if sample.values["correct"]}
    assert metrics["prompts_correct"].value == pytest.approx(len(right) / 553)
    official = geneval.summarize([(s.prompt_id, s.tag, bool(s.values["correct"])) for s in samples])
    assert official.overall == pytest.approx(metrics["overall"].value, abs=1e-12)
    assert official.images == pytest.approx(metrics["images_correct"].value, abs=1e-12)
    assert [name for name in metrics if name.startswith("task/")] == [f"task/{tag}" for tag in TAGS]
    assert metrics["dense"].unit == "score"


# ---------------------------------------------------------------- whose GenEval


def test_each_fidelity_is_a_set_of_named_flags() -> None:
    assert list(fidelity.FIDELITIES) == ["official", "reward-server", "fixed"]
    official = fidelity.get("official")
    assert (official.swap_red_blue, official.jpeg_quality, official.quick_gelu, official.antialias) == (
        False,
        0,
        True,
        False,
    )
    server = fidelity.get("reward-server")
    assert (server.swap_red_blue, server.jpeg_quality, server.quick_gelu) == (True, 75, False)
    with pytest.raises(ConfigError, match="unknown fidelity 'offical'") as error:
        GenEvalBenchmark(fidelity="offical")
    assert "did you mean 'official'" in error.value.hint


# ---------------------------------------------------------------- self-test


def test_the_self_test_finds_a_broken_evaluator(monkeypatch: pytest.MonkeyPatch) -> None:
    GenEvalBenchmark(options={"threshold": 0.8}).self_test()  # the user's options do not matter to it
    monkeypatch.setattr(geneval_benchmark, "keep", lambda detections, tag, options: {})
    with pytest.raises(CorruptDataError, match="evaluator 'geneval' self-test failed: the asked object") as error:
        GenEvalBenchmark().self_test()
    assert "no score can be trusted" in error.value.hint


def test_every_half_of_the_self_test_can_fail() -> None:
    expected = [values for *_, values in geneval_benchmark.golden_cases()]
    assert {value[0] for value in expected} == {value[1] for value in expected} == {0, 1}


def test_the_registry_offers_the_benchmark_under_its_name() -> None:
    benchmark = BENCHMARKS.load("geneval")(world="scenes-12")
    assert (benchmark.name, benchmark.prompt_set) == ("geneval", "geneval")

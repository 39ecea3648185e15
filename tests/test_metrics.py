"""Means over images and their errors over prompts, against loops written out and published programs' arithmetic."""

from __future__ import annotations

import itertools
import json
import math
import statistics

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcpo_bench.datasets import Prompt
from gcpo_bench.evaluators.drawbench import DrawBench
from gcpo_bench.evaluators.geneval_benchmark import GenEvalBenchmark
from gcpo_bench.evaluators.metrics import stratified
from gcpo_bench.evaluators.panel import Panel
from gcpo_bench.evaluators.t2i_compbench import published_results, summarize
from gcpo_bench.evaluators.types import SampleScore

TAGS = ("colors", "counting", "position")


def sample(tag: str, prompt: int, index: int, value: float | None) -> SampleScore:
    """Of one image; without a value it could not be scored."""
    names = ("correct", "strict", "dense", "attribute", "clip-score")
    return SampleScore(
        prompt_id=f"{TAGS.index(tag)}{prompt:04d}",
        prompt=f"{tag} {prompt}",
        tag=tag,
        image_index=index,
        image=f"{tag}-{prompt}-{index}.png",
        values={} if value is None else dict.fromkeys(names, value),
        reason="",
        unscored="the image file is empty" if value is None else "",
    )


@st.composite
def judged(draw: st.DrawFn) -> list[SampleScore]:
    """A few prompts of each task with four images each, some of them unscored, in every task at least two prompts."""
    verdict = st.sampled_from([0.0, 1.0, None])
    found = []
    for tag in TAGS:
        for prompt in range(draw(st.integers(2, 4))):
            values = draw(st.lists(verdict, min_size=3, max_size=3))
            first = draw(st.sampled_from([0.0, 1.0]) if prompt < 2 else verdict)
            found += [sample(tag, prompt, index, value) for index, value in enumerate([first, *values])]
    return found


@given(judged())
def test_geneval_s_own_sums_of_what_was_scored(samples: list[SampleScore]) -> None:
    """As summary_scores.py makes them, from the results.jsonl that holds what was scored."""
    benchmark = GenEvalBenchmark()
    prompts = {each.prompt_id: Prompt(id=each.prompt_id, text=each.prompt) for each in samples}
    rows = benchmark.export(samples, prompts)["results.jsonl"].splitlines()
    frame = pd.DataFrame([json.loads(row) for row in rows])
    metrics = benchmark.summarize(samples)
    assert metrics["images_correct"].value == pytest.approx(frame["correct"].mean())
    assert metrics["prompts_correct"].value == pytest.approx(frame.groupby("metadata")["correct"].any().mean())
    tasks = frame.groupby("tag", sort=False)["correct"].mean()
    assert metrics["overall"].value == pytest.approx(tasks.mean())
    for tag, mean in tasks.items():
        assert metrics[f"task/{tag}"].value == pytest.approx(mean)
    assert metrics["images_correct"].unscored == len(samples) - len(frame)


@given(judged())
def test_t2i_compbench_s_mean_of_its_results(samples: list[SampleScore]) -> None:
    (text,) = published_results("color", samples, "attribute").values()
    answers = [float(row["answer"]) for row in json.loads(text)]
    assert summarize(samples, "attribute")["overall"].value == pytest.approx(statistics.fmean(answers))


@given(judged())
def test_drawbench_s_mean_over_all_images(samples: list[SampleScore]) -> None:
    values = [each.values["clip-score"] for each in samples if each.values]
    found = DrawBench(Panel(["clip-score"]), list).summarize(samples)
    assert found["overall"].value == pytest.approx(statistics.fmean(values))
    of_colors = [each.values["clip-score"] for each in samples if each.values and each.tag == "colors"]
    assert found["task/colors"].value == pytest.approx(statistics.fmean(of_colors))


@given(judged(), st.booleans())
def test_the_error_is_that_of_a_ratio_over_prompts(samples: list[SampleScore], by_prompt: bool) -> None:
    """With loops; prompts are the clusters, however many of their images were scored."""
    scored = [each for each in samples if each.values]
    total, variance = len(scored), 0.0
    for tag in TAGS:
        of_task = [each for each in scored if each.tag == tag]
        mean = sum(each.values["correct"] for each in of_task) / len(of_task)
        groups = [list(group) for _, group in itertools.groupby(of_task, key=lambda each: each.prompt_id)]
        residuals = [sum(each.values["correct"] - mean for each in group) for group in groups]
        spread = sum(each**2 for each in residuals) * len(groups) / (len(groups) - 1) / len(of_task) ** 2
        variance += spread * (len(of_task) / total if by_prompt else 1 / len(TAGS)) ** 2
    assert stratified(scored, "correct", by_prompt=by_prompt).stderr == pytest.approx(math.sqrt(variance), abs=1e-12)


def test_a_share_of_images_is_one() -> None:
    """4 of 37 images are right; 11 of the 48 could not be scored."""
    verdicts: tuple[tuple[float | None, ...], ...] = (
        (1, None, None, None),
        (1, 0, None, None),
        (1, 1, 0, None),
        *[(0, 0, 0, 0)] * 7,
        (None,) * 4,
        (0, 0, 0, None),
    )
    samples = [sample("colors", row, index, value) for row, of in enumerate(verdicts) for index, value in enumerate(of)]
    metric = GenEvalBenchmark().summarize(samples)["images_correct"]
    assert metric.value == pytest.approx(4 / 37)
    assert (metric.unscored, metric.n) == (11, 11)

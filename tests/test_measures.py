"""Scores that are no shares: scales, means over prompts, margins, panels, in the report and in the gate."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcpo_bench.evaluators.metrics import stratified
from gcpo_bench.evaluators.stored import load_evaluation as stored_evaluation
from gcpo_bench.evaluators.types import SampleScore
from gcpo_bench.reports.baseline import entries, read, write
from gcpo_bench.reports.comparisons import Comparison, by_measure, compare_all, interval_of, sentence, variant_score
from gcpo_bench.reports.gate import gate, overall
from gcpo_bench.reports.gate_formats import markdown, words
from gcpo_bench.reports.load import load
from gcpo_bench.reports.measures import SCALED, Measure, measures, with_digits
from gcpo_bench.reports.page import build
from gcpo_bench.reports.statistics import (
    Interval,
    PromptScores,
    never_certain,
    paired_difference,
    score_interval,
    sign_flip_test,
    two_way_difference,
)
from gcpo_bench.runs import open_run

from .conftest import Cli
from .run_factory import HOSTILE, SCORERS, forget_checksums, make_run, make_study, score_run

HPS = Measure(name="hps-v2.1", unit="x100", by_prompt=True, digits=2)
RAW = Measure(name="image-reward", unit="raw", by_prompt=True, digits=2)
TASKS = ("a", "b", "c")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A start, GRPO and GCPO of two seeds on three benchmarks."""
    root = tmp_path_factory.mktemp("runs")
    return make_study(
        root,
        methods=("grpo", "gcpo"),
        seeds=2,
        steps=3,
        prompts_per_task=3,
        maps=False,
        benchmarks=("hps-gcpo400", "drawbench"),
    )


@pytest.fixture(scope="module")
def files(study: list[Path]) -> dict[str, str]:
    return build(load(study))


def table(draw: st.DrawFn, low: float, high: float) -> dict[str, tuple[str, float]]:
    sizes = draw(st.lists(st.integers(2, 6), min_size=1, max_size=3))
    values = st.floats(low, high, allow_nan=False)
    return {f"{task}{i}": (task, draw(values)) for task, n in zip(TASKS, sizes, strict=False) for i in range(n)}


@st.composite
def two_tables(draw: st.DrawFn) -> tuple[PromptScores, PromptScores]:
    a = table(draw, -3, 3)
    return a, {prompt: (task, draw(st.floats(-3, 3))) for prompt, (task, _) in a.items()}


# --- means over prompts ---------------------------------------------------------------------------------------------


@given(two_tables())
def test_a_mean_over_prompts_is_written_out(tables: tuple[PromptScores, PromptScores]) -> None:
    """SE^2 = sum_t (n_t / n)^2 s_t^2 / n_t, with loops."""
    a, b = tables
    found = paired_difference(a, b, by_prompt=True)
    differences = {prompt: a[prompt][1] - b[prompt][1] for prompt in a}
    n = len(differences)
    variance = 0.0
    for task in {task for task, _ in a.values()}:
        values = [differences[prompt] for prompt in a if a[prompt][0] == task]
        mean = math.fsum(values) / len(values)
        s2 = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        variance += (len(values) / n) ** 2 * s2 / len(values)
    assert found.value == pytest.approx(math.fsum(differences.values()) / n, abs=1e-12)
    assert found.stderr == pytest.approx(math.sqrt(variance), abs=1e-9)
    assert found.low <= found.value <= found.high


@given(two_tables())
def test_the_report_and_the_evaluators_give_the_same_mean_and_error(tables: tuple[PromptScores, PromptScores]) -> None:
    samples = [
        SampleScore(prompt_id=p, prompt=p, tag=task, image_index=0, image="", values={"x": value}, reason="")
        for p, (task, value) in tables[0].items()
    ]
    for by_prompt in (True, False):
        ours, theirs = score_interval(tables[0], by_prompt=by_prompt), stratified(samples, "x", by_prompt=by_prompt)
        assert (ours.value, ours.stderr) == pytest.approx((theirs.value, theirs.stderr), abs=1e-9)
        assert theirs.by_prompt == by_prompt


def test_tasks_of_equal_size_weigh_as_their_prompts_do() -> None:
    generator = np.random.default_rng(0)
    a_SP, b_SP = generator.normal(size=(2, 3, 12))
    tags = ["x"] * 6 + ["y"] * 6
    by_task, by_prompt = (two_way_difference(a_SP, b_SP, tags, by_prompt=flag) for flag in (False, True))
    assert by_task.value == pytest.approx(by_prompt.value)
    assert by_task.stderr == pytest.approx(by_prompt.stderr)
    uneven = ["x"] * 9 + ["y"] * 3
    assert two_way_difference(a_SP, b_SP, uneven, by_prompt=True).value == pytest.approx((a_SP - b_SP).mean())


def test_intervals_over_prompts_and_seeds_cover_the_truth_where_tasks_are_uneven() -> None:
    generator = np.random.default_rng(3)
    tags = ["x"] * 40 + ["y"] * 5 + ["z"] * 15
    hits = 0
    for _ in range(400):
        prompt, seed = generator.normal(0, 1, 60), generator.normal(0, 0.1, (3, 1))
        difference_SP = 0.2 + prompt + seed + generator.normal(0, 0.5, (3, 60))
        found = two_way_difference(difference_SP, np.zeros((3, 60)), tags, by_prompt=True)
        hits += found.low <= 0.2 <= found.high
    assert 0.92 <= hits / 400 <= 0.99


def test_the_sampled_sign_flip_test_does_not_depend_on_how_many_rows_are_held_at_once() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(0.1, 1, 33)
    a, b = ({f"p{i:02d}": ("t", float(v)) for i, v in enumerate(side)} for side in (values, np.zeros(33)))
    signs = 1.0 - 2.0 * np.random.default_rng(5).integers(0, 2, size=(10_000, 33), dtype=np.int8)
    at_least = np.count_nonzero(np.abs(signs @ (values / 33)) >= abs(values.mean()) * (1 - 1e-12))
    for by_prompt in (False, True):
        assert sign_flip_test(a, b, seed=5, by_prompt=by_prompt) == (1 + at_least) / 10_001


# --- scales ---------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(two_tables(), st.floats(0.01, 50), st.floats(-100, 100))
def test_intervals_move_with_the_scale(tables: tuple[PromptScores, PromptScores], factor: float, shift: float) -> None:
    """Another unit and another zero say the same: nothing is cut, nothing is pulled to where shares end."""
    a, b = tables
    moved = [{p: (task, factor * value + shift) for p, (task, value) in side.items()} for side in (a, b)]
    prompts = sorted(a)
    tags = [a[prompt][0] for prompt in prompts]
    plain = interval_of([(a, b)], prompts, tags, RAW)
    scaled = interval_of([(moved[0], moved[1])], prompts, tags, RAW)
    tolerance = 1e-9 * (1 + abs(shift) + factor)
    if plain.stderr > 1e-6:
        for name in ("value", "low", "high", "stderr"):
            assert getattr(scaled, name) == pytest.approx(factor * getattr(plain, name), rel=1e-6, abs=tolerance)


@pytest.mark.parametrize(
    ("unit", "spread", "value", "text"),
    [
        ("share", 0.4, 0.6359, "63.6"),
        ("x100", 0.02, 0.28413, "28.41"),
        ("raw", 1.1, 0.874, "0.87"),
        ("raw", 1.2, 22.417, "22.42"),
        ("raw", 0.035, 0.2714, "0.271"),
        ("/26", 1.2, 22.4, "0.862"),
        ("/5", 0.5, 4.1, "0.820"),
        ("per image", 0.3, 0.125, "0.12"),
        ("raw", 0.0, 0.3, "0.30"),
        ("x0", 1.0, 0.3, "0.30"),
        ("score", 0.2, 0.731, "0.731"),
        ("/2", 5e-324, 0.0, "0.000000"),
        ("raw", math.inf, 0.3, "0.30"),
        ("x" + "9" * 400, 1.0, 0.3, "0.30"),
        ("/" + "9" * 400, 1.0, 0.3, "0.30"),
        ("/0." + "0" * 400 + "1", 1.0, 0.3, "0.30"),
    ],
)
def test_a_number_is_shown_on_its_scale_with_sensible_decimals(
    unit: str, spread: float, value: float, text: str
) -> None:
    assert with_digits(Measure(name="x", unit=unit), spread).text(value) == text


UNITS = st.text(max_size=12) | st.sampled_from(["share", "x100", "/26"]) | st.from_regex(SCALED, fullmatch=True)


@given(UNITS, st.floats(0), st.floats(-1e6, 1e6))
def test_any_unit_gives_a_number(unit: str, spread: float, value: float) -> None:
    shown = with_digits(Measure(name="x", unit=unit), spread).text(value).replace("−", "-")
    assert math.isfinite(float(shown))


def test_a_record_without_a_headline_is_one_of_right_and_wrong() -> None:
    found = measures({"metrics": {}}, {"correct": 0.4, "extra_objects": 0.2, "dense": 0.1})
    assert found["correct"] == Measure(name="correct")
    assert (found["extra_objects"].unit, found["extra_objects"].higher_is_better) == ("per image", False)
    assert found["dense"].is_share


@pytest.mark.parametrize(
    ("unit", "bounds"),
    [
        ("share", (0.0, 1.0)),
        ("per image", (0.0, math.inf)),
        ("raw", (-math.inf, math.inf)),
        ("x100", (-math.inf, math.inf)),
    ],
)
def test_no_mean_is_beyond_its_scale(unit: str, bounds: tuple[float, float]) -> None:
    assert Measure(name="m", unit=unit).bounds == bounds


def test_intervals_of_shares_and_counts_end_where_their_scale_does(tmp_path: Path) -> None:
    """Three prompts a task and two seeds: a t interval alone would run far beyond 0 and 1."""
    data = load(make_study(tmp_path, methods=("grpo",), seeds=2, steps=2, prompts_per_task=3, maps=False))
    for variant in data.variants:
        for name, measure in data.measures("scenes").items():
            for task in (None, "counting", "position"):
                interval = variant_score(variant, "scenes", measure, task)
                assert interval is not None
                assert measure.bounds[0] <= interval.low <= interval.value <= interval.high <= measure.bounds[1], name


def test_no_share_no_margin() -> None:
    tight = Interval(value=0.0001, low=-0.0001, high=0.0003, n=400, seeds=3, method="t", stderr=1e-4, df=300.0)
    made = {
        measure.name: Comparison(
            a="gcpo", b="grpo", against="baseline", benchmark="b", measure=measure, interval=tight, p_value=0.5,
            p_holm=0.5, settings_that_differ=(), dropped_prompts=0,
        )
        for measure in (Measure(name="correct"), HPS)
    }  # fmt: skip
    assert (made["correct"].verdict, made["hps-v2.1"].verdict) == ("equivalent", "cannot tell")
    text = sentence(made["hps-v2.1"], 2, named=True)
    assert text.startswith("b, hps-v2.1 x100: cannot tell gcpo from grpo: +0.01 [−0.01, +0.03] (400 prompts, 3 seeds).")
    assert "point" not in text.replace("points", "")


def test_a_gap_too_small_to_chase_is_not_given_a_silly_number() -> None:
    nothing = Interval(value=1e-9, low=-1, high=1, n=200, seeds=1, method="t", stderr=0.5, df=199.0)
    c = Comparison(
        a="gcpo", b="grpo", against="baseline", benchmark="drawbench", measure=RAW, interval=nothing, p_value=1.0,
        p_holm=1.0, settings_that_differ=(), dropped_prompts=0,
    )  # fmt: skip
    assert sentence(c, 1, named=True).endswith("takes more than 1000 times as many prompts.")


def test_less_is_better_where_the_benchmark_says_so() -> None:
    measure = Measure(name="fid", unit="raw", higher_is_better=False)
    interval = Interval(value=-2.0, low=-3, high=-1, n=50, seeds=1, method="t", stderr=0.5, df=49.0)
    c = Comparison(
        a="a", b="b", against="start", benchmark="x", measure=measure, interval=interval, p_value=0.001, p_holm=0.001,
        settings_that_differ=(), dropped_prompts=0,
    )  # fmt: skip
    assert c.verdict == "better"


def test_certainty_on_an_open_scale_ends_where_the_values_do() -> None:
    same = Interval(value=0.0, low=0.0, high=0.0, n=59, seeds=1, method="t", stderr=0.0, df=58.0)
    share, scores = never_certain(same), never_certain(same, reach=4.0, limit=math.inf)
    assert share.high == pytest.approx(1 - 0.05 ** (1 / 59))
    assert scores.high == pytest.approx(4 * share.high)
    unknown = Interval(value=0.0, low=0.0, high=0.0, n=1, seeds=1, method="t")
    assert (never_certain(unknown).high, never_certain(unknown, limit=math.inf).high) == (1.0, math.inf)


# --- what evaluations say, and reports show -------------------------------------------------------------------------


def test_an_evaluation_says_what_its_score_is(study: list[Path]) -> None:
    run = open_run(study[-1])
    drawbench, hps = (stored_evaluation(run, name) for name in ("drawbench", "hps-gcpo400"))
    assert (drawbench.headline, drawbench.panel) == ("hps-v2.1", tuple(SCORERS))
    assert (hps.headline, hps.panel) == ("hps-v2.1", ("hps-v2.1",))
    data = load(study)
    assert [measure.name for measure in data.panel("drawbench")] == list(SCORERS)
    assert data.headline("hps-gcpo400") == HPS
    assert data.headline("scenes") == Measure(name="correct")
    assert data.benchmarks == ("scenes", "drawbench", "hps-gcpo400")  # right and wrong first: the claims are about it


def test_the_scores_of_the_report_are_those_of_the_evaluation(study: list[Path], files: dict[str, str]) -> None:
    """Raw in report.csv, with the same mean and error; the start has one seed."""
    run, data = open_run(study[0]), load(study)
    for benchmark, factor in (("hps-gcpo400", 100), ("drawbench", 1)):
        metric = stored_evaluation(run, benchmark).metrics["overall"]
        score = variant_score(data.variants[0], benchmark, data.headline(benchmark))
        assert score is not None
        assert (factor * score.value, factor * score.stderr) == pytest.approx((metric.value, metric.stderr))
    rows = [row for row in csv.DictReader(io.StringIO(files["report.csv"])) if row["variant"] == "start"]
    by_key = {(row["benchmark"], row["metric"], row["task"]): row for row in rows}
    metrics = stored_evaluation(run, "drawbench").metrics
    for scorer in SCORERS:
        assert float(by_key["drawbench", scorer, ""]["value"]) == pytest.approx(metrics[scorer].value)
        assert float(by_key["drawbench", scorer, "Reddit"]["value"]) == pytest.approx(metrics[f"{scorer}/Reddit"].value)
    assert (by_key["hps-gcpo400", "hps-v2.1", ""]["unit"], by_key["scenes", "correct", ""]["unit"]) == ("x100", "share")


def test_every_scorer_is_compared_and_all_of_a_benchmark_are_one_family(study: list[Path]) -> None:
    found, refused = compare_all(load(study), "drawbench")
    assert not refused
    assert len(found) == 3 * len(SCORERS)  # grpo and gcpo against the start, gcpo against grpo
    listed = by_measure(found, load(study).panel("drawbench"))
    assert [c.against for c in listed] == ["baseline", "start", "start"] * len(SCORERS)
    assert [c.measure for c in listed[::3]] == list(load(study).panel("drawbench"))
    smallest = min(found, key=lambda c: c.p_value)
    assert smallest.p_holm == pytest.approx(min(1, smallest.p_value * len(found)))


def test_a_report_on_three_benchmarks_says_which_one_it_speaks_of(files: dict[str, str]) -> None:
    text = files["report.md"].replace("\\", "")
    verdicts = text.split("## Claims")[0]
    for start in ("- scenes: ", "- drawbench, image-reward: ", "- hps-gcpo400, hps-v2.1 x100: "):
        assert start in verdicts
    assert not [line for line in verdicts.splitlines() if "drawbench" in line and "points" in line]
    assert "| image-reward | gcpo | " in text
    assert "hps-gcpo400, hps-v2.1 x100, 95 % intervals in brackets" in text
    assert "measured: hps-gcpo400" in text
    page = files["report.html"]
    assert page.count('<table class="verdicts') == 3
    assert "<b>gcpo</b> on drawbench" in page
    json.loads(files["report.json"])


def test_a_report_on_scores_alone_still_judges_the_claims_but_not_almost_nothing(tmp_path: Path) -> None:
    paths = []
    for method in ("grpo", "gcpo"):
        for seed in range(2):
            run = make_run(tmp_path, f"{method}-{seed}", method=method, seed=seed, steps=2, maps=False, evaluated=False)
            score_run(run, "hps-gcpo400", 0.5 + (method == "gcpo"))
            paths.append(run.path)
    made = build(load(paths))
    text = made["report.md"].replace("\\", "")
    assert "hps-gcpo400, hps-v2.1 x100: gcpo is better than grpo by " in text
    assert "Training on 30 % of the tokens (GCPO) beats training on all of them (GRPO). | **supported**" in text
    assert "points" not in text.split("## Claims")[0]
    assert "hps-gcpo400 (hps-v2.1 x100)" in made["report.html"]


def test_images_that_one_scorer_could_not_score_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, "gcpo-0", steps=1, maps=False, evaluated=False)
    score_run(run, "drawbench", 0.5)
    forget_checksums(run.evaluation_dir("drawbench"))
    path = run.evaluation_dir("drawbench") / "samples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[0]["values"]["pickscore"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = load([run.path])
    assert "gcpo-0: 1 images of drawbench have no pickscore and are left out of its mean" in data.notes
    scores = {m.name: variant_score(data.trained[0], "drawbench", m) for m in data.panel("drawbench")}
    assert scores["pickscore"] is not None
    assert scores["aesthetic"] is not None
    assert scores["pickscore"].n == scores["aesthetic"].n - 1


def test_an_old_evaluation_that_names_no_score_is_said_to(tmp_path: Path) -> None:
    run = make_run(tmp_path, "gcpo-0", steps=1, maps=False, evaluated=False)
    score_run(run, "hps-gcpo400", 0.5)
    forget_checksums(run.evaluation_dir("hps-gcpo400"))
    path = run.evaluation_dir("hps-gcpo400") / "scores.json"
    record = json.loads(path.read_text())
    del record["headline"], record["panel"]
    path.write_text(json.dumps(record))
    data = load([run.path])
    assert any("does not say which value is its score" in note for note in data.notes)
    build(data)


def test_odd_names_of_scores_and_tasks_do_no_harm(tmp_path: Path) -> None:
    run = make_run(tmp_path, "gcpo-0", steps=1, maps=False, evaluated=False)
    start = make_run(tmp_path, "start-scenes-12", method="grpo", steps=0, maps=False, evaluated=False)
    for each in (run, start):
        score_run(each, "hps-gcpo400", 0.5, per_task=2, draw=False)
        place = each.evaluation_dir("hps-gcpo400")
        forget_checksums(place)
        samples = place / "samples.jsonl"
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        for number, line in enumerate(lines):
            line["values"] = dict.fromkeys(HOSTILE, line["values"]["hps-v2.1"])
            line["tag"] = HOSTILE[number]
        samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
        record = json.loads((place / "scores.json").read_text())
        record |= {"headline": HOSTILE[0], "panel": HOSTILE}
        (place / "scores.json").write_text(json.dumps(record))
    made = build(load([run.path, start.path]))
    page = made["report.html"]
    assert page.count("<script") == 1
    assert not [harm for harm in ("<img src=x", "<b>html", "\x1b", "\u202e") if harm in page]
    for block in made["report.md"].split("\n\n"):
        if block.startswith("|"):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    for name in ("report.csv", "report-comparisons.csv"):
        assert len({len(row) for row in csv.reader(io.StringIO(made[name]))}) == 1


# --- the gate -------------------------------------------------------------------------------------------------------


def scored(root: Path, skill: float, **options: object) -> list[Path]:
    paths = []
    for seed in range(2):
        run = make_run(root, f"gcpo-{seed}", seed=seed, steps=4, maps=False, evaluated=False)
        score_run(run, "hps-gcpo400", skill, per_task=25, draw=False, **options)
        paths.append(run.path)
    return paths


def test_the_gate_holds_scores_against_a_margin_of_their_own_scale(tmp_path: Path) -> None:
    old = entries(load(scored(tmp_path / "a", 0.7)))
    write(tmp_path / "b.json", old, "1.0")
    assert read(tmp_path / "b.json")[0].measure == old[0].measure == HPS
    assert json.loads((tmp_path / "b.json").read_text())["format"] == 2
    for skill, state in ((0.7, "pass"), (0.9, "pass"), (0.3, "regression")):
        new = entries(load(scored(tmp_path / str(skill), skill)))
        checks = gate(read(tmp_path / "b.json"), new, margins={"hps-gcpo400": 0.005})
        assert [check.state for check in checks] == [state]
    assert "a loss of more than 0.5 hps-v2.1 x100 is proven" in words(checks[0])
    assert "| prompt | hps\\-v2.1 x100 |" in markdown(checks)
    (unknown,) = gate(old, old, margins={})
    assert unknown.state == "not comparable"
    assert unknown.reason == "hps-v2.1 x100 has no margin of its own; name one: --margin hps-gcpo400=NUMBER"


def test_a_baseline_keeps_tasks_whose_names_have_spaces(tmp_path: Path) -> None:
    run = make_run(tmp_path, "gcpo-0", steps=2, maps=False, evaluated=False)
    score_run(run, "drawbench", 0.5, draw=False)
    made = entries(load([run.path]))
    write(tmp_path / "b.json", made, "1.0")
    (back,) = read(tmp_path / "b.json")
    assert {task for task, _ in back.scores[0].values()} >= {"Rare Words", "Gary Marcus et al."}
    assert overall(gate([back], made, margins={"drawbench": 0.01})) in ("pass", "inconclusive")


def test_the_command_takes_points_for_shares_and_numbers_for_scores(cli: Cli, tmp_path: Path) -> None:
    scored(tmp_path / "runs", 0.7)
    assert cli("baseline", "update", "--out", "b.json").code == 0
    passed = cli("gate", "--baseline", "b.json", "--margin", "hps-gcpo400=0.5", "--json")
    assert passed.code == 0, passed.out
    (check,) = json.loads(passed.out)["checks"]
    assert (check["margin"], check["unit"], check["metric"]) == (0.005, "x100", "hps-v2.1")
    assert cli("gate", "--baseline", "b.json").code == 2
    points = cli("gate", "--baseline", "b.json", "--margin", "hps-gcpo400=1pt")
    assert (points.code, "is no number above 0" in points.err) == (2, True)

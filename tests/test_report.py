"""Reports from run directories: what they say, that they are harmless, and what they do with damaged runs."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shutil
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gcpo_bench.errors import ConfigError, CorruptDataError, RunError
from gcpo_bench.methods import CRITICAL
from gcpo_bench.registry import SECTIONS
from gcpo_bench.reports import plots, tables
from gcpo_bench.reports.comparisons import Comparison, compare_all, sentence, variant_score
from gcpo_bench.reports.gallery import paired, read_image
from gcpo_bench.reports.load import load
from gcpo_bench.reports.measures import Measure
from gcpo_bench.reports.page import build, figures, script_json, sections, write_report
from gcpo_bench.reports.statistics import Interval, score_interval
from gcpo_bench.reports.token_maps import value_range
from tests.conftest import Cli
from tests.run_factory import HOSTILE, hostile_texts, make_run, make_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A start, GRPO and GCPO with two seeds each, random with one too."""
    return make_study(tmp_path_factory.mktemp("runs"), seeds=2, steps=20)


@pytest.fixture(scope="module")
def files(study: list[Path]) -> dict[str, str]:
    return build(load(study))


class Page(HTMLParser):
    """What a browser would see: elements with attributes, script and visible text apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag
            (self.scripts if tag == "script" else self.styles).append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "style":
            self.styles[-1] += data


def test_all_formats_are_written(study: list[Path], tmp_path: Path) -> None:
    written = write_report(study, tmp_path / "out")
    names = {"report.html", "report.md", "report.tex", "report.json", "report.csv"}
    names |= {f"report-{table}.csv" for table in ("comparisons", "claims", "curves")}
    assert {path.name for path in written if path.parent == tmp_path / "out"} == names
    assert any(path.parent == tmp_path / "out/figures" for path in written)
    assert all(path.stat().st_size > 100 for path in written)


def test_the_same_runs_give_the_same_bytes_in_any_order(study: list[Path], files: dict[str, str]) -> None:
    assert build(load(study[::-1])) == files
    assert figures(sections(load(study[::-1]))) == figures(sections(load(study)))


def test_only_the_formats_asked_for_are_written(study: list[Path], tmp_path: Path) -> None:
    assert [path.name for path in write_report(study, tmp_path, formats=["md"])] == ["report.md"]
    # the lock that keeps two reports from mixing stays
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["report.md"]


def test_every_registered_section_has_its_place_on_the_page(files: dict[str, str]) -> None:
    identifiers = {attributes.get("id") for _, attributes in Page(files["report.html"]).elements}
    assert set(SECTIONS) <= identifiers


def test_the_scores_are_the_means_of_the_task_means(study: list[Path], files: dict[str, str]) -> None:
    rows = list(csv.DictReader(io.StringIO(files["report.csv"])))
    (overall,) = [r for r in rows if (r["variant"], r["metric"], r["task"]) == ("start", "correct", "")]
    lines = (study[0] / "evaluations/scenes/samples.jsonl").read_text().splitlines()
    frame = pd.DataFrame([{**json.loads(line), **json.loads(line)["values"]} for line in lines])
    assert float(overall["value"]) == pytest.approx(frame.groupby("tag")["correct"].mean().mean())
    assert (overall["prompts"], overall["seeds"]) == ("48", "1")
    tasks = [float(r["value"]) for r in rows if r["variant"] == "start" and r["metric"] == "correct" and r["task"]]
    assert len(tasks) == 6
    assert float(overall["value"]) == pytest.approx(np.mean(tasks))


def test_seeds_are_replicates_of_one_variant(study: list[Path]) -> None:
    variants = load(study).variants
    assert [(variant.label, variant.seeds) for variant in variants] == [
        ("start", (0,)),
        ("grpo", (0, 1)),
        ("gcpo", (0, 1)),
        ("random", (0, 1)),
    ]


def test_variants_of_one_method_are_told_apart_by_what_differs_and_meet_their_own_baseline(tmp_path: Path) -> None:
    paths = [
        make_run(
            tmp_path, f"{method}-{beta}", method=method, steps=2, maps=False, overrides={"loss": {"beta": beta}}
        ).path
        for method in ("grpo", "gcpo")
        for beta in (0.01, 0.1)
    ]
    data = load(paths)
    labels = ["grpo (loss.beta=0.01)", "grpo (loss.beta=0.1)", "gcpo (loss.beta=0.01)", "gcpo (loss.beta=0.1)"]
    assert [variant.label for variant in data.variants] == labels
    against = {v.label: b.label for v in data.trained if (b := data.baseline_of(v)) is not None}
    assert against == {labels[2]: labels[0], labels[3]: labels[1]}


def test_labels_stay_short_and_apart_whatever_differs(tmp_path: Path) -> None:
    """Five settings differ; before, the label told all of them in 300 characters."""
    window = {"selectors": [CRITICAL[0], {**CRITICAL[1], "options": {"window": [0.0, 1.0]}}, CRITICAL[2]]}
    bold = {"loss": {"beta": 0.1, "clip_epsilon": 0.1}, "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1}}
    bolder = {**bold, "advantages": {"zero_variance": "drop"}}
    changed: list[dict[str, Any]] = [{}, {"selection": {**window, "overlap": "allow"}}, bold, bolder]
    for number, overrides in enumerate(changed):
        make_run(tmp_path, f"gcpo-{number}", steps=2, maps=False, evaluated=False, overrides=overrides)
    labels = [variant.label for variant in load(sorted(tmp_path.iterdir())).variants]
    assert len(set(labels)) == 4
    assert "gcpo[window 0-1, overlap allow]" in labels
    assert max(map(len, labels)) <= 110, labels


def test_a_plans_name_is_the_label_but_not_the_part(tmp_path: Path) -> None:
    named = {"logging": {"variant": "ours"}}
    lying = {"logging": {"variant": "gcpo"}, "weighting": {"name": "uniform"}}
    make_run(tmp_path, "a", steps=2, maps=False, overrides=named)
    make_run(tmp_path, "b", steps=2, maps=False, overrides=lying)
    found = {variant.label: variant.method for variant in load(sorted(tmp_path.iterdir())).variants}
    assert found == {"ours": "gcpo", "gcpo-no-daw": "gcpo-no-daw"}


def test_named_runs_are_reported_with_what_they_started_from(cli: Cli, tmp_path: Path) -> None:
    """`report grpo gcpo`: the start that `evaluate` made beside them is theirs, another model's is not."""
    root = tmp_path / "runs"
    for name, method in (("mine", "gcpo"), ("other", "grpo")):
        run = make_run(root, name, method=method, steps=2, maps=False)
        run.add_environment({"start_weights": "xxh3:0123456789abcdef"})
    start = make_run(root, "start-scenes-12-01234567", method="grpo", steps=0, maps=False)
    make_run(root, "start-scenes-12-89abcdef", method="grpo", steps=0, maps=False)
    assert cli("report", "mine", "--format", "json").code == 0
    record = json.loads((tmp_path / "report/report.json").read_text())
    assert [run["name"] for run in record["reproduce"]["runs"]] == [start.name, "mine"]


def test_each_variant_is_compared_with_grpo_and_with_its_start(study: list[Path]) -> None:
    found, refused = compare_all(load(study), "scenes")
    assert not refused
    assert [(c.a, c.b) for c in found] == [
        ("grpo", "start"),
        ("gcpo", "grpo"),
        ("gcpo", "start"),
        ("random", "grpo"),
        ("random", "start"),
    ]
    assert all(c.interval.seeds == 2 for c in found)
    assert all(c.p_holm >= c.p_value for c in found)


MEASURES = {
    "correct": Measure(name="correct"),
    "extra_objects": Measure(name="extra_objects", unit="per image", higher_is_better=False, digits=2),
}


def comparison(value: float, half: float, *, p: float, seeds: int = 3, metric: str = "correct") -> Comparison:
    interval = Interval(
        value=value, low=value - half, high=value + half, n=288, seeds=seeds, method="t", stderr=half / 2, df=100.0
    )
    return Comparison(
        a="gcpo", b="grpo", against="baseline", benchmark="scenes", measure=MEASURES[metric], interval=interval,
        p_value=p, p_holm=p, settings_that_differ=(), dropped_prompts=0,
    )  # fmt: skip


def test_a_clear_difference_is_called_better_or_worse() -> None:
    assert comparison(0.05, 0.02, p=0.001).verdict == "better"
    assert comparison(-0.05, 0.02, p=0.001).verdict == "worse"
    assert comparison(0.05, 0.02, p=0.001, metric="extra_objects").verdict == "worse"
    text = sentence(comparison(0.05, 0.02, p=0.001), 2)
    assert text == "gcpo is better than grpo by 5.0 points (95 % interval 3.0 to 7.0; 288 prompts, 3 seeds)."


def test_one_seed_speaks_of_the_checkpoint() -> None:
    text = sentence(comparison(0.05, 0.02, p=0.001, seeds=1), 2)
    assert text.startswith("This gcpo checkpoint is better than grpo by 5.0 points")


def test_a_difference_inside_the_noise_cannot_be_told_and_the_text_says_what_it_takes() -> None:
    unclear = comparison(0.01, 0.02, p=0.3)
    assert unclear.verdict == "cannot tell"
    text = sentence(unclear, 2)
    assert text.startswith("Cannot tell gcpo from grpo: +1.0 [−1.0, +3.0] points")
    assert "A true difference of 2.9 points would be found four times in five" in text
    assert re.search(r"to find the difference seen takes about [78]\.\d times as many prompts and seeds", text)


def test_a_claim_that_does_not_survive_the_family_is_taken_back() -> None:
    lucky = comparison(0.03, 0.029, p=0.2)
    assert lucky.verdict == "cannot tell"
    assert "not as one of 10 comparisons (adjusted p 0.200)" in sentence(lucky, 10)


def test_a_run_compared_with_its_copy_scores_the_same_on_every_prompt(tmp_path: Path) -> None:
    start = make_run(tmp_path, "start-scenes-12", method="grpo", steps=0, skill=0.5)
    trained = make_run(tmp_path, "gcpo-0", steps=2, maps=False, evaluated=False)
    for part in ("evaluations", "images"):
        shutil.copytree(start.path / part, trained.path / part)
    (found,), _ = compare_all(load([start.path, trained.path]), "scenes")
    assert found.verdict == "cannot tell"
    assert "and the start score the same on every prompt" in sentence(found, 1)


def test_runs_that_were_not_evaluated_alike_are_not_compared(tmp_path: Path) -> None:
    paths = make_study(tmp_path, methods=("gcpo",), steps=2, maps=False)
    scores = tmp_path / "gcpo-0/evaluations/scenes/scores.json"
    scores.write_text(scores.read_text().replace('"guidance_scale": 1.0', '"guidance_scale": 5.0'))
    found, (refused,) = compare_all(load(paths), "scenes")
    assert not found
    assert refused.reason == "they were not evaluated alike: guidance_scale 5.0 / 1.0"
    assert "not evaluated alike" in build(load(paths))["report.html"]


def test_an_unscored_image_is_left_out_and_counted_never_taken_for_wrong(tmp_path: Path) -> None:
    run = make_run(tmp_path, "gcpo-0", steps=2, maps=False, skill=2.0)  # every image is right
    path = run.path / "evaluations/scenes/samples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0] |= {"values": {}, "unscored": "detector failed"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = load([run.path])
    score = variant_score(data.trained[0], "scenes", data.headline("scenes"))
    assert score is not None
    assert score.value == 1.0
    assert "gcpo-0: 1 images of scenes could not be scored and are left out of the means" in data.notes


def test_a_variant_is_compared_with_the_weights_that_it_began_from(tmp_path: Path) -> None:
    """Two stages in one folder: the second began from other weights than the first, whichever start is named first."""
    for name, weights, steps in (
        ("start-scenes-12-aaaaaaaa", "xxh3:second", 0),
        ("start-scenes-12-bbbbbbbb", "xxh3:first", 0),
        ("one", "xxh3:first", 2),
        ("two", "xxh3:second", 2),
        ("three", "xxh3:of a start that is gone", 2),
    ):
        run = make_run(tmp_path, name, method="grpo", steps=steps, maps=False)
        run.add_environment({"start_weights": weights})
    data = load(sorted(tmp_path.iterdir()))
    found = {v.runs[0].name: (s.runs[0].name if (s := data.start_of(v)) else None) for v in data.trained}
    assert found == {"one": "start-scenes-12-bbbbbbbb", "two": "start-scenes-12-aaaaaaaa", "three": None}
    of = {c.a: c.b for c in compare_all(data, "scenes")[0] if c.against == "start"}
    starts = {v.runs[0].name: v.label for v in data.variants}
    assert of == {starts["one"]: starts["start-scenes-12-bbbbbbbb"], starts["two"]: starts["start-scenes-12-aaaaaaaa"]}


def test_the_gallery_pairs_the_same_image_before_and_after(study: list[Path]) -> None:
    data = load(study)
    before, after = data.variants[0].runs[0], data.variants[2].runs[0]
    pairs = paired(before.evaluations["scenes"], after.evaluations["scenes"], data.headline("scenes"))
    assert len(pairs) == 48
    for pair in pairs:
        assert (pair.before.prompt_id, pair.before.image_index) == (pair.after.prompt_id, pair.after.image_index)
        gain = pair.after.values["correct"] - pair.before.values["correct"]
        assert gain * pair.change > 0 or pair.change == 0  # the image shown is an example of the change claimed


def test_a_picture_is_marked_right_or_wrong_as_it_was_judged(files: dict[str, str]) -> None:
    shots = re.findall(r'<figure class="shot (\w+)">.*?<span class="mark">(.)</span>', files["report.html"], re.DOTALL)
    assert {("right", "✓"), ("wrong", "✗")} == set(shots)


def test_what_carries_it_is_a_table_in_markdown_too(files: dict[str, str]) -> None:
    section = files["report.md"].split("## What carries it")[1].split("\n## ")[0]
    assert [row.split("|")[1].strip() for row in section.strip().splitlines()[2:5]] == ["grpo", "gcpo", "random"]


def test_wins_and_losses_are_shown_in_equal_number(files: dict[str, str]) -> None:
    for album in files["report.html"].split('<details class="album"')[1:]:
        album = album.split("</details>")[0]
        counts = [part.count('<article class="pair">') for part in album.split("<h3>")[1:]]
        assert len(counts) == 1 or counts[0] == counts[1]


def test_the_token_maps_on_the_page_are_those_of_the_run(study: list[Path], files: dict[str, str]) -> None:
    page = Page(files["report.html"])
    (index,) = [
        i for i, (_, a) in enumerate(e for e in page.elements if e[0] == "script") if a.get("id") == "token-map-data"
    ]
    run = json.loads(page.scripts[index])["runs"][0]
    assert run["label"] == "gcpo, seed 0"
    assert run["steps"] == [1, 10, 20]
    with np.load(study[3] / "tokens/step-000010.npz") as arrays:
        frame = run["prompts"][2]["frames"][1]
        packed = np.frombuffer(base64.b64decode(frame["subsets"]["structural"]), dtype=np.uint8)
        assert (np.unpackbits(packed)[:144].reshape(12, 12) == arrays["subset/structural"][2]).all()
        low, high = run["ranges"]["entropy"]
        shown = np.frombuffer(base64.b64decode(frame["maps"]["entropy"]), dtype=np.uint8).reshape(12, 12)
        expected = arrays["entropy"][2].clip(low, high)
        assert np.abs(low + shown / 255 * (high - low) - expected).max() <= (high - low) / 255


# --- harmless -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hostile text in prompts, reasons, detections, errors and arguments."""
    root = tmp_path_factory.mktemp("hostile")
    paths = make_study(root, methods=("grpo", "gcpo"), steps=10, prompts_per_task=3, prompt_texts=hostile_texts())
    for path in paths:
        samples = path / "evaluations/scenes/samples.jsonl"
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        for index, line in enumerate(lines):
            line["reason"] = HOSTILE[index % len(HOSTILE)]
            line["detections"][0] |= {"label": HOSTILE[(index + 1) % len(HOSTILE)], "color": None}
        samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
        environment = path / "environment.json"
        environment.write_text(json.dumps([{"argv": ["gcpo-bench", *HOSTILE], "versions": {HOSTILE[0]: HOSTILE[1]}}]))
        status = path / "status.json"
        status.write_text(json.dumps({"state": "failed", "step": 1, "error": HOSTILE[0]}))
    return build(load(paths))


def test_the_page_holds_only_its_own_script_and_style(hostile: dict[str, str], files: dict[str, str]) -> None:
    tame, page = Page(files["report.html"]), Page(hostile["report.html"])
    assert [tag for tag, _ in page.elements if tag in ("script", "style")] == ["style", "script", "script"]
    assert page.scripts[-1] == tame.scripts[-1]
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in tame.elements} | {"div", "ul", "li"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        assert not (
            tag in ("a", "use") and not str(attributes.get("href", attributes.get("xlink:href"))).startswith("#")
        )
        assert tag != "img" or str(attributes["src"]).startswith("data:image/")


def test_the_content_policy_allows_exactly_the_pages_own_script_and_style(hostile: dict[str, str]) -> None:
    page = Page(hostile["report.html"])
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest(page.scripts[-1])}'" in policy
    assert f"style-src 'sha256-{digest(page.styles[0])}'" in policy
    assert "unsafe" not in policy


def test_the_page_asks_the_network_for_nothing(files: dict[str, str]) -> None:
    outside = [u for u in re.findall(r"https?://[^\s\"'<)]+", files["report.html"]) if "www.w3.org" not in u]
    assert outside == []  # w3.org: the names of the SVG name spaces


@settings(deadline=None)
@given(st.text() | st.sampled_from(HOSTILE))
def test_json_in_the_page_cannot_end_its_script_element(text: str) -> None:
    block = str(script_json({"prompt": text}))
    assert not set(block) & set("<>&\u2028\u2029")
    assert json.loads(block)["prompt"] == text


@settings(deadline=None)
@given(st.text() | st.sampled_from(HOSTILE))
def test_a_csv_cell_is_never_a_formula(text: str) -> None:
    ((cell, number),) = csv.reader(io.StringIO(tables.csv_table(["a", "b"], [[text, -1.5]]).split("\n", 1)[1]))
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert number == "-1.5"  # numbers stay numbers


@settings(deadline=None)
@given(st.text() | st.sampled_from(HOSTILE))
def test_a_markdown_cell_stays_one_cell_of_plain_text(text: str) -> None:
    cell = tables.markdown_text(text)
    assert "\n" not in cell
    assert "\x1b" not in cell
    assert "\u202e" not in cell
    unescaped = re.sub(r"\\.", "", cell)
    assert not set(unescaped) & set("|<>`*_[]()!")
    assert len(tables.plain(text)) <= tables.PROMPT_LIMIT


def test_hostile_texts_leave_every_format_whole(hostile: dict[str, str]) -> None:
    json.loads(hostile["report.json"], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    for name in ("report.csv", "report-comparisons.csv", "report-curves.csv"):
        assert len({len(row) for row in csv.reader(io.StringIO(hostile[name]))}) == 1
    for block in hostile["report.md"].split("\n\n"):
        if block.startswith("|"):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


# --- damaged and missing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", b"not json\nat all\n"),
        ("config.yaml", b"method: [1,"),
        ("evaluations/scenes/samples.jsonl", b'{"prompt_id": "a"}\n{"prompt_id": "b"}\n'),
        ("evaluations/scenes/scores.json", b"[]"),
        ("tokens/step-000001.npz", b"PK\x03\x04 cut off"),
        ("status.json", b"{}"),
    ],
)
def test_a_damaged_run_is_named_and_left_out_when_others_are_fine(tmp_path: Path, name: str, content: bytes) -> None:
    paths = make_study(tmp_path, methods=("grpo", "gcpo"), steps=2, prompts_per_task=2)
    damaged = tmp_path / "gcpo-0" / name
    damaged.write_bytes(content)
    data = load(paths)
    assert [variant.label for variant in data.variants] == ["start", "grpo"]
    (note,) = [note for note in data.notes if note.startswith("gcpo-0 is left out")]
    assert name in note
    assert str(tmp_path) not in note  # a report that is sent around does not tell where it was made
    assert note.split(":")[0] in build(data)["report.html"]

    with pytest.raises(CorruptDataError, match=re.escape(str(damaged))) as error:
        load([tmp_path / "gcpo-0"])
    assert error.value.hint


def test_token_maps_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "gcpo-0", steps=1, prompts_per_task=1)
    arrays = dict(run.token_maps()[0][1])
    run.save_token_maps(1, {**arrays, "entropy": arrays["entropy"][:, :5]})
    with pytest.raises(CorruptDataError, match=r"step-000001\.npz is damaged: its arrays do not fit together"):
        load([run.path])


def test_no_run_at_all_is_one_clear_error() -> None:
    with pytest.raises(RunError, match="there is no run to report on") as error:
        load([])
    assert "gcpo-bench train" in error.value.hint


def test_an_unknown_format_is_refused(study: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown report format 'pdf'") as error:
        write_report(study, tmp_path, formats=["pdf"])
    assert error.value.hint == "known: html, md, tex, csv, json, figures"


def test_a_file_in_the_place_of_the_report_is_kept(study: list[Path], tmp_path: Path) -> None:
    place = tmp_path / "out"
    place.write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        write_report(study, place)
    assert place.read_text() == "mine"


def test_a_run_that_was_only_begun_still_makes_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path, "gcpo-0", steps=3, evaluated=False, maps=False)
    run.set_status("preempted", 3)
    made = build(load([run.path]))
    assert "gcpo-0: is preempted at step 3 of 3" in made["report.html"]
    assert "has not been evaluated (gcpo-bench evaluate)" in made["report.html"]
    assert "Nothing can be compared" in made["report.md"]


def test_only_a_start_makes_a_report_too(tmp_path: Path) -> None:
    run = make_run(tmp_path, "start-scenes-12", method="grpo", steps=0, prompts_per_task=2)
    made = build(load([run.path]))
    assert "Nothing can be compared" in made["report.html"]
    assert made["report.csv"].count("\nscenes,start,") == 11  # overall, six tasks, four further metrics


def test_the_same_experiment_twice_counts_once(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path, name, steps=2, maps=False, prompts_per_task=2).path for name in ("gcpo-0", "gcpo-again")
    ]
    data = load(paths)
    assert [run.name for run in data.runs] == ["gcpo-0"]
    assert "gcpo-again is left out: gcpo-0 has the same configuration and seed" in data.notes


def test_what_changes_speed_alone_makes_no_other_variant(tmp_path: Path) -> None:
    small = {"sampling": {"batch_rows": 4}, "optimizer": {"micro_batch_rows": 2}, "policy": {"recompute": "always"}}
    make = partial(make_run, tmp_path, steps=2, maps=False, prompts_per_task=2)
    paths = [make("a").path, make("b", seed=1, overrides=small).path, make("c", overrides={"loss": {"beta": 0.5}}).path]
    data = load(paths)
    assert sorted(len(variant.runs) for variant in data.variants) == [1, 2]


@pytest.mark.parametrize("path", ["../../outside.png", "/etc/passwd", "images/scenes/none.png", "config.yaml"])
def test_images_are_read_only_from_inside_the_run(tmp_path: Path, path: str) -> None:
    run = make_run(tmp_path / "runs", "gcpo-0", steps=1, maps=False, prompts_per_task=1)
    (tmp_path / "outside.png").write_bytes(b"x")
    image, problem = read_image(run.path, path)
    assert image is None
    assert problem.startswith(("the image's path leads out", "the image is missing", "the image is damaged"))


def test_a_missing_image_is_said_to_be_missing(tmp_path: Path) -> None:
    paths = make_study(tmp_path, methods=("gcpo",), steps=1, prompts_per_task=1, maps=False)
    for image in (tmp_path / "gcpo-0/images/scenes").glob("*.png"):
        image.unlink()
    assert "the image is missing" in build(load(paths))["report.html"]


# --- figures and numbers --------------------------------------------------------------------------------------------


def test_charts_carry_no_style_and_use_the_pages_ink() -> None:
    line = plots.Series(label="a", x=[0, 1], y=[0, 1], low=[0, 0], high=[1, 2])
    svg = plots.line_chart([line], name="demo", x_label="step", y_label="value", description='up "and" <up>').svg
    assert "style" not in svg
    assert "currentColor" in svg
    assert 'aria-label="up &quot;and&quot; &lt;up&gt;"' in svg
    identifiers = re.findall(r'\bid="([^"]+)"', svg)
    assert all(identifier.startswith("demo-") for identifier in identifiers)
    assert {reference in identifiers for reference in re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg)} == {True}


def test_a_figure_of_a_file_says_what_the_page_says_beside_it() -> None:
    labels = ["grpo", "gc$p_o$ \u05d0"]
    lines = [plots.Series(label=label, x=[0, 1], y=[0, 1], style=style) for style, label in enumerate(labels)]
    chart = plots.line_chart(lines, name="demo", x_label="step", y_label="points", description="up")
    first = plots.chart_files(chart)
    assert set(first) == {"demo.svg", "demo.pdf", "demo.png"}
    assert first["demo.pdf"].startswith(b"%PDF")
    with Image.open(io.BytesIO(first["demo.png"])) as image:
        assert image.size[0] == 1000  # 5 inches at 200 dots
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert [text.get_text() for text in chart.figure.legends[0].get_texts()] == labels
    assert chart.figure.axes[0].get_ylabel() == "points"
    again = plots.line_chart(lines, name="demo", x_label="step", y_label="points", description="up")
    assert plots.chart_files(again) == first


def test_every_chart_and_every_map_of_the_page_is_a_file_too(tmp_path: Path) -> None:
    paths = make_study(tmp_path / "runs", methods=("grpo", "gcpo"), steps=3, prompts_per_task=2)
    written = write_report(paths, tmp_path / "report", ["html", "figures"])
    names = {path.name for path in written if path.parent.name == "figures"}
    page = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert len({name for name in names if name.endswith(".pdf")}) == page.count('class="chart"')
    assert {"curve-reward-mean.svg", "ladder.pdf", "phases.png", "token-maps-gcpo-0.png"} <= names


def test_the_static_overlay_dims_what_is_not_trained_on_and_tints_what_was_chosen() -> None:
    image = np.full((20, 20, 3), 200, dtype=np.uint8)
    chosen = np.array([[True, False], [False, False]])
    shown = plots.chosen_overlay(image, chosen, {"initial": chosen}, plots.criterion_colors(["initial"]))
    assert tuple(shown[0, 0]) == (230, 159, 0)  # the frame: Okabe-Ito orange
    assert tuple(shown[5, 5]) == (214, 182, 110)  # 0.55 * 200 + 0.45 * orange
    assert tuple(shown[15, 15]) == (76, 76, 76)  # 0.38 * 200


UNESCAPED = re.compile(r"(?<!\\)[{}$&#_%~^<>|\"]|\\(?![{}$&#_%]|text[a-z]+\{\}|checkmark|d?dag\{\}|ldots\{\}|infty)")


@given(st.one_of(st.text(), st.sampled_from(HOSTILE), st.text(alphabet='\\{}$&#_%~^<>|"a')))
def test_latex_text_holds_no_command_of_its_own(text: str) -> None:
    escaped = tables.latex_text(text).replace("$-$", "").replace(r"$\infty$", "")
    for command in ("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar",
                    "textquotedbl", "textsection", "dag", "ddag", "ldots"):  # fmt: skip
        escaped = escaped.replace(f"\\{command}{{}}", "")
    assert not UNESCAPED.search(escaped)


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "12.3"), (-0.05, "−5.0"), (-1e-9, "0.0"), (float("nan"), "–"), (float("inf"), "∞")]
)
def test_points_read_well(value: float, text: str) -> None:
    assert tables.points(value) == text


def test_an_interval_without_end_says_so() -> None:
    assert tables.interval_text(score_interval({"a": ("t", 0.5)})) == "50.0 [−∞, ∞]"


def test_the_static_overlay_takes_grids_that_do_not_divide_the_picture() -> None:
    chosen = np.ones((5, 5), dtype=bool)
    shown = plots.chosen_overlay(np.zeros((144, 144, 3), np.uint8), chosen, {"all": chosen}, {"all": "#ffffff"})
    assert (shown[0] == 255).all()
    assert (shown[143] == 255).all()
    assert tuple(shown[10, 10]) == (115, 115, 115)  # inside: 0.45 of white


def test_all_right_is_not_certain_to_stay_all_right(tmp_path: Path) -> None:
    run = make_run(tmp_path, "gcpo-0", steps=1, maps=False, skill=2.0, prompts_per_task=5)
    data = load([run.path])
    score = variant_score(data.trained[0], "scenes", data.headline("scenes"), "counting")
    assert score is not None
    assert (score.value, score.high) == (1.0, 1.0)
    assert score.low == pytest.approx(0.5655, abs=1e-4)  # Wilson, 5 of 5


def test_a_map_without_variation_is_drawn_in_the_middle_of_its_scale() -> None:
    assert value_range("weight", [np.ones((1, 2, 2))]) == pytest.approx((0.99, 1.01))
    assert value_range("divergence", [np.zeros((1, 2, 2))]) == pytest.approx((-0.01, 0.01))
    assert value_range("weight", [np.array([[[1.0, 1.5]]])]) == pytest.approx((0.5, 1.5), abs=0.01)


def test_the_command_is_shown_without_the_place_of_the_program(tmp_path: Path) -> None:
    run = make_run(tmp_path, "gcpo-0", steps=1, maps=False, prompts_per_task=1)
    argv = ["/home/me/venv/bin/gcpo-bench", "train", "--name", "a b"]
    (run.path / "environment.json").write_text(json.dumps([{"argv": argv}]))
    page = build(load([run.path]))["report.html"]
    assert "gcpo-bench train --name &#39;a b&#39;" in page
    assert "/home/me" not in page

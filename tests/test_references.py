"""Image sets that are no runs, in the report: named, marked, compared only with what was judged alike."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from gcpo_bench.errors import CorruptDataError, RunError
from gcpo_bench.reports.comparisons import compare_all, compare_references, sentence, variant_score
from gcpo_bench.reports.load import ReportData, load
from gcpo_bench.reports.page import build
from gcpo_bench.reports.references import load_references, reference_folders
from gcpo_bench.reports.sections import gallery, verdict
from gcpo_bench.reports.study import claims

from .conftest import Cli
from .run_factory import HOSTILE, make_reference, make_run, make_study, score_run

GENERATOR = {
    "generator": "diffusers",
    "steps": 30,
    "scheduler": {"name": "EulerDiscreteScheduler"},
    "weights": "/home/somebody/models/sdxl-base-1.0",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on two benchmarks; a generator on both, and two folders that fit less well."""
    root = tmp_path_factory.mktemp("both")
    options: dict[str, Any] = {"prompts_per_task": 3, "images_per_prompt": 2}
    make_study(
        root / "runs", methods=("grpo", "gcpo"), seeds=2, steps=3, maps=False, benchmarks=("hps-gcpo400",), **options
    )
    evaluations = root / "evaluations"
    for benchmark, more in (("scenes", options), ("hps-gcpo400", {})):
        make_reference(evaluations, "sdxl", benchmark, generator=GENERATOR, shown="SDXL base", **more)
    make_reference(evaluations, "four-each", "hps-gcpo400", images_per_prompt=4)
    make_reference(evaluations, "grpo", "hps-gcpo400", source=False)
    return root


def read(root: Path) -> ReportData:
    return load(sorted((root / "runs").iterdir()), reference_folders(root / "evaluations"))


@pytest.fixture(scope="module")
def data(root: Path) -> ReportData:
    return read(root)


@pytest.fixture(scope="module")
def files(data: ReportData) -> dict[str, str]:
    return build(data)


def test_image_sets_have_the_names_and_settings_of_their_sources(data: ReportData) -> None:
    by_label = {reference.label: reference for reference in data.references}
    assert set(by_label) == {"four-each", "grpo (grpo)", "SDXL base"}  # grpo is a variant already
    sdxl = by_label["SDXL base"]
    assert (sdxl.kind, set(sdxl.by_benchmark), set(sdxl.images)) == ("generator", {"scenes", "hps-gcpo400"},
                                                                     {"scenes", "hps-gcpo400"})  # fmt: skip
    assert sdxl.about("scenes") == "not trained here; generator; 2 images a prompt"
    assert sdxl.drawn_with == (
        "generator diffusers, steps 30, scheduler.name EulerDiscreteScheduler, weights sdxl-base-1.0"
    )
    unknown = by_label["grpo (grpo)"]
    assert (unknown.kind, unknown.images) == ("unknown", {})
    assert any(note.startswith("grpo: the images of hps-gcpo400 are not shown: no source.json") for note in data.notes)


def test_they_are_rows_of_the_scores_and_marked(data: ReportData, files: dict[str, str]) -> None:
    rows = [row for row in csv.DictReader(io.StringIO(files["report.csv"])) if row["method"] == "reference"]
    assert {(row["variant"], row["benchmark"]) for row in rows} == {
        ("SDXL base", "scenes"), ("SDXL base", "hps-gcpo400"), ("four-each", "hps-gcpo400"),
        ("grpo (grpo)", "hps-gcpo400"),
    }  # fmt: skip
    (overall,) = [r for r in rows if (r["variant"], r["benchmark"], r["task"]) == ("four-each", "hps-gcpo400", "")]
    reference = next(each for each in data.references if each.label == "four-each")
    score = variant_score(reference, "hps-gcpo400", data.headline("hps-gcpo400"))
    assert score is not None
    assert float(overall["value"]) == score.value
    assert files["report.html"].count('class="reference"') == 4
    assert "not trained here; folder of images; 4 images a prompt" in files["report.html"]
    assert "SDXL base was drawn with: generator diffusers, steps 30" in files["report.html"]
    assert "/home/somebody" not in "".join(files.values())
    assert "4 runs of 2 variants, 2 seeds, model scenes-12; 3 image sets not trained here" in files["report.html"]


def test_trained_variants_are_compared_with_what_was_judged_alike(data: ReportData, files: dict[str, str]) -> None:
    found, refused = compare_references(data, "hps-gcpo400")
    trained = [(a, b) for b in ("SDXL base", "grpo (grpo)") for a in ("grpo", "gcpo")]
    assert [(c.a, c.b) for c in found] == [*trained, ("SDXL base", "grpo (grpo)")]
    assert [(c.against, c.interval.seeds) for c in found] == [*[("reference", 2)] * 4, ("reference", 1)]
    pairs = {(a, "four-each", "1 / 4") for a in ("grpo", "gcpo", "SDXL base")} | {("four-each", "grpo (grpo)", "4 / 1")}
    assert {(r.a, r.b, r.reason) for r in refused} == {
        (a, b, f"they were not evaluated alike: images_per_prompt {counts}") for a, b, counts in pairs
    }
    smallest = min(found, key=lambda c: c.p_value)
    assert smallest.p_holm == pytest.approx(min(1, 5 * smallest.p_value))  # a family of their own
    rows = list(csv.DictReader(io.StringIO(files["report-references.csv"])))
    assert {row["against"] for row in rows} == {"reference"}
    assert len(rows) == 7  # five, and two on scenes
    assert "Not compared: gcpo with four-each; they were not evaluated alike" in files["report.html"]


def test_two_image_sets_are_compared_with_each_other_and_called_no_checkpoints(tmp_path: Path) -> None:
    for name, skill in (("ours", 0.9), ("theirs", 0.2)):
        make_reference(tmp_path, name, "scenes", skill=skill, shown=name, prompts_per_task=8)
    data = load([], reference_folders(tmp_path))
    (found,) = compare_references(data, "scenes")[0]
    assert (found.a, found.b, found.verdict, found.interval.n) == ("ours", "theirs", "better", 48)
    text = sentence(found, 1)
    assert text.startswith("ours is better than theirs by ")
    assert text.endswith("; 48 prompts).")
    made = build(data)
    assert '<b>ours</b> <span class="quiet">against</span> theirs' in made["report.html"]
    assert "ours is better than theirs by" in made["report.md"]
    assert "Nothing can be compared yet" not in made["report.html"] + made["report.md"]


def test_rows_that_were_judged_otherwise_are_marked_in_every_format(tmp_path: Path) -> None:
    """One benchmark on a run and three folders: judged alike, in part, and with another program's fidelity."""
    official = {"look": {"fidelity": {"name": "official"}}, "settings": {"threshold": 0.3}}
    server = {"look": {"fidelity": {"name": "reward-server"}, "detector": "other"}, "settings": {"threshold": 0.11}}
    folders = [
        make_reference(tmp_path, name, "hps-gcpo400", identity=identity)
        for name, identity in (("a", official), ("b", official), ("c", server), ("d", {**official, "missing": 3}))
    ]
    data = load([], folders)
    files = build(data)
    table = files["report.md"].split("## Scores")[1].split("## ")[0]
    rows = {line.split()[1]: line for line in table.splitlines() if line.startswith("| ")}
    assert "§" not in rows["a"] + rows["b"]
    assert "c §1" in rows["c"]
    assert "d §2" in rows["d"]
    told = "fidelity reward\\-server; detector is not the published one; threshold 0.11 \\(default 0.3\\)"
    assert "hps\\-gcpo400 judged with: fidelity official." in table
    assert f"§1 judged otherwise: {told}; differs in look.detector null / other" in table
    assert "§2 judged otherwise: fidelity official; PARTIAL: 3 images are missing." in table
    for line in ("c §1", "§1 judged otherwise: fidelity reward-server", "hps-gcpo400 judged with: fidelity official"):
        assert line in files["report.html"]
    cells = {row["variant"]: row for row in csv.DictReader(io.StringIO(files["report.csv"]))}
    assert [cells[name]["judged_otherwise"] for name in "abcd"] == ["", "", "§1", "§2"]
    assert cells["b"]["judged_with"] == "fidelity official"
    assert cells["c"]["judged_with"].startswith("fidelity reward-server; detector is not the published one")


def test_the_paper_s_tables_say_how_measured_numbers_were_judged(tmp_path: Path) -> None:
    runs = make_study(tmp_path, methods=("grpo", "gcpo"), prompts_per_task=3, images_per_prompt=1, steps=2, maps=False)
    for run in runs[:2]:
        path = run / "evaluations/scenes/scores.json"
        record = json.loads(path.read_text())
        record["identity"] |= {"look": {"fidelity": {"name": "reward-server"}}}
        path.write_text(json.dumps(record))
    files = build(load(runs))
    tex = files["report.tex"]
    assert tex.count("scenes judged with: fidelity reward-server.") == 2
    assert "\\textsection{}1 judged otherwise: differs in look.fidelity.name" in tex
    assert "§1" in files["report.md"]


def test_they_change_nothing_about_the_runs(root: Path, data: ReportData) -> None:
    alone = load(sorted((root / "runs").iterdir()))
    for benchmark in alone.benchmarks:
        assert compare_all(alone, benchmark) == compare_all(data, benchmark)
    assert verdict(alone).data == verdict(data).data
    assert claims(alone).data == claims(data).data


def test_the_gallery_puts_their_images_beside_a_trained_variants(data: ReportData, files: dict[str, str]) -> None:
    albums = gallery(data).data["gallery"]
    beside = re.findall(r"<b>(\w+)</b> against ([^<]+?) on ([\w-]+) <span", files["report.html"])
    assert ("gcpo", "SDXL base", "hps-gcpo400") in beside
    assert ("gcpo", "SDXL base", "scenes") in beside
    assert len(beside) == 2  # nobody says where the others' images are, or they were not judged alike
    assert len(albums) == 6
    assert "Image SDXL base for the prompt" in files["report.html"]


def test_the_same_image_sets_give_the_same_bytes(root: Path, files: dict[str, str]) -> None:
    runs, folders = sorted((root / "runs").iterdir()), reference_folders(root / "evaluations")
    assert build(load(runs[::-1], folders[::-1])) == files


def test_only_image_sets_make_a_report_too(root: Path) -> None:
    made = build(load([], reference_folders(root / "evaluations")))
    assert "3 image sets not trained here" in made["report.html"]
    assert "The image sets are compared with each other" in made["report.md"]
    assert "SDXL base" in made["report.md"]
    assert "The start was not among the runs" not in made["report.md"]


def test_there_must_be_something(tmp_path: Path) -> None:
    assert reference_folders(tmp_path / "nowhere") == []
    with pytest.raises(RunError, match="there is no run to report on"):
        load([], [])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("samples.jsonl", b'{"prompt_id": "a"}\n{"prompt_id": "b"}\n'),
        ("samples.jsonl", None),
        ("scores.json", b"[]"),
        ("scores.json", b'{"panel": 3}'),
        ("scores.json", b'{"metrics": []}'),
        ("scores.json", b'{"identity": 3}'),
        ("scores.json", None),
    ],
)
def test_a_damaged_evaluation_is_left_out_with_a_note(tmp_path: Path, file: str, content: bytes | None) -> None:
    for benchmark in ("hps-gcpo400", "drawbench"):
        make_reference(tmp_path / "e", "theirs", benchmark, per_task=2, draw=False)
    path = tmp_path / "e/theirs/drawbench" / file
    path.unlink() if content is None else path.write_bytes(content)
    (reference,), notes = load_references(reference_folders(tmp_path / "e"))
    assert set(reference.by_benchmark) == {"hps-gcpo400"}
    assert [note for note in notes if note.startswith("theirs: drawbench is left out: ")]
    assert str(tmp_path) not in "".join(notes)
    shutil.rmtree(tmp_path / "e/theirs/hps-gcpo400")
    with pytest.raises((RunError, CorruptDataError), match="no image set could be read"):
        load([], reference_folders(tmp_path / "e"))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"kind": "run", "name": "x", "images": "."}', b"\xff"])
def test_a_damaged_source_costs_the_images_only(tmp_path: Path, content: bytes) -> None:
    make_reference(tmp_path, "theirs", "hps-gcpo400", per_task=2)
    (tmp_path / "theirs/hps-gcpo400/source.json").write_bytes(content)
    (reference,), (note,) = load_references(reference_folders(tmp_path))
    assert (reference.label, reference.kind, reference.images) == ("theirs", "unknown", {})
    assert note.startswith("theirs: the images of hps-gcpo400 are not shown: source.json is")
    assert str(tmp_path) not in note


def test_two_sources_in_one_folder_are_two_image_sets(tmp_path: Path) -> None:
    make_reference(tmp_path, "mixed", "hps-gcpo400", per_task=2, draw=False)
    make_reference(tmp_path, "mixed", "drawbench", per_task=2, draw=False, shown="others")
    references, _ = load_references(reference_folders(tmp_path), taken=["others"])
    assert [reference.label for reference in references] == ["mixed", "others (mixed)"]


def test_missing_images_are_told(tmp_path: Path) -> None:
    make_reference(tmp_path, "partial", "hps-gcpo400", per_task=2, draw=False, identity={"missing": 3})
    _, (note,) = load_references(reference_folders(tmp_path))
    assert note == "partial: 3 images of hps-gcpo400 are missing: its scores are partial"


def test_no_name_does_harm(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "gcpo-0", steps=1, maps=False, evaluated=False)
    score_run(run, "hps-gcpo400", 0.5, per_task=2)
    for number, text in enumerate(HOSTILE):
        folder = f"{number} {text.replace('/', '|')[:60]}".replace("\x00", "")
        make_reference(
            tmp_path / "e", folder, "hps-gcpo400", per_task=2, draw=number < 2, generator={text: {text: text}},
            identity={text: text}, shown=text,
        )  # fmt: skip
    made = build(load([run.path], reference_folders(tmp_path / "e")))
    page = made["report.html"]
    assert page.count("<script") == 1
    assert not [harm for harm in ("<img src=x", "<b>html", "\x1b", "\u202e") if harm in page]
    assert page.count("window.hacked") == page.count("window.hacked=1")
    assert not re.search(r"<[^>]*\son\w+=", re.sub(r'"[^"]*"', '""', page))
    for name in ("report.csv", "report-references.csv"):
        assert len({len(row) for row in csv.reader(io.StringIO(made[name]))}) == 1
        cells = [cell for row in csv.reader(io.StringIO(made[name])) for cell in row]
        assert not [c for c in cells if c.startswith(("=", "@", "+")) or (c[:1] == "-" and not c[1:2].isdigit())]
    for block in made["report.md"].split("\n\n"):
        if block.startswith("|"):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    json.loads(made["report.json"])


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_shows_them_beside_runs_on_two_benchmarks(cli: Cli, root: Path, tmp_path: Path) -> None:
    for part in ("runs", "evaluations"):
        shutil.copytree(root / part, tmp_path / part)
    result = cli("report", "--format", "html,md,csv,json,tex")
    assert result.code == 0, result.err
    text = (tmp_path / "report/report.md").read_text(encoding="utf-8").replace("\\", "")
    assert "| SDXL base (not trained here; generator; 2 images a prompt) |" in text
    assert "- hps-gcpo400, hps-v2.1 x100: " in text
    assert (tmp_path / "report/report-references.csv").exists()

    without = cli("report", "--no-references", "--format", "md", "--out", "without")
    assert without.code == 0
    assert "SDXL" not in (tmp_path / "without/report.md").read_text(encoding="utf-8")

    shutil.rmtree(tmp_path / "runs")
    assert cli("report", "--format", "md", "--out", "alone").code == 0
    assert "3 image sets not trained here" in (tmp_path / "alone/report.md").read_text(encoding="utf-8").replace(
        "\\", ""
    )

    elsewhere = cli("report", "--evaluations-dir", "nowhere")
    assert (elsewhere.code, "--evaluations-dir nowhere is no folder" in elsewhere.err) == (2, True)
    shutil.rmtree(tmp_path / "evaluations")
    nothing = cli("report")
    assert (nothing.code, "no run in runs" in nothing.err) == (2, True)


WARMTH = """
from gcpo_bench.evaluators.metrics import stratified
from gcpo_bench.scenes import held_out_prompts

class Warmth:
    \"\"\"How red pictures are, in grey levels: nothing is right or wrong.\"\"\"
    gcpo_bench_part = "benchmark"
    name = prompt_set = "lab_warmth:Warmth"
    version = "1"
    headline = "warmth"

    def __init__(self, world=""):
        pass

    def prompts(self):
        return [prompt for prompt in held_out_prompts() if prompt.tag in ("colors", "counting")][::8]

    def problem(self, image_YXC):
        return ""

    def score(self, images_BYXC, prompts_B):
        return [({"warmth": float(image[..., 0].mean() - image[..., 2].mean())}, "", ()) for image in images_BYXC]

    def summarize(self, samples):
        scored = [sample for sample in samples if sample.values]
        return {"overall": stratified(scored, "warmth", by_prompt=True, unit="raw")} if scored else {}
"""


def test_a_run_and_a_folder_really_evaluated_meet_in_the_report(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder holds the run's own images, so that the difference is known: none."""
    (tmp_path / "lab_warmth.py").write_text(WARMTH, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    bench = ("--bench", "lab_warmth:Warmth", "--images-per-prompt", "1")
    assert cli("train", "--model", "scenes-8", "--num-steps", "1", "--name", "a").code == 0
    evaluated = cli("evaluate", "a", *bench, "--json")
    assert evaluated.code == 0, evaluated.err
    shutil.copytree(tmp_path / "runs/a/images/lab_warmth:Warmth", tmp_path / "copy")
    assert cli("evaluate", "--images", "copy", *bench).code == 0
    assert cli("report", "--format", "md,json,csv").code == 0
    text = (tmp_path / "report/report.md").read_text(encoding="utf-8").replace("\\", "")
    assert "lab_warmth:Warmth, warmth: this gcpo checkpoint and copy score the same on every prompt (12 prompts" in text
    assert "| copy (not trained here; folder of images; 1 image a prompt) |" in text
    found = json.loads((tmp_path / "report/report.json").read_text())["verdict"]["comparisons"]
    (against_start,) = [each for each in found if each["against"] == "start"]
    printed = json.loads(evaluated.out)["difference"]
    assert [against_start[key] for key in ("difference", "low", "high")] == pytest.approx(
        [printed[key] for key in ("value", "low", "high")]
    )

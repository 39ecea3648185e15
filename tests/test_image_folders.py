"""Folders of images made by anybody, scored on GenEval with its two networks in miniature."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gcpo_bench import catalogue, prompt_sets
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError, RunError
from gcpo_bench.evaluators import geneval_benchmark, stored
from gcpo_bench.evaluators.detectors import geneval as vision
from gcpo_bench.evaluators.detectors import mask2former
from gcpo_bench.evaluators.fidelity import FIDELITIES
from gcpo_bench.evaluators.geneval_benchmark import GenEvalBenchmark
from gcpo_bench.evaluators.runner import ShardDone, evaluate_folder, rescore
from gcpo_bench.evaluators.types import Detection, Evaluation
from gcpo_bench.geneval_prompts import COLORS
from gcpo_bench.registry import REWARDS
from gcpo_bench.sources import Source, read_source

from . import miniatures
from .conftest import Cli
from .reference import geneval as oracle
from .test_images import REFUSED, rotated, transparent
from .test_janus_pro import REWARD

DEMANDS: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"},
    {"tag": "single_object", "include": [{"class": "toaster", "count": 1}], "prompt": "a photo of a toaster"},
    {
        "tag": "two_object",
        "include": [{"class": "cow", "count": 1}, {"class": "sink", "count": 1}],
        "prompt": "a photo of a cow and a sink",
    },
    {
        "tag": "counting",
        "include": [{"class": "cow", "count": 2}],
        "exclude": [{"class": "cow", "count": 3}],
        "prompt": "a photo of two cows",
    },
    {
        "tag": "colors",
        "include": [{"class": "sink", "count": 1, "color": "brown"}],
        "prompt": "a photo of a brown sink",
    },
    {
        "tag": "position",
        "include": [{"class": "cow", "count": 1}, {"class": "sink", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a sink left of a cow",
    },
    {
        "tag": "color_attr",
        "include": [{"class": "cow", "count": 1, "color": "red"}, {"class": "tie", "count": 1, "color": "blue"}],
        "prompt": "a photo of a red cow and a blue tie",
    },
]  # fmt: skip
"""A small GenEval: classes that the detector in miniature sees in everything, and one it never sees."""
LINES = "".join(json.dumps(demand) + "\n" for demand in DEMANDS)
IMAGES = 2
TOTAL = IMAGES * len(DEMANDS)


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a benchmark that sees with the miniatures, from files as they are published."""
    folder = tmp_path_factory.mktemp("networks")
    return {
        "detector": miniatures.write_checkpoint(folder / "detector.pth", miniatures.detector()),
        "classifier": miniatures.write_clip(folder / "clip", miniatures.clip()),
        "device": "cpu",
    }


@pytest.fixture(autouse=True)
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GenEval with seven prompts, in the data folder, seen at a fifth of the size."""
    published = replace(
        prompt_sets.SETS["geneval"], sha256=hashlib.sha256(LINES.encode()).hexdigest(), count=len(DEMANDS)
    )
    monkeypatch.setitem(prompt_sets.SETS, "geneval", published)
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path / "home"))
    published.path.parent.mkdir(parents=True)
    published.path.write_text(LINES)
    monkeypatch.setattr(mask2former, "LONG_SIDE", 266)
    monkeypatch.setattr(mask2former, "SHORT_SIDE", 160)


@pytest.fixture(scope="session")
def built() -> dict[Any, Any]:
    return {}


@pytest.fixture(autouse=True)
def build_networks_once(built: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    build = vision.build

    def once(fidelity: Any, **options: Any) -> Any:
        key = (fidelity, *options.values())
        if key not in built:
            built[key] = build(fidelity, **options)
        return built[key]

    monkeypatch.setattr(vision, "build", once)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "theirs")


def make_folder(path: Path) -> Path:
    """GenEval's own layout, as its sampler writes it."""
    for number, demand in enumerate(DEMANDS):
        samples = path / f"{number:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(demand))
        for index in range(IMAGES):
            rng = np.random.default_rng([number, index])
            image_YXC = np.full((48, 48 + 8 * index, 3), rng.integers(0, 256, 3), dtype=np.uint8)
            image_YXC[8:30, 12:40] = rng.integers(0, 256, 3)
            Image.fromarray(image_YXC).save(samples / f"{index:05d}.png")
    return path


def go(folder: Path, out: Path, networks: dict[str, Any], **more: Any) -> Evaluation:
    options = {**networks, **more.pop("options", {})}
    return evaluate_folder(folder, out, "geneval", images_per_prompt=IMAGES, options=options, **more)


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("samples.jsonl", "scores.json", "prompts.jsonl")}


def same(a: Evaluation, b: Evaluation) -> bool:
    return repr(a) == repr(b)  # NaN, the error of a task with one prompt, is not equal to itself


def observations(out: Path) -> list[Any]:
    rows = [json.loads(line) for path in (out / "observations").iterdir() for line in path.read_text().splitlines()]
    return [row for row in rows if "look" not in row]


# ---------------------------------------------------------------- what a whole set gets


def test_genevals_own_layout_is_scored_as_it_is(folder: Path, tmp_path: Path, networks: dict[str, Any]) -> None:
    out = tmp_path / "out"
    before = sorted(folder.rglob("*"))
    evaluation = go(folder, out, networks)
    assert evaluation.notes == ()
    assert evaluation.identity["look"]["detector"] == "other"  # no published weights, and the scores say so
    assert evaluation.identity["look"]["fidelity"]["name"] == "official"
    assert evaluation.identity["missing"] == 0
    assert read_source(out) == Source(kind="folder", name="theirs", images=folder)
    assert [name for name in evaluation.metrics if name.startswith("task/")] == [
        f"task/{tag}" for tag in dict.fromkeys(demand["tag"] for demand in DEMANDS)
    ]
    assert sorted(folder.rglob("*")) == before, "nothing is written into the folder of others"

    samples = stored.load_all_samples(out)
    assert len(samples) == TOTAL == len(observations(out))
    assert samples[0].image == "00000/samples/00000.png"
    seen = {(row["image"], tuple(row["question"])): row["value"] for row in observations(out)}
    for sample in samples:
        demand = DEMANDS[int(sample.prompt_id)]
        question = tuple(sorted({need["class"] for need in demand["include"] if "color" in need}))
        found = [
            Detection(label=label, confidence=confidence, box=tuple(box), color=color)
            for label, confidence, box, color in seen[sample.image_digest, question]
        ]
        assert all(0.1 < each.confidence <= 1 for each in found)
        assert all((each.color is not None) <= (each.label in question) for each in found)
        objects = oracle.kept_objects(found, demand["tag"])
        correct, reason = oracle.official(objects, demand, COLORS)
        assert (sample.values["correct"], sample.reason, sample.unscored) == (float(correct), reason, "")
    values = [sample.values["correct"] for sample in samples]
    assert 0 < sum(values) < len(values)


def test_results_are_also_written_as_geneval_writes_them(
    folder: Path, tmp_path: Path, networks: dict[str, Any]
) -> None:
    """The sums as GenEval's summary_scores.py makes them: with pandas, grouped by tag and by the metadata's text."""
    evaluation = go(folder, tmp_path / "out", networks)
    frame = pd.read_json(tmp_path / "out/results.jsonl", orient="records", lines=True, dtype=False)
    assert list(frame) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert [json.loads(line) for line in frame["metadata"].iloc[::IMAGES]] == DEMANDS
    assert frame["correct"].mean() == pytest.approx(evaluation.metrics["images_correct"].value)
    any_correct = frame.groupby("metadata")["correct"].any().mean()
    assert any_correct == pytest.approx(evaluation.metrics["prompts_correct"].value)
    tasks = frame.groupby("tag", sort=False)["correct"].mean()
    assert tasks.mean() == pytest.approx(evaluation.metrics["overall"].value)
    boxes = [found for text in frame["details"] for of_class in json.loads(text).values() for found in of_class]
    assert all(len(found) == 5 for found in boxes)
    assert boxes
    want = (tmp_path / "out/results.jsonl").read_bytes()
    rescore(tmp_path / "out", "geneval")
    assert (tmp_path / "out/results.jsonl").read_bytes() == want


def test_the_prompts_need_not_be_on_this_machine_where_the_folder_has_them_all(
    folder: Path, tmp_path: Path, networks: dict[str, Any]
) -> None:
    want = go(folder, tmp_path / "with", networks)
    prompt_sets.SETS["geneval"].path.unlink()
    assert same(go(folder, tmp_path / "without", networks), want)
    shutil.rmtree(folder / "00003")
    with pytest.raises(
        PrerequisiteError, match="prompt 00003 is missing, and the published prompts are not on"
    ) as error:
        go(folder, tmp_path / "out", networks)
    assert error.value.hint == "gcpo-bench data fetch geneval"


def test_a_limit_takes_the_first_prompts_of_each_task(folder: Path, tmp_path: Path, networks: dict[str, Any]) -> None:
    go(folder, tmp_path / "out", networks, limit=1)
    found = {sample.prompt_id for sample in stored.load_all_samples(tmp_path / "out")}
    assert found == {f"{i:05d}" for i in range(len(DEMANDS))} - {"00001"}


def test_a_runs_own_folder_of_images_is_scored_too(folder: Path, tmp_path: Path, networks: dict[str, Any]) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in folder.rglob("*.png"):
        shutil.copy(path, flat / f"{path.parts[-3]}-{int(path.stem)}.png")
    (flat / "thumbs\n.db").write_text("")
    evaluation = go(flat, tmp_path / "flat-out", networks)
    assert evaluation.notes[0] == "'thumbs\\n.db' is no image that is asked for"
    assert repr(evaluation.metrics) == repr(go(folder, tmp_path / "out", networks).metrics)


def test_other_words_or_another_configuration_look_again(
    folder: Path, tmp_path: Path, networks: dict[str, Any]
) -> None:
    """Of the classifier: the same weights, but two tokens change places, or a network of another shape."""
    first = go(folder, tmp_path / "out", networks).identity["look"]
    words, shape = (shutil.copytree(networks["classifier"], tmp_path / name) for name in ("words", "shape"))
    text = (words / "tokenizer.json").read_text()
    known = json.loads(text)
    vocabulary = known["model"]["vocab"]
    a, b = list(vocabulary)[5:7]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (words / "tokenizer.json").write_text(json.dumps(known))
    config = json.loads((shape / "config.json").read_text())
    config["vision_config"]["layer_norm_eps"] = 0.5
    (shape / "config.json").write_text(json.dumps(config))
    for classifier in (words, shape):
        assert go(folder, tmp_path / "out", networks, options={"classifier": classifier}).identity["look"] != first
    assert len(list((tmp_path / "out/observations").iterdir())) == 3


# ---------------------------------------------------------------- however the work is cut up


def test_shards_batches_stops_and_caches_change_no_bit(folder: Path, tmp_path: Path, networks: dict[str, Any]) -> None:
    go(folder, tmp_path / "straight", networks)
    want = contents(tmp_path / "straight")
    (want_seen,) = (path.read_bytes() for path in (tmp_path / "straight/observations").iterdir())
    for batch_rows in (1, 8, 64):
        out = tmp_path / f"rows-{batch_rows}"
        go(folder, out, networks, batch_rows=batch_rows)
        assert contents(out) == want
        assert [path.read_bytes() for path in (out / "observations").iterdir()] == [want_seen]

    for count in (2, 7):
        out = tmp_path / f"shards-{count}"
        for number in range(count, 0, -1):
            if number > 1:
                with pytest.raises(ShardDone, match=f"shard {number}/{count}: its"):
                    go(folder, out, networks, shard=(number, count))
                assert not (out / "scores.json").exists()
        go(folder, out, networks, shard=(1, count))
        assert contents(out) == want
        assert len(observations(out)) == TOTAL
        assert len(list((out / "observations").iterdir())) == count

    out = tmp_path / "at the same time"

    def run_the_other(done: int, total: int) -> None:
        if done == total:
            go(folder, out, networks, shard=(2, 2))

    go(folder, out, networks, shard=(1, 2), on_image=run_the_other)
    assert contents(out) == want

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        go(folder, out, networks, on_image=stop)
    assert len(observations(out)) == 5
    (log,) = (out / "observations").iterdir()
    with log.open("a") as file:
        file.write('{"image": "xxh3:')  # killed in the middle of a line
    go(folder, out, networks)
    assert contents(out) == want
    assert len(observations(out)) == TOTAL


def test_what_was_seen_is_found_by_content_and_not_looked_at_again(
    folder: Path, tmp_path: Path, networks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = go(folder, out, networks)
    looked: list[tuple[int, ...]] = []
    observe = GenEvalBenchmark.observe

    def counting(self: GenEvalBenchmark, images: Any, questions: Any) -> Any:
        looked.extend(image.shape for image in images)
        return observe(self, images, questions)

    monkeypatch.setattr(GenEvalBenchmark, "observe", counting)
    moved = tmp_path / "moved"
    shutil.move(folder, moved)
    with pytest.raises(RunError, match=r"holds the scores of other images: .*theirs"):
        go(moved, out, networks)
    (out / "source.json").unlink()
    assert same(go(moved, out, networks), first)
    assert looked == []
    Image.new("RGB", (32, 32), "red").save(moved / "00001/samples/00000.png")
    go(moved, out, networks)
    assert looked == [(32, 32, 3)]
    go(moved, out, networks, options={"fidelity": "fixed"})  # other pixels: everything is looked at anew
    assert len(looked) == 1 + TOTAL


# ---------------------------------------------------------------- judging again


def test_a_rescore_needs_neither_networks_nor_images(folder: Path, tmp_path: Path, networks: dict[str, Any]) -> None:
    out = tmp_path / "out"
    first = go(folder, out, networks)
    want = contents(out)
    strict = {"options": {"threshold": "0.9"}}
    direct = go(folder, tmp_path / "direct", networks, options=strict)
    shutil.rmtree(folder)
    prompt_sets.SETS["geneval"].path.unlink()
    assert same(rescore(out, "geneval"), first)
    assert contents(out) == want
    changed = rescore(out, "geneval", options=strict)
    assert repr(changed.metrics) == repr(direct.metrics) != repr(first.metrics)
    assert changed.identity["settings"]["threshold"] == 0.9
    assert same(rescore(out, "geneval"), first)


def test_a_rescore_with_another_fidelity_needs_what_that_one_saw(
    folder: Path, tmp_path: Path, networks: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    server = go(folder, out, networks, options={"fidelity": "reward-server"})
    official = go(folder, out, networks)
    assert same(rescore(out, "geneval", options={"fidelity": "reward-server"}), server)
    assert same(rescore(out, "geneval", options={"fidelity": "official"}), official)
    with pytest.raises(RunError, match="nothing is stored with fidelity=fixed"):
        rescore(out, "geneval", options={"fidelity": "fixed"})


def test_scores_say_which_versions_and_prompts_they_were_made_with(
    folder: Path, tmp_path: Path, networks: dict[str, Any]
) -> None:
    evaluation = go(folder, tmp_path / "out", networks)
    made_with = dict(evaluation.made_with)
    assert {"gcpo-bench", "python", "torch", "transformers", "pillow"} < made_with.keys()
    published = prompt_sets.get("geneval")
    assert made_with.pop("prompts") == {"set": "geneval", "sha256": published.sha256, "source": published.source}
    assert "torch" not in json.dumps(evaluation.identity)
    path = tmp_path / "out" / "scores.json"
    record = json.loads(path.read_text())
    assert record["made_with"]["torch"] == made_with["torch"]
    del record["made_with"], record["checksums"], record["xxh3"]  # as an earlier version left it
    path.write_text(json.dumps(record))
    assert stored.load(tmp_path / "out").identity == evaluation.identity


def test_a_rescore_of_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no scores\.json"):
        rescore(tmp_path / "runs" / "evaluations" / "geneval", "geneval")


def test_damaged_observations_are_told(folder: Path, tmp_path: Path, networks: dict[str, Any]) -> None:
    out = tmp_path / "out"
    go(folder, out, networks)
    (log,) = (out / "observations").iterdir()
    whole = log.read_text()
    for damage in ("nonsense\n", '{"image": 3}\n', '{"image": "x", "question": []}\n'):
        log.write_text(whole + damage)
        with pytest.raises(CorruptDataError, match=rf"{log.name} is damaged: line {TOTAL + 2}"):
            go(folder, out, networks)


# ---------------------------------------------------------------- whose GenEval


def test_each_fidelity_sees_other_pixels_and_is_recorded(
    folder: Path, tmp_path: Path, networks: dict[str, Any]
) -> None:
    large = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)  # antialiasing acts on reductions
    Image.fromarray(large).save(folder / "00004/samples/00000.png")
    confidences = {}
    for name in FIDELITIES:
        out = tmp_path / name
        evaluation = go(folder, out, networks, options={"fidelity": name})
        assert evaluation.identity["look"]["fidelity"]["name"] == name
        rows = sorted(observations(out), key=lambda row: str(row["image"]))
        confidences[name] = [[found[1] for found in row["value"]] for row in rows]
    assert confidences["official"] != confidences["reward-server"]
    assert confidences["official"] != confidences["fixed"]


# ---------------------------------------------------------------- damaged and incomplete folders


def test_an_incomplete_set_is_refused_unless_allowed_and_then_labelled(
    folder: Path, tmp_path: Path, networks: dict[str, Any]
) -> None:
    whole = go(folder, tmp_path / "whole", networks)
    (folder / "00002/samples/00000.png").unlink()
    shutil.rmtree(folder / "00005")
    lines: list[str] = []
    with pytest.raises(CorruptDataError, match=r"3 of 14 images are missing, the first is 00002/samples/\d+\.png"):
        go(folder, tmp_path / "out", networks, on_note=lines.append)
    assert len(lines) == 3
    assert not (tmp_path / "out").exists()
    partial = go(folder, tmp_path / "out", networks, allow_partial=True)
    assert partial.identity["missing"] == 3
    assert partial.identity != whole.identity
    assert partial.metrics["overall"].unscored == 3
    assert "task/position" not in partial.metrics  # nothing is known of it; it is no 0


def test_damaged_files_of_every_kind_get_a_line_each_and_the_others_their_score(
    folder: Path, tmp_path: Path, networks: dict[str, Any]
) -> None:
    go(folder, tmp_path / "whole", networks)
    want = {sample.image: sample.values for sample in stored.load_all_samples(tmp_path / "whole")}
    kinds = list(REFUSED.values())
    for start in range(0, len(kinds), len(DEMANDS)):
        damaged = {f"{i:05d}/samples/00001.png": kind for i, kind in enumerate(kinds[start : start + len(DEMANDS)])}
        whole = {name: (folder / name).read_bytes() for name in damaged}
        for name, (make, _) in damaged.items():
            (folder / name).write_bytes(make())
        out = tmp_path / f"out-{start}"
        evaluation = go(folder, out, networks)
        assert evaluation.metrics["overall"].unscored == len(damaged)
        assert len(evaluation.notes) == len(damaged)
        for sample, line in zip((s for s in stored.load_all_samples(out) if s.unscored), evaluation.notes, strict=True):
            assert sample.values == {}
            assert line == f"{sample.image} is not scored: {sample.unscored}"
            assert damaged[sample.image][1] in sample.unscored
        for sample in stored.load_all_samples(out):
            assert sample.unscored or sample.values == want[sample.image]
        for name, content in whole.items():
            (folder / name).write_bytes(content)


def test_strange_but_readable_files_are_scored_with_a_note(
    folder: Path, tmp_path: Path, networks: dict[str, Any]
) -> None:
    (folder / "00000/samples/00000.png").write_bytes(rotated())
    transparent().save(folder / "00000/samples/00001.png")
    shutil.copy(folder / "00001/samples/00000.png", folder / "00001/samples/00001.png")
    Image.new("RGB", (1, 1)).save(folder / "00002/samples/00000.png")
    evaluation = go(folder, tmp_path / "out", networks)
    assert set(evaluation.notes) == {
        "00000/samples/00000.png turned upright as its EXIF orientation says",
        "00000/samples/00001.png has transparent pixels; transparency is dropped",
        "2 images are not the only ones of their content, the first are 00001/samples/00000.png, "
        "00001/samples/00001.png",
        "00002/samples/00000.png is not scored: the image is 1x1 pixels, too small to show anything",
    }
    assert evaluation.metrics["overall"].unscored == 1


def test_extra_and_doubled_files_and_folders_are_named_and_left_out(
    folder: Path, tmp_path: Path, networks: dict[str, Any]
) -> None:
    want = go(folder, tmp_path / "whole", networks).metrics
    good = (folder / "00000/samples/00000.png").read_bytes()
    samples = folder / "00000/samples"
    for name in ("0.png", "00007.png", "grid\n.png", "00000.jpg", "..png", "０.png"):
        (samples / name).write_bytes(good)
    shutil.copytree(folder / "00001", folder / "1")
    shutil.copytree(folder / "00001", folder / "00099")
    (folder / "notes.txt").write_text("x")
    (folder / "١").mkdir()
    evaluation = go(folder, tmp_path / "out", networks)
    assert repr(evaluation.metrics) == repr(want)
    assert sorted(evaluation.notes) == sorted(
        [
            "'00099' is no prompt of geneval",
            "'1' is prompt 1 a second time; left out",
            "'notes.txt' is no prompt's folder",
            "'١' is no prompt's folder",
            "00000/samples/'..png' is no image that GenEval reads",
            "00000/samples/'0.png' is image 0 a second time; left out",
            "00000/samples/'00000.jpg' is image 0 a second time; left out",
            "00000/samples/'grid\\n.png' is no image that GenEval reads",
            "00000/samples/'０.png' is no image that GenEval reads",
            "00000/samples/00007.png is one image too many; left out",
        ]
    )


METADATA = {
    "more keys": lambda demand: json.dumps({**demand, "seed": 42, "index": 7}),
    "over several lines": lambda demand: json.dumps(demand, indent=2) + "\n\n",
    "with a mark": lambda demand: "\ufeff" + json.dumps(demand),
}


@pytest.mark.parametrize("form", METADATA)
@pytest.mark.parametrize("known", [True, False])
def test_metadata_that_geneval_reads_is_read(
    folder: Path, tmp_path: Path, networks: dict[str, Any], form: str, known: bool
) -> None:
    want = go(folder, tmp_path / "plain", networks)
    for number, demand in enumerate(DEMANDS):
        (folder / f"{number:05d}" / "metadata.jsonl").write_text(METADATA[form](demand), encoding="utf-8")
    if not known:
        prompt_sets.SETS["geneval"].path.unlink()
    found = go(folder, tmp_path / "out", networks)
    assert repr(found.metrics) == repr(want.metrics)
    assert found.notes == ()


@pytest.mark.parametrize("change", [{"include": []}, {"tag": "counting"}, {"exclude": [{"class": "cow", "count": 3}]}])
def test_metadata_that_judges_otherwise_is_not_genevals(
    folder: Path, tmp_path: Path, networks: dict[str, Any], change: dict[str, Any]
) -> None:
    (folder / "00000" / "metadata.jsonl").write_text(json.dumps({**DEMANDS[0], **change}))
    assert go(folder, tmp_path / "out", networks).notes[0].startswith("00000: its metadata is not GenEval's")


def test_rewritten_prompts_are_refused_with_the_way_out(folder: Path, tmp_path: Path, networks: dict[str, Any]) -> None:
    for number, demand in enumerate(DEMANDS):
        text = json.dumps({**demand, "prompt": f"{demand['prompt']}, studio light"})
        (folder / f"{number:05d}" / "metadata.jsonl").write_text(text)
    with pytest.raises(ConfigError, match="all 7 prompts are GenEval's in other words; 00000 is 'a photo of") as error:
        go(folder, tmp_path / "out", networks)
    assert "write GenEval's into each metadata.jsonl" in error.value.hint


@pytest.mark.parametrize("kind", ["PNG", "jpg", "JPEG", "webp"])
def test_other_kinds_of_picture_are_read(folder: Path, tmp_path: Path, networks: dict[str, Any], kind: str) -> None:
    for path in folder.glob("*/samples/*.png"):
        with Image.open(path) as picture:
            picture.save(path.with_suffix(f".{kind}"), lossless=True, quality=95)
        path.unlink()
    found = go(folder, tmp_path / "out", networks)
    assert found.notes == ()
    assert [sample.unscored for sample in stored.load_all_samples(tmp_path / "out")] == [""] * TOTAL


def test_images_beside_their_metadata_are_read(folder: Path, tmp_path: Path, networks: dict[str, Any]) -> None:
    want = go(folder, tmp_path / "plain", networks)
    for path in folder.glob("*/samples/*.png"):
        path.rename(path.parents[1] / path.name)
    for path in folder.glob("*/samples"):
        path.rmdir()
    found = go(folder, tmp_path / "out", networks)
    assert repr(found.metrics) == repr(want.metrics)
    assert found.notes == ()


def flat(folder: Path, place: Path, name: str) -> Path:
    """The images in one folder, named by prompt and number."""
    place.mkdir()
    for number in range(len(DEMANDS)):
        for index in range(IMAGES):
            image = folder / f"{number:05d}" / "samples" / f"{index:05d}.png"
            shutil.copy(image, place / name.format(number=number, index=index))
    return place


@pytest.mark.parametrize(
    "name", ["{number:05d}_{index}.png", "{number:05d}-{index:05d}.png", "{number:05d}_{index:04d}.PNG"]
)
def test_other_ways_to_name_a_prompts_images_are_read(
    folder: Path, tmp_path: Path, networks: dict[str, Any], name: str
) -> None:
    want = go(flat(folder, tmp_path / "own", "{number:05d}-{index}.png"), tmp_path / "a", networks)
    found = go(flat(folder, tmp_path / "theirs_flat", name), tmp_path / "b", networks)
    assert repr(found.metrics) == repr(want.metrics)
    assert found.notes == want.notes


def test_of_two_names_of_an_image_a_runs_own_is_taken(folder: Path, tmp_path: Path, networks: dict[str, Any]) -> None:
    place = flat(folder, tmp_path / "own", "{number:05d}-{index}.png")
    want = go(place, tmp_path / "a", networks)
    shutil.copy(place / "00001-0.png", place / "00000_0.jpg")
    shutil.copy(place / "00001-0.png", place / "00000-00000.png")
    found = go(place, tmp_path / "b", networks)
    assert repr(found.metrics) == repr(want.metrics)
    assert {"'00000_0.jpg' is no image that is asked for", "'00000-00000.png' is no image that is asked for"} <= set(
        found.notes
    )


def test_an_image_that_says_another_prompt_is_unscored(folder: Path, tmp_path: Path, networks: dict[str, Any]) -> None:
    """AUTOMATIC1111 numbers files as it draws, and writes the prompt into them."""
    place = flat(folder, tmp_path / "drawn", "{number:05d}-{index}.png")
    said = {0: DEMANDS[0]["prompt"], 1: DEMANDS[2]["prompt"]}
    for number, text in said.items():
        settings = PngInfo()
        settings.add_text("parameters", f"{text}\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a")
        with Image.open(place / f"{number:05d}-0.png") as picture:
            picture.save(place / f"{number:05d}-0.png", pnginfo=settings)
    found = go(place, tmp_path / "out", networks)
    assert found.metrics["dense"].unscored == 1
    reason = "its file says that it was drawn for 'a photo of a cow and a sink', should be 'a photo of a toaster'"
    assert f"00001-0.png is not scored: {reason}" in found.notes


@pytest.mark.parametrize("name", ["ComfyUI_00001_.png", "images.tar"])
def test_names_that_say_no_prompt_are_refused_as_that(tmp_path: Path, networks: dict[str, Any], name: str) -> None:
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=f"no name of the 1 files in .*, such as '{name}', says of") as error:
        go(tmp_path / "drawn", tmp_path / "out", networks)
    assert error.value.hint.endswith("name each image by its prompt's id and its number, as in 00000-0.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "its metadata.jsonl cannot be read: JSONDecodeError"),
        ("[" * 100_000, "its metadata.jsonl cannot be read: RecursionError"),
        ("[]", "its metadata.jsonl is not one JSON object with a 'prompt'"),
        (json.dumps(DEMANDS[1]) * 2, "its metadata.jsonl cannot be read"),
        (json.dumps({**DEMANDS[1], "prompt": "a photo of a dog"}), "its prompt is 'a photo of a dog', should be"),
        (json.dumps({**DEMANDS[1], "include": [{"class": "unicorn", "count": 1}]}), "its metadata is not GenEval's"),
        (None, "its metadata.jsonl cannot be read: FileNotFoundError"),
    ],
)
def test_a_prompt_that_is_not_genevals_is_named_and_the_others_are_scored(
    folder: Path, tmp_path: Path, networks: dict[str, Any], content: str | None, message: str
) -> None:
    path = folder / "00001/metadata.jsonl"
    path.unlink()
    if content is not None:
        path.write_text(content)
    evaluation = go(folder, tmp_path / "out", networks)
    assert any(line.startswith(f"00001: {message}") for line in evaluation.notes), evaluation.notes
    assert evaluation.metrics["task/single_object"].unscored == IMAGES
    assert evaluation.metrics["task/single_object"].n == 1


def test_prompts_that_cannot_be_judged_by_leave_the_others_alone(
    folder: Path, tmp_path: Path, networks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = list(prompt_sets.load("geneval"))
    prompts[1] = Prompt(id="00001", text="x", metadata={"tag": "colors", "include": [{"class": "unicorn", "count": 1}]})
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in folder.rglob("*.png"):
        shutil.copy(path, flat / f"{path.parts[-3]}-{int(path.stem)}.png")
    monkeypatch.setattr(GenEvalBenchmark, "prompts", lambda self: prompts)
    evaluation = go(flat, tmp_path / "out", networks)
    assert sum("include[0].class is 'unicorn'" in line for line in evaluation.notes) == IMAGES
    assert evaluation.metrics["overall"].unscored == IMAGES


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"detector": Path("nothing.pth")}, PrerequisiteError, "there is no such checkpoint"),
        ({"detector": None}, PrerequisiteError, "GenEval's detector"),
        ({"classifier": None}, PrerequisiteError, "GenEval's colour classifier"),
        ({"device": "abacus"}, ConfigError, "--device 'abacus' cannot be used"),
        ({"fidelity": "offical"}, ConfigError, "unknown fidelity 'offical'"),
        ({"colour": "x"}, ConfigError, "benchmark 'geneval' has no option 'colour'"),
    ],
)
def test_an_evaluator_that_cannot_be_made_is_told_before_anything_else(
    folder: Path, tmp_path: Path, networks: dict[str, Any], change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        go(folder, tmp_path / "out", networks, options=change)
    assert not (tmp_path / "out").exists()


def test_the_published_weights_are_known_by_their_digest(
    folder: Path, tmp_path: Path, networks: dict[str, Any]
) -> None:
    published = catalogue.GENEVAL_DETECTOR.path
    published.parent.mkdir(parents=True)
    shutil.copy(networks["detector"], published)
    with pytest.raises(CorruptDataError, match=r"SHA-256 is [0-9a-f]{64}, should begin with 743b7d99"):
        go(folder, tmp_path / "out", networks, options={"detector": None})


@pytest.mark.parametrize("shard", [(0, 2), (3, 2)])
def test_a_shard_that_does_not_exist_is_refused(
    folder: Path, tmp_path: Path, networks: dict[str, Any], shard: tuple[int, int]
) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        go(folder, tmp_path / "out", networks, shard=shard)


# ---------------------------------------------------------------- the command line


@pytest.fixture
def command(networks: dict[str, Any]) -> Callable[..., list[str]]:
    def arguments(*more: str) -> list[str]:
        paths = ["--detector", str(networks["detector"]), "--classifier", str(networks["classifier"])]
        looking = ["--images-per-prompt", str(IMAGES), *paths, "--device", "cpu"]
        return ["evaluate", "--bench", "geneval", *([] if "--rescore" in more else looking), *more]

    return arguments


def test_a_folder_is_scored_from_the_command_line(
    folder: Path, tmp_path: Path, cli: Cli, command: Callable[..., list[str]]
) -> None:
    result = cli(*command("--images", str(folder)))
    assert result.code == 0, result.err
    for part in (
        "overall",
        "color_attr",
        "images_correct",
        "prompts_correct",
        "fidelity official; detector is not the",
    ):
        assert part in result.out
    out = tmp_path / "evaluations/theirs/geneval"
    scores = json.loads((out / "scores.json").read_text())
    again = json.loads(cli(*command("--images", str(folder), "--rescore", "--json")).out)
    assert again["metrics"]["overall"]["value"] == scores["metrics"]["overall"]["value"]
    other = cli(*command("--images", str(folder), "--rescore", "--option", "threshold=0.95", "--json"))
    assert "threshold 0.95 (default 0.3)" in json.loads(other.out)["label"]
    assert json.loads(other.out)["metrics"] != again["metrics"]


def test_shards_from_the_command_line(folder: Path, cli: Cli, command: Callable[..., list[str]]) -> None:
    first = cli(*command("--images", str(folder), "--shard", "1/2", "--out", "here"))
    assert (first.code, first.out) == (0, "")
    assert "shard 1/2: its 7 images are looked at, others are not; run the other shards" in first.err
    second = cli(*command("--images", str(folder), "--shard", "2/2", "--out", "here"))
    assert second.code == 0
    assert "overall" in second.out


def test_images_that_cannot_be_scored_are_exit_code_5_and_the_scores_are_kept(
    folder: Path, tmp_path: Path, cli: Cli, command: Callable[..., list[str]]
) -> None:
    (folder / "00003/samples/00001.png").write_bytes(b"")
    result = cli(*command("--images", str(folder)))
    assert result.code == 5
    assert "overall" in result.out
    assert "00003/samples/00001.png is not scored: the image file is empty\n" in result.err
    assert "error: geneval: 1 images could not be scored; the scores of the others are kept\n" in result.err
    (folder / "00003/samples/00000.png").unlink()
    refused = cli(*command("--images", str(folder), "--out", "b"))
    assert (refused.code, refused.out) == (5, "")
    assert "1 of 14 images are missing" in refused.err
    (folder / "00003/samples/00001.png").unlink()
    partial = cli(*command("--images", str(folder), "--out", "b", "--allow-partial"))
    assert partial.code == 0, partial.err
    assert "PARTIAL: 2 images are missing" in partial.out


def test_an_image_drawn_for_another_prompt_is_unscored(folder: Path, tmp_path: Path, networks: dict[str, Any]) -> None:
    """Ids are the same in many sets; a manifest with texts tells, without one a line says that nothing does."""
    plain = tmp_path / "plain"
    plain.mkdir()
    for number in range(len(DEMANDS)):
        for index in range(IMAGES):
            content = (folder / f"{number:05d}/samples/{index:05d}.png").read_bytes()
            (plain / f"{number:05d}-{index}.png").write_bytes(content)
    silent = go(plain, tmp_path / "silent", networks)
    note = f"of {TOTAL} images no manifest.jsonl says the prompt; their names alone say whose they are"
    assert silent.notes == (note,)
    texts = [demand["prompt"] for demand in DEMANDS]
    rows = [{"file": f"{row:05d}-{k}.png", "text": text} for row, text in enumerate(texts) for k in range(IMAGES)]
    rows[3]["text"] = "a completely other prompt"
    (plain / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = go(plain, tmp_path / "told", networks)
    reason = "it was drawn for another prompt: 'a completely other prompt'"
    assert told.notes == (f"00001-1.png is not scored: {reason}",)
    assert told.metrics["overall"].unscored == 1
    samples = stored.load_all_samples(tmp_path / "told")
    assert [row for row, sample in enumerate(samples) if sample.unscored == reason] == [3]
    (plain / "manifest.jsonl").write_text("".join(json.dumps({**row, "text": "x"}) + "\n" for row in rows))
    with pytest.raises(CorruptDataError, match="none of the 14 images could be scored; the first: it was drawn for"):
        go(plain, tmp_path / "others", networks)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--images", "nowhere"), "--images 'nowhere' is no folder"),
        (("--images", ".", "a-run"), "both runs and --images are given"),
        (("--images", ".", "--shard", "2"), "--shard '2' is not I/N"),
        (("--images", ".", "--shard", "1/2", "--rescore"), "--rescore and --shard are both given"),
        *(
            (("--images", ".", "--rescore", option, value), f"--rescore and {option} are both given")
            for option, value in (
                ("--limit", "1"),
                ("--images-per-prompt", "1"),
                ("--batch-size", "1"),
                ("--detector", "."),
                ("--classifier", "."),
                ("--device", "cpu"),
            )
        ),
        (("--images", ".", "--rescore", "--allow-partial"), "--rescore and --allow-partial are both given"),
        (("--images", ".", "--option", "threshold"), "--option 'threshold' is not key=value"),
        (("--images", ".", "--fidelity", "true"), "unknown fidelity 'true'"),
        (("--images", ".", "--bench", "geneva"), "unknown benchmark 'geneva'"),
        (("a-run", "--allow-partial"), "--allow-partial goes with --images only"),
        (("--images", ".", "--bench", "scenes"), "benchmark 'scenes' has no option 'detector'"),
        ((), "Missing argument 'RUN...'"),
    ],
)
def test_bad_usage_is_exit_code_2(
    cli: Cli, command: Callable[..., list[str]], more: tuple[str, ...], message: str
) -> None:
    result = cli(*command(*more))
    assert result.code == 2, result.err
    assert f"error: {message}" in result.err


def test_a_run_is_drawn_and_scored_on_geneval_in_shards(
    tmp_path: Path, cli: Cli, command: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pixels.py").write_text(REWARD, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    small = ("policy.random_init=true", "rewards=[{name: 'pixels:Redness'}]", "sampling.prompts_per_step=2")
    options = [part for setting in (*small, "sampling.group_size=2") for part in ("-o", setting)]
    trained = cli("train", "--model", "janus-pro-tiny", "--num-steps", "1", "--name", "a", *options)
    assert trained.code == 0, trained.err
    first = cli(*command("a", "--no-start", "--limit", "1", "--shard", "1/2"))
    assert first.code == 0, first.err
    assert "a: shard 1/2: its 6 images are looked at" in first.err
    run = tmp_path / "runs/a"
    assert len(list((run / "images/geneval").glob("*.png"))) == 6
    second = cli(*command("a", "--no-start", "--limit", "1", "--shard", "2/2", "--json"))
    assert second.code == 0, second.err
    result = json.loads(second.out)
    assert result["metrics"]["overall"]["n"] == 6
    assert result["label"].startswith("fidelity official; detector is not the published one")
    scores = (run / "evaluations/geneval/scores.json").read_bytes()
    assert cli(*command("a", "--no-start", "--limit", "1")).code == 0
    assert (run / "evaluations/geneval/scores.json").read_bytes() == scores
    again = cli(*command("a", "--no-start", "--rescore", "--json"))
    assert json.loads(again.out)["metrics"] == result["metrics"]
    with_start = json.loads(cli(*command("a", "--limit", "1", "--json")).out)
    assert with_start["metrics"] == result["metrics"]
    assert with_start["start"]["run"].startswith("start-janus-pro-tiny-random")
    assert with_start["difference"]["n"] == 6
    report = cli("report", "a", "--format", "json")
    assert report.code == 0, report.err
    assert "geneval" in (tmp_path / "report/report.json").read_text()


def test_the_benchmark_serves_as_reward_with_what_reward_server_sees(
    folder: Path, tmp_path: Path, networks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for each, path in (
        (catalogue.GENEVAL_DETECTOR, networks["detector"]),
        (catalogue.GENEVAL_CLASSIFIER, networks["classifier"]),
    ):
        each.path.parent.mkdir(parents=True, exist_ok=True)
        each.path.symlink_to(path)
    monkeypatch.setattr(vision, "GENEVAL_DETECTOR", replace(catalogue.GENEVAL_DETECTOR, sha256=""))
    monkeypatch.setattr(vision, "color_test", lambda _: "")  # which random weights need not pass
    monkeypatch.setattr(vision, "GENEVAL_CLASSIFIER", replace(catalogue.GENEVAL_CLASSIFIER, files=("config.json",)))
    geneval_benchmark._server.cache_clear()
    prompts = prompt_sets.load("geneval")
    images_BYXC = np.stack([np.asarray(Image.open(folder / f"{p.id}/samples/00000.png")) for p in prompts])
    go(folder, tmp_path / "out", networks, options={"fidelity": "reward-server"})
    samples = [s for s in stored.load_all_samples(tmp_path / "out") if s.image_index == 0]
    for name, key in (("", "correct"), ("-dense", "dense"), ("-strict", "strict")):
        output = REWARDS.load(f"geneval-server{name}")()(images_BYXC, prompts)
        assert list(output.values_B) == [sample.values[key] for sample in samples]
        assert list(output.anomalies["strict"]) == [sample.values["strict"] for sample in samples]
    geneval_benchmark._server.cache_clear()

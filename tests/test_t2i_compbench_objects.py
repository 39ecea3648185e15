"""T2I-CompBench's categories with objects, through the command line: networks in miniature, detections from files."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gcpo_bench import catalogue, prompt_sets, runs
from gcpo_bench.config import RunConfig
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError
from gcpo_bench.evaluators import compbench, phrases, runner, stored_detections
from gcpo_bench.evaluators.detectors import compbench as eyes
from gcpo_bench.evaluators.detectors import depth, grounding_dino
from gcpo_bench.evaluators.layouts import compbench_file, holds_compbench, of_compbench_folder
from gcpo_bench.evaluators.phrases import Parsed, Phrases
from gcpo_bench.evaluators.scorers import blip_vqa, clip_score
from gcpo_bench.evaluators.t2i_compbench import RESULTS
from gcpo_bench.evaluators.types import Detection
from gcpo_bench.registry import BENCHMARK_GROUPS, BENCHMARKS

from . import miniatures
from .conftest import Cli
from .reference import compbench as reference
from .scorer_factory import BLIP, bert_tokenizer_folder, blip_vqa_state, clip_tokenizer_folder
from .test_hps_drawbench import Brightness

IMAGES = 2
TEXTS = {
    "spatial": ("a cat on the left of a dog", "a dog near a person", "a girl on the top of a telephone"),
    "3d-spatial": ("a cat in front of a dog", "a dog behind a cat"),
    "numeracy": ("two cats", "three dogs and a teddy bear"),
    "complex": ("The red cat sat next to the big dog.", "The red cat saw a dog.", "The cat met the dog near a tree."),
    "complex-spatial": ("The red cat sat next to the big dog.",),
    "complex-action": ("The red cat saw a dog.",),
    "objects": ("cat - cats", "dog - dogs", "teddy bear - teddy bears"),
    "color": ("a red cube",),
    "shape": ("a square cube",),
    "texture": ("a soft cat",),
    "non-spatial": ("a dog sees a cat",),
}
KINDS = dict.fromkeys(("cat", "dog", "girl", "person", "telephone", "cube", "tree"), "NOUN") | dict.fromkeys(
    ("red", "big", "square", "soft"), "ADJ"
)
OBJECTS = ("spatial", "3d-spatial", "numeracy")


def parsed(text: str) -> Parsed:
    """What a parser would find."""
    words = tuple((word, KINDS.get(word, "X")) for word in text.replace(".", " .").split())
    nouns = tuple(word for word, kind in words if kind == "NOUN")
    return Parsed(phrases=tuple(f"a {noun}" for noun in nouns), nouns=nouns, words=words)


TABLE = Phrases(parser="by hand", prompts={text: parsed(text) for texts in TEXTS.values() for text in texts})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder with everything that T2I-CompBench needs, in miniature."""
    folder = tmp_path_factory.mktemp("home") / "weights"
    miniatures.write_grounding_dino(folder / "grounding-dino-base", miniatures.grounding_dino())
    miniatures.write_depth(folder / "dpt-hybrid-midas", miniatures.depth())
    bert_tokenizer_folder(folder / "bert-base-uncased")
    state = {name: value.float() for name, value in blip_vqa_state(BLIP).items()}
    torch.save({"model": state}, folder / "model_base_vqa_capfilt_large.pth")
    clip_tokenizer_folder(folder / "clip-vit-large-patch14")
    (folder / "clip-vit-base-patch32").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "clip-vit-base-patch32" / name).write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path) -> Path:
    """T2I-CompBench with a few prompts, networks that see little, and a home folder."""
    home = tmp_path / "home"
    monkeypatch.setenv("GCPO_BENCH_HOME", str(home))
    home.mkdir()
    (home / "weights").symlink_to(weights)
    for category, texts in TEXTS.items():
        content = "\n".join(texts).encode()
        name = f"t2i-compbench-{category}"
        small = replace(prompt_sets.SETS[name], sha256=hashlib.sha256(content).hexdigest(), count=len(texts))
        monkeypatch.setitem(prompt_sets.SETS, name, small)
        small.path.parent.mkdir(parents=True, exist_ok=True)
        small.path.write_bytes(content)
    phrases.save(TABLE, phrases.table_file())
    monkeypatch.setattr(grounding_dino, "SHORT_SIDE", 96)
    monkeypatch.setattr(grounding_dino, "LONG_SIDE", 160)
    monkeypatch.setattr(depth, "SIDE", 96)
    blip = blip_vqa.load_blip_vqa(
        weights / "model_base_vqa_capfilt_large.pth", weights / "bert-base-uncased", size=BLIP
    )
    monkeypatch.setattr(blip_vqa, "blip_vqa", lambda device=None: blip)
    monkeypatch.setattr(clip_score, "clip_score_b32", lambda **_: Brightness())
    return home


@pytest.fixture(scope="module")
def built() -> dict[Any, Any]:
    return {}


@pytest.fixture(autouse=True)
def build_networks_once(built: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    build = eyes.build

    def once(detector: Path, **options: Any) -> Any:
        key = (detector.name, *map(str, options.values()))
        if key not in built:
            built[key] = build(detector, **options)
        return built[key]

    monkeypatch.setattr(eyes, "build", once)


def draw(folder: Path, category: str, images: int = IMAGES) -> Path:
    """Pictures of two boxes in T2I-CompBench's layout."""
    (folder / "samples").mkdir(parents=True)
    for number, text in enumerate(TEXTS[category]):
        prompt = Prompt(id=f"{number:05d}", text=text)
        for index in range(images):
            rng = np.random.default_rng([len(category), number, index])
            image_YXC = np.full((48, 40 + 8 * index, 3), rng.integers(0, 256, 3), dtype=np.uint8)
            image_YXC[6:30, 4:20] = rng.integers(0, 256, 3)
            image_YXC[20:44, 16:36] = rng.integers(0, 256, 3)
            Image.fromarray(image_YXC).save(folder / compbench_file(prompt, index, images))
    return folder


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("samples.jsonl", "scores.json", "prompts.jsonl")}


def samples(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def observations(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for path in (out / "observations").iterdir() for line in path.read_text().splitlines()]
    return [row for row in rows if "look" not in row]


@pytest.fixture
def go(cli: Cli, tmp_path: Path) -> Callable[..., Any]:
    """Evaluate a folder on a category; the folder of results."""

    def call(category: str, *more: str, code: int = 0, out: str = "out", images: str = "pictures") -> Path:
        if not (tmp_path / images).exists():
            draw(tmp_path / images, category)
        arguments = ("evaluate", "--images", images, "--bench", f"t2i-compbench-{category}", "--out", out)
        looking = () if "--rescore" in more else ("--images-per-prompt", str(IMAGES), "--device", "cpu")
        result = cli(*arguments, *looking, *more)
        assert result.code == code, result.err
        (tmp_path / "said").write_text(result.out + result.err)
        return tmp_path / out / f"t2i-compbench-{category}"

    return call


# ---------------------------------------------------------------- with networks


@pytest.mark.parametrize("category", [*OBJECTS, "complex"])
def test_a_category_from_pictures_to_scores(category: str, go: Callable[..., Path], tmp_path: Path) -> None:
    out = go(category)
    rows = samples(out)
    assert len(rows) == IMAGES * len(TEXTS[category])
    assert all(category in row["values"] and not row["unscored"] for row in rows)
    assert rows[0]["image"] == f"samples/{TEXTS[category][0]}_000000.png"
    scores = json.loads((out / "scores.json").read_text())
    overall = scores["metrics"]["overall"]
    assert overall["value"] == pytest.approx(np.mean([row["values"][category] for row in rows]))
    assert (overall["n"], overall["unscored"]) == (len(TEXTS[category]), 0)
    theirs = json.loads((out / RESULTS[category] / "vqa_result.json").read_text())
    assert theirs == [{"question_id": number, "answer": row["values"][category]} for number, row in enumerate(rows)]
    look = scores["identity"]["look"]
    seen = look.get("spatial", look)
    assert seen["detector"] == "grounding-dino"
    assert seen["detector_digest"].startswith("xxh3:")
    assert ("depth_digest" in seen) == (category == "3d-spatial")
    assert scores["identity"]["settings"]["box_threshold"] == 0.35
    assert "found by grounding-dino: not comparable with published scores" in (tmp_path / "said").read_text()
    before = contents(out)
    assert contents(go(category)) == before  # from what was seen
    assert contents(go(category, "--rescore")) == before
    for path in (out / "observations").iterdir():
        path.unlink()
    assert contents(go(category)) == before  # looked at again


@pytest.mark.parametrize("category", ["3d-spatial", "complex"])
def test_shards_give_the_same_bits(category: str, go: Callable[..., Path]) -> None:
    expected = contents(go(category))
    for count in (1, 2, 7):
        for share in range(count, 0, -1):
            out = go(category, "--shard", f"{share}/{count}", out=f"out{count}")
        assert contents(out) == expected


@pytest.mark.parametrize("fidelity", ["official", "fixed"])
def test_what_is_judged_is_what_was_seen(fidelity: str, go: Callable[..., Path]) -> None:
    out = go("3d-spatial", "--option", f"fidelity={fidelity}")
    by_digest = {row["image"]: row for row in observations(out)}
    for row in samples(out):
        seen, nouns = by_digest[row["image_digest"]], list(parsed(row["prompt"]).nouns)
        assert seen["question"] == nouns
        assert set(seen["value"]) == {"size", "boxes", "surest", "least", "depths"}
        height, width = seen["value"]["size"]
        assert (height, width) == (48, 40 + 8 * row["image_index"])
        boxes = map(tuple, seen["value"]["boxes"])
        in_frame = {compbench.from_frame(box, height, width): box for box in boxes}
        found = [(each["label"], each["confidence"], in_frame[tuple(each["box"])]) for each in row["detections"]]
        pairs = zip(map(tuple, seen["value"]["boxes"]), seen["value"]["depths"], strict=True)
        depths = {box: math.nan if None in pair else pair[fidelity == "fixed"] for box, pair in pairs}
        expected = reference.spatial_3d(row["prompt"], nouns, found, depths)
        assert row["values"]["3d-spatial"] == pytest.approx(expected, abs=1e-12)
        assert {label for label, _, _ in found} == set(nouns) - {
            line.removesuffix(" is not found") for line in row["reason"].splitlines()
        }


def test_thresholds_and_fidelity_are_judged_again_without_networks(
    go: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = go("3d-spatial")
    strict = go("3d-spatial", "--option", "box_threshold=0.9", "--option", "fidelity=fixed", out="strict")
    assert contents(strict)["samples.jsonl"] != contents(out)["samples.jsonl"]

    def gone(*_: Any, **__: Any) -> Any:
        raise AssertionError("a network is loaded again")

    monkeypatch.setattr(eyes, "build", gone)
    again = go("3d-spatial", "--rescore", "--option", "box_threshold=0.9", "--option", "fidelity=fixed")
    assert contents(again)["samples.jsonl"] == contents(strict)["samples.jsonl"]
    settings = json.loads((again / "scores.json").read_text())["identity"]["settings"]
    assert settings["box_threshold"] == 0.9
    assert settings["fidelity"] == "fixed"


@pytest.mark.parametrize("category", ["spatial", "complex"])
def test_other_weights_are_not_judged_again_by_what_these_saw(
    category: str, go: Callable[..., Path], tmp_path: Path, weights: Path
) -> None:
    out = go(category)
    before = contents(out)
    assert contents(go(category, "--rescore", "--option", "model=base")) == before
    go(category, "--rescore", "--option", "model=tiny", code=2)
    assert f"{out.name}: nothing is stored with model=tiny" in (tmp_path / "said").read_text()
    same = weights / "grounding-dino-base"
    assert contents(go(category, "--rescore", "--option", f"model={same}")) == before  # the same weights
    go(category, "--rescore", "--option", "model=nowhere", code=4)
    assert contents(out) == before
    other = tmp_path / "other"
    miniatures.write_grounding_dino(other, miniatures.grounding_dino())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    go(category, "--option", f"model={other}")
    assert contents(go(category, "--rescore", "--option", f"model={same}"))["samples.jsonl"] == before["samples.jsonl"]


def test_thresholds_are_nothing_to_imported_detections(go: Callable[..., Path], tmp_path: Path) -> None:
    store(tmp_path / "found.jsonl", *lines("spatial", ("cat", 0.9, [0, 0, 100, 100])))
    go("spatial", "--option", "detections=found.jsonl")
    go("spatial", "--rescore", "--option", "box_threshold=0.9", code=2)
    assert "nothing is stored with box_threshold=0.9" in (tmp_path / "said").read_text()


def test_complex_prompts_are_asked_what_they_are_about(go: Callable[..., Path]) -> None:
    out = go("complex")
    parts = {row["prompt"]: set(row["values"]) - {"complex"} for row in samples(out)}
    assert list(parts.values()) == [{"attribute", "spatial"}, {"attribute", "clip"}, {"attribute", "spatial", "clip"}]
    questions = {row["question"].get("clip") for row in observations(out)}
    assert questions == {None, "The cat saw a dog .", "The cat met the dog near a tree ."}
    assert {tuple(row["question"].get("spatial", ())) for row in observations(out)} == {
        ("cat", "dog"),
        (),
        ("dog", "tree"),
    }
    for row in samples(out):
        values = row["values"]
        assert values["complex"] == pytest.approx(np.mean([values[part] for part in parts[row["prompt"]]]))
    metrics = json.loads((out / "scores.json").read_text())["metrics"]
    assert {name: metric["n"] for name, metric in metrics.items()} == {
        "overall": 3,
        "part/attribute": 3,
        "part/spatial": 2,
        "part/clip": 2,
    }


def test_without_one_of_its_parts_3_in_1_has_no_value(small_world: Path) -> None:
    made = BENCHMARKS.load("t2i-compbench-complex")()
    prompt = made.prompts()[0]
    nothing: dict[str, list[Any]] = {"size": [8, 8], "boxes": [], "surest": [], "least": []}
    values, reason, _ = made.judge({"attribute": [["a cat?", math.nan]], "spatial": nothing}, prompt)
    assert values == {"spatial": 0.0}
    assert reason == "BLIP-VQA's answer is not a number"
    values, _, _ = made.judge({"attribute": [["a cat?", 0.5]], "spatial": nothing}, prompt)
    assert values == {"attribute": 0.5, "spatial": 0.0, "complex": 0.25}


def test_a_prompt_without_its_parts_of_speech_is_unscored(go: Callable[..., Path]) -> None:
    old = {text: {"phrases": ["a cat"], "nouns": ["cat", "dog"]} for text in TEXTS["complex"]}
    rows = {**old, TEXTS["complex"][1]: {**old[TEXTS["complex"][1]], "words": [["cat", "NOUN"]]}}
    phrases.table_file().write_text(json.dumps({"parser": "old", "prompts": rows}))
    out = go("complex", code=5)
    unscored = [row["unscored"] for row in samples(out)]
    assert unscored[2:4] == ["", ""]
    assert set(unscored[:2] + unscored[4:]) == {"the parts of speech of its words are not in the table of noun phrases"}


# ---------------------------------------------------------------- from a file


def line(prompt_id: str, index: int, *found: tuple[str, float, list[float]], **more: Any) -> dict[str, Any]:
    labels, confidences, boxes = ([each[part] for each in found] for part in range(3))
    address = {"prompt_id": prompt_id, "image_index": index}
    return {**address, "labels": labels, "confidences": confidences, "boxes": boxes, **more}


def store(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


CAT, DOG = ("cat", 0.8, [0.0, 0.0, 100.0, 100.0]), ("dog", 0.6, [200.0, 0.0, 300.0, 100.0])
PERSON = ("person", 0.9, [210.0, 0.0, 300.0, 100.0])


def lines(category: str, *found: tuple[str, float, list[float]], **more: Any) -> list[dict[str, Any]]:
    return [
        line(f"{number:05d}", index, *found, **more)
        for number in range(len(TEXTS[category]))
        for index in range(IMAGES)
    ]


def test_imported_detections_are_scored_with_the_published_arithmetic(go: Callable[..., Path], tmp_path: Path) -> None:
    store(tmp_path / "unidet.jsonl", *lines("spatial", DOG, CAT, PERSON))
    out = go("spatial", "--option", "detections=unidet.jsonl")
    rows = samples(out)
    for row in rows:
        found = [(each[0], each[1], (each[2][0], each[2][1], each[2][2], each[2][3])) for each in (DOG, CAT, PERSON)]
        assert row["values"]["spatial"] == reference.spatial_2d(row["prompt"], list(parsed(row["prompt"]).nouns), found)
        assert [each["label"] for each in row["detections"]] == ["dog", "cat", "person"]
    assert [row["values"]["spatial"] for row in rows[::2]] == [pytest.approx(0.85), pytest.approx(0.875), 0.0]
    assert rows[4]["reason"] == "telephone is not found"
    look = json.loads((out / "scores.json").read_text())["identity"]["look"]
    assert look["detector"] == "unidet (imported)"
    assert look["detections_digest"].startswith("xxh3:")
    assert "objects imported, as found by unidet" in (tmp_path / "said").read_text()
    before = contents(out)
    for share in ("2/2", "1/2"):
        assert contents(go("spatial", "--option", "detections=unidet.jsonl", "--shard", share)) == before
    (tmp_path / "unidet.jsonl").rename(tmp_path / "renamed.jsonl")
    assert contents(go("spatial", "--rescore", "--option", "detections=renamed.jsonl")) == before
    (tmp_path / "renamed.jsonl").unlink()
    assert contents(go("spatial", "--rescore")) == before  # needs no file
    store(tmp_path / "other.jsonl", *lines("spatial", DOG))
    go("spatial", "--rescore", "--option", "detections=other.jsonl", code=2)
    assert "not seen with these detections" in (tmp_path / "said").read_text()
    changed = go("spatial", "--option", "detections=other.jsonl", "--option", "made_by=mine")
    assert [row["values"]["spatial"] for row in samples(changed)] == [0.0] * 6
    assert json.loads((changed / "scores.json").read_text())["identity"]["look"]["detector"] == "mine (imported)"


def test_imported_depths_decide_what_is_in_front(go: Callable[..., Path], tmp_path: Path) -> None:
    cat, dog = ("wild cat", 0.8, [0.0, 0.0, 100.0, 100.0]), ("dog", 0.6, [10.0, 0.0, 110.0, 100.0])
    rows = lines("3d-spatial", cat, dog, depths=[0.7, 0.2])
    rows[1]["depths"] = [0.2, 0.7]
    rows[2]["depths"] = [None, 0.7]
    del rows[3]["depths"]
    store(tmp_path / "found.jsonl", *rows)
    out = go("3d-spatial", "--option", "detections=found.jsonl", code=5)
    found = samples(out)
    # "a cat in front of a dog" holds, does not; "a dog behind a cat" is not known
    assert [row["values"].get("3d-spatial") for row in found] == [pytest.approx(0.85), pytest.approx(0.35)] * 1 + [
        pytest.approx(0.35),
        None,
    ]
    assert found[3]["unscored"] == "its detections are given without depths"


def test_imported_numbers_and_3_in_1(go: Callable[..., Path], tmp_path: Path) -> None:
    cats = [("cat", 0.9, [50.0 * left, 0.0, 50.0 * left + 20, 20.0]) for left in range(2)]
    store(tmp_path / "numbers.jsonl", *lines("numeracy", *cats))
    out = go("numeracy", "--option", "detections=numbers.jsonl")
    assert [row["values"]["numeracy"] for row in samples(out)] == [1.0, 1.0, 0.0, 0.0]
    assert samples(out)[2]["reason"] == "dog: 3 asked, 0 found\nteddy bear: 1 asked, 0 found"
    # of the complex prompts the second has no 2D part: no detections of it are needed, and none are missed
    rows = [row for row in lines("complex", CAT, DOG) if row["prompt_id"] != "00001"]
    store(tmp_path / "complex.jsonl", *rows)
    draw(tmp_path / "complex", "complex")
    out = go("complex", "--option", "detections=complex.jsonl", images="complex")
    assert [row["values"].get("spatial") for row in samples(out)] == [pytest.approx(0.85)] * 2 + [None] * 2 + [0.0] * 2


def test_a_run_s_own_images_are_judged_too(tmp_path: Path) -> None:
    def sampler(texts_B: Sequence[str], uniforms_BT: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        return (uniforms_BT.reshape(-1, 8, 8, 3) * 255).astype(np.uint8)

    run = runs.create(tmp_path, "one", RunConfig())
    store(tmp_path / "found.jsonl", *lines("spatial", DOG, CAT)[1:])
    evaluation = runner.evaluate(
        run,
        sampler,
        8 * 8 * 3,
        "t2i-compbench-spatial",
        world="scenes-8",
        images_per_prompt=IMAGES,
        seed=0,
        distribution={},
        weights_digest="none",
        options={"options": {"detections": str(tmp_path / "found.jsonl")}},
    )
    assert evaluation.metrics["overall"].unscored == 1
    assert "images/t2i-compbench-spatial/00000-0.png is not scored: no detections of this image" in evaluation.notes[0]
    again = runner.rescore(run.evaluation_dir("t2i-compbench-spatial"), "t2i-compbench-spatial")
    assert again.metrics["overall"] == evaluation.metrics["overall"]


def test_every_bad_line_is_named_and_its_image_unscored(go: Callable[..., Path], tmp_path: Path) -> None:
    rows: list[Any] = [*lines("spatial", DOG, CAT)]
    rows[1] = "no json"
    rows[2] = rows[2] | {"boxes": [[0, 0, 1]]}
    rows += [rows[3], line("00077", 0), line("00000", 9), "[]"]
    store(tmp_path / "found.jsonl", *rows)
    out = go("spatial", "--option", "detections=found.jsonl", code=5)
    notes = json.loads((out / "scores.json").read_text())["notes"]
    assert notes[:7] == [
        "found.jsonl: line 2 is no image's detections: it is not JSON",
        "found.jsonl: line 3 is no image's detections: a box has four sides: left, top, right, bottom",
        "found.jsonl: line 7 is prompt '00001', image 1 again, as line 4; none is used",
        "found.jsonl: line 10 is no image's detections: it is no JSON object",
        "found.jsonl: line 8 is prompt '00077', image 0, which is not asked for",
        "found.jsonl: line 9 is prompt '00000', image 9, which is not asked for",
        "samples/a cat on the left of a dog_000001.png is not scored: no detections of this image are given",
    ]
    assert [row["unscored"] for row in samples(out)] == [
        "",
        "no detections of this image are given",
        "no detections of this image are given",
        "its detections are given more than once",
        "",
        "",
    ]
    assert len(notes) == 9
    said = (tmp_path / "said").read_text()
    assert all(note in said for note in notes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": ["cat"]}, "not equally long"),
        ({"labels": [1, 2]}, "1 is no label"),
        ({"labels": "ab"}, "'ab' is no list"),
        ({"confidences": [0.5, "x"]}, "'x' as a confidence is no number"),
        ({"confidences": [0.5, float("nan")]}, "nan as a confidence is no number"),
        ({"confidences": [0.5, 1.5]}, "1.5 as a confidence is not from 0 to 1"),
        ({"boxes": [[0, 0, 1], [0, 0, 1, 1]]}, "a box has four sides"),
        ({"boxes": [[0, 0, 1, True], [0, 0, 1, 1]]}, "True as a side of a box is no number"),
        ({"boxes": [[5, 0, 1, 1], [0, 0, 1, 1]]}, "ends before it begins"),
        ({"boxes": [[0, 0, 1000, 1], [0, 0, 1, 1]]}, "beyond the frame of 480 pixels"),
        ({"depths": [0.5]}, "not equally long"),
        ({"confidences": [10**400, 0.5]}, "too large"),
        ({"labels": ["\ud800", "dog"]}, "surrogates not allowed"),
        ({"depths": [0.5, -1]}, "-1 as a depth is not from 0 to 1"),
        ({"image_index": "0"}, "image_index a whole number"),
        ({"image_index": True}, "image_index a whole number"),
        ({"prompt_id": 0}, "prompt_id is to be a text"),
        ({"boxes": None}, "None is no list"),
    ],
)
def test_what_is_wrong_with_a_line_is_told(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    good = line("00000", 0, CAT, DOG)
    found = stored_detections.read(store(tmp_path / "found.jsonl", good, good | {"image_index": 1} | change))
    assert found.problem(("00000", 0)) == ""
    assert found.problem(("00000", 1)) == stored_detections.MISSING
    (note,) = found.notes
    assert note.startswith("found.jsonl: line 2 is no image's detections: ")
    assert reason in note
    with pytest.raises(CorruptDataError, match="line 1 is no image's detections: it has no 'boxes'"):
        stored_detections.read(store(tmp_path / "none.jsonl", {key: good[key] for key in good if key != "boxes"}))
    with pytest.raises(ConfigError, match="there is no file of detections"):
        stored_detections.read(tmp_path)


@pytest.mark.parametrize(
    ("category", "options", "message"),
    [
        ("spatial", {"detections": "found.jsonl", "box_threshold": "0.4"}, "'box_threshold' has no effect"),
        ("3d-spatial", {"detections": "found.jsonl", "fidelity": "fixed"}, "'fidelity' has no effect"),
        ("3d-spatial", {"fidelity": "mended"}, "unknown fidelity 'mended'"),
        ("spatial", {"fidelity": "fixed"}, "has no option 'fidelity'"),
        ("spatial", {"made_by": "mine"}, "'made_by' goes with detections"),
        ("numeracy", {"noun_phrases": "x"}, "has no option 'noun_phrases'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(category: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BENCHMARKS.load(f"t2i-compbench-{category}")(options=options)


def test_what_is_missing_is_named_before_anything_is_looked_at(small_world: Path) -> None:
    def lacks(category: str, match: str, **options: str) -> None:
        with pytest.raises(PrerequisiteError, match=match):
            BENCHMARKS.load(f"t2i-compbench-{category}")(options=options).prompts()

    lacks("spatial", "noun phrases", noun_phrases="elsewhere.json")
    BENCHMARKS.load("t2i-compbench-numeracy")().prompts()
    prompt_sets.SETS["t2i-compbench-objects"].path.unlink()
    lacks("numeracy", "t2i-compbench-objects")
    lacks("spatial", "grounding-dino-tiny is missing", model="tiny")
    (small_world / "weights").unlink()
    lacks("3d-spatial", "t2i-compbench-3d-spatial lacks grounding-dino-base and dpt-hybrid-midas")
    lacks("complex", r"complex lacks model_base_vqa_capfilt_large\.pth and bert.* and grounding-dino-base and clip")
    lacks("3d-spatial", "dpt-hybrid-midas is missing", model="elsewhere")


# ---------------------------------------------------------------- all at once


def test_a_group_runs_what_can_run_and_lists_each(cli: Cli, tmp_path: Path, small_world: Path) -> None:
    for category in BENCHMARK_GROUPS["t2i-compbench"]:
        name = category.removeprefix("t2i-compbench-")
        draw(tmp_path / "all" / name.replace("-", "_"), name)
    store(tmp_path / "unidet.jsonl", *lines("spatial", DOG, CAT))
    arguments = ("evaluate", "--images", "all", "--bench", "t2i-compbench")
    detections = ("--images-per-prompt", str(IMAGES), "--option", "spatial.detections=unidet.jsonl")
    result = cli(*arguments, *detections, "--out", "out")
    assert result.code == 0, result.err
    rows = [line.split() for line in result.out[result.out.index("unscored") :].splitlines()]
    listed = [row[1] for row in rows if row[:1] == ["all"]]
    assert listed == list(BENCHMARK_GROUPS["t2i-compbench"])
    look = json.loads((tmp_path / "out" / "t2i-compbench-spatial" / "scores.json").read_text())["identity"]["look"]
    assert look["detector"] == "unidet (imported)"
    assert "is no image that is asked for" not in result.err
    assert cli(*arguments, "--rescore", "--out", "out").code == 0
    shutil.rmtree(tmp_path / "all" / "color")
    (small_world / "weights").unlink()
    some = cli(*arguments, *detections, "--out", "some", "--json")
    assert some.code == 0
    assert json.loads(some.out)["benchmark"] == "t2i-compbench-spatial"
    assert "left out: t2i-compbench-3d-spatial: weights are missing" in some.err
    assert "left out: t2i-compbench-color, t2i-compbench-shape, t2i-compbench-texture: weights are missing" in some.err
    none = cli("evaluate", "--images", "home", "--bench", "t2i-compbench")
    assert none.code == 4
    assert "t2i-compbench-numeracy: weights are missing" in none.err  # not the first category's alone
    assert "error: 8 benchmarks cannot be run: t2i-compbench-color, " in none.err
    assert cli("evaluate", "--images", "all", "--bench", "t2i-compbenches").code == 2


def test_folders_of_categories_and_names_of_all_kinds(tmp_path: Path) -> None:
    prompts = [
        Prompt(id=f"{row:05d}", text=text, metadata={"tag": "3d-spatial"})
        for row, text in enumerate(["a cat", "a_b c"])
    ]
    assert of_compbench_folder(tmp_path, prompts, 2) is None
    assert not holds_compbench(tmp_path, prompts)
    place = tmp_path / "3d_spatial_val" / "samples"
    place.mkdir(parents=True)
    assert not holds_compbench(tmp_path, prompts)
    odd = ["a cat_000000.png", "a_b c_000002.png", "a cat_1.png", "x\n\x1b[31m_000000.png", ".png", "_000000.png"]
    for name in odd:
        (place / name).write_bytes(b"x")
    (place / "a cat_000001.png").mkdir()
    (place / b"\xff_000009.png".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    found = of_compbench_folder(tmp_path, prompts, 2)
    assert found is not None
    assert [picture.is_missing for picture in found.pictures] == [False, True, False, True]
    assert len(found.notes) == 5
    assert all(note.isprintable() and note.encode() for note in found.notes)
    assert holds_compbench(tmp_path, prompts)


def test_as_many_images_as_the_benchmark_asks_for(tmp_path: Path) -> None:
    draw(tmp_path / "ten", "numeracy", images=10)
    evaluation = runner.evaluate_folder(tmp_path / "ten", tmp_path / "out", "t2i-compbench-numeracy")
    assert evaluation.identity["images_per_prompt"] == 10


def test_doctor_and_data_say_what_is_there(cli: Cli, small_world: Path) -> None:
    def told() -> dict[str, dict[str, str]]:
        return {check["name"]: check for check in json.loads(cli("doctor", "--json").out)}

    assert {told()[f"benchmark {name}"]["found"] for name in BENCHMARK_GROUPS["t2i-compbench"]} == {"ready"}
    assert told()["noun phrases t2i-compbench"]["found"] == f"{len(TABLE.prompts)} prompts, by hand"
    assert "noun phrases of T2I-CompBench: by hand" in cli("data", "ls").err
    phrases.table_file().write_text("[]")
    assert told()["benchmark t2i-compbench-color"]["found"].startswith("lacks something: ")
    assert told()["noun phrases t2i-compbench"]["state"] == "warning"
    phrases.table_file().unlink()
    prompt_sets.SETS["t2i-compbench-objects"].path.unlink()
    (small_world / "weights").unlink()
    checks = told()
    assert checks["noun phrases t2i-compbench"]["found"] == f"1800 prompts, {phrases.shipped().parser}, shipped"
    assert "spacy download en_core_web_sm" in checks["optional: en_core_web_sm"]["mend"]
    assert checks["benchmark t2i-compbench-numeracy"]["found"] == "lacks prompts, 1 of 1 weights"
    assert checks["benchmark t2i-compbench-3d-spatial"]["found"] == "lacks 2 of 2 weights"
    assert f"noun phrases of T2I-CompBench: {phrases.shipped().parser}" in cli("data", "ls").err


def test_what_belongs_together_is_fetched_together(cli: Cli, small_world: Path, tmp_path: Path) -> None:
    shutil.move(small_world / "data", tmp_path / "stick")
    assert cli("data", "fetch", "t2i-compbench-complex", "--from", "stick").code == 0
    place = small_world / "data" / "t2i-compbench"
    there = {"complex_val.txt", "complex_val_action.txt", "complex_val_spatial.txt"}
    assert {path.name for path in place.iterdir()} == there
    assert cli("data", "fetch", "t2i-compbench", "--from", "stick").code == 0
    assert len(list(place.iterdir())) == len(TEXTS)
    names = {each.name for each in catalogue.get("t2i-compbench")}
    assert names == {path.name for path in (small_world / "weights").iterdir()}


def test_depth_weights_are_found_in_either_format(cli: Cli, small_world: Path, tmp_path: Path) -> None:
    stick = tmp_path / "stick" / "dpt-hybrid-midas"
    shutil.copytree(small_world / "weights" / "dpt-hybrid-midas", stick)
    (small_world / "weights").unlink()
    state = load_file(stick / "model.safetensors")
    (stick / "model.safetensors").unlink()
    torch.save(state, stick / "pytorch_model.bin")
    assert cli("models", "fetch", "dpt-hybrid-midas", "--from", "stick").code == 0
    path = small_world / "weights" / "dpt-hybrid-midas"
    assert (path / "pytorch_model.bin").is_file()
    assert depth.load(path)[0](np.zeros((8, 8, 3), dtype=np.uint8)).shape == (479, 479)


def test_the_arithmetic_is_tested_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made = BENCHMARKS.load("t2i-compbench-numeracy")()
    made.self_test()
    monkeypatch.setattr(compbench, "SMALL_OVERLAP", 0.2)
    with pytest.raises(CorruptDataError, match="arithmetic is broken: 2D"):
        made.self_test()
    assert compbench.spatial_2d("near", ("dog", "cat"), [Detection(label="dog", confidence=1, box=(0, 0, 1, 1))]) == 0

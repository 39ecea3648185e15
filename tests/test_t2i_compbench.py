"""T2I-CompBench's categories: pictures through BLIP-VQA in miniature, detections from files, tables of phrases."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gcpo_bench import prompt_sets
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError
from gcpo_bench.evaluators import judging, phrases
from gcpo_bench.evaluators.images import of_folder
from gcpo_bench.evaluators.judging import Place, observe
from gcpo_bench.evaluators.layouts import compbench_file
from gcpo_bench.evaluators.panel import Panel
from gcpo_bench.evaluators.phrases import Parsed, Phrases
from gcpo_bench.evaluators.scorers.blip_vqa import BlipVqa, load_blip_vqa
from gcpo_bench.evaluators.t2i_compbench import (
    AttributeBenchmark,
    NonSpatialBenchmark,
    own_options,
)
from gcpo_bench.registry import BENCHMARKS

from .scorer_factory import BLIP, bert_tokenizer_folder, blip_vqa_state, pictures
from .test_hps_drawbench import Brightness

PUBLISHED = Path(os.environ.get("GCPO_BENCH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
PROMPTS = tuple(
    Prompt(id=f"{row:05d}", text=text, metadata={"tag": "color"})
    for row, text in enumerate(["a red cube and a blue dog", "a cat on the left of a dog", "a green bench"])
)
TABLE = Phrases(
    parser="by hand",
    prompts={
        PROMPTS[0].text: Parsed(phrases=("a red cube", "a blue dog"), nouns=("cube", "dog")),
        PROMPTS[1].text: Parsed(phrases=("a cat", "the left", "a dog"), nouns=("cat", "left", "dog")),
        PROMPTS[2].text: Parsed(phrases=("a green bench",), nouns=("bench",)),
    },
)


# ---------------------------------------------------------------- attributes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BlipVqa:
    folder = tmp_path_factory.mktemp("blip")
    torch.save({"model": {name: value.float() for name, value in blip_vqa_state(BLIP).items()}}, folder / "vqa.pth")
    return load_blip_vqa(folder / "vqa.pth", bert_tokenizer_folder(folder / "words"), size=BLIP)


def benchmark(model: BlipVqa) -> AttributeBenchmark:
    return AttributeBenchmark("color", read=lambda: PROMPTS, parse=lambda: TABLE, make=lambda: model)


def test_a_picture_s_score_is_the_product_of_its_answers_and_says_them(model: BlipVqa) -> None:
    (image,) = pictures(1)
    made = benchmark(model)
    ((values, reason, _),) = made.score(image[None], PROMPTS[:1])
    answers = model.probabilities(image, ["a red cube?", "a blue dog?"])
    product = np.float32(f"{answers[0]:.4f}") * np.float32(f"{answers[1]:.4f}")
    assert values == {"attribute": float(f"{product:.4f}")}
    assert reason.splitlines() == [f"a red cube? yes: {answers[0]:.4f}", f"a blue dog? yes: {answers[1]:.4f}"]
    assert made.question(PROMPTS[1]) == ["a cat?", "a dog?"]
    made.self_test()


def test_pictures_from_files_are_kept_and_averaged(model: BlipVqa, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for prompt in PROMPTS:
        for index, image in enumerate(pictures(2, seed=int(prompt.id))):
            Image.fromarray(image).save(folder / f"{prompt.id}-{index}.png")
    (folder / "00002-1.png").write_bytes(b"")
    made = benchmark(model)
    found = of_folder(folder, PROMPTS, 2).pictures
    samples = observe(made, Place(out=tmp_path / "out", root=folder), found).samples
    assert [bool(sample.unscored) for sample in samples] == [False] * 5 + [True]
    metric = made.summarize(samples)["overall"]
    assert metric.value == pytest.approx(np.mean([s.values["attribute"] for s in samples if s.values]))
    assert (metric.n, metric.unscored) == (3, 1)

    (text,) = made.export(samples, {}).values()
    answers = {row["question_id"]: row["answer"] for row in json.loads(text)}
    assert answers == {
        2 * int(s.prompt_id) + s.image_index: f"{s.values['attribute']:.4f}" for s in samples if s.values
    }

    def gone() -> Any:
        raise AssertionError("the model is loaded again")

    kept = AttributeBenchmark("color", read=lambda: PROMPTS, parse=lambda: TABLE, make=gone)
    kept.look = made.look  # type: ignore[method-assign]
    assert observe(kept, Place(out=tmp_path / "out", root=folder), found).samples == samples


def test_batches_change_no_bit_and_are_closed_by_rows_and_by_pixels(
    model: BlipVqa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked together is seen by the benchmark; a picture that lies there twice is looked at once."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for prompt in PROMPTS:
        for index, image in enumerate(pictures(3, seed=int(prompt.id))):
            Image.fromarray(image).save(folder / f"{prompt.id}-{index}.png")
    (folder / "00000-1.png").write_bytes(b"no picture")
    (folder / "00002-2.png").write_bytes((folder / "00002-0.png").read_bytes())
    found = of_folder(folder, PROMPTS, 3).pictures
    looked: list[int] = []
    answers = BlipVqa.answers

    def counting(self: BlipVqa, images: Any, questions: Any) -> Any:
        looked.append(len(images))
        return answers(self, images, questions)

    monkeypatch.setattr(BlipVqa, "answers", counting)
    results = {}
    for rows in (1, 2, 8, 64):
        looked.clear()
        place = Place(out=tmp_path / f"rows-{rows}", root=folder)
        results[rows] = observe(benchmark(model), place, found, batch_rows=rows)
        assert sum(looked) == 7
        assert max(looked) == min(rows, 7)
        ((kept, content),) = ((path.name, path.read_bytes()) for path in (place.out / "observations").iterdir())
        assert (tmp_path / "rows-1/observations" / kept).read_bytes() == content
    assert all(each == results[1] for each in results.values())
    looked.clear()
    monkeypatch.setattr(judging, "BATCH_PIXELS", 1)
    assert observe(benchmark(model), Place(out=tmp_path / "pixels", root=folder), found) == results[1]
    assert looked == [1] * 7


def test_a_prompt_whose_phrases_are_not_known_cannot_be_judged_by(model: BlipVqa) -> None:
    other = Prompt(id="00009", text="a yellow bird")
    assert benchmark(model).unfit(other) == "its noun phrases are not in the table"
    assert benchmark(model).unfit(PROMPTS[0]) == ""
    with pytest.raises(CorruptDataError, match="does not hold 'a yellow bird'"):
        benchmark(model).question(other)
    with pytest.raises(ConfigError, match="no attribute"):
        AttributeBenchmark("colour", read=lambda: PROMPTS, parse=lambda: TABLE, make=lambda: model)


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path))
    for category in ("color", "shape", "texture"):
        with pytest.raises(PrerequisiteError, match=r"blip-vqa lacks model_base_vqa_capfilt_large\.pth"):
            BENCHMARKS.load(f"t2i-compbench-{category}")(world="scenes-12").prompts()
    with pytest.raises(ConfigError, match="t2i-compbench-color has no option 'antialias'"):
        BENCHMARKS.load("t2i-compbench-color")(options={"antialias": "false"})
    with pytest.raises(PrerequisiteError, match="clip-score-b32"):
        BENCHMARKS.load("t2i-compbench-non-spatial")(world="scenes-12").prompts()
    weights = tmp_path / "weights"
    bert_tokenizer_folder(weights / "bert-base-uncased")
    (weights / "model_base_vqa_capfilt_large.pth").write_bytes(b"not opened before the first picture")
    with pytest.raises(PrerequisiteError, match="t2i-compbench-shape are not on this machine"):
        BENCHMARKS.load("t2i-compbench-shape")(world="scenes-12").prompts()
    assert BENCHMARKS.load("t2i-compbench-shape")(world="scenes-12").phrases is phrases.shipped()
    with pytest.raises(PrerequisiteError, match="noun phrases of T2I-CompBench's prompts are not at elsewhere"):
        _ = BENCHMARKS.load("t2i-compbench-shape")(options={"noun_phrases": "elsewhere.json"}).phrases
    phrases.save(TABLE, phrases.table_file())
    assert BENCHMARKS.load("t2i-compbench-shape")(world="scenes-12").phrases == TABLE


# ---------------------------------------------------------------- noun phrases


class Tagger:
    """What spaCy does with these prompts, as an object of its shape: words tagged by a list."""

    def pipe(self, texts: Sequence[str]) -> Iterator[Any]:
        for text in texts:
            words = [
                SimpleNamespace(text=word, pos_="NOUN" if word in {"cube", "dog"} else "DET") for word in text.split()
            ]
            chunks = [SimpleNamespace(text=f"a {word.text}") for word in words if word.pos_ == "NOUN"]
            yield type("Doc", (), {"noun_chunks": chunks, "__iter__": lambda self, words=words: iter(words)})()


def test_options_may_name_their_category() -> None:
    given = {"model": "tiny", "spatial.detections": "a", "3d-spatial.fidelity": "fixed", "color.noun_phrases": "b"}
    assert own_options("spatial", given) == {"model": "tiny", "detections": "a"}
    assert own_options("3d-spatial", given) == {"model": "tiny", "fidelity": "fixed"}
    for category, wrong in (("color", "model"), ("spatial", "color.model"), ("spatial", "place.model"), ("color", "")):
        with pytest.raises(ConfigError, match=f"t2i-compbench-{category} has no option '{wrong}'"):
            own_options(category, {wrong: "x"})


def test_a_table_of_phrases_survives_being_saved(tmp_path: Path) -> None:
    found = phrases.parse(["a dog", "a cube and a dog"], Tagger(), "a tagger 1.0")
    assert found.of("a dog") == Parsed(phrases=("a dog",), nouns=("dog",), words=(("a", "DET"), ("dog", "NOUN")))
    assert found.of("a cube and a dog").nouns == ("cube", "dog")
    phrases.save(found, tmp_path / "table.json")
    assert phrases.load(tmp_path / "table.json") == found
    assert phrases.load(tmp_path / "table.json").parser == "a tagger 1.0"


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"parser": "x", "prompts": []}',
        '{"parser": "x", "prompts": {"a": {"phrases": ["a"]}}}',
        '{"parser": "x", "prompts": {"a": {"phrases": "a", "nouns": []}}}',
        '{"parser": "x", "prompts": {"a": {"phrases": [], "nouns": [], "words": [["a"]]}}}',
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(CorruptDataError, match="no table of noun phrases"):
        phrases.load(tmp_path / "table.json")


def test_without_spacy_it_is_said_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("a dog\n")
    for file, code, message in (
        ("prompts.txt", 4, "error: spaCy with no_such_model is not installed"),
        ("none.txt", 5, "none.txt is missing"),
    ):
        with pytest.raises(SystemExit) as stop:
            phrases.main([str(tmp_path / file), "-o", str(tmp_path / "out.json"), "--model", "no_such_model"])
        assert stop.value.code == code
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_the_tool_writes_a_table_of_every_prompt_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(phrases, "spacy_parser", lambda model: (Tagger(), f"a tagger, {model}"))
    (tmp_path / "one.txt").write_bytes(b"a dog\r\na cube\r\n\r\n")
    (tmp_path / "two.txt").write_text("a dog")
    phrases.main([str(tmp_path / "one.txt"), str(tmp_path / "two.txt"), "-o", str(tmp_path / "out.json")])
    table = phrases.load(tmp_path / "out.json")
    assert list(table.prompts) == ["a dog", "a cube"]
    assert table.parser == "a tagger, en_core_web_sm"
    assert "2 prompts with a tagger" in capsys.readouterr().out


@st.composite
def parsings(draw: st.DrawFn) -> tuple[str, Parsed]:
    """A prompt of words that repeat each other, with phrases of neighbouring words."""
    words = draw(st.lists(st.sampled_from(("a", "an", "red", "cat", "red cat", "é")), min_size=1, max_size=8))
    kinds = draw(st.lists(st.sampled_from(("NOUN", "ADJ", "DET")), min_size=len(words), max_size=len(words)))
    cuts = sorted(draw(st.sets(st.integers(0, len(words)), max_size=5)))
    found = Parsed(
        phrases=tuple(" ".join(words[start:end]) for start, end in zip(cuts[::2], cuts[1::2], strict=False)),
        nouns=tuple(word for word, kind in zip(words, kinds, strict=True) if kind == "NOUN"),
        words=tuple(zip(words, kinds, strict=True)),
    )
    return " ".join(words), found


@given(parsings())
@settings(max_examples=50)
def test_places_in_a_prompt_give_back_what_was_found_in_it(tmp_path_factory: Any, parsing: tuple[str, Parsed]) -> None:
    text, found = parsing
    folder = tmp_path_factory.mktemp("table")
    phrases.save_places(Phrases(parser="p 1", prompts={text: found}), [], folder / "table.gz")
    record = json.loads(gzip.decompress((folder / "table.gz").read_bytes()))
    table = Phrases(parser=record["parser"], prompts={}, places=record["prompts"])
    assert (table.of(text), text in table, len(table)) == (found, True, 1)
    assert f"{text} x" not in table
    with pytest.raises(CorruptDataError, match="does not hold"):
        table.of(f"{text} x")


def test_a_table_of_places_has_the_same_bytes_and_no_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phrases, "spacy_parser", lambda model: (Tagger(), "a tagger"))
    (tmp_path / "one.txt").write_text("a dog\n")
    for name in ("x.gz", "y.gz"):
        phrases.main([str(tmp_path / "one.txt"), "-o", str(tmp_path / name), "--places"])
    content = (tmp_path / "x.gz").read_bytes()
    assert content == (tmp_path / "y.gz").read_bytes()
    assert b"dog" not in gzip.decompress(content)
    record = json.loads(gzip.decompress(content))
    assert record["files"] == {"one.txt": hashlib.sha256(b"a dog\n").hexdigest()}
    with pytest.raises(ValueError, match="without parts of speech"):
        phrases.save_places(TABLE, [], tmp_path / "z.gz")


def test_the_shipped_table_is_of_the_published_prompts() -> None:
    record = json.loads(gzip.decompress(phrases.SHIPPED.read_bytes()))
    published = {Path(each.file).name: each.sha256 for each in prompt_sets.SETS.values()}
    assert record["files"].items() <= published.items()
    assert len(record["files"]) == 6
    assert len(phrases.shipped()) == 1800
    assert phrases.shipped().parser == "spaCy 3.6.1, en_core_web_sm 3.6.0"


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no copies of the published sets here")
@pytest.mark.parametrize("category", ["color", "shape", "texture", "spatial", "3d-spatial", "complex"])
def test_the_shipped_table_holds_every_prompt(category: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path))
    prompt_sets.fetch(f"t2i-compbench-{category}", PUBLISHED)
    for prompt in prompt_sets.load(f"t2i-compbench-{category}"):
        found = phrases.load().of(prompt.text)
        assert all((found.phrases, found.nouns))
        assert "".join(prompt.text.split()) == "".join("".join(word for word, _ in found.words).split())


# ---------------------------------------------------------------- non-spatial, and the published prompts


def test_non_spatial_relations_are_one_scorer_s_mean() -> None:
    made = NonSpatialBenchmark(Panel([Brightness()]), lambda: PROMPTS)
    judged = made.score(np.stack([np.full((8, 8, 3), level, dtype=np.uint8) for level in (10, 30, 50)]), PROMPTS)
    assert [dict(values) for values, _, _ in judged] == [{"brightness": 10}, {"brightness": 30}, {"brightness": 50}]
    assert (made.name, made.headline) == ("t2i-compbench-non-spatial", "brightness")


def test_clip_s_precision_is_an_option_of_non_spatial_relations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path))
    given: list[dict[str, Any]] = []
    monkeypatch.setattr("gcpo_bench.evaluators.scorers.clip_score.clip_score_b32", lambda **args: given.append(args))
    for options in ({}, {"precision": "autocast"}):
        BENCHMARKS.load("t2i-compbench-non-spatial")(options=options, device="cpu").panel.scorer("clip-score-b32")
    assert given == [{"device": "cpu", "precision": precision} for precision in ("float32", "autocast")]
    with pytest.raises(ConfigError, match="option 'precision' cannot be 'half'"):
        BENCHMARKS.load("t2i-compbench-non-spatial")(options={"precision": "half"})


def test_a_folder_in_the_official_layout_is_numbered_over_the_category(tmp_path: Path) -> None:
    assert compbench_file(PROMPTS[2], 3, 10) == "samples/a green bench_000023.png"
    made = NonSpatialBenchmark(Panel([Brightness()]), lambda: PROMPTS)
    assert made.official_pictures(tmp_path, PROMPTS, 2) is None
    (tmp_path / "samples").mkdir()
    for name in ("a green bench_000005.png", "a green bench_000023.png"):
        (tmp_path / "samples" / name).write_bytes(b"x")
    found = made.official_pictures(tmp_path, PROMPTS, 2)
    assert found is not None
    assert [each.index for each in found.pictures if not each.is_missing] == [1]
    assert found.notes == ("'samples/a green bench_000023.png' is no image that is asked for",)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no copies of the published sets here")
def test_the_published_prompts_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path))
    for category in ("color", "shape", "texture", "non-spatial", "spatial", "3d-spatial", "numeracy", "complex"):
        prompt_sets.fetch(f"t2i-compbench-{category}", PUBLISHED)
        prompts = prompt_sets.load(f"t2i-compbench-{category}")
        assert len(prompts) == 300
        assert compbench_file(prompts[-1], 9, 10).endswith("_002999.png")

"""HPS and DrawBench: prompts checked, values raw, published figures written out again, nothing missing called 0."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gcpo_bench import prompt_sets
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError, RunError
from gcpo_bench.evaluators.drawbench import CATEGORIES, PANEL, DrawBench, drawbench_prompts
from gcpo_bench.evaluators.hps import (
    STYLES,
    HpsBenchmark,
    benchmark_prompts,
    gcpo_prompts,
    published_summary,
)
from gcpo_bench.evaluators.panel import Panel, PanelBenchmark
from gcpo_bench.evaluators.runner import ShardDone, evaluate_folder, rescore
from gcpo_bench.evaluators.scorers.clip_weights import ARCHITECTURES
from gcpo_bench.evaluators.scorers.hps import load_hps
from gcpo_bench.evaluators.scorers.images import HPS
from gcpo_bench.evaluators.scorers.types import Images, Score, Scorer, Unscored, check_images
from gcpo_bench.evaluators.stored import load as stored_load
from gcpo_bench.evaluators.stored import load_all_samples
from gcpo_bench.evaluators.types import SampleScore
from gcpo_bench.registry import BENCHMARKS, Entry

from .conftest import Cli
from .scorer_factory import GELU, clip_tokenizer_folder, open_clip_state, pictures, save, small

PUBLISHED = Path(os.environ.get("GCPO_BENCH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Brightness:
    """A scorer anyone can check: mean of the pixels; black pictures cannot be scored."""

    name: str = "brightness"
    unit: str = "grey levels"
    factor: float = 1.0

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"scorer": self.name}

    def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
        means = [float(image.mean()) * self.factor for image in check_images(images, prompts)]
        return [mean or Unscored("the picture is black") for mean in means]


def sample(prompt: Prompt, index: int = 0, /, **values: float) -> SampleScore:
    return SampleScore(
        prompt_id=prompt.id,
        prompt=prompt.text,
        tag=prompt.tag,
        image_index=index,
        image=f"{prompt.id}-{index}.png",
        values=values,
        reason="",
    )


def hps_folder(folder: Path, change: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for style in STYLES:
        texts: Any = [f"{style} number {row}" for row in range(800)]
        (folder / f"{style}.json").write_text(json.dumps((change or {}).get(style, texts)))
    return folder


@pytest.fixture
def hps_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with prompts in the form of HPSv2's."""
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path / "home"))
    return hps_folder(prompt_sets.SETS["hps-benchmark"].path)


# ---------------------------------------------------------------- HPS


@pytest.mark.usefixtures("hps_home")
def test_hps_reads_800_prompts_of_each_style() -> None:
    prompts = benchmark_prompts()
    assert len(prompts) == len({prompt.id for prompt in prompts}) == 3200
    assert [prompt.tag for prompt in prompts[::800]] == list(STYLES)
    assert prompts[801].id == "concept-art-00001"
    assert prompts[801].text == "concept-art number 1"


def test_a_folder_in_hpsv2_s_layout_is_read_as_it_is(tmp_path: Path, hps_home: Path) -> None:
    benchmark = HpsBenchmark("hps-benchmark", Panel([Brightness()]), benchmark_prompts)
    prompts = benchmark.prompts()
    assert benchmark.official_pictures(hps_home, prompts, 1) is None
    folder = tmp_path / "pictures"
    for name in ("concept-art/00001.jpg", "anime/00799.png", "anime/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    found = benchmark.official_pictures(folder, prompts, 1)
    assert found is not None
    assert len(found.pictures) == 3200
    there = [(each.prompt.text, each.path.name) for each in found.pictures if not each.is_missing]
    assert there == [("anime number 799", "00799.png"), ("concept-art number 1", "00001.jpg")]
    assert found.notes == ("'anime/notes.txt' is no image that is asked for",)
    assert found.pictures[-1].path == folder / "photo" / "00799.jpg"
    other = HpsBenchmark("hps-gcpo400", Panel([Brightness()]), lambda: prompts)
    assert other.official_pictures(folder, prompts, 1) is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a"] * 799, "has 799 prompts, published are 800"),
        ({"a": 1}, "no JSON list of texts"),
        (["a"] * 799 + [""], "no JSON list of texts"),
        (["a"] * 799 + [7], "no JSON list of texts"),
    ],
)
def test_other_hps_prompts_are_refused(tmp_path: Path, hps_home: Path, texts: Any, message: str) -> None:
    hps_folder(hps_home, {"photo": texts})
    with pytest.raises(CorruptDataError, match=message) as error:
        benchmark_prompts()
    assert error.value.hint == "gcpo-bench data fetch hps-benchmark"
    stick = hps_folder(tmp_path / "stick", {"photo": texts})
    with pytest.raises(CorruptDataError, match=message):  # nor are they taken from elsewhere
        prompt_sets.fetch("hps-benchmark", stick)


def test_hps_prompts_are_a_published_set_like_others(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path / "home"))
    row = {each["name"]: each for each in json.loads(cli("data", "ls", "--json").out)}["hps-benchmark"]
    assert (row["state"], row["prompts"], row["sha256"]) == ("not fetched", 3200, "")
    lacking = hps_folder(tmp_path / "stick" / "HPDv2" / "benchmark")
    (lacking / "photo.json").rename(tmp_path / "photo.json")
    assert "holds no photo.json of hps-benchmark" in cli("data", "fetch", "hps-benchmark", "--from", "stick").err
    assert not prompt_sets.SETS["hps-benchmark"].path.exists()
    (tmp_path / "photo.json").rename(lacking / "photo.json")
    (lacking.parent / "photo.json").write_text("[]")  # of something else
    assert cli("data", "fetch", "hps-benchmark", "--from", "stick").code == 0
    checked = cli("data", "verify", "hps-benchmark")
    assert checked.out == "hps-benchmark: ok, 3200 prompts, their texts were not compared: no digest is known\n"
    (tmp_path / "train.txt").write_text("photo number 7\nAnime number 9!\na dog\n")
    found = json.loads(cli("data", "overlap", "train.txt", "hps-benchmark", "--json").out)
    assert (found["exact"], found["normalized"], found["total"]) == (["photo number 7"], ["anime number 9"], 3200)
    assert list(prompt_sets.leaks(["photo number 7"])) == ["hps-benchmark"]
    rows = {each["name"]: each for each in json.loads(cli("doctor", "--json").out)}
    assert rows["benchmark hps-benchmark"]["found"] == "lacks 2 of 2 weights"
    (prompt_sets.SETS["hps-benchmark"].path / "anime.json").unlink()
    rows = {each["name"]: each for each in json.loads(cli("doctor", "--json").out)}
    assert rows["benchmark hps-benchmark"]["found"] == "lacks prompts, 2 of 2 weights"


def test_the_files_of_a_set_are_each_fetched_from_where_they_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path / "home"))
    web = hps_folder(tmp_path / "web")
    here = replace(prompt_sets.SETS["hps-benchmark"], url=f"{web.as_uri()}/")
    monkeypatch.setitem(prompt_sets.SETS, "hps-benchmark", here)
    prompt_sets.fetch("hps-benchmark")
    assert benchmark_prompts()[-1].text == "photo number 799"
    (web / "photo.json").write_text('["an error page"]')
    with pytest.raises(CorruptDataError, match="has 1 prompts, published are 800"):
        prompt_sets.fetch("hps-benchmark")
    assert benchmark_prompts()[-1].text == "photo number 799"


def test_missing_hps_prompts_and_weights_are_told_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path))
    with pytest.raises(PrerequisiteError, match=r"hps-v2\.1 lacks HPS_v2\.1_compressed\.pt"):
        BENCHMARKS.load("hps-benchmark")(world="scenes-12").prompts()
    clip_tokenizer_folder(tmp_path / "weights" / "clip-vit-large-patch14")
    for name in ("HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt"):
        (tmp_path / "weights" / name).write_bytes(b"not opened before the first picture")
    with pytest.raises(PrerequisiteError, match=r"hps-benchmark are not on this machine .*anime\.json"):
        BENCHMARKS.load("hps-benchmark")(world="scenes-12").prompts()
    with pytest.raises(PrerequisiteError, match="hps-gcpo400 are not on this machine"):
        BENCHMARKS.load("hps-gcpo400")(world="scenes-12").prompts()
    hps_folder(prompt_sets.SETS["hps-benchmark"].path)
    benchmark = BENCHMARKS.load("hps-benchmark")(options={"version": "v2.0", "antialias": "False", "fit": "crop"})
    assert (benchmark.name, benchmark.headline, len(benchmark.prompts())) == ("hps-benchmark", "hps-v2.0", 3200)
    with pytest.raises(CorruptDataError, match="damaged"):
        benchmark.look()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"antialiased": "no"}, "HPS has no option 'antialiased'"),
        ({"fit": "stretch"}, "fit cannot be 'stretch'"),
        ({"backend": "hpsv2", "fit": "crop"}, "no effect on the package hpsv2"),
    ],
)
def test_unknown_hps_options_are_refused(options: Mapping[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BENCHMARKS.load("hps-benchmark")(options=options)


def written_out(values: Sequence[float]) -> tuple[float, float]:
    """As the package does it: groups of 80, numpy's mean and std of their means, times 100."""
    means = [statistics.fmean(values[start : start + 80]) * 100 for start in range(0, 800, 80)]
    return statistics.fmean(means), statistics.pstdev(means)


@given(seed=st.integers(0, 9999), spread=st.floats(0, 0.1))
@settings(max_examples=20)
def test_the_published_summary_is_that_of_groups_of_80(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    prompts = [
        Prompt(id=f"{style}-{row:05d}", text="", metadata={"tag": style}) for style in STYLES for row in range(800)
    ]
    samples = [sample(prompt, hps=float(rng.normal(0.28, spread))) for prompt in prompts]
    expected = {style: written_out([each.values["hps"] for each in samples if each.tag == style]) for style in STYLES}
    shuffled = [samples[row] for row in rng.permutation(len(samples))]  # the order of files does not matter
    for style, summary in published_summary(shuffled, "hps").items():
        assert summary.mean == pytest.approx(expected[style][0], abs=1e-10)
        assert summary.std == pytest.approx(expected[style][1], abs=1e-10)


@pytest.mark.usefixtures("hps_home")
def test_hps_metrics_are_means_times_100_with_the_spread_of_groups() -> None:
    benchmark = HpsBenchmark("hps-benchmark", Panel([Brightness(name="hps")]), benchmark_prompts)
    level = dict(zip(STYLES, (0.30, 0.31, 0.29, 0.26), strict=True))
    samples = [sample(prompt, hps=level[prompt.tag]) for prompt in benchmark.prompts()]
    metrics = benchmark.summarize(samples)
    assert metrics["overall"].value == pytest.approx(29)
    assert metrics["task/photo"].value == pytest.approx(26)
    assert metrics["task/photo"].stderr == pytest.approx(0, abs=1e-9)
    assert metrics["group_std/photo"].value == pytest.approx(0, abs=1e-9)
    assert {metric.unit for metric in metrics.values()} == {"x100"}
    assert metrics["overall"].n == 3200


@pytest.mark.usefixtures("hps_home")
def test_missing_hps_pictures_are_counted_and_the_published_summary_is_withheld() -> None:
    benchmark = HpsBenchmark("hps-benchmark", Panel([Brightness(name="hps")]), benchmark_prompts)
    samples = [sample(prompt, hps=0.3) for prompt in benchmark.prompts()[:-1]]
    samples.append(sample(benchmark.prompts()[-1]))
    metrics = benchmark.summarize(samples)
    assert metrics["overall"].value == pytest.approx(30)
    assert (metrics["overall"].n, metrics["overall"].unscored) == (3199, 1)
    assert (metrics["task/photo"].unscored, metrics["task/anime"].unscored) == (1, 0)
    assert not [name for name in metrics if name.startswith("group_std")]
    with pytest.raises(ValueError, match="needs one scored picture"):
        published_summary(samples, "hps")
    assert benchmark.summarize([sample(benchmark.prompts()[0])]) == {}


# ---------------------------------------------------------------- DrawBench


def drawbench_csv(counts: Mapping[str, int]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["Prompts", "Category"])
    for category, count in counts.items():
        writer.writerows([f"{category}, number {row}", category] for row in range(count))
    return text.getvalue().encode()


def with_drawbench(content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this content be the published one."""
    monkeypatch.setenv("GCPO_BENCH_HOME", str(folder))
    known = replace(prompt_sets.SETS["drawbench"], sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(prompt_sets, "SETS", {**prompt_sets.SETS, "drawbench": known})
    known.path.parent.mkdir(parents=True)
    known.path.write_bytes(content)


def test_drawbench_has_eleven_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (len(CATEGORIES), sum(CATEGORIES.values())) == (11, 200)
    padded = {"Gary Marcus et al. ": 10, **{key: value for key, value in CATEGORIES.items() if "Marcus" not in key}}
    with_drawbench(drawbench_csv(padded), tmp_path, monkeypatch)  # published with a blank at the end
    prompts = drawbench_prompts()
    assert len(prompts) == 200
    assert {prompt.tag for prompt in prompts} == set(CATEGORIES)


def test_other_categories_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_drawbench(drawbench_csv({**CATEGORIES, "Colors": 24, "Text": 22}), tmp_path, monkeypatch)
    with pytest.raises(CorruptDataError, match="not the published ones"):
        drawbench_prompts()


def test_everything_a_panel_lacks_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_drawbench(drawbench_csv(CATEGORIES), tmp_path, monkeypatch)
    with pytest.raises(PrerequisiteError) as caught:
        BENCHMARKS.load("drawbench")(world="scenes-12").prompts()
    assert all(f"{name} lacks " in str(caught.value) for name in PANEL)
    make = BENCHMARKS.load("drawbench")
    with pytest.raises(PrerequisiteError, match="pickscore lacks "):
        make(options={"scorers": "pickscore + deqa"}, device="cpu").prompts()
    for options, message in (
        ({"scorers": "hps-v2.1+hps-v2.1"}, "each once"),
        ({"scorers": "hps"}, "unknown scorer 'hps'"),
        ({"scale": "/26"}, "no option 'scale'"),
        ({"scorers": "deqa", "scale.pickscore": "/26"}, "'pickscore' is not on the panel"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(options=options)
    with pytest.raises(ConfigError, match="at least one"):
        Panel([])


def test_an_outside_scorer_needs_its_program_to_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_drawbench(drawbench_csv(CATEGORIES), tmp_path, monkeypatch)
    monkeypatch.delenv("GCPO_BENCH_DEQA", raising=False)
    with_deqa = BENCHMARKS.load("drawbench")(options={"scorers": "deqa"})
    with pytest.raises(PrerequisiteError, match="GCPO_BENCH_DEQA names none"):
        with_deqa.prompts()
    monkeypatch.setenv("GCPO_BENCH_DEQA", "python deqa_worker.py model")
    assert len(with_deqa.prompts()) == 200


PROMPTS = tuple(
    Prompt(id=f"{row:05d}", text=f"prompt {row}", metadata={"tag": tag})
    for row, tag in enumerate(["Colors"] * 3 + ["Text"] * 2)
)


def bench(*scorers: Scorer, scales: Mapping[str, str] | None = None) -> DrawBench:
    return DrawBench(
        Panel(scorers or (Brightness(), Brightness(name="pickscore", factor=0.1))), lambda: PROMPTS, scales
    )


def grey(*levels: int) -> npt.NDArray[np.uint8]:
    return np.stack([np.full((8, 8, 3), level, dtype=np.uint8) for level in levels])


def test_every_scorer_s_value_is_kept_and_a_failure_of_one_is_said() -> None:
    @dataclass(frozen=True)
    class Broken(Brightness):
        name: str = "deqa"

        def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
            return [Unscored("no answer within 5 s")] * len(images)

    benchmark = bench(Brightness(), Broken())
    judged = benchmark.score(grey(10, 0), PROMPTS[:2])
    assert [dict(values) for values, _, _ in judged] == [{"brightness": 10}, {}]
    assert [reason for _, reason, _ in judged] == [
        "deqa: no answer within 5 s",
        "brightness: the picture is black\ndeqa: no answer within 5 s",
    ]
    samples = [sample(prompt, **values) for prompt, (values, _, _) in zip(PROMPTS, judged, strict=False)]
    metrics = benchmark.summarize(samples)
    assert "deqa" not in metrics
    assert (metrics["brightness"].value, metrics["brightness"].n, metrics["brightness"].unscored) == (10, 1, 1)
    assert bench(Broken(), Brightness()).summarize(samples) == {}  # no headline, no overall


def test_means_are_over_prompts_and_categories_are_strata() -> None:
    levels = {"00000": (10, 20), "00001": (30, 30), "00002": (20, 20), "00003": (100, 60), "00004": (100, 100)}
    samples = [
        sample(prompt, index, brightness=level, pickscore=level / 10)
        for prompt in PROMPTS
        for index, level in enumerate(levels[prompt.id])
    ]
    metrics = bench().summarize(samples)
    # prompts: 15, 30, 20 and 80, 100
    assert metrics["overall"].value == metrics["brightness"].value == pytest.approx((15 + 30 + 20 + 80 + 100) / 5)
    assert metrics["task/Colors"].value == metrics["brightness/Colors"].value == pytest.approx(65 / 3)
    assert metrics["pickscore/Text"].value == pytest.approx(9)
    variances = {"Colors": statistics.variance([15, 30, 20]), "Text": statistics.variance([80, 100])}
    expected = math.sqrt((3 / 5) ** 2 * variances["Colors"] / 3 + (2 / 5) ** 2 * variances["Text"] / 2)
    assert metrics["overall"].stderr == pytest.approx(expected)
    assert (metrics["overall"].n, metrics["overall"].unit) == (5, "raw")


def test_a_display_scale_is_named_and_changes_nothing_that_is_stored() -> None:
    samples = [sample(prompt, brightness=200, pickscore=22.1) for prompt in PROMPTS]
    shown = bench(scales={"pickscore": "/26"}).summarize(samples)
    assert shown["pickscore"].value == pytest.approx(0.85)
    assert (shown["pickscore"].unit, shown["brightness"].unit) == ("/26", "raw")
    with pytest.raises(ConfigError, match="no display scale '/5'"):
        bench(scales={"pickscore": "/5"})


# ---------------------------------------------------------------- from files, with the real model in miniature


@pytest.fixture(scope="module")
def hps_scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    folder = tmp_path_factory.mktemp("hps")
    weights = save(open_clip_state(GELU, seed=3), folder / "hps.pt", epoch=1)
    words = clip_tokenizer_folder(folder / "words")
    return load_hps(weights, words, architecture=GELU, preprocessing=small(GELU, HPS))


def with_pictures(folder: Path) -> Path:
    """Two a prompt, in files; three of them damaged."""
    folder.mkdir()
    names = [f"{prompt.id}-{index}.png" for prompt in PROMPTS for index in range(2)]
    for name, image in zip(names, pictures(len(names), sides=(24, 40)), strict=True):
        Image.fromarray(image).save(folder / name)
    (folder / names[3]).write_bytes(b"no picture")
    Image.new("RGB", (600, 9)).save(folder / names[5])
    (folder / names[7]).unlink()
    return folder


def evaluated(benchmark: PanelBenchmark, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Any:
    """Its samples by file, and its metrics."""
    monkeypatch.setitem(
        BENCHMARKS.entries, "drawbench", Entry("tests.test_hps_drawbench:given_benchmark", "for this test")
    )
    monkeypatch.setattr("tests.test_hps_drawbench.GIVEN", benchmark)
    evaluation = evaluate_folder(folder, out, "drawbench", images_per_prompt=2, allow_partial=True, **more)
    return {each.image: each for each in load_all_samples(out)}, evaluation.metrics


GIVEN: Any = None


def given_benchmark(world: str = "") -> Any:
    return GIVEN


def test_pictures_in_files_are_scored_alike_however_the_work_is_cut(
    hps_scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_pictures(tmp_path / "pictures")
    samples, metrics = evaluated(bench(hps_scorer, Brightness()), folder, tmp_path / "whole", monkeypatch)
    for rows in (1, 3, 8, 64):
        again = evaluated(
            bench(hps_scorer, Brightness()), folder, tmp_path / f"rows-{rows}", monkeypatch, batch_rows=rows
        )
        assert again == (samples, metrics)
    for share in (1, 2, 3):
        benchmark = bench(hps_scorer, Brightness())
        if share < 3:
            with pytest.raises(ShardDone):
                evaluated(benchmark, folder, tmp_path / "shards", monkeypatch, shard=(share, 3))
        else:
            parts = evaluated(benchmark, folder, tmp_path / "shards", monkeypatch, shard=(share, 3))
            assert parts == (samples, metrics)
    for each in samples.values():  # as the scorer says of the picture alone
        if not each.unscored:
            with Image.open(folder / each.image) as picture:
                assert [each.values["hps-v2.1"]] == hps_scorer.score([np.asarray(picture)], [each.prompt])
    reasons = {name: each.unscored for name, each in samples.items() if each.unscored}
    assert sorted(reasons) == ["00001-1.png", "00002-1.png", "00003-1.png"]
    assert "too long for its width" in reasons["00002-1.png"]
    assert metrics["overall"].unscored == metrics["brightness"].unscored == 3
    assert metrics["overall"] == metrics["hps-v2.1"]


class Moody:
    """A scorer that runs elsewhere: it fails for a while for the prompts in `down`, and for good for one prompt."""

    name = "deqa"
    unit = "points"
    identity: Mapping[str, Any] = {"scorer": "deqa", "model": "moody"}

    def __init__(self, *down: str) -> None:
        self.down = set(down)
        self.asked: list[str] = []

    def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
        self.asked += prompts
        return [self._score(float(image.mean()), prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _score(self, mean: float, prompt: str) -> Score:
        if prompt in self.down:
            return Unscored("no answer within 5 s", may_pass=True)
        return Unscored("its answer has no five finite logits") if prompt == "prompt 4" else mean


def test_what_an_outside_scorer_could_not_say_is_asked_again_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_pictures(tmp_path / "pictures")
    asked_brightness: list[str] = []

    @dataclass(frozen=True)
    class Counting(Brightness):
        def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
            asked_brightness.extend(prompts)
            return super().score(images, prompts)

    moody = Moody("prompt 0", "prompt 3")
    asked, down = moody.asked, moody.down
    out = tmp_path / "out"
    samples, metrics = evaluated(bench(Counting(), moody), folder, out, monkeypatch)
    assert metrics["brightness"].unscored == 3
    assert metrics["deqa"].unscored == 3 + 2 + 1 + 2
    assert samples["00000-0.png"].reason == "deqa: no answer within 5 s"
    assert samples["00004-0.png"].reason == "deqa: its answer has no five finite logits"
    assert "brightness" in samples["00000-0.png"].values
    assert stored_load(out).unanswered == 3
    assert len(asked) == 7
    before = {name: (out / name).read_bytes() for name in ("samples.jsonl", "scores.json")}
    monkeypatch.setattr("tests.test_hps_drawbench.GIVEN", bench(Brightness(), Moody()))
    rescore(out, "drawbench")  # what failed counts as it did, without being asked
    assert {name: (out / name).read_bytes() for name in before} == before

    asked.clear()
    asked_brightness.clear()
    down.remove("prompt 0")
    evaluated(bench(Counting(), moody), folder, out, monkeypatch)
    assert asked == ["prompt 0", "prompt 0", "prompt 3"]
    assert asked_brightness == []
    down.clear()
    asked.clear()
    final = evaluated(bench(Counting(), moody), folder, out, monkeypatch)
    assert asked == ["prompt 3"]
    well = Moody()
    straight = evaluated(bench(Brightness(), well), folder, tmp_path / "well", monkeypatch)
    assert repr(straight) == repr(final)  # NaN, the error of a category with one prompt, is not equal to itself
    assert final[1]["deqa"].unscored == 3 + 2  # what it said for good is not asked again
    asked.clear()
    evaluated(bench(Counting(), moody), folder, out, monkeypatch)
    assert asked == []

    added = bench(Brightness(), well, Brightness(name="pickscore", factor=0.1))  # a scorer more: it alone is asked
    well.asked.clear()
    both, _ = evaluated(added, folder, out, monkeypatch)
    assert well.asked == []
    assert set(both["00000-0.png"].values) == {"brightness", "deqa", "pickscore"}
    monkeypatch.setattr("tests.test_hps_drawbench.GIVEN", bench(Brightness(), Brightness(name="aesthetic")))
    stored = "nothing is stored of scorer 'aesthetic', only of brightness, deqa, pickscore"
    with pytest.raises(RunError, match=stored) as caught:
        rescore(out, "drawbench")
    assert caught.value.hint.startswith("--option scorers=brightness+deqa+pickscore, or")


def test_a_scorer_that_answered_nothing_is_asked_again_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_pictures(tmp_path / "pictures")
    for name in ("00001-1.png", "00002-1.png", "00003-1.png"):
        Image.new("RGB", (9, 9), (40, 50, int(name[4]))).save(folder / name)
    moody = Moody(*(prompt.text for prompt in PROMPTS))
    _, metrics = evaluated(bench(Brightness(), moody), folder, tmp_path / "out", monkeypatch)
    assert (metrics["overall"].unscored, "deqa" in metrics) == (0, False)
    moody.down.clear()
    _, metrics = evaluated(bench(Brightness(), moody), folder, tmp_path / "out", monkeypatch)
    assert metrics["deqa"].unscored == 2


def test_shards_hand_over_what_failed_and_ask_again_only_for_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = with_pictures(tmp_path / "pictures"), tmp_path / "out"
    moody = Moody("prompt 0")
    asked, down = moody.asked, moody.down
    with pytest.raises(ShardDone, match="others are not; 1 have no answer of every scorer: run it again"):
        evaluated(bench(Brightness(), moody), folder, out, monkeypatch, shard=(1, 2))
    asked.clear()
    down.clear()
    _, metrics = evaluated(bench(Brightness(), moody), folder, out, monkeypatch, shard=(2, 2))
    assert metrics["deqa"].unscored == 3 + 1 + 2
    asked.clear()
    mended = evaluated(bench(Brightness(), moody), folder, out, monkeypatch, shard=(1, 2))
    assert asked == ["prompt 0"]
    assert repr(mended) == repr(evaluated(bench(Brightness(), Moody()), folder, tmp_path / "whole", monkeypatch))


def test_a_stopped_evaluation_loses_one_batch_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_pictures(tmp_path / "pictures")
    asked: list[int] = []

    @dataclass(frozen=True)
    class Counting(Brightness):
        def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
            if len(asked) == 4:  # the self-test's two, and two batches
                raise KeyboardInterrupt
            asked.append(len(images))
            return super().score(images, prompts)

    with pytest.raises(KeyboardInterrupt):
        evaluated(bench(Counting()), folder, tmp_path / "out", monkeypatch, batch_rows=3)
    rows = [line for path in (tmp_path / "out/observations").iterdir() for line in path.read_text().splitlines()]
    assert len(rows) == 1 + 6  # what it looked with, and two batches of three files
    asked.clear()
    straight = evaluated(bench(Brightness()), folder, tmp_path / "straight", monkeypatch)
    assert evaluated(bench(Counting()), folder, tmp_path / "out", monkeypatch, batch_rows=3) == straight
    assert asked == [2, 2, 3]


def test_kept_values_are_summed_up_again_without_a_model(
    hps_scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_pictures(tmp_path / "pictures")
    before = evaluated(bench(hps_scorer), folder, tmp_path / "out", monkeypatch)

    @dataclass(frozen=True)
    class Gone(Brightness):
        name: str = "hps-v2.1"

        def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
            raise AssertionError("a model is asked")

    monkeypatch.setattr("tests.test_hps_drawbench.GIVEN", bench(Gone()))
    rescored = rescore(tmp_path / "out", "drawbench")
    assert rescored.metrics == before[1]
    assert rescored.identity["look"]["scorers"]["hps-v2.1"]["weights"].startswith("xxh3:")


def test_a_scorer_that_sees_no_difference_is_not_believed() -> None:
    @dataclass(frozen=True)
    class Blind(Brightness):
        def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
            return [0.5] * len(images)

    with pytest.raises(CorruptDataError, match=r"'brightness' self-test failed: it gives \[0\.5, 0\.5\]"):
        bench(Blind()).score(grey(10), PROMPTS[:1])


# ---------------------------------------------------------------- published prompts, where there are copies


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no copies of the published sets here")
def test_the_published_prompts_have_their_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path))
    prompt_sets.fetch("drawbench", PUBLISHED)
    prompt_sets.fetch("hps-gcpo400", PUBLISHED)
    drawbench = drawbench_prompts()
    assert max(len(prompt.text) for prompt in drawbench) == 303
    text = "\n".join(sorted(prompt.text for prompt in drawbench)) + "\n"
    assert hashlib.sha256(text.encode()).hexdigest().startswith("18cef96e28e1b3b6")
    hps = gcpo_prompts()
    assert [sum(prompt.tag == style for prompt in hps) for style in STYLES] == [100] * 4
    text = "".join(f"{prompt.text.strip()}\n" for prompt in hps)
    assert hashlib.sha256(text.encode()).hexdigest().startswith("f28a37d578e21a9a")


# ---------------------------------------------------------------- from the command line


def test_a_folder_is_scored_from_the_command_line(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and weights from their folders, the real model in miniature, one damaged picture."""
    with_drawbench(drawbench_csv(CATEGORIES), tmp_path / "home", monkeypatch)
    architecture = replace(GELU, pixels=224, patch=112)
    monkeypatch.setitem(ARCHITECTURES, "ViT-H-14", architecture)
    weights = tmp_path / "home" / "weights"
    clip_tokenizer_folder(weights / "clip-vit-large-patch14")
    save(open_clip_state(architecture, seed=8), weights / "HPS_v2.1_compressed.pt", epoch=1)
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = [f"{prompt.id}-0.png" for prompt in drawbench_prompts() if int(prompt.id) in {0, 25, 26, 199}]
    for name, image in zip(names, pictures(len(names)), strict=True):
        Image.fromarray(image).save(folder / name)
    asked = ("evaluate", "--images", "pictures", "--bench", "drawbench", "--images-per-prompt", "1", "--allow-partial")
    options = ("--option", "scorers=hps-v2.1", "--option", "scale.hps-v2.1=x100", "--device", "cpu", "--json")
    result = cli(*asked, *options)
    assert result.code == 0, result.err
    metrics = json.loads(result.out)["metrics"]
    assert (metrics["overall"]["n"], metrics["overall"]["unscored"], metrics["overall"]["unit"]) == (4, 196, "x100")
    assert metrics["overall"]["value"] == metrics["hps-v2.1"]["value"]
    rows = (tmp_path / "evaluations" / "pictures" / "drawbench" / "samples.jsonl").read_text().splitlines()
    values = [json.loads(row)["values"].get("hps-v2.1") for row in rows]
    raw = [value for value in values if value is not None]
    assert metrics["overall"]["value"] == pytest.approx(100 * sum(raw) / 4)
    (tmp_path / "home").rename(tmp_path / "away")  # summing up again needs no prompts and no weights
    again = cli("evaluate", "--images", "pictures", "--bench", "drawbench", "--rescore", *options[:4], "--json")
    assert json.loads(again.out)["metrics"] == metrics
    (tmp_path / "away").rename(tmp_path / "home")
    (folder / names[0]).write_bytes(b"no picture")
    damaged = cli(*asked, *options)
    assert damaged.code == 5
    assert "is not scored: the image file" in damaged.err
    assert json.loads(damaged.out)["metrics"]["overall"]["n"] == 3


def test_what_changes_what_is_seen_is_not_ignored_when_judging_again(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Option by option: what is stored with it is judged by, else it is refused; the scores stay as they are."""
    prompts = tuple(Prompt(id=f"{row:05d}", text=f"thing {row}", metadata={"tag": "anime"}) for row in range(3))
    monkeypatch.setattr("gcpo_bench.evaluators.hps.gcpo_prompts", lambda: prompts)
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path / "home"))
    architecture = replace(GELU, pixels=224, patch=112)
    monkeypatch.setitem(ARCHITECTURES, "ViT-H-14", architecture)
    weights = tmp_path / "home" / "weights"
    clip_tokenizer_folder(weights / "clip-vit-large-patch14")
    save(open_clip_state(architecture, seed=8), weights / "HPS_v2.1_compressed.pt")
    (tmp_path / "pictures").mkdir()
    for prompt, image in zip(prompts, pictures(3, sides=(300, 400)), strict=True):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{prompt.id}-0.png")
    command = ("evaluate", "--images", "pictures", "--bench", "hps-gcpo400", "--json")

    def overall(*more: str) -> Any:
        result = cli(*command, *more)
        return json.loads(result.out)["metrics"]["overall"]["value"] if result.code == 0 else (result.code, result.err)

    looking = ("--images-per-prompt", "1", "--device", "cpu")
    sharp = overall(*looking)
    code, said = overall("--rescore", "--option", "antialias=false", "--option", "fit=pad")
    assert code == 2
    assert "nothing is stored with antialias=false\nhint: evaluate once without --rescore" in said
    half = overall("--rescore", "--option", "precision=autocast")
    assert half[0] == 2 if torch.cuda.is_available() else half == sharp  # a CPU has one precision
    assert overall("--rescore", "--option", "precision=float32") == overall("--rescore") == sharp
    rough = overall(*looking, "--option", "antialias=false")
    assert rough != sharp
    away = tmp_path / "away"
    (tmp_path / "home").rename(away)
    assert overall("--rescore") == rough  # the last one, where nothing is asked for
    assert overall("--rescore", "--option", "antialias=true") == sharp
    assert overall("--rescore", "--option", "antialias=FALSE") == rough
    assert overall("--rescore", "--option", "antialias=false", "--option", "fit=crop")[0] == 2
    scores = json.loads((tmp_path / "evaluations/pictures/hps-gcpo400/scores.json").read_text())
    assert scores["identity"]["look"]["scorers"]["hps-v2.1"]["preprocessing"]["antialias"] is False


DEQA_PROGRAM = """
import json, os, sys

here = os.path.dirname(__file__)
print(json.dumps({"protocol": 1, "model": "a stand-in"}), flush=True)
for line in sys.stdin:
    open(os.path.join(here, "asked"), "a").write("x")
    if os.path.exists(os.path.join(here, "down")):
        os._exit(3)
    print(json.dumps({"id": json.loads(line)["id"], "logits": [1, 0, 0, 0, 0]}), flush=True)
"""


def test_a_program_that_died_is_asked_again_by_the_same_command(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeQA's real pipe to a real program; exit code 5 until every picture has its answer, then from what is kept."""
    with_drawbench(drawbench_csv(CATEGORIES), tmp_path / "home", monkeypatch)
    (tmp_path / "program.py").write_text(DEQA_PROGRAM)
    monkeypatch.setenv("GCPO_BENCH_DEQA", f"{sys.executable} {tmp_path / 'program.py'}")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, image in enumerate(pictures(5)):
        Image.fromarray(image).save(folder / f"{number:05d}-0.png")
    asked = ("evaluate", "--images", "pictures", "--bench", "drawbench", "--images-per-prompt", "1", "--allow-partial")
    command = (*asked, "--option", "scorers=deqa", "--json")
    (tmp_path / "down").touch()
    failed = cli(*command)
    assert failed.code == 5
    assert "none of the 200 images could be scored; the first: deqa: it ended with exit code 3" in failed.err
    assert (tmp_path / "asked").read_text() == "xxx"  # then it is given up
    (tmp_path / "down").unlink()
    (tmp_path / "asked").unlink()
    scored = cli(*command)
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["metrics"]["deqa"]["n"] == 5
    assert (tmp_path / "asked").read_text() == "xxxxx"
    rescored = ("evaluate", "--images", "pictures", "--bench", "drawbench", "--rescore")
    again = cli(*rescored, "--option", "scorers=deqa", "--json")
    assert json.loads(again.out)["metrics"] == json.loads(scored.out)["metrics"]
    assert cli(*command).code == 0
    assert (tmp_path / "asked").read_text() == "xxxxx"

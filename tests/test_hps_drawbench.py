"""HPS and DrawBench: prompts checked, values raw, published figures written out again, nothing missing called 0."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gcpo_bench import prompt_sets
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError
from gcpo_bench.evaluators.drawbench import CATEGORIES, PANEL, DrawBench, drawbench_prompts
from gcpo_bench.evaluators.generate import requests
from gcpo_bench.evaluators.hps import (
    STYLES,
    HpsBenchmark,
    benchmark_prompts,
    gcpo_prompts,
    official_file,
    published_summary,
)
from gcpo_bench.evaluators.runner import score
from gcpo_bench.evaluators.scorers.hps import load_hps
from gcpo_bench.evaluators.scorers.images import HPS
from gcpo_bench.evaluators.scorers.types import Images, Score, Scorer, Unscored, check_images
from gcpo_bench.evaluators.types import SampleScore
from gcpo_bench.registry import BENCHMARKS

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
    for style in STYLES:
        texts: Any = [f"{style} number {row}" for row in range(800)]
        (folder / f"{style}.json").write_text(json.dumps((change or {}).get(style, texts)))
    return folder


# ---------------------------------------------------------------- HPS


def test_hps_reads_800_prompts_of_each_style(tmp_path: Path) -> None:
    prompts = benchmark_prompts(hps_folder(tmp_path))
    assert len(prompts) == len({prompt.id for prompt in prompts}) == 3200
    assert [prompt.tag for prompt in prompts[::800]] == list(STYLES)
    assert prompts[801].id == "concept-art-00001"
    assert prompts[801].text == "concept-art number 1"
    assert official_file(prompts[801]) == "concept-art/00001.jpg"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a"] * 799, "has 799 prompts, published are 800"),
        ({"a": 1}, "no JSON list of texts"),
        (["a"] * 799 + [""], "no JSON list of texts"),
        (["a"] * 799 + [7], "no JSON list of texts"),
    ],
)
def test_other_hps_prompts_are_refused(tmp_path: Path, texts: Any, message: str) -> None:
    with pytest.raises(CorruptDataError, match=message):
        benchmark_prompts(hps_folder(tmp_path, {"photo": texts}))


def test_missing_hps_prompts_and_weights_are_told_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path))
    with pytest.raises(PrerequisiteError, match=r"anime\.json are missing"):
        BENCHMARKS.load("hps-benchmark")(world="scenes-12")
    with pytest.raises(PrerequisiteError, match="hps-gcpo400 are not on this machine"):
        BENCHMARKS.load("hps-gcpo400")(world="scenes-12")
    folder = tmp_path / "data" / "hps" / "benchmark"
    folder.mkdir(parents=True)
    hps_folder(folder)
    with pytest.raises(PrerequisiteError, match=r"hps-v2\.1: .*HPS_v2\.1_compressed\.pt is missing"):
        BENCHMARKS.load("hps-benchmark")(world="scenes-12")
    with pytest.raises(ValueError, match="unknown preset"):
        HpsBenchmark("hps")


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
    for style, summary in published_summary(shuffled).items():
        assert summary.mean == pytest.approx(expected[style][0], abs=1e-10)
        assert summary.std == pytest.approx(expected[style][1], abs=1e-10)


def test_hps_metrics_are_means_times_100_with_the_spread_of_groups(tmp_path: Path) -> None:
    benchmark = HpsBenchmark("hps-benchmark", scorer=Brightness(), folder=hps_folder(tmp_path))
    level = dict(zip(STYLES, (0.30, 0.31, 0.29, 0.26), strict=True))
    samples = [sample(prompt, hps=level[prompt.tag]) for prompt in benchmark.prompts()]
    metrics = benchmark.summarize(samples)
    assert metrics["overall"].value == pytest.approx(29)
    assert metrics["task/photo"].value == pytest.approx(26)
    assert metrics["task/photo"].stderr == pytest.approx(0, abs=1e-9)
    assert metrics["group_std/photo"].value == pytest.approx(0, abs=1e-9)
    assert {metric.unit for metric in metrics.values()} == {"x100"}
    assert metrics["overall"].n == 3200


def test_missing_hps_pictures_are_counted_and_the_published_summary_is_withheld(tmp_path: Path) -> None:
    benchmark = HpsBenchmark("hps-benchmark", scorer=Brightness(), folder=hps_folder(tmp_path))
    samples = [sample(prompt, hps=0.3) for prompt in benchmark.prompts()[:-1]]
    samples.append(sample(benchmark.prompts()[-1]))
    metrics = benchmark.summarize(samples)
    assert metrics["overall"].value == pytest.approx(30)
    assert (metrics["overall"].n, metrics["overall"].unscored) == (3199, 1)
    assert (metrics["task/photo"].unscored, metrics["task/anime"].unscored) == (1, 0)
    assert not [name for name in metrics if name.startswith("group_std")]
    with pytest.raises(ValueError, match="needs one scored picture"):
        published_summary(samples)
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
    from dataclasses import replace

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
        BENCHMARKS.load("drawbench")(world="scenes-12")
    assert all(f"{name}: " in str(caught.value) for name in PANEL)
    with pytest.raises(ConfigError, match="each once"):
        DrawBench(scorers=["hps-v2.1", "hps-v2.1"])
    with pytest.raises(ConfigError, match="at least one"):
        DrawBench(scorers=[])


PROMPTS = tuple(
    Prompt(id=f"{row:05d}", text=f"prompt {row}", metadata={"tag": tag})
    for row, tag in enumerate(["Colors"] * 3 + ["Text"] * 2)
)


def bench(**changes: Any) -> DrawBench:
    scorers: list[Scorer] = [Brightness(), Brightness(name="pickscore", factor=0.1)]
    return DrawBench(**{"scorers": scorers, "prompts": PROMPTS} | changes)


def grey(*levels: int) -> npt.NDArray[np.uint8]:
    return np.stack([np.full((8, 8, 3), level, dtype=np.uint8) for level in levels])


def test_every_scorer_s_value_is_kept_and_a_failure_of_one_is_said() -> None:
    @dataclass(frozen=True)
    class Broken(Brightness):
        name: str = "broken"

        def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
            return [Unscored("no answer within 5 s")] * len(images)

    benchmark = bench(scorers=[Brightness(), Broken()])
    judged = benchmark.score(grey(10, 0), PROMPTS[:2])
    assert [dict(values) for values, _, _ in judged] == [{"brightness": 10}, {}]
    assert [reason for _, reason, _ in judged] == [
        "broken: no answer within 5 s",
        "brightness: the picture is black\nbroken: no answer within 5 s",
    ]
    samples = [sample(prompt, **values) for prompt, (values, _, _) in zip(PROMPTS, judged, strict=False)]
    metrics = benchmark.summarize(samples)
    assert "broken" not in metrics
    assert (metrics["brightness"].value, metrics["brightness"].n, metrics["brightness"].unscored) == (10, 1, 1)
    assert bench(scorers=[Broken(), Brightness()]).summarize(samples) == {}  # no headline, no overall


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


def test_pictures_in_files_are_scored_alike_in_any_batch(hps_scorer: Scorer, tmp_path: Path) -> None:
    benchmark = bench(scorers=[hps_scorer, Brightness()])
    wanted = requests(PROMPTS, 2)
    for request, image in zip(wanted, pictures(len(wanted), sides=(24, 40)), strict=True):
        Image.fromarray(image).save(tmp_path / request.file)
    (tmp_path / wanted[3].file).write_bytes(b"no picture")
    Image.new("RGB", (400, 3)).save(tmp_path / wanted[5].file)
    (tmp_path / wanted[7].file).unlink()
    whole = score(benchmark, tmp_path, wanted, root=tmp_path)
    assert score(benchmark, tmp_path, wanted, root=tmp_path, batch_rows=1) == whole
    assert score(benchmark, tmp_path, wanted, root=tmp_path, batch_rows=3) == whole
    reasons = {row: each.unscored for row, each in enumerate(whole) if each.unscored}
    assert set(reasons) == {3, 5, 7}
    assert "cannot be read" in reasons[3]
    assert "too long for its width" in reasons[5]
    assert "missing" in reasons[7]
    metrics = benchmark.summarize(whole)
    assert metrics["overall"].unscored == metrics["brightness"].unscored == 3
    assert metrics["overall"].value == metrics["hps-v2.1"].value
    assert json.loads(json.dumps(benchmark.identity)) == benchmark.identity


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

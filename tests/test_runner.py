"""Drawing and scoring a run's images: the same numbers however the work was cut up, stopped or damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from gcpo_bench import runs, streams
from gcpo_bench.config import RunConfig
from gcpo_bench.errors import ConfigError, CorruptDataError, RunError
from gcpo_bench.evaluators.runner import evaluate, first_per_task, load_evaluation, load_samples, prompts_digest
from gcpo_bench.evaluators.types import Evaluation, Sampler
from gcpo_bench.runs import Run
from gcpo_bench.scenes import TASKS, WORLDS, held_out_prompts, render, sample_scene

TOKENS = 64
WORLD = WORLDS["scenes-8"]
BY_TEXT = {prompt.text: prompt for prompt in held_out_prompts()}


class Painter:
    """A sampler that paints a true scene for a row whose first number is below `skill`, else nothing.

    Like a policy, it makes a row's image from that row's text and numbers only.
    """

    def __init__(self, skill: float = 1.0, stop_after: int = 10**9) -> None:
        self.skill = skill
        self.stop_after = stop_after
        self.rows = 0
        self.batches: list[int] = []

    def __call__(self, texts_B: Sequence[str], uniforms_BT: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        assert uniforms_BT.shape == (len(texts_B), TOKENS)
        if self.rows + len(texts_B) > self.stop_after:
            raise KeyboardInterrupt
        self.rows += len(texts_B)
        self.batches.append(len(texts_B))
        return np.stack([self.paint(text, u) for text, u in zip(texts_B, uniforms_BT, strict=True)])

    def paint(self, text: str, uniforms_T: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        if uniforms_T[0] >= self.skill:
            return render((), WORLD)
        rng = np.random.default_rng(int(uniforms_T[1] * 2**24))
        return render(sample_scene(BY_TEXT[text], WORLD, rng), WORLD)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return runs.create(tmp_path, "one", RunConfig())


def go(run: Run, sampler: Sampler | None, benchmark: str = "scenes", **changes: Any) -> Evaluation:
    settings: dict[str, Any] = {
        "world": "scenes-8",
        "images_per_prompt": 2,
        "seed": 3,
        "distribution": {"guidance_scale": 1.0, "temperature": 1.0},
        "weights_digest": "w1",
        "limit": 2,
        "batch_rows": 5,
    }
    return evaluate(run, sampler, TOKENS, benchmark, **{**settings, **changes})


def images(run: Run) -> Path:
    return run.images_dir("scenes-heldout")


def contents(run: Run) -> dict[str, bytes]:
    """Every file that evaluation leaves; the manifest as a set of lines."""
    paths = [*images(run).glob("*.png"), *run.evaluation_dir("scenes").iterdir()]
    manifest = sorted((images(run) / "manifest.jsonl").read_bytes().splitlines())
    return {**{path.name: path.read_bytes() for path in paths}, "manifest": b"\n".join(manifest)}


def test_true_pictures_score_one_and_empty_ones_zero(tmp_path: Path) -> None:
    truth = go(runs.create(tmp_path, "truth", RunConfig()), Painter(1.0), limit=None, images_per_prompt=1)
    assert (
        truth.metrics["overall"].value == truth.metrics["strict"].value == truth.metrics["prompts_correct"].value == 1.0
    )
    assert truth.metrics["overall"].n == 288
    assert set(truth.metrics) >= {f"task/{task}" for task in TASKS}
    empty = go(runs.create(tmp_path, "empty", RunConfig()), Painter(0.0), limit=None, images_per_prompt=1)
    assert [m.value for name, m in empty.metrics.items() if name != "extra_objects"] == [0.0] * (len(empty.metrics) - 1)


def test_every_image_is_saved_and_explained(run: Run) -> None:
    evaluation = go(run, Painter(0.5))
    samples = load_samples(run, "scenes")
    assert len(samples) == 2 * 2 * 6
    assert [s.image_index for s in samples[:4]] == [0, 1, 0, 1]
    for sample in samples:
        with Image.open(run.path / sample.image) as picture:
            assert picture.size == (32, 32)
        uniforms_T = streams.uniforms(3, "evaluate", sample.prompt_id, sample.image_index, TOKENS)
        assert sample.values["strict"] == float(uniforms_T[0] < 0.5)
        assert (sample.reason == "") == (sample.values["strict"] == 1)
        assert bool(sample.detections) == (sample.values["strict"] == 1)
    by_tag = [np.mean([s.values["correct"] for s in samples if s.tag == tag]) for tag in TASKS]
    assert evaluation.metrics["overall"].value == pytest.approx(np.mean(by_tag))
    assert not list(run.path.rglob("*.tmp"))


def test_scores_and_images_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    left = []
    for batch_rows in (1, 5, 256):
        other = runs.create(tmp_path, f"rows-{batch_rows}", RunConfig())
        go(other, Painter(0.5), batch_rows=batch_rows)
        left.append(contents(other))
    assert left[0] == left[1] == left[2]


def test_images_are_drawn_as_many_at_once_as_asked_else_as_the_sampler_likes(tmp_path: Path) -> None:
    for batch_rows, batches in ((None, [7, 7, 7, 3]), (10, [10, 10, 4])):
        painter = Painter(0.5)
        run = runs.create(tmp_path, f"rows-{batch_rows}", RunConfig())
        go(run, painter, batch_rows=batch_rows, draw_rows=7)
        assert painter.batches == batches


def test_two_policies_see_the_same_noise_and_another_seed_another(tmp_path: Path) -> None:
    verdicts = []
    for name, weights, seed in (("a", "w1", 3), ("b", "w2", 3), ("c", "w1", 4)):
        other = runs.create(tmp_path, name, RunConfig())
        go(other, Painter(0.5), weights_digest=weights, seed=seed)
        verdicts.append([sample.values["correct"] for sample in load_samples(other, "scenes")])
    assert verdicts[0] == verdicts[1]
    assert verdicts[0] != verdicts[2]


def test_an_interrupted_evaluation_goes_on_where_it_stopped(run: Run, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(run, Painter(0.5, stop_after=12))
    assert len(list(images(run).glob("*.png"))) == 10  # two whole batches of 5
    assert not (run.evaluation_dir("scenes") / "scores.json").exists()
    with (images(run) / "manifest.jsonl").open("a") as manifest:
        manifest.write('{"prompt": "heldo')  # a kill in the middle of a line
    painter = Painter(0.5)
    progress: list[tuple[int, int]] = []
    resumed = go(run, painter, on_batch=lambda done, total: progress.append((done, total)))
    assert painter.batches == [5, 5, 4]
    assert progress == [(10, 24), (15, 24), (20, 24), (24, 24)]
    straight = runs.create(tmp_path, "straight", RunConfig())
    assert go(straight, Painter(0.5)) == resumed
    assert contents(run) == contents(straight)


def test_a_finished_evaluation_is_returned_without_work(run: Run) -> None:
    first = go(run, Painter(0.5))
    painter = Painter(0.5)
    assert go(run, painter, batch_rows=7) == first
    assert painter.rows == 0
    assert load_evaluation(run, "scenes") == first


@pytest.mark.parametrize(
    ("change", "drawn"),
    [
        ({"weights_digest": "w2"}, 24),
        ({"seed": 4}, 24),
        ({"distribution": {"guidance_scale": 2.0, "temperature": 1.0}}, 24),
        ({"distribution": {"guidance_scale": 1.0, "temperature": 1.0, "top_k": 5}}, 24),
        ({"images_per_prompt": 3}, 12),
        ({"limit": 3}, 12),
        ({"limit": 1}, 0),
    ],
)
def test_other_settings_are_another_evaluation_and_draw_only_what_is_missing(
    run: Run, change: dict[str, Any], drawn: int
) -> None:
    first = go(run, Painter(0.5))
    painter = Painter(0.5)
    second = go(run, painter, **change)
    assert painter.rows == drawn
    assert second.identity != first.identity
    assert load_evaluation(run, "scenes").identity == second.identity


def test_images_of_a_smaller_evaluation_leave_those_of_a_larger_one_alone(run: Run) -> None:
    go(run, Painter(0.5), limit=3)
    go(run, Painter(0.5), limit=1)
    painter = Painter(0.5)
    go(run, painter, limit=3)
    assert painter.rows == 0


def test_the_identity_names_what_makes_scores_comparable(run: Run) -> None:
    identity = go(run, Painter()).identity
    assert identity == {
        "benchmark": "scenes",
        "version": "1",
        "prompts_digest": prompts_digest(first_per_task(held_out_prompts(), 2)),
        "limited": {"prompts": 12, "of": 288},
        "images_per_prompt": 2,
        "weights_digest": "w1",
        "world": "scenes-8",
        "seed": 3,
        "guidance_scale": 1.0,
        "temperature": 1.0,
    }
    assert len(identity["prompts_digest"]) == 64


@pytest.mark.parametrize("damage", ["truncated", "replaced", "removed"])
def test_a_damaged_image_is_found_and_drawn_anew(run: Run, damage: str) -> None:
    first = go(run, Painter(0.5))
    path = sorted(images(run).glob("*.png"))[7]
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "replaced":
        Image.new("RGB", (32, 32), "red").save(path)
    else:
        path.unlink()
    (run.evaluation_dir("scenes") / "scores.json").unlink()
    painter = Painter(0.5)
    assert go(run, painter) == first
    assert painter.rows == 1
    assert path.read_bytes() == whole


def test_images_of_others_that_are_unfit_are_unscored_with_the_reason(run: Run) -> None:
    go(run, Painter(1.0))
    paths = sorted(images(run).glob("*.png"))
    paths[0].write_bytes(paths[0].read_bytes()[:-30])
    paths[1].unlink()
    (images(run) / "manifest.jsonl").unlink()  # nothing is known of them but their names
    Image.new("RGB", (20, 20)).save(paths[2])
    Image.new("RGB", (8000, 6000)).save(paths[3])
    paths[4].write_text("no picture")
    evaluation = go(run, None, weights_digest="someone else's")
    assert evaluation.metrics["overall"].value == 1.0  # what could be scored is right; the rest is no 0
    assert evaluation.metrics["overall"].unscored == 5
    unscored = {Path(s.image).name: s.unscored for s in load_samples(run, "scenes") if s.unscored}
    assert unscored == {
        paths[0].name: "the image file cannot be read: OSError",
        paths[1].name: "the image file is missing",
        paths[2].name: "images are 20x20 pixels, and no embedded world has that size",
        paths[3].name: "the image has 8000x6000 pixels, more than 40,000,000",
        paths[4].name: "the image file cannot be read: UnidentifiedImageError",
    }


def test_images_of_others_that_do_not_match_their_checksum_are_unscored(run: Run) -> None:
    go(run, Painter(1.0))
    path = sorted(images(run).glob("*.png"))[0]
    Image.new("RGB", (32, 32), "red").save(path)
    assert go(run, None, weights_digest="other").metrics["overall"].unscored == 1
    assert {s.unscored for s in load_samples(run, "scenes")} == {"", "the image file does not match its checksum"}


def test_images_that_were_mended_are_scored_the_next_time(run: Run) -> None:
    first = go(run, Painter(1.0))
    path = sorted(images(run).glob("*.png"))[0]
    whole = path.read_bytes()
    path.write_bytes(b"")
    assert go(run, None, weights_digest="other").metrics["overall"].unscored == 1
    path.write_bytes(whole)
    assert go(run, None, weights_digest="other").metrics == first.metrics


def test_images_of_two_worlds_are_scored_side_by_side(run: Run) -> None:
    go(run, Painter(1.0))
    (images(run) / "manifest.jsonl").unlink()
    prompt = held_out_prompts()[0]
    large = render(sample_scene(prompt, WORLDS["scenes-12"], np.random.default_rng(0)), WORLDS["scenes-12"])
    Image.fromarray(large).save(images(run) / f"{prompt.id}-0.png")
    evaluation = go(run, None, weights_digest="other")
    assert (evaluation.metrics["strict"].value, evaluation.metrics["strict"].unscored) == (1.0, 0)


def test_an_evaluation_without_any_image_is_an_error_that_says_why(run: Run) -> None:
    with pytest.raises(
        CorruptDataError, match="none of the 24 images could be scored; the first: the image file is missing"
    ):
        go(run, None)
    assert len(load_samples(run, "scenes")) == 24
    with pytest.raises(RunError, match=r"no scores\.json of benchmark 'scenes'") as error:
        load_evaluation(run, "scenes")
    assert error.value.hint == "evaluate the run first"


def test_damaged_scores_are_made_again(run: Run) -> None:
    first = go(run, Painter(0.5))
    scores = run.evaluation_dir("scenes") / "scores.json"
    for damage in ("{", "[]", '{"metrics": {"overall": {}}}', '{"metrics": {}, "more": 1}'):
        scores.write_text(damage)
        with pytest.raises(CorruptDataError, match=r"scores\.json is damaged"):
            load_evaluation(run, "scenes")
        painter = Painter(0.5)
        assert go(run, painter) == first
        assert painter.rows == 0


def test_damaged_samples_are_told(run: Run) -> None:
    go(run, Painter(0.5))
    path = run.evaluation_dir("scenes") / "samples.jsonl"
    path.write_text(path.read_text() + '{"prompt_id": "x"}\n')
    with pytest.raises(CorruptDataError, match=r"samples\.jsonl is damaged") as error:
        load_samples(run, "scenes")
    assert error.value.hint == "delete it and evaluate the run again"


def test_an_unknown_error_of_the_mean_is_null_in_the_file(run: Run) -> None:
    go(run, Painter(1.0), limit=1)
    record = json.loads((run.evaluation_dir("scenes") / "scores.json").read_text())
    assert record["metrics"]["overall"]["stderr"] is None
    assert math.isnan(load_evaluation(run, "scenes").metrics["overall"].stderr)


def test_a_limit_takes_the_first_prompts_of_each_task() -> None:
    chosen = first_per_task(held_out_prompts(), 2)
    assert [prompt.tag for prompt in chosen] == [task for task in TASKS for _ in range(2)]
    assert chosen[2:4] == [prompt for prompt in held_out_prompts() if prompt.tag == TASKS[1]][:2]
    assert first_per_task(held_out_prompts(), None) == list(held_out_prompts())


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"images_per_prompt": 0}, {"batch_rows": -1}])
def test_numbers_below_one_are_refused(run: Run, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        go(run, Painter(), **wrong)


def test_an_unknown_benchmark_is_refused_with_the_known_ones(run: Run) -> None:
    with pytest.raises(ConfigError, match="unknown benchmark 'scnes'") as error:
        evaluate(
            run, Painter(), TOKENS, "scnes", world="scenes-8", images_per_prompt=1, seed=0,
            distribution={}, weights_digest="w",
        )  # fmt: skip
    assert "did you mean 'scenes'" in error.value.hint


@pytest.mark.parametrize(
    "returned", [np.zeros((1, 32, 32, 3), np.uint8), np.zeros((5, 32, 32, 3)), np.zeros((5, 32, 32), np.uint8)]
)
def test_a_sampler_that_returns_something_else_than_images_is_told_so(run: Run, returned: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"the sampler returned .*, expected uint8 \(5, Y, X, 3\)"):
        go(run, lambda texts_B, uniforms_BT: returned)

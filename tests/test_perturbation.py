"""Noise in a range changes what follows it and nothing before it; the study is the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gcpo_bench import runs, scenes
from gcpo_bench.config import RewardConfig
from gcpo_bench.errors import ConfigError
from gcpo_bench.training.checkpoints import load_weights
from gcpo_bench.training.perturbation import COARSE, Study, coarse, equal_parts, perturb
from gcpo_bench.training.policies.scenes import build
from gcpo_bench.training.rewards import WeightedSum
from gcpo_bench.training.starts import packaged_weights

from .conftest import Cli

PROMPTS = scenes.held_out_prompts()[::48]


@pytest.fixture(scope="module")
def study() -> Study:
    return run()


def run(**options: object) -> Study:
    policy = build("scenes-8")
    path, digest = packaged_weights("scenes-8")
    load_weights(policy, path, expected_checksum=digest)
    settings = {"ranges": equal_parts(4, 64), "noise": "uniform", **options}
    return perturb(policy, WeightedSum((RewardConfig(),)), PROMPTS, **settings)  # type: ignore[arg-type]


def test_the_ranges_cut_the_raster_into_equal_parts(study: Study) -> None:
    assert [(item.first, item.last) for item in study.ranges] == [(0, 15), (16, 31), (32, 47), (48, 63)]
    assert all(len(item.coarse) == len(PROMPTS) for item in study.ranges)
    assert study.ranges[-1].later == [None] * len(PROMPTS)
    assert [item.successors for item in study.ranges] == [48, 32, 16, 0]


def test_nothing_before_the_noise_changes(study: Study) -> None:
    plain, *noisy = study.images_RMYXC
    rows = plain.shape[1] // 4
    for index, images in enumerate(noisy):
        assert np.array_equal(images[:, : index * rows], plain[:, : index * rows])
        assert not np.array_equal(images[:, index * rows :], plain[:, index * rows :])


def test_the_same_study_twice_is_the_same(study: Study) -> None:
    assert run().ranges == study.ranges


def test_a_redraw_changes_less_than_random_tokens(study: Study) -> None:
    """What the policy itself might have drawn is nearer to the image than any token of the codebook."""
    redrawn = np.mean([item.fine for item in run(noise="redraw").ranges])
    assert 0 < redrawn < 0.5 * np.mean([item.fine for item in study.ranges])


def test_coarse_images_are_cell_means() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 33, 32, 3), dtype=np.uint8)
    cells = coarse(images)
    assert cells.shape == (2, COARSE, COARSE, 3)
    assert cells[1, 2, 3] == pytest.approx(images[1, 16:24, 24:32].mean(axis=(0, 1)) / 255)


@pytest.mark.parametrize("ranges", [1, 65])
def test_as_many_ranges_as_there_are_tokens_at_most(ranges: int) -> None:
    with pytest.raises(ConfigError, match="the image has 64 tokens"):
        equal_parts(ranges, 64)


@pytest.mark.parametrize("noise", ["uniform", "redraw"])
def test_equally_many_tokens_follow_both_ranges_of_a_pair(noise: str) -> None:
    """8 tokens a row, and 4 x 4 pixels a token: noise in rows 0 and 4, two rows after each drawn anew."""
    pair = run(ranges=[slice(0, 8), slice(32, 48)], equal_reach=True, noise=noise)
    assert [(item.first, item.last, item.successors) for item in pair.ranges] == [(0, 7, 16), (32, 47, 16)]
    plain, early, late = pair.images_RMYXC
    same = [(images == plain).all(axis=(0, 2, 3)).reshape(8, 4).all(axis=1) for images in (early, late)]
    assert same[0][3:].all()  # rows further on are as they were
    assert not same[0][:3].all()
    assert same[1][:4].all()
    assert not same[1][4:].all()


@pytest.mark.parametrize(("ranges", "equal_reach"), [([slice(0, 8), slice(56, 64)], True), ([slice(60, 65)], False)])
def test_a_range_that_nothing_follows_or_that_is_outside_is_refused(ranges: list[slice], equal_reach: bool) -> None:
    with pytest.raises(ConfigError, match="the image has 64 tokens"):
        run(ranges=ranges, equal_reach=equal_reach)


def test_the_command_writes_what_the_report_reads(cli: Cli, tmp_path: Path) -> None:
    cli("train", "--model", "scenes-8", "--num-steps", "0", "--name", "start")
    result = cli("analyze", "perturb", "start", "--ranges", "3", "--prompts-per-task", "1", "--json")
    assert result.code == 0
    record = json.loads(result.out)
    assert record == runs.open_run("start").analyses()["perturb"][0]
    assert len(record["ranges"]) == 3
    assert "unknown --noise" in cli("analyze", "perturb", "start", "--noise", "loud").err
    pair = ("analyze", "perturb", "start", "--prompts-per-task", "1", "--tokens", "0:6", "--against", "30:36")
    assert json.loads(cli(*pair, "--json").out)["ranges"][0]["successors"] == 28
    assert (tmp_path / "runs/start/analyses/perturb-pair.json").exists()
    for wrong, message in (
        (("--tokens", "0:6"), "belong together"),
        (("--tokens", "0:6", "--against", "30:36", "--ranges", "4"), "belong together"),
        (("--tokens", "0:6", "--against", "30:35"), "no two ranges of as many tokens"),
        (("--tokens", "0:6", "--against", "5:11"), "no two ranges of as many tokens"),
        (("--tokens", "6:0", "--against", "30:36"), "no range of tokens"),
        (("--tokens", "0:6", "--against", "58:64"), "the image has 64 tokens"),
    ):
        refused = cli("analyze", "perturb", "start", *wrong)
        assert (refused.code, message in refused.err) == (2, True), refused.err

"""Noise in a range changes what follows it and nothing before it; the study is the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gcpo_bench import scenes
from gcpo_bench.config import RewardConfig
from gcpo_bench.errors import ConfigError
from gcpo_bench.training.checkpoints import load_weights
from gcpo_bench.training.perturbation import COARSE, Study, coarse, perturb
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
    settings = {"ranges": 4, "noise": "uniform", **options}
    return perturb(policy, WeightedSum((RewardConfig(),)), PROMPTS, **settings)  # type: ignore[arg-type]


def test_the_ranges_cut_the_raster_into_equal_parts(study: Study) -> None:
    assert [(item.first, item.last) for item in study.ranges] == [(0, 15), (16, 31), (32, 47), (48, 63)]
    assert all(len(item.coarse) == len(PROMPTS) for item in study.ranges)
    assert study.ranges[-1].later == [None] * len(PROMPTS)


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
        run(ranges=ranges)


def test_the_command_writes_what_the_report_reads(cli: Cli, tmp_path: Path) -> None:
    cli("train", "--model", "scenes-8", "--num-steps", "0", "--name", "start")
    result = cli("analyze", "perturb", "start", "--ranges", "3", "--prompts-per-task", "1", "--json")
    assert result.code == 0
    record = json.loads(result.out)
    assert record == json.loads((tmp_path / "runs/start/analyses/perturb.json").read_text())
    assert len(record["ranges"]) == 3
    assert "unknown --noise" in cli("analyze", "perturb", "start", "--noise", "loud").err

"""The gate on runs that were really trained: the same again passes, a reward that broke is a proven regression."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Cli

REWARD = """
from gcpo_bench.evaluators.scenes import GenEvalReward
from gcpo_bench.evaluators.types import SceneReward

SIGN = 1

class Reward(GenEvalReward):
    gcpo_bench_part = "reward"

    def __call__(self, images_BYXC, prompts_B):
        found = super().__call__(images_BYXC, prompts_B)
        return SceneReward(values_B=[SIGN * value for value in found.values_B], anomalies=found.anomalies)
"""


def train(cli: Cli, folder: str) -> None:
    settings = (
        "optimizer.learning_rate=3e-3",
        "rewards=[{name: 'lab_reward:Reward'}]",
        "evaluation.prompts_per_task=16",
    )
    options = [part for setting in settings for part in ("-o", setting)]
    trained = cli("train", "--model", "scenes-8", "--num-steps", "15", "--name", "a", "--runs-dir", folder, *options)
    assert trained.code == 0, trained.err
    evaluated = cli("evaluate", "a", "--no-start", "--runs-dir", folder)
    assert evaluated.code == 0, evaluated.err


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "lab_reward.py").write_text(REWARD, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "lab_reward"


def test_the_same_again_passes_and_a_broken_reward_fails(cli: Cli, lab: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train(cli, "before")
    assert cli("baseline", "update", "--runs-dir", "before", "--out", "main.json").code == 0

    train(cli, "again")
    same = cli("gate", "--baseline", "main.json", "--runs-dir", "again", "--margin", "scenes=5pt")
    assert same.code == 0, same.out + same.err
    assert "0.0 [" in same.out

    monkeypatch.setattr(f"{lab}.SIGN", -1)  # the change that somebody wants to merge
    train(cli, "after")
    broken = cli("gate", "--baseline", "main.json", "--runs-dir", "after", "--margin", "scenes=5pt")
    assert broken.code == 1, broken.out + broken.err
    assert "regression" in broken.out

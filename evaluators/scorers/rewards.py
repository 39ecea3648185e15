"""Scorers as training rewards: the raw score of each image is what training maximises.

Weigh them in the configuration: a PickScore is about 20, an HPS about 0.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import TrainingError
from gcpo_bench.registry import SCORERS

from ..types import SceneReward
from .types import Scorer, Unscored


class ScorerReward:
    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def check(self) -> None:
        """Raises PrerequisiteError where the program or server that the scorer asks is not there."""
        if check := getattr(self.scorer, "check", None):
            check()

    def __call__(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> SceneReward:
        """Raises TrainingError where an image could not be scored: nothing may be learned from a made-up number."""
        scores = self.scorer.score(images_BYXC, [prompt.text for prompt in prompts_B])
        values: list[float] = []
        for score, prompt in zip(scores, prompts_B, strict=True):
            if isinstance(score, Unscored):
                raise TrainingError(
                    f"reward {self.scorer.name!r} gave no score for prompt {prompt.text[:80]!r}: {score.reason}",
                    hint="the newest checkpoint is kept: mend the scorer and go on with --resume",
                )
            values.append(score)
        return SceneReward(values_B=tuple(values), anomalies={})


def _reward(name: str) -> ScorerReward:
    return ScorerReward(SCORERS.load(name)())


def hps_v21() -> ScorerReward:
    return _reward("hps-v2.1")


def hps_v20() -> ScorerReward:
    return _reward("hps-v2.0")


def clip_score() -> ScorerReward:
    return _reward("clip-score")


def pickscore() -> ScorerReward:
    return _reward("pickscore")


def aesthetic() -> ScorerReward:
    return _reward("aesthetic")


def image_reward() -> ScorerReward:
    return _reward("image-reward")


def deqa() -> ScorerReward:
    return _reward("deqa")


def unified_reward() -> ScorerReward:
    return _reward("unified-reward")

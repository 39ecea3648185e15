"""A reward that any image has: to see that a policy and its training work before a benchmark's weights are there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gcpo_bench.datasets import Prompt

from .types import SceneReward


class Redness:
    """Mean of red minus the mean of green and blue, in [-1, 1]; what the prompt says does not matter."""

    def __call__(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> SceneReward:
        red_B, green_B, blue_B = (images_BYXC.mean(axis=(1, 2)) / 255).T
        return SceneReward(values_B=tuple((red_B - (green_B + blue_B) / 2).tolist()), anomalies={})

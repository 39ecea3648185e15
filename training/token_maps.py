"""Token maps: what each criterion sees and chooses on a few tracked prompts, over time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gcpo_bench.config import LoggingConfig
from gcpo_bench.datasets import Prompt, prompts_by_task
from gcpo_bench.runs import Run

from .learner import Learner
from .logprobs import token_logprobs
from .metrics import Stopwatch
from .observation import observe
from .signals import entropy_gradient


def save_token_maps(learner: Learner, run: Run, step: int) -> None:
    """Write tokens/step-XXXXXX.npz: the first image of each tracked prompt, drawn with the same noise at every step.

    Arrays: `prompts` (M texts), `images` (M, Y, X, 3), `reward` and `advantage` (M), and on the grid (M, H, W)
    `entropy`, `entropy_gradient`, `similarity`, `weight`, `divergence`, `selected`, `subset/<selector>`.
    """
    prompts = tracked_prompts(learner.config.logging)
    seen = observe(learner, prompts, "tracked", Stopwatch(), every_signal=True)
    if not learner.world.first:
        return
    with torch.no_grad():
        logprobs_BT = token_logprobs(learner.policy, seen.rollout.texts_B, seen.rollout.tokens_BT)
        weight_BT = learner.weighting(logprobs_BT, seen.ref_logprobs_BT, seen.selection.selected_BT)
    shown = slice(None, None, seen.rollout.group_size)  # the first image of each group

    def maps(values_BT: Tensor) -> npt.NDArray[np.generic]:
        return values_BT[shown].reshape(-1, *seen.rollout.grid).cpu().numpy()

    arrays = {
        "prompts": np.array([prompt.text for prompt in prompts]),
        "images": learner.policy.decode(seen.rollout.tokens_BT)[shown],
        "entropy": maps(seen.signals.entropy_BT),
        "entropy_gradient": maps(entropy_gradient(seen.signals.entropy_BT, seen.rollout.grid)),
        "similarity": maps(seen.signals.similarity_BT),
        "weight": maps(weight_BT.float()),
        "divergence": maps(logprobs_BT - seen.ref_logprobs_BT),
        "selected": maps(seen.selection.selected_BT),
        "reward": seen.rewards_B[shown].cpu().numpy(),
        "advantage": seen.advantages_B[shown].cpu().numpy(),
    }
    arrays |= {f"subset/{name}": maps(chosen_BT) for name, chosen_BT in seen.selection.subsets.items()}
    run.save_token_maps(step, arrays)


def tracked_prompts(config: LoggingConfig) -> list[Prompt]:
    """The first prompts of the tracked set, tasks in turn."""
    tasks = prompts_by_task(config.tracked_prompt_set)
    turns = [prompt for prompts in zip(*tasks.values(), strict=False) for prompt in prompts]
    return turns[: config.tracked_prompts]

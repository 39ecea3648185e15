"""What selecting costs, measured: steps of a run's method and steps on all tokens, in turn in one process.

Both train the same policy on the same prompts and noise, so a machine that is busy or warm is so for both. The other
step is GRPO's: it computes no signal that nobody reads, and every token has weight 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gcpo_bench.config import RunConfig
from gcpo_bench.methods import METHODS
from gcpo_bench.runs import Run

from .learner import Learner, build_learner
from .loop import train_step
from .selectors import build_selectors
from .weighting import build_weighting


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Seconds of two steps, one after the other."""

    selecting_s: float
    all_tokens_s: float
    selection_s: float
    """Of the first, the part in which signals are computed and tokens selected."""

    def to_json(self) -> dict[str, Any]:
        return {
            "selecting_s": self.selecting_s,
            "all_tokens_s": self.all_tokens_s,
            "selection_s": self.selection_s,
        }


def paired_steps(run: Run, pairs: int, on_pair: Callable[[int, int], None] = lambda done, total: None) -> list[Pair]:
    """From the run's start, after one pair that warms up; which step is first changes from pair to pair.

    Nothing is written into the run.
    """
    own = build_learner(run.config, run)
    everything = on_all_tokens(own)
    found = []
    for index in range(pairs + 1):
        order = (own, everything) if index % 2 else (everything, own)
        metrics = {id(learner): train_step(learner, index + 1) for learner in order}
        found.append(
            Pair(
                selecting_s=metrics[id(own)]["time/step_s"],
                all_tokens_s=metrics[id(everything)]["time/step_s"],
                selection_s=metrics[id(own)]["time/selection_s"],
            )
        )
        on_pair(index, pairs)
    return found[1:]


def on_all_tokens(learner: Learner) -> Learner:
    """The same policy and optimiser with GRPO's selection and weight."""
    grpo = RunConfig.model_validate({"method": "grpo", **METHODS["grpo"].settings})
    config = learner.config.model_copy(update={"selection": grpo.selection, "weighting": grpo.weighting})
    return replace(
        learner,
        config=config,
        selectors=build_selectors(config.selection),
        weighting=build_weighting(config.weighting),
    )


def ratio(pairs: list[Pair]) -> float:
    """Median of the first step's seconds by the second's."""
    return statistics.median(pair.selecting_s / pair.all_tokens_s for pair in pairs)

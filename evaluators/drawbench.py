"""DrawBench (Imagen, arXiv 2205.11487): 200 prompts in 11 categories, scored by a panel of learned scorers.

There is no official metric: the paper asked people. Papers of this family print some of these scorers, each on its own
scale; here every scorer is given raw, over all prompts and per category, with a standard error over prompts. The first
scorer of the panel is the headline, `overall` and `task/<category>`.

A scorer that cannot score a picture leaves its value out and says why; the other scorers' values of it are kept.
Misspelt prompts are meant so and are not mended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.prompt_sets import load
from gcpo_bench.registry import SCORERS

from .metrics import stratified
from .scorers.published import require
from .scorers.scales import RAW, displayed
from .scorers.scales import scale as display_scale
from .scorers.types import Score, Scorer, Unscored, aspect_problem
from .types import Judged, Metric, SampleScore

CATEGORIES = {
    "Colors": 25,
    "Conflicting": 10,
    "Counting": 19,
    "DALL-E": 20,
    "Descriptions": 20,
    "Gary Marcus et al.": 10,
    "Misspellings": 10,
    "Positional": 20,
    "Rare Words": 7,
    "Reddit": 38,
    "Text": 21,
}
"""Prompts in each."""
PANEL = ("hps-v2.1", "image-reward", "pickscore", "clip-score", "aesthetic")
"""What runs in this process; `deqa` and `unified-reward` need a program of their own beside it."""


def drawbench_prompts() -> tuple[Prompt, ...]:
    """The 200 prompts, tagged by category. Raises as `prompt_sets.load`, and where the categories are others."""
    prompts = load("drawbench")
    counts = {category: sum(prompt.tag == category for prompt in prompts) for category in CATEGORIES}
    if counts != CATEGORIES or len(prompts) != sum(CATEGORIES.values()):
        raise CorruptDataError(
            "DrawBench's categories are not the published ones", hint="gcpo-bench data verify drawbench"
        )
    return prompts


class DrawBench:
    name = prompt_set = "drawbench"
    version = "1"

    def __init__(
        self,
        world: str = "",
        *,
        scorers: Sequence[str | Scorer] = PANEL,
        prompts: Sequence[Prompt] | None = None,
        scales: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            world: not used.
            scorers: registered names, or scorers; the first is the headline.
            prompts: instead of the published ones.
            scales: scorer -> the display scale of its metrics; raw where it is not named. See `scorers/scales.py`.
        Raises:
            ConfigError: no scorer, one twice, or an unknown scale. PrerequisiteError: prompts or weights are not there.
            CorruptDataError: the prompts are not the published ones.
        """
        self._given = {scorer if isinstance(scorer, str) else scorer.name: scorer for scorer in scorers}
        if not self._given or len(self._given) < len(scorers):
            raise ConfigError("DrawBench needs at least one scorer, each once", hint=f"known: {', '.join(SCORERS)}")
        self.headline = next(iter(self._given))
        self._scales = {name: (label, display_scale(name, label)) for name, label in (scales or {}).items()}
        self._prompts = drawbench_prompts() if prompts is None else tuple(prompts)
        require([scorer for scorer in scorers if isinstance(scorer, str)])

    @cached_property
    def scorers(self) -> Mapping[str, Scorer]:
        """Loaded when the first picture is scored: their weights are large."""
        return {
            name: SCORERS.load(scorer)() if isinstance(scorer, str) else scorer for name, scorer in self._given.items()
        }

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"scorers": [dict(scorer.identity) for scorer in self.scorers.values()]}

    def prompts(self) -> Sequence[Prompt]:
        return self._prompts

    def problem(self, image_YXC: npt.NDArray[np.uint8]) -> str:
        return aspect_problem(*image_YXC.shape[:2])

    def score(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> list[Judged]:
        """One raw value a scorer; the reason names the scorers that gave none."""
        texts = [prompt.text for prompt in prompts_B]
        given = {name: scorer.score(images_BYXC, texts) for name, scorer in self.scorers.items()}
        return [_judged({name: scores[row] for name, scores in given.items()}) for row in range(len(texts))]

    def summarize(self, samples: Sequence[SampleScore]) -> dict[str, Metric]:
        """`overall` and `task/<category>` of the headline, `<scorer>` and `<scorer>/<category>` of every scorer.

        Means over prompts, categories by their size. Pictures without a value are counted, never averaged as 0. A
        scorer that scored nothing is left out; empty where none did, or the headline did not.
        """
        metrics: dict[str, Metric] = {}
        for name in self._given:
            found = self._of_scorer(samples, name)
            if name == self.headline:
                if not found:
                    return {}
                metrics |= {f"task/{key}" if key else "overall": metric for key, metric in found.items()}
            metrics |= {f"{name}/{key}" if key else name: metric for key, metric in found.items()}
        return metrics

    def _of_scorer(self, samples: Sequence[SampleScore], name: str) -> dict[str, Metric]:
        """Of all prompts under "", and of each category."""
        label, display = self._scales.get(name, ("raw", RAW))
        tags = dict.fromkeys(sample.tag for sample in samples)
        metrics = {}
        for tag in ("", *tags):
            chosen = [sample for sample in samples if not tag or sample.tag == tag]
            scored = [sample for sample in chosen if name in sample.values]
            if scored:
                missing = len(chosen) - len(scored)
                metric = stratified(scored, name, by_prompt=True, unscored=missing, unit=label)
                metrics[tag] = displayed(metric, display)
        return metrics


def _judged(scores: Mapping[str, Score]) -> Judged:
    values = {name: score for name, score in scores.items() if not isinstance(score, Unscored)}
    reasons = [f"{name}: {score.reason}" for name, score in scores.items() if isinstance(score, Unscored)]
    return values, "\n".join(reasons), ()

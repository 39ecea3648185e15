"""DrawBench (Imagen, arXiv 2205.11487): 200 prompts in 11 categories, scored by a panel of learned scorers.

There is no official metric: the paper asked people. Papers of this family print some of these scorers, each on its own
scale; here every scorer is given raw, over all images and per category, with a standard error over prompts. The first
scorer of the panel is the headline, `overall` and `task/<category>`.

A scorer that cannot score a picture leaves its value out and says why; the other scorers' values of it are kept.
Misspelt prompts are meant so and are not mended. One image a prompt is asked for, unless the caller says otherwise:
published rows have 1 (HPSv2, MaskFocus), 4 (AR-GRPO) or 5 (DiffusionNFT), and how many is part of the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, did_you_mean
from gcpo_bench.prompt_sets import load

from .metrics import stratified
from .panel import OUTSIDE, Panel, PanelBenchmark
from .scorers.scales import RAW, displayed
from .scorers.scales import scale as display_scale
from .types import Metric, SampleScore

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


class DrawBench(PanelBenchmark):
    name = prompt_set = "drawbench"
    version = "1"
    images_per_prompt = 1

    def __init__(
        self, panel: Panel, read: Callable[[], Sequence[Prompt]], scales: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            panel: its first scorer is the headline.
            scales: scorer -> the display scale of its metrics; raw where it is not named. See `scorers/scales.py`.
        Raises:
            ConfigError: an unknown scorer or scale.
        """
        super().__init__(panel, read)
        self.headline = panel.names[0]
        for scorer in scales or {}:
            if scorer not in panel.names:
                raise ConfigError(f"scorer {scorer!r} is not on the panel", hint=did_you_mean(scorer, panel.names))
        self._scales = {scorer: (label, display_scale(scorer, label)) for scorer, label in (scales or {}).items()}

    def settings(self) -> dict[str, Any]:
        return {"scales": {scorer: label for scorer, (label, _) in self._scales.items()}}

    def summarize(self, samples: Sequence[SampleScore]) -> dict[str, Metric]:
        """`overall` and `task/<category>` of the headline, `<scorer>` and `<scorer>/<category>` of every scorer.

        Means over images, errors over prompts. Pictures without a value are counted, never averaged as 0. A
        scorer that scored nothing is left out; empty where none did, or the headline did not.
        """
        metrics: dict[str, Metric] = {}
        for scorer in self.panel.names:
            found = self._of_scorer(samples, scorer)
            if scorer == self.headline:
                if not found:
                    return {}
                metrics |= {f"task/{tag}" if tag else "overall": metric for tag, metric in found.items()}
            metrics |= {f"{scorer}/{tag}" if tag else scorer: metric for tag, metric in found.items()}
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


def drawbench(world: str = "", *, options: Mapping[str, Any] | None = None, device: str | None = None) -> DrawBench:
    """With the weights and prompts on this machine.

    Args:
        world: not used.
        options: `scorers`, names with + between, default `PANEL`; and `scale.<scorer>`, a display scale.
    Raises ConfigError for an unknown option, scorer or scale; what is missing is told by `prompts`.
    """
    given = dict(options or {})
    names = [name.strip() for name in str(given.pop("scorers", "+".join(PANEL))).split("+")]
    scales = {str(key).removeprefix("scale."): str(given.pop(key)) for key in list(given) if key.startswith("scale.")}
    if given:
        raise ConfigError(f"DrawBench has no option {next(iter(given))!r}", hint="known: scorers, scale.<scorer>")
    panel = Panel(names, options={name: {"device": device} for name in names if name not in OUTSIDE})
    return DrawBench(panel, drawbench_prompts, scales)

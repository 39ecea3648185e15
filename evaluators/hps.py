"""HPS: pictures scored with the Human Preference Score, on the benchmark's 4 x 800 prompts or on the GCPO family's 400.

The two presets are different benchmarks, and so are v2.0 and v2.1 of the score. `hps-benchmark` is HPSv2's own: one
picture a prompt. `hps-gcpo400` is what GCPO and MaskFocus score (and very probably print as "HPS"): 400 prompts, 100 a
style in order, one picture each, plain mean.

Files hold cosines; the metrics are cosines times 100, as every table prints them. `published_summary` is HPSv2's own:
for each style, mean and standard deviation of the means of ten groups of 80.

Sources: tgxs002/HPSv2 `hpsv2/evaluation.py`; zghhui/GCPO `llamaGen/hpsv2`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, did_you_mean
from gcpo_bench.prompt_sets import load

from .images import ImageSet
from .layouts import of_hps_folder
from .metrics import stratified
from .panel import Panel, PanelBenchmark
from .scorers.scales import displayed, scale
from .types import Metric, SampleScore

if TYPE_CHECKING:
    from .scorers.compute import Precision

STYLES = ("anime", "concept-art", "paintings", "photo")
PROMPTS_PER_STYLE = {"hps-benchmark": 800, "hps-gcpo400": 100}
GROUP = 80
"""Prompts in one of HPSv2's groups."""
DISPLAY = "x100"


def benchmark_prompts() -> tuple[Prompt, ...]:
    """HPSv2's 3,200 prompts, ids `anime-00000` and so on. Raises as `prompt_sets.load`."""
    return load("hps-benchmark")


def gcpo_prompts() -> tuple[Prompt, ...]:
    """The 400 prompts of the GCPO family; the file names no styles, its order does. Raises as `prompt_sets.load`."""
    rows = load("hps-gcpo400")
    block = PROMPTS_PER_STYLE["hps-gcpo400"]
    return tuple(replace(prompt, metadata={"tag": STYLES[row // block]}) for row, prompt in enumerate(rows))


class HpsBenchmark(PanelBenchmark):
    """One of the two presets."""

    version = "1"
    images_per_prompt = 1

    def __init__(self, preset: str, panel: Panel, read: Callable[[], Sequence[Prompt]]) -> None:
        """`panel` has one scorer, whose values are cosines."""
        super().__init__(panel, read)
        self.name = self.prompt_set = preset
        self.official_layout = "anime/00000.jpg" if preset == "hps-benchmark" else ""
        (self.headline,) = panel.names

    def official_pictures(self, folder: Path, prompts: Sequence[Prompt], images_per_prompt: int) -> ImageSet | None:
        """A folder in HPSv2's layout; None where it is none, or this preset has no layout."""
        return of_hps_folder(folder, prompts) if self.name == "hps-benchmark" else None

    def summarize(self, samples: Sequence[SampleScore]) -> dict[str, Metric]:
        """`overall`, the mean over pictures, and `task/<style>`, times 100; pictures without a score are counted.

        On a complete `hps-benchmark` also `group_std/<style>`, HPSv2's spread over groups. Empty where nothing was
        scored.
        """
        scored = [sample for sample in samples if self.headline in sample.values]
        if not scored:
            return {}
        metrics = {"overall": self._metric(scored, len(samples))}
        for style in STYLES:
            of_style = [sample for sample in scored if sample.tag == style]
            if of_style:
                metrics[f"task/{style}"] = self._metric(of_style, sum(sample.tag == style for sample in samples))
        if self.name == "hps-benchmark" and is_complete(samples, self.headline):
            for style, summary in published_summary(samples, self.headline).items():
                metrics[f"group_std/{style}"] = Metric(
                    value=summary.std,
                    stderr=float("nan"),
                    n=PROMPTS_PER_STYLE[self.name],
                    higher_is_better=False,
                    unit=DISPLAY,
                )
        return metrics

    def _metric(self, scored: Sequence[SampleScore], images: int) -> Metric:
        metric = stratified(scored, self.headline, by_prompt=True, unscored=images - len(scored), unit=DISPLAY)
        return displayed(metric, scale("hps-v2.1", DISPLAY))


def hps_benchmark(
    world: str = "", *, options: Mapping[str, Any] | None = None, device: str | None = None
) -> HpsBenchmark:
    """HPSv2's benchmark, with the weights and prompts on this machine.

    Args:
        world: not used.
        options: `version` (v2.1 or v2.0), `backend` (transformers or hpsv2), `antialias`, `fit` (pad or crop) and
            `precision` (float32 or autocast), as text.
    Raises ConfigError for an unknown option; what is missing is told by `prompts`.
    """
    panel = _panel(options or {}, device)
    return HpsBenchmark("hps-benchmark", panel, benchmark_prompts)


def hps_gcpo400(
    world: str = "", *, options: Mapping[str, Any] | None = None, device: str | None = None
) -> HpsBenchmark:
    """The GCPO family's 400 prompts; as `hps_benchmark`."""
    panel = _panel(options or {}, device)
    return HpsBenchmark("hps-gcpo400", panel, gcpo_prompts)


CHOICES: Mapping[str, Mapping[str, Any]] = {
    "version": {"v2.1": "v2.1", "v2.0": "v2.0"},
    "backend": {"transformers": "hps", "hpsv2": "hpsv2-package"},
    "antialias": {"true": True, "false": False},
    "fit": {"pad": "pad", "crop": "crop"},
    "precision": {"float32": "float32", "autocast": "autocast"},
}
"""Option -> what may be given; the first is the default."""


def _panel(options: Mapping[str, Any], device: str | None) -> Panel:
    for key, value in options.items():
        if key not in CHOICES:
            raise ConfigError(f"HPS has no option {key!r}", hint=did_you_mean(key, CHOICES))
        if str(value).lower() not in CHOICES[key]:
            raise ConfigError(f"HPS option {key} cannot be {value!r}", hint=f"known: {', '.join(CHOICES[key])}")
    chosen = {key: choices[str(options.get(key, next(iter(choices)))).lower()] for key, choices in CHOICES.items()}
    name = f"{chosen.pop('backend')}-{chosen.pop('version')}"
    if name.startswith("hpsv2"):
        for key in ("antialias", "fit"):
            chosen.pop(key)
            if key in options:
                raise ConfigError(
                    f"HPS option {key} has no effect on the package hpsv2", hint="leave it out, or backend=hpsv2"
                )
    asked = {}
    for key, value in chosen.items():
        if key in options:
            part = {key: _seen_precision(value, device)} if key == "precision" else {"preprocessing": {key: value}}
            asked[f"{key}={str(value).lower()}"] = {"scorers": {name: part}}
    return Panel([name], options={name: {**chosen, "device": device}}, asked=asked)


def _seen_precision(precision: Precision, device: str | None) -> Any:
    """What a look says of it: autocast has no effect on a CPU."""
    from .scorers.compute import on

    return on(device, precision).identity["precision"]


# ---------------------------------------------------------------- as hpsv2 prints it


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleSummary:
    """Times 100; the package prints the mean with 2 decimals, the deviation with 4."""

    mean: float
    """Of the group means."""
    std: float
    """Of the group means, population form."""


def is_complete(samples: Sequence[SampleScore], scorer: str) -> bool:
    """Whether these are 800 scored pictures of each style, one a prompt."""
    scored = [sample for sample in samples if scorer in sample.values]
    per_style = [sum(sample.tag == style for sample in scored) for style in STYLES]
    whole = [PROMPTS_PER_STYLE["hps-benchmark"]] * len(STYLES)
    return per_style == whole == [len({s.prompt_id for s in scored if s.tag == style}) for style in STYLES]


def published_summary(samples: Sequence[SampleScore], scorer: str = "hps-v2.1") -> dict[str, StyleSummary]:
    """HPSv2's figures of each style, from a complete evaluation.

    Raises ValueError where pictures are missing: the package then shifts its groups and prints a figure all the same.
    """
    if not is_complete(samples, scorer):
        raise ValueError("HPSv2's summary needs one scored picture for each of its 3,200 prompts")
    summaries = {}
    for style in STYLES:
        of_style = sorted((sample for sample in samples if sample.tag == style), key=lambda sample: sample.prompt_id)
        values = 100 * np.array([sample.values[scorer] for sample in of_style])
        means = values.reshape(-1, GROUP).mean(axis=1)
        summaries[style] = StyleSummary(mean=float(means.mean()), std=float(means.std()))
    return summaries

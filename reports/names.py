"""What tables and figures call a variant: short, readable, and another name for each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gcpo_bench.methods import METHODS
from gcpo_bench.variants import MADE, PUBLISHED_RATIO, acting, even_ratio, name_of, ratio_text

from .tables import plain

if TYPE_CHECKING:
    from .load import LoadedRun

START_WEIGHTS = "policy.start_weights"
MOST_DETAILS = 3
"""Settings that a label tells; of the rest their number."""
LONGEST = 40
"""Characters of a name that a plan gave, and of a value."""


def labels(runs: Mapping[str, Sequence[LoadedRun]], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Variant -> the name that a plan gave it, else that of its settings, with whatever tells it from its namesakes.

    Args:
        runs: of each variant. settings: of each variant, by dotted key.
    """
    several = len({of_variant[0].config.policy.name for of_variant in runs.values()}) > 1
    names = {}
    for key, of_variant in runs.items():
        name = _given(of_variant) or _own(of_variant[0])
        names[key] = f"{of_variant[0].config.policy.name} {name}" if several else name
    found = {}
    for key, name in names.items():
        namesakes = {other: runs[other][0] for other in names if names[other] == name}
        details = _details(key, namesakes, settings)
        found[key] = f"{name} ({', '.join(details)})" if details else name
    return _numbered(found)


def _own(run: LoadedRun) -> str:
    return "start" if run.is_start else name_of(run.config)


def _given(runs: Sequence[LoadedRun]) -> str:
    """What a plan called it, if all of its runs agree; what is a method's name only where it is that method."""
    given = {run.config.logging.variant for run in runs}
    name = given.pop() if len(given) == 1 else ""
    return plain(name, LONGEST) if name == _own(runs[0]) or name not in (*METHODS, "start") else ""


def _details(key: str, runs: Mapping[str, LoadedRun], settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of one of these namesakes: its ratio, and other settings in which they differ."""
    told = [] if runs[key].is_start else _ratio(runs[key], list(runs.values()))
    flats = {other: {**_others(settings[other]), **signals(run)} for other, run in runs.items()}
    differing = sorted(
        setting
        for setting in set().union(*flats.values())
        if len({json.dumps(flat.get(setting), sort_keys=True) for flat in flats.values()}) > 1
    )
    if START_WEIGHTS in differing:  # which they are, not where they lay
        differing = [setting for setting in differing if not setting.endswith("weights")]
        weights = str(settings[key].get(START_WEIGHTS, "unknown"))
        told.append(f"weights {weights.removeprefix('xxh3:')[:8]}")
    told += [f"{setting}={plain(str(flats[key].get(setting, 'none')), LONGEST)}" for setting in differing]
    more = [f"{len(told) - MOST_DETAILS} more"] if len(told) > MOST_DETAILS else []
    return [*told[:MOST_DETAILS], *more]


def _ratio(own: LoadedRun, namesakes: Sequence[LoadedRun]) -> list[str]:
    """Where namesakes differ in it; else where it is not the published one, unless a plan named the variant."""
    text = ratio_text(own.config)
    differ = len({ratio_text(run.config) for run in namesakes}) > 1
    usual = text == "no ratio" or even_ratio(own.config) == PUBLISHED_RATIO or bool(own.config.logging.variant)
    return [text] if differ or not usual else []


def _others(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the name does not tell."""
    return {k: v for k, v in settings.items() if k.split(".")[0] not in ("method", "selection", "weighting")}


def signals(run: LoadedRun) -> dict[str, Any]:
    """How the signals are made that its selectors look at."""
    settings = acting(run.config)
    return {key: settings[key] for key in (f"selection.{name}" for name in MADE) if key in settings}


def _numbered(labels: Mapping[str, str]) -> dict[str, str]:
    """Those that came out the same are numbered."""
    count, seen = Counter(labels.values()), Counter[str]()
    found = {}
    for key, label in labels.items():
        seen[label] += 1
        found[key] = f"{label} #{seen[label]}" if count[label] > 1 else label
    return found

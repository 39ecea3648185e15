"""The claims that are not about scores: what selecting costs, and what the first tokens decide.

Both are tested on studies that `gcpo-bench analyze` leaves in runs, one method at a time. What varies is the run and
what is repeated inside it (pairs of steps, prompts), so the interval is the two-way one of `statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .load import ReportData, Variant
from .statistics import Floats, Interval, at_least, mirrored, two_way_difference
from .tables import number

OVERHEAD = 0.02
"""What "about 1 %" of a step's time is allowed to be."""
PER_TOKENS = 100
"""Change that is told for each so many tokens that could change."""
OVERHEAD_STUDY, PERTURBATION_STUDIES = "overhead", ("perturb-pair", "perturb")
"""Names of the analyses; of the second claim the first that a method's runs have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a study says of one method; not tested where it has no p."""

    words: str
    method: str = ""
    p_for: float = math.nan
    """Small: the claim holds."""
    p_against: float = math.nan
    """Small: the opposite holds."""


def selection_overhead(data: ReportData) -> list[Measured]:
    """Time of a step that selects and weighs against one on all tokens that looks at nothing, pair by pair."""
    found = [_overhead(variant) for variant in data.trained if _records(variant, (OVERHEAD_STUDY,))]
    return found or [Measured(words="no run has timed it (gcpo-bench analyze overhead RUN)")]


def _overhead(variant: Variant) -> Measured:
    records = _records(variant, (OVERHEAD_STUDY,))
    pairs = min(len(record["pairs"]) for record in records)
    log_SP = np.log([[pair["selecting_s"] / pair["all_tokens_s"] for pair in r["pairs"][:pairs]] for r in records])
    if len(records) < 2:
        percent = number(100 * math.expm1(log_SP.mean()), 2, signed=True)
        return Measured(method=variant.label, words=_one_run(variant, f"a step takes {percent} % longer"))
    interval = two_way_difference(log_SP, np.zeros_like(log_SP), [""] * pairs, by_prompt=True)
    bound = math.log1p(OVERHEAD)
    value, low, high = (number(100 * math.expm1(x), 2, signed=True) for x in _edges(interval))
    return Measured(
        method=variant.label,
        words=f"a step of {variant.label} takes {value} % [{low}, {high}] longer than one on all tokens that looks at "
        f"none of the signals, {pairs} pairs of steps in each of {len(records)} runs; the bound is "
        f"{100 * OVERHEAD:g} %",
        p_for=at_least(mirrored(interval), -bound),
        p_against=at_least(interval, bound),
    )


def initial_tokens_matter(data: ReportData) -> list[Measured]:
    """Does noise in the first tokens change the coarse image more than noise later, with equally many to follow?"""
    found = [_first_tokens(variant) for variant in data.variants if _records(variant, PERTURBATION_STUDIES)]
    return found or [Measured(words="no run has a perturbation study (gcpo-bench analyze perturb RUN)")]


def _first_tokens(variant: Variant) -> Measured:
    records = _records(variant, PERTURBATION_STUDIES)
    kinds = {_kind(record) for record in records}
    if len(kinds) > 1:
        return Measured(
            method=variant.label, words=f"the studies of {variant.label} differ in their noise, ranges or what followed"
        )
    prompts = sorted(set.intersection(*(set(record["prompts"]) for record in records)))
    if not prompts:
        return Measured(method=variant.label, words=f"the studies of {variant.label} share no prompt")
    tags = _tags(records[0], prompts)
    difference_SP = np.array([first_against_later(record, prompts) for record in records])
    unit = "points" if _equal_reach(records[0]) else f"points for each {PER_TOKENS} tokens that could change"
    if len(records) < 2:
        told = f"{number(100 * difference_SP.mean(), 1, signed=True)} {unit}"
        return Measured(method=variant.label, words=_one_run(variant, f"the first tokens' noise moves it {told} more"))
    interval = two_way_difference(difference_SP, np.zeros_like(difference_SP), tags, by_prompt=True)
    value, low, high = (number(100 * x, 1, signed=True) for x in _edges(interval))
    return Measured(
        method=variant.label,
        words=f"{variant.label}: noise in tokens {_range(records[0], 0)} changes the coarse image by {value} "
        f"[{low}, {high}] {unit} more than noise in {_later(records[0])}, {len(prompts)} prompts, {len(records)} runs",
        p_for=at_least(interval, 0.0),
        p_against=at_least(mirrored(interval), 0.0),
    )


def first_against_later(record: Mapping[str, Any], prompts: Sequence[str]) -> list[float]:
    """Coarse change by the first range minus the mean of the later ones, a value a prompt.

    An earlier range has more tokens after it, and in any causal model each of them may come out otherwise. So what is
    compared is the change for each PER_TOKENS tokens that could change: those of the range, and those after it that
    were drawn anew. Where these are as many for every range, it is the change itself.
    """
    row = {prompt: index for index, prompt in enumerate(record["prompts"])}
    ranges = record["ranges"]
    share = [1.0 if _equal_reach(record) else PER_TOKENS / reach(record, item) for item in ranges]
    first, *later = (
        np.array([item["coarse_by_prompt"][row[prompt]] for prompt in prompts]) * each
        for item, each in zip(ranges, share, strict=True)
    )
    difference: Floats = first - np.mean(later, axis=0)
    return [float(value) for value in difference]


def reach(record: Mapping[str, Any], item: Mapping[str, Any]) -> int:
    """Tokens that could change: of the range, and after it; a study without that number drew all that follow anew."""
    last = record["grid"][0] * record["grid"][1] - 1
    return int(item["last"]) - int(item["first"]) + 1 + int(item.get("successors", last - item["last"]))


def _equal_reach(record: Mapping[str, Any]) -> bool:
    return len({reach(record, item) for item in record["ranges"]}) == 1


def _kind(record: Mapping[str, Any]) -> str:
    ranges = [(item["first"], item["last"], reach(record, item)) for item in record["ranges"]]
    return repr((record["noise"], record["grid"], ranges))


def _range(record: Mapping[str, Any], index: int) -> str:
    item = record["ranges"][index]
    return f"{item['first']} to {item['last']}"


def _later(record: Mapping[str, Any]) -> str:
    ranges = record["ranges"]
    return f"tokens {_range(record, 1)}" if len(ranges) == 2 else f"as many of the {len(ranges) - 1} later ranges"


def _tags(record: Mapping[str, Any], prompts: Sequence[str]) -> list[str]:
    tags = dict(zip(record["prompts"], record.get("tags") or [], strict=False))
    return [str(tags.get(prompt, "")) for prompt in prompts]


def _records(variant: Variant, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """Of each of its runs that has the first of these studies that any has."""
    for name in names:
        if found := [run.analyses[name].record for run in variant.runs if name in run.analyses]:
            return found
    return []


def _one_run(variant: Variant, found: str) -> str:
    return f"one run of {variant.label} is about one checkpoint, not about a method; in it {found}"


def _edges(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high

"""Variant against variant on the same prompts: the numbers, and what they allow one to say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from gcpo_bench.files import inline_yaml

from .evaluations import Evaluation, flatten
from .load import ReportData, Variant, other_settings
from .measures import Measure
from .power import LEVEL as LEVEL
from .power import data_factor, minimum_detectable_effect
from .references import Reference
from .seeds import SeedVariance, seed_variance
from .statistics import (
    Interval,
    PromptScores,
    equivalence_p,
    holm,
    never_certain,
    paired_difference,
    score_interval,
    two_way_difference,
    wilson,
)
from .tables import number, plain

Against = Literal["baseline", "start", "reference"]
Verdict = Literal["better", "worse", "equivalent", "cannot tell"]
MOST_EFFORT = 1000
"""Times the data; beyond it the number says nothing more."""
MOST_KEYS = 4
"""Of an identity that are named where they differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """a - b on one value of one benchmark."""

    a: str
    b: str
    against: Against
    benchmark: str
    measure: Measure
    interval: Interval
    p_value: float
    """Below 5 % where the interval leaves out 0: of the same standard error and degrees of freedom."""
    p_holm: float
    """Adjusted over all comparisons of the report on this benchmark."""
    level: float = LEVEL
    """What p must be below to count, with the other comparisons of the family as they are."""
    settings_that_differ: tuple[str, ...]
    """Configuration keys that differ though the methods do not ask for it."""
    dropped_prompts: int
    """Prompts that one side did not score, so that they cannot be paired."""
    a_is_trained: bool = True
    """Else it is an image set too, and nothing is said about checkpoints and seeds."""

    @property
    def detectable(self) -> float:
        """The true difference that would be found four times in five, as one of its family."""
        return minimum_detectable_effect(self.interval, level=self.level)

    @property
    def verdict(self) -> Verdict:
        """Decided by the interval; the adjusted p can only take a claim back."""
        clear = self.interval.low > 0 or self.interval.high < 0
        if not clear or not self.p_holm < LEVEL:
            margin = self.measure.margin
            same = margin is not None and equivalence_p(self.interval, margin) < LEVEL
            return "equivalent" if same else "cannot tell"
        return "better" if (self.interval.value > 0) == self.measure.higher_is_better else "worse"

    @property
    def identical(self) -> bool:
        return self.interval.value == 0 and self.interval.stderr == 0

    @property
    def effort(self) -> float:
        """How many times the data it would take to detect the difference seen, or one point if it is smaller."""
        wanted = max(abs(self.interval.value), self.measure.worth_knowing)
        return data_factor(self.interval, wanted, level=self.level) if wanted else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCompared:
    a: str
    b: str
    benchmark: str
    reason: str


def variant_score(
    variant: Variant | Reference, benchmark: str, measure: Measure, task: str | None = None
) -> Interval | None:
    """Mean of the task means or of the prompts (of one task, if it is named); None where nothing was scored."""
    by_seed = {seed: _only(scores, task) for seed, scores in variant.scores(benchmark, measure.name).items()}
    by_seed = {seed: scores for seed, scores in by_seed.items() if scores}
    if not by_seed:
        return None
    if len(by_seed) == 1:
        interval = score_interval(next(iter(by_seed.values())), by_prompt=measure.by_prompt)
    else:
        prompts, tags = _common(list(by_seed.values()))
        if not prompts:
            return None
        scores_SP = np.array([[scores[prompt][1] for prompt in prompts] for scores in by_seed.values()])
        interval = two_way_difference(scores_SP, np.zeros_like(scores_SP), tags, by_prompt=measure.by_prompt)
    if measure.is_share and interval.stderr == 0 and interval.value in (0.0, 1.0):
        # all wrong or all right shows no spread, but a few prompts more might have
        return replace(wilson(round(interval.value * interval.n), interval.n), seeds=interval.seeds)
    # no count is below 0 and no share above 1, however few the seeds
    floor, ceiling = measure.bounds
    low, high = max(interval.low, min(floor, interval.value)), min(interval.high, max(ceiling, interval.value))
    return replace(interval, low=low, high=high)


def compare_all(data: ReportData, benchmark: str) -> tuple[list[Comparison], list[NotCompared]]:
    """Each trained variant against GRPO and against its start, on each value of the panel; Holm over all of them."""
    found: list[Comparison] = []
    refused: list[NotCompared] = []
    panel = data.panel(benchmark)
    for variant in data.trained:
        peers = data.peers_of(variant)
        for against, other in (("baseline", data.baseline_of(variant)), ("start", data.start_of(variant))):
            if other is None:
                continue
            kind: Against = "baseline" if against == "baseline" else "start"
            outcomes = [compare(variant, other, benchmark, measure, kind, peers) for measure in panel]
            found += [outcome for outcome in outcomes if isinstance(outcome, Comparison)]
            refused += _once([outcome for outcome in outcomes if isinstance(outcome, NotCompared)])
    return adjusted(found), refused


def compare_references(data: ReportData, benchmark: str) -> tuple[list[Comparison], list[NotCompared]]:
    """Each trained variant against each image set that is no run, then these with each other; Holm over all."""
    found: list[Comparison] = []
    refused: list[NotCompared] = []
    trained = [variant for variant in data.trained if variant.evaluations(benchmark)]
    references = [reference for reference in data.references if reference.evaluations(benchmark)]
    pairs: list[tuple[Variant | Reference, Reference]] = [(v, reference) for reference in references for v in trained]
    pairs += combinations(references, 2)
    for measure in data.panel(benchmark):
        for a, b in pairs:
            outcome = compare(a, b, benchmark, measure, "reference", data.peers_of(a) if isinstance(a, Variant) else ())
            (found if isinstance(outcome, Comparison) else refused).append(outcome)  # type: ignore[arg-type]
    return adjusted(found), list({(each.a, each.b, each.reason): each for each in refused}.values())


def better_pairs(data: ReportData, benchmark: str) -> set[tuple[str, str]]:
    """(a, b) where the variant a is proven better than the variant b; Holm over all pairs of trained variants."""
    measure = data.headline(benchmark)
    outcomes = [
        compare(a, b, benchmark, measure, "baseline", data.peers_of(a)) for a, b in combinations(data.trained, 2)
    ]
    found = adjusted([outcome for outcome in outcomes if isinstance(outcome, Comparison)])
    return {(c.a, c.b) if c.verdict == "better" else (c.b, c.a) for c in found if c.verdict in ("better", "worse")}


def adjusted(found: list[Comparison]) -> list[Comparison]:
    """Holm over one family."""
    p_values = holm([comparison.p_value for comparison in found])
    proven = sum(p < LEVEL for p in p_values)
    # Holm asks of the k-th smallest p to be below 5 % over those that are left
    left = [len(found) - proven + (p < LEVEL) for p in p_values]
    return [
        replace(comparison, p_holm=p, level=LEVEL / max(others, 1))
        for comparison, p, others in zip(found, p_values, left, strict=True)
    ]


def _once(refused: list[NotCompared]) -> list[NotCompared]:
    """One reason is said once, not for every scorer."""
    return list({each.reason: each for each in refused}.values())


def compare(
    a: Variant | Reference,
    b: Variant | Reference,
    benchmark: str,
    measure: Measure,
    against: Against,
    peers: Sequence[Variant] = (),
) -> Comparison | NotCompared:
    """Paired by prompt, and by seed where both have it; what has no seeds (the start, other image sets) stands against
    each of them.

    Args:
        peers: variants of the same grid, `a` among them (and `b`, where it was trained), that lend each other what
            they show of how much seeds vary; see `ReportData.peers_of`.
    """

    def refuse(reason: str) -> NotCompared:
        return NotCompared(a=a.label, b=b.label, benchmark=benchmark, reason=reason)

    a_scores, b_scores = a.scores(benchmark, measure.name), b.scores(benchmark, measure.name)
    for variant, scores in ((a, a_scores), (b, b_scores)):
        if not scores:
            return refuse(f"{variant.label} has no {measure.name!r} on {benchmark}")
    weights = [variant.settings.get("policy.start_weights") for variant in (a, b)]
    if against == "baseline" and all(weights) and weights[0] != weights[1]:
        return refuse("they were trained from different weights")
    if difference := _identity_difference(a, b, benchmark, against):
        return refuse(f"they were not evaluated alike: {difference}")
    if against != "baseline":
        pairs = [(scores, next(iter(b_scores.values()))) for _, scores in sorted(a_scores.items())]
    else:
        seeds = sorted(a_scores.keys() & b_scores.keys())
        if not seeds:
            return refuse(f"they share no training seed: {sorted(a_scores)} and {sorted(b_scores)}")
        pairs = [(a_scores[seed], b_scores[seed]) for seed in seeds]
    prompts, tags = _common([scores for pair in pairs for scores in pair])
    if not prompts:
        return refuse("they share no scored prompt")
    paired = against == "baseline"
    lend = len(pairs) > 1 and (not paired or any(peer is b for peer in peers))
    lent = _seed_variance(peers, benchmark, measure, paired=paired) if lend else None
    interval = interval_of(pairs, prompts, tags, measure, lent)
    p_value = 1.0 if math.isnan(interval.p_value) else interval.p_value
    everything = {prompt for pair in pairs for scores in pair for prompt in scores}
    return Comparison(
        a=a.label,
        b=b.label,
        against=against,
        benchmark=benchmark,
        measure=measure,
        interval=interval,
        p_value=p_value,
        p_holm=p_value,
        settings_that_differ=_other_settings(a, b) if against == "baseline" else (),
        dropped_prompts=len(everything) - len(prompts),
        a_is_trained=isinstance(a, Variant),
    )


def _other_settings(a: Variant | Reference, b: Variant | Reference) -> tuple[str, ...]:
    return tuple(other_settings(a, b)) if isinstance(a, Variant) and isinstance(b, Variant) else ()


def interval_of(
    pairs: Sequence[tuple[PromptScores, PromptScores]],
    prompts: Sequence[str],
    tags: Sequence[str],
    measure: Measure,
    seeds: SeedVariance | None = None,
) -> Interval:
    """Of the first minus the second of each pair (one pair a seed) on these prompts; never certain.

    On an open scale a prompt can change by the range of the values seen; see `never_certain`.
    """
    if len(pairs) == 1:
        first, second = ({prompt: scores[prompt] for prompt in prompts} for scores in pairs[0])
        interval = paired_difference(first, second, by_prompt=measure.by_prompt)
    else:
        a_SP, b_SP = (np.array([[pair[side][prompt][1] for prompt in prompts] for pair in pairs]) for side in (0, 1))
        interval = two_way_difference(a_SP, b_SP, tags, by_prompt=measure.by_prompt, seeds=seeds)
    if measure.is_share:
        return never_certain(interval)
    seen = [scores[prompt][1] for pair in pairs for scores in pair for prompt in prompts]
    return never_certain(interval, reach=max(seen) - min(seen), limit=math.inf)


def _seed_variance(peers: Sequence[Variant], benchmark: str, measure: Measure, *, paired: bool) -> SeedVariance | None:
    """From the seeds and prompts that all peers of several seeds share; None where there are too few."""
    by_variant = [scores for peer in peers if len(scores := peer.scores(benchmark, measure.name)) > 1]
    seeds = sorted(set.intersection(*(set(scores) for scores in by_variant))) if by_variant else []
    prompts, tags = _common([table for scores in by_variant for table in scores.values()]) if by_variant else ([], [])
    if len(seeds) < 2 or not prompts:
        return None
    sizes = Counter(tags)
    weights_P = np.array([1 / len(prompts) if measure.by_prompt else 1 / len(sizes) / sizes[tag] for tag in tags])
    scores_RS = [
        [float(weights_P @ [scores[seed][prompt][1] for prompt in prompts]) for seed in seeds] for scores in by_variant
    ]
    distinct_RS = np.unique(scores_RS, axis=0)  # the same run under two names is no second example
    return seed_variance(distinct_RS, paired=paired) if len(distinct_RS) > 1 else None


def sentences(data: ReportData, benchmarks: Sequence[str]) -> list[str]:
    """What may be said of the runs at hand, on each benchmark as one family."""
    found = []
    for benchmark in benchmarks:
        compared = by_measure(compare_all(data, benchmark)[0], data.panel(benchmark))
        named = len(benchmarks) > 1
        found += [sentence(c, len(compared), named=named or not c.measure.is_share) for c in compared]
    return found


def by_measure(compared: Sequence[Comparison], panel: Sequence[Measure]) -> list[Comparison]:
    """The headline's first, of these those with the baseline; variants keep their order."""
    return sorted(compared, key=lambda c: (panel.index(c.measure), c.against != "baseline"))


def sentence(c: Comparison, family: int, *, named: bool = False) -> str:
    """What may be said, and no more: about the method where there are several seeds, else about the checkpoint.

    `named`: begin with what it is measured by.
    """
    measure = c.measure
    several = c.interval.seeds > 1
    who = f"{c.a}" if several or not c.a_is_trained else f"this {c.a} checkpoint"
    where = f"{c.benchmark}, {measure.label}: " if not measure.is_verdict else f"{c.benchmark}: "
    where = where if named else ""
    subject = who[0].upper() + who[1:] if who.startswith("this ") and not where else who
    whom = "the start" if c.against == "start" else c.b
    difference = f"{measure.interval(c.interval, signed=True)}{measure.points}"
    closest, furthest = map(measure.text, sorted((abs(c.interval.low), abs(c.interval.high))))
    seeds = f", {c.interval.seeds} seed{'s' if several else ''}" if c.a_is_trained else ""
    basis = f"{c.interval.n} prompts{seeds}"
    cannot = f"{where}{'cannot' if where else 'Cannot'} tell {who} from {whom}"
    if math.isnan(c.interval.stderr):
        return f"{cannot}: {c.interval.n} prompts show no spread to judge {difference} by."
    if c.identical:
        return f"{where}{subject} and {whom} score the same on every prompt ({basis})."
    if c.verdict == "equivalent":
        both = f"{where}{subject} and {whom} are equivalent within {measure.text(measure.margin or 0)}{measure.points}"
        return f"{both}: {difference} ({basis})."
    if c.verdict != "cannot tell":
        size = measure.text(abs(c.interval.value))
        return (
            f"{where}{subject} is {c.verdict} than {whom} by {size}{measure.points} "
            f"(95 % interval {closest} to {furthest}; {basis})."
        )
    text = f"{cannot}: {difference} ({basis})."
    if c.interval.low > 0 or c.interval.high < 0:
        text += f" Alone it would count, but not as one of {family} comparisons (adjusted p {number(c.p_holm, 3)})."
    found, among = f"{measure.text(c.detectable)}{measure.points}", "" if c.level == LEVEL else ", as one of these"
    if measure.is_share and c.detectable > 1:
        mend = "train more seeds" if several else "evaluate more prompts"
        return f"{text} No difference that scores can have would be found four times in five{among}; {mend}."
    text += f" A true difference of {found} would be found four times in five{among};"
    target = "the difference seen" if abs(c.interval.value) >= measure.worth_knowing else "one point"
    more = "prompts and seeds" if several else "prompts"
    decimals = 1 if c.effort < 10 else 0
    times = f"about {c.effort:.{decimals}f}" if c.effort < MOST_EFFORT else f"more than {MOST_EFFORT}"
    return text + f" to find {target} takes {times} times as many {more}."


def _common(tables: Sequence[PromptScores]) -> tuple[list[str], list[str]]:
    """Prompts that all tables hold, in order, and their tasks."""
    prompts = sorted(set.intersection(*(set(table) for table in tables)))
    return prompts, [tables[0][prompt][0] for prompt in prompts]


def _only(scores: PromptScores, task: str | None) -> PromptScores:
    return scores if task is None else {prompt: entry for prompt, entry in scores.items() if entry[0] == task}


def _identity_difference(a: Variant | Reference, b: Variant | Reference, benchmark: str, against: Against) -> str:
    def identity(evaluation: Evaluation) -> dict[str, object]:
        found = evaluation.judged_identity() if against == "reference" else evaluation.comparable_identity()
        return flatten(found)

    identities = [identity(each) for side in (a, b) for each in side.evaluations(benchmark)]
    differences = [differing(identities[0], other) for other in identities[1:] if other != identities[0]]
    return "; ".join(dict.fromkeys(differences))


def differing(a: Mapping[str, object], b: Mapping[str, object]) -> str:
    """Where two flat identities differ, the first few keys."""
    keys = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    shown = [f"{key} {_short(a.get(key))} / {_short(b.get(key))}" for key in keys[:MOST_KEYS]]
    return ", ".join([*shown, *([f"and {len(keys) - MOST_KEYS} more"] if len(keys) > MOST_KEYS else [])])


def _short(value: object) -> str:
    return plain(inline_yaml(value), 32)

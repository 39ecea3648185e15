"""What the paper claims, the test that decides each claim, and what the runs at hand say.

A claim is a conjunction of statements "a scores more than b" (or: "no more than a margin apart"). It is *supported*
when every statement is proven, *contradicted* when one is proven to be the other way round, *not decided* when the
data allow both, *not tested* when a run it needs is missing. Nothing is said about other models, prompts or seeds.

Sources of the claims: GCPO (arXiv 2509.22485), through a summary and the authors' replies to reviewers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from gcpo_bench.variants import PUBLISHED_RATIO

from .analyses import Measured, initial_tokens_matter, selection_overhead
from .comparisons import NotCompared, compare
from .load import ReportData, Variant, other_settings
from .measures import MARGIN
from .power import LEVEL
from .statistics import Interval, at_least, holm, mirrored
from .tables import MINUS, number

Status = Literal["supported", "contradicted", "not decided", "not tested"]
SAME_SHARE = 0.005
"""Shares of tokens that differ by less are the same: half a point, less than a token of the smallest grid."""


@dataclass(frozen=True, slots=True)
class Role:
    """A variant by its settings, called by the method that has them, and by the share of tokens each set takes."""

    method: str
    ratio: float | None = None
    """None: the ratio that most of the method's runs share, 0.1 if there is a choice."""

    def __str__(self) -> str:
        return self.method if self.ratio is None else f"{self.method} at {self.ratio:g}"


@dataclass(frozen=True, slots=True)
class Statement:
    a: Role
    b: Role
    kind: Literal["more", "same"] = "more"
    """`more`: a scores more than b. `same`: a scores less than a margin more than b."""
    as_many: bool = False
    """It is about two choices of as many tokens, and says nothing where one side trains on more of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    name: str
    text: str
    note: str = ""
    """What to know about the claim itself."""
    statements: tuple[Statement, ...] = ()
    judge: Callable[[ReportData], list[Measured]] | None = None
    """What decides a claim that is not about scores: of each method that was studied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One statement, tested."""

    text: str
    interval: Interval | None
    status: Status
    p_for: float = math.nan
    """Small: the statement holds."""
    p_against: float = math.nan
    """Small: the opposite holds."""
    problem: str = ""
    a: str = ""
    b: str = ""
    """Labels of the variants; empty where one is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    claim: str
    text: str
    status: Status
    outcomes: tuple[Outcome, ...] = ()
    words: str = ""
    """What was found, in a sentence."""
    note: str = ""
    setting: str = ""
    """Where there are variants with other settings: which ones this is about."""
    p_for: float = math.nan
    p_against: float = math.nan


def judge_all(data: ReportData, benchmark: str) -> list[Finding]:
    """Every claim, for each group of variants that differ in nothing but the method; Holm over all claims tested."""
    findings: list[Finding] = []
    groups = _groups(data)
    for setting, variants in groups:
        for claim in CLAIMS:
            if claim.judge is None:
                finding = _test(claim, data, variants, benchmark, setting if len(groups) > 1 else "")
                if not any(_same_test(finding, other) for other in findings):
                    findings.append(finding)
    for claim in CLAIMS:
        found = claim.judge(data) if claim.judge else []
        findings += [_measured(claim, each, each.method if len(found) > 1 else "") for each in found]
    return decided(findings)


def _same_test(finding: Finding, other: Finding) -> bool:
    """Of the same variants, which belong to several groups."""
    pairs = [(outcome.a, outcome.b) for outcome in finding.outcomes]
    return finding.claim == other.claim and all(map(all, pairs)) and pairs == [(o.a, o.b) for o in other.outcomes]


def _measured(claim: Claim, found: Measured, setting: str) -> Finding:
    return Finding(
        claim=claim.name,
        text=claim.text,
        note=claim.note,
        status="not tested",
        words=found.words,
        setting=setting,
        p_for=found.p_for,
        p_against=found.p_against,
    )


def _test(claim: Claim, data: ReportData, variants: Sequence[Variant], benchmark: str, setting: str) -> Finding:
    outcomes = tuple(_outcome(statement, data, variants, benchmark) for statement in claim.statements)
    finding = Finding(
        claim=claim.name, text=claim.text, note=claim.note, status="not tested", outcomes=outcomes, setting=setting
    )
    problems = [outcome.problem for outcome in outcomes if outcome.problem]
    if problems:
        return replace(finding, words="; ".join(dict.fromkeys(problems)))
    # all must hold, so the least certain one decides for the claim; one that fails is enough against it
    against = min(1.0, len(outcomes) * min(outcome.p_against for outcome in outcomes))
    return replace(
        finding,
        status="not decided",
        p_for=max(outcome.p_for for outcome in outcomes),
        p_against=against,
        words="; ".join(outcome.text for outcome in outcomes),
    )


def _outcome(statement: Statement, data: ReportData, variants: Sequence[Variant], benchmark: str) -> Outcome:
    measure = data.headline(benchmark)
    a, b = (find(variants, role) for role in (statement.a, statement.b))
    if a is None or b is None:
        missing = statement.a if a is None else statement.b
        return Outcome(text="", interval=None, status="not tested", problem=f"there is no run of {missing}")
    untested = Outcome(text="", interval=None, status="not tested", a=a.label, b=b.label)
    if statement.as_many and abs(a.share - b.share) > SAME_SHARE:
        shares = f"{a.label} trains on {_percent(a.share)} of the tokens, {b.label} on {_percent(b.share)}"
        return replace(untested, problem=f"{shares}; the claim is about as many")
    found = compare(a, b, benchmark, measure, "baseline", data.peers_of(a))
    if isinstance(found, NotCompared):
        return replace(untested, problem=found.reason)
    interval = found.interval
    if interval.seeds < 2:
        problem = f"one training seed of {a.label} and {b.label} is about two checkpoints, not about a method"
        return replace(untested, interval=interval, problem=problem)
    text = f"{a.label} {MINUS} {b.label}: {measure.interval(interval, signed=True)}{measure.points}"
    flipped = mirrored(interval)
    if statement.kind == "more":
        p_for, p_against = at_least(interval, 0.0), at_least(flipped, 0.0)
    elif measure.margin is None:
        problem = f'"almost nothing" has no meaning on the scale of {measure.label}'
        return replace(untested, interval=interval, problem=problem)
    else:
        p_for, p_against = at_least(flipped, -measure.margin), at_least(interval, measure.margin)
    return replace(untested, text=text, interval=interval, status="not decided", p_for=p_for, p_against=p_against)


def _percent(share: float) -> str:
    return f"{number(100 * share, 1)} %"


def decided(findings: list[Finding]) -> list[Finding]:
    """Two-sided: the smaller p doubled, Holm over the claims that were tested, then its direction."""
    tested = [index for index, finding in enumerate(findings) if not math.isnan(finding.p_for)]
    adjusted = holm([min(1.0, 2 * min(findings[i].p_for, findings[i].p_against)) for i in tested])
    decided = list(findings)
    for index, p in zip(tested, adjusted, strict=True):
        finding = findings[index]
        status: Status = "not decided"
        if p < LEVEL:
            status = "supported" if finding.p_for < finding.p_against else "contradicted"
        decided[index] = replace(finding, status=status)
    return decided


# --- who is meant ---------------------------------------------------------------------------------------------------


def find(variants: Sequence[Variant], role: Role) -> Variant | None:
    """The variant that plays a role, by its settings; without a ratio, the one of the ratio that the study is about."""
    named = [variant for variant in variants if variant.method == role.method]
    if role.ratio is not None:
        return next((variant for variant in named if variant.ratio == role.ratio), None)
    return next((variant for variant in named if variant.has_ratio(_usual_ratio(variants))), None)


def _usual_ratio(variants: Sequence[Variant]) -> float:
    count = Counter(variant.ratio for variant in variants if variant.ratio is not None)
    return PUBLISHED_RATIO if PUBLISHED_RATIO in count or not count else min(count, key=lambda r: (-count[r], r))


def _groups(data: ReportData) -> list[tuple[str, list[Variant]]]:
    """Trained variants that differ in nothing but the method, with what tells their group from the others.

    A method that looks at no signal belongs to all groups that differ only in how signals are made.
    """
    groups: list[list[Variant]] = []
    made: list[dict[str, Any]] = []
    finished = [variant for variant in data.trained if not variant.unfinished]
    for variant in sorted(finished, key=lambda each: -len(each.signals)):
        homes = [
            index
            for index, group in enumerate(groups)
            if not other_settings(group[0], variant)
            and all(made[index].get(key, value) == value for key, value in variant.signals.items())
        ]
        if not homes:
            groups.append([])
            made.append({})
            homes = [len(groups) - 1]
        for index in homes:
            groups[index].append(variant)
            made[index] |= variant.signals
    differing = sorted({key for group in groups for key in other_settings(groups[0][0], group[0])})
    differing += sorted({key for each in made for key in each if len({repr(m.get(key)) for m in made}) > 1})
    settings = [{**group[0].settings, **each} for group, each in zip(groups, made, strict=True)]
    told = [", ".join(f"{key}={each.get(key)}" for key in differing) for each in settings]
    order = {variant.label: index for index, variant in enumerate(data.trained)}
    groups = [sorted(group, key=lambda variant: order[variant.label]) for group in groups]
    return sorted(zip(told, groups, strict=True), key=lambda item: order[item[1][0].label])


# --- the ledger -----------------------------------------------------------------------------------------------------

CLAIMS = (
    Claim(
        name="critical-beats-all",
        text="Training on 30 % of the tokens (GCPO) beats training on all of them (GRPO).",
        statements=(Statement(Role("gcpo"), Role("grpo")),),
    ),
    Claim(
        name="critical-beats-remaining",
        text="The critical 30 % beat the remaining 70 %.",
        note="Both with weight 1, so that tokens are all that differs.",
        statements=(Statement(Role("gcpo-no-daw"), Role("remaining")),),
    ),
    Claim(
        name="critical-beats-random",
        text="The critical tokens beat as many tokens chosen at random.",
        note="Not tested in the paper; without it the first claim could be about the number of tokens.",
        statements=(Statement(Role("gcpo-no-daw"), Role("random"), as_many=True),),
    ),
    Claim(
        name="union-beats-parts",
        text="The three sets together beat each of them alone.",
        statements=tuple(
            Statement(Role("gcpo-no-daw"), Role(part)) for part in ("gcpo-init", "gcpo-struct", "gcpo-sim")
        ),
    ),
    Claim(
        name="weight-helps",
        text="The dynamic weight adds to the three sets.",
        statements=(Statement(Role("gcpo"), Role("gcpo-no-daw")),),
    ),
    Claim(
        name="weight-on-all-hurts",
        text="The dynamic weight on all tokens is worse than none.",
        note='The paper says "worse" without a number; read here as worse than GRPO.',
        statements=(Statement(Role("grpo"), Role("grpo-daw")),),
    ),
    Claim(
        name="ten-percent-is-the-knee",
        text="10 % a set beats 5 %, and 15 % adds almost nothing.",
        note=f'"Almost nothing" is tested as: less than {100 * MARGIN:g} points more.',
        statements=(
            Statement(Role("gcpo", 0.1), Role("gcpo", 0.05)),
            Statement(Role("gcpo", 0.15), Role("gcpo", 0.1), "same"),
        ),
    ),
    Claim(
        name="one-percent-overhead",
        text="Selecting costs about 1 % of the training time.",
        note="Pairs of steps in one process: the method's own, and one on all tokens that looks at no signal.",
        judge=selection_overhead,
    ),
    Claim(
        name="initial-tokens-are-global",
        text="The first tokens decide the global structure of the image.",
        note="Tested on the images: an early token has more tokens after it, so what is compared is the change for as "
        "many tokens that could change.",
        judge=initial_tokens_matter,
    ),
)

"""What the paper claims, the test that decides each claim, and what the runs at hand say.

A claim is a conjunction of statements "a scores more than b" (or: "no more than a margin apart"). It is *supported*
when every statement is proven, *contradicted* when one is proven to be the other way round, *not decided* when the
data allow both, *not tested* when a run it needs is missing. Nothing is said about other models, prompts or seeds.

Sources of the claims: GCPO (arXiv 2509.22485), through a summary and the authors' replies to reviewers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import stats

from .comparisons import LEVEL, NotCompared, compare
from .load import ReportData, Variant, other_settings
from .measures import MARGIN, Measure
from .statistics import Interval, at_least, holm, mirrored
from .tables import MINUS, number

Status = Literal["supported", "contradicted", "not decided", "not tested"]
OVERHEAD = 0.02
"""What "about 1 %" of a step's time is allowed to be."""


@dataclass(frozen=True, slots=True)
class Role:
    """A variant by its method, and by the share of tokens each of its sets takes."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    name: str
    text: str
    note: str = ""
    """What to know about the claim itself."""
    statements: tuple[Statement, ...] = ()
    judge: Callable[[ReportData], Finding] | None = None
    """Decides a claim that is not about scores."""


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
    findings = []
    measure = data.headline(benchmark)
    groups = _groups(data)
    for setting, variants in groups:
        for claim in CLAIMS:
            if claim.judge is None:
                findings.append(_test(claim, variants, benchmark, measure, setting if len(groups) > 1 else ""))
    for claim in CLAIMS:
        if claim.judge is not None:
            findings.append(replace(claim.judge(data), claim=claim.name, text=claim.text, note=claim.note))
    return _decided(findings)


def _test(claim: Claim, variants: Sequence[Variant], benchmark: str, measure: Measure, setting: str) -> Finding:
    outcomes = tuple(_outcome(statement, variants, benchmark, measure) for statement in claim.statements)
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


def _outcome(statement: Statement, variants: Sequence[Variant], benchmark: str, measure: Measure) -> Outcome:
    a, b = (find(variants, role) for role in (statement.a, statement.b))
    if a is None or b is None:
        missing = statement.a if a is None else statement.b
        return Outcome(text="", interval=None, status="not tested", problem=f"there is no run of {missing}")
    found = compare(a, b, benchmark, measure, "baseline")
    if isinstance(found, NotCompared):
        return Outcome(text="", interval=None, status="not tested", problem=found.reason)
    interval = found.interval
    if interval.seeds < 2:
        return Outcome(
            text="",
            interval=interval,
            status="not tested",
            problem=f"one training seed of {a.label} and {b.label} is about two checkpoints, not about a method",
        )
    text = f"{a.label} {MINUS} {b.label}: {measure.interval(interval, signed=True)}{measure.points}"
    flipped = mirrored(interval)
    if statement.kind == "more":
        p_for, p_against = at_least(interval, 0.0), at_least(flipped, 0.0)
    elif measure.margin is None:
        problem = f'"almost nothing" has no meaning on the scale of {measure.label}'
        return Outcome(text="", interval=interval, status="not tested", problem=problem)
    else:
        p_for, p_against = at_least(flipped, -measure.margin), at_least(interval, measure.margin)
    return Outcome(text=text, interval=interval, status="not decided", p_for=p_for, p_against=p_against)


def _decided(findings: list[Finding]) -> list[Finding]:
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


def ratios_of(variant: Variant) -> tuple[float, ...]:
    """Share of the tokens that each of its selectors takes; () where they take no share."""
    found = [
        value
        for key, value in sorted(variant.settings.items())
        if key.startswith("selection.") and key.endswith(".ratio")
    ]
    return tuple(float(value) for value in found if value is not None)


def even_ratio(variant: Variant) -> float | None:
    """The share that all of its selectors take; None where there is none or they differ."""
    ratios = set(ratios_of(variant))
    return ratios.pop() if len(ratios) == 1 else None


def find(variants: Sequence[Variant], role: Role) -> Variant | None:
    """The variant that plays a role; without a ratio, the one of the ratio that the study is about."""
    named = [variant for variant in variants if variant.method == role.method]
    if role.ratio is not None:
        return next((variant for variant in named if even_ratio(variant) == role.ratio), None)
    usual = _usual_ratio(variants)
    return next((v for v in named if even_ratio(v) in (usual, None) and len(set(ratios_of(v))) < 2), None)


def _usual_ratio(variants: Sequence[Variant]) -> float | None:
    count = Counter(ratio for variant in variants if (ratio := even_ratio(variant)) is not None)
    return PUBLISHED_RATIO if PUBLISHED_RATIO in count or not count else min(count, key=lambda r: (-count[r], r))


def _groups(data: ReportData) -> list[tuple[str, list[Variant]]]:
    """Trained variants that differ in nothing but the method, with what tells their group from the others."""
    groups: list[list[Variant]] = []
    for variant in data.trained:
        home = next((group for group in groups if not other_settings(group[0], variant)), None)
        if home is None:
            groups.append([variant])
        else:
            home.append(variant)
    differing = sorted({key for group in groups for key in other_settings(groups[0][0], group[0])})
    return [(", ".join(f"{key}={group[0].settings.get(key)}" for key in differing), group) for group in groups]


# --- claims that are not about scores -------------------------------------------------------------------------------


def selection_overhead(data: ReportData) -> Finding:
    """Time of selection relative to the rest of the step, a value a run, t interval over runs."""
    shares = []
    for variant in data.trained:
        if variant.method not in ("gcpo", "gcpo-official", "gcpo-paper"):
            continue
        for run in variant.runs:
            if {"time/selection_s", "time/step_s"} <= set(run.metrics.columns) and len(run.metrics) > 1:
                selection, step = (float(run.metrics[f"time/{name}_s"].median()) for name in ("selection", "step"))
                shares.append(selection / (step - selection))
    if len(shares) < 2:
        return _untested("it takes at least two GCPO runs with timings")
    mean, stderr = float(np.mean(shares)), float(np.std(shares, ddof=1) / math.sqrt(len(shares)))
    low, high = (mean + sign * float(stats.t.ppf(0.975, len(shares) - 1)) * stderr for sign in (-1, 1))
    status: Status = "supported" if high < OVERHEAD else "contradicted" if low > OVERHEAD else "not decided"
    words = (
        f"selection takes {number(100 * mean, 2)} % of the rest of a step "
        f"[{number(100 * low, 2)}, {number(100 * high, 2)}] over {len(shares)} runs; the bound is {100 * OVERHEAD:g} %"
    )
    return Finding(claim="", text="", status=status, words=words)


def initial_tokens_matter(data: ReportData) -> Finding:
    """From the perturbation study: does noise in the first tokens change the coarse image more than noise later?"""
    values: list[float] = []
    for run in data.runs:
        study = run.analyses.get("perturb")
        if study:
            values += first_against_later(study.record)
    if len(values) < 2:
        return _untested("no run has a perturbation study (gcpo-bench analyze perturb RUN)")
    mean, stderr = float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stderr
    status: Status = "supported" if mean - half > 0 else "contradicted" if mean + half < 0 else "not decided"
    words = (
        f"noise in the first tokens changes the coarse image by {number(100 * mean, 1, signed=True)} points more than "
        f"noise in as many later ones [{number(100 * (mean - half), 1, signed=True)}, "
        f"{number(100 * (mean + half), 1, signed=True)}], {len(values)} prompts"
    )
    return Finding(claim="", text="", status=status, words=words)


def first_against_later(study: Mapping[str, Any]) -> list[float]:
    """Coarse change by the first range minus the mean of the later ones, a value a prompt."""
    first, *later = (np.asarray(item["coarse_by_prompt"], dtype=np.float64) for item in study["ranges"])
    return list(map(float, first - np.mean(later, axis=0))) if later else []


def _untested(why: str) -> Finding:
    return Finding(claim="", text="", status="not tested", words=why)


# --- the ledger -----------------------------------------------------------------------------------------------------

PUBLISHED_RATIO = 0.1

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
        statements=(Statement(Role("gcpo-no-daw"), Role("random")),),
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
        note="Measured inside each run as the selection's share of a step, which a busy machine does not bias.",
        judge=selection_overhead,
    ),
    Claim(
        name="initial-tokens-are-global",
        text="The first tokens decide the global structure of the image.",
        note="Tested on the images, not on scores: gcpo-bench analyze perturb.",
        judge=initial_tokens_matter,
    ),
)

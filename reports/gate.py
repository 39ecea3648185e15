"""Is this version worse than the baseline by more than we tolerate? Proven, ruled out, or neither.

Scores: non-inferiority of the paired difference, prompt by prompt and seed by seed. *pass* if the lower end of the 95 %
interval is above minus the margin; *regression* if it is proven to be below (over all checks together, Holm); else
*inconclusive*. Speed: the same for the logarithm of time ratios that were measured inside one run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

from gcpo_bench.config import RESOURCES, RunConfig
from gcpo_bench.files import inline_yaml

from .baseline import PLAIN, Entry
from .comparisons import interval_of
from .evaluations import flatten
from .measures import Measure
from .statistics import Interval, at_least, holm, mirrored, non_inferiority

State = Literal["pass", "regression", "inconclusive", "not comparable"]
LEVEL = 0.05
IGNORED_SETTINGS = ("method", "policy.device", *RESOURCES)
"""Settings that change where and how fast it is trained, not what; `method` is a name, and what it set is compared."""
WORST_FIRST: dict[State, int] = {"regression": 0, "not comparable": 1, "inconclusive": 2, "pass": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    name: str
    """What was compared: model, method and benchmark, or a speed ratio of them."""
    state: State
    unit: Literal["score", "%"]
    margin: float | None
    """Of speed as a share of 1, of a score in its raw unit; None where none is known for the scale."""
    measure: Measure = PLAIN
    """Of a score."""
    interval: Interval | None = None
    """New minus old for scores (old minus new where less is better); relative slowdown, negated, for speed: below 0 is
    worse in all."""
    reason: str = ""
    worst: tuple[tuple[str, float], ...] = ()
    """Prompts that lost most, with the loss."""


def gate(
    baseline: Sequence[Entry],
    current: Sequence[Entry],
    *,
    margins: Mapping[str, float],
    performance: float | None = None,
) -> list[Check]:
    """Every entry of the baseline against the run of the same model, method and settings; the worst first.

    Args:
        margins: benchmark -> tolerated loss in the raw unit of its score, 0.015 for 1.5 points. Where it is not named,
            that of its scale (2 points of a share); a scale that has none is not judged.
        performance: tolerated slowdown of the speed ratios as a share; None leaves speed out.
    """
    checks = []
    for old in baseline:
        new, reason = _counterpart(old, current)
        margin = margins.get(old.benchmark, old.measure.margin)
        if new is not None and margin is None:
            reason = f"{old.measure.label} has no margin of its own; name one: --margin {old.benchmark}=NUMBER"
        if new is None or margin is None:
            measure = old.measure
            checks.append(
                Check(
                    name=old.name, state="not comparable", unit="score", margin=margin, measure=measure, reason=reason
                )
            )
            continue
        checks.append(_scores(old, new, margin))
        if performance is not None:
            checks += [_speed(old, new, name, performance) for name in old.speed]
    return sorted(_over_all(checks), key=lambda check: (WORST_FIRST[check.state], _size(check)))


def overall(checks: Sequence[Check]) -> State:
    """The worst of them; nothing compared is not comparable."""
    return min((check.state for check in checks), key=WORST_FIRST.__getitem__, default="not comparable")


def _size(check: Check) -> float:
    return check.interval.value if check.interval else -math.inf


def _counterpart(old: Entry, current: Sequence[Entry]) -> tuple[Entry | None, str]:
    """The run that repeats what the baseline holds, or why there is none."""
    # an older baseline calls a run by the `method` that its settings were taken from
    same = [
        new
        for new in current
        if (new.policy, new.benchmark) == (old.policy, old.benchmark)
        and old.method in (new.method, new.settings.get("method"))
    ]
    if not same:
        return None, "there is no such run; train and evaluate it, or name the runs on the command line"
    reasons = []
    for new in same:
        before = {**_added_since(old.settings, new.settings), **old.settings}
        differing = [*_differing(before, new.settings), *_differing(old.identity, new.identity)]
        if old.measure.name != new.measure.name:
            differing.append(f"scored by {old.measure.name} / {new.measure.name}")
        if not differing and not old.scores.keys() & new.scores.keys():
            differing = [f"training seeds {sorted(old.scores)} / {sorted(new.scores)}"]
        if not differing:
            return new, ""
        reasons.append(", ".join(differing))
    return None, f"baseline / run differ: {min(reasons, key=len)}"


def _added_since(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, object]:
    """Settings that the baseline's program did not have yet, where they are at their default: as it was before."""
    defaults = flatten(RunConfig().model_dump(mode="json"))
    added = {key: value for key, value in defaults.items() if key in new and key not in old and new[key] == value}
    return {key: value for key, value in added.items() if _has_item(old, key)}


def _has_item(settings: Mapping[str, object], key: str) -> bool:
    """Whether the item of a list that the key is in is there at all: another selector is no setting that was added."""
    item = re.match(r".*\.\d+\.", key)
    return item is None or any(other.startswith(item[0]) for other in settings)


def _differing(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    keys = sorted((old.keys() | new.keys()) - set(IGNORED_SETTINGS))
    unlike = [key for key in keys if old.get(key) != new.get(key)]
    return [f"{key} {inline_yaml(old.get(key))} / {inline_yaml(new.get(key))}" for key in unlike]


def _scores(old: Entry, new: Entry, margin: float) -> Check:
    seeds = sorted(old.scores.keys() & new.scores.keys())
    pairs = [(new.scores[seed], old.scores[seed]) for seed in seeds]
    tables = [table for pair in pairs for table in pair]
    prompts = sorted(set.intersection(*(set(table) for table in tables)))
    if not prompts:
        reason = "no prompt was scored in both"
        return Check(
            name=old.name, state="not comparable", unit="score", margin=margin, measure=old.measure, reason=reason
        )
    tags = [old.scores[seeds[0]][prompt][0] for prompt in prompts]
    sign = 1 if old.measure.higher_is_better else -1
    interval = interval_of(pairs, prompts, tags, old.measure)
    interval = interval if sign > 0 else mirrored(interval)
    losses = {p: sign * float(np.mean([after[p][1] - before[p][1] for after, before in pairs])) for p in prompts}
    worst = tuple(sorted(((p, d) for p, d in losses.items() if d < 0), key=lambda item: (item[1], item[0]))[:10])
    left_out = len(set.union(*(set(table) for table in tables))) - len(prompts)
    return Check(
        name=old.name,
        state=non_inferiority(interval, margin),
        unit="score",
        margin=margin,
        measure=old.measure,
        interval=interval,
        worst=worst,
        reason=f"{left_out} prompts were not scored in all runs and are left out" if left_out else "",
    )


def _speed(old: Entry, new: Entry, name: str, margin: float) -> Check:
    """Welch's t interval for the difference of log ratios over blocks of steps."""
    label = f"{old.policy} {old.label}: {name}"
    a, b = np.array(new.speed.get(name, ())), np.array(old.speed[name])
    if len(a) < 2 or len(b) < 2:
        return Check(
            name=label,
            state="not comparable",
            unit="%",
            margin=margin,
            reason="too few steps were timed in one of them",
        )
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    stderr = math.sqrt(va + vb)
    value = -float(a.mean() - b.mean())
    df = math.inf if stderr == 0 else (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = 0.0 if stderr == 0 else float(stats.t.ppf(0.975, df)) * stderr
    interval = Interval(
        value=value,
        low=value - half,
        high=value + half,
        n=len(a) + len(b),
        seeds=1,
        method="Welch t of log ratios",
        stderr=stderr,
        df=df,
    )
    return Check(
        name=label, state=non_inferiority(interval, math.log1p(margin)), unit="%", margin=margin, interval=interval
    )


def _over_all(checks: Sequence[Check]) -> list[Check]:
    """A regression must be proven with all checks together in view: Holm over the doubled one-sided p."""
    judged = [index for index, check in enumerate(checks) if check.interval is not None]
    adjusted = holm([min(1.0, 2 * _p_no_regression(checks[index])) for index in judged])
    result = list(checks)
    for index, p in zip(judged, adjusted, strict=True):
        if checks[index].state == "regression" and not p < LEVEL:
            result[index] = replace(checks[index], state="inconclusive")
    return result


def _p_no_regression(check: Check) -> float:
    """One-sided p of "the loss is within the margin"."""
    assert check.interval is not None
    assert check.margin is not None
    bound = -(math.log1p(check.margin) if check.unit == "%" else check.margin)
    p = at_least(mirrored(check.interval), -bound)
    return 0.0 if math.isnan(p) and check.interval.high < bound else 1.0 if math.isnan(p) else p

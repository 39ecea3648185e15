"""The gate's outcome for people and for CI: words, a Markdown summary, JUnit XML, workflow annotations."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from .gate import Check, State
from .tables import markdown_table, markdown_text, number, plain

SUMMARY_BYTES = 900_000
"""GitHub drops a step summary above 1 MiB as a whole."""
ANNOTATIONS = 10
"""GitHub shows ten of a kind a step."""
MARKS: dict[State, str] = {"pass": "✅", "regression": "❌", "inconclusive": "❔", "not comparable": "⛔"}


def words(check: Check) -> str:
    """What was found, in a sentence."""
    if check.interval is None:
        return f"not comparable: {check.reason}"
    percent = check.unit == "%"
    interval = check.interval
    if percent:  # log of a slowdown, negated, to a relative change of speed
        low, value, high = (
            number(100 * math.expm1(x), 1, signed=True) for x in (interval.low, interval.value, interval.high)
        )
        found = f"speed {value} % [{low}, {high}]"
    else:
        found = f"{check.measure.interval(interval, signed=True)}{_unit(check)}"
    basis = "" if percent else f", {interval.n} prompts, {interval.seeds} seed{'s' if interval.seeds > 1 else ''}"
    margin = f"{100 * (check.margin or 0):g} %" if percent else f"{_amount(check)}{_unit(check)}"
    verdict = {
        "pass": f"a loss of {margin} is ruled out",
        "regression": f"a loss of more than {margin} is proven",
        "inconclusive": f"a loss of {margin} is neither proven nor ruled out",
        "not comparable": check.reason,
    }[check.state]
    more = f"; {check.reason}" if check.reason and check.state != "not comparable" else ""
    return f"{found}{basis}: {verdict}{more}"


def _amount(check: Check) -> str:
    return f"{check.measure.factor * (check.margin or 0):.6g}"


def _unit(check: Check) -> str:
    """ " points", or the name of the scale."""
    return check.measure.points or f" {check.measure.label}"


def record(check: Check) -> dict[str, Any]:
    """As data: raw numbers, and the unit that they have."""
    interval, percent = check.interval, check.unit == "%"
    edges = (interval.value, interval.low, interval.high) if interval else (None, None, None)
    value, low, high = (math.expm1(x) if percent and x is not None else x for x in edges)
    return {
        "check": check.name,
        "verdict": check.state,
        "unit": "share of the speed" if percent else check.measure.unit,
        "metric": None if percent else check.measure.name,
        "margin": check.margin,
        "difference": value,
        "low": low,
        "high": high,
        "words": words(check),
        "reason": check.reason,
        "worst": [{"prompt": prompt, "difference": difference} for prompt, difference in check.worst],
    }


def markdown(checks: Sequence[Check], texts: dict[str, str] | None = None) -> str:
    """A table, the worst first, then the prompts that lost most; at most SUMMARY_BYTES of UTF-8."""
    rows = [[MARKS[c.state], markdown_text(c.name), f"**{c.state}**", markdown_text(words(c), 1000)] for c in checks]
    parts = ["## gcpo-bench gate", markdown_table(["", "check", "verdict", "found"], rows, numeric_from=9)]
    for check in checks:
        if check.state in ("regression", "inconclusive") and check.worst:
            measure = check.measure
            lost = [
                [markdown_text((texts or {}).get(p, p)), f"{measure.factor * d:+.{measure.digits}f}"]
                for p, d in check.worst
            ]
            unit = "points" if measure.is_share else markdown_text(measure.label)
            parts += [f"Largest losses, {markdown_text(check.name)}:", markdown_table(["prompt", unit], lost)]
    return cut("\n\n".join(parts) + "\n", SUMMARY_BYTES)


def cut(text: str, limit: int) -> str:
    """Whole lines up to `limit` bytes."""
    if len(text.encode()) <= limit:
        return text
    ending = "\n(cut here: the rest is in the JUnit file)\n"
    kept = text.encode()[: limit - len(ending.encode())].decode(errors="ignore")
    return kept[: kept.rfind("\n")] + ending


def junit(checks: Sequence[Check]) -> str:
    """One test case a check: a failure where it is a regression, skipped where it is inconclusive, else an error."""
    count = {state: sum(check.state == state for check in checks) for state in MARKS}
    suite = ElementTree.Element(
        "testsuite",
        name="gcpo-bench gate",
        tests=str(len(checks)),
        failures=str(count["regression"]),
        errors=str(count["not comparable"]),
        skipped=str(count["inconclusive"]),
    )
    kinds: dict[State, str] = {"regression": "failure", "inconclusive": "skipped", "not comparable": "error"}
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", classname="gate", name=_xml(check.name))
        if check.state in kinds:
            ElementTree.SubElement(case, kinds[check.state], message=_xml(words(check)))
        else:
            ElementTree.SubElement(case, "system-out").text = _xml(words(check))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    """Without the characters XML cannot hold."""
    return "".join(c for c in plain(text, 2000) if unicodedata.category(c) not in {"Cs", "Cn", "Co"} and c >= " ")


def workflow_commands(checks: Sequence[Check]) -> list[str]:
    """Workflow commands for GitHub, the worst first; no text can begin another command."""
    kind: dict[State, str] = {"regression": "error", "not comparable": "error", "inconclusive": "warning"}
    lines = [
        f"::{kind[check.state]} title={_property(f'gate: {check.name}')}::{_message(words(check))}"
        for check in checks
        if check.state in kind
    ]
    return lines[:ANNOTATIONS]


def _message(text: str) -> str:
    return plain(text, 1000).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")

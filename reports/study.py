"""Sections on the study's questions: the claims, which part carries it, what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np

from . import plots
from .claims import Finding, judge_all
from .comparisons import better_pairs, variant_score
from .fragments import Fragment, render
from .load import ReportData, Variant, other_settings
from .measures import Measure
from .statistics import Interval
from .tables import csv_table, markdown_table, markdown_text, number

# --- claims ---------------------------------------------------------------------------------------------------------


def claims(data: ReportData) -> Fragment:
    """Each claim of the paper: supported, contradicted, not decided or not tested by these runs."""
    findings = [finding for benchmark in data.run_benchmarks[:1] for finding in judge_all(data, benchmark)]
    where = ", ".join(sorted({variant.policy for variant in data.trained})) or "no model"
    if len(data.run_benchmarks) > 1 or any(not data.headline(name).is_verdict for name in data.run_benchmarks):
        first = data.run_benchmarks[0]
        scale = "" if data.headline(first).is_verdict else f" ({data.headline(first).label})"
        where += f" and {first}{scale}"
    records = [_claim_record(finding) for finding in findings]
    header = ["claim", "status", "setting", "found"]
    return Fragment(
        title="Claims",
        html=render("claims", "study.html", findings=findings, where=where),
        markdown=markdown_table(
            ["claim", "status", "what was found"],
            [
                [
                    markdown_text(f"{finding.text} {f'({finding.setting})' if finding.setting else ''}".strip(), 1000),
                    f"**{finding.status}**",
                    markdown_text(finding.words, 1000),
                ]
                for finding in findings
            ],
            numeric_from=9,
        )
        if findings
        else "No run has been evaluated.\n",
        data={"claims": records},
        csv={"claims": csv_table(header, [[record[key] for key in header] for record in records])},
    )


def _claim_record(finding: Finding) -> dict[str, Any]:
    return {
        "claim": finding.claim,
        "text": finding.text,
        "status": finding.status,
        "setting": finding.setting,
        "found": finding.words,
        "p_for": finding.p_for,
        "p_against": finding.p_against,
        "differences": [
            {
                "text": outcome.text,
                "difference": outcome.interval.value,
                "low": outcome.interval.low,
                "high": outcome.interval.high,
                "prompts": outcome.interval.n,
                "seeds": outcome.interval.seeds,
            }
            for outcome in finding.outcomes
            if outcome.interval is not None
        ],
    }


# --- which part carries it, at which ratio, at what cost ------------------------------------------------------------


def components(data: ReportData) -> Fragment:
    """Ladder of variants, ratio curve, points against seconds: three pictures of one table."""
    several = len(data.run_benchmarks) > 1
    rows = [row for benchmark in data.run_benchmarks[:1] for row in _rows(data, benchmark)]
    charts: list[dict[str, Any]] = []
    front = {row["variant"] for row in pareto(rows, better_pairs(data, data.run_benchmarks[0]) if rows else set())}
    if len(rows) > 1:
        charts.append(_ladder_chart(rows, "ladder", data.run_benchmarks[0] if several else ""))
        charts += _ratio_chart(rows)
        charts += _cost_chart(rows, front)
    for number_of, benchmark in enumerate(data.run_benchmarks[1:], start=2):
        if len(others := _rows(data, benchmark)) > 1:
            charts.append(_ladder_chart(others, f"ladder-{number_of}", benchmark))
    table = [
        {
            "label": row["variant"],
            "cells": [
                row["measure"].interval(row["score"]),
                f"{number(100 * row['share'], 1)} %" if not math.isnan(row["share"]) else "–",
                number(row["seconds"], 0),
                number(100 * row["unselected_gradient"], 1) + " %"
                if not math.isnan(row["unselected_gradient"])
                else "–",
                "yes" if row["variant"] in front else "",
            ],
        }
        for row in rows
    ]
    overall = f"overall, {data.run_benchmarks[0]}" if several else "overall"
    header = ["variant", overall, "tokens trained on", "training, s", "gradient on other tokens", "Pareto"]
    return Fragment(
        title="What carries it",
        html=render("components", "study.html", charts=charts, header=header, rows=table),
        markdown=markdown_table(header, [[markdown_text(row["label"]), *row["cells"]] for row in table])
        if table
        else "No trained run has been evaluated.\n",
        charts=[item["chart"] for item in charts],
        data={
            "variants": [
                {
                    **{
                        key: row[key]
                        for key in ("variant", "method", "ratio", "share", "seconds", "unselected_gradient")
                    },
                    "overall": row["score"].value,
                    "low": row["score"].low,
                    "high": row["score"].high,
                    "pareto": row["variant"] in front,
                }
                for row in rows
            ]
        },
    )


def _ladder_chart(rows: Sequence[dict[str, Any]], name: str, benchmark: str) -> dict[str, Any]:
    """Every variant on one axis; `benchmark` is named where there are several."""
    baselines = [row for row in rows if row["method"] == "grpo"]
    baseline = baselines[0] if len(baselines) == 1 else None  # of several, none is that of all
    measure: Measure = rows[0]["measure"]
    what = "Points" if measure.is_share else measure.label
    return {
        "title": f"Score of every variant{f', {benchmark}' if benchmark else ''}",
        "note": f"{what} with 95 % interval over seeds and prompts{'; the dashed line is GRPO' if baseline else ''}.",
        "chart": plots.ladder(
            [_point(row, style=0 if row["method"] == "grpo" else 1) for row in rows],
            name=name,
            x_label=_axis(measure),
            description="; ".join(f"{row['variant']} {measure.text(row['score'].value)}" for row in rows),
            line_at=measure.factor * baseline["score"].value if baseline else None,
        ),
    }


def _axis(measure: Measure) -> str:
    return "overall score, points" if measure.is_share else measure.label


def _rows(data: ReportData, benchmark: str) -> list[dict[str, Any]]:
    rows = []
    measure = data.headline(benchmark)
    for variant in data.trained:
        score = variant_score(variant, benchmark, measure)
        if score is None:
            continue
        rows.append(
            {
                "of": variant,
                "variant": variant.label,
                "method": variant.method,
                "ratio": variant.ratio,
                "score": score,
                "measure": measure,
                "share": variant.share,
                "unselected_gradient": _mean(variant, "tokens/unselected_gradient_share"),
                "seconds": float(np.mean([_seconds(run) for run in variant.runs])),
            }
        )
    return rows


def _mean(variant: Variant, key: str) -> float:
    values = [float(run.metrics[key].mean()) for run in variant.runs if key in run.metrics]
    return float(np.mean(values)) if values else math.nan


def _seconds(run: Any) -> float:
    return float(run.metrics["time/step_s"].sum()) if "time/step_s" in run.metrics else math.nan


def _point(row: dict[str, Any], *, x: float = 0.0, style: int = 0) -> plots.Point:
    score: Interval = row["score"]
    factor: float = row["measure"].factor
    low, high = (factor * (edge if math.isfinite(edge) else score.value) for edge in (score.low, score.high))
    return plots.Point(label=row["variant"], x=x, y=factor * score.value, low=low, high=high, style=style)


def _ratio_chart(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Score over the ratio, where a method was run at several."""
    lines = {
        label: [replace(_point(row, x=100 * row["ratio"]), label=label, style=style) for row in found]
        for style, (label, found) in enumerate(_lines(rows).items())
    }
    if not lines:
        return []
    measure: Measure = rows[0]["measure"]
    words = "; ".join(
        f"{method}: " + ", ".join(f"{p.x:g} % {p.y:.{measure.digits}f}" for p in found)
        for method, found in lines.items()
    )
    return [
        {
            "title": "Score over the ratio",
            "note": f"Share of the tokens that each set takes. Lines: {', '.join(lines)}.",
            "chart": plots.points_chart(
                lines, name="ratio", x_label="ratio per set, %", y_label=_axis(measure), description=words
            ),
            "legend": [
                {"label": method, "color": plots.color_of(i), "dashes": plots.dashes_of(i)}
                for i, method in enumerate(lines)
            ],
        }
    ]


def _lines(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Label -> variants that differ in nothing but the ratio, where there are several; by rising ratio."""
    groups: list[list[dict[str, Any]]] = []
    for row in sorted((row for row in rows if row["ratio"] is not None), key=lambda row: row["ratio"]):
        alike = (group for group in groups if _differ_in_ratio_only(group[0]["of"], row["of"]))
        home = next(alike, None)
        groups.append([row]) if home is None else home.append(row)
    groups = [group for group in groups if len(group) > 1]
    labels = [_line_label(group[0]["of"], [other[0]["of"] for other in groups]) for group in groups]
    return dict(zip(labels, groups, strict=True))


def _differ_in_ratio_only(a: Variant, b: Variant) -> bool:
    return a.method == b.method and a.signals == b.signals and not other_settings(a, b)


def _line_label(variant: Variant, others: Sequence[Variant]) -> str:
    """The method, with the settings in which lines of the same method differ."""
    namesakes = [other for other in others if other.method == variant.method]
    differing = {key for other in namesakes for key in other_settings(variant, other)}
    differing |= {key for key, value in variant.signals.items() if any(o.signals.get(key) != value for o in namesakes)}
    settings = {**variant.settings, **variant.signals}
    details = ", ".join(f"{key}={settings.get(key)}" for key in sorted(differing))
    return f"{variant.method} ({details})" if details else variant.method


def _cost_chart(rows: Sequence[dict[str, Any]], front: Set[str]) -> list[dict[str, Any]]:
    known = [row for row in rows if math.isfinite(row["seconds"]) and row["seconds"] > 0]
    if len(known) < 2:
        return []
    measure: Measure = known[0]["measure"]
    points_of = {
        row["variant"]: _point(row, x=row["seconds"], style=1 if row["variant"] in front else 6) for row in known
    }
    numbered = max(map(len, points_of)) >= plots.LONG_LABEL  # too long to stand in the chart
    names = {label: str(number) if numbered else label for number, label in enumerate(points_of, start=1)}
    chart = plots.points_chart(
        {label: [replace(point, label=names[label])] for label, point in points_of.items()},
        name="pareto",
        x_label="seconds of training",
        y_label=_axis(measure),
        description="; ".join(
            f"{row['variant']} {row['seconds']:.0f} s {measure.text(row['score'].value)}" for row in known
        ),
        joined=False,
    )
    keys: list[plots.Key] = [
        (f"{names[label]}: {label}", plots.color_of(point.style), "-") for label, point in points_of.items() if numbered
    ]
    return [
        {
            "title": "Points against seconds" if measure.is_share else "Score against seconds",
            "note": "Training time of a run, mean over seeds. Orange: no other variant is proven to score more in no "
            "more time. Seconds of runs that shared a machine carry its noise.",
            "chart": replace(chart, keys=tuple(keys)),
            "legend": [{"label": label, "color": color, "dashes": dashes} for label, color, dashes in keys],
        }
    ]


def pareto(rows: Sequence[dict[str, Any]], better: Set[tuple[str, str]]) -> list[dict[str, Any]]:
    """Rows that no other row is proven to beat in no more seconds; `better` holds (variant, one it is better than)."""
    return [
        row
        for row in rows
        if not any(
            (other["variant"], row["variant"]) in better and other["seconds"] <= row["seconds"] for other in rows
        )
    ]

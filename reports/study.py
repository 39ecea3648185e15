"""Sections on the study's questions: the claims, paper beside measured, which part carries it, what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gcpo_bench.variants import PUBLISHED_RATIO

from . import paper, plots
from .claims import Finding, judge_all
from .comparisons import variant_score
from .fragments import Fragment, render
from .judged import judged
from .load import ReportData, Variant
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


# --- paper beside measured ------------------------------------------------------------------------------------------


def paper_table(data: ReportData) -> Fragment:
    """The paper's two tables in its layout, and what was measured here in the same columns."""
    main = _main_rows(data)
    rungs = _ladder_rows(data)
    measured = _of_the_study(data, ("grpo", "gcpo"))
    otherwise = sorted({word for variant in measured for word in unlike_released(variant)})
    how = [line for benchmark in _of_one_score(data) for line in judged(data, benchmark).lines]
    remarks = [
        "Published numbers come from a summary of the paper; a dash is a number that is not published there.",
        *(["† the reward of training was also the evaluator."] if _circular(data) else []),
        *([f"‡ measured with other settings than the released scripts': {'; '.join(otherwise)}."] if otherwise else []),
    ]
    main_header = ["model", "method", *paper.MAIN_COLUMNS]
    ladder_header = ["init", "struct", "sim", "DAW", *paper.LADDER_COLUMNS, *_measured_header(data)]
    return Fragment(
        title="Paper and measured",
        html=render(
            "paper",
            "study.html",
            main_header=main_header,
            main=main,
            ladder_header=ladder_header,
            ladder=rungs,
            remarks=[*remarks, *how],
        ),
        markdown="\n".join(
            [
                markdown_table(main_header, [[markdown_text(cell) for cell in row["cells"]] for row in main]),
                markdown_table(ladder_header, [[markdown_text(cell) for cell in row] for row in rungs], numeric_from=4),
                *remarks,
                *(markdown_text(line, 500) for line in how),
            ]
        )
        + "\n",
        data={"main": [row["cells"] for row in main], "ladder": rungs, "remarks": [*remarks, *how]},
        latex=latex_tables(main, rungs, _measured_header(data), how),
    )


def _main_rows(data: ReportData) -> list[dict[str, Any]]:
    published = zip(paper.MAIN, _published(paper.MAIN), strict=True)
    rows = [{"measured": False, "cells": [row.model, row.method, *values]} for row, values in published]
    circular = "†" if _circular(data) else ""
    for benchmark in (name for name in data.run_benchmarks if data.headline(name).is_verdict):
        measure, how = data.headline(benchmark), judged(data, benchmark)
        for variant in _of_the_study(data, ("start", "grpo", "gcpo")):
            tasks = [None if column == "overall" else column for column in paper.MAIN_COLUMNS]
            cells = [variant_score(variant, benchmark, measure, task) for task in tasks]
            rows.append(
                {
                    "measured": True,
                    "cells": [
                        f"{variant.policy}, {benchmark}",
                        f"{_name(variant, circular)} {how.mark(variant.label)}".rstrip(),
                        *("–" if cell is None else measure.interval(cell) for cell in cells),
                    ],
                }
            )
    return rows


def _name(variant: Variant, circular: str) -> str:
    return variant.label if variant.is_start else f"{variant.label}{circular}{_fidelity(variant)}"


def _ladder_rows(data: ReportData) -> list[list[str]]:
    rows = []
    for row, values in zip(paper.LADDER, _published(paper.LADDER), strict=True):
        marks = ["✓" if name in paper.COMPONENTS[row.method] else "" for name in ("init", "struct", "sim", "DAW")]
        mine = _of_the_study(data, (row.method,))
        measured = [_measured(data, mine, benchmark) for benchmark in _of_one_score(data)]
        rows.append([*marks, *values, *(measured or ["–"])])
    return rows


def _measured(data: ReportData, variants: Sequence[Variant], benchmark: str) -> str:
    """The score of what plays a row's part; where several do (say, at two rates), each with its label."""
    measure, how = data.headline(benchmark), judged(data, benchmark)
    scores = [(variant.label, variant_score(variant, benchmark, measure)) for variant in variants]
    known = [(label, f"{measure.interval(score)} {how.mark(label)}".rstrip()) for label, score in scores if score]
    if len(known) > 1:
        return "; ".join(f"{label}: {text}" for label, text in known)
    return known[0][1] if known else "–"


def _measured_header(data: ReportData) -> list[str]:
    names = _of_one_score(data)
    return [f"measured: {name}" for name in names] if len(names) > 1 else ["measured here"]


def _of_one_score(data: ReportData) -> list[str]:
    """Benchmarks that have one score; of a panel the paper has none."""
    return [name for name in data.run_benchmarks if len(data.panel(name)) == 1]


def unlike_released(variant: Variant) -> list[str]:
    """What differs from the released scripts, as "key = ours (theirs)"; a model that they do not have is one."""
    family = next((name for name in paper.RELEASED if variant.policy.startswith(name)), None)
    if family is None:
        return [f"model {variant.policy} ({', '.join(paper.RELEASED)})"]
    return [
        f"{key} {variant.settings.get(key)} ({theirs:g})"
        for key, theirs in paper.RELEASED[family].items()
        if variant.settings.get(key) != theirs
    ]


def _fidelity(variant: Variant) -> str:
    return "‡" if unlike_released(variant) else ""


def _published(rows: Sequence[paper.Row]) -> list[list[str]]:
    """The values of each row; those of a column have as many decimals as the most precise of them, so they align."""
    columns = []
    for column in zip(*(row.values for row in rows), strict=True):
        digits = max(len(f"{value:g}".partition(".")[2]) for value in column if value is not None)
        columns.append(["–" if value is None else number(value, digits) for value in column])
    return [list(values) for values in zip(*columns, strict=True)]


def _of_the_study(data: ReportData, methods: Sequence[str]) -> list[Variant]:
    """Variants that play these parts by their settings, at the published ratio; in that order."""
    return [
        variant
        for method in methods
        for variant in data.variants
        if variant.method == method and (variant.is_start or variant.has_ratio(PUBLISHED_RATIO))
    ]


def _circular(data: ReportData) -> bool:
    """Whether what judged the images also rewarded them."""
    rewards = {reward.name for run in data.runs if not run.is_start for reward in run.config.rewards}
    return bool(rewards & {"geneval", "geneval-dense", "scene-strict"}) and "scenes" in data.run_benchmarks


def latex_tables(
    main: Sequence[dict[str, Any]],
    rungs: Sequence[Sequence[str]],
    measured: Sequence[str] = ("measured here",),
    how: Sequence[str] = (),
) -> str:
    """Both tables for a paper that loads booktabs and amssymb; `how` the measured numbers were judged."""
    from .tables import latex_table

    main_rows = [row["cells"] for row in main]
    return (
        latex_table(
            ["Model", "Method", "Overall", "Counting", "Color", "Position"],
            main_rows,
            align="llrrrr",
            caption=" ".join(["GenEval, published and measured.", *how]),
            label="main",
        )
        + "\n"
        + latex_table(
            [
                "Init",
                "HG",
                "LS",
                "DAW",
                *paper.LADDER_COLUMNS,
                *(f"M{name[1:]}".removesuffix(" here") for name in measured),
            ],
            rungs,
            align="cccc" + "r" * (len(paper.LADDER_COLUMNS) + len(measured)),
            caption=" ".join(["Components, published and measured.", *how]),
            label="ladder",
        )
    )


# --- which part carries it, at which ratio, at what cost ------------------------------------------------------------


def components(data: ReportData) -> Fragment:
    """Ladder of variants, ratio curve, points against seconds: three pictures of one table."""
    several = len(data.run_benchmarks) > 1
    rows = [row for benchmark in data.run_benchmarks[:1] for row in _rows(data, benchmark)]
    charts: list[dict[str, Any]] = []
    if len(rows) > 1:
        charts.append(_ladder_chart(rows, "ladder", data.run_benchmarks[0] if several else ""))
        charts += _ratio_chart(rows)
        charts += _cost_chart(rows)
    for number_of, benchmark in enumerate(data.run_benchmarks[1:], start=2):
        if len(others := _rows(data, benchmark)) > 1:
            charts.append(_ladder_chart(others, f"ladder-{number_of}", benchmark))
    front = {row["variant"] for row in pareto(rows)}
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
    baseline = next((row for row in rows if row["method"] == "grpo"), None)
    measure: Measure = rows[0]["measure"]
    what = "Points" if measure.is_share else measure.label
    return {
        "title": f"Score of every variant{f', {benchmark}' if benchmark else ''}",
        "note": f"{what} with 95 % interval over seeds and prompts; the dashed line is GRPO.",
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
    lines: dict[str, list[plots.Point]] = {}
    for row in sorted((row for row in rows if row["ratio"] is not None), key=lambda row: row["ratio"]):
        lines.setdefault(row["method"], []).append(_point(row, x=100 * row["ratio"]))
    lines = {
        method: [plots.Point(label=method, x=p.x, y=p.y, low=p.low, high=p.high, style=style) for p in found]
        for style, (method, found) in enumerate((m, f) for m, f in lines.items() if len({p.x for p in f}) > 1)
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


def _cost_chart(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    known = [row for row in rows if math.isfinite(row["seconds"]) and row["seconds"] > 0]
    if len(known) < 2:
        return []
    measure: Measure = known[0]["measure"]
    front = {row["variant"] for row in pareto(known)}
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
            "note": "Training time of a run, mean over seeds. Orange: no other variant scores more in less time. "
            "Seconds of runs that shared a machine carry its noise.",
            "chart": replace(chart, keys=tuple(keys)),
            "legend": [{"label": label, "color": color, "dashes": dashes} for label, color, dashes in keys],
        }
    ]


def pareto(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that no other row beats in both score and seconds."""
    return [
        row
        for row in rows
        if not any(
            other["score"].value >= row["score"].value
            and other["seconds"] <= row["seconds"]
            and (other["score"].value > row["score"].value or other["seconds"] < row["seconds"])
            for other in rows
        )
    ]

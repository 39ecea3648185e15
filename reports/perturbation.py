"""Section: what noise in a range of tokens does to the rest of the image (`gcpo-bench analyze perturb`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from . import plots
from .fragments import Fragment, data_uri, render
from .load import Analysis, LoadedRun, ReportData, Variant
from .tables import markdown_table, markdown_text, number

MEASURES = (
    ("coarse_by_prompt", "Coarse change", "1 is black against white"),
    ("later_by_prompt", "Later tokens changed", "share of the tokens after the range"),
    ("reward_by_prompt", "Change of reward", "mean over prompts"),
)


def perturbation(data: ReportData) -> Fragment:
    """One study a run that has one: three curves over the raster, and the images."""
    found = [
        (variant, run, run.analyses["perturb"])
        for variant in data.variants
        for run in variant.runs
        if "perturb" in run.analyses
    ]
    studies = [_study(variant, run, analysis) for variant, run, analysis in found]
    header = ["run", "tokens", *(title for _, title, _ in MEASURES)]
    rows = [
        [
            markdown_text(run.name),
            f"{item['first']} to {item['last']}",
            *(number(_mean(item[key]), 3) for key, *_ in MEASURES),
        ]
        for _, run, analysis in found
        for item in analysis.record["ranges"]
    ]
    return Fragment(
        title="Perturbation",
        html=render("perturbation", "study.html", studies=studies),
        markdown=markdown_table(header, rows, numeric_from=2)
        if rows
        else "No run has been perturbed yet: `gcpo-bench analyze perturb RUN`.\n",
        charts=[item["chart"] for study in studies for item in study["charts"]],
        data={"studies": [{"run": run.name, **analysis.record} for _, run, analysis in found]},
    )


def _study(variant: Variant, run: LoadedRun, analysis: Analysis) -> dict[str, Any]:
    record = analysis.record
    ranges: Sequence[Mapping[str, Any]] = record["ranges"]
    charts = [
        {"title": title, "unit": unit, "chart": _chart(ranges, key, title, f"perturb-{run.name}-{key}")}
        for key, title, unit in MEASURES
    ]
    images = analysis.arrays["images"]
    return {
        "run": run.name,
        "variant": variant.label,
        "noise": record["noise"],
        "prompts": len(record["prompts"]),
        "charts": charts,
        "columns": ["no noise", *(f"{item['first']}–{item['last']}" for item in ranges)],
        "rows": [
            {"prompt": record["prompts"][row], "images": [data_uri(image) for image in images[:, row]]}
            for row in range(images.shape[1])
        ],
    }


def _chart(ranges: Sequence[Mapping[str, Any]], key: str, title: str, name: str) -> plots.Chart:
    """Mean over prompts with its 95 % t interval, at the middle of each range."""
    points = []
    for item in ranges:
        values = np.array([value for value in item[key] if value is not None], dtype=np.float64)
        if len(values) == 0:
            continue
        mean = float(values.mean())
        half = 0.0
        if len(values) > 1:
            half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
        points.append(
            plots.Point(label=title, x=(item["first"] + item["last"]) / 2, y=mean, low=mean - half, high=mean + half)
        )
    description = f"{title}: " + ", ".join(f"token {point.x:.0f} {point.y:.3f}" for point in points)
    chart = plots.points_chart(
        {title: points}, name=name, x_label="token in the raster", y_label="", description=description
    )
    return replace(chart, y_label=title)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")

"""Section: what noise in a range of tokens does to the rest of the image (`gcpo-bench analyze perturb`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from . import plots
from .analyses import PERTURBATION_STUDIES, reach
from .fragments import Fragment, data_uri, render
from .load import LoadedRun, ReportData, Variant
from .tables import markdown_table, markdown_text, number

MEASURES = (
    ("coarse_by_prompt", "Coarse change", "%, 100 is black against white", 100),
    ("later_by_prompt", "Later tokens changed", "% of those that were drawn anew after the range", 100),
    ("reward_by_prompt", "Change of reward", "mean over prompts", 1),
)
"""Key of a range, title, unit, and what its numbers are multiplied by to be shown."""


def perturbation(data: ReportData) -> Fragment:
    """The studies of each run that has some: three curves over the raster, and the images."""
    found = [
        (variant, run, name)
        for variant in data.variants
        for run in variant.runs
        for name in PERTURBATION_STUDIES
        if name in run.analyses
    ]
    studies = [_study(variant, run, name) for variant, run, name in found]
    records = [(run, run.analyses[name].record) for _, run, name in found]
    header = ["run", "tokens", "drawn anew after them", *(_heading(title, scale) for _, title, _, scale in MEASURES)]
    rows = [
        [
            markdown_text(run.name),
            f"{item['first']} to {item['last']}",
            str(reach(record, item) - (item["last"] - item["first"] + 1)),
            *(number(scale * _mean(item[key]), 1 if scale == 100 else 3) for key, *_, scale in MEASURES),
        ]
        for run, record in records
        for item in record["ranges"]
    ]
    return Fragment(
        title="Perturbation",
        html=render("perturbation", "study.html", studies=studies),
        markdown=markdown_table(header, rows, numeric_from=2)
        if rows
        else "No run has been perturbed yet: `gcpo-bench analyze perturb RUN`.\n",
        charts=[item["chart"] for study in studies for item in study["charts"]],
        data={"studies": [{"run": run.name, **record} for run, record in records]},
    )


def _heading(title: str, scale: int) -> str:
    return f"{title}, %" if scale == 100 else title


def _study(variant: Variant, run: LoadedRun, name: str) -> dict[str, Any]:
    record, arrays = run.analyses[name].record, run.analyses[name].arrays
    ranges: Sequence[Mapping[str, Any]] = record["ranges"]
    charts = [
        {"title": title, "unit": unit, "chart": _chart(ranges, key, title, scale, f"{name}-{run.name}-{key}")}
        for key, title, unit, scale in MEASURES
    ]
    images = arrays["images"]
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


def _chart(ranges: Sequence[Mapping[str, Any]], key: str, title: str, scale: int, name: str) -> plots.Chart:
    """Mean over prompts with its 95 % t interval, at the middle of each range."""
    points = []
    for item in ranges:
        values = scale * np.array([value for value in item[key] if value is not None], dtype=np.float64)
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
    return replace(chart, y_label=_heading(title, scale))


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")

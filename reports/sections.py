"""The report's sections: each reads the loaded runs and gives one Fragment. Registered in `registry.SECTIONS`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from . import plots
from .comparisons import MARGIN, Comparison, NotCompared, compare_all, variant_score
from .fragments import Fragment, render
from .gallery import gallery as gallery
from .load import HEADLINE, LOWER_IS_BETTER, ReportData, Variant, flatten
from .statistics import Interval
from .tables import csv_table, interval_text, markdown_table, markdown_text, number, points, seconds
from .token_maps import token_maps as token_maps

CURVES = (
    ("reward/mean", "Reward", "mean of the training images"),
    ("reward/strict", "Strict reward", "exactly the asked scene"),
    ("loss/kl_all", "Divergence from the reference", "k3, all tokens"),
    ("tokens/entropy", "Entropy", "nats a token"),
    ("weight/mean", "Weight", "mean of the selected tokens"),
    ("weight/max", "Largest weight", "of the selected tokens"),
    ("weight/min", "Smallest weight", "of the selected tokens"),
    ("reward/extra_objects", "Extra objects", "an image"),
    ("groups/zero_variance_share", "Groups without variance", "share"),
)
PHASES = ("rollout", "reward", "reference", "selection", "update")
SMOOTHING = 12
"""Curves are running means over a twelfth of the run."""


# --- verdict --------------------------------------------------------------------------------------------------------


def verdict(data: ReportData) -> Fragment:
    """Each variant against GRPO and against its start, in plain words."""
    found: list[Comparison] = []
    refused: list[NotCompared] = []
    for benchmark in data.benchmarks:
        compared, not_compared = compare_all(data, benchmark)
        found += compared
        refused += not_compared
    found.sort(key=lambda c: (c.benchmark, c.against != "baseline"))  # stable: the variants keep their order
    edges = [abs(edge) for c in found for edge in (c.interval.low, c.interval.high) if math.isfinite(edge)]
    reach = max([0.01, *edges])
    rows = [
        {"comparison": c, "sentence": sentence(c, len(found)), "bar": whisker(c.interval, -reach, reach)} for c in found
    ]
    advice = _advice(data, found)
    lines = [f"- {markdown_text(sentence(c, len(found)), 2000)}" for c in found] or [
        "Nothing can be compared yet: evaluate the runs, and a start or a GRPO run beside them.\n"
    ]
    lines += [f"- Not compared: {markdown_text(f'{r.a} with {r.b}: {r.reason}', 2000)}" for r in refused]
    lines += [f"- {markdown_text(line, 2000)}" for line in advice]
    header = (
        "benchmark,metric,a,b,against,verdict,difference,low,high,stderr,p,p_holm,detectable,prompts,seeds,interval,"
        "settings_that_differ"
    )
    return Fragment(
        title="Verdict",
        html=render("verdict", rows=rows, refused=refused, advice=advice),
        markdown="\n".join(lines) + "\n",
        data={"comparisons": [_comparison_record(c) for c in found], "not_compared": [_refusal(r) for r in refused]},
        csv={"comparisons": csv_table(header.split(","), [list(_comparison_record(c).values()) for c in found])},
    )


def sentence(c: Comparison, family: int) -> str:
    """What may be said, and no more: about the method where there are several seeds, else about the checkpoint."""
    several = c.interval.seeds > 1
    who = f"{c.a}" if several else f"this {c.a} checkpoint"
    subject = who[0].upper() + who[1:] if who.startswith("this ") else who
    whom = "the start" if c.against == "start" else c.b
    difference = f"{interval_text(c.interval, signed=True)} points"
    closest, furthest = map(points, sorted((abs(c.interval.low), abs(c.interval.high))))
    basis = f"{c.interval.n} prompts, {c.interval.seeds} seed{'s' if several else ''}"
    if math.isnan(c.interval.stderr):
        return f"Cannot tell {who} from {whom}: {c.interval.n} prompts show no spread to judge {difference} by."
    if c.identical:
        return f"{subject} and {whom} score the same on every prompt ({basis})."
    if c.verdict == "equivalent":
        both = f"{subject} and {whom} are equivalent within {points(MARGIN)} points"
        return f"{both}: {difference} ({basis})."
    if c.verdict != "cannot tell":
        size = points(abs(c.interval.value))
        return (
            f"{subject} is {c.verdict} than {whom} by {size} points (95 % interval {closest} to {furthest}; {basis})."
        )
    text = f"Cannot tell {who} from {whom}: {difference} ({basis})."
    if c.interval.low > 0 or c.interval.high < 0:
        text += f" Alone it would count, but not as one of {family} comparisons (adjusted p {number(c.p_holm, 3)})."
    text += f" A true difference of {points(c.detectable)} points would be found four times in five;"
    target = "the difference seen" if abs(c.interval.value) >= 0.01 else "one point"
    more = "prompts and seeds" if several else "prompts"
    return text + f" to find {target} takes about {c.effort:.1f} times as many {more}."


def _advice(data: ReportData, found: Sequence[Comparison]) -> list[str]:
    advice = []
    if any(c.interval.seeds == 1 for c in found):
        advice.append(
            "One training seed says something about a checkpoint, not about a method. Train at least 3 seeds of each."
        )
    if not any(variant.method == "grpo" for variant in data.trained) and data.trained:
        advice.append("There is no GRPO run among these, so no method is compared with the baseline.")
    if not any(variant.is_start for variant in data.variants):
        advice.append("The start was not among the runs, so it is unknown how much was learned.")
    differing = sorted({key for c in found for key in c.settings_that_differ})
    if differing:
        advice.append(f"Some compared variants differ in more than the method: {', '.join(differing)}.")
    return advice


def whisker(interval: Interval, low: float, high: float) -> dict[str, float | bool]:
    """Positions in 0..100 for an interval drawn on an axis from `low` to `high`."""
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * min(max((value - low) / span, 0.0), 1.0), 2)

    return {
        "low": place(interval.low),
        "high": place(interval.high),
        "value": place(interval.value),
        "zero": place(0.0),
        "shows_zero": low < 0 < high,
    }


def _comparison_record(c: Comparison) -> dict[str, Any]:
    return {
        "benchmark": c.benchmark,
        "metric": c.metric,
        "a": c.a,
        "b": c.b,
        "against": c.against,
        "verdict": c.verdict,
        "difference": c.interval.value,
        "low": c.interval.low,
        "high": c.interval.high,
        "stderr": c.interval.stderr,
        "p": c.p_value,
        "p_holm": c.p_holm,
        "detectable": c.detectable,
        "prompts": c.interval.n,
        "seeds": c.interval.seeds,
        "interval": c.interval.method,
        "settings_that_differ": " ".join(c.settings_that_differ),
    }


def _refusal(refused: NotCompared) -> dict[str, str]:
    return {"benchmark": refused.benchmark, "a": refused.a, "b": refused.b, "reason": refused.reason}


# --- scores ---------------------------------------------------------------------------------------------------------


def scores(data: ReportData) -> Fragment:
    """Overall, per task and the other metrics of each variant, with intervals."""
    parts, markdown, records = [], [], []
    for benchmark in data.benchmarks:
        columns = _score_columns(data, benchmark)
        rows = []
        for variant in data.variants:
            cells = [variant_score(variant, benchmark, metric, task) for metric, task, _ in columns]
            if any(cell is not None for cell in cells):
                rows.append((variant, cells))
            records += [
                _score_record(variant, benchmark, metric, task, cell)
                for (metric, task, _), cell in zip(columns, cells, strict=True)
                if cell is not None
            ]
        header = [label for *_, label in columns]
        texts = [
            [_score_text(cell, metric) for cell, (metric, *_) in zip(cells, columns, strict=True)] for _, cells in rows
        ]
        parts.append(
            render(
                "scores",
                benchmark=benchmark,
                header=header,
                rows=[
                    {
                        "label": variant.label,
                        "cells": [_split(cell, metric) for cell, (metric, *_) in zip(cells, columns, strict=True)],
                        "bar": whisker(cells[0], 0, 1) if cells[0] else None,
                        "n": max(cell.n for cell in cells if cell),
                        "seeds": max(cell.seeds for cell in cells if cell),
                    }
                    for variant, cells in rows
                ],
            )
        )
        markdown.append(
            f"{markdown_text(benchmark)}, 95 % intervals in brackets\n\n"
            + markdown_table(
                ["variant", *header, "prompts", "seeds"],
                [
                    [
                        markdown_text(v.label),
                        *text,
                        str(max(c.n for c in cells if c)),
                        str(max(c.seeds for c in cells if c)),
                    ]
                    for (v, cells), text in zip(rows, texts, strict=True)
                ],
            )
        )
    fields = [
        "benchmark",
        "variant",
        "method",
        "metric",
        "task",
        "value",
        "low",
        "high",
        "stderr",
        "prompts",
        "seeds",
        "interval",
    ]
    return Fragment(
        title="Scores",
        html=render("joined", parts=parts) if parts else render("nothing", text="No run has been evaluated yet."),
        markdown="\n".join(markdown) or "No run has been evaluated yet.\n",
        data={"scores": records},
        csv={"": csv_table(fields, [[record[name] for name in fields] for record in records])},
    )


def _score_columns(data: ReportData, benchmark: str) -> list[tuple[str, str | None, str]]:
    """(metric, task or None, heading): the headline overall, its tasks, the other metrics."""
    frames = [e.frame for variant in data.variants for e in variant.evaluations(benchmark)]
    tags: list[str] = []
    metrics: list[str] = []
    for frame in frames:
        tags += [tag for tag in frame["tag"].unique() if tag not in tags]
        metrics += [
            name for name in frame.columns if name not in ("prompt_id", "tag", HEADLINE) and name not in metrics
        ]
    arrow = {name: " ↓" if name in LOWER_IS_BETTER else "" for name in metrics}
    return [
        (HEADLINE, None, "overall"),
        *((HEADLINE, tag, tag.replace("_", " ")) for tag in tags),
        *((name, None, name.replace("_", " ") + arrow[name]) for name in metrics),
    ]


def _is_count(metric: str) -> bool:
    return metric in LOWER_IS_BETTER


def _score_text(cell: Interval | None, metric: str) -> str:
    if cell is None:
        return "–"
    return interval_text(cell, scale=1, digits=2) if _is_count(metric) else interval_text(cell)


def _split(cell: Interval | None, metric: str) -> tuple[str, str]:
    """The value, and its interval."""
    value, _, interval = _score_text(cell, metric).partition(" ")
    return value, interval


def _score_record(variant: Variant, benchmark: str, metric: str, task: str | None, cell: Interval) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "variant": variant.label,
        "method": variant.method,
        "metric": metric,
        "task": task or "",
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "stderr": cell.stderr,
        "prompts": cell.n,
        "seeds": cell.seeds,
        "interval": cell.method,
    }


# --- curves ---------------------------------------------------------------------------------------------------------


def curves(data: ReportData) -> Fragment:
    """Training curves: a line a variant, the range over seeds as a band."""
    charts: list[dict[str, Any]] = []
    rows: list[list[Any]] = []
    last: dict[str, dict[str, float]] = {}
    variants = [variant for variant in data.trained if any(len(run.metrics) for run in variant.runs)]
    for key, title, unit in CURVES:
        series = []
        for style, variant in enumerate(variants):
            table = _over_seeds(variant, key)
            if table.empty:
                continue
            series.append(_series(table, variant.label, style, len(variant.runs)))
            last.setdefault(variant.label, {})[key] = float(table["mean"].iloc[-1])
            rows += [
                [variant.label, key, int(str(step)), float(row["mean"]), float(row["min"]), float(row["max"])]
                for step, row in table.iterrows()
            ]
        if series:
            ends = "; ".join(f"{line.label} {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in series)
            description = f"{title} over training steps. {ends}."
            name = "curve-" + key.replace("/", "-").replace("_", "-")
            chart = plots.line_chart(
                series, name=name, x_label="training step", y_label=f"{title}\n{unit}", description=description
            )
            charts.append({"title": title, "unit": unit, "chart": chart})
    legend = [
        {"label": v.label, "color": plots.color_of(i), "dashes": plots.dashes_of(i)} for i, v in enumerate(variants)
    ]
    keys = [key for key, *_ in CURVES]
    return Fragment(
        title="Training",
        html=render(
            "curves", charts=charts, legend_items=legend, seeds=max((len(v.runs) for v in variants), default=0)
        ),
        markdown="At the last step:\n\n"
        + markdown_table(
            ["variant", *keys],
            [
                [markdown_text(label), *(number(values.get(key, math.nan), 3) for key in keys)]
                for label, values in last.items()
            ],
        )
        if last
        else "No run has training metrics.\n",
        data={"last_step": last},
        charts=[item["chart"] for item in charts],
        csv={"curves": csv_table(["variant", "metric", "step", "mean", "min", "max"], rows)},
    )


def _over_seeds(variant: Variant, key: str) -> pd.DataFrame:
    """step -> mean, min, max over the variant's runs, smoothed."""
    lines = [run.metrics.set_index("step")[key].dropna() for run in variant.runs if key in run.metrics]
    if not lines:
        return pd.DataFrame()
    lines = [line.rolling(max(len(line) // SMOOTHING, 1), center=True, min_periods=1).mean() for line in lines]
    return pd.concat(lines, axis=1).sort_index().agg(["mean", "min", "max"], axis=1)


def _series(table: pd.DataFrame, label: str, style: int, seeds: int) -> plots.Series:
    band = seeds > 1
    return plots.Series(
        label=label,
        x=[float(str(step)) for step in table.index],
        y=table["mean"].tolist(),
        low=table["min"].tolist() if band else None,
        high=table["max"].tolist() if band else None,
        style=style,
    )


# --- cost -----------------------------------------------------------------------------------------------------------


def cost(data: ReportData) -> Fragment:
    """Seconds of a training step by phase, speed and memory."""
    rows: dict[str, dict[str, float]] = {}
    for variant in data.trained:
        frames = [run.metrics for run in variant.runs if "time/step_s" in run.metrics]
        if frames:
            rows[variant.label] = _cost_row(pd.concat(frames), len(frames))
    phases = [*PHASES, "other"]
    chart = None
    if rows:
        description = "; ".join(f"{label}: {seconds(row['step'])} a step" for label, row in rows.items())
        bars = {label: {phase: row[phase] for phase in phases} for label, row in rows.items()}
        chart = plots.phase_bars(bars, name="phases", description=f"Seconds per step. {description}.")
    legend = [{"label": phase, "color": plots.color_of(i), "dashes": "-"} for i, phase in enumerate(phases)]
    header = ["variant", *phases, "step", "selection share", "tokens/s", "peak memory", "training"]
    cells = {label: _cost_cells(row, phases) for label, row in rows.items()}
    return Fragment(
        title="Cost",
        html=render("cost", chart=chart, legend_items=legend, header=header, rows=cells),
        markdown=markdown_table(header, [[markdown_text(label), *row] for label, row in cells.items()])
        if rows
        else "No run has timings.\n",
        data={"cost": rows},
        charts=[chart] if chart else [],
    )


def _cost_row(frame: pd.DataFrame, runs: int) -> dict[str, float]:
    def median(key: str) -> float:
        return float(frame[key].median()) if key in frame else 0.0

    row = {phase: median(f"time/{phase}_s") for phase in PHASES}
    row["step"] = median("time/step_s")
    row["other"] = max(row["step"] - sum(row[phase] for phase in PHASES), 0.0)
    row["tokens_per_s"] = median("throughput/tokens_per_s") if "throughput/tokens_per_s" in frame else math.nan
    row["peak_bytes"] = float(frame["memory/peak_bytes"].max()) if "memory/peak_bytes" in frame else math.nan
    row["training_s"] = float(frame["time/step_s"].sum()) / runs
    return row


def _cost_cells(row: Mapping[str, float], phases: Sequence[str]) -> list[str]:
    share = row["selection"] / row["step"] if row["step"] else math.nan
    return [
        *(seconds(row[phase]) for phase in phases),
        seconds(row["step"]),
        f"{number(100 * share, 2)} %",
        number(row["tokens_per_s"], 0),
        f"{number(row['peak_bytes'] / 1e9, 2)} GB",
        f"{number(row['training_s'], 0)} s",
    ]


# --- reproduce ------------------------------------------------------------------------------------------------------


def reproduce(data: ReportData) -> Fragment:
    """Command, settings and environment of each run; what is missing."""
    runs = [_run_record(variant, run) for variant in data.variants for run in variant.runs]
    trained = {variant.label: dict(variant.settings) for variant in data.trained}
    keys = sorted(set().union(*trained.values())) if trained else []
    differing = [key for key in keys if len({repr(settings.get(key, "")) for settings in trained.values()}) > 1]
    diff = [[key, *(str(settings.get(key, "–")) for settings in trained.values())] for key in differing]
    common = {key: str(next(iter(trained.values()))[key]) for key in keys if key not in differing}
    markdown = []
    if data.notes:
        markdown += ["What is missing or left out:", "", *(f"- {markdown_text(note, 2000)}" for note in data.notes), ""]
    for run in runs:
        markdown.append(
            f"- {markdown_text(run['name'])} ({markdown_text(run['variant'])}, seed {run['seed']}, {run['state']})"
        )
        markdown += [f"  - {markdown_text(command, 2000)}" for command in run["commands"]]
    if diff:
        markdown += ["", "Settings that differ:", ""]
        escaped = [[markdown_text(cell) for cell in row] for row in diff]
        markdown.append(markdown_table(["key", *map(markdown_text, trained)], escaped, numeric_from=99))
    return Fragment(
        title="Reproduce",
        html=render("reproduce", runs=runs, notes=data.notes, labels=list(trained), diff=diff, common=common),
        markdown="\n".join(markdown) + "\n",
        data={"runs": runs, "notes": list(data.notes), "differing": differing, "common_settings": common},
    )


def _run_record(variant: Variant, run: Any) -> dict[str, Any]:
    environments = [flatten({k: v for k, v in record.items() if k != "argv"}) for record in run.environments]
    return {
        "name": run.name,
        "variant": variant.label,
        "seed": run.config.seed,
        "state": run.state,
        "step": run.step,
        "commands": [_command(record) for record in run.environments],
        "environment": {key: str(value) for record in environments for key, value in sorted(record.items())},
        "evaluations": {
            name: {
                "version": evaluation.version,
                "images": len(evaluation.samples),
                "unscored": evaluation.unscored,
                **{key: str(value) for key, value in sorted(flatten(evaluation.identity).items())},
            }
            for name, evaluation in sorted(run.evaluations.items())
        },
    }


def _command(record: Mapping[str, Any]) -> str:
    argv = record.get("argv")
    if not isinstance(argv, list) or not argv:
        return "command not recorded"
    program, *arguments = map(str, argv)
    # where the program lay says nothing to another machine
    return shlex.join([program.rsplit("/", 1)[-1].replace("__main__.py", "gcpo-bench"), *arguments])

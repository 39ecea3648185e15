"""The report's sections: each reads the loaded runs and gives one Fragment. Registered in `registry.SECTIONS`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from . import plots
from .comparisons import Comparison, NotCompared, by_measure, compare_all, compare_references, sentence, variant_score
from .evaluations import Evaluation, flatten
from .fragments import Fragment, render
from .gallery import gallery as gallery
from .judged import Judged, judged
from .load import ReportData, Variant
from .measures import Measure
from .references import Reference, shown_settings
from .statistics import Interval, mirrored
from .tables import csv_table, markdown_table, markdown_text, number, plain, seconds, without_place
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
    groups: list[dict[str, Any]] = []
    refused: list[NotCompared] = []
    found: list[Comparison] = []
    words: list[str] = []
    named = len(data.benchmarks) > 1
    for benchmark in data.benchmarks:
        panel = data.panel(benchmark)
        compared, not_compared = compare_all(data, benchmark)
        compared = by_measure(compared, panel)
        refused += not_compared
        found += compared
        if compared:
            group = _group(compared, panel, benchmark if named else "", _difference_note(panel, named))
            words += [row["sentence"] for row in group["rows"]]
            groups.append(group)
    advice = _advice(data, found)
    lines = [f"- {markdown_text(text, 2000)}" for text in words] or [_nothing(data) + "\n"]
    lines += [f"- Not compared: {markdown_text(f'{r.a} with {r.b}: {_why(r, named)}', 2000)}" for r in refused]
    lines += [f"- {markdown_text(line, 2000)}" for line in advice]
    return Fragment(
        title="Verdict",
        html=render(
            "verdict",
            groups=groups,
            refused=[{"a": r.a, "b": r.b, "reason": _why(r, named)} for r in refused],
            advice=advice,
            nothing=_nothing(data),
        ),
        markdown="\n".join(lines) + "\n",
        data={"comparisons": [_comparison_record(c) for c in found], "not_compared": [_refusal(r) for r in refused]},
        csv={"comparisons": _comparison_table(found)},
    )


def _nothing(data: ReportData) -> str:
    if not data.runs and len(data.references) > 1:
        return "There is no run among these. The image sets are compared with each other where they were judged alike."
    return "Nothing can be compared yet: evaluate the runs, and a start or a GRPO run beside them."


def _comparison_table(found: Sequence[Comparison]) -> str:
    header = (
        "benchmark,metric,a,b,against,verdict,difference,low,high,stderr,p,p_holm,detectable,prompts,seeds,interval,"
        "settings_that_differ,unit,higher_is_better"
    )
    return csv_table(header.split(","), [list(_comparison_record(c).values()) for c in found])


def _group(compared: Sequence[Comparison], panel: Sequence[Measure], title: str, note: str) -> dict[str, Any]:
    """A table of comparisons on one benchmark: `title` names it where there are several."""
    sentences = [sentence(c, len(compared), named=bool(title) or not c.measure.is_share) for c in compared]
    return {
        "title": title,
        "scale": "" if panel[0].is_verdict or len(panel) > 1 else panel[0].label,
        "scorers": len(panel) > 1,
        "note": note,
        "rows": [
            {"comparison": c, "sentence": text, "bar": bar}
            for c, text, bar in zip(compared, sentences, _bars(compared), strict=True)
        ],
    }


def _bars(compared: Sequence[Comparison]) -> list[dict[str, float | bool]]:
    """Each difference on an axis around 0; one axis a scale, on which better is to the right."""
    reach: dict[str, float] = {}
    for c in compared:
        edges = [abs(edge) for edge in (c.interval.low, c.interval.high, c.interval.value) if math.isfinite(edge)]
        reach[c.measure.name] = max([reach.get(c.measure.name, c.measure.worth_knowing), *edges])
    return [
        whisker(c.interval if c.measure.higher_is_better else mirrored(c.interval), -far, far)
        for c in compared
        for far in (reach[c.measure.name],)
    ]


def _why(refused: NotCompared, named: bool) -> str:
    return f"{refused.benchmark}: {refused.reason}" if named else refused.reason


def _difference_note(panel: Sequence[Measure], named: bool) -> str:
    family = "this benchmark’s comparisons" if named or len(panel) > 1 else "all comparisons below"
    rest = (
        f"paired by prompt, with its 95 % interval. The adjusted p (Holm) counts {family}; the last column is the "
        "smallest true difference that would be found four times in five."
    )
    if panel[0].is_share and len(panel) == 1:
        return f"Difference in points of the overall score, {rest}"
    what = "each scorer on its own scale" if len(panel) > 1 else panel[0].label
    return f"Difference of the mean over prompts, {what}, {rest} “Equivalent” is not defined on such a scale."


def _advice(data: ReportData, found: Sequence[Comparison]) -> list[str]:
    advice = []
    if any(c.interval.seeds == 1 for c in found):
        advice.append(
            "One training seed says something about a checkpoint, not about a method. Train at least 3 seeds of each."
        )
    if not any(variant.method == "grpo" for variant in data.trained) and data.trained:
        advice.append("There is no GRPO run among these, so no method is compared with the baseline.")
    if data.variants and not any(variant.is_start for variant in data.variants):
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
        "metric": c.measure.name,
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
        "unit": c.measure.unit,
        "higher_is_better": c.measure.higher_is_better,
    }


def _refusal(refused: NotCompared) -> dict[str, str]:
    return {"benchmark": refused.benchmark, "a": refused.a, "b": refused.b, "reason": refused.reason}


# --- scores ---------------------------------------------------------------------------------------------------------


def scores(data: ReportData) -> Fragment:
    """Every benchmark: a row a variant with overall, tasks and other metrics; of a panel a row a scorer and variant."""
    parts, markdown, records = [], [], []
    beside: list[Comparison] = []
    for benchmark in data.benchmarks:
        table = _panel_table if len(data.panel(benchmark)) > 1 else _score_table
        html, text, found = table(data, benchmark)
        parts.append(html)
        markdown.append(text)
        records += found
        if data.references:
            html, text, compared = _beside_references(data, benchmark)
            parts.append(html)
            markdown.append(text)
            beside += compared
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
        "unit",
        "higher_is_better",
        "judged_otherwise",
        "judged_with",
    ]
    return Fragment(
        title="Scores",
        html=render("joined", parts=parts) if parts else render("nothing", text="No run has been evaluated yet."),
        markdown="\n".join(markdown) or "No run has been evaluated yet.\n",
        data={"scores": records, **({"references": [_comparison_record(c) for c in beside]} if beside else {})},
        csv={
            "": csv_table(fields, [[record[name] for name in fields] for record in records]),
            **({"references": _comparison_table(beside)} if beside else {}),
        },
    )


def _beside_references(data: ReportData, benchmark: str) -> tuple[str, str, list[Comparison]]:
    """HTML, Markdown and the comparisons with image sets that are no runs, of trained variants and of each other."""
    panel = data.panel(benchmark)
    compared, refused = compare_references(data, benchmark)
    note = (
        "Image sets that were not trained here: the same prompts, judged alike, paired by prompt; their noise is their "
        "own. The adjusted p counts the comparisons of this table."
    )
    named = benchmark if len(data.benchmarks) > 1 else ""
    group = _group(compared, panel, named, note) if compared else None
    reasons = [{"a": r.a, "b": r.b, "reason": r.reason} for r in refused]
    lines = [f"- {markdown_text(row['sentence'], 2000)}" for row in group["rows"]] if group else []
    lines += [f"- Not compared: {markdown_text(f'{r.a} with {r.b}: {r.reason}', 2000)}" for r in refused]
    html = render("beside", group=group, refused=reasons, where=named) if group or refused else ""
    return html, "\n".join(lines) + "\n" if lines else "", compared


Table = tuple[str, str, list[dict[str, Any]]]
"""HTML, Markdown and records."""


def _score_table(data: ReportData, benchmark: str) -> Table:
    columns = _score_columns(data, benchmark)
    headline = data.headline(benchmark)
    how = judged(data, benchmark)
    drawn = [*how.lines, *_drawn_with(data, benchmark)]
    rows, records = [], []
    for variant in data.scored:
        cells = [variant_score(variant, benchmark, measure, task) for measure, task, _ in columns]
        if any(cell is not None for cell in cells):
            rows.append((variant, cells))
        records += [
            _score_record(variant, benchmark, measure, task, cell, how)
            for (measure, task, _), cell in zip(columns, cells, strict=True)
            if cell is not None
        ]
    header = [label for *_, label in columns]
    low, high = _axis(headline, [cells[0] for _, cells in rows])
    html = render(
        "scores",
        benchmark=benchmark,
        title=benchmark if len(data.benchmarks) > 1 else "",
        drawn=drawn,
        header=header,
        axis=f"{headline.text(low)} to {headline.text(high)}" if not headline.is_share else "0 to 100",
        note=_scores_note(benchmark, headline),
        rows=[
            {
                "label": variant.label,
                "mark": how.mark(variant.label),
                "about": _about(variant, benchmark),
                "cells": [_split(cell, measure) for cell, (measure, *_) in zip(cells, columns, strict=True)],
                "bar": whisker(cells[0], low, high) if cells[0] else None,
                **_basis(variant, cells),
            }
            for variant, cells in rows
        ],
    )
    lines = [
        [
            _labelled(variant, benchmark, how),
            *(_score_text(cell, measure) for cell, (measure, *_) in zip(cells, columns, strict=True)),
            *map(str, _basis(variant, cells).values()),
        ]
        for variant, cells in rows
    ]
    text = markdown_table(["variant", *map(markdown_text, header), "prompts", "seeds"], lines)
    scale = "" if headline.is_share else f", {markdown_text(headline.label)}"
    head = f"{markdown_text(benchmark)}{scale}, 95 % intervals in brackets"
    return html, f"{head}\n\n{text}{_drawn_markdown(drawn)}", records


def _drawn_with(data: ReportData, benchmark: str) -> list[str]:
    """What is known of how image sets were drawn that are no runs."""
    shown = [reference for reference in data.references if reference.evaluations(benchmark) and reference.drawn_with]
    return [f"{reference.label} was drawn with: {reference.drawn_with}." for reference in shown]


def _drawn_markdown(drawn: Sequence[str]) -> str:
    return "".join(f"\n{markdown_text(line, 500)}\n" for line in drawn)


def _basis(variant: Variant | Reference, cells: Sequence[Interval | None]) -> dict[str, int | str]:
    known = [cell for cell in cells if cell]
    seeds = "–" if isinstance(variant, Reference) else max(cell.seeds for cell in known)
    return {"n": max(cell.n for cell in known), "seeds": seeds}


def _about(variant: Variant | Reference, benchmark: str) -> str:
    """What a row says beside its name; nothing of what was trained here."""
    return variant.about(benchmark) if isinstance(variant, Reference) else ""


def _labelled(variant: Variant | Reference, benchmark: str, how: Judged) -> str:
    about, name = _about(variant, benchmark), how.marked(variant.label)
    return markdown_text(f"{name} ({about})" if about else name)


def _axis(measure: Measure, cells: Sequence[Interval | None]) -> tuple[float, float]:
    """What a bar of scores runs over: a share from 0 to 1, others over what was found."""
    edges = [edge for cell in cells if cell for edge in (cell.low, cell.high, cell.value) if math.isfinite(edge)]
    return (0.0, 1.0) if measure.is_share or not edges else (min(edges), max(edges))


def _scores_note(benchmark: str, headline: Measure) -> str:
    if headline.is_share:
        mean = "prompts" if headline.by_prompt else "tasks"
        return (
            f"{benchmark}: points of a hundred, 95 % interval in brackets. Overall is the mean of the {mean}. "
            "↓ counts an image; lower is better."
        )
    mean = "prompts" if headline.by_prompt else "tasks"
    better = "" if headline.higher_is_better else " Lower is better."
    return f"{benchmark}: {headline.label}, 95 % interval in brackets. Overall is the mean of the {mean}.{better}"


def _score_columns(data: ReportData, benchmark: str) -> list[tuple[Measure, str | None, str]]:
    """(measure, task or None, heading): the headline overall, its tasks, the other metrics."""
    headline = data.headline(benchmark)
    tags = _tags(data, benchmark)
    others = [measure for name, measure in data.measures(benchmark).items() if name != headline.name]
    tasks = [(headline, tag, plain(tag.replace("_", " "), 60)) for tag in tags]
    return [
        (headline, None, "overall"),
        *(tasks if len(tags) > 1 or headline.is_verdict else []),
        *((measure, None, _heading(measure, headline)) for measure in others),
    ]


def _heading(measure: Measure, headline: Measure) -> str:
    scale = ", raw" if headline.is_share and measure.bounds[0] == -math.inf else ""
    return measure.label + scale + ("" if measure.higher_is_better else " ↓")


def _tags(data: ReportData, benchmark: str) -> list[str]:
    """Tasks, in the order of the samples."""
    frames = [e.frame for variant in data.scored for e in variant.evaluations(benchmark)]
    return list(dict.fromkeys(tag for frame in frames for tag in frame["tag"].unique()))


def _panel_table(data: ReportData, benchmark: str) -> Table:
    """A row a scorer and variant, with the paired differences; categories below."""
    panel, tags = data.panel(benchmark), _tags(data, benchmark)
    compared = {(c.a, c.measure.name, c.against): c for c in compare_all(data, benchmark)[0]}
    how = judged(data, benchmark)
    rows: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    by_task: list[list[str]] = []
    for measure in panel:
        scored = [(variant, variant_score(variant, benchmark, measure)) for variant in data.scored]
        low, high = _axis(measure, [score for _, score in scored])
        several = sum(score is not None for _, score in scored) > 1  # one alone has nothing to stand beside
        for variant, score in scored:
            if score is None:
                continue
            of_tasks = [variant_score(variant, benchmark, measure, tag) for tag in tags]
            records.append(_score_record(variant, benchmark, measure, None, score, how))
            records += [
                _score_record(variant, benchmark, measure, tag, cell, how)
                for tag, cell in zip(tags, of_tasks, strict=True)
                if cell is not None
            ]
            differences = [compared.get((variant.label, measure.name, kind)) for kind in ("baseline", "start")]
            rows.append(
                {
                    "scorer": measure.label + ("" if measure.higher_is_better else " ↓"),
                    "label": variant.label,
                    "mark": how.mark(variant.label),
                    "about": _about(variant, benchmark),
                    "text": _labelled(variant, benchmark, how),
                    "score": _split(score, measure),
                    "bar": whisker(score, low, high) if several else None,
                    "differences": [_difference_cell(c) for c in differences],
                    **_basis(variant, [score]),
                }
            )
            by_task.append([measure.label, variant.label, *(_split(cell, measure)[0] for cell in of_tasks)])
    header = ["scorer", "variant", "score", "against GRPO", "against the start", "prompts", "seeds"]
    lines = [
        [
            markdown_text(row["scorer"]),
            row["text"],
            " ".join(row["score"]),
            *(" ".join(cell["text"]) for cell in row["differences"]),
            str(row["n"]),
            str(row["seeds"]),
        ]
        for row in rows
    ]
    drawn = [*how.lines, *_drawn_with(data, benchmark)]
    html = render(
        "panel",
        benchmark=benchmark,
        title=benchmark if len(data.benchmarks) > 1 else "",
        drawn=drawn,
        rows=rows,
        tags=[plain(tag.replace("_", " "), 60) for tag in tags],
        by_task=by_task,
    )
    table = markdown_table(header, lines, numeric_from=2)
    head = f"{markdown_text(benchmark)}, 95 % intervals in brackets"
    return html, f"{head}\n\n{table}{_drawn_markdown(drawn)}", records


def _difference_cell(c: Comparison | None) -> dict[str, Any]:
    if c is None:
        return {"text": ("–", ""), "verdict": ""}
    value, _, interval = c.measure.interval(c.interval, signed=True).partition(" ")
    return {"text": (value, interval), "verdict": c.verdict}


def _score_text(cell: Interval | None, measure: Measure) -> str:
    return "–" if cell is None else measure.interval(cell)


def _split(cell: Interval | None, measure: Measure) -> tuple[str, str]:
    """The value, and its interval."""
    value, _, interval = _score_text(cell, measure).partition(" ")
    return value, interval


def _score_record(
    variant: Variant | Reference, benchmark: str, measure: Measure, task: str | None, cell: Interval, how: Judged
) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "variant": variant.label,
        "method": "reference" if isinstance(variant, Reference) else variant.method,
        "metric": measure.name,
        "task": task or "",
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "stderr": cell.stderr,
        "prompts": cell.n,
        "seeds": cell.seeds,
        "interval": cell.method,
        "unit": measure.unit,
        "higher_is_better": measure.higher_is_better,
        "judged_otherwise": how.mark(variant.label),
        "judged_with": how.labels.get(variant.label, ""),
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
    references = [_reference_record(reference) for reference in data.references]
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
    for reference in references:
        markdown.append(f"- {markdown_text(reference['name'])} (not trained here, {reference['kind']})")
        markdown += [f"  - {markdown_text(f'{key}: {value}', 500)}" for key, value in reference["settings"].items()]
    if diff:
        markdown += ["", "Settings that differ:", ""]
        escaped = [[markdown_text(cell) for cell in row] for row in diff]
        markdown.append(markdown_table(["key", *map(markdown_text, trained)], escaped, numeric_from=99))
    return Fragment(
        title="Reproduce",
        html=render(
            "reproduce",
            runs=runs,
            references=references,
            notes=data.notes,
            labels=list(trained),
            diff=diff,
            common=common,
        ),
        markdown="\n".join(markdown) + "\n",
        data={
            "runs": runs,
            **({"references": references} if references else {}),
            "notes": list(data.notes),
            "differing": differing,
            "common_settings": common,
        },
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
        "evaluations": _evaluation_records(run.evaluations),
    }


def _reference_record(reference: Reference) -> dict[str, Any]:
    return {
        "name": reference.label,
        "folder": reference.folder,
        "kind": reference.kind,
        "settings": shown_settings(reference),
        "evaluations": _evaluation_records(reference.by_benchmark),
    }


def _evaluation_records(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "version": evaluation.version,
            "images": len(evaluation.samples),
            "unscored": evaluation.unscored,
            **{key: without_place(value) for key, value in sorted(flatten(evaluation.identity).items())},
        }
        for name, evaluation in sorted(evaluations.items())
    }


def _command(record: Mapping[str, Any]) -> str:
    argv = record.get("argv")
    if not isinstance(argv, list) or not argv:
        return "command not recorded"
    program, *arguments = map(str, argv)
    # where the program lay says nothing to another machine
    return shlex.join([program.rsplit("/", 1)[-1].replace("__main__.py", "gcpo-bench"), *arguments])

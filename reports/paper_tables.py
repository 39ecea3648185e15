"""Section: the paper's tables in its own layout, and what was measured here in the same columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gcpo_bench.variants import PUBLISHED_RATIO

from . import paper
from .comparisons import variant_score
from .fragments import Fragment, render
from .judged import judged
from .load import ReportData, Variant
from .tables import latex_table, markdown_table, markdown_text, number


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

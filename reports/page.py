"""Runs in, report out: one HTML page that needs nothing else, Markdown, LaTeX, CSV, JSON, and figures as files.

Same input, same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gcpo_bench.errors import ConfigError
from gcpo_bench.locks import OnWait, held
from gcpo_bench.registry import SECTIONS
from gcpo_bench.runs import write_bytes

from .fragments import Fragment, asset, templates
from .load import ReportData, load
from .plots import chart_files
from .tables import jsonable, markdown_text, plain

FORMATS = ("html", "md", "tex", "csv", "json", "figures")
LATEX_HEAD = "% tables of gcpo-bench; the document needs \\usepackage{booktabs,amssymb,textcomp}\n"


def write_report(
    run_paths: Sequence[Path],
    out: Path,
    formats: Sequence[str] = FORMATS,
    *,
    references: Sequence[Path] = (),
    refresh_s: int = 0,
    on_wait: OnWait = lambda owner: None,
) -> list[Path]:
    """Write `report.html`, `report.md`, `report.csv` (and its siblings), `report.json` and `figures/` into `out`.

    Args:
        references: folders of image sets that are no runs, `evaluations/<name>`.
        refresh_s: seconds after which an open page loads itself again; 0: never.
        on_wait: called with who it is, before another process is waited for that writes into `out`.

    Raises:
        ConfigError: an unknown format, or `out` is a file.
        RunError, CorruptDataError: there is no run, or none of them can be read.
        PrerequisiteError: `out` cannot be written.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ConfigError(
            f"unknown report format {', '.join(unknown) or '(none)'!r}", hint=f"known: {', '.join(FORMATS)}"
        )
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; a report is a folder of files", hint="give --out a folder")
    data = load(run_paths, references)
    fragments = sections(data)
    files = {name: text.encode() for name, text in texts(data, fragments, formats, refresh_s).items()}
    if "figures" in formats:
        files |= figures(fragments)
    with held(out / ".lock", on_wait=on_wait):  # so that the files of one folder are of one report
        for name, content in files.items():
            write_bytes(out / name, content)
    return [out / name for name in files]


def build(data: ReportData, formats: Sequence[str] = FORMATS) -> dict[str, str]:
    """File name -> content, of the formats that are text."""
    return texts(data, sections(data), formats)


def sections(data: ReportData) -> dict[str, Fragment]:
    return {name: SECTIONS.load(name)(data) for name in SECTIONS}


def texts(
    data: ReportData, fragments: Mapping[str, Fragment], formats: Sequence[str], refresh_s: int = 0
) -> dict[str, str]:
    files: dict[str, str] = {}
    if "html" in formats:
        files["report.html"] = html_page(data, fragments, refresh_s)
    if "md" in formats:
        files["report.md"] = markdown_page(data, fragments)
    if "tex" in formats:
        tables = [fragment.latex for fragment in fragments.values() if fragment.latex]
        files["report.tex"] = LATEX_HEAD + "\n".join(tables)
    if "csv" in formats:
        for fragment in fragments.values():
            for name, content in fragment.csv.items():
                files[f"report-{name}.csv" if name else "report.csv"] = content
    if "json" in formats:
        record = {name: fragment.data for name, fragment in fragments.items()}
        files["report.json"] = json.dumps(jsonable(record), indent=1, allow_nan=False) + "\n"
    return files


def figures(fragments: Mapping[str, Fragment]) -> dict[str, bytes]:
    """File name -> content: charts as SVG, PDF and PNG, pictures as PNG. The charts are changed: they get legends."""
    found = [chart_files(chart) for fragment in fragments.values() for chart in fragment.charts]
    found += [dict(fragment.pictures) for fragment in fragments.values()]
    return {f"figures/{name}": content for files in found for name, content in files.items()}


def summary(data: ReportData) -> str:
    """What was looked at, in one line."""
    runs = [run for run in data.runs if not run.is_start]
    seeds = {run.config.seed for run in runs}
    evaluations = [e for run in data.runs for e in run.evaluations.values()]
    evaluations += [e for reference in data.references for e in reference.by_benchmark.values()]
    prompts = {(e.benchmark, s.prompt_id) for e in evaluations for s in e.samples}
    images = sum(len(e.samples) for e in evaluations)
    models = ", ".join(sorted({run.config.policy.name for run in data.runs}))
    trained = (
        f"{_count(len(runs), 'run')} of {_count(len(data.trained), 'variant')}, {_count(len(seeds), 'seed')}, "
        f"model {models}"
    )
    unfinished = sum(bool(run.unfinished) for run in runs)
    trained += f" ({unfinished} unfinished)" if unfinished else ""
    others = f"{_count(len(data.references), 'image set')} not trained here"
    parts = [*([trained] if data.runs else []), *([others] if data.references else [])]
    return f"{'; '.join(parts)}; {_count(len(prompts), 'held-out prompt')}, {_count(images, 'judged image')}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}".replace(",", "\u202f")


def markdown_page(data: ReportData, fragments: Mapping[str, Fragment]) -> str:
    parts = ["# gcpo-bench report", markdown_text(summary(data), 1000)]
    for fragment in fragments.values():
        parts += [f"## {fragment.title}", fragment.markdown.strip()]
    return "\n\n".join(parts) + "\n"


def html_page(data: ReportData, fragments: Mapping[str, Fragment], refresh_s: int = 0) -> str:
    style, script = asset("report.css"), asset("token_maps.js") + asset("explore.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        templates()
        .get_template("report.html")
        .render(
            policy=policy,
            refresh_s=refresh_s,
            style=Markup(style),
            script=Markup(script),
            summary=plain(summary(data), 1000),
            notes=len(data.notes),
            sections=list(fragments.items()),
            blocks=[
                (identifier, script_json(content))
                for fragment in fragments.values()
                for identifier, content in fragment.page_data.items()
            ],
        )
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def script_json(content: Any) -> Markup:
    """JSON that can stand in a script element: nothing in it can end the element or begin another."""
    text = json.dumps(jsonable(content), separators=(",", ":"), allow_nan=False)  # ASCII: U+2028 and U+2029 are escaped
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))

"""`gcpo-bench report`: what the runs show, in one file to look at and several to compute with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import RunsDirOption, complete_runs
from .output import note

FORMATS = ("html", "md", "tex", "csv", "json")


def report_command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Runs; default: all evaluated ones.", autocompletion=complete_runs),
    ] = None,
    runs_dir: RunsDirOption = Path("runs"),
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
    formats: Annotated[str, typer.Option("--format", help="Comma-separated: html, md, tex, csv, json.")] = ",".join(
        FORMATS
    ),
) -> None:
    """Write report.html, .md, .tex, .csv and .json on one run or many."""
    from gcpo_bench.runs import open_run

    wanted = _formats(formats)
    paths = [open_run(run, runs_dir).path for run in runs] if runs else evaluated_runs(runs_dir)
    from gcpo_bench.reports.page import write_report

    written = write_report(paths, out, wanted)
    for path in written:
        print(path)
    if page := next((path for path in written if path.suffix == ".html"), None):
        note(f"open {page.resolve().as_uri()} in a browser")


def _formats(text: str) -> list[str]:
    from gcpo_bench.errors import ConfigError, did_you_mean

    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in FORMATS]:
        raise ConfigError(f"unknown --format {unknown[0]!r}", hint=did_you_mean(unknown[0], FORMATS))
    if not names:
        raise ConfigError("--format names no format", hint=f"known: {', '.join(FORMATS)}")
    return names


def evaluated_runs(root: Path) -> list[Path]:
    """Raises RunError where there is none."""
    from gcpo_bench.errors import RunError
    from gcpo_bench.runs import list_runs

    known = list_runs(root)
    paths = [path for path in known if any((path / "evaluations").glob("*/scores.json"))]
    if not paths:
        what = "no evaluated run" if known else "no run"
        mend = f"gcpo-bench evaluate {known[0].name}" if known else "gcpo-bench train"
        raise RunError(f"{what} in {root}", hint=f"first: {mend}; or choose another --runs-dir")
    return paths

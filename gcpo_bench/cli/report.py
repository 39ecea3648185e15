"""`gcpo-bench report`: what the runs show, in one file to look at and several to compute with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .options import RunsDirOption, complete_runs
from .output import note

FORMATS = ("html", "md", "tex", "csv", "json", "figures")
ALL = ",".join(FORMATS)


def report_command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Runs; default: all evaluated ones.", autocompletion=complete_runs),
    ] = None,
    runs_dir: RunsDirOption = Path("runs"),
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
    formats: Annotated[str, typer.Option("--format", help=f"Comma-separated: {', '.join(FORMATS)}.")] = ",".join(
        FORMATS
    ),
    watch: Annotated[
        int, typer.Option(min=0, metavar="SECONDS", help="Write it again as runs change, looking this often; 0: once.")
    ] = 0,
) -> None:
    """Write report.html, .md, .tex, .csv, .json and figures/ on one run or many."""
    wanted = _formats(formats)
    if watch:
        _watch(runs or [], runs_dir, out, wanted, watch)
    for path in _shown(_write(runs or [], runs_dir, out, wanted), out):
        print(path)
    if "html" in wanted:
        note(f"open {(out / 'report.html').resolve().as_uri()} in a browser")


def _write(runs: list[str], runs_dir: Path, out: Path, wanted: list[str], refresh_s: int = 0) -> list[Path]:
    from gcpo_bench.reports.page import write_report

    return write_report(_paths(runs, runs_dir), out, wanted, refresh_s=refresh_s)


def _paths(runs: list[str], runs_dir: Path) -> list[Path]:
    from gcpo_bench.runs import open_run

    return [open_run(run, runs_dir).path for run in runs] if runs else evaluated_runs(runs_dir)


def _shown(written: list[Path], out: Path) -> list[Path]:
    """Files of the folder itself, and its folders."""
    return list(dict.fromkeys(path if path.parent == out else path.parent for path in written))


def _watch(runs: list[str], runs_dir: Path, out: Path, wanted: list[str], seconds: int) -> None:
    """Until Ctrl-C. What cannot be read yet, or not at this moment, is tried again when something has changed."""
    from gcpo_bench.errors import CorruptDataError, RunError

    seen: object = None
    note(f"watching {runs_dir} every {seconds} s; Ctrl-C writes the report a last time and ends")
    try:
        while True:
            found = _state_of(runs_dir)
            if found != seen:
                seen = found
                try:
                    _write(runs, runs_dir, out, wanted, refresh_s=seconds)
                    note(f"{time.strftime('%H:%M:%S')} wrote {out}")
                except (RunError, CorruptDataError) as error:
                    note(f"{time.strftime('%H:%M:%S')} nothing to report yet: {error}")
            time.sleep(seconds)
    except KeyboardInterrupt:
        note("")


def _state_of(runs_dir: Path) -> set[tuple[str, int, int]]:
    """Changes whenever a step is logged, a run begins or ends, or something is evaluated or analysed."""
    names = ("status.json", "metrics.jsonl", "evaluations/*/scores.json", "analyses/*/*")
    found = set()
    for path in (path for name in names for path in runs_dir.glob(f"*/{name}")):
        try:
            stat = path.stat()
        except FileNotFoundError:  # the run was removed just now
            continue
        found.add((str(path), stat.st_size, stat.st_mtime_ns))
    return found


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

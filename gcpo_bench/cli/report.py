"""`gcpo-bench report`: what the runs show, in one file to look at and several to compute with."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import RunsDirOption, complete_runs
from .output import note

if TYPE_CHECKING:
    from gcpo_bench.runs import Run

FORMATS = ("html", "md", "tex", "csv", "json", "figures")
ALL = ",".join(FORMATS)


def report_command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...", help="Runs, beside what they started from; default: all.", autocompletion=complete_runs
        ),
    ] = None,
    runs_dir: RunsDirOption = Path("runs"),
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
    formats: Annotated[str, typer.Option("--format", help=f"Comma-separated: {', '.join(FORMATS)}.")] = ",".join(
        FORMATS
    ),
    evaluations_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of image sets that are no runs, shown beside them (evaluations)."),
    ] = None,
    references: Annotated[bool, typer.Option("--references/--no-references", help="Whether to show those.")] = True,
    watch: Annotated[
        int, typer.Option(min=0, metavar="SECONDS", help="Write it again as runs change, looking this often; 0: once.")
    ] = 0,
) -> None:
    """Write report.html, .md, .tex, .csv, .json and figures/ on one run or many, and on image sets that are no runs."""
    wanted = _formats(formats)
    places = _Places(runs or [], runs_dir, _evaluations_dir(evaluations_dir) if references else None)
    if watch:
        _watch(places, out, wanted, watch)
    for path in shown(_write(places, out, wanted), out):
        print(path)
    if "html" in wanted:
        note(f"open {(out / 'report.html').resolve().as_uri()} in a browser")


@dataclass(frozen=True, slots=True)
class _Places:
    """Where what is reported on lies."""

    runs: list[str]
    """Named; none: all evaluated ones."""
    runs_dir: Path
    evaluations_dir: Path | None

    def run_paths(self, *, may_be_none: bool) -> list[Path]:
        """Raises RunError for a name without a run, and where there is no evaluated run, unless there may be none."""
        from gcpo_bench.errors import RunError
        from gcpo_bench.runs import open_run

        if self.runs:
            named = [open_run(run, self.runs_dir) for run in self.runs]
            starts = [start for run in named if (start := _start(run)) is not None]
            return list(dict.fromkeys([*(run.path for run in named), *starts]))
        try:
            return evaluated_runs(self.runs_dir)
        except RunError:
            if may_be_none:
                return []
            raise

    def references(self) -> list[Path]:
        from gcpo_bench.reports.references import reference_folders

        return reference_folders(self.evaluations_dir) if self.evaluations_dir else []

    def state(self) -> set[tuple[str, int, int]]:
        """Changes whenever a step is logged, a run begins or ends, or something is evaluated or analysed."""
        names = ("status.json", "metrics.jsonl", "evaluations/*/scores.json", "analyses/*/*")
        watched = [path for name in names for path in self.runs_dir.glob(f"*/{name}")]
        if self.evaluations_dir:
            watched += self.evaluations_dir.glob("*/*/scores.json")
        found = set()
        for path in watched:
            try:
                stat = path.stat()
            except OSError:  # the run was removed just now, or is somebody else's
                continue
            found.add((str(path), stat.st_size, stat.st_mtime_ns))
        return found


def _start(run: Run) -> Path | None:
    """The evaluated start of a run, beside it; none where it was not evaluated, or where the run does not say which."""
    from gcpo_bench.ablations import start_name
    from gcpo_bench.runs import first_weights

    weights = first_weights(run.environments())
    path = run.path.parent / start_name(run.config, weights)
    return path if weights and _is_evaluated(path) else None


def _is_evaluated(path: Path) -> bool:
    """A folder that may not be looked into holds nothing for this user; that is said."""
    try:
        return any((path / "evaluations").glob("*/scores.json"))
    except OSError as error:
        note(f"passing over {path}: {error.strerror}")
        return False


def _evaluations_dir(given: Path | None) -> Path:
    """Raises ConfigError where a folder is named that is none; the default one need not be there."""
    from gcpo_bench.errors import ConfigError

    if given is not None and not given.is_dir():
        raise ConfigError(
            f"--evaluations-dir {given} is no folder",
            hint="image sets are scored with: gcpo-bench evaluate --images DIR",
        )
    return given or Path("evaluations")


def _write(places: _Places, out: Path, wanted: list[str], refresh_s: int = 0) -> list[Path]:
    from gcpo_bench import leftovers
    from gcpo_bench.reports.page import write_report

    for folder in (out, out / "figures"):
        leftovers.remove_files(folder, deep=False)
    references = places.references()
    paths = places.run_paths(may_be_none=bool(references))

    def waits(owner: str) -> None:
        note(f"{out}: waiting for {owner}, which writes a report there")

    return write_report(paths, out, wanted, references=references, refresh_s=refresh_s, on_wait=waits)


def shown(written: list[Path], out: Path) -> list[Path]:
    """Files of the folder itself, and its folders."""
    return list(dict.fromkeys(path if path.parent == out else path.parent for path in written))


def _watch(places: _Places, out: Path, wanted: list[str], seconds: int) -> None:
    """Until Ctrl-C. What cannot be read yet, or not at this moment, is tried again when something has changed."""
    from gcpo_bench.errors import CorruptDataError, RunError

    seen: object = None
    note(f"watching {places.runs_dir} every {seconds} s; Ctrl-C writes the report a last time and ends")
    try:
        while True:
            found = places.state()
            if found != seen:
                seen = found
                try:
                    with _uninterrupted():
                        _write(places, out, wanted, refresh_s=seconds)
                    note(f"{time.strftime('%H:%M:%S')} wrote {out}")
                except (RunError, CorruptDataError) as error:
                    note(f"{time.strftime('%H:%M:%S')} nothing to report yet: {error}")
            time.sleep(seconds)
    except KeyboardInterrupt:
        note("")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end: a library that was stopped half-way is not fit to write a last time."""
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


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
    paths = [path for path in known if _is_evaluated(path)]
    if not paths:
        what = "no evaluated run" if known else "no run"
        mend = f"gcpo-bench evaluate {known[0].name}" if known else "gcpo-bench train"
        raise RunError(f"{what} in {root}", hint=f"first: {mend}; or choose another --runs-dir")
    return paths

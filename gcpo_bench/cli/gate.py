"""`gcpo-bench gate` and `gcpo-bench baseline`: hold runs against a committed baseline, for CI."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import RunsDirOption, complete_runs
from .output import note, print_json, print_table

if TYPE_CHECKING:
    from gcpo_bench.reports.baseline import Entry
    from gcpo_bench.reports.measures import Measure

EXIT_CODES = {"pass": 0, "regression": 1, "not comparable": 2, "inconclusive": 3}
POLICIES = ("fail", "pass")

RunsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RUN]...", help="Runs; default: all evaluated ones.", autocompletion=complete_runs),
]
BaselineOption = Annotated[Path, typer.Option(help="The baseline file.")]

UnfinishedOption = Annotated[
    bool, typer.Option("--unfinished", help="Take runs that did not come to their last step, too.")
]

baseline_app = typer.Typer(help="The file a gate compares with.", no_args_is_help=True, rich_markup_mode=None)


def gate_command(
    runs: RunsArgument = None,
    baseline: BaselineOption = Path("baselines/main.json"),
    margin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BENCHMARK=NUMBER",
            help="Tolerated loss: scenes=1.5pt (2pt), or as the benchmark is shown: hps-gcpo400=0.2; repeatable.",
        ),
    ] = None,
    perf: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="Also check speed ratios: tolerated slowdown, 10%.")
    ] = None,
    inconclusive: Annotated[
        str, typer.Option(help="What an undecided check does: fail (exit code 3) or pass.")
    ] = "fail",
    junit: Annotated[
        Path | None, typer.Option(help="Write JUnit XML here; undecided checks are skipped, which reads as green.")
    ] = None,
    summary: Annotated[Path | None, typer.Option(help="Append Markdown here ($GITHUB_STEP_SUMMARY).")] = None,
    unfinished: UnfinishedOption = False,
    runs_dir: RunsDirOption = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Exit 0 if a loss is ruled out, 1 if it is proven, 3 if neither, 2 if runs and baseline cannot be compared."""
    from gcpo_bench.errors import ConfigError, did_you_mean
    from gcpo_bench.files import write_text
    from gcpo_bench.reports import baseline as baselines
    from gcpo_bench.reports import gate_formats
    from gcpo_bench.reports.gate import gate, overall

    if inconclusive not in POLICIES:
        raise ConfigError(f"unknown --inconclusive {inconclusive!r}", hint=did_you_mean(inconclusive, POLICIES))
    slowdown = _percent(perf) if perf else None
    old = baselines.read(baseline)
    tolerated = _margins(margin or [], {entry.benchmark: entry.measure for entry in old})
    new, texts = _entries(runs, runs_dir, unfinished)
    checks = gate(old, new, margins=tolerated, performance=slowdown)
    verdict = overall(checks)
    if junit:
        write_text(junit, gate_formats.junit(checks))
        if verdict == "inconclusive":
            note(f"{junit}: what is undecided is `skipped` there, and readers of JUnit show that as green")
    _append_summary(gate_formats.markdown(checks, texts), summary)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in gate_formats.workflow_commands(checks):
            print(line)
    if as_json:
        print_json({"verdict": verdict, "checks": [gate_formats.record(check) for check in checks]})
    else:
        print_table(("check", "verdict", "found"), [(c.name, c.state, gate_formats.words(c)) for c in checks])
        note(f"gate: {verdict}")
    if verdict == "inconclusive" and inconclusive == "pass":
        return 0
    return EXIT_CODES[verdict]


@baseline_app.callback()
def baseline_main() -> None:
    """Make the file that a gate compares with."""


@baseline_app.command("update", epilog="Example: gcpo-bench baseline update grpo gcpo --out baselines/main.json")
def baseline_update(
    runs: RunsArgument = None,
    out: BaselineOption = Path("baselines/main.json"),
    unfinished: UnfinishedOption = False,
    runs_dir: RunsDirOption = Path("runs"),
) -> None:
    """Write the scores and speed ratios of runs to a small file that can be committed."""
    from gcpo_bench import __version__
    from gcpo_bench.errors import RunError
    from gcpo_bench.reports import baseline as baselines

    found, _ = _entries(runs, runs_dir, unfinished)
    if not found:
        raise RunError("none of these runs was trained and evaluated", hint="gcpo-bench train, then evaluate")
    baselines.write(out, found, __version__)
    print(out)
    for entry in found:
        prompts = len(set.union(*(set(scores) for scores in entry.scores.values())))
        note(f"{entry.name}: {prompts} prompts, seeds {', '.join(map(str, sorted(entry.scores)))}")


def _entries(runs: list[str] | None, runs_dir: Path, unfinished: bool) -> tuple[list[Entry], dict[str, str]]:
    """The variants among the runs, and the text of every prompt.

    Raises RunError for a run that is named and did not come to its end, unless `unfinished`; of those that nobody named
    it is left out.
    """
    from gcpo_bench.errors import RunError
    from gcpo_bench.reports.baseline import entries
    from gcpo_bench.reports.load import load
    from gcpo_bench.runs import open_run

    from .report import evaluated_runs

    paths = [open_run(run, runs_dir).path for run in runs] if runs else evaluated_runs(runs_dir)
    data = load(paths, strict=bool(runs))
    for line in data.notes:
        note(line)
    open_ends = [] if unfinished else [variant for variant in data.trained if variant.unfinished]
    for run in (run for variant in open_ends for run in variant.runs):
        told = f"{run.name} is no finished run ({run.unfinished})"
        if runs:
            mend = f"gcpo-bench train --resume --name {run.name}, then evaluate it"
            raise RunError(told, hint=f"{mend}; or leave it out, or take it as it is with --unfinished")
        note(f"{told} and is left out; --unfinished takes it")
    data = replace(data, variants=tuple(variant for variant in data.variants if variant not in open_ends))
    texts = {p: t for run in data.runs for e in run.evaluations.values() for p, t in e.prompt_texts().items()}
    return entries(data), texts


def _margins(texts: Sequence[str], measures: Mapping[str, Measure]) -> dict[str, float]:
    """Benchmark -> margin in raw units, from points or from numbers as the benchmark's scores are shown."""
    from gcpo_bench.errors import ConfigError, did_you_mean

    from .design import parse_points

    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigError(f"--margin {text!r} is not BENCHMARK=NUMBER", hint="write it as scenes=1.5pt")
        if name not in measures:
            raise ConfigError(
                f"--margin names {name!r}, the baseline has none of it", hint=did_you_mean(name, measures)
            )
        measure = measures[name]
        found[name] = parse_points(value) if measure.is_share else _positive(value, measure) / measure.factor
    return found


def _positive(text: str, measure: Measure) -> float:
    from gcpo_bench.errors import ConfigError

    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ConfigError(f"--margin {text!r} is no number above 0", hint=f"in units of {measure.label}, as 0.2")
    return value


def _percent(text: str) -> float:
    from gcpo_bench.errors import ConfigError

    try:
        value = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        value = 0.0
    if not 0 < value < 10:
        raise ConfigError(f"--perf {text!r} is no percentage above 0", hint="write it as 10%")
    return value


def _append_summary(text: str, path: Path | None) -> None:
    from gcpo_bench.files import writing

    target = path or (Path(os.environ["GITHUB_STEP_SUMMARY"]) if os.environ.get("GITHUB_STEP_SUMMARY") else None)
    if target is None:
        return
    with writing(target), target.open("a", encoding="utf-8") as file:
        file.write(text)

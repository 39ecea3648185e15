"""`gcpo-bench evaluate`: scores as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcpo_bench.labels import label

from .output import note, print_table

if TYPE_CHECKING:
    from gcpo_bench.evaluators.types import Evaluation, Metric

Z_95 = 1.96
MAX_NOTES = 50
"""Lines about single images that are printed."""


def outcome(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "metrics": {name: _record(metric) for name, metric in evaluation.metrics.items()},
        "notes": list(evaluation.notes),
        "label": label(evaluation.identity),
        "headline": evaluation.headline,
        "panel": list(evaluation.panel),
        "identity": json.loads(json.dumps(dict(evaluation.identity))),  # as it is read back
    }


def refuse_unscored(evaluations: list[Evaluation]) -> None:
    """Images that are there but could not be scored make the evaluation incomplete: exit code 5, scores kept."""
    from gcpo_bench.errors import CorruptDataError

    for evaluation in evaluations:
        unscored = max((metric.unscored for metric in evaluation.metrics.values()), default=0)
        unscored = max(unscored - evaluation.identity.get("missing", 0), evaluation.unanswered)
        if unscored > 0:
            raise CorruptDataError(
                f"{evaluation.benchmark}: {unscored} images could not be scored; the scores of the others are kept",
                hint="samples.jsonl has the reason of each in 'unscored'; mend them and run the same command again",
            )


def _record(metric: Metric) -> dict[str, Any]:
    """A metric and its 95 % interval."""
    reach = Z_95 * metric.stderr
    low, high = metric.value - reach, metric.value + reach
    if metric.unit == "share":  # a normal interval near 0 or 1 would reach beyond what a share can be
        low, high = max(low, 0.0), min(high, 1.0)
    return finite({**asdict(metric), "low": low, "high": high})


def finite(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has neither NaN nor infinity: what cannot be told is null."""
    strange = {key for key, value in fields.items() if isinstance(value, float) and not math.isfinite(value)}
    return {key: None if key in strange else value for key, value in fields.items()}


def print_result(result: dict[str, Any]) -> None:
    if len(result["panel"]) > 1:
        _print_panel(result)
    else:
        _print_one_score(result)
    if result.get("start"):
        by = f", {result['headline']}" if result["panel"] else ""
        print(f"{result['run']} - its start{by}: {_difference(result['difference'])}")
    if result["label"]:
        print(result["label"])


def _print_one_score(result: dict[str, Any]) -> None:
    again = result["headline"] if result["panel"] else None  # a panel's only scorer is what `overall` and tasks are of
    metrics = {name: each for name, each in result["metrics"].items() if name.split("/")[0] != again}
    start = result.get("start")
    columns = ["", f"{result['run']}>", "95 % interval>", "n>"]
    rows = [[name.removeprefix("task/"), *_cells(metric), metric["n"]] for name, metric in metrics.items()]
    if start:
        columns += ["start>", "95 % interval>"]
        others = [_cells(start["metrics"][name]) if name in start["metrics"] else ("-", "-") for name in metrics]
        rows = [[*row, *other] for row, other in zip(rows, others, strict=True)]
    judge = f", {_scale(result['headline'], metrics['overall'])}" if result["panel"] else ""
    print_table(columns, rows, title=f"{result['benchmark']}{judge}{_how_far(result)}")


def _how_far(result: dict[str, Any]) -> str:
    """Of a run that is not finished."""
    return f", {result['run']} at {result['unfinished']}" if "unfinished" in result else ""


def _print_panel(result: dict[str, Any]) -> None:
    """Tasks down, scorers across, each on its own scale: of the run, then of its start."""
    start = result.get("start") or {}
    for name, metrics in ((result["run"], result["metrics"]), ("start", start.get("metrics"))):
        if not metrics:
            continue
        scorers = [scorer for scorer in result["panel"] if scorer in metrics]
        tasks = ["", *(key.removeprefix("task/") for key in metrics if key.startswith("task/"))]
        rows = [
            [
                task or "overall",
                *(_cell(metrics.get(f"{scorer}/{task}" if task else scorer)) for scorer in scorers),
                metrics[f"task/{task}" if task else "overall"]["n"],
            ]
            for task in tasks
        ]
        columns = ["", *(f"{_scale(scorer, metrics[scorer])}>" for scorer in scorers), "n>"]
        far = _how_far(result) if name == result["run"] else ""
        print_table(columns, rows, title=f"{result['benchmark']}, {name}, each scorer on its own scale{far}")


def _scale(scorer: str, metric: dict[str, Any]) -> str:
    """Name and scale, where it is not that of the scorer itself."""
    return scorer if metric["unit"] in {"raw", "share"} else f"{scorer} {metric['unit']}"


def _cell(metric: dict[str, Any] | None) -> str:
    """Value and half of the 95 % interval."""
    if metric is None:
        return "-"
    reach = "" if metric["low"] is None else f" ±{Z_95 * metric['stderr']:.3f}"
    return f"{metric['value']:.3f}{reach}"


def _difference(difference: dict[str, Any]) -> str:
    value, low, high = (difference[key] for key in ("value", "low", "high"))
    if low is None or high is None:
        return f"{value:+.3f} (too few prompts for an interval)"
    return f"{value:+.3f} (95 % interval {low:+.3f} to {high:+.3f}, {difference['n']} prompts, paired)"


def print_verdicts(results: Sequence[dict[str, Any]]) -> None:
    """What a report on these runs and their starts says of them: the same tests, in the same words.

    Not where another process has evaluated one of them otherwise meanwhile: the words would be of its scores.
    """
    runs = {Path(result["path"]) for result in results if result.get("start")}
    starts = {Path(result["start"]["path"]) for result in results if result.get("start")}
    if not runs:
        return
    from gcpo_bench.reports.comparisons import sentences
    from gcpo_bench.reports.load import load

    data = load([*runs, *starts])
    stored = {(str(run.path), name): dict(each.identity) for run in data.runs for name, each in run.evaluations.items()}
    for result in results:
        for each in (result, *filter(None, [result.get("start")])):
            if stored.get((each["path"], each["identity"]["benchmark"])) != each["identity"]:
                note(f"{each['run']} has just been evaluated otherwise; how they compare: gcpo-bench report")
                return
    benchmarks = list(dict.fromkeys(result["identity"]["benchmark"] for result in results))
    for line in sentences(data, benchmarks):
        print(line)


def _cells(metric: dict[str, Any]) -> tuple[str, str]:
    interval = "-" if metric["low"] is None else f"{metric['low']:.3f} to {metric['high']:.3f}"
    return f"{metric['value']:.3f}", interval


class Notes:
    """Prints lines about single images, but not thousands of them."""

    def __init__(self) -> None:
        self.told: set[str] = set()

    def __call__(self, line: str) -> None:
        if line not in self.told and len(self.told) < MAX_NOTES:
            note(line.replace("\n", "\\n"))
        self.told.add(line)

    def rest(self, evaluation: Evaluation) -> None:
        """The lines of an evaluation that is finished, and kept with its scores."""
        for line in evaluation.notes:
            self(line)
        self.close("; scores.json has every line")

    def close(self, where: str = "") -> None:
        """Say how many lines were not printed, and where they are."""
        if (more := len(self.told) - MAX_NOTES) > 0:
            note(f"... and {more} more{where}")

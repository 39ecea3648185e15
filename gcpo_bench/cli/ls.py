"""`gcpo-bench ls`: what there is to choose from."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import JsonOption, RunsDirOption
from .output import print_json, print_table


class Kind(StrEnum):
    presets = "presets"
    methods = "methods"
    models = "models"
    rewards = "rewards"
    selectors = "selectors"
    weightings = "weightings"
    benchmarks = "benchmarks"
    generators = "generators"
    scorers = "scorers"
    plans = "plans"
    runs = "runs"
    cells = "cells"


LISTS = {
    Kind.presets: "whole configurations, for train --preset",
    Kind.methods: "which tokens, which weight, which loss: --method",
    Kind.models: "policies: --model",
    Kind.rewards: "what training maximises: -o rewards=[{name: ...}]",
    Kind.selectors: "criteria that choose tokens: selection.selectors",
    Kind.weightings: "factors of the chosen tokens: weighting.name",
    Kind.benchmarks: "what evaluate measures: --bench",
    Kind.generators: "what draws images that are no run's: evaluate --generator",
    Kind.scorers: "networks that judge an image: bench evaluate --scorers",
    Kind.plans: "grids of variants, for ablate --plan",
    Kind.runs: "what was trained, in --runs-dir",
    Kind.cells: "what a grid has to do, in --runs-dir",
}


def ls_command(
    kind: Annotated[Kind | None, typer.Argument(help="What to list; without it, what there is to list.")] = None,
    runs_dir: RunsDirOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """List what there is: presets, methods, models, runs, ..."""
    if kind is None:
        rows = [{"list": f"gcpo-bench ls {each.value}", "of": text} for each, text in LISTS.items()]
        if as_json:
            print_json([each.value for each in LISTS])
        else:
            print_table(list(rows[0]), [list(row.values()) for row in rows])
        return
    listed = {Kind.runs: _runs, Kind.cells: _cells}
    rows = listed[kind](runs_dir) if kind in listed else _registered(kind)
    if as_json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])
    else:
        print(f"no {kind} in {runs_dir}")


def _cell(value: Any) -> Any:
    return f"{value:.3f}" if isinstance(value, float) else value


def _registered(kind: Kind) -> list[dict[str, Any]]:
    if kind is Kind.presets:
        from gcpo_bench.resolve import list_presets

        return [{"name": preset.name, "summary": preset.description} for preset in list_presets()]
    if kind is Kind.methods:
        from gcpo_bench.methods import METHODS

        return [{"name": name, "summary": method.summary} for name, method in METHODS.items()]
    if kind is Kind.plans:
        from gcpo_bench.ablations import list_plans

        return [{"name": name, "summary": text} for name, text in list_plans()]
    from gcpo_bench import registry

    registries = {
        Kind.models: registry.POLICIES,
        Kind.rewards: registry.REWARDS,
        Kind.selectors: registry.SELECTORS,
        Kind.weightings: registry.WEIGHTINGS,
        Kind.benchmarks: registry.BENCHMARKS,
        Kind.generators: registry.GENERATORS,
        Kind.scorers: registry.SCORERS,
    }
    rows = [{"name": name, "summary": entry.summary} for name, entry in registries[kind].entries.items()]
    if kind is Kind.benchmarks:
        rows += [
            {"name": name, "summary": f"all {len(members)} benchmarks {name}-..."}
            for name, members in registry.BENCHMARK_GROUPS.items()
        ]
    return rows


def _cells(root: Path) -> list[dict[str, Any]]:
    from gcpo_bench.ledger import FOLDER, Ledger

    if not (root / FOLDER).is_dir():
        return []
    return [
        {
            "run": state.cell.name,
            "state": state.state,
            "attempts": state.attempts,
            "failures": state.failures,
            "seconds": state.seconds,
            "error": state.error or None,
            "id": state.cell.id,
        }
        for state in Ledger(root).states()
    ]


def _runs(root: Path) -> list[dict[str, Any]]:
    from gcpo_bench.runs import list_runs

    return [_run(path) for path in list_runs(root)]


def _run(path: Path) -> dict[str, Any]:
    """One run in a line; a damaged one is listed with what is wrong instead of hiding the others."""
    from gcpo_bench.errors import GcpoBenchError
    from gcpo_bench.files import reading
    from gcpo_bench.runs import open_run
    from gcpo_bench.variants import name_of

    row: dict[str, Any] = dict.fromkeys(("name", "state", "step", "of", "method", "model", "seed", "reward", "overall"))
    row["name"] = path.name
    try:
        with reading(path):
            run = open_run(path)
            status, rows = run.status(), run.metrics()
            return row | {
                "state": status.state,
                "step": status.step,
                "of": run.config.num_steps,
                "method": name_of(run.config),
                "model": run.config.policy.name,
                "seed": run.config.seed,
                "reward": rows[-1].get("reward/mean") if rows else None,
                "overall": _overall(run.evaluation_dir(run.config.evaluation.benchmark) / "scores.json"),
            }
    except GcpoBenchError as error:
        return row | {"state": f"damaged: {error}"}


def _overall(path: Path) -> float | None:
    from gcpo_bench.runs import read_json

    if not path.exists():
        return None
    match read_json(path):
        case {"metrics": {"overall": {"value": int() | float() as value}}}:
            return float(value)
        case _:
            return None

"""Options that several commands share, and what the shell completes for them. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _starting(incomplete: str, names: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, summary) for name, summary in names.items() if name.startswith(incomplete)]


def complete_presets(incomplete: str) -> list[tuple[str, str]]:
    from gcpo_bench.resolve import list_presets

    return _starting(incomplete, {preset.name: preset.description for preset in list_presets()})


def complete_methods(incomplete: str) -> list[tuple[str, str]]:
    from gcpo_bench.methods import METHODS

    return _starting(incomplete, {name: method.summary for name, method in METHODS.items()})


def complete_models(incomplete: str) -> list[tuple[str, str]]:
    from gcpo_bench.registry import POLICIES

    return _starting(incomplete, {name: entry.summary for name, entry in POLICIES.entries.items()})


def complete_benchmarks(incomplete: str) -> list[tuple[str, str]]:
    from gcpo_bench.registry import BENCHMARK_GROUPS, BENCHMARKS

    summaries = {name: entry.summary for name, entry in BENCHMARKS.entries.items()}
    return _starting(incomplete, summaries | dict.fromkeys(BENCHMARK_GROUPS, "all of them"))


def complete_runs(context: typer.Context, incomplete: str) -> list[str]:
    from gcpo_bench.runs import list_runs

    root = Path(context.params.get("runs_dir") or "runs")
    return [path.name for path in list_runs(root) if path.name.startswith(incomplete)]


PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", help="Shipped preset or path of a .yaml file (scenes-gcpo).", autocompletion=complete_presets
    ),
]
MethodOption = Annotated[
    str | None, typer.Option(help="Method: grpo, gcpo, ...; see `ls methods`.", autocompletion=complete_methods)
]
ModelOption = Annotated[
    str | None, typer.Option(help="Model: scenes-12, ...; see `ls models`.", autocompletion=complete_models)
]
RatioOption = Annotated[float | None, typer.Option(help="Share of tokens each selector takes, above 0, at most 1.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of everything random.")]
StepsOption = Annotated[int | None, typer.Option("--num-steps", help="Training steps.")]
OverrideOption = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", metavar="KEY=VALUE", help="Set one value, as in -o loss.beta=0.1; repeatable."),
]
RunsDirOption = Annotated[Path, typer.Option("--runs-dir", help="Folder of the runs.")]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Run the code from outside the package that the run's folder names.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Name or path of a run.", autocompletion=complete_runs)]

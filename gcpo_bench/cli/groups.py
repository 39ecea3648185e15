"""Names that stand for several benchmarks, such as all categories of T2I-CompBench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .output import note, print_table


def expanded(
    names: Sequence[str], options: Mapping[str, Any], images: Path | None = None, *, rescore: bool = False
) -> list[str]:
    """Benchmarks behind names, each once; of a group those that can run: with all they need, and with `images`.

    What else a group holds is named with what it lacks; with `rescore` nothing is needed and nothing is left out.
    Raises ConfigError or PrerequisiteError where nothing of a group can run, and what the options cause.
    """
    from gcpo_bench.registry import BENCHMARK_GROUPS

    found: list[str] = []
    for name in names:
        members = BENCHMARK_GROUPS.get(name, (name,))
        found += members if rescore or name not in BENCHMARK_GROUPS else _ready(members, options, images)
    return list(dict.fromkeys(found))


def _ready(members: Sequence[str], options: Mapping[str, Any], images: Path | None) -> list[str]:
    from gcpo_bench.errors import ConfigError, GcpoBenchError, PrerequisiteError
    from gcpo_bench.evaluators.layouts import holds_compbench
    from gcpo_bench.evaluators.runner import make_benchmark

    lacking: dict[str, GcpoBenchError] = {}
    for member in members:
        try:
            prompts = make_benchmark(member, "", **options).prompts()
        except PrerequisiteError as error:
            lacking[member] = error
            continue
        if images is not None and not holds_compbench(images, prompts):
            lacking[member] = ConfigError(
                f"{images} holds no images of {member}", hint="they belong into <category>/samples/<prompt>_000000.png"
            )
    if len(lacking) == len(members):
        raise lacking[members[0]]
    for member, reason in lacking.items():
        note(f"{member} is left out: {reason} ({reason.hint})")
    return [member for member in members if member not in lacking]


def print_overall(results: Sequence[Mapping[str, Any]]) -> None:
    """One line a result, where there are several."""
    if len(results) < 2:
        return
    rows = []
    for result in results:
        overall = result["metrics"]["overall"]
        low, high = overall["low"], overall["high"]
        interval = "-" if low is None else f"{low:.3f} to {high:.3f}"
        row = [result["run"], result["benchmark"], f"{overall['value']:.3f}", interval, overall["n"]]
        rows.append([*row, overall["unscored"], result["label"]])
    columns = ["", "benchmark", "overall>", "95 % interval>", "n>", "unscored>", "to be told with it"]
    print_table(columns, rows, title="overview")

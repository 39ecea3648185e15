"""Names that stand for several benchmarks, such as all categories of T2I-CompBench; and what benchmarks lack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .output import note, print_table

if TYPE_CHECKING:
    from gcpo_bench.errors import GcpoBenchError

Lack = Callable[[str], "GcpoBenchError | None"]
"""What keeps a benchmark from being run; None where nothing does."""


def expanded(names: Sequence[str]) -> list[str]:
    """Benchmarks behind names, each once. Raises ConfigError for a name that is none: before minutes of work."""
    from gcpo_bench.errors import ConfigError, did_you_mean
    from gcpo_bench.registry import BENCHMARK_GROUPS, BENCHMARKS

    for name in names:
        if name not in BENCHMARK_GROUPS and name not in BENCHMARKS:
            raise ConfigError(f"unknown benchmark {name!r}", hint=did_you_mean(name, [*BENCHMARKS, *BENCHMARK_GROUPS]))
    return list(dict.fromkeys(member for name in names for member in BENCHMARK_GROUPS.get(name, (name,))))


def able(names: Sequence[str], lack: Lack, *, also: GcpoBenchError | None = None) -> list[str]:
    """Benchmarks behind names that can be run. What else a group holds is named with what it lacks.

    Raises one error for everything that a benchmark lacks which was named itself, or all that a group holds, and for
    what is missing beside them (`also`). Data that are damaged or not whole are never passed over.
    """
    from gcpo_bench.errors import CorruptDataError, GcpoBenchError, joined
    from gcpo_bench.registry import BENCHMARK_GROUPS

    found = {member: lack(member) for member in expanded(names)}
    lacking = {member: error for member, error in found.items() if error is not None}
    passed_over: dict[str, GcpoBenchError] = {}
    for name in names:
        members = BENCHMARK_GROUPS.get(name, ())
        if any(member not in lacking for member in members):
            passed_over |= {m: lacking[m] for m in members if m in lacking and m not in names}
    passed_over = {m: error for m, error in passed_over.items() if not isinstance(error, CorruptDataError)}
    try:
        _refuse({member: error for member, error in lacking.items() if member not in passed_over}, asked=len(found))
    except GcpoBenchError as error:
        if also:
            raise joined([also, error]) from error
        raise
    if also:
        raise also
    for line in _lines(passed_over):
        note(f"left out: {line}")
    return [member for member in found if member not in passed_over]


def _refuse(lacking: Mapping[str, GcpoBenchError], *, asked: int) -> None:
    """Raises where there is anything: the one error, or a sum of several that are told before."""
    from gcpo_bench.errors import PrerequisiteError

    if not lacking:
        return
    errors = list(lacking.values())
    if len({(str(error), error.hint) for error in errors}) == 1:
        if asked == 1:
            raise errors[0]
        raise type(errors[0])(f"{', '.join(lacking)}: {errors[0]}", hint=errors[0].hint)
    for line in _lines(lacking):
        note(line)
    worst = next((error for error in errors if isinstance(error, PrerequisiteError)), errors[0])
    raise type(worst)(
        f"{len(lacking)} benchmarks cannot be run: {', '.join(lacking)}", hint="what each lacks is said above"
    )


def _lines(lacking: Mapping[str, GcpoBenchError]) -> list[str]:
    """One a reason, with all benchmarks that have it."""
    reasons: dict[str, list[str]] = {}
    for member, error in lacking.items():
        reasons.setdefault(f"{error} ({error.hint})", []).append(member)
    return [f"{', '.join(members)}: {reason}" for reason, members in reasons.items()]


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

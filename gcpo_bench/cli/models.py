"""`gcpo-bench models`: published weights on this machine, of policies and of evaluators."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import JsonOption
from .output import note, print_json, print_table, size
from .progress import progress

if TYPE_CHECKING:
    from gcpo_bench.weights import Weights

app = typer.Typer(help="Published weights: list, fetch, verify.", no_args_is_help=True, rich_markup_mode=None)

DIGITS = 12
"""Of a digest in a table; --json has all."""


def complete_weights(incomplete: str) -> list[str]:
    from gcpo_bench.catalogue import CATALOGUE, NEEDS

    return [name for name in (*CATALOGUE, *NEEDS) if name.startswith(incomplete)]


@app.command("ls", epilog="Example: gcpo-bench models ls --json")
def ls_command(as_json: JsonOption = False) -> None:
    """List weights: what for, licence, size, source, digest, and whether they are on this machine."""
    from gcpo_bench.catalogue import ELSEWHERE, here
    from gcpo_bench.weights import state

    columns = ("name", "purpose", "licence", "source", "bytes_about")
    known = {each.name: each for each in here()}
    both = (*known.values(), *ELSEWHERE.values())
    records: list[dict[str, Any]] = [{column: getattr(each, column) for column in columns} for each in both]
    for record in records:
        weights = known.get(record["name"])
        record["sha256"] = weights.sha256 if weights else ""
        record |= (
            {"state": state(weights), "path": str(weights.path)} if weights else {"state": "elsewhere", "path": None}
        )
    if as_json:
        print_json(records)
        return
    rows = [
        (
            *(each[column] for column in ("name", "purpose", "state")),
            size(each["bytes_about"]) if each["bytes_about"] else "not known",
            *(each[column] for column in ("licence", "source")),
            each["sha256"][:DIGITS] or "not known",
        )
        for each in records
    ]
    print_table(("name", "purpose", "state", "size", "licence", "source", "sha256"), rows)


MEGABYTE = 1_000_000


@app.command("fetch", epilog="Example: gcpo-bench models fetch janus-pro-1b geneval; ... --from /media/stick")
def fetch_command(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="See `gcpo-bench models ls`; a benchmark or scorer, for all it needs; or a hub id, owner/name.",
            autocompletion=complete_weights,
        ),
    ],
    source: Annotated[
        Path | None, typer.Option("--from", help="A folder with copies, for machines without network.")
    ] = None,
) -> None:
    """Put weights into the cache, from their source or from --from, and check them; an interrupted download goes on."""
    from gcpo_bench import catalogue
    from gcpo_bench.registry import POLICIES

    wanted = [each for name in names for each in catalogue.get(name)]  # a wrong name is told before the first download
    for each in {each.name: each for each in wanted}.values():
        print(_fetch(each, source))
        if each.name in POLICIES:
            note(f"next: gcpo-bench train --model {each.name} --dry-run")
        elif each.name not in catalogue.CATALOGUE:
            from gcpo_bench.training.published import model_of

            note(f"next: gcpo-bench train --model {model_of(each.path)} -o policy.weights={each.name} --dry-run")


def _fetch(weights: Weights, source: Path | None) -> Path:
    from gcpo_bench.weights import fetch

    if weights.files or source is not None:  # the hub's client shows its own bars
        return fetch(weights, source)
    with progress(f"{weights.name}, MB") as show:
        return fetch(weights, show=lambda done, total: show(done // MEGABYTE, total // MEGABYTE))


@app.command("verify", epilog="Example: gcpo-bench models verify janus-pro-1b")
def verify_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Default: all that are here.", autocompletion=complete_weights),
    ] = None,
) -> None:
    """Check weights against what was fetched or what their publishers state; without names, those that are there."""
    from gcpo_bench import catalogue
    from gcpo_bench.errors import GcpoBenchError
    from gcpo_bench.weights import state, verify

    wanted = [each for name in names or () for each in catalogue.get(name)]
    wanted = wanted or [each for each in catalogue.here() if state(each) != "missing"]
    if not wanted:
        note("no weights are on this machine; gcpo-bench models ls")
    failures: list[GcpoBenchError] = []
    for each in wanted:
        try:
            print(f"{each.name}: {verify(each)}")
        except GcpoBenchError as error:
            failures.append(error)
    for failure in failures[1:]:
        note(str(failure))
    if failures:
        raise failures[0]

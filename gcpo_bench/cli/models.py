"""`gcpo-bench models`: published weights that evaluators read, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import JsonOption
from .output import note, print_json, print_table

app = typer.Typer(help="Weights that evaluators read: list, fetch, verify.", no_args_is_help=True)
NamesArgument = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Weights.")]


@app.command("ls", epilog="Example: gcpo-bench models ls")
def ls_command(as_json: JsonOption = False) -> None:
    """List weights: what for, licence, size, source, and whether they are on this machine."""
    from gcpo_bench.evaluators.weights import WEIGHTS, missing_files

    rows: list[dict[str, Any]] = [
        {
            "name": each.name,
            "purpose": each.purpose,
            "state": "missing" if missing_files(each, each.path) else "there",
            "size": each.size,
            "licence": each.licence,
            "source": each.source,
            "sha256": each.sha256,
            "path": str(each.path),
        }
        for each in WEIGHTS.values()
    ]
    if as_json:
        print_json(rows)
        return
    columns = ("name", "purpose", "state", "size", "licence")
    print_table(columns, [[row[column] for column in columns] for row in rows])


@app.command("fetch", epilog="Example: gcpo-bench models fetch clip-vit-large-patch14 --from /media/stick")
def fetch_command(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Weights; see `gcpo-bench models ls`.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="A folder with copies, for machines without network.", exists=True)
    ] = None,
) -> None:
    """Put weights into the weights folder, from their source or from --from, and check them."""
    from gcpo_bench.evaluators.weights import fetch, get

    wanted = [get(name) for name in names]
    for each in wanted:
        print(fetch(each, source))


@app.command("verify", epilog="Example: gcpo-bench models verify")
def verify_command(names: NamesArgument = None) -> None:
    """Check weights against what their publishers state; without names, those that are there."""
    from gcpo_bench.errors import GcpoBenchError
    from gcpo_bench.evaluators.weights import WEIGHTS, get, missing_files, verify

    there = (each for each in WEIGHTS.values() if not missing_files(each, each.path))
    wanted = [get(name) for name in names] if names else list(there)
    if not wanted:
        note("no weights are on this machine; gcpo-bench models ls")
    failures: list[GcpoBenchError] = []
    for each in wanted:
        try:
            print(f"{each.name}: {verify(each)}")
        except GcpoBenchError as error:
            failures.append(error)
            note(f"{each.name}: {error}")
    if failures:
        raise failures[0]

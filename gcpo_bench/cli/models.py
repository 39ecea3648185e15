"""`gcpo-bench models`: published weights on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import JsonOption
from .output import note, print_json, print_table, size

app = typer.Typer(
    help="Published weights: what there is, what lies here, and whether it is whole.", rich_markup_mode=None
)


def complete_published(incomplete: str) -> list[str]:
    from gcpo_bench.models import PUBLISHED

    return [name for name in PUBLISHED if name.startswith(incomplete)]


NameArgument = Annotated[str, typer.Argument(help="Model; see `models ls`.", autocompletion=complete_published)]


@app.command("ls", epilog="Example: gcpo-bench models ls --json")
def ls_command(as_json: JsonOption = False) -> None:
    """List published weights: source, licence, size, and where they lie if they were fetched."""
    from gcpo_bench.models import PUBLISHED, local

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "source": model.hub_id,
            "licence": model.licence,
            "bytes": model.bytes_about,
            "here": str(local(name) or ""),
        }
        for name, model in PUBLISHED.items()
    ]
    if as_json:
        print_json(rows)
        return
    table = [(row["name"], row["source"], row["licence"], size(row["bytes"]), row["here"] or "-") for row in rows]
    print_table(("name", "source", "licence", "size>", "here"), table)


@app.command("fetch", epilog="Example: gcpo-bench models fetch janus-pro-1b --from /media/stick/Janus-Pro-1B")
def fetch_command(
    name: NameArgument,
    from_folder: Annotated[
        Path | None, typer.Option("--from", help="Take the files from this folder; needs no network.")
    ] = None,
) -> None:
    """Download a model's weights, or take them from a folder; an interrupted download goes on."""
    from gcpo_bench.models import fetch
    from gcpo_bench.registry import POLICIES

    folder = fetch(name, from_folder)
    if name in POLICIES:
        note(f"next: gcpo-bench train --model {name} --dry-run")
    print(folder)


@app.command("verify", epilog="Example: gcpo-bench models verify janus-pro-1b")
def verify_command(name: NameArgument) -> None:
    """Read a fetched model again and compare its checksums."""
    from gcpo_bench.errors import PrerequisiteError
    from gcpo_bench.models import local, published, verify

    published(name)
    folder = local(name)
    if folder is None:
        raise PrerequisiteError(f"{name} was not fetched", hint=f"gcpo-bench models fetch {name}")
    found = verify(folder)
    print(f"{folder}: {len(found)} files, all as they were fetched")

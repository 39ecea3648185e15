"""`gcpo-bench data`: published prompt sets on this machine, and what training prompts give away of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import JsonOption
from .output import note, print_json, print_table

app = typer.Typer(help="Published prompt sets: list, fetch, verify, compare.", no_args_is_help=True)
NamesArgument = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Sets; default: all.")]
SHOWN = 20
DIGITS = 12
"""Of a digest in a table; --json has all."""


@app.command("ls", epilog="Example: gcpo-bench data ls")
def ls_command(as_json: JsonOption = False) -> None:
    """List the sets: prompts, licence, source, digest, and whether they are on this machine."""
    from gcpo_bench.prompt_sets import SETS

    rows = [_row(name) for name in SETS]
    if as_json:
        print_json(rows)
        return
    columns = ("name", "prompts>", "state", "licence", "source")
    shown = [[*(row[c.rstrip(">")] for c in columns), row["sha256"][:DIGITS] or "not known"] for row in rows]
    print_table((*columns, "sha256"), shown)
    _note_phrases()


def _note_phrases() -> None:
    """T2I-CompBench also needs a table, which is shipped or made, not fetched."""
    from gcpo_bench.errors import GcpoBenchError
    from gcpo_bench.evaluators import phrases

    try:
        note(f"noun phrases of T2I-CompBench: {phrases.load().parser}")
    except GcpoBenchError as error:
        note(f"{error}; {error.hint}")


def _row(name: str) -> dict[str, Any]:
    from gcpo_bench.errors import GcpoBenchError
    from gcpo_bench.prompt_sets import SETS, verify

    found = SETS[name]
    row = {
        "name": name,
        "summary": found.summary,
        "prompts": found.count,
        "licence": found.licence,
        "source": found.source,
        "sha256": found.sha256,
        "path": str(found.path),
    }
    if not found.is_there:
        return {**row, "state": "not fetched"}
    try:
        verify(name)
    except GcpoBenchError as error:
        return {**row, "state": f"damaged: {error}"}
    return {**row, "state": "ok"}


@app.command("fetch", epilog="Example: gcpo-bench data fetch geneval --from /media/stick")
def fetch_command(
    names: NamesArgument = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A folder with copies, for machines without network.", exists=True)
    ] = None,
) -> None:
    """Put sets into the data folder with what belongs to them, from their source or --from, and check their SHA-256."""
    from gcpo_bench.errors import GcpoBenchError
    from gcpo_bench.prompt_sets import SETS, fetch, with_parts

    wanted = list(dict.fromkeys(each for name in names or SETS for each in with_parts(name)))
    failures: list[GcpoBenchError] = []
    for name in wanted:
        try:
            print(fetch(name, source))
        except GcpoBenchError as error:
            failures.append(error)
            if len(wanted) > 1:
                note(f"{name}: {error}")
    if failures:  # the others are there; the first reason stands for all
        raise failures[0]


@app.command("verify", epilog="Example: gcpo-bench data verify")
def verify_command(names: NamesArgument = None) -> None:
    """Check the sets on this machine against their published SHA-256; without names, those that are there."""
    from gcpo_bench.errors import GcpoBenchError
    from gcpo_bench.prompt_sets import SETS, get, verify

    wanted = [get(name) for name in names] if names else [each for each in SETS.values() if each.is_there]
    if not wanted:
        note("no set is on this machine; gcpo-bench data fetch")
    failures: list[GcpoBenchError] = []
    for each in wanted:
        try:
            verify(each.name)
            known = f"sha256 {each.sha256}" if each.sha256 else "their texts were not compared: no digest is known"
            print(f"{each.name}: ok, {each.count} prompts, {known}")
        except GcpoBenchError as error:
            failures.append(error)
    for failure in failures[1:]:
        note(str(failure))
    if failures:
        raise failures[0]


@app.command("overlap", epilog="Example: gcpo-bench data overlap t2i-r1 geneval")
def overlap_command(
    train: Annotated[str, typer.Argument(metavar="TRAIN", help="A prompt set or a file (.txt, .jsonl, .csv).")],
    evaluation: Annotated[str, typer.Argument(metavar="EVAL", help="The same, of evaluation prompts.")],
    as_json: JsonOption = False,
) -> None:
    """Which evaluation prompts are training prompts too: exactly, and after normalisation."""
    from gcpo_bench import outside
    from gcpo_bench.prompt_sets import overlap, texts

    outside.allow([train, evaluation])
    found = overlap(texts(train), texts(evaluation))
    if as_json:
        print_json({"exact": found.exact, "normalized": found.normalized, "total": found.total})
        return
    print(f"of {found.total} different prompts of {evaluation}, {len(found.exact)} are in {train} exactly")
    print(f"and {len(found.normalized)} more with other case, punctuation or spacing")
    both = [*found.exact, *found.normalized]
    for text in both[:SHOWN]:
        print(f"  {' '.join(text.split())}")
    if len(both) > SHOWN:
        print(f"  ... and {len(both) - SHOWN} more (--json lists all)")

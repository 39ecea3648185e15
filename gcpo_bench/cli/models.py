"""`gcpo-bench models`: published weights on this machine, of policies and of evaluators."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import JsonOption
from .output import note, print_json, print_table, size

if TYPE_CHECKING:
    from gcpo_bench.evaluators.weights import Weights

app = typer.Typer(help="Published weights: list, fetch, verify.", no_args_is_help=True, rich_markup_mode=None)


def complete_weights(incomplete: str) -> list[str]:
    from gcpo_bench.models import PUBLISHED

    return [name for name in PUBLISHED if name.startswith(incomplete)]


@app.command("ls", epilog="Example: gcpo-bench models ls --json")
def ls_command(as_json: JsonOption = False) -> None:
    """List weights: what for, licence, size, source, and whether they are on this machine."""
    rows = [*_policies(), *_evaluators()]
    if as_json:
        print_json(rows)
        return
    columns = ("name", "purpose", "state", "size", "licence")
    print_table(columns, [[row[column] for column in columns] for row in rows])


def _policies() -> list[dict[str, Any]]:
    from gcpo_bench.models import PUBLISHED, local, models_dir

    return [
        {
            "name": name,
            "purpose": each.purpose,
            "state": "there" if local(name) else "missing",
            "size": size(each.bytes_about),
            "licence": each.licence,
            "source": each.hub_id,
            "path": str(models_dir() / name),
        }
        for name, each in PUBLISHED.items()
    ]


def _evaluators() -> list[dict[str, Any]]:
    from gcpo_bench.evaluators.weights import missing_files

    return [
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
        for each in _of_evaluators().values()
    ]


def _of_evaluators() -> dict[str, Weights]:
    from gcpo_bench.evaluators.scorers.published import single_files
    from gcpo_bench.evaluators.weights import WEIGHTS

    return {**single_files(), **WEIGHTS}


@app.command("fetch", epilog="Example: gcpo-bench models fetch janus-pro-1b --from /media/stick/Janus-Pro-1B")
def fetch_command(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="See `gcpo-bench models ls`.", autocompletion=complete_weights),
    ],
    source: Annotated[
        Path | None, typer.Option("--from", help="A folder with copies, for machines without network.")
    ] = None,
) -> None:
    """Put weights into the cache, from their source or from --from, and check them; an interrupted download goes on."""
    from gcpo_bench import models
    from gcpo_bench.errors import ConfigError, did_you_mean
    from gcpo_bench.evaluators import weights
    from gcpo_bench.registry import POLICIES

    of_evaluators = _of_evaluators()
    known = {*models.PUBLISHED, *of_evaluators}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"unknown weights {unknown[0]!r}", hint=did_you_mean(unknown[0], known))
    if source is not None and not source.is_dir():
        raise ConfigError(f"there is no folder {source}", hint="name the folder that holds the files")
    for name in names:
        print(models.fetch(name, source) if name in models.PUBLISHED else weights.fetch(of_evaluators[name], source))
        if name in POLICIES:
            note(f"next: gcpo-bench train --model {name} --dry-run")


@app.command("verify", epilog="Example: gcpo-bench models verify janus-pro-1b")
def verify_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Default: all that are here.", autocompletion=complete_weights),
    ] = None,
) -> None:
    """Check weights against what was fetched or what their publishers state; without names, those that are there."""
    from gcpo_bench.errors import GcpoBenchError

    wanted = names or [row["name"] for row in (*_policies(), *_evaluators()) if row["state"] == "there"]
    if not wanted:
        note("no weights are on this machine; gcpo-bench models ls")
    failures: list[GcpoBenchError] = []
    for name in wanted:
        try:
            print(f"{name}: {_verified(name)}")
        except GcpoBenchError as error:
            failures.append(error)
    for failure in failures[1:]:
        note(str(failure))
    if failures:
        raise failures[0]


def _verified(name: str) -> str:
    from gcpo_bench import models
    from gcpo_bench.evaluators import weights

    of_evaluators = _of_evaluators()
    if name not in models.PUBLISHED and name in of_evaluators:
        return weights.verify(of_evaluators[name])
    return f"{len(models.verify(models.require(name)))} files, as they were fetched"

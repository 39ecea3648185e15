"""`gcpo-bench show`: the configuration a command line means, and where each value came from."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import (
    JsonOption,
    MethodOption,
    ModelOption,
    OverrideOption,
    RatioOption,
    SeedOption,
    StepsOption,
    complete_presets,
)
from .output import note, print_json, print_table


def show_command(
    preset: Annotated[
        str | None,
        typer.Argument(help="Shipped preset or path of a .yaml file (scenes-gcpo).", autocompletion=complete_presets),
    ] = None,
    method: MethodOption = None,
    model: ModelOption = None,
    ratio: RatioOption = None,
    seed: SeedOption = None,
    num_steps: StepsOption = None,
    override: OverrideOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the resolved configuration and the origin of each value."""
    from gcpo_bench.files import inline_yaml
    from gcpo_bench.resolve import resolve

    flags = {"method": method, "model": model, "ratio": ratio, "seed": seed, "num_steps": num_steps}
    resolved = resolve(preset, override or (), flags)
    if as_json:
        print_json({"config": resolved.config.model_dump(mode="json"), "origin": dict(resolved.origin)})
    else:
        rows = [(key, inline_yaml(value), origin) for key, value, origin in resolved.rows()]
        print_table(("key", "value", "from"), rows)
    for line in resolved.notes:
        note(line)

"""What a grid would cost and what it could find, before it is run (`ablate --dry-run`, `--detect`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .output import duration, note, print_json, print_table, size
from .work import benchmark

if TYPE_CHECKING:
    from gcpo_bench.ablations import Cell, Plan
    from gcpo_bench.reports.design import Design, Spread

NO_SHARES = "not known in advance for {}, whose scores are no shares of right images"
IMAGES = (4, 8, 16)
"""Images a prompt that a plan for `--detect` is worked out for."""


def parse_points(text: str) -> float:
    """`1pt`, `1.5 pt` or `1.5` -> 0.015. Raises ConfigError for what is no number of points above 0."""
    import math

    from gcpo_bench.errors import ConfigError

    try:
        value = float(text.strip().removesuffix("pt")) / 100
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise ConfigError(f"{text!r} is no number of points", hint="write it as 1pt or 2.5pt: points of a hundred")
    return value


def print_design(plan: Plan, cells: Sequence[Cell], parallel: int, runs_dir: Path, *, as_json: bool) -> None:
    """Cells, time, bytes, and the difference that would be found four times out of five."""
    from gcpo_bench.errors import CorruptDataError, PrerequisiteError
    from gcpo_bench.training import preflight
    from gcpo_bench.training.estimate import estimate, is_tried

    trained = [cell for cell in cells if cell.config.num_steps]
    open_cells = [cell for cell in trained if not is_done(cell, runs_dir)]
    first = trained[0].config.model_copy(update={"num_threads": 1})
    missing: list[PrerequisiteError | CorruptDataError] = preflight.missing(first, runs_dir)
    cost = None if missing and is_tried(first) else estimate(first)
    seconds = sum(cell.config.num_steps for cell in open_cells) * cost.seconds_per_step if cost else None
    bytes_on_disk = cost.bytes_on_disk * len(open_cells) if cost else None
    spread, source = spread_for(cells, runs_dir)
    of_shares = has_shares(trained[0])
    design = None
    try:
        design = design_of(plan, trained) if of_shares else None
    except (PrerequisiteError, CorruptDataError) as error:
        missing.append(error)
    detectable = design.detectable(spread) if design else None
    if as_json:
        print_json(
            {
                "plan": plan.name,
                "cells": [
                    {"id": cell.id, "run": cell.name, "variant": cell.variant, "done": is_done(cell, runs_dir)}
                    for cell in cells
                ],
                "seconds_per_step": cost.seconds_per_step if cost else None,
                "seconds_measured": cost is not None and cost.measured,
                "hours": None if seconds is None else seconds / 3600,
                "wall_seconds": None if seconds is None else seconds / parallel,
                "bytes": bytes_on_disk,
                "detectable": detectable,
                "missing": [str(error) for error in missing],
                "spread": {"seed": spread.seed, "prompt": spread.prompt, "image": spread.image, "from": source}
                if of_shares
                else None,
            }
        )
        return
    print_table(
        ("run", "variant", "model", "seed>", "steps>", "state"),
        [
            (
                cell.name,
                cell.variant,
                cell.config.policy.name,
                cell.config.seed,
                cell.config.num_steps,
                "done" if is_done(cell, runs_dir) else "to run",
            )
            for cell in cells
        ],
        title=f"{len(cells)} cells",
    )
    if cost is None or seconds is None or bytes_on_disk is None:
        note("training: how long is not known before what is missing here is there")
    else:
        bound, unit = (
            ("about", "core-hours, one step measured here")
            if cost.measured
            else ("at least", "hours of an H200, the floor of its arithmetic and memory")
        )
        note(
            f"training: {bound} {seconds / 3600:.1f} {unit} ({cost.seconds_per_step:.2f} s a step), for "
            f"{len(open_cells)} runs; {bound} {duration(seconds / parallel)} with {parallel} at once, evaluation on "
            f"top; {size(bytes_on_disk)} on disk"
        )
    if design and detectable is not None:
        seeds = "1 seed" if design.seeds == 1 else f"{design.seeds} seeds"
        about = "two methods" if design.seeds > 1 else "two checkpoints (one seed says nothing about methods)"
        about += f", as one of {design.comparisons} comparisons" if design.comparisons > 1 else ""
        note(
            f"detectable: a true difference of {100 * detectable:.1f} points between {about}, four times out of five "
            f"({seeds}, {design.prompts} prompts, {design.images} images of each; spread {source})"
        )
    elif of_shares:
        note("detectable: not known before the prompts of the evaluation are here")
    else:
        note(f"detectable: {NO_SHARES.format(trained[0].config.evaluation.benchmark)}")
    for lacking in missing:
        note(f"missing: {lacking}: {lacking.hint}")
    note("nothing was written")


def enough_seeds(plan: Plan, cells: Sequence[Cell], effect: float, runs_dir: Path) -> Plan:
    """The plan with as many seeds as find `effect`. Raises ConfigError, with what would, if no number does."""
    from gcpo_bench.errors import ConfigError
    from gcpo_bench.reports.design import MAX_SEEDS, seeds_to_detect

    trained = [cell for cell in cells if cell.config.num_steps]
    if not has_shares(trained[0]):
        raise ConfigError(
            f"--detect: {NO_SHARES.format(trained[0].config.evaluation.benchmark)}",
            hint="leave --detect out; the report says what could be found",
        )
    spread, source = spread_for(cells, runs_dir)
    design = design_of(plan, trained)
    wanted = {
        images: seeds_to_detect(effect, design.prompts, images, spread, design.comparisons)
        for images in sorted({design.images, *IMAGES})
    }
    options = ", ".join(f"{n} seeds with {images} images a prompt" for images, n in sorted(wanted.items()) if n)
    seeds = wanted[design.images]
    if seeds is None:
        raise ConfigError(
            f"{100 * effect:g} points cannot be found with {design.prompts} prompts of {design.images} images: "
            f"{_what_it_takes(effect, design, spread)} (spread {source})",
            hint=f"possible: {options}" if options else _what_is_found(replace(design, seeds=MAX_SEEDS), spread),
        )
    note(f"to find {100 * effect:g} points: {options}; spread {source}")
    return plan.model_copy(update={"seeds": tuple(range(seeds))})


def _what_it_takes(effect: float, design: Design, spread: Spread) -> str:
    """Why no number of seeds up to MAX_SEEDS finds `effect`."""
    from gcpo_bench.reports.design import MAX_SEEDS

    limit = design.floor(spread)
    if effect <= limit:
        return f"however many seeds, so few prompts leave {100 * limit:.2g} points"
    return f"it takes about {design.seeds_needed(spread, effect)} seeds, and a grid has at most {MAX_SEEDS}"


def _what_is_found(design: Design, spread: Spread) -> str:
    found = 100 * design.detectable(spread)
    return f"{design.seeds} seeds find {found:.2g} points; ask for that, or evaluate on more prompts"


def has_shares(cell: Cell) -> bool:
    """Whether what the cell is evaluated on says right or wrong: only for that the spread is known."""
    return getattr(benchmark(cell.config), "headline", "correct") == "correct"


def design_of(plan: Plan, trained: Sequence[Cell]) -> Design:
    from gcpo_bench.evaluators.runner import first_per_task
    from gcpo_bench.reports.design import Design

    config = trained[0].config
    evaluation = config.evaluation
    prompts = benchmark(config).prompts()
    # variants of one model, whose baseline is one of them
    of_model = [cell.config for cell in trained if cell.config.policy.name == config.policy.name]
    variants = {each.model_copy(update={"seed": 0}).model_dump_json() for each in of_model}
    return Design(
        seeds=len(plan.seeds),
        prompts=len(first_per_task(prompts, evaluation.prompts_per_task)),
        images=evaluation.images_per_prompt,
        comparisons=max(1, len(variants) - 1),
    )


def spread_for(cells: Sequence[Cell], runs_dir: Path) -> tuple[Spread, str]:
    """As measured on cells of this grid that are done, else as it was measured on the embedded world."""
    from gcpo_bench.reports.design import EMBEDDED_WORLD, measured_spread
    from gcpo_bench.reports.load import load

    paths = [runs_dir / cell.name for cell in cells if is_done(cell, runs_dir)]
    found = measured_spread(load(paths)) if len(paths) >= 4 else None
    if found is not None:
        return found, f"measured on {len(paths)} finished cells of this grid"
    return EMBEDDED_WORLD, "assumed, as measured on the embedded world's methods study"


def is_done(cell: Cell, runs_dir: Path) -> bool:
    return (runs_dir / ".ledger" / "cells" / cell.id / "done.json").exists()

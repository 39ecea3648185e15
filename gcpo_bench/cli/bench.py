"""`gcpo-bench bench`: speed and memory of the parts of a step on this machine, beside its own floor."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import ModelOption, OverrideOption, PresetOption
from .output import note, print_json, print_table, size


class Part(StrEnum):
    rollout = "rollout"
    update = "update"
    select = "select"
    step = "step"


def bench_command(
    part: Annotated[Part, typer.Argument(help="What to measure.")],
    model: ModelOption = None,
    preset: PresetOption = None,
    override: OverrideOption = None,
    images: Annotated[int, typer.Option(min=2, help="Images at once.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs after one to warm up; their median counts.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: usable cores.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure rollout, update, selection or a whole step with random weights: seconds, memory, ratio to the floor."""
    from gcpo_bench import environment
    from gcpo_bench.environment import usable_cores
    from gcpo_bench.files import write_json
    from gcpo_bench.resolve import resolve
    from gcpo_bench.training.bench import measure, spec_for

    config = resolve(preset, override or (), {"model": model}).config
    spec = spec_for(config, images=images, threads=threads or usable_cores(), repeats=repeats)
    note(f"measuring {part.value} of {config.policy.name} on {config.policy.device}, {images} images")
    rates, found = measure(part.value, spec)
    rows = [measured.to_json() for measured in found]
    record: dict[str, Any] = {
        "part": part.value,
        "model": config.policy.name,
        "device": config.policy.device,
        "dtype": config.policy.dtype,
        "images": images,
        "guidance_scale": config.sampling.guidance_scale,
        "threads": spec.threads,
        "repeats": repeats,
        "copy_bytes_per_s": rates.copy_bytes_per_s,
        "matmul_flops_per_s": rates.matmul_flops_per_s,
        "variants": rows,
        "environment": environment.record(),
    }
    if out is not None:
        write_json(out, record)
    if as_json:
        print_json(record)
        return
    first = rows[0]["seconds"]
    print_table(
        ("variant", "seconds>", "fastest>", "tokens/s>", "images/s>", "memory>", "floor>", "of floor>", "speed-up>"),
        [
            (
                row["variant"],
                f"{row['seconds']:.3g}",
                f"{row['seconds_min']:.3g}",
                f"{row['tokens_per_s']:,.0f}",
                f"{images / row['seconds']:.3g}",
                size(row["peak_bytes"]),
                f"{row['floor_s']:.3g} s" if row["floor_s"] else "-",
                f"{row['ratio_to_floor']:.2f}x" if row["ratio_to_floor"] else "-",
                f"{first / row['seconds']:.2f}x",
            )
            for row in rows
        ],
        title=f"{part.value}, {config.policy.name}, {images} images",
    )
    note(
        f"this machine copies {rates.copy_bytes_per_s / 1e9:.1f} GB/s (read and written) and multiplies matrices at "
        f"{rates.matmul_flops_per_s / 1e9:,.0f} GFLOP/s in {config.policy.dtype}; the floor follows from these two"
    )

"""`gcpo-bench bench`: speed and memory on this machine: the parts of a step beside its own floor, and scorers."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import ModelOption, OverrideOption, PresetOption, complete_benchmarks
from .output import note, print_json, print_table, size


class Part(StrEnum):
    rollout = "rollout"
    update = "update"
    select = "select"
    step = "step"
    evaluate = "evaluate"


POLICY = tuple(f"policy.{key}" for key in ("name", "template", "device", "dtype", "trained", "lora", "recompute"))
BATCH = ("data.", "seed", "sampling.prompts_per_step", "sampling.group_size")
DRAWN_FROM = ("sampling.guidance_scale", "sampling.temperature", "sampling.top_k", "sampling.top_p")
READS = {
    Part.rollout: (*POLICY, *BATCH, *DRAWN_FROM, "selection.entropy_source"),
    Part.update: (*POLICY, *BATCH, "optimizer.micro_batch_rows"),
    Part.select: (*POLICY, *BATCH, "selection.", "weighting."),
    Part.step: (*POLICY, "data.", "seed", "num_steps", "sampling.", "optimizer.", "advantages."),
}
"""How the settings begin that a part makes use of: weights are random, and its variants are methods of their own."""


class RandomSize(StrEnum):
    small = "small"
    published = "published"


def bench_command(
    part: Annotated[Part, typer.Argument(help="What to measure.")],
    model: ModelOption = None,
    preset: PresetOption = None,
    override: OverrideOption = None,
    scorers: Annotated[
        str | None,
        typer.Option(metavar="A+B", help="evaluate: scorers, blip-vqa, geneval, grounding-dino, grounding-dino-dpt."),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help="evaluate: what this benchmark looks with.", autocompletion=complete_benchmarks),
    ] = None,
    side: Annotated[int, typer.Option("--size", min=8, metavar="PX", help="evaluate: side of the images.")] = 512,
    random: Annotated[
        RandomSize | None,
        typer.Option(help="evaluate: random weights of this size; default: published where there, else small."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="evaluate: cpu, cuda, cuda:1; default: what is there.")] = None,
    images: Annotated[int, typer.Option(min=2, help="Images at once.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs after one to warm up; their median counts.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: usable cores.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure rollout, update, selection or a whole step with random weights: seconds, memory, ratio to the floor.

    `evaluate` measures how fast scorers look at images.
    """
    of_scorers = {"--scorers": scorers, "--benchmark": benchmark, "--random": random, "--device": device}
    of_steps = {"--model": model, "--preset": preset, "--override": override}
    _refuse(of_steps if part is Part.evaluate else of_scorers, part)
    if part is Part.evaluate:
        names = _scorers(scorers, benchmark)
        _evaluate(names, images, side, repeats, threads, device, random, out, as_json)
        return
    from gcpo_bench import environment
    from gcpo_bench.environment import usable_cores
    from gcpo_bench.resolve import resolve
    from gcpo_bench.training.bench import measure, spec_for
    from gcpo_bench.training.memory import check_bench

    config = resolve(preset, override or (), {"model": model}, reads=READS[part]).config
    spec = spec_for(config, images=images, threads=threads or usable_cores(), repeats=repeats)
    check_bench(spec.config, part.value, images)
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
    if _handed_over(record, out, as_json=as_json):
        return
    first = rows[0]["seconds"]
    measured = ("seconds>", "fastest>", "tokens/s>", "images/s>", "memory>", "floor>", "of floor>", "speed-up>")
    kernels = ("kernels/token>",) if part is Part.rollout else ()
    print_table(
        ("variant", *measured, *kernels),
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
                *(f"{row['kernels_per_token']:,}" for _ in kernels),
            )
            for row in rows
        ],
        title=f"{part.value}, {config.policy.name}, {images} images",
    )
    note(
        f"this machine copies {rates.copy_bytes_per_s / 1e9:.1f} GB/s (read and written) and multiplies matrices at "
        f"{rates.matmul_flops_per_s / 1e9:,.0f} GFLOP/s in {config.policy.dtype}; the floor follows from these two"
    )


def _handed_over(record: dict[str, Any], out: Path | None, *, as_json: bool) -> bool:
    """Writes the record where it is asked for; whether it is printed, and a table is not."""
    from gcpo_bench.files import write_text

    if out is not None:  # for others to read, so without a checksum
        write_text(out, json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    if as_json:
        print_json(record)
    return as_json


def _refuse(others: dict[str, Any], part: Part) -> None:
    """Options that this part does not read are told, not ignored."""
    from gcpo_bench.errors import ConfigError

    for name, value in others.items():
        if value is not None:
            raise ConfigError(f"{name} has no meaning for `bench {part.value}`", hint="leave it out")


# ---------------------------------------------------------------- scorers


def _scorers(scorers: str | None, benchmark: str | None) -> list[str]:
    from gcpo_bench.errors import ConfigError
    from gcpo_bench.evaluators import bench

    if scorers and benchmark:
        raise ConfigError("both --scorers and --benchmark are given", hint="name one of them")
    if benchmark:
        return [*bench.scorers_of(benchmark)]
    return scorers.split("+") if scorers else [*bench.DEFAULT]


def _evaluate(
    names: list[str],
    images: int,
    side: int,
    repeats: int,
    threads: int | None,
    device: str | None,
    random: RandomSize | None,
    out: Path | None,
    as_json: bool,
) -> None:
    from gcpo_bench import environment
    from gcpo_bench.evaluators import bench
    from gcpo_bench.evaluators.scorers.usage import device_name

    spec = bench.Spec(
        images=images,
        side=side,
        repeats=repeats,
        threads=threads or environment.usable_cores(),
        device=device_name(device),
        random=random.value if random else None,
    )
    note(f"measuring {', '.join(names)} on {spec.device}, {images} images of {side}x{side}")
    decode_s, found = bench.measure(names, spec)
    rows = [measured.to_json(spec) for measured in found]
    record: dict[str, Any] = {
        "part": Part.evaluate.value,
        "device": spec.device,
        "images": images,
        "side": side,
        "threads": spec.threads,
        "repeats": repeats,
        "decode_s_per_image": decode_s,
        "scorers": rows,
        "environment": environment.record(),
    }
    if _handed_over(record, out, as_json=as_json):
        return
    print_table(
        (
            "scorer",
            "weights",
            "load>",
            "one by one>",
            "together>",
            "speed-up>",
            "CPU>",
            "decoding>",
            "rescore>",
            "memory>",
        ),
        [
            (
                row["scorer"],
                row["weights"],
                f"{row['load_s']:.3g} s",
                f"{row['images_per_s_one_by_one']:.3g}/s",
                f"{row['images_per_s_together']:.3g}/s",
                f"{row['one_by_one_s'] / row['together_s']:.2f}x",
                f"{row['together_cpu_s'] / images:.3g} s",
                f"{decode_s * images / row['together_s']:.1%}",
                f"{row['rescore_s']:.3g} s",
                size(row["peak_bytes"]),
            )
            for row in rows
        ],
        title=f"evaluate, {images} images of {side}x{side}",
    )
    note(
        f"CPU: processor time an image; decoding: {1000 * decode_s:.1f} ms to read and decode a PNG, as a share of "
        f"scoring; rescore: to judge all {images} images again from what is kept; scores of random weights mean nothing"
    )

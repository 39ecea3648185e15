"""`gcpo-bench pretrain`: starting weights from nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from .options import complete_models
from .output import note, shown


def pretrain_command(
    model: Annotated[str, typer.Option(help="Model to make.", autocompletion=complete_models)] = "scenes-12",
    out: Annotated[Path, typer.Option(help="Folder for the weights and their record.")] = Path("weights"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop early; default: the whole recipe.")] = None,
    num_threads: Annotated[int, typer.Option(min=1, help="CPU threads; sums, and so weights, depend on it.")] = 1,
) -> None:
    """Make the starting weights of the embedded world."""
    from gcpo_bench.errors import ConfigError, did_you_mean
    from gcpo_bench.registry import POLICIES

    if model not in POLICIES.entries:
        raise ConfigError(f"unknown model {model!r}", hint=did_you_mean(model, POLICIES))
    from gcpo_bench.training.pretrain import pretrain

    def on_step(metrics: Mapping[str, float]) -> None:
        if int(metrics["step"]) % 50 == 0:
            note("  ".join(f"{key} {value:.4g}" for key, value in metrics.items()))

    record = pretrain(model, out, seed=seed, max_steps=max_steps, num_threads=num_threads, on_step=on_step)
    for key, value in record.items():
        note(f"{key}: {shown(value)}")
    print(out / f"{model}.safetensors")

"""`gcpo-bench analyze`: studies of a trained policy that are no benchmark. So far one, `perturb`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import RunsDirOption, complete_runs
from .output import note, print_json, print_table

NOISES = ("uniform", "redraw")

app = typer.Typer(help="Studies of a run's policy: perturb.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def main() -> None:
    """Studies of a run's policy; the report shows what they found."""


@app.command("perturb", epilog="Example: gcpo-bench analyze perturb my-gcpo --ranges 10")
def perturb_command(
    run: Annotated[str, typer.Argument(metavar="RUN", autocompletion=complete_runs)],
    ranges: Annotated[int, typer.Option(min=2, help="Parts of equal length the raster is cut into.")] = 10,
    prompts_per_task: Annotated[int, typer.Option(min=1, help="Held-out prompts of each task.")] = 8,
    noise: Annotated[
        str, typer.Option(help="uniform: random tokens of the codebook; redraw: other draws of the policy.")
    ] = "uniform",
    runs_dir: RunsDirOption = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Put noise into one range of tokens at a time: what does the rest of the image do?"""
    from gcpo_bench.errors import ConfigError, did_you_mean
    from gcpo_bench.runs import open_run

    if noise not in NOISES:
        raise ConfigError(f"unknown --noise {noise!r}", hint=did_you_mean(noise, NOISES))
    folder = open_run(run, runs_dir)
    from gcpo_bench.evaluators.runner import first_per_task
    from gcpo_bench.registry import PROMPT_SETS
    from gcpo_bench.training import starts
    from gcpo_bench.training.perturbation import perturb
    from gcpo_bench.training.rewards import WeightedSum

    config = folder.config
    prompts = first_per_task(PROMPT_SETS.load(config.logging.tracked_prompt_set)(), prompts_per_task)
    policy, checkpoint = starts.load_newest(folder)
    study = perturb(
        policy,
        WeightedSum(config.rewards),
        prompts,
        ranges=ranges,
        noise=noise,  # type: ignore[arg-type]
        seed=config.evaluation.seed,
        **config.evaluation.distribution(),
        on_range=lambda done, total: note(f"images of {done}/{total} ranges") if done in (0, total) else None,
    )
    record = {
        "noise": noise,
        "step": checkpoint.step,
        "grid": list(policy.grid),
        "prompts": [prompt.text for prompt in prompts],
        "tags": [prompt.tag for prompt in prompts],
        "ranges": [item.to_json() for item in study.ranges],
    }
    path = folder.save_analysis("perturb", record, {"images": study.images_RMYXC})
    if as_json:
        print_json(record)
        return
    print_table(
        ("tokens", "coarse change>", "fine change>", "later tokens changed>", "reward>"),
        [
            (
                f"{item.first} to {item.last}",
                f"{_mean(item.coarse):.3f}",
                f"{_mean(item.fine):.3f}",
                "" if None in item.later else f"{_mean(item.later):.3f}",
                f"{_mean(item.reward):+.3f}",
            )
            for item in study.ranges
        ],
        title=f"{run}: {noise} noise in one range of tokens, {len(prompts)} prompts",
    )
    print(path)


def _mean(values: list[float] | list[float | None]) -> float:
    return sum(value for value in values if value is not None) / len(values)

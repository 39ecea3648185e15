"""`gcpo-bench analyze`: studies of a run's policy that are no benchmark: what noise moves, what selecting costs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import RunsDirOption, TrustOption, complete_runs
from .output import note, print_json, print_table

if TYPE_CHECKING:
    from gcpo_bench.runs import Run
    from gcpo_bench.training.perturbation import Range

NOISES = ("uniform", "redraw")
RANGES = 10
JsonOption = Annotated[bool, typer.Option("--json", help="Print the record as JSON.")]

app = typer.Typer(help="Studies of a run's policy: perturb, overhead.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def main() -> None:
    """Studies of a run's policy; the report shows what they found."""


@app.command("perturb", epilog="Example: gcpo-bench analyze perturb my-gcpo --tokens 0:58 --against 250:308")
def perturb_command(
    run: Annotated[str, typer.Argument(metavar="RUN", autocompletion=complete_runs)],
    ranges: Annotated[
        int | None, typer.Option(min=2, help=f"Parts of equal length the raster is cut into ({RANGES}).")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="FIRST:END", help="Noise in these tokens, END not among them; with --against.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="FIRST:END", help="And in as many later ones; after both, equally many are drawn anew."),
    ] = None,
    prompts_per_task: Annotated[int, typer.Option(min=1, help="Held-out prompts of each task.")] = 8,
    noise: Annotated[
        str, typer.Option(help="uniform: random tokens of the codebook; redraw: other draws of the policy.")
    ] = "uniform",
    runs_dir: RunsDirOption = Path("runs"),
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put noise into one range of tokens at a time: what does the rest of the image do?"""
    from gcpo_bench.errors import ConfigError, did_you_mean

    if noise not in NOISES:
        raise ConfigError(f"unknown --noise {noise!r}", hint=did_you_mean(noise, NOISES))
    pair = _pair(tokens, against, ranges)
    folder = _opened(run, runs_dir, trust)
    from gcpo_bench.datasets import prompts_of
    from gcpo_bench.evaluators.runner import first_per_task
    from gcpo_bench.training import starts
    from gcpo_bench.training.perturbation import equal_parts, perturb
    from gcpo_bench.training.rewards import WeightedSum

    config = folder.config
    prompts = first_per_task(prompts_of(config.logging.tracked_prompt_set), prompts_per_task)
    policy, checkpoint = starts.load_newest(folder)
    study = perturb(
        policy,
        WeightedSum(config.rewards),
        prompts,
        ranges=pair or equal_parts(ranges or RANGES, policy.grid[0] * policy.grid[1]),
        noise=noise,  # type: ignore[arg-type]
        equal_reach=bool(pair),
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
    name = "perturb-pair" if pair else "perturb"
    path = folder.save_analysis(name, record, {"images": study.images_RMYXC})
    if as_json:
        print_json(record)
        return
    print_table(
        ("tokens", "followed by>", "coarse change>", "fine change>", "of these changed>", "reward>"),
        [_row(item) for item in study.ranges],
        title=f"{run}: {noise} noise in one range of tokens, {len(prompts)} prompts",
    )
    print(path)


def _opened(name: str, runs_dir: Path, trust: bool) -> Run:
    from gcpo_bench import outside
    from gcpo_bench.runs import open_run

    run = open_run(name, runs_dir)
    if trust:
        outside.allow(outside.parts_of(run.config))
    return run


def _row(item: Range) -> tuple[Any, ...]:
    return (
        f"{item.first} to {item.last}",
        item.successors,
        f"{100 * _mean(item.coarse):.1f} %",
        f"{100 * _mean(item.fine):.1f} %",
        "" if None in item.later else f"{100 * _mean(item.later):.1f} %",
        f"{_mean(item.reward):+.3f}",
    )


def _pair(tokens: str | None, against: str | None, ranges: int | None) -> list[slice]:
    """The two ranges of equal length, the earlier first; none where neither is given."""
    from gcpo_bench.errors import ConfigError

    if tokens is None and against is None:
        return []
    if tokens is None or against is None or ranges is not None:
        raise ConfigError(
            "--tokens and --against belong together, without --ranges", hint="--tokens 0:58 --against 250:308"
        )
    first, second = sorted((_range("--tokens", tokens), _range("--against", against)), key=lambda each: each.start)
    if first.stop - first.start != second.stop - second.start or first.stop > second.start:
        raise ConfigError(
            f"--tokens {tokens} and --against {against} are no two ranges of as many tokens, one after the other",
            hint="--tokens 0:58 --against 250:308",
        )
    return [first, second]


def _range(option: str, text: str) -> slice:
    from gcpo_bench.errors import ConfigError

    match = re.fullmatch(r"(\d{1,7}):(\d{1,7})", text.strip())
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f"{option} {text!r} is no range of tokens", hint="write it as 0:58, for the first 58")
    return slice(int(match[1]), int(match[2]))


@app.command("overhead", epilog="Example: gcpo-bench analyze overhead my-gcpo --pairs 20")
def overhead_command(
    run: Annotated[str, typer.Argument(metavar="RUN", autocompletion=complete_runs)],
    pairs: Annotated[int, typer.Option(min=2, help="Pairs of steps after one to warm up.")] = 20,
    runs_dir: RunsDirOption = Path("runs"),
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Time steps of the run's method and steps on all tokens in turn: what does selecting cost?"""
    from gcpo_bench import environment
    from gcpo_bench.errors import ConfigError
    from gcpo_bench.variants import name_of

    folder = _opened(run, runs_dir, trust)
    if not folder.config.num_steps or name_of(folder.config) == "grpo":
        raise ConfigError(f"{run} selects no tokens, so it has no such cost", hint="name a run of gcpo")
    from gcpo_bench.training.overhead import paired_steps, ratio

    found = paired_steps(folder, pairs, lambda done, total: note(f"{done}/{total} pairs") if done % 10 == 0 else None)
    record = {
        "model": folder.config.policy.name,
        "device": folder.config.policy.device,
        "pairs": [pair.to_json() for pair in found],
        "environment": environment.record(),
    }
    path = folder.save_analysis("overhead", record, {})
    if as_json:
        print_json(record)
        return
    share = _mean([pair.selection_s for pair in found]) / _mean([pair.selecting_s for pair in found])
    print_table(
        ("step", "seconds>"),
        [
            (name_of(folder.config), f"{_mean([pair.selecting_s for pair in found]):.4f}"),
            ("all tokens, no signals", f"{_mean([pair.all_tokens_s for pair in found]):.4f}"),
        ],
        title=f"{run}: {len(found)} pairs of steps",
    )
    more = 100 * (ratio(found) - 1)
    note(
        f"a step takes {abs(more):.2f} % {'longer' if more >= 0 else 'less'} than on all tokens (median); "
        f"{100 * share:.2f} % of it is the selection"
    )
    print(path)


def _mean(values: list[float] | list[float | None]) -> float:
    return sum(value for value in values if value is not None) / len(values)

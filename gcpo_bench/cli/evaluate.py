"""`gcpo-bench evaluate`: runs and their starts on the held-out prompts, compared in pairs."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import JsonOption, RunsDirOption, complete_benchmarks, complete_runs
from .output import note, print_json, print_table, shell_quote
from .progress import progress

if TYPE_CHECKING:
    from gcpo_bench.evaluators.types import Metric
    from gcpo_bench.reports.statistics import Interval
    from gcpo_bench.runs import Run

HEADLINE = "correct"
"""The value of an image that the overall score and the paired difference are made of."""
SHOWN = ("overall", "task/", "strict", "extra_objects")
Z_95 = 1.96


def evaluate_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names or paths.", autocompletion=complete_runs)],
    runs_dir: RunsDirOption = Path("runs"),
    benchmark: Annotated[
        str | None, typer.Option(help="Benchmark; default: the run's own.", autocompletion=complete_benchmarks)
    ] = None,
    images_per_prompt: Annotated[int | None, typer.Option(min=1, help="Default: the run's own, 4.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many prompts of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images drawn at once; no score depends on it.")] = 256,
    no_start: Annotated[bool, typer.Option("--no-start", help="Leave out the weights the run began from.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Score runs and their start on held-out prompts."""
    from gcpo_bench.runs import open_run

    opened = [open_run(run, runs_dir) for run in runs]  # a wrong name is told before minutes of work
    results = []
    for run in opened:
        settings = _Settings(run, benchmark, images_per_prompt, limit, batch_size)
        results.append(_evaluated(settings, run, with_start=not no_start and run.config.num_steps > 0))
    if as_json:
        print_json(results if len(results) > 1 else results[0])
        return
    for result in results:
        _print(result)
    where = [] if runs_dir == Path("runs") else ["--runs-dir", str(runs_dir)]
    note(f"next: {shell_quote(['gcpo-bench', 'report', *where])}")


class _Settings:
    """How a run and its start are looked at: alike, or they could not be compared."""

    def __init__(
        self,
        run: Run,
        benchmark: str | None = None,
        images: int | None = None,
        limit: int | None = None,
        rows: int = 256,
    ) -> None:
        config = run.config
        self.benchmark = benchmark or config.evaluation.benchmark
        self.world = config.policy.name
        self.num_threads = config.num_threads
        self.batch_rows = rows
        self.guidance_scale = config.evaluation.guidance_scale
        self.temperature = config.evaluation.temperature
        self.seed = config.evaluation.seed
        self.images_per_prompt = images or config.evaluation.images_per_prompt
        self.limit = limit or config.evaluation.prompts_per_task


def _evaluated(settings: _Settings, run: Run, *, with_start: bool) -> dict[str, Any]:
    """Scores of the run and its start, and the paired difference."""
    from gcpo_bench.training.starts import start_run

    result: dict[str, Any] = {"run": run.name, "path": str(run.path), "benchmark": settings.benchmark}
    result["metrics"] = _evaluate(settings, run)
    if with_start:
        start = start_run(run.config, run.path.parent)
        result["start"] = {"run": start.name, "metrics": _evaluate(settings, start)}
        result["difference"] = _finite(asdict(_difference(run, start, settings.benchmark)))
    return result


def evaluate_run(run: Run) -> None:
    """The run's own benchmark with the run's own settings; what is there already is not made again."""
    _evaluate(_Settings(run), run)


def _evaluate(settings: _Settings, run: Run) -> dict[str, Any]:
    import torch

    from gcpo_bench.evaluators.runner import evaluate
    from gcpo_bench.training.checkpoints import weights_digest
    from gcpo_bench.training.decoding import sample_in_batches
    from gcpo_bench.training.parallel import Workers
    from gcpo_bench.training.starts import load_policy

    workers = Workers(settings.num_threads)
    policy = load_policy(run)

    def draw(texts_B: Any, uniforms_BT: Any) -> Any:
        samples = sample_in_batches(
            policy,
            texts_B,
            torch.from_numpy(uniforms_BT).to(run.config.policy.device),
            batch_rows=max(1, -(-len(texts_B) // settings.num_threads)),
            workers=workers,
            guidance_scale=settings.guidance_scale,
            temperature=settings.temperature,
        )
        return policy.decode(samples.tokens_BT)

    note(f"evaluating {run.name} on {settings.benchmark}")
    with progress("images") as show:
        evaluation = evaluate(
            run,
            draw,
            policy.grid[0] * policy.grid[1],
            settings.benchmark,
            world=settings.world,
            images_per_prompt=settings.images_per_prompt,
            seed=settings.seed,
            guidance_scale=settings.guidance_scale,
            temperature=settings.temperature,
            weights_digest=weights_digest(run),
            limit=settings.limit,
            batch_rows=settings.batch_rows,
            on_batch=show,
        )
    return {name: _record(metric) for name, metric in evaluation.metrics.items()}


def _record(metric: Metric) -> dict[str, Any]:
    """A metric and its 95 % interval."""
    reach = Z_95 * metric.stderr
    low, high = metric.value - reach, metric.value + reach
    if metric.unit == "share":  # a normal interval near 0 or 1 would reach beyond what a share can be
        low, high = max(low, 0.0), min(high, 1.0)
    return _finite({**asdict(metric), "low": low, "high": high})


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has neither NaN nor infinity: what cannot be told is null."""
    strange = {key for key, value in fields.items() if isinstance(value, float) and not math.isfinite(value)}
    return {key: None if key in strange else value for key, value in fields.items()}


def _difference(run: Run, start: Run, benchmark: str) -> Interval:
    from gcpo_bench.reports.load import load_evaluation
    from gcpo_bench.reports.statistics import paired_difference

    a, b = (load_evaluation(each, benchmark).prompt_scores(HEADLINE) for each in (run, start))
    both = a.keys() & b.keys()  # a prompt that one side could not score has no partner
    return paired_difference({key: a[key] for key in both}, {key: b[key] for key in both})


def _print(result: dict[str, Any]) -> None:
    metrics, start = result["metrics"], result.get("start")
    columns = ["", f"{result['run']}>", "95 % interval>", "n>"]
    rows: list[list[Any]] = [
        [name.removeprefix("task/"), *_cells(metric), metric["n"]]
        for name, metric in metrics.items()
        if name.startswith(SHOWN)
    ]
    if start:
        columns += ["start>", "95 % interval>"]
        others = [_cells(metric) for name, metric in start["metrics"].items() if name.startswith(SHOWN)]
        rows = [[*row, *other] for row, other in zip(rows, others, strict=True)]
    print_table(columns, rows, title=result["benchmark"])
    if start:
        print(f"{result['run']} - its start: {_in_words(result['difference'])}")


def _in_words(difference: dict[str, Any]) -> str:
    value, low, high = (difference[key] for key in ("value", "low", "high"))
    if low is None or high is None:
        return f"{value:+.3f} (too few prompts for an interval)"
    sure = "better" if low > 0 else "worse" if high < 0 else "cannot be told apart"
    return f"{value:+.3f} (95 % interval {low:+.3f} to {high:+.3f}, {difference['n']} prompts, paired): {sure}"


def _cells(metric: dict[str, Any]) -> tuple[str, str]:
    interval = "-" if metric["low"] is None else f"{metric['low']:.3f} to {metric['high']:.3f}"
    return f"{metric['value']:.3f}", interval

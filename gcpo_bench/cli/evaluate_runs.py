"""`gcpo-bench evaluate`: runs beside the weights they began from, compared in pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from .evaluate_results import Notes, finite, outcome
from .evaluate_usage import Asked
from .output import note
from .progress import progress

if TYPE_CHECKING:
    from gcpo_bench.config import RunConfig
    from gcpo_bench.evaluators.types import Evaluation
    from gcpo_bench.locks import OnWait
    from gcpo_bench.reports.statistics import Interval
    from gcpo_bench.runs import Run


class Settings:
    """How a run and its start are looked at: alike, or they could not be compared."""

    def __init__(
        self, run: Run, benchmark: str | None = None, asked: Asked | None = None, config: RunConfig | None = None
    ) -> None:
        config = config or run.config
        asked = asked or Asked()
        self.asked = asked
        self.benchmark = benchmark or config.evaluation.benchmark
        self.world = config.policy.name
        self.num_threads = config.num_threads
        self.batch_rows = asked.batch_rows
        self.distribution = config.evaluation.distribution()
        self.seed = config.evaluation.seed
        own = config.evaluation.images_per_prompt if self.benchmark == config.evaluation.benchmark else None
        self.images_per_prompt = asked.images_per_prompt or own
        """None: as many as the benchmark asks for."""
        self.limit = asked.limit or config.evaluation.prompts_per_task
        self.evaluates = f"evaluates it on {self.benchmark}"
        """What another process does that is waited for."""


def evaluated_runs(
    runs: Sequence[Run], benchmarks: Sequence[str], asked: Asked, *, no_start: bool
) -> Iterator[tuple[list[Evaluation | None], dict[str, Any]]]:
    """Each run on each benchmark, or on its own where none is named; as they are finished."""
    for run in runs:
        for benchmark in benchmarks or [run.config.evaluation.benchmark]:
            with_start = not no_start and run.config.num_steps > 0
            yield evaluated_run(Settings(run, benchmark, asked), run, with_start=with_start)


def evaluated_run(settings: Settings, run: Run, *, with_start: bool) -> tuple[list[Evaluation | None], dict[str, Any]]:
    """Scores of the run and its start, and the paired difference."""
    from gcpo_bench.training.starts import start_run

    if with_start:
        _require_start(run)
    result: dict[str, Any] = {"run": run.name, "path": str(run.path), "benchmark": settings.benchmark}
    if unfinished := _unfinished(run):
        note(f"{run.name} is no finished run: its scores are those of {unfinished}")
        result["unfinished"] = unfinished
    with ExitStack() as stack:  # so that what is compared in the end is what was found here
        stack.enter_context(_held(settings, run))
        evaluation = _evaluate(settings, run)
        started = None
        if with_start:
            start = start_run(run.config, run.path.parent, on_wait=_on_wait(run, "makes its start"))
            stack.enter_context(_held(settings, start))
            started = _evaluate(settings, start)
        if evaluation is None or (with_start and started is None):
            return [evaluation, started], {**result, "shard": settings.asked.shard}
        result |= outcome(evaluation)
        if started is not None:
            result["start"] = {"run": start.name, "path": str(start.path), **outcome(started)}
            result["difference"] = finite(asdict(_difference(run, start, evaluation.benchmark)))
        return [evaluation, started], result


def _require_start(run: Run) -> None:
    """Raises RunError where `policy.weights` now holds other weights than the run began from."""
    from gcpo_bench.errors import RunError
    from gcpo_bench.training.starts import require_first_weights, start_weights

    try:
        require_first_weights(run, start_weights(run.config, run.path.parent))
    except RunError as error:
        raise RunError(str(error), hint="put the first ones back; --no-start evaluates the run alone") from error


def _unfinished(run: Run) -> str:
    """How far a run came that did not come to its last step: `step 1 of 14`; else empty."""
    done = max(run.checkpoint_steps(), default=0)
    return f"step {done} of {run.config.num_steps}" if done < run.config.num_steps else ""


def evaluate_run(run: Run, config: RunConfig | None = None) -> None:
    """The run's own benchmark with the settings of `config`, or its own; what is there already is not made again."""
    _evaluate(Settings(run, config=config), run)


def _held(settings: Settings, run: Run) -> AbstractContextManager[None]:
    """Nobody else changes the scores of this run meanwhile."""
    from gcpo_bench.evaluators.runner import evaluating, make_benchmark

    benchmark = make_benchmark(settings.benchmark, settings.world, **settings.asked.of(settings.benchmark))
    return evaluating(run, benchmark.name, settings.asked.shard, on_wait=_on_wait(run, settings.evaluates))


def _on_wait(run: Run, what: str) -> OnWait:
    return lambda owner: note(f"{run.name}: waiting for {owner}, which {what}")


def _evaluate(settings: Settings, run: Run) -> Evaluation | None:
    """None where this process's share is done and others are not."""
    import torch

    from gcpo_bench import leftovers
    from gcpo_bench.evaluators.runner import DRAW_ROWS, ShardDone, evaluate, make_benchmark, rescore
    from gcpo_bench.training.decoding import keep_one_layout, sample_in_batches
    from gcpo_bench.training.parallel import Workers
    from gcpo_bench.training.starts import load_newest

    options = settings.asked.of(settings.benchmark)
    waits = _on_wait(run, settings.evaluates)
    if settings.asked.rescore:
        place = run.evaluation_dir(settings.benchmark)
        return rescore(place, settings.benchmark, world=settings.world, options=options, on_wait=waits)
    leftovers.remove_files(run.path)
    workers = Workers(settings.num_threads, run.config.policy.device)
    policy, checkpoint = load_newest(run)
    on_gpu = torch.device(run.config.policy.device).type == "cuda"

    @cache
    def settle_layout() -> None:
        benchmark = make_benchmark(settings.benchmark, settings.world, **options)
        keep_one_layout(policy, [prompt.text for prompt in benchmark.prompts()])

    def draw(texts_B: Any, uniforms_BT: Any) -> Any:
        if on_gpu:
            settle_layout()
        samples = sample_in_batches(
            policy,
            texts_B,
            torch.from_numpy(uniforms_BT).to(run.config.policy.device),
            batch_rows=len(texts_B) if on_gpu else max(1, -(-len(texts_B) // settings.num_threads)),
            workers=workers,
            **settings.distribution,
        )
        return policy.decode(samples.tokens_BT)

    note(f"evaluating {run.name} on {settings.benchmark}")
    try:
        with progress("images") as show:
            evaluation = evaluate(
                run,
                draw,
                policy.grid[0] * policy.grid[1],
                settings.benchmark,
                world=settings.world,
                images_per_prompt=settings.images_per_prompt,
                seed=settings.seed,
                distribution=settings.distribution,
                weights_digest=checkpoint.digest,
                limit=settings.limit,
                batch_rows=settings.batch_rows,
                draw_rows=run.config.sampling.batch_rows if on_gpu else DRAW_ROWS,
                options=options,
                shard=settings.asked.shard,
                on_batch=show,
                on_image=lambda done, total: show(done, total, "looked at"),
                on_wait=waits,
            )
    except ShardDone as done:
        note(f"{run.name}: {done}; {done.hint}")
        return None
    Notes().rest(evaluation)
    return evaluation


def _difference(run: Run, start: Run, benchmark: str) -> Interval:
    """Of the overall score, on the scale of its metric; the report's own interval."""
    from gcpo_bench.reports.comparisons import interval_of
    from gcpo_bench.reports.evaluations import load_evaluation
    from gcpo_bench.reports.measures import Measure

    of_run, of_start = (load_evaluation(each, benchmark) for each in (run, start))
    measure = of_run.measures.get(of_run.headline, Measure(name=of_run.headline))
    a, b = (each.prompt_scores(measure.name) for each in (of_run, of_start))
    both = sorted(a.keys() & b.keys())  # a prompt that one side could not score has no partner
    found = interval_of([(a, b)], both, [a[key][0] for key in both], measure)
    factor = 1.0 if measure.is_share else measure.factor
    scaled = {name: factor * getattr(found, name) for name in ("value", "low", "high", "stderr")}
    return replace(found, **scaled)

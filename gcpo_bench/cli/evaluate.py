"""`gcpo-bench evaluate`: runs and their starts on held-out prompts, compared in pairs; or any folder of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .groups import expanded, print_overall
from .options import JsonOption, RunsDirOption, complete_benchmarks, complete_runs
from .output import note, print_json, print_table, shell_quote
from .progress import progress

if TYPE_CHECKING:
    from gcpo_bench.evaluators.types import Evaluation, Metric
    from gcpo_bench.reports.statistics import Interval
    from gcpo_bench.runs import Run

HEADLINE = "correct"
"""The value of an image that the overall score and the paired difference are made of, where a benchmark names none."""
SHOWN = ("overall", "task/", "part/", "strict", "extra_objects", "images_correct", "prompts_correct")
Z_95 = 1.96
MAX_NOTES = 50
"""Lines about single images that are printed; scores.json has them all."""
Progress = Callable[[int, int], None]


def evaluate_command(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="Names or paths.", autocompletion=complete_runs)
    ] = None,
    runs_dir: RunsDirOption = Path("runs"),
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark",
            "--bench",
            help="Benchmark, or several with commas; default: the run's own.",
            autocompletion=complete_benchmarks,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Score this folder of images instead of runs; GenEval's layout is read as it is."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="With --images: where results go; default: evaluations/<name of the folder>.")
    ] = None,
    images_per_prompt: Annotated[
        int | None, typer.Option(min=1, help="Default: the run's own, or the benchmark's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many prompts of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images drawn at once; no score depends on it.")] = 256,
    fidelity: Annotated[
        str | None, typer.Option(help="Whose GenEval: official (default), reward-server or fixed.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="A benchmark's own option: threshold=0.4; repeatable."),
    ] = None,
    detector: Annotated[
        Path | None, typer.Option(help="Another Mask2Former: an mmdet file or transformers folder.", exists=True)
    ] = None,
    classifier: Annotated[Path | None, typer.Option(help="Another CLIP folder.", exists=True)] = None,
    device: Annotated[
        str | None, typer.Option(help="Of the evaluator: cpu, cuda, cuda:1; default: what is there.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only this process's share: 2/7. The last one writes the scores.")
    ] = None,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Judge again what was seen before; needs no network and no image.")
    ] = False,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="With --images: score a set in which files are missing.")
    ] = False,
    no_start: Annotated[bool, typer.Option("--no-start", help="Leave out the weights the run began from.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Score runs and their start on held-out prompts, or a folder of images. Exit code 5 if any could not be scored."""
    from gcpo_bench.runs import open_run

    _check_usage(runs or [], images, out, allow_partial, rescore, shard)
    given = {"fidelity": fidelity, "detector": detector, "classifier": classifier, "device": device}
    asked = _Asked(
        options={name: value for name, value in given.items() if value is not None} | _own_options(option or []),
        images_per_prompt=images_per_prompt,
        limit=limit,
        batch_rows=batch_size,
        shard=_parse_shard(shard),
        rescore=rescore,
    )
    names = expanded(benchmark.split(","), asked.options, images, rescore=rescore) if benchmark else [None]
    _check_benchmarks(names)
    results, evaluations = [], []
    if images is not None:
        for name in names:
            evaluation, result = _folder(images, out, name or "geneval", asked, allow_partial)
            results.append(result)
            evaluations.append(evaluation)
    opened = [open_run(run, runs_dir) for run in runs or []]  # a wrong name is told before minutes of work
    for run in opened:
        for name in names:
            settings = _Settings(run, name, asked)
            found, result = _evaluated(settings, run, with_start=not no_start and run.config.num_steps > 0)
            results.append(result)
            evaluations += found
    done = [result for result in results if "metrics" in result]
    if as_json:
        print_json(results if len(results) > 1 else results[0])
    else:
        for result in done:
            _print(result)
        print_overall(done)
    if opened and not as_json:
        where = [] if runs_dir == Path("runs") else ["--runs-dir", str(runs_dir)]
        note(f"next: {shell_quote(['gcpo-bench', 'report', *where])}")
    _refuse_unscored([evaluation for evaluation in evaluations if evaluation is not None], asked)


# ---------------------------------------------------------------- what was asked for


class _Asked:
    """What the command line says beside the settings of a run."""

    def __init__(
        self,
        *,
        options: dict[str, Any] | None = None,
        images_per_prompt: int | None = None,
        limit: int | None = None,
        batch_rows: int = 256,
        shard: tuple[int, int] | None = None,
        rescore: bool = False,
    ) -> None:
        self.options = options or {}
        self.images_per_prompt = images_per_prompt
        self.limit = limit
        self.batch_rows = batch_rows
        self.shard = shard
        self.rescore = rescore


def _check_usage(
    runs: list[str], images: Path | None, out: Path | None, allow_partial: bool, rescore: bool, shard: str | None
) -> None:
    from gcpo_bench.errors import ConfigError

    if not runs and images is None:
        raise ConfigError("Missing argument 'RUN...'", hint="name a run, or a folder with --images")
    if runs and images is not None:
        raise ConfigError("both runs and --images are given", hint="evaluate them one after the other")
    for name, value in (("--out", out), ("--allow-partial", allow_partial)):
        if value and images is None:
            raise ConfigError(f"{name} goes with --images only", hint="leave it out for runs")
    if rescore and shard:
        raise ConfigError("--rescore and --shard are both given", hint="a rescore takes moments; leave --shard out")


def _check_benchmarks(names: list[str] | list[None] | list[str | None]) -> None:
    """A wrong name is told before minutes of work."""
    from gcpo_bench.errors import ConfigError, did_you_mean
    from gcpo_bench.registry import BENCHMARKS

    for name in names:
        if name is not None and name not in BENCHMARKS:
            raise ConfigError(f"unknown benchmark {name!r}", hint=did_you_mean(name, BENCHMARKS))


def _own_options(pairs: list[str]) -> dict[str, Any]:
    from gcpo_bench.errors import ConfigError

    own = dict(pair.partition("=")[::2] for pair in pairs)
    if wrong := next((pair for pair in pairs if "=" not in pair), None):
        raise ConfigError(f"--option {wrong!r} is not key=value", hint="--option threshold=0.4")
    return {"options": own} if own else {}


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    import re

    from gcpo_bench.errors import ConfigError

    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match:
        raise ConfigError(f"--shard {text!r} is not I/N", hint="--shard 1/4 to --shard 4/4")
    return int(match[1]), int(match[2])


class _Settings:
    """How a run and its start are looked at: alike, or they could not be compared."""

    def __init__(self, run: Run, benchmark: str | None = None, asked: _Asked | None = None) -> None:
        config = run.config
        asked = asked or _Asked()
        self.asked = asked
        self.benchmark = benchmark or config.evaluation.benchmark
        self.world = config.policy.name
        self.num_threads = config.num_threads
        self.batch_rows = asked.batch_rows
        self.guidance_scale = config.evaluation.guidance_scale
        self.temperature = config.evaluation.temperature
        self.seed = config.evaluation.seed
        self.images_per_prompt = asked.images_per_prompt or config.evaluation.images_per_prompt
        self.limit = asked.limit or config.evaluation.prompts_per_task


# ---------------------------------------------------------------- a folder of images


def _folder(
    images: Path, out: Path | None, benchmark: str, asked: _Asked, allow_partial: bool
) -> tuple[Evaluation | None, dict[str, Any]]:
    from gcpo_bench.evaluators.runner import ShardDone, evaluate_folder, rescore

    place = (out or Path("evaluations") / (images.resolve().name or "images")) / benchmark
    result: dict[str, Any] = {"run": images.name or str(images), "path": str(place), "benchmark": benchmark}
    if asked.rescore:
        evaluation = rescore(place, benchmark, options=asked.options)
        return evaluation, {**result, **_outcome(evaluation)}
    note(f"evaluating {images} on {benchmark}")
    told = _Notes()
    try:
        with progress("looked at") as show:
            evaluation = evaluate_folder(
                images,
                place,
                benchmark,
                images_per_prompt=asked.images_per_prompt,
                limit=asked.limit,
                batch_rows=asked.batch_rows,
                options=asked.options,
                shard=asked.shard,
                allow_partial=allow_partial,
                on_image=show,
                on_note=told,
            )
    except ShardDone as done:
        note(f"{done}; {done.hint}")
        return None, {**result, "shard": asked.shard}
    told.rest(evaluation)
    return evaluation, {**result, **_outcome(evaluation)}


class _Notes:
    """Prints lines about single images, but not thousands of them."""

    def __init__(self) -> None:
        self.told: set[str] = set()

    def __call__(self, line: str) -> None:
        if line not in self.told and len(self.told) < MAX_NOTES:
            note(_plain(line))
        if len(self.told) == MAX_NOTES:
            note("... and more; scores.json has every line")
        self.told.add(line)

    def rest(self, evaluation: Evaluation) -> None:
        for line in evaluation.notes:
            self(line)


def _plain(line: str) -> str:
    """One line, whatever a file's name holds."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


# ---------------------------------------------------------------- runs


def _evaluated(settings: _Settings, run: Run, *, with_start: bool) -> tuple[list[Evaluation | None], dict[str, Any]]:
    """Scores of the run and its start, and the paired difference."""
    from gcpo_bench.training.starts import start_run

    result: dict[str, Any] = {"run": run.name, "path": str(run.path), "benchmark": settings.benchmark}
    evaluation = _evaluate(settings, run)
    started = None
    if with_start:
        start = start_run(run.config, run.path.parent)
        started = _evaluate(settings, start)
    if evaluation is None or (with_start and started is None):
        return [evaluation, started], {**result, "shard": settings.asked.shard}
    result |= _outcome(evaluation)
    if started is not None:
        result["start"] = {"run": start.name, **_outcome(started)}
        result["difference"] = _finite(asdict(_difference(run, start, settings.benchmark)))
    return [evaluation, started], result


def evaluate_run(run: Run) -> None:
    """The run's own benchmark with the run's own settings; what is there already is not made again."""
    _evaluate(_Settings(run), run)


def _evaluate(settings: _Settings, run: Run) -> Evaluation | None:
    """None where this process's share is done and others are not."""
    import torch

    from gcpo_bench.evaluators.runner import ShardDone, evaluate, rescore
    from gcpo_bench.training.checkpoints import weights_digest
    from gcpo_bench.training.decoding import sample_in_batches
    from gcpo_bench.training.parallel import Workers
    from gcpo_bench.training.starts import load_policy

    if settings.asked.rescore:
        place = run.evaluation_dir(settings.benchmark)
        return rescore(place, settings.benchmark, world=settings.world, options=settings.asked.options)
    workers = Workers(settings.num_threads, run.config.policy.device)
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
                guidance_scale=settings.guidance_scale,
                temperature=settings.temperature,
                weights_digest=weights_digest(run),
                limit=settings.limit,
                batch_rows=settings.batch_rows,
                options=settings.asked.options,
                shard=settings.asked.shard,
                on_batch=show,
                on_image=lambda done, total: show(done, total, "looked at"),
            )
    except ShardDone as done:
        note(f"{run.name}: {done}; {done.hint}")
        return None
    _Notes().rest(evaluation)
    return evaluation


# ---------------------------------------------------------------- results


def _outcome(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "metrics": {name: _record(metric) for name, metric in evaluation.metrics.items()},
        "notes": list(evaluation.notes),
        "label": _label(evaluation),
    }


def _label(evaluation: Evaluation) -> str:
    """What a number from this evaluation must be quoted with; empty where there is nothing to say."""
    look = evaluation.identity.get("look", {})
    parts = [f"fidelity {look['fidelity']['name']}"] if "fidelity" in look else []
    parts += [f"{name} is not the published one" for name in ("detector", "classifier") if look.get(name) == "other"]
    parts += [look["label"]] if "label" in look else []
    if missing := evaluation.identity.get("missing"):
        parts.append(f"PARTIAL: {missing} images are missing")
    return "; ".join(parts)


def _refuse_unscored(evaluations: list[Evaluation], asked: _Asked) -> None:
    """Images that are there but could not be scored make the evaluation incomplete: exit code 5, scores kept."""
    from gcpo_bench.errors import CorruptDataError

    for evaluation in evaluations:
        unscored = max((metric.unscored for metric in evaluation.metrics.values()), default=0)
        unscored -= evaluation.identity.get("missing", 0)
        if unscored > 0:
            raise CorruptDataError(
                f"{evaluation.benchmark}: {unscored} images could not be scored; the scores of the others are kept",
                hint="samples.jsonl has the reason of each in 'unscored'; mend them and run the same command again",
            )


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
    from gcpo_bench.registry import BENCHMARKS
    from gcpo_bench.reports.load import load_evaluation
    from gcpo_bench.reports.statistics import paired_difference

    value = getattr(BENCHMARKS.load(benchmark)(world=run.config.policy.name), "headline", HEADLINE)
    a, b = (load_evaluation(each, benchmark).prompt_scores(value) for each in (run, start))
    both = a.keys() & b.keys()  # a prompt that one side could not score has no partner
    return paired_difference({key: a[key] for key in both}, {key: b[key] for key in both})


def _print(result: dict[str, Any]) -> None:
    metrics, start = result["metrics"], result.get("start")
    columns = ["", f"{result['run']}>", "95 % interval>", "n>"]
    shown = {name: metric for name, metric in metrics.items() if name.startswith(SHOWN)}
    rows = [[name.removeprefix("task/"), *_cells(metric), metric["n"]] for name, metric in shown.items()]
    if start:
        columns += ["start>", "95 % interval>"]
        others = [_cells(start["metrics"][name]) if name in start["metrics"] else ("-", "-") for name in shown]
        rows = [[*row, *other] for row, other in zip(rows, others, strict=True)]
    print_table(columns, rows, title=result["benchmark"])
    if start:
        print(f"{result['run']} - its start: {_in_words(result['difference'])}")
    if result["label"]:
        print(result["label"])


def _in_words(difference: dict[str, Any]) -> str:
    value, low, high = (difference[key] for key in ("value", "low", "high"))
    if low is None or high is None:
        return f"{value:+.3f} (too few prompts for an interval)"
    sure = "better" if low > 0 else "worse" if high < 0 else "cannot be told apart"
    return f"{value:+.3f} (95 % interval {low:+.3f} to {high:+.3f}, {difference['n']} prompts, paired): {sure}"


def _cells(metric: dict[str, Any]) -> tuple[str, str]:
    interval = "-" if metric["low"] is None else f"{metric['low']:.3f} to {metric['high']:.3f}"
    return f"{metric['value']:.3f}", interval

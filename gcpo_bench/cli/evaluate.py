"""`gcpo-bench evaluate`: runs and their starts on held-out prompts, compared in pairs; or any folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .evaluate_images import evaluated_folder
from .evaluate_results import print_result, refuse_unscored
from .evaluate_runs import Settings, evaluated_run
from .evaluate_usage import Asked, check_benchmarks, check_usage, own_options, parse_shard
from .options import JsonOption, RunsDirOption, complete_benchmarks, complete_runs
from .output import note, print_json, shell_quote


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
    images_per_prompt: Annotated[int | None, typer.Option(min=1, help="Default: the run's own, 4.")] = None,
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

    check_usage(runs or [], images, out, allow_partial, rescore, shard)
    given = {"fidelity": fidelity, "detector": detector, "classifier": classifier, "device": device}
    asked = Asked(
        options={name: value for name, value in given.items() if value is not None} | own_options(option or []),
        images_per_prompt=images_per_prompt,
        limit=limit,
        batch_rows=batch_size,
        shard=parse_shard(shard),
        rescore=rescore,
    )
    names = benchmark.split(",") if benchmark else [None]
    check_benchmarks(names)
    results, evaluations = [], []
    if images is not None:
        for name in names:
            evaluation, result = evaluated_folder(images, out, name or "geneval", asked, allow_partial)
            results.append(result)
            evaluations.append(evaluation)
    opened = [open_run(run, runs_dir) for run in runs or []]  # a wrong name is told before minutes of work
    for run in opened:
        for name in names:
            settings = Settings(run, name, asked)
            found, result = evaluated_run(settings, run, with_start=not no_start and run.config.num_steps > 0)
            results.append(result)
            evaluations += found
    done = [result for result in results if "metrics" in result]
    if as_json:
        print_json(results if len(results) > 1 else results[0])
    else:
        for result in done:
            print_result(result)
    if opened and not as_json:
        where = [] if runs_dir == Path("runs") else ["--runs-dir", str(runs_dir)]
        note(f"next: {shell_quote(['gcpo-bench', 'report', *where])}")
    refuse_unscored([evaluation for evaluation in evaluations if evaluation is not None])

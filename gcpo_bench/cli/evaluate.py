"""`gcpo-bench evaluate`: runs and their starts on held-out prompts, in pairs; other models; or any folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .evaluate_images import Drawing, evaluated_folder, evaluated_generator, place_of, refuse_namesake
from .evaluate_results import print_result, print_verdicts, refuse_unscored
from .evaluate_runs import evaluated_runs
from .evaluate_usage import Asked, check_usage, lacks, pairs_of, parse_shard
from .groups import able, expanded, print_overall
from .options import JsonOption, RunsDirOption, TrustOption, complete_benchmarks, complete_runs
from .output import note, print_json, shell_quote
from .together import require_alone

if TYPE_CHECKING:
    from gcpo_bench.evaluators.types import Evaluation


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
            help="Benchmark or group (t2i-compbench, hps), several with commas; default: the run's own, else geneval.",
            autocompletion=complete_benchmarks,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Score this folder of images instead of runs; GenEval's layout is read as it is."),
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(
            metavar="KIND:MODEL", help="Let another model draw: diffusers:<hub id or folder>; see `ls generators`."
        ),
    ] = None,
    generator_option: Annotated[
        list[str] | None,
        typer.Option("--generator-option", metavar="KEY=VALUE", help="The generator's own: steps=30; repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="With --generator: seed of its noise; default 0.")] = None,
    name: Annotated[
        str | None, typer.Option(help="With --images or --generator: what tables call it; default: the folder's or id.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="With --images or --generator: where results go; default: evaluations/<name>.")
    ] = None,
    images_per_prompt: Annotated[
        int | None, typer.Option(min=1, help="Default: the run's own, or the benchmark's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many prompts of each task.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images at once. Default: 256 drawn, 4 of a generator, 32 looked at. On a CPU no score depends on it.",
        ),
    ] = None,
    fidelity: Annotated[
        str | None, typer.Option(help="As published or mended: official, fixed; of GenEval also reward-server.")
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
        str | None, typer.Option(help="Of evaluator and generator: cpu, cuda, cuda:1; default: what is there.")
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
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score runs and their start, other models, or a folder of images. Exit code 5 if any image could not be scored."""
    from gcpo_bench import outside
    from gcpo_bench.evaluators.generators.make import default_name
    from gcpo_bench.evaluators.images import check_folder
    from gcpo_bench.evaluators.options import divided
    from gcpo_bench.evaluators.readiness import Folder
    from gcpo_bench.runs import open_run

    conditional = {
        "--out": out,
        "--name": name,
        "--allow-partial": allow_partial,
        "--generator-option": generator_option,
        "--seed": seed,
        "--shard": shard,
        "--limit": limit,
        "--images-per-prompt": images_per_prompt,
        "--batch-size": batch_size,
        "--detector": detector,
        "--classifier": classifier,
        "--device": device,
        "--trust": trust,
    }
    require_alone("start evaluate without a launcher; --shard I/N divides it between processes")
    check_usage(runs or [], images, generator, conditional, rescore=rescore)
    names = benchmark.split(",") if benchmark else []
    expanded(names)
    own = pairs_of("--option", option or [], "threshold=0.4")
    outside.allow([*names, *own.get("scorers", "").split("+")])
    given = {"fidelity": fidelity, "detector": detector, "classifier": classifier, "device": device}
    opened = [open_run(run, runs_dir) for run in runs or []]  # a wrong name is told before minutes of work
    if trust:
        outside.allow(part for run in opened for part in outside.parts_of(run.config))
    names = names or list(dict.fromkeys(run.config.evaluation.benchmark for run in opened)) or ["geneval"]
    options, without = divided(
        expanded(names),
        {key: value for key, value in given.items() if value is not None} | ({"options": own} if own else {}),
    )
    asked = Asked(
        options=options,
        device=device,
        images_per_prompt=images_per_prompt,
        limit=limit,
        batch_rows=batch_size,
        shard=parse_shard(shard),
        rescore=rescore,
    )
    worlds = list(dict.fromkeys(run.config.policy.name for run in opened)) or [""]
    folder = place = drawing = None
    if images is not None:
        check_folder(images)
        folder = Folder(path=images, images_per_prompt=images_per_prompt, limit=limit, allow_partial=allow_partial)
        place = place_of(images.resolve().name or "images", name, out)
        if name is None and out is None:
            refuse_namesake(place, images)
    elif generator is not None:
        place = place_of(default_name(generator), name, out)
        pairs = pairs_of("--generator-option", generator_option or [], "steps=30")
        drawing = Drawing.of(generator, pairs, device, rescore=rescore)
    lack = lacks(names, worlds, asked, folder)
    benchmarks = expanded(names) if rescore else able(names, lack, also=drawing.lacks if drawing else None)
    for key, those in without.items():
        if passed := [each for each in those if each in benchmarks]:
            note(f"--{key} has no meaning for {', '.join(passed)}")
    results: list[dict[str, Any]] = []
    evaluations: list[Evaluation | None] = []
    try:
        if images is not None and place is not None:
            outcomes = evaluated_folder(images, place, benchmarks, asked, allow_partial=allow_partial)
        elif drawing is not None and place is not None:
            outcomes = evaluated_generator(drawing, place, benchmarks, asked, seed=seed or 0)
        else:
            outcomes = evaluated_runs(opened, benchmarks if benchmark else [], asked, no_start=no_start)
        for found, result in outcomes:
            evaluations += found
            results.append(result)
    finally:  # what is finished is printed before what stopped the rest
        _print(results, as_json=as_json, is_list=len(benchmarks) * max(len(opened), 1) > 1)
    if (opened or (generator is not None and out is None)) and not as_json:
        where = [] if runs_dir == Path("runs") else ["--runs-dir", str(runs_dir)]
        note(f"next: {shell_quote(['gcpo-bench', 'report', *where])}")
    refuse_unscored([evaluation for evaluation in evaluations if evaluation is not None])


def _print(results: Sequence[dict[str, Any]], *, as_json: bool, is_list: bool) -> None:
    if as_json and results:
        print_json(results if is_list else results[0])
    elif not as_json:
        done = [result for result in results if "metrics" in result]
        for result in done:
            print_result(result)
        print_overall(done)
        print_verdicts(done)

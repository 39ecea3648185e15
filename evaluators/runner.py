"""A benchmark on a run, a generator or any folder of images: judge every image, leave samples.jsonl and scores.json.

<run>/evaluations/<benchmark>/, evaluations/<name>/<benchmark>/, or where `evaluate_folder` is told to
  source.json      whose images they are, where they are no run's; see `gcpo_bench.sources`
  samples.jsonl    one object an image: values, reason, detections
  scores.json      metrics and identity; written last, so its presence means that all is there
  observations/    what was seen in the images, where the benchmark keeps that apart; see `observations`
  prompts.jsonl    the prompts, beside observations, so that these can be judged again on their own
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gcpo_bench.addresses import outside_source, prompts_digest
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, RunError
from gcpo_bench.locks import OnWait, beside, held
from gcpo_bench.registry import BENCHMARKS, GENERATORS, POLICIES
from gcpo_bench.runs import Run
from gcpo_bench.sources import Collection, Source, claim_source, write_source

from . import images, stored
from .folders import find_whole
from .generate import Draw, first_per_task, from_seeds, from_uniforms, generate, requests
from .images import ImageSet, unscored_line
from .judging import (
    LOOK_ROWS,
    Place,
    Shard,
    ShardDone,
    asked,
    is_exporting,
    is_keeping,
    is_numbering,
    judged,
    looks_by_part,
    observe,
    question,
    score,
)
from .observations import ObservationsByPart, Seen
from .recall import recalled_look
from .stored import load_evaluation, load_samples
from .types import Benchmark, Evaluation, Generator, Home, KeepingBenchmark, Sampler

__all__ = [
    "ShardDone",
    "evaluate",
    "evaluate_folder",
    "evaluate_generator",
    "evaluating",
    "first_per_task",
    "load_evaluation",
    "load_samples",
    "make_benchmark",
    "prompts_digest",
    "rescore",
]

DRAW_ROWS = 256
"""Images drawn by a sampler together, or judged at once where nothing is kept, where nobody says."""
IMAGES_PER_PROMPT = 4
"""Where neither the caller nor a benchmark says."""
GENERATOR_ROWS = 4
"""Images drawn by a generator together, where nobody says."""


def make_benchmark(name: str, world: str, **given: Any) -> Benchmark:
    """The benchmark behind a name. Raises ConfigError for an unknown name or an option that it does not have."""
    factory = BENCHMARKS.load(name)
    accepted = inspect.signature(factory).parameters
    for key in given:
        if key not in accepted:
            raise ConfigError(
                f"benchmark {name!r} has no option {key!r}", hint="leave it out, or choose another benchmark"
            )
    return cast(Benchmark, BENCHMARKS.make(name, world=world, **given))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    draw: Draw | None
    """None scores the images that lie there."""
    identity: Mapping[str, Any]
    """What the images depend on beside their prompts."""
    record: Mapping[str, Any]
    """The same as the evaluation states it."""
    claim: Callable[[], None] = lambda: None
    """Called before anything is drawn, when no other process draws. Raises RunError where nothing may be."""


def evaluate(
    run: Run,
    sampler: Sampler | None,
    tokens: int,
    benchmark_name: str,
    *,
    world: str,
    images_per_prompt: int | None,
    seed: int,
    distribution: Mapping[str, float],
    weights_digest: str,
    limit: int | None = None,
    batch_rows: int | None = None,
    draw_rows: int = DRAW_ROWS,
    options: Mapping[str, Any] | None = None,
    shard: Shard | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    on_image: Callable[[int, int], None] | None = None,
    on_wait: OnWait = lambda owner: None,
) -> Evaluation:
    """Score a run on a benchmark; picks up where an earlier call stopped, and returns at once what is already there.

    Of processes that do so at the same time one works, the others wait for it and take what it found.

    Args:
        sampler: draws the images; None scores the images that lie in the run's folder, whoever made them.
        tokens: uniform numbers a drawn image takes.
        images_per_prompt: None for as many as the benchmark asks for.
        distribution: what `sampler` draws from: guidance, temperature and so on; stated in the scores.
        weights_digest: of the weights behind `sampler`; with the settings it says whose images these are.
        limit: only the first so many prompts of each task.
        batch_rows: images drawn or looked at together; default `draw_rows` and `judging.LOOK_ROWS`. On a CPU no score
            depends on it.
        draw_rows: images drawn together where `batch_rows` does not say.
        options: what else the benchmark takes, by name.
        shard: draw and look at this process's share only; the call that finds all shares done writes the scores.
        on_batch: called with (images drawn, images wanted).
        on_image: called with (images looked at, images wanted), for benchmarks that keep what they see.
        on_wait: called with who it is, before another process is waited for that evaluates the same.
    Raises:
        ConfigError: unknown benchmark, world or option, a number below 1.
        CorruptDataError: the evaluator fails its self-test, or not a single image can be scored.
        ShardDone: the share is done, others are not.
    """
    _check_numbers(images_per_prompt=images_per_prompt, limit=limit, batch_rows=batch_rows)
    benchmark = make_benchmark(benchmark_name, world, **(options or {}))
    identity = {
        "weights_digest": weights_digest,
        "world": world,
        "seed": seed,
        **distribution,
        **_sourced("policy_source", outside_source(POLICIES, world)),
    }
    draw = None if sampler is None else from_uniforms(sampler, tokens, seed)
    return _draw_and_score(
        run,
        benchmark,
        outside_source(BENCHMARKS, benchmark_name),
        _Drawing(draw=draw, identity=identity, record=identity),
        benchmark.prompts(),
        limit,
        images_per_prompt or own_images_per_prompt(benchmark),
        draw_rows=draw_rows,
        batch_rows=batch_rows,
        shard=shard,
        on_batch=on_batch,
        on_image=on_image,
        on_wait=on_wait,
    )


def evaluate_generator(
    collection: Collection,
    generator: Generator,
    generator_name: str,
    benchmark_name: str,
    *,
    name: str = "",
    seed: int = 0,
    images_per_prompt: int | None = None,
    limit: int | None = None,
    batch_rows: int | None = None,
    options: Mapping[str, Any] | None = None,
    shard: Shard | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    on_image: Callable[[int, int], None] | None = None,
    on_wait: OnWait = lambda owner: None,
) -> Evaluation:
    """Draw a benchmark's images with something that is no run, and score them; else as `evaluate`.

    Args:
        generator_name: what was asked for; stated in the scores, and of no effect on the images.
        name: what tables call these images; default: the collection's folder.
        images_per_prompt: None for as many as the benchmark asks for.
        batch_rows: images drawn or looked at together; default `GENERATOR_ROWS` and `judging.LOOK_ROWS`.
    Raises:
        RunError: the collection holds images that were drawn with other settings. Else as `evaluate`.
    """
    _check_numbers(images_per_prompt=images_per_prompt, limit=limit, batch_rows=batch_rows)
    benchmark = make_benchmark(benchmark_name, "", **(options or {}))
    prompts = benchmark.prompts()
    kind, *more = generator_name.split(":")  # a registered kind and its target, or `module:attribute` and its
    own = outside_source(GENERATORS, kind if kind in GENERATORS.entries else ":".join([kind, *more[:1]]))
    settings = {**generator.settings(), **_sourced("source", own), "seed": seed}
    identity = json.loads(json.dumps(settings))  # as it is read back: lists, no tuples
    record = {"generator": generator_name, **identity}
    source = Source(kind="generator", name=name or collection.name, images=collection.path, generator=record)

    def claim() -> None:
        collection.claim(identity)
        write_source(collection.evaluation_dir(benchmark.name), source)

    return _draw_and_score(
        collection,
        benchmark,
        outside_source(BENCHMARKS, benchmark_name),
        _Drawing(draw=from_seeds(generator, seed), identity=identity, record={"generator": record}, claim=claim),
        prompts,
        limit,
        images_per_prompt or own_images_per_prompt(benchmark),
        draw_rows=GENERATOR_ROWS,
        batch_rows=batch_rows,
        shard=shard,
        on_batch=on_batch,
        on_image=on_image,
        on_wait=on_wait,
    )


def evaluating(home: Home, benchmark_name: str, shard: Shard | None, on_wait: OnWait) -> AbstractContextManager[None]:
    """Keep other processes from evaluating `home` on this benchmark, but for other shards.

    For who evaluates and then reads the scores again: they are those of that evaluation.
    """
    return Place(out=home.evaluation_dir(benchmark_name), root=home.path, shard=shard).held(on_wait)


def _draw_and_score(
    home: Home,
    benchmark: Benchmark,
    source: str,
    drawing: _Drawing,
    prompts_in_all: Sequence[Prompt],
    limit: int | None,
    images_per_prompt: int,
    *,
    draw_rows: int,
    batch_rows: int | None,
    shard: Shard | None,
    on_batch: Callable[[int, int], None] | None,
    on_image: Callable[[int, int], None] | None,
    on_wait: OnWait,
) -> Evaluation:
    place = Place(
        out=home.evaluation_dir(benchmark.name),
        root=home.path,
        source=source,
        shard=shard,
        is_drawn_to=drawing.draw is not None,
    )
    place.check(benchmark)
    prompts = first_per_task(prompts_in_all, limit)
    identity = {**_identity(benchmark, source, prompts, len(prompts_in_all), images_per_prompt), **drawing.record}
    if (known := stored.known(place.out, identity)) is not None:
        return known
    wanted = requests(prompts, images_per_prompt)
    folder = home.images_dir(benchmark.prompt_set)
    with place.held(on_wait), held(beside(folder), shared=shard is not None, on_wait=on_wait):
        if (known := stored.known(place.out, identity)) is not None:  # made while this process waited
            return known
        drawing.claim()
        key = ""
        if drawing.draw is not None:
            key = generate(
                folder,
                drawing.draw,
                place.share(wanted),
                identity=drawing.identity,
                batch_rows=batch_rows or draw_rows,
                is_shared=shard is not None,
                on_batch=on_batch,
            )
        image_set = ImageSet(pictures=images.of_requests(folder, wanted, key))
        return _score(benchmark, place, image_set, identity, batch_rows, on_image)


def evaluate_folder(
    folder: Path,
    out: Path,
    benchmark_name: str,
    *,
    world: str = "",
    images_per_prompt: int | None = None,
    limit: int | None = None,
    batch_rows: int | None = None,
    options: Mapping[str, Any] | None = None,
    shard: Shard | None = None,
    allow_partial: bool = False,
    name: str = "",
    on_image: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    on_wait: OnWait = lambda owner: None,
) -> Evaluation:
    """Score images that somebody else made: in GenEval's layout, or named `<prompt id>-<k>.png`.

    Args:
        out: where source.json, samples.jsonl and scores.json go; nothing is written into `folder`.
        images_per_prompt: None for as many as the benchmark asks for.
        allow_partial: score a set in which files are missing; they are counted as unscored, and the scores say so.
        name: what tables call these images; default: the folder's name.
        on_note: called with each line about the folder before images are looked at.
    Raises:
        ConfigError: no such folder, or it holds none of these images. CorruptDataError: files are missing.
        RunError: `out` holds scores of another folder's images. Else as `evaluate`.
    """
    _check_numbers(images_per_prompt=images_per_prompt, limit=limit, batch_rows=batch_rows)
    benchmark = make_benchmark(benchmark_name, world, **(options or {}))
    images_per_prompt = images_per_prompt or own_images_per_prompt(benchmark)
    place = Place(out=out, root=folder, source=outside_source(BENCHMARKS, benchmark_name), shard=shard)
    place.check(benchmark)
    found = find_whole(folder, benchmark, images_per_prompt, limit, allow_partial=allow_partial, on_note=on_note)
    prompts = list({picture.prompt.id: picture.prompt for picture in found.pictures}.values())
    identity = _identity(benchmark, place.source, prompts, found.prompts_in_all, images_per_prompt)
    identity["missing"] = len(found.missing)
    shown = name or folder.resolve().name or str(folder)
    with place.held(on_wait):
        claim_source(out, Source(kind="folder", name=shown, images=folder))
        image_set = ImageSet(pictures=found.pictures, notes=found.notes)
        return _score(benchmark, place, image_set, identity, batch_rows, on_image)


def rescore(
    out: Path,
    benchmark_name: str,
    *,
    world: str = "",
    options: Mapping[str, Any] | None = None,
    on_wait: OnWait = lambda owner: None,
) -> Evaluation:
    """Judge again what was seen before: no network is loaded and no image is opened.

    Raises:
        ConfigError: the benchmark keeps nothing to judge again, or other weights or another device are asked for.
        RunError: nothing is stored here, or not with what is asked for.
        CorruptDataError: a stored file is damaged.
    """
    given = dict(options or {})
    for name in ("detector", "classifier", "device"):
        if given.get(name) is not None:
            raise ConfigError(
                f"--{name} has no effect on what was seen before", hint=f"leave out --rescore, or --{name}"
            )
    stored.load(out)  # where nothing is, there is nothing to wait for
    benchmark = make_benchmark(benchmark_name, world, **given)
    if not is_keeping(benchmark):
        raise ConfigError(
            f"benchmark {benchmark_name!r} does not keep what it sees apart from its verdicts",
            hint="leave --rescore out: its images are judged again",
        )
    with held(beside(out), again=True, on_wait=on_wait):
        before = stored.load(out)
        return judge_again(benchmark, out, before, recalled_look(out, before, asked(benchmark)))


def judge_again(benchmark: KeepingBenchmark, out: Path, before: Evaluation, look: Mapping[str, Any]) -> Evaluation:
    """The evaluation in `out` with this benchmark's arithmetic, on what was seen with `look`. Raises as `rescore`."""
    if is_numbering(benchmark):
        benchmark.recall(look)
    benchmark.self_test()
    source = str(before.identity.get("benchmark_source", ""))  # of what was seen then
    store = ObservationsByPart(out / "observations", looks_by_part(benchmark, look, source))
    prompts = stored.load_prompts(out)
    samples = []
    unanswered = 0
    for sample in stored.load_all_samples(out):
        prompt = prompts.get(sample.prompt_id)
        if prompt is None:
            raise CorruptDataError(f"{out}: prompt {sample.prompt_id!r} is not stored", hint="leave --rescore out")
        seen: Seen | None = Seen(problem=sample.unscored)
        if sample.image_digest:
            seen = store.get(sample.image_digest, question(benchmark, prompt, sample.image_index))
        if seen is None:
            raise RunError(f"{out}: what was seen in {sample.image} is not stored", hint="leave --rescore out")
        unanswered += seen.is_passing
        samples.append(judged(benchmark, seen, prompt, sample.image_index, sample.image, sample.image_digest))
    if is_exporting(benchmark):
        stored.save_files(out, benchmark.export(samples, prompts))
    identity = {**before.identity, "version": benchmark.version, "look": look, "settings": benchmark.settings()}
    return stored.save(out, benchmark, samples, identity, before.notes, unanswered=unanswered)


def _sourced(key: str, source: str) -> dict[str, str]:
    """For an identity: the digest of a part's sources, where they are not ours."""
    return {key: source} if source else {}


def own_images_per_prompt(benchmark: Benchmark) -> int:
    """As many as the benchmark asks for."""
    return int(getattr(benchmark, "images_per_prompt", IMAGES_PER_PROMPT))


def _check_numbers(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}", hint="use 1 or more")


def _identity(
    benchmark: Benchmark, source: str, prompts: Sequence[Prompt], prompts_in_all: int, images_per_prompt: int
) -> dict[str, Any]:
    identity: dict[str, Any] = {
        "benchmark": benchmark.name,
        "version": benchmark.version,
        "prompts_digest": prompts_digest(prompts),
        "images_per_prompt": images_per_prompt,
        **_sourced("benchmark_source", source),
    }
    if len(prompts) < prompts_in_all:
        identity["limited"] = {"prompts": len(prompts), "of": prompts_in_all}
    if is_keeping(benchmark):
        identity |= {"look": benchmark.look(), "settings": benchmark.settings()}
    return identity


def _score(
    benchmark: Benchmark,
    place: Place,
    image_set: ImageSet,
    identity: Mapping[str, Any],
    batch_rows: int | None,
    on_image: Callable[[int, int], None] | None,
) -> Evaluation:
    notes: tuple[str, ...] = ()
    unanswered = 0
    if is_numbering(benchmark):
        notes = benchmark.notes([(each.prompt, each.index) for each in image_set.pictures])
    if is_keeping(benchmark):
        seen = observe(benchmark, place, image_set.pictures, on_image, batch_rows=batch_rows or LOOK_ROWS)
        samples, notes, unanswered = seen.samples, (*notes, *seen.notes), seen.unanswered
    else:
        samples = score(benchmark, place, image_set.pictures, batch_rows or DRAW_ROWS)
    lines = (unscored_line(sample.image, sample.unscored) for sample in samples if sample.unscored)
    notes = (*image_set.notes, *notes, *lines)
    with place.writing_scores():
        if is_keeping(benchmark):
            prompts = {each.prompt.id: each.prompt for each in image_set.pictures}
            stored.save_prompts(place.out, list(prompts.values()))
            if is_exporting(benchmark):
                stored.save_files(place.out, benchmark.export(samples, prompts))
        return stored.save(place.out, benchmark, samples, identity, notes, unanswered=unanswered)

"""A benchmark on a run or on any folder of images: judge every image, leave samples.jsonl and scores.json.

<run>/evaluations/<benchmark>/, or where `evaluate_folder` is told to
  samples.jsonl    one object an image: values, reason, detections
  scores.json      metrics and identity; written last, so its presence means that all is there
  observations/    what was seen in the images, where the benchmark keeps that apart; see `observations`
  prompts.jsonl    the prompts, beside observations, so that these can be judged again on their own
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from gcpo_bench import prompt_sets
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError, RunError
from gcpo_bench.registry import BENCHMARKS
from gcpo_bench.runs import Run

from . import images, stored
from .generate import digest, generate, requests
from .images import ImageSet
from .judging import (
    Place,
    Shard,
    ShardDone,
    is_exporting,
    is_numbering,
    is_observing,
    judged,
    observe,
    question,
    score,
)
from .observations import Observations, Seen, looks
from .stored import load_evaluation, load_samples
from .types import Benchmark, Evaluation, Sampler

__all__ = [
    "ShardDone",
    "evaluate",
    "evaluate_folder",
    "first_per_task",
    "load_evaluation",
    "load_samples",
    "make_benchmark",
    "prompts_digest",
    "rescore",
]

IMAGES_PER_PROMPT = 4
"""Where a benchmark does not say."""


def make_benchmark(name: str, world: str, **given: Any) -> Benchmark:
    """The benchmark behind a name. Raises ConfigError for an unknown name or an option that it does not have."""
    factory = BENCHMARKS.load(name)
    accepted = inspect.signature(factory).parameters
    for key in given:
        if key not in accepted:
            raise ConfigError(
                f"benchmark {name!r} has no option {key!r}", hint="leave it out, or choose another benchmark"
            )
    return cast(Benchmark, factory(world=world, **given))


def evaluate(
    run: Run,
    sampler: Sampler | None,
    tokens: int,
    benchmark_name: str,
    *,
    world: str,
    images_per_prompt: int,
    seed: int,
    guidance_scale: float,
    temperature: float,
    weights_digest: str,
    limit: int | None = None,
    batch_rows: int = 256,
    options: Mapping[str, Any] | None = None,
    shard: Shard | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a run on a benchmark; picks up where an earlier call stopped, and returns at once what is already there.

    Args:
        sampler: draws the images; None scores the images that lie in the run's folder, whoever made them.
        tokens: uniform numbers a drawn image takes.
        weights_digest: of the weights behind `sampler`; with the settings it says whose images these are.
        limit: only the first so many prompts of each task.
        batch_rows: images drawn or judged at once; no score depends on it.
        options: what else the benchmark takes, by name.
        shard: draw and look at this process's share only; the call that finds all shares done writes the scores.
        on_batch: called with (images drawn, images wanted).
        on_image: called with (images looked at, images wanted), for benchmarks that keep what they see.
    Raises:
        ConfigError: unknown benchmark, world or option, a number below 1.
        CorruptDataError: the evaluator fails its self-test, or not a single image can be scored.
        ShardDone: the share is done, others are not.
    """
    _check_numbers(images_per_prompt=images_per_prompt, limit=limit, batch_rows=batch_rows)
    benchmark = make_benchmark(benchmark_name, world, **(options or {}))
    prompts = first_per_task(benchmark.prompts(), limit)
    drawing = {
        "weights_digest": weights_digest,
        "world": world,
        "seed": seed,
        "guidance_scale": guidance_scale,
        "temperature": temperature,
    }
    identity = _identity(benchmark, prompts, images_per_prompt) | drawing
    place = Place(out=run.evaluation_dir(benchmark.name), root=run.path, shard=shard, is_drawn_to=sampler is not None)
    place.check(benchmark)
    if (known := stored.known(place.out, identity)) is not None:
        return known
    wanted = requests(prompts, images_per_prompt)
    folder = run.images_dir(benchmark.prompt_set)
    if sampler is not None:
        generate(
            folder,
            sampler,
            place.share(wanted),
            tokens=tokens,
            seed=seed,
            identity=drawing,
            batch_rows=batch_rows,
            on_batch=on_batch,
        )
    image_set = ImageSet(pictures=images.of_requests(folder, wanted))
    return _score(benchmark, place, image_set, identity, batch_rows, on_image)


def evaluate_folder(
    folder: Path,
    out: Path,
    benchmark_name: str,
    *,
    world: str = "",
    images_per_prompt: int | None = None,
    limit: int | None = None,
    batch_rows: int = 256,
    options: Mapping[str, Any] | None = None,
    shard: Shard | None = None,
    allow_partial: bool = False,
    on_image: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Evaluation:
    """Score images that somebody else made: in GenEval's layout, or named `<prompt id>-<k>.png`.

    Args:
        out: where samples.jsonl and scores.json go; nothing is written into `folder`.
        images_per_prompt: None for as many as the benchmark asks for.
        allow_partial: score a set in which files are missing; they are counted as unscored, and the scores say so.
        on_note: called with each line about the folder before images are looked at.
    Raises:
        ConfigError: no such folder. CorruptDataError: files are missing. Else as `evaluate`.
    """
    _check_numbers(images_per_prompt=images_per_prompt, limit=limit, batch_rows=batch_rows)
    images.check_folder(folder)
    benchmark = make_benchmark(benchmark_name, world, **(options or {}))
    images_per_prompt = images_per_prompt or int(getattr(benchmark, "images_per_prompt", IMAGES_PER_PROMPT))
    place = Place(out=out, root=folder, shard=shard)
    place.check(benchmark)
    image_set = _found(folder, benchmark, images_per_prompt, limit)
    missing = [picture for picture in image_set.pictures if picture.is_missing]
    for line in (*image_set.notes, *(unscored_line(place.shown(each), images.MISSING) for each in missing)):
        (on_note or (lambda line: None))(line)
    if missing and not allow_partial:
        raise CorruptDataError(
            f"{folder}: {len(missing)} of {len(image_set.pictures)} images are missing, "
            f"the first is {place.shown(missing[0])}",
            hint="add them, or score what is there with --allow-partial",
        )
    prompts = list({picture.prompt.id: picture.prompt for picture in image_set.pictures}.values())
    identity = _identity(benchmark, prompts, images_per_prompt) | {"missing": len(missing)}
    return _score(benchmark, place, image_set, identity, batch_rows, on_image)


def rescore(out: Path, benchmark_name: str, *, world: str = "", options: Mapping[str, Any] | None = None) -> Evaluation:
    """Judge again what was seen before: no network is loaded and no image is opened.

    Raises:
        ConfigError: the benchmark keeps nothing to judge again.
        RunError: nothing is stored here, or not with the fidelity asked for.
        CorruptDataError: a stored file is damaged.
    """
    before = stored.load(out)
    given = dict(options or {})
    look = _stored_look(out, before, given.get("fidelity"))
    if isinstance(look.get("fidelity"), dict):
        given["fidelity"] = look["fidelity"]["name"]
    benchmark = make_benchmark(benchmark_name, world, **given)
    if not is_observing(benchmark):
        raise ConfigError(
            f"benchmark {benchmark_name!r} does not keep what it sees apart from its verdicts",
            hint="leave --rescore out: its images are judged again",
        )
    if is_numbering(benchmark):
        benchmark.recall(look)
    benchmark.self_test()
    store = Observations(out / "observations", look)
    prompts = stored.load_prompts(out)
    samples = []
    for sample in stored.load_all_samples(out):
        prompt = prompts.get(sample.prompt_id)
        if prompt is None:
            raise CorruptDataError(f"{out}: prompt {sample.prompt_id!r} is not stored", hint="leave --rescore out")
        seen: Seen | None = Seen(problem=sample.unscored)
        if sample.image_digest:
            seen = store.get(sample.image_digest, question(benchmark, prompt, sample.image_index))
        if seen is None:
            raise RunError(f"{out}: what was seen in {sample.image} is not stored", hint="leave --rescore out")
        samples.append(judged(benchmark, seen, prompt, sample.image_index, sample.image, sample.image_digest))
    if is_exporting(benchmark):
        stored.save_files(out, benchmark.export(samples, prompts))
    identity = {**before.identity, "version": benchmark.version, "look": look, "settings": benchmark.settings()}
    return stored.save(out, benchmark, samples, identity, before.notes)


def _stored_look(out: Path, before: Evaluation, fidelity: str | None) -> dict[str, Any]:
    """What the stored observations were made with: that of the last scores, or the one of this fidelity."""
    last = before.identity.get("look")
    if not isinstance(last, dict):
        raise RunError(f"{out} holds no stored observations", hint="evaluate once without --rescore")
    if fidelity is None or last.get("fidelity", {}).get("name") == fidelity:
        return last
    same = ("detector_digest", "classifier_digest", "observer", "device")
    for look in looks(out / "observations"):
        if look.get("fidelity", {}).get("name") == fidelity and all(look.get(key) == last.get(key) for key in same):
            return look
    raise RunError(f"{out}: nothing is stored with fidelity {fidelity!r}", hint="evaluate once without --rescore")


def _check_numbers(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}", hint="use 1 or more")


def _identity(benchmark: Benchmark, prompts: Sequence[Prompt], images_per_prompt: int) -> dict[str, Any]:
    identity: dict[str, Any] = {
        "benchmark": benchmark.name,
        "version": benchmark.version,
        "prompts_digest": prompts_digest(prompts),
        "images_per_prompt": images_per_prompt,
    }
    if is_observing(benchmark):
        identity |= {"look": benchmark.look(), "settings": benchmark.settings()}
    return identity


def _found(folder: Path, benchmark: Benchmark, images_per_prompt: int, limit: int | None) -> ImageSet:
    own_layout = getattr(benchmark, "official_pictures", None)
    if own_layout is not None:
        own: ImageSet | None = own_layout(folder, first_per_task(benchmark.prompts(), limit), images_per_prompt)
        if own is not None:
            return own
    if benchmark.name not in prompt_sets.SETS or not images.is_geneval_layout(folder):
        return images.of_folder(folder, first_per_task(benchmark.prompts(), limit), images_per_prompt)
    try:
        known = list(benchmark.prompts())
    except PrerequisiteError:
        known = None
    published = prompt_sets.get(benchmark.name)
    found = images.of_geneval_folder(folder, published, known, images_per_prompt)
    wanted = {p.id for p in first_per_task([picture.prompt for picture in found.pictures[::images_per_prompt]], limit)}
    return ImageSet(pictures=tuple(each for each in found.pictures if each.prompt.id in wanted), notes=found.notes)


def _score(
    benchmark: Benchmark,
    place: Place,
    image_set: ImageSet,
    identity: Mapping[str, Any],
    batch_rows: int,
    on_image: Callable[[int, int], None] | None,
) -> Evaluation:
    notes: tuple[str, ...] = ()
    if is_numbering(benchmark):
        notes = benchmark.notes([(each.prompt, each.index) for each in image_set.pictures])
    if is_observing(benchmark):
        samples, seen = observe(benchmark, place, image_set.pictures, on_image)
        notes += seen
        prompts = {each.prompt.id: each.prompt for each in image_set.pictures}
        stored.save_prompts(place.out, list(prompts.values()))
        if is_exporting(benchmark):
            stored.save_files(place.out, benchmark.export(samples, prompts))
    else:
        samples = score(benchmark, place, image_set.pictures, batch_rows)
    lines = (unscored_line(sample.image, sample.unscored) for sample in samples if sample.unscored)
    return stored.save(place.out, benchmark, samples, identity, (*image_set.notes, *notes, *lines))


def unscored_line(image: str, reason: str) -> str:
    return f"{image} is not scored: {reason}"


def first_per_task(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """The first `limit` prompts of each task, in their order; all where `limit` is None."""
    seen: dict[str, int] = {}
    chosen = []
    for prompt in prompts:
        seen[prompt.tag] = seen.get(prompt.tag, 0) + 1
        if limit is None or seen[prompt.tag] <= limit:
            chosen.append(prompt)
    return chosen


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over ids, texts and metadata, in order."""
    return digest([[prompt.id, prompt.text, prompt.metadata] for prompt in prompts])

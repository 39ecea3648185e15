"""A benchmark on a run: draw its images, judge them, leave samples.jsonl and scores.json in the run.

<run>/evaluations/<benchmark>/
  samples.jsonl    one object an image: values, reason, detections
  scores.json      metrics and identity; written last, so its presence means that all is there
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, RunError
from gcpo_bench.registry import BENCHMARKS
from gcpo_bench.runs import Run, checksum, read_json, read_jsonl, write_json, write_text

from .generate import Request, digest, generate, read_manifest, requests
from .types import Benchmark, Detection, Evaluation, Judged, Metric, Sampler, SampleScore

MAX_PIXELS = 16_000_000
"""An image file that claims more is refused before it is unpacked."""


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
    on_batch: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a run on a benchmark; picks up where an earlier call stopped, and returns at once what is already there.

    Args:
        sampler: draws the images; None scores the images that lie in the run's folder, whoever made them.
        tokens: uniform numbers a drawn image takes.
        weights_digest: of the weights behind `sampler`; with the settings it says whose images these are.
        limit: only the first so many prompts of each task.
        batch_rows: images drawn or judged at once; no score depends on it.
        on_batch: called with (images drawn, images wanted).
    Raises:
        ConfigError: unknown benchmark or world, a number below 1.
        CorruptDataError: the evaluator fails its self-test, or not a single image can be scored.
    """
    for name, value in (("images_per_prompt", images_per_prompt), ("limit", limit), ("batch_rows", batch_rows)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}", hint="use 1 or more")
    benchmark: Benchmark = BENCHMARKS.load(benchmark_name)(world=world)
    prompts = first_per_task(benchmark.prompts(), limit)
    drawing = {
        "weights_digest": weights_digest,
        "world": world,
        "seed": seed,
        "guidance_scale": guidance_scale,
        "temperature": temperature,
    }
    identity = {
        "benchmark": benchmark.name,
        "version": benchmark.version,
        "prompts_digest": prompts_digest(prompts),
        "images_per_prompt": images_per_prompt,
        **drawing,
    }
    if (known := _known(run, benchmark.name, identity)) is not None:
        return known
    wanted = requests(prompts, images_per_prompt)
    folder = run.images_dir(benchmark.prompt_set)
    if sampler is not None:
        generate(
            folder,
            sampler,
            wanted,
            tokens=tokens,
            seed=seed,
            identity=drawing,
            batch_rows=batch_rows,
            on_batch=on_batch,
        )
    samples = score(benchmark, folder, wanted, root=run.path, batch_rows=batch_rows)
    return _save(run, benchmark, samples, identity)


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


# ---------------------------------------------------------------- judging


def score(
    benchmark: Benchmark, folder: Path, wanted: Sequence[Request], *, root: Path, batch_rows: int = 256
) -> list[SampleScore]:
    """One SampleScore an image wanted, in order; a file that is missing, damaged or unfit is unscored, with the reason.

    Where `folder` has a manifest, a file must also match its checksum there.
    """
    manifest = read_manifest(folder)
    samples: list[SampleScore] = []
    for start in range(0, len(wanted), batch_rows):
        batch = wanted[start : start + batch_rows]
        loaded = [_load(benchmark, folder / request.file, manifest.get(request.file, {})) for request in batch]
        judged = _judge(benchmark, batch, loaded)
        for row, (request, image) in enumerate(zip(batch, loaded, strict=True)):
            values, reason, detections = judged.get(row, ({}, "", ()))
            samples.append(
                SampleScore(
                    prompt_id=request.prompt.id,
                    prompt=request.prompt.text,
                    tag=request.prompt.tag,
                    image_index=request.index,
                    image=(folder / request.file).relative_to(root).as_posix(),
                    values=values,
                    reason=reason,
                    detections=detections,
                    unscored=image if isinstance(image, str) else "",
                )
            )
    return samples


def _judge(
    benchmark: Benchmark, batch: Sequence[Request], loaded: Sequence[npt.NDArray[np.uint8] | str]
) -> dict[int, Judged]:
    """Row -> verdict of the images that could be loaded; images of one size are judged together."""
    images = {row: image for row, image in enumerate(loaded) if not isinstance(image, str)}
    judged: dict[int, Judged] = {}
    for shape in dict.fromkeys(image.shape for image in images.values()):
        rows = [row for row, image in images.items() if image.shape == shape]
        verdicts = benchmark.score(np.stack([images[row] for row in rows]), [batch[row].prompt for row in rows])
        judged.update(zip(rows, verdicts, strict=True))
    return judged


def _load(benchmark: Benchmark, path: Path, record: Mapping[str, Any]) -> npt.NDArray[np.uint8] | str:
    """The image (Y, X, 3), or why there is none to score."""
    if not path.is_file():
        return "the image file is missing"
    if "checksum" in record and record["checksum"] != checksum(path):
        return "the image file does not match its checksum"
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return f"the image has {picture.width}x{picture.height} pixels, more than {MAX_PIXELS:,}"
            image_YXC = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"the image file cannot be read: {type(error).__name__}"
    return benchmark.problem(image_YXC) or image_YXC


# ---------------------------------------------------------------- files


def _save(run: Run, benchmark: Benchmark, samples: Sequence[SampleScore], identity: Mapping[str, Any]) -> Evaluation:
    folder = run.evaluation_dir(benchmark.name)
    (folder / "scores.json").unlink(missing_ok=True)  # never beside samples that it does not sum up
    lines = (json.dumps(asdict(sample), ensure_ascii=False, allow_nan=False) for sample in samples)
    write_text(folder / "samples.jsonl", "".join(line + "\n" for line in lines))
    evaluation = Evaluation(
        benchmark=benchmark.name, version=benchmark.version, metrics=benchmark.summarize(samples), identity=identity
    )
    if not evaluation.metrics:
        raise CorruptDataError(
            f"{benchmark.name}: none of the {len(samples)} images could be scored; the first: {samples[0].unscored}",
            hint=f"look at {folder / 'samples.jsonl'} for the reason of each",
        )
    write_json(folder / "scores.json", _to_json(evaluation))
    return evaluation


def _known(run: Run, name: str, identity: Mapping[str, Any]) -> Evaluation | None:
    """What an earlier call left, if it is whole and of the same identity; a damaged file is made again."""
    try:
        known = load_evaluation(run, name)
    except (RunError, CorruptDataError):
        return None
    is_whole = (run.evaluation_dir(name) / "samples.jsonl").is_file()
    return known if is_whole and known.identity == identity else None


def load_evaluation(run: Run, benchmark: str) -> Evaluation:
    """The scores of a finished evaluation. Raises RunError where there is none, CorruptDataError for a damaged file."""
    path = _evaluated(run, benchmark, "scores.json")
    record = read_json(path)
    try:
        metrics = {name: _metric(fields) for name, fields in record.pop("metrics").items()}
        return Evaluation(metrics=metrics, **record)
    except (TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error


def load_samples(run: Run, benchmark: str) -> list[SampleScore]:
    """Every image's score, prompt by prompt. Raises as `load_evaluation` does."""
    path = _evaluated(run, benchmark, "samples.jsonl")
    try:
        return [_sample(record) for record in read_jsonl(path, forgive_torn_tail=False)]
    except (TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error


def _evaluated(run: Run, benchmark: str, file: str) -> Path:
    path = run.evaluation_dir(benchmark) / file
    if not path.is_file():
        raise RunError(f"{run.path} has no {file} of benchmark {benchmark!r}", hint="evaluate the run first")
    return path


def _damaged(path: Path, error: Exception) -> CorruptDataError:
    return CorruptDataError(f"{path} is damaged: {error}", hint="delete it and evaluate the run again")


def _sample(record: dict[str, Any]) -> SampleScore:
    detections = tuple(Detection(**{**item, "box": tuple(item["box"])}) for item in record.pop("detections"))
    return SampleScore(**record, detections=detections)


def _metric(fields: Mapping[str, Any]) -> Metric:
    return Metric(**{**fields, "stderr": math.nan if fields["stderr"] is None else fields["stderr"]})


def _to_json(evaluation: Evaluation) -> dict[str, Any]:
    record = asdict(evaluation)
    for fields in record["metrics"].values():
        if math.isnan(fields["stderr"]):  # JSON has no NaN
            fields["stderr"] = None
    return record

"""Images to verdicts: at once, or looked at first and judged from what was kept.

No verdict depends on the order of images, on what else is in a batch, or on which process looked at it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, RunError
from gcpo_bench.files import checksum_of

from . import images
from .images import Picture
from .observations import Observations, Seen
from .types import Benchmark, ExportingBenchmark, Judged, NumberingBenchmark, ObservingBenchmark, SampleScore

BATCH_PIXELS = 64_000_000
"""A batch of images is closed at so many pixels, whatever `batch_rows` allows."""
Shard = tuple[int, int]
"""This process's share: the first number of as many as the second says, from 1."""


class ShardDone(RunError):
    """This process's share is looked at; the scores come with the last share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an evaluation reads and writes, and which share of it is this process's."""

    out: Path
    """Folder of samples.jsonl and scores.json."""
    root: Path
    """What image paths are relative to."""
    shard: Shard | None = None
    is_drawn_to: bool = False
    """Whether files that are missing come from other shards, and are waited for."""

    def share(self, wanted: Sequence[Any]) -> Sequence[Any]:
        return wanted if self.shard is None else wanted[self.shard[0] - 1 :: self.shard[1]]

    def shown(self, picture: Picture) -> str:
        return picture.path.relative_to(self.root).as_posix()

    def check(self, benchmark: Benchmark) -> None:
        if self.shard is None:
            return
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise ConfigError(
                f"shard {self.shard[0]}/{self.shard[1]} does not exist", hint="use 1/4 to 4/4, for example"
            )
        if not is_observing(benchmark):
            raise ConfigError(f"benchmark {benchmark.name!r} cannot be split into shards", hint="leave --shard out")


def is_observing(benchmark: Benchmark) -> TypeGuard[ObservingBenchmark]:
    return hasattr(benchmark, "observe")


def is_exporting(benchmark: Benchmark) -> TypeGuard[ExportingBenchmark]:
    return hasattr(benchmark, "export")


def question(benchmark: ObservingBenchmark, prompt: Prompt, index: int) -> Any:
    """What an observation of the `index`-th image of a prompt depends on, beside the image."""
    return benchmark.question_of(prompt, index) if is_numbering(benchmark) else benchmark.question(prompt)


def is_numbering(benchmark: Benchmark) -> TypeGuard[NumberingBenchmark]:
    return hasattr(benchmark, "question_of")


def score(benchmark: Benchmark, place: Place, pictures: Sequence[Picture], batch_rows: int) -> list[SampleScore]:
    """One SampleScore an image, in order; a file that is missing, damaged or unfit is unscored, with the reason."""
    samples: list[SampleScore] = []
    for batch in _batches(benchmark, pictures, batch_rows):
        verdicts = _judge(benchmark, batch)
        for row, (picture, image) in enumerate(batch):
            values, reason, detections = verdicts.get(row, ({}, "", ()))
            samples.append(
                SampleScore(
                    prompt_id=picture.prompt.id,
                    prompt=picture.prompt.text,
                    tag=picture.prompt.tag,
                    image_index=picture.index,
                    image=place.shown(picture),
                    values=values,
                    reason=reason,
                    detections=detections,
                    unscored=image if isinstance(image, str) else "",
                )
            )
    return samples


Loaded = tuple[Picture, npt.NDArray[np.uint8] | str]
"""A picture with its image (Y, X, 3), or why there is none to score."""


def _batches(benchmark: Benchmark, pictures: Sequence[Picture], batch_rows: int) -> Iterator[list[Loaded]]:
    batch: list[Loaded] = []
    pixels = 0
    for picture in pictures:
        data, problem = images.read(picture)
        seen = images.Decoded(problem=problem) if problem else images.decode(data)
        image = seen.problem if seen.image_YXC is None else benchmark.problem(seen.image_YXC) or seen.image_YXC
        batch.append((picture, image))
        pixels += 0 if isinstance(image, str) else image.shape[0] * image.shape[1]
        if len(batch) == batch_rows or pixels >= BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def observe(
    benchmark: ObservingBenchmark,
    place: Place,
    pictures: Sequence[Picture],
    on_image: Callable[[int, int], None] | None,
) -> tuple[list[SampleScore], tuple[str, ...]]:
    """Look at what was not looked at before, then judge everything. Raises ShardDone where other shares are wanting."""
    benchmark.self_test()
    store = Observations(place.out / "observations", benchmark.look(), place.shard)
    own = place.share(pictures)
    digests: dict[Path, tuple[str, str]] = {}
    for done, picture in enumerate(own):
        if on_image:
            on_image(done, len(own))
        digests[picture.path] = _look(benchmark, store, picture)
    if on_image:
        on_image(len(own), len(own))
    if place.shard:
        store.refresh()  # so of shards that run at the same time, the last one finds all the others' observations
    waiting = ShardDone(
        f"shard {'/'.join(map(str, place.shard or ()))}: its {len(own)} images are looked at, others are not",
        hint="run the other shards; the last one writes the scores, or a call without --shard",
    )
    samples: list[SampleScore] = []
    notes: list[str] = []
    for picture in pictures:
        if place.shard and place.is_drawn_to and picture.is_missing:
            raise waiting
        image_digest, problem = digests.get(picture.path) or _digest(benchmark, picture)
        seen = (
            Seen(problem=problem)
            if problem
            else store.get(image_digest, question(benchmark, picture.prompt, picture.index))
        )
        if seen is None:
            raise waiting
        if seen.note:
            notes.append(f"{place.shown(picture)} {seen.note}")
        samples.append(judged(benchmark, seen, picture.prompt, picture.index, place.shown(picture), image_digest))
    return samples, (*notes, *_twins(samples))


def _look(benchmark: ObservingBenchmark, store: Observations, picture: Picture) -> tuple[str, str]:
    """The image's digest, after making sure that it was looked at; or why it cannot be."""
    data, problem = _fit(benchmark, picture)
    if problem:
        return "", problem
    image_digest, asked = checksum_of(data), question(benchmark, picture.prompt, picture.index)
    if store.get(image_digest, asked) is None:
        decoded = images.decode(data)
        if decoded.image_YXC is None:
            seen = Seen(problem=decoded.problem)
        elif problem := benchmark.problem(decoded.image_YXC):
            seen = Seen(problem=problem)
        else:
            seen = Seen(value=benchmark.observe(decoded.image_YXC, asked), note=decoded.note)
        store.add(image_digest, asked, seen)
    return image_digest, ""


def _digest(benchmark: ObservingBenchmark, picture: Picture) -> tuple[str, str]:
    data, problem = _fit(benchmark, picture)
    return ("", problem) if problem else (checksum_of(data), "")


def _fit(benchmark: ObservingBenchmark, picture: Picture) -> tuple[bytes, str]:
    prompt, index = picture.prompt, picture.index
    if problem := benchmark.unfit_of(prompt, index) if is_numbering(benchmark) else benchmark.unfit(prompt):
        return b"", problem
    return images.read(picture)


def judged(
    benchmark: ObservingBenchmark, seen: Seen, prompt: Prompt, index: int, image: str, image_digest: str
) -> SampleScore:
    values, reason, detections = ({}, "", ()) if seen.problem else benchmark.judge(seen.value, prompt)
    return SampleScore(
        prompt_id=prompt.id,
        prompt=prompt.text,
        tag=prompt.tag,
        image_index=index,
        image=image,
        values=values,
        reason=reason,
        detections=detections,
        unscored=seen.problem,
        image_digest=image_digest,
    )


def _twins(samples: Sequence[SampleScore]) -> tuple[str, ...]:
    """One line where several files are the same to the byte: a copying mistake, or a model that always draws alike."""
    counts = Counter(sample.image_digest for sample in samples if sample.image_digest)
    doubled = [sample.image for sample in samples if counts[sample.image_digest] > 1]
    if not doubled:
        return ()
    return (f"{len(doubled)} images are not the only ones of their content, the first are {', '.join(doubled[:2])}",)


def _judge(benchmark: Benchmark, batch: Sequence[Loaded]) -> dict[int, Judged]:
    """Row -> verdict of the images that could be loaded; images of one size are judged together."""
    loaded = {row: image for row, (_, image) in enumerate(batch) if not isinstance(image, str)}
    judged: dict[int, Judged] = {}
    for shape in dict.fromkeys(image.shape for image in loaded.values()):
        rows = [row for row, image in loaded.items() if image.shape == shape]
        verdicts = benchmark.score(np.stack([loaded[row] for row in rows]), [batch[row][0].prompt for row in rows])
        judged.update(zip(rows, verdicts, strict=True))
    return judged

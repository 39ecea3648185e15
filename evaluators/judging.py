"""Images to verdicts: at once, or looked at first and judged from what was kept.

No verdict depends on the order of images, on what else is in a batch, or on which process looked at it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, cast

import numpy as np

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, RunError
from gcpo_bench.files import checksum_of
from gcpo_bench.locks import OnWait, beside, held

from . import images
from .images import Picture
from .observations import WHOLE, ObservationsByPart, Seen, address
from .types import (
    Asked,
    Benchmark,
    ChoosyBenchmark,
    ExportingBenchmark,
    Image,
    Judged,
    KeepingBenchmark,
    NumberingBenchmark,
    ObservingBenchmark,
    PartedBenchmark,
    Passing,
    SampleScore,
)

T = TypeVar("T")
LOOK_ROWS = 32
"""Images looked at together where nobody says; as many as scorers take at once on a GPU."""
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
    source: str = ""
    """Digest of the benchmark's sources, where they are not ours: what it sees depends on them."""
    shard: Shard | None = None
    is_drawn_to: bool = False
    """Whether files that are missing come from other shards, and are waited for."""

    def share(self, wanted: Sequence[Any]) -> Sequence[Any]:
        return wanted if self.shard is None else wanted[self.shard[0] - 1 :: self.shard[1]]

    def shown(self, picture: Picture) -> str:
        return picture.path.relative_to(self.root).as_posix()

    @contextmanager
    def held(self, on_wait: OnWait) -> Iterator[None]:
        """Evaluate here alone; a share beside the other shares, but not beside a second process of the same share.

        Who holds it may call what holds it.
        """
        lock = beside(self.out)
        with held(lock, shared=self.shard is not None, again=True, on_wait=on_wait), ExitStack() as stack:
            if self.shard is not None:
                own = lock.with_stem("{}-shard-{}-of-{}".format(lock.stem, *self.shard))
                stack.enter_context(held(own, again=True, on_wait=on_wait))
            yield

    def writing_scores(self) -> AbstractContextManager[None]:
        """For shares that end at the same time; see `held`."""
        lock = beside(self.out / "scores")
        return nullcontext() if self.shard is None else held(lock, on_wait=lambda owner: None)

    def check(self, benchmark: Benchmark) -> None:
        if self.shard is None:
            return
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise ConfigError(
                f"shard {self.shard[0]}/{self.shard[1]} does not exist", hint="use 1/4 to 4/4, for example"
            )
        if not is_keeping(benchmark):
            raise ConfigError(f"benchmark {benchmark.name!r} cannot be split into shards", hint="leave --shard out")


def is_keeping(benchmark: Benchmark) -> TypeGuard[KeepingBenchmark]:
    return hasattr(benchmark, "look")


def _has_parts(benchmark: KeepingBenchmark) -> TypeGuard[PartedBenchmark]:
    return hasattr(benchmark, "parts")


def looks_by_part(
    benchmark: KeepingBenchmark, look: Mapping[str, Any], source: str = ""
) -> Mapping[str, Mapping[str, Any]]:
    """What the observations of each part depend on; `source`: as in `Place`."""
    parts = benchmark.parts(look) if _has_parts(benchmark) else {WHOLE: look}
    return {part: {**each, "source": source} for part, each in parts.items()} if source else parts


def is_numbering(benchmark: Benchmark) -> TypeGuard[NumberingBenchmark]:
    return hasattr(benchmark, "question_of")


def question(benchmark: KeepingBenchmark, prompt: Prompt, index: int) -> Any:
    """What an observation of the `index`-th image of a prompt depends on, beside the image."""
    return benchmark.question_of(prompt, index) if is_numbering(benchmark) else benchmark.question(prompt)


def asked(benchmark: KeepingBenchmark) -> Asked:
    """Which options were given that change what is seen, and what they mean in a look."""
    return cast(ChoosyBenchmark, benchmark).asked() if hasattr(benchmark, "asked") else {}


def is_exporting(benchmark: Benchmark) -> TypeGuard[ExportingBenchmark]:
    return hasattr(benchmark, "export")


def score(benchmark: Benchmark, place: Place, pictures: Sequence[Picture], batch_rows: int) -> list[SampleScore]:
    """One SampleScore an image, in order; a file that is missing, damaged or unfit is unscored, with the reason."""
    samples: list[SampleScore] = []
    loaded = ((picture, _load(benchmark, picture)) for picture in pictures)
    for batch in _batches(loaded, lambda each: each[1], batch_rows):
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


Loaded = tuple[Picture, Image | str]
"""A picture with its image, or why there is none to score."""


def _load(benchmark: Benchmark, picture: Picture) -> Image | str:
    data, problem = images.read(picture)
    return problem or _checked(benchmark, images.decode(data))


def _checked(benchmark: Benchmark, decoded: images.Decoded) -> Image | str:
    """The image, or why there is none to score."""
    if decoded.image_YXC is None:
        return decoded.problem
    return benchmark.problem(decoded.image_YXC) or decoded.image_YXC


def _batches(items: Iterable[T], image_of: Callable[[T], Image | str], batch_rows: int) -> Iterator[list[T]]:
    """Closed at `batch_rows` items, or at `BATCH_PIXELS` of their images."""
    batch: list[T] = []
    pixels = 0
    for item in items:
        batch.append(item)
        image = image_of(item)
        pixels += 0 if isinstance(image, str) else image.shape[0] * image.shape[1]
        if len(batch) == batch_rows or pixels >= BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A set of images, looked at and judged."""

    samples: list[SampleScore]
    notes: tuple[str, ...]
    unanswered: int
    """Images that are worth another look."""


def observe(
    benchmark: KeepingBenchmark,
    place: Place,
    pictures: Sequence[Picture],
    on_image: Callable[[int, int], None] | None = None,
    *,
    batch_rows: int = LOOK_ROWS,
) -> Observed:
    """Look at what was not looked at before, then judge everything. Raises ShardDone where other shares are wanting.

    An observation is kept as soon as the benchmark gives it, so that a stopped process loses one batch at most.
    """
    benchmark.self_test()
    parts = looks_by_part(benchmark, benchmark.look(), place.source)
    store = ObservationsByPart(place.out / "observations", parts, place.shard)
    own = place.share(pictures)
    digests, wanting = _look_at(benchmark, store, own, batch_rows, on_image or (lambda done, total: None))
    if place.shard:
        store.refresh()  # so of shards that run at the same time, the last one finds all the others' observations
    waiting = ShardDone(
        f"shard {'/'.join(map(str, place.shard or ()))}: its {len(own)} images are looked at, others are not"
        + (f"; {wanting} have no answer of every scorer: run it again" if wanting else ""),
        hint="run the other shards; the last one writes the scores, or a call without --shard",
    )
    samples: list[SampleScore] = []
    notes: list[str] = []
    unanswered = 0
    for picture in pictures:
        if place.shard and place.is_drawn_to and picture.is_missing:
            raise waiting
        image_digest, problem = digests.get(picture.path) or _digest(benchmark, picture)
        about = None if problem else question(benchmark, picture.prompt, picture.index)
        seen = Seen(problem=problem) if problem else store.get(image_digest, about)
        if seen is None:
            raise waiting
        if seen.note:
            notes.append(f"{place.shown(picture)} {seen.note}")
        unanswered += seen.is_passing
        samples.append(judged(benchmark, seen, picture.prompt, picture.index, place.shown(picture), image_digest))
    return Observed(samples=samples, notes=(*notes, *_twins(samples)), unanswered=unanswered)


def _look_at(
    benchmark: KeepingBenchmark,
    store: ObservationsByPart,
    own: Sequence[Picture],
    batch_rows: int,
    show: Callable[[int, int], None],
) -> tuple[dict[Path, tuple[str, str]], int]:
    """Keep what is seen in these images. Each file's digest, or why there is none; how many are worth another look."""
    digests: dict[Path, tuple[str, str]] = {}
    wanting: set[int] = set()
    looked = 0
    show(0, len(own))
    for batch in _batches(_unseen(benchmark, store, own, digests), lambda each: each.image, batch_rows):
        for part, each, seen in _look(benchmark, batch):
            store.add(part, each.image_digest, each.question, seen)
            wanting |= {each.row} if seen.is_passing else set()
            if part == each.parts[-1]:
                looked = each.row + 1
                show(looked, len(own))
    if looked < len(own):  # the last ones were looked at before
        show(len(own), len(own))
    return digests, len(wanting)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unseen:
    """An image file that is to be looked at with this question."""

    row: int
    """Its place in this process's share."""
    image_digest: str
    question: Any
    parts: Sequence[str]
    """Of the benchmark, those that are to look."""
    image: Image | str
    """Or why there is none to look at."""
    note: str


def _unseen(
    benchmark: KeepingBenchmark,
    store: ObservationsByPart,
    own: Sequence[Picture],
    digests: dict[Path, tuple[str, str]],
) -> Iterator[_Unseen]:
    """What is to be looked at. Leaves in `digests` each file's digest, or why there is none."""
    asked: set[str] = set()
    for row, picture in enumerate(own):
        data, problem = _fit(benchmark, picture)
        digests[picture.path] = ("", problem) if problem else (checksum_of(data), "")
        if problem:
            continue
        image_digest, about = digests[picture.path][0], question(benchmark, picture.prompt, picture.index)
        place, parts = address(image_digest, about), store.lacking(image_digest, about)
        if place in asked or not parts:
            continue
        asked.add(place)  # a second file of the same content is asked for while the first waits in its batch
        decoded = images.decode(data)
        yield _Unseen(
            row=row,
            image_digest=image_digest,
            question=about,
            parts=parts,
            image=_checked(benchmark, decoded),
            note=decoded.note,
        )


def _look(benchmark: KeepingBenchmark, batch: Sequence[_Unseen]) -> Iterator[tuple[str, _Unseen, Seen]]:
    """Part by part, what each saw."""
    for part in dict.fromkeys(part for each in batch for part in each.parts):
        asked = [each for each in batch if part in each.parts]
        pictures = [each.image for each in asked if not isinstance(each.image, str)]
        questions = [each.question for each in asked if not isinstance(each.image, str)]
        values = iter(_observed(benchmark, part, pictures, questions) if pictures else ())
        for each in asked:
            if isinstance(each.image, str):
                yield part, each, Seen(problem=each.image)
                continue
            value = next(values)
            is_passing = isinstance(value, Passing)
            yield part, each, Seen(value=value.value if is_passing else value, note=each.note, is_passing=is_passing)


def _observed(
    benchmark: KeepingBenchmark, part: str, pictures: Sequence[Image], questions: Sequence[Any]
) -> Iterable[Any]:
    if _has_parts(benchmark):
        return benchmark.observe_part(part, pictures, questions)
    return cast(ObservingBenchmark, benchmark).observe(pictures, questions)


def _digest(benchmark: KeepingBenchmark, picture: Picture) -> tuple[str, str]:
    data, problem = _fit(benchmark, picture)
    return ("", problem) if problem else (checksum_of(data), "")


def _fit(benchmark: KeepingBenchmark, picture: Picture) -> tuple[bytes, str]:
    prompt, index = picture.prompt, picture.index
    if problem := benchmark.unfit_of(prompt, index) if is_numbering(benchmark) else benchmark.unfit(prompt):
        return b"", problem
    return images.read(picture)


def judged(
    benchmark: KeepingBenchmark, seen: Seen, prompt: Prompt, index: int, image: str, image_digest: str
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

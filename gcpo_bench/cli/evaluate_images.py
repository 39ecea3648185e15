"""`gcpo-bench evaluate`: images that no run drew, made by somebody else or by a generator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .evaluate_results import Notes, outcome
from .output import note
from .progress import progress

if TYPE_CHECKING:
    from gcpo_bench.errors import PrerequisiteError
    from gcpo_bench.evaluators.types import Evaluation, Generator
    from gcpo_bench.locks import OnWait

    from .evaluate_usage import Asked

ROOT = Path("evaluations")
Outcomes = Iterator[tuple[list["Evaluation | None"], dict[str, Any]]]
"""Each benchmark's evaluations, None where only a share of one is done, and what is printed; as they are finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where results go, and what tables call them."""

    path: Path
    name: str

    def result(self, benchmark: str) -> dict[str, Any]:
        return {"run": self.name, "path": str(self.path / benchmark), "benchmark": benchmark}


def place_of(default: str, name: str | None, out: Path | None) -> Place:
    """`--out`, or the folder of this name. Raises ConfigError for a name that is no plain folder name."""
    from gcpo_bench.errors import ConfigError

    if name is not None and (not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or name in {".", ".."}):
        raise ConfigError(f"--name {name!r} cannot be used", hint="use 1 to 64 letters, digits, '.', '_' or '-'")
    return Place(path=out or ROOT / (name or default), name=name or default)


def refuse_namesake(place: Place, images: Path) -> None:
    """Raises RunError where a benchmark was evaluated there on another folder: tables would take the two for one."""
    from gcpo_bench.errors import RunError
    from gcpo_bench.sources import other_images

    for source in sorted(place.path.glob("*/source.json")):
        if other := other_images(source.parent, images):
            raise RunError(
                f"{place.path} holds scores of other images: {other}",
                hint="give these a --name of their own; with the same --name both count as one model's",
            )


def evaluated_folder(
    images: Path, place: Place, benchmarks: Sequence[str], asked: Asked, *, allow_partial: bool
) -> Outcomes:
    from gcpo_bench.evaluators.runner import evaluate_folder

    def evaluate(benchmark: str, told: Notes) -> Evaluation:
        with progress("looked at") as show:
            return evaluate_folder(
                images,
                place.path / benchmark,
                benchmark,
                images_per_prompt=asked.images_per_prompt,
                limit=asked.limit,
                batch_rows=asked.batch_rows,
                options=asked.of(benchmark),
                shard=asked.shard,
                allow_partial=allow_partial,
                name=place.name,
                on_image=show,
                on_note=told,
                on_wait=_on_wait(place, benchmark),
            )

    return (_evaluated(evaluate, str(images), place, benchmark, asked) for benchmark in benchmarks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A generator by its name, made where it is to draw."""

    name: str
    made: Generator | None
    lacks: PrerequisiteError | None
    """What is missing on this machine to make it; told beside what a benchmark lacks."""

    @classmethod
    def of(cls, name: str, options: Mapping[str, str], device: str | None, *, rescore: bool) -> Drawing:
        """Reads no weights. Raises ConfigError for a name, target or option that does not exist."""
        from gcpo_bench.errors import PrerequisiteError
        from gcpo_bench.evaluators.generators.make import make_generator

        if rescore:
            return cls(name=name, made=None, lacks=None)
        try:
            return cls(name=name, made=make_generator(name, options=options, device=device), lacks=None)
        except PrerequisiteError as error:
            return cls(name=name, made=None, lacks=error)


def evaluated_generator(
    drawing: Drawing, place: Place, benchmarks: Sequence[str], asked: Asked, *, seed: int
) -> Outcomes:
    from gcpo_bench.evaluators.runner import evaluate_generator
    from gcpo_bench.sources import Collection

    def evaluate(benchmark: str, _: Notes) -> Evaluation:
        assert drawing.made is not None
        with progress("images") as show:
            return evaluate_generator(
                Collection(place.path),
                drawing.made,
                drawing.name,
                benchmark,
                name=place.name,
                seed=seed,
                images_per_prompt=asked.images_per_prompt,
                limit=asked.limit,
                batch_rows=asked.batch_rows,
                options=asked.of(benchmark),
                shard=asked.shard,
                on_batch=show,
                on_image=lambda done, total: show(done, total, "looked at"),
                on_wait=_on_wait(place, benchmark),
            )

    return (_evaluated(evaluate, drawing.name, place, benchmark, asked) for benchmark in benchmarks)


def _on_wait(place: Place, benchmark: str) -> OnWait:
    return lambda owner: note(f"{place.path}: waiting for {owner}, which evaluates it on {benchmark}")


def _evaluated(
    evaluate: Callable[[str, Notes], Evaluation], shown: str, place: Place, benchmark: str, asked: Asked
) -> tuple[list[Evaluation | None], dict[str, Any]]:
    from gcpo_bench.evaluators.runner import ShardDone, rescore

    result = place.result(benchmark)
    if asked.rescore:
        waits = _on_wait(place, benchmark)
        evaluation = rescore(place.path / benchmark, benchmark, options=asked.of(benchmark), on_wait=waits)
        return [evaluation], {**result, **outcome(evaluation)}
    note(f"evaluating {shown} on {benchmark}")
    told = Notes()
    try:
        evaluation = evaluate(benchmark, told)
    except ShardDone as done:
        note(f"{done}; {done.hint}")
        return [None], {**result, "shard": asked.shard}
    told.rest(evaluation)
    return [evaluation], {**result, **outcome(evaluation)}

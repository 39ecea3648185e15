"""`gcpo-bench evaluate`: images that no run drew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .evaluate_results import Notes, outcome
from .output import note
from .progress import progress

if TYPE_CHECKING:
    from gcpo_bench.evaluators.types import Evaluation

    from .evaluate_usage import Asked


def evaluated_folder(
    images: Path, out: Path | None, benchmark: str, asked: Asked, allow_partial: bool
) -> tuple[Evaluation | None, dict[str, Any]]:
    from gcpo_bench.evaluators.runner import ShardDone, evaluate_folder, rescore

    place = (out or Path("evaluations") / (images.resolve().name or "images")) / benchmark
    result: dict[str, Any] = {"run": images.name or str(images), "path": str(place), "benchmark": benchmark}
    if asked.rescore:
        evaluation = rescore(place, benchmark, options=asked.options)
        return evaluation, {**result, **outcome(evaluation)}
    note(f"evaluating {images} on {benchmark}")
    told = Notes()
    try:
        with progress("looked at") as show:
            evaluation = evaluate_folder(
                images,
                place,
                benchmark,
                images_per_prompt=asked.images_per_prompt or 4,
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
    return evaluation, {**result, **outcome(evaluation)}

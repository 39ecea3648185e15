"""What an evaluation left in its folder: every judged image, and what its numbers mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from gcpo_bench.errors import CorruptDataError
from gcpo_bench.files import checksum_of, parse_jsonl, read_bytes
from gcpo_bench.runs import Run, read_json

from .measures import Measure, headline_of, measures, panel_of, spread

NOT_COMPARED = ("weights", "checkpoint", "policy", "run", "step")
"""Parts of an evaluation's identity that say what was evaluated rather than how."""
MEND = "evaluate the run again; its images are kept"
JUDGED = ("version", "benchmark_source", "prompts_digest", "images_per_prompt", "look", "settings")
"""Parts that say how images were judged, whoever drew them and however."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One judged image; fields as in `evaluators.types.SampleScore`."""

    prompt_id: str
    prompt: str
    tag: str
    image_index: int
    image: str
    values: Mapping[str, float]
    reason: str
    detections: tuple[Mapping[str, Any], ...]
    unscored: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    benchmark: str
    version: str
    identity: Mapping[str, Any]
    samples: tuple[Sample, ...]
    frame: pd.DataFrame
    """One row a scored image: prompt_id, tag and a column for each value."""
    by_prompt: pd.DataFrame
    """One row a prompt, by its id: tag and the mean of each value over the images that have it."""
    unscored: int
    headline: str
    """The value that the overall score is the mean of."""
    panel: tuple[str, ...]
    """Values that are compared, the headline first; most benchmarks have only that."""
    measures: Mapping[str, Measure]
    """Of each value that an image has."""
    _scores: dict[str, dict[str, tuple[str, float]]] = field(default_factory=dict, repr=False, compare=False)
    """Prompt scores that were asked for: every column of a table asks again."""

    def prompt_scores(self, metric: str) -> dict[str, tuple[str, float]]:
        """prompt id -> (task, mean over its scored images); not to be changed."""
        if metric not in self.by_prompt:
            return {}
        if metric not in self._scores:
            means = self.by_prompt[["tag", metric]].dropna(subset=[metric])
            rows = zip(means["tag"], means[metric].tolist(), strict=True)
            self._scores[metric] = dict(zip(means.index, rows, strict=True))
        return self._scores[metric]

    def prompt_texts(self) -> dict[str, str]:
        return {sample.prompt_id: sample.prompt for sample in self.samples}

    def comparable_identity(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.identity.items() if not any(part in k.lower() for part in NOT_COMPARED)}
        return {"version": self.version, **kept}

    def judged_identity(self) -> dict[str, Any]:
        """How the images were judged: what must be equal for images of different origin to be compared."""
        return {key: value for key, value in self.comparable_identity().items() if key in JUDGED}


def load_evaluation(run: Run, benchmark: str) -> Evaluation:
    return read_evaluation(run.evaluation_dir(benchmark))


def read_evaluation(folder: Path) -> Evaluation:
    """What lies in the folder of an evaluation, whose name is the benchmark's. Raises CorruptDataError.

    Another process may evaluate again meanwhile. It removes the scores before it writes samples, so samples between two
    equal looks at the scores are those that these sum up.
    """
    path, scores_path = folder / "samples.jsonl", folder / "scores.json"
    before, scores = object(), _scores(scores_path)
    while before != scores:
        before, data = scores, read_bytes(path, MEND)
        scores = _scores(scores_path)
    parts = ("identity", "checksums")
    if not isinstance(scores, dict) or not all(isinstance(scores.get(part, {}), dict) for part in parts):
        raise CorruptDataError(f"{scores_path} is damaged: not an evaluation", hint=MEND)
    if scores.get("checksums", {}).get(path.name, found := checksum_of(data)) != found:
        raise CorruptDataError(f"{path} is damaged: {scores_path.name} sums up other samples", hint=MEND)
    rows = parse_jsonl(path, data, forgive_torn_tail=False, hint=MEND)
    samples = tuple(_sample(row, path, number) for number, row in enumerate(rows, start=1))
    scored = [sample for sample in samples if not sample.unscored]
    frame = pd.DataFrame(
        [{"prompt_id": s.prompt_id, "tag": s.tag, **s.values} for s in scored],
        columns=None if scored else ["prompt_id", "tag"],
    )
    by_prompt = _prompt_means(frame)
    try:
        known = measures(scores, {str(name): spread(by_prompt[name]) for name in by_prompt if name != "tag"})
        panel = panel_of(scores)
    except (AttributeError, TypeError, ValueError) as error:
        raise CorruptDataError(f"{scores_path} is damaged: {error}", hint=MEND) from error
    return Evaluation(
        benchmark=folder.name,
        version=str(scores.get("version", "")),
        identity=scores.get("identity", {}),
        samples=samples,
        frame=frame,
        by_prompt=by_prompt,
        unscored=len(samples) - len(scored),
        headline=headline_of(scores),
        panel=panel,
        measures=known,
    )


def _scores(path: Path) -> Any:
    """What the file holds; an empty object where there is none."""
    try:
        return read_json(path, MEND)
    except CorruptDataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}
        raise


def _prompt_means(frame: pd.DataFrame) -> pd.DataFrame:
    groups = frame.groupby("prompt_id", sort=True)
    return groups[["tag"]].first().join(groups.mean(numeric_only=True))


def _sample(row: Mapping[str, Any], path: Path, number: int) -> Sample:
    try:
        values = {str(key): float(value) for key, value in row["values"].items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError("a value is not finite")
        if values.keys() & {"prompt_id", "tag"}:
            raise ValueError("a value has the name of a column")
        detections = tuple(row.get("detections") or ())
        if not all(len(box := item["box"]) == 4 and all(map(math.isfinite, map(float, box))) for item in detections):
            raise ValueError("a box does not have 4 finite edges")
        return Sample(
            prompt_id=str(row["prompt_id"]),
            prompt=str(row["prompt"]),
            tag=str(row["tag"]),
            image_index=int(row["image_index"]),
            image=str(row["image"]),
            values=values,
            reason=str(row.get("reason") or ""),
            detections=detections,
            unscored=str(row.get("unscored") or ""),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CorruptDataError(f"{path} is damaged: line {number}: {problem}", hint=MEND) from error


def remarks(evaluation: Evaluation, mend: str) -> list[str]:
    """What is wanting in it; `mend` is the command that has it summed up again."""
    name, lines = evaluation.benchmark, []
    if evaluation.measures and evaluation.headline not in evaluation.measures:
        lines.append(f"{name} does not say which value is its score ({mend})")
    if evaluation.unscored:
        lines.append(f"{evaluation.unscored} images of {name} could not be scored and are left out of the means")
    for scorer in evaluation.panel:
        if scorer in evaluation.frame and (missing := int(evaluation.frame[scorer].isna().sum())):
            lines.append(f"{missing} images of {name} have no {scorer} and are left out of its mean")
    return lines


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested configuration -> dotted keys; list items by index."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat

"""GenEval's arithmetic: which objects are kept, when a prompt is fulfilled, and the partial score used as a reward.

It reads detections, whatever made them: the exact verifier of the embedded world, or Mask2Former with CLIP colours.

Source: GenEval `evaluation/evaluate_images.py` (commit af4902f) for `correct` and `reason`; reward-server (92ac29f), as
used by Flow-GRPO and GCPO, for `dense` and `strict`, quirks included. Departures:

1. Objects of equal confidence: GenEval's order depends on the machine's sort; here the later detection comes first,
   which is what its sort does with a handful of objects.
2. Relations in `reason` are named in a fixed order; GenEval's order changes with the hash seed.
3. Metadata that names an unknown class, colour or relation is refused. GenEval would score it 0 for ever.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, did_you_mean

from .types import Detection

RELATIONS = ("left of", "right of", "above", "below")
Kept = Mapping[str, Sequence[Detection]]
"""Class -> its kept objects, most confident first; classes without any are absent."""
Float32 = npt.NDArray[np.float32]

MIN_OFFSET = 1e-3
"""Pixels; centres that are nearer than this, after the dead zone, have no relation."""
MIN_COSINE = 0.5
"""How far a direction must point along an axis to be named after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """GenEval's command-line options that decide the numbers, with its defaults."""

    threshold: float = 0.3
    """Confidence above which an object counts."""
    counting_threshold: float = 0.9
    """The same for prompts of the task `counting`."""
    max_objects: int = 16
    """Objects kept of a class."""
    max_overlap: float = 1.0
    """Of two objects of a class with at least this IoU the less confident one is dropped; 1 drops none."""
    position_threshold: float = 0.1
    """Dead zone of a relation, as a share of both objects' sizes."""

    def __post_init__(self) -> None:
        for name in ("threshold", "counting_threshold", "max_overlap", "position_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"GenEval option {name} is {getattr(self, name)}, outside [0, 1]", hint="it is a share"
                )
        if self.max_objects < 1:
            raise ConfigError(f"GenEval option max_objects is {self.max_objects}", hint="keep at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One demand of a prompt: so many objects of a class, perhaps of a colour, perhaps beside another clause's."""

    label: str
    count: int
    color: str | None = None
    relation: str | None = None
    target: int = -1
    """Index of the clause that `relation` refers to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    correct: bool
    """GenEval's verdict: at least what was asked for."""
    reason: str
    """Why it is not correct, one line a demand; empty otherwise."""
    strict: bool
    """reward-server's verdict: exact numbers of every class asked for."""
    dense: float
    """reward-server's score: mean of the partial terms, 1 at best. Negative where far too many objects are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """GenEval's four numbers over images."""

    overall: float
    """Unweighted mean over tasks."""
    tasks: Mapping[str, float]
    """Mean over a task's images; tasks in order of first appearance."""
    images: float
    """Share of correct images."""
    prompts: float
    """Share of prompts with at least one correct image."""


# ---------------------------------------------------------------- which objects count


def keep(detections: Sequence[Detection], tag: str, options: Options | None = None) -> dict[str, list[Detection]]:
    """The objects that count in a prompt of task `tag`, by class, most confident first."""
    options = options or Options()
    threshold = np.float32(options.counting_threshold if tag == "counting" else options.threshold)
    by_label: dict[str, list[Detection]] = {}
    for detection in detections:
        by_label.setdefault(detection.label, []).append(detection)
    kept = {label: _keep_class(found, threshold, options) for label, found in by_label.items()}
    return {label: found for label, found in kept.items() if found}


def _keep_class(found: list[Detection], threshold: np.float32, options: Options) -> list[Detection]:
    confidence = np.array([detection.confidence for detection in found], dtype=np.float32)
    order = np.argsort(confidence, kind="stable")[::-1]
    order = order[confidence[order] > threshold][: options.max_objects]
    candidates = [found[i] for i in order]
    if options.max_overlap >= 1:
        return candidates
    kept: list[Detection] = []
    for candidate in candidates:
        if all(overlap(other.box, candidate.box) < options.max_overlap for other in kept):
            kept.append(candidate)
    return kept


def overlap(box_a: Sequence[float], box_b: Sequence[float]) -> float:
    """IoU of two boxes with GenEval's areas, which count the right and bottom edge as a pixel more. float32."""
    a, b = np.array([box_a, box_b], dtype=np.float32)
    common = np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])])
    intersection = _area(common)
    union = _area(a) + _area(b) - intersection
    return float(intersection / union) if union else 0.0


def _area(box: Float32) -> np.float32:
    width, height = np.maximum(box[2:] - box[:2] + np.float32(1), np.float32(0))
    return np.float32(width * height)


def relations(box_a: Sequence[float], box_b: Sequence[float], dead_zone: float = 0.1) -> tuple[str, ...]:
    """Where A lies from B: none, one or two of `RELATIONS`. float32, as GenEval."""
    a, b = (np.array(box, dtype=np.float32).reshape(2, 2) for box in (box_a, box_b))
    offset = a.mean(axis=0) - b.mean(axis=0)
    sizes = np.abs(a[1] - a[0]) + np.abs(b[1] - b[0])
    revised = np.maximum(np.abs(offset) - np.float32(dead_zone) * sizes, np.float32(0)) * np.sign(offset)
    if (np.abs(revised) < MIN_OFFSET).all():
        return ()
    dx, dy = revised / np.linalg.norm(offset)
    holds = (dx < -MIN_COSINE, dx > MIN_COSINE, dy < -MIN_COSINE, dy > MIN_COSINE)
    return tuple(relation for relation, true in zip(RELATIONS, holds, strict=True) if true)


# ---------------------------------------------------------------- what a prompt demands


def clauses(prompt: Prompt, classes: Collection[str], colors: Collection[str]) -> tuple[list[Clause], list[Clause]]:
    """The prompt's `include` and `exclude` demands, checked.

    Raises CorruptDataError that names the prompt and the field.
    """
    include = _entries(prompt, "include")
    exclude = _entries(prompt, "exclude")
    if not include and not exclude:
        raise _bad_metadata(prompt, "include", "is empty", "a prompt must demand something")
    return (
        [_clause(prompt, f"include[{i}]", entry, classes, colors, earlier=i) for i, entry in enumerate(include)],
        [_clause(prompt, f"exclude[{i}]", entry, classes, (), earlier=0) for i, entry in enumerate(exclude)],
    )


def _entries(prompt: Prompt, key: str) -> Sequence[Any]:
    entries = prompt.metadata.get(key, ())
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise _bad_metadata(prompt, key, f"is {entries!r}", "it is a list of objects")
    return entries


def _clause(
    prompt: Prompt, where: str, entry: Any, classes: Collection[str], colors: Collection[str], *, earlier: int
) -> Clause:
    if not isinstance(entry, Mapping):
        raise _bad_metadata(prompt, where, f"is {entry!r}", "it is an object with `class` and `count`")
    allowed = {"class", "count"} if where.startswith("exclude") else {"class", "count", "color", "position"}
    for key in entry:
        if key not in allowed:
            raise _bad_metadata(prompt, f"{where}.{key}", "is no field of a demand", did_you_mean(str(key), allowed))
    label = _known(prompt, f"{where}.class", entry.get("class"), classes)
    count = entry.get("count")
    if type(count) is not int or count < 1:
        raise _bad_metadata(prompt, f"{where}.count", f"is {count!r}", "it is a whole number, 1 or more")
    color = _known(prompt, f"{where}.color", entry["color"], colors) if "color" in entry else None
    if "position" not in entry:
        return Clause(label=label, count=count, color=color)
    position = entry["position"]
    if isinstance(position, str) or not isinstance(position, Sequence) or len(position) != 2:
        raise _bad_metadata(prompt, f"{where}.position", f"is {position!r}", "it is [relation, index]")
    relation = _known(prompt, f"{where}.position", position[0], RELATIONS)
    if type(position[1]) is not int or not 0 <= position[1] < earlier:
        raise _bad_metadata(
            prompt, f"{where}.position", f"refers to include {position[1]!r}", "it names an earlier entry of `include`"
        )
    return Clause(label=label, count=count, color=color, relation=relation, target=position[1])


def _known(prompt: Prompt, field: str, name: Any, known: Collection[str]) -> str:
    if not isinstance(name, str) or name not in known:
        raise _bad_metadata(prompt, field, f"is {name!r}", did_you_mean(str(name), known))
    return name


def _bad_metadata(prompt: Prompt, field: str, problem: str, hint: str) -> CorruptDataError:
    return CorruptDataError(f"prompt {prompt.id!r}: metadata field {field} {problem}", hint=hint)


# ---------------------------------------------------------------- verdicts


class GenEval:
    """Judges kept objects against prompts over one vocabulary of classes and colours."""

    def __init__(self, classes: Collection[str], colors: Collection[str], options: Options | None = None) -> None:
        self.classes = tuple(classes)
        self.colors = tuple(colors)
        self.options = options or Options()

    def __call__(self, detections: Sequence[Detection], prompt: Prompt) -> Verdict:
        """`keep`, then `judge`: for detectors that give each object's colour at once."""
        return self.judge(keep(detections, prompt.tag, self.options), prompt)

    def judge(self, kept: Kept, prompt: Prompt) -> Verdict:
        """The verdict on an image with these kept objects.

        Raises CorruptDataError for bad metadata, ValueError where a colour is asked for and an object has none.
        """
        include, exclude = clauses(prompt, self.classes, self.colors)
        complaints = self._official(kept, include, exclude)
        terms, strict = self._reward_server(kept, include)
        return Verdict(
            correct=not complaints,
            reason="\n".join(complaints),
            strict=strict,
            dense=math.fsum(terms) / len(terms) if terms else 0.0,
        )

    def _official(self, kept: Kept, include: Sequence[Clause], exclude: Sequence[Clause]) -> list[str]:
        """What is missing; empty means correct. The most confident `count` objects stand for a clause."""
        complaints: list[str] = []
        groups: list[Sequence[Detection] | None] = []
        for clause in include:
            found = kept.get(clause.label, ())[: clause.count]
            complaint = self._shortage(clause, found) or self._misplaced(clause, found, groups)
            groups.append(None if complaint else found)
            complaints += [complaint] if complaint else []
        for clause in exclude:
            number = len(kept.get(clause.label, ()))
            if number >= clause.count:
                complaints.append(f"expected {clause.label}<{clause.count}, found {number}")
        return complaints

    def _shortage(self, clause: Clause, found: Sequence[Detection]) -> str:
        if len(found) < clause.count:
            return f"expected {clause.label}>={clause.count}, found {len(found)}"
        if clause.color is None:
            return ""
        seen = _colors(found)
        if seen.count(clause.color) >= clause.count:
            return ""
        listing = ", ".join(f"{seen.count(color)} {color}" for color in self.colors if color in seen)
        return (
            f"expected {clause.color} {clause.label}>={clause.count}, "
            f"found {seen.count(clause.color)} {clause.color}; and {listing}"
        )

    def _misplaced(
        self, clause: Clause, found: Sequence[Detection], groups: Sequence[Sequence[Detection] | None]
    ) -> str:
        if clause.relation is None:
            return ""
        targets = groups[clause.target]
        if targets is None:
            return f"no target for {clause.label} to be {clause.relation}"
        for item in found:
            for target in targets:
                holding = relations(item.box, target.box, self.options.position_threshold)
                if clause.relation not in holding:
                    return f"expected {clause.label} {clause.relation} target, found {' and '.join(holding)} target"
        return ""

    def _reward_server(self, kept: Kept, include: Sequence[Clause]) -> tuple[list[float], bool]:
        """Partial terms and strict verdict. Equal numbers instead of enough, all kept objects, `exclude` unread."""
        terms: list[float] = []
        groups: list[Sequence[Detection] | None] = []
        for clause in include:
            found = kept.get(clause.label, ())
            terms.append(_closeness(clause.count, len(found)))
            matched = len(found) == clause.count
            if not matched:
                # one zero stands for everything else the clause asks
                terms += [0.0] if clause.color is not None or clause.relation is not None else []
            elif clause.color is not None:
                number = _colors(found).count(clause.color)
                terms.append(_closeness(clause.count, number))
                matched = number == clause.count
            if matched and clause.relation is not None:
                misplaced = bool(self._misplaced(clause, found, groups))
                has_target = groups[clause.target] is not None
                # a released quirk: 1 is added for a position that was looked at, also after the 0 of a wrong one
                terms += [0.0] * misplaced + [1.0] * has_target
                matched = not misplaced
            groups.append(found if matched else None)
        return terms, all(group is not None for group in groups)


def _closeness(asked: int, found: int) -> float:
    return 1 - abs(asked - found) / asked


def _colors(found: Sequence[Detection]) -> list[str]:
    colors = [detection.color for detection in found if detection.color is not None]
    if len(colors) < len(found):
        raise ValueError("a colour is asked for, but the detections carry none; classify the kept objects first")
    return colors


# ---------------------------------------------------------------- over images


def summarize(verdicts: Sequence[tuple[str, str, bool]]) -> Summary:
    """GenEval's summary of (prompt id, tag, correct), one an image. Raises ValueError without any."""
    if not verdicts:
        raise ValueError("no images to summarise")
    by_tag: dict[str, list[bool]] = {}
    by_prompt: dict[str, list[bool]] = {}
    for prompt_id, tag, correct in verdicts:
        by_tag.setdefault(tag, []).append(correct)
        by_prompt.setdefault(prompt_id, []).append(correct)
    tasks = {tag: _mean(values) for tag, values in by_tag.items()}
    return Summary(
        overall=_mean(list(tasks.values())),
        tasks=tasks,
        images=_mean([correct for _, _, correct in verdicts]),
        prompts=_mean([any(values) for values in by_prompt.values()]),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)

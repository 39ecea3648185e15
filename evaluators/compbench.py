"""T2I-CompBench(++)'s arithmetic, from answers and detections to scores, as its code does it, defects included.

Boxes are in the detector's frame (`frame_size`), in which a square picture measures 479 pixels a side, so that 150
pixels are 31 % of it. Detections are taken in the order of their confidence.

What a reader may stumble over, all as published:

1. In 2D a noun must equal a label of the detector; 100 of the 300 prompts have a noun that is none of UniDet's labels
   (mouse, table, phone, ...), and every score below 0.5 becomes 0, so about a third of the score cannot be reached.
2. In 3D a noun need only be a part of a label ("phone" in "microphone"), and of several hits not the best one counts.
3. In 3D depth is read with rows and columns exchanged.
4. "on top of" is found in a 2D prompt but matches no position, which then scores 0; so is "near" inside other words.

Scores are raw, 0 to 1. A category's score is the mean over all its images.

Source: Karine-Huang/T2I-CompBench 1b70949, described from reading; no code of it is used (some of it is not free).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .types import Detection

Box = tuple[float, float, float, float]

# ---------------------------------------------------------------- attributes: BLIP-VQA

MAX_PHRASES = 8
NO_OBJECTS = frozenset({"top", "the side", "the left", "the right"})
"""Noun phrases that name a place."""


def questions(noun_phrases: Sequence[str]) -> tuple[str, ...]:
    """What BLIP is asked about a picture: `a red cube?`."""
    return tuple(f"{phrase}?" for phrase in noun_phrases if phrase not in NO_OBJECTS)[:MAX_PHRASES]


def attribute_score(probabilities: Sequence[float]) -> float:
    """Product over the questions, in single precision; answers and product pass through four decimals."""
    product = np.float32(1)
    for probability in probabilities:
        product *= np.float32(f"{probability:.4f}")
    return float(f"{product:.4f}")


# ---------------------------------------------------------------- boxes

FRAME, FRAME_LONG = 479, 480
"""Pixels of the short side of a picture in the detector's frame, and the most of its long side."""


def frame_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a picture in the detector's frame."""
    short, long = sorted((height, width))
    new_short, new_long = FRAME, int(FRAME * long / short)
    if new_long > FRAME_LONG:
        new_short, new_long = int(FRAME_LONG * new_short / new_long), FRAME_LONG
    return (new_short, new_long) if height <= width else (new_long, new_short)


def overlap(a: Box, b: Box, extra: float = 0.0) -> float:
    """Intersection over union; `extra` is 1 where areas count whole pixels. 0 where both boxes are empty."""
    shared = _shared(a, b, extra)
    union = _area(a, extra) + _area(b, extra) - shared
    return shared / union if union > 0 else 0.0


def _area(box: Box, extra: float) -> float:
    return (box[2] - box[0] + extra) * (box[3] - box[1] + extra)


def _shared(a: Box, b: Box, extra: float) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + extra
    height = min(a[3], b[3]) - max(a[1], b[1]) + extra
    return max(width, 0.0) * max(height, 0.0)


def by_confidence(detections: Sequence[Detection]) -> list[Detection]:
    return sorted(detections, key=lambda detection: -detection.confidence)


def from_frame(box: Box, height: int, width: int) -> Box:
    """A box of the detector's frame in pixels of the picture, which has this size."""
    frame_height, frame_width = frame_size(height, width)
    scales = (width / frame_width, height / frame_height) * 2
    left, top, right, bottom = (round(side * scale, 2) for side, scale in zip(box, scales, strict=True))
    return left, top, right, bottom


# ---------------------------------------------------------------- spatial

PERSONS = frozenset({"girl", "boy", "man", "woman"})
LOCALITIES_2D = (
    "on side of",
    "next to",
    "near",
    "on the left of",
    "on the right of",
    "on the bottom of",
    "on the top of",
    "on top of",
)
LOCALITIES_3D = ("in front of", "behind", "hidden")
BESIDE = frozenset({"on side of", "next to", "near"})
NEAR_PIXELS = 150.0
SMALL_OVERLAP = 0.1
LARGE_OVERLAP = 0.5
MIN_SCORE_2D = 0.5


def locality(prompt: str, known: Sequence[str]) -> str:
    """The first of `known` that is anywhere in the prompt; empty where none is."""
    return next((each for each in known if each in prompt), "")


def pair(nouns: Sequence[str]) -> tuple[str, str]:
    """The two objects of a prompt: its first and last noun. Raises ValueError where it has none."""
    if not nouns:
        raise ValueError("the prompt has no noun")
    first, last = ("person" if noun in PERSONS else noun for noun in (nouns[0], nouns[-1]))
    return first, last


def position_2d(where: str, a: Box, b: Box) -> float:
    """How well object `a` stands `where` object `b` is asked to have it."""
    across = (b[0] + b[2]) / 2 - (a[0] + a[2]) / 2
    down = (b[1] + b[3]) / 2 - (a[1] + a[3]) / 2
    if where in BESIDE:
        is_near = abs(across) < NEAR_PIXELS or abs(down) < NEAR_PIXELS
        return 1.0 if is_near else NEAR_PIXELS / max(abs(across), abs(down))
    is_there = {
        "on the right of": across < 0 and abs(across) > abs(down),
        "on the left of": across > 0 and abs(across) > abs(down),
        "on the bottom of": down < 0 and abs(down) > abs(across),
        "on the top of": down > 0 and abs(down) > abs(across),
    }
    if not is_there.get(where, False):
        return 0.0
    common = overlap(a, b)
    return 1.0 if common < SMALL_OVERLAP else SMALL_OVERLAP / common


def spatial_2d(prompt: str, objects: tuple[str, str], detections: Sequence[Detection]) -> float:
    """Half for both objects being there, each by its confidence, half for their position; below 0.5 it is 0."""
    ordered = by_confidence(detections)
    first, last = (next((each for each in ordered if each.label == noun), None) for noun in objects)
    if first and last:
        position = position_2d(locality(prompt, LOCALITIES_2D), first.box, last.box)
        score = 0.25 * first.confidence + 0.25 * last.confidence + position / 2
    else:
        score = 0.25 * sum(each.confidence for each in (first, last) if each)
    return score if score >= MIN_SCORE_2D else 0.0


def position_3d(where: str, a: Box, b: Box, nearer: float) -> float:
    """`nearer` is by how much `a` is nearer than `b`; NaN where that is not known: then no comparison holds."""
    is_there = nearer > 0 if where == "in front of" else nearer < 0 if where in LOCALITIES_3D else False
    if not is_there:
        return 0.0
    common = overlap(a, b)
    if common > LARGE_OVERLAP:
        return 1.0
    return common / LARGE_OVERLAP if common < LARGE_OVERLAP else 0.0


def box_depth(box: Box, depth_YX: npt.NDArray[np.number], *, exchanged: bool = True) -> float:
    """Mean of the depth map in a box; NaN where no pixel is in it.

    Rows are taken by the box's horizontal extent and columns by its vertical one, as published, unless `exchanged` is
    False. `depth_YX` is in the boxes' frame and larger where nearer.
    """
    left, top, right, bottom = (int(side) for side in box)
    inside = depth_YX[left:right, top:bottom] if exchanged else depth_YX[top:bottom, left:right]
    return float(inside.mean()) if inside.size else math.nan


def spatial_3d(
    prompt: str, objects: tuple[str, str], detections: Sequence[Detection], depths: Sequence[float]
) -> float:
    """As `spatial_2d`, but objects are found by parts of labels, and small scores stay.

    `depths` are the detections' own, as `box_depth` gives them.
    """
    order = sorted(range(len(detections)), key=lambda row: -detections[row].confidence)
    hits = [[row for row in order if name in detections[row].label] for name in objects]
    if all(hits):
        a, b = _last_before_both(hits, order)
        first, last = detections[a], detections[b]
        position = position_3d(locality(prompt, LOCALITIES_3D), first.box, last.box, depths[a] - depths[b])
        return 0.25 * first.confidence + 0.25 * last.confidence + position / 2
    return 0.25 * sum(detections[rows[0]].confidence for rows in hits if rows)


def _last_before_both(hits: Sequence[Sequence[int]], order: Sequence[int]) -> list[int]:
    """The published scan keeps the newest hit of each object and ends as soon as it has one of both."""
    rank = {row: place for place, row in enumerate(order)}
    end = max(rank[rows[0]] for rows in hits)
    return [max((row for row in rows if rank[row] <= end), key=rank.__getitem__) for rows in hits]


# ---------------------------------------------------------------- numeracy

NUMBERS = dict.fromkeys(("a", "an", "one"), 1) | {
    word: number for number, word in enumerate(("two", "three", "four", "five", "six", "seven", "eight"), start=2)
}
ALIASES = dict.fromkeys(PERSONS, "person") | {
    "ship": "boat",
    "telivision": "tv",  # spelt so there
    "goldfish": "fish",
    "painting": "picture",
}
SAME_OBJECT = 0.9
_WORD = re.compile(r"[\w-]+")


@dataclass(frozen=True, slots=True)
class Nouns:
    """Names of objects in singular and plural, as in the published `new_objects.txt`."""

    plural_of: Mapping[str, str]

    @property
    def singular_of(self) -> Mapping[str, str]:
        return {plural: singular for singular, plural in self.plural_of.items()}


def read_nouns(text: str) -> Nouns:
    """Lines `singular - plural`. Raises ValueError for another line."""
    pairs = {}
    for number, line in enumerate(text.strip().splitlines(), start=1):
        singular, dash, plural = (part.strip() for part in line.partition(" - "))
        if not (singular and dash and plural):
            raise ValueError(f"line {number} is not 'singular - plural': {line[:60]!r}")
        pairs[singular] = plural
    return Nouns(pairs)


def asked_numbers(prompt: str, nouns: Nouns) -> list[tuple[str, int]]:
    """(object, number) for each number word of the prompt that an object follows, of one word or two."""
    words = _WORD.findall(prompt.lower())
    singular_of = nouns.singular_of
    asked: list[tuple[str, int]] = []
    for row, word in enumerate(words):
        if word not in NUMBERS:
            continue
        is_one = word in {"a", "an", "one"}
        two, one = " ".join(words[row + 1 : row + 3]), " ".join(words[row + 1 : row + 2])
        if " " in two and (two in nouns.plural_of or two in singular_of):
            is_many = two in singular_of and not is_one
            asked.append((singular_of[two], NUMBERS[word]) if is_many else (two, 1))
        elif one in nouns.plural_of and is_one:
            asked.append((one, 1))
        elif one in nouns.plural_of or one in singular_of:
            asked.append((singular_of.get(one, one), NUMBERS[word]))
    return [(ALIASES.get(name, name), number) for name, number in asked]


def distinct(detections: Sequence[Detection]) -> list[Detection]:
    """By confidence, without those that show an object again: same label, nearly the same box or one in the other."""
    kept: list[Detection] = []
    for each in by_confidence(detections):
        if not any(other.label == each.label and _is_same(other.box, each.box) for other in kept):
            kept.append(each)
    return kept


def _is_same(a: Box, b: Box) -> bool:
    shared = _shared(a, b, 1.0)
    return overlap(a, b, 1.0) > SAME_OBJECT or any(shared / _area(box, 1.0) > SAME_OBJECT for box in (a, b))


def counted(prompt: str, nouns: Nouns, detections: Sequence[Detection]) -> list[tuple[str, int, int]]:
    """(object, number asked for, number found) for each object of the prompt.

    An object whose name is no label takes over all labels that hold its name, also for the objects after it.
    Raises ValueError where the prompt asks for nothing.
    """
    asked = asked_numbers(prompt, nouns)
    if not asked:
        raise ValueError("the prompt asks for no number of objects")
    labels = [each.label for each in distinct(detections)]
    found = []
    for name, number in asked:
        if name not in labels:
            labels = [name if name in label else label for label in labels]
        found.append((name, number, labels.count(name)))
    return found


def numeracy(prompt: str, nouns: Nouns, detections: Sequence[Detection]) -> float:
    """For each object alike, half for being there and half for its number. Raises as `counted` does."""
    found = counted(prompt, nouns, detections)
    return sum(((count > 0) * 0.5 + (count == number) * 0.5) / len(found) for _, number, count in found)


# ---------------------------------------------------------------- complex

PREPOSITIONS = frozenset({"on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near"})
"""What stands between the two objects of a complex prompt."""
PARTS = ("attribute", "spatial", "clip")
Words = Sequence[tuple[str, str]]
"""Each word of a prompt and its part of speech (NOUN, PROPN, ADJ, ...)."""


def complex_pair(words: Words) -> tuple[str, str] | None:
    """The two objects around the prepositions of a complex prompt; None where there are not just two.

    Before one it is the nearest noun or name, after it the next noun, or where there is none the end of the first name
    that is not at the prompt's own end.
    """
    objects: list[str] = []
    for row in range(len(words)):
        length = next((n for n in (3, 2, 1) if " ".join(text for text, _ in words[row : row + n]) in PREPOSITIONS), 0)
        if not length:
            continue
        rest = words[row + length :]
        before = (text for text, kind in reversed(words[:row]) if kind in {"NOUN", "PROPN"})
        nouns = (text for text, kind in rest if kind == "NOUN")
        names = (text for (text, kind), (_, next_kind) in pairwise(rest) if kind == "PROPN" and next_kind != "PROPN")
        objects += [next(before, ""), next(nouns, "") or next(names, "")]
    objects = [each for each in objects if each]
    return pair(objects) if len(objects) == 2 else None


def without_adjectives(words: Words) -> str:
    """What CLIP is asked about a complex prompt."""
    return " ".join(text for text, kind in words if kind != "ADJ")


def complex_parts(prompt: str, spatial_prompts: Collection[str], action_prompts: Collection[str]) -> tuple[str, ...]:
    """Which of `PARTS` a complex prompt is about: all three, or attributes with either place or action.

    The two collections hold prompts as `complex_key` gives them.
    """
    key = complex_key(prompt)
    if key in spatial_prompts:
        return "attribute", "spatial"
    if key in action_prompts:
        return "attribute", "clip"
    return PARTS


def three_in_one(scores: Mapping[str, float]) -> float:
    """The mean of the parts that a prompt is about."""
    return sum(scores[part] for part in PARTS if part in scores) / len(scores)


def complex_key(prompt: str) -> str:
    """Lower case, up to the first full stop."""
    return prompt.lower().partition(".")[0].strip()

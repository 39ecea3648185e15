"""T2I-CompBench's scores in plain loops, written from its description. Detections are (label, confidence, box)."""

from __future__ import annotations

import math
from typing import Any

Found = list[tuple[str, float, tuple[float, float, float, float]]]


def sorted_by_score(found: Found) -> Found:
    return [found[row] for row in sorted(range(len(found)), key=lambda row: (-found[row][1], row))]


def iou(a: Any, b: Any, plus: int) -> float:
    left, top, right, bottom = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    w, h = right - left + plus, bottom - top + plus
    inter = w * h if w > 0 and h > 0 else 0.0
    area_a = (a[2] - a[0] + plus) * (a[3] - a[1] + plus)
    area_b = (b[2] - b[0] + plus) * (b[3] - b[1] + plus)
    if area_a + area_b - inter == 0:
        return 0.0
    return float(inter / (area_a + area_b - inter))


def centre(box: Any) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def objects(nouns: list[str]) -> list[str]:
    both = [nouns[0], nouns[-1]]
    for row in (0, 1):
        if both[row] in ("girl", "boy", "man", "woman"):
            both[row] = "person"
    return both


def spatial_2d(prompt: str, nouns: list[str], found: Found) -> float:
    where = None
    for phrase in (
        "on side of",
        "next to",
        "near",
        "on the left of",
        "on the right of",
        "on the bottom of",
        "on the top of",
        "on top of",
    ):
        if prompt.find(phrase) >= 0:
            where = phrase
            break
    one, two = objects(nouns)
    first = second = None
    for item in sorted_by_score(found):
        if first is None and item[0] == one:
            first = item
        if second is None and item[0] == two:
            second = item
    score = 0.0
    if first is not None and second is not None:
        (x1, y1), (x2, y2) = centre(first[2]), centre(second[2])
        dx, dy = x2 - x1, y2 - y1
        common = iou(first[2], second[2], 0)
        position = 0.0
        if where in ("next to", "on side of", "near"):
            farther = abs(dx) if abs(dx) > abs(dy) else abs(dy)
            position = 1.0 if abs(dx) < 150 or abs(dy) < 150 else 150 / farther
        else:
            holds = False
            if where == "on the right of":
                holds = dx < 0 and abs(dx) > abs(dy)
            if where == "on the left of":
                holds = dx > 0 and abs(dx) > abs(dy)
            if where == "on the bottom of":
                holds = dy < 0 and abs(dy) > abs(dx)
            if where == "on the top of":
                holds = dy > 0 and abs(dy) > abs(dx)
            if holds and common < 0.1:
                position = 1.0
            elif holds:
                position = 0.1 / common
        score = 0.25 * first[1] + 0.25 * second[1] + position / 2
    elif first is not None:
        score = 0.25 * first[1]
    elif second is not None:
        score = 0.25 * second[1]
    return 0.0 if score < 0.5 else score


def mean_depth(box: Any, depth: Any) -> float:
    """From a map, or from what is known of boxes."""
    if isinstance(depth, dict):
        return float(depth[box])
    values = []
    for row in range(max(0, int(box[0])), min(len(depth), int(box[2]))):
        for col in range(max(0, int(box[1])), min(len(depth[0]), int(box[3]))):
            values.append(float(depth[row][col]))
    return math.fsum(values) / len(values) if values else math.nan


def spatial_3d(prompt: str, nouns: list[str], found: Found, depth: Any) -> float:
    where = None
    for phrase in ("in front of", "behind", "hidden"):
        if phrase in prompt:
            where = phrase
            break
    one, two = objects(nouns)
    items = sorted_by_score(found)
    everything = " ".join(item[0] for item in items)
    if one in everything and two in everything:
        at_one = at_two = None
        for row, item in enumerate(items):
            if one in item[0]:
                at_one = row
            if two in item[0]:
                at_two = row
            if at_one is not None and at_two is not None:
                break
        assert at_one is not None
        assert at_two is not None
        a, b = items[at_one], items[at_two]
        d1, d2 = mean_depth(a[2], depth), mean_depth(b[2], depth)
        common = iou(a[2], b[2], 0)
        position = 0.0
        if (where == "in front of" and d1 - d2 > 0) or (where in ("behind", "hidden") and d1 - d2 < 0):
            if common > 0.5:
                position = 1.0
            elif 0 < common < 0.5:
                position = common / 0.5
        return 0.25 * a[1] + 0.25 * b[1] + position / 2
    for name in (one, two):
        for item in items:
            if name in item[0]:
                return 0.25 * item[1]
    return 0.0


def numeracy(asked: list[tuple[str, int]], found: Found) -> float:
    kept: Found = []
    for item in sorted_by_score(found):
        double = False
        for other in kept:
            if other[0] != item[0]:
                continue
            a, b = other[2], item[2]
            w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
            inter = w * h if w > 0 and h > 0 else 0.0
            area_a, area_b = (a[2] - a[0] + 1) * (a[3] - a[1] + 1), (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
            if inter / (area_a + area_b - inter) > 0.9 or inter / area_a > 0.9 or inter / area_b > 0.9:
                double = True
        if not double:
            kept.append(item)
    names = [item[0] for item in kept]
    total = 0.0
    weight = 1 / len(asked)
    for name, number in asked:
        if name not in names:
            for row in range(len(names)):
                if name in names[row]:
                    names[row] = name
        if name in names:
            total += 0.5 * weight
        if names.count(name) == number:
            total += 0.5 * weight
    return total


def complex_objects(words: list[tuple[str, str]]) -> list[str] | None:
    """Words come with their parts of speech."""
    wanted = ["on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near"]
    objects: list[str] = []
    for at in range(len(words)):
        taken = 0
        for length in (1, 2, 3):
            window = words[at : at + length]
            if " ".join(word for word, _ in window) in wanted:
                taken = length
        if taken == 0:
            continue
        for row in range(at - 1, -1, -1):
            if words[row][1] in ("NOUN", "PROPN"):
                objects.append(words[row][0])
                break
        row, found = at + taken, False
        while row < len(words) and not found:
            if words[row][1] == "NOUN":
                objects.append(words[row][0])
                found = True
            row += 1
        if not found:
            for row in range(at + taken, len(words) - 1):
                if words[row][1] == "PROPN" and words[row + 1][1] != "PROPN":
                    objects.append(words[row][0])
                    break
    if len(objects) != 2:
        return None
    for row in (0, 1):
        if objects[row] in ("girl", "boy", "man", "woman"):
            objects[row] = "person"
    return objects

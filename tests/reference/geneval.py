"""GenEval and reward-server written out slowly, one object and one number at a time, as an oracle for the fast code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gcpo_bench.evaluators.types import Detection

f32 = np.float32


def kept_objects(
    detections: Sequence[Detection], tag: str, max_objects: int = 16, max_overlap: float = 1.0
) -> dict[str, list[Detection]]:
    limit = f32(0.9) if tag == "counting" else f32(0.3)
    result: dict[str, list[Detection]] = {}
    for label in {detection.label for detection in detections}:
        pool = [(f32(d.confidence), place, d) for place, d in enumerate(detections) if d.label == label]
        pool.sort(key=lambda entry: (entry[0], entry[1]), reverse=True)
        pool = [entry for entry in pool if entry[0] > limit][:max_objects]
        while pool:
            chosen = pool.pop(0)[2]
            result.setdefault(label, []).append(chosen)
            if max_overlap < 1:
                pool = [entry for entry in pool if iou(chosen.box, entry[2].box) < max_overlap]
    return result


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    common = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - common
    return common / union if union else 0.0


def relation_names(a: Sequence[float], b: Sequence[float]) -> list[str]:
    ax0, ay0, ax1, ay1 = map(f32, a)
    bx0, by0, bx1, by1 = map(f32, b)
    off_x = (ax0 + ax1) / f32(2) - (bx0 + bx1) / f32(2)
    off_y = (ay0 + ay1) / f32(2) - (by0 + by1) / f32(2)

    def shrink(offset: f32, size: f32) -> f32:
        rest = abs(offset) - f32(0.1) * size
        if rest <= 0:
            return f32(0)
        return rest if offset > 0 else -rest

    rev_x = shrink(off_x, abs(ax1 - ax0) + abs(bx1 - bx0))
    rev_y = shrink(off_y, abs(ay1 - ay0) + abs(by1 - by0))
    if abs(rev_x) < 1e-3 and abs(rev_y) < 1e-3:
        return []
    length = np.sqrt(off_x * off_x + off_y * off_y)
    names = []
    if rev_x / length < -0.5:
        names.append("left of")
    if rev_x / length > 0.5:
        names.append("right of")
    if rev_y / length < -0.5:
        names.append("above")
    if rev_y / length > 0.5:
        names.append("below")
    return names


def official(
    objects: Mapping[str, list[Detection]], metadata: Mapping[str, Any], colors: Sequence[str]
) -> tuple[bool, str]:
    correct = True
    lines: list[str] = []
    groups: list[Any] = []
    for need in metadata.get("include", []):
        name, count = need["class"], need["count"]
        found = objects.get(name, [])[:count]
        good = True
        if len(found) < count:
            good = False
            lines.append(f"expected {name}>={count}, found {len(found)}")
        elif "color" in need:
            seen = [d.color for d in found]
            if seen.count(need["color"]) < count:
                good = False
                others = [f"{seen.count(color)} {color}" for color in colors if color in seen]
                lines.append(
                    f"expected {need['color']} {name}>={count}, found {seen.count(need['color'])} {need['color']}; and "
                    + ", ".join(others)
                )
        if good and "position" in need:
            wish, index = need["position"]
            if groups[index] is None:
                good = False
                lines.append(f"no target for {name} to be {wish}")
            else:
                pairs = [(d, other) for d in found for other in groups[index]]
                for d, other in pairs:
                    names = relation_names(d.box, other.box)
                    if wish not in names:
                        good = False
                        lines.append(f"expected {name} {wish} target, found {' and '.join(names)} target")
                        break
        groups.append(found if good else None)
        correct = correct and good
    for need in metadata.get("exclude", []):
        number = len(objects.get(need["class"], []))
        if number >= need["count"]:
            correct = False
            lines.append(f"expected {need['class']}<{need['count']}, found {number}")
    return correct, "\n".join(lines)


def reward_server(objects: Mapping[str, list[Detection]], metadata: Mapping[str, Any]) -> tuple[bool, float]:
    """strict_correct and score."""
    strict = True
    rewards: list[float] = []
    groups: list[Any] = []
    for need in metadata.get("include", []):
        count = need["count"]
        found = objects.get(need["class"], [])
        good = len(found) == count
        rewards.append(1 - abs(count - len(found)) / count)
        if not good:
            if "color" in need or "position" in need:
                rewards.append(0.0)
        else:
            if "color" in need:
                number = sum(d.color == need["color"] for d in found)
                rewards.append(1 - abs(count - number) / count)
                good = number == count
            if "position" in need and good:
                wish, index = need["position"]
                if groups[index] is None:
                    good = False
                    rewards.append(0.0)
                else:
                    for d in found:
                        if good and not all(wish in relation_names(d.box, other.box) for other in groups[index]):
                            good = False
                            rewards.append(0.0)
                    rewards.append(1.0)
        groups.append(found if good else None)
        strict = strict and good
    return strict, sum(rewards) / len(rewards) if rewards else 0.0

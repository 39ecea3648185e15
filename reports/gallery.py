"""Images before and after, with boxes and reasons or with their scores; wins and losses in equal number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from .fragments import Fragment, data_uri, render
from .load import LoadedRun, ReportData, Sample, Variant
from .measures import Measure
from .tables import markdown_table, markdown_text, plain

PAIRS_EACH_WAY = 4
MAX_ALBUMS = 8
MAX_IMAGE_PIXELS = 4096 * 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One prompt, judged before and after."""

    prompt: str
    tag: str
    change: float
    """Change of the prompt's mean score."""
    before: Sample
    after: Sample


def gallery(data: ReportData) -> Fragment:
    """For each variant the prompts it changed most, against its start."""
    albums: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    markdown: list[str] = []
    for variant in sorted(data.trained, key=lambda variant: not variant.method.startswith("gcpo")):
        start = data.start_of(variant)
        if start is None:
            continue
        for benchmark in data.benchmarks:
            before = next((run for run in start.runs if benchmark in run.evaluations), None)
            after = next((run for run in variant.runs if benchmark in run.evaluations), None)
            if before is not None and after is not None and len(albums) < MAX_ALBUMS:
                album = _album(variant, benchmark, before, after, data.panel(benchmark))
                albums.append(album)
                records.append({key: album[key] for key in ("variant", "benchmark", "run", "better", "worse", "same")})
                markdown.append(_album_markdown(album))
    nothing = "No pair of images before and after: evaluate a start and a run."
    return Fragment(
        title="Before and after",
        html=render("gallery", albums=albums, named=len(data.benchmarks) > 1)
        if albums
        else render("nothing", text=nothing),
        markdown="\n".join(markdown) or f"{nothing}\n",
        data={"gallery": records},
    )


def _album(
    variant: Variant, benchmark: str, before: LoadedRun, after: LoadedRun, panel: Sequence[Measure]
) -> dict[str, Any]:
    measure = panel[0]
    pairs = paired(before, after, benchmark, measure)
    sign = 1 if measure.higher_is_better else -1
    wins = sorted((pair for pair in pairs if sign * pair.change > 0), key=lambda pair: -sign * pair.change)
    losses = sorted((pair for pair in pairs if sign * pair.change < 0), key=lambda pair: sign * pair.change)
    each = min(len(wins), len(losses), PAIRS_EACH_WAY) or PAIRS_EACH_WAY  # one kind alone is shown as it is
    groups = [("Largest wins", wins[:each]), ("Largest losses", losses[:each])]
    if not wins and not losses:
        groups = [("No prompt changed", pairs[:each])]
    return {
        "variant": variant.label,
        "benchmark": benchmark,
        "run": after.name,
        "better": len(wins),
        "worse": len(losses),
        "same": len(pairs) - len(wins) - len(losses),
        "unit": "points" if measure.is_share else measure.label,
        "groups": [
            {
                "title": title,
                "pairs": [
                    {
                        "prompt": plain(pair.prompt),
                        "tag": pair.tag.replace("_", " "),
                        "change": measure.text(pair.change, signed=True),
                        "shots": [
                            shot(before, pair.before, "before", panel),
                            shot(after, pair.after, "after", panel),
                        ],
                    }
                    for pair in chosen
                ],
            }
            for title, chosen in groups
            if chosen
        ],
    }


def paired(before: LoadedRun, after: LoadedRun, benchmark: str, measure: Measure) -> list[Pair]:
    """Prompts both scored, each with the image (same index, so same noise) that changed most the prompt's way."""
    a, b = before.evaluations[benchmark], after.evaluations[benchmark]
    name = measure.name
    a_scores, b_scores = a.prompt_scores(name), b.prompt_scores(name)
    a_images = {(s.prompt_id, s.image_index): s for s in a.samples if name in s.values and not s.unscored}
    b_images = {(s.prompt_id, s.image_index): s for s in b.samples if name in s.values and not s.unscored}
    shared: dict[str, list[tuple[Sample, Sample]]] = {}
    for key in sorted(a_images.keys() & b_images.keys()):
        shared.setdefault(key[0], []).append((a_images[key], b_images[key]))
    pairs = []
    for prompt_id, images in shared.items():
        change = b_scores[prompt_id][1] - a_scores[prompt_id][1]
        sign = 1 if change >= 0 else -1
        shown = max(images, key=lambda pair: sign * (pair[1].values[name] - pair[0].values[name]))
        pairs.append(Pair(prompt=shown[1].prompt, tag=shown[1].tag, change=change, before=shown[0], after=shown[1]))
    return pairs


def shot(run: LoadedRun, sample: Sample, when: str, panel: Sequence[Measure]) -> dict[str, Any]:
    """One judged image, ready for the page: right or wrong, or with its score and those of the rest of the panel."""
    image_YXC, problem = read_image(run.path, sample.image)
    measure, *others = panel
    value = sample.values[measure.name]
    right = value >= 1
    reason = plain("; ".join(sample.reason.split("\n")), 240)
    if measure.is_verdict:
        mark, verdict = ("✓", "right") if right else ("✗", "wrong")
        reason = reason or ("nothing missing" if right else "no reason given")
    else:
        mark, verdict = measure.text(value), f"{measure.label} {measure.text(value)}"
        beside = [f"{m.label} {m.text(sample.values[m.name])}" for m in others if m.name in sample.values]
        reason = "; ".join([*beside, *([reason] if reason else [])])
    names = [_detection_name(item) for item in sample.detections]
    return {
        "when": when,
        "kind": verdict if measure.is_verdict else "score",
        "mark": mark,
        "verdict": verdict,
        "reason": reason,
        "problem": problem,
        "uri": None if image_YXC is None else data_uri(image_YXC),
        "width": 1 if image_YXC is None else image_YXC.shape[1],
        "height": 1 if image_YXC is None else image_YXC.shape[0],
        "found": ", ".join(names) or ("nothing" if measure.is_verdict else ""),
        "boxes": [_box(item, name) for item, name in zip(sample.detections, names, strict=True)],
        "alt": f"Image {when} for the prompt “{plain(sample.prompt, 100)}”: "
        + ", ".join(filter(None, (verdict, reason))),
    }


def _detection_name(item: Any) -> str:
    return plain(" ".join(str(item[key]) for key in ("color", "label") if item.get(key)), 60)


def _box(item: Any, name: str) -> dict[str, Any]:
    left, top, right, bottom = (float(edge) for edge in item["box"])
    return {"x": left, "y": top, "width": max(right - left, 0.0), "height": max(bottom - top, 0.0), "name": name}


def read_image(folder: Path, relative: str) -> tuple[np.ndarray | None, str]:
    """uint8 (Y, X, 3) and no problem, or None and the problem. Reads nothing outside the run's folder."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None, "the image's path leads out of the run"
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_IMAGE_PIXELS:
                return None, "the image is too large to show"
            return np.asarray(picture.convert("RGB")), ""
    except FileNotFoundError:
        return None, "the image is missing"
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError):
        return None, "the image is damaged"


def _album_markdown(album: dict[str, Any]) -> str:
    rows = [
        [
            markdown_text(pair["prompt"]),
            pair["change"],
            *(_shot_markdown(s) for s in pair["shots"]),
        ]
        for group in album["groups"]
        for pair in group["pairs"]
    ]
    unit = markdown_text(album["unit"])
    return (
        f"{markdown_text(album['variant'])} against its start: {album['better']} prompts better, {album['worse']} "
        f"worse, {album['same']} the same.\n\n" + markdown_table(["prompt", f"change, {unit}", "before", "after"], rows)
    )


def _shot_markdown(shot: dict[str, Any]) -> str:
    verdict = markdown_text(shot["verdict"])
    return f"{verdict}: {markdown_text(shot['reason'])}" if shot["reason"] else verdict

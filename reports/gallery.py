"""Images before and after, with boxes and reasons or with their scores; wins and losses in equal number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from .comparisons import NotCompared, compare
from .evaluations import Evaluation, Sample
from .fragments import Fragment, data_uri, render
from .load import LoadedRun, ReportData, Variant
from .measures import Measure
from .tables import markdown_table, markdown_text, plain

PAIRS_EACH_WAY = 4
MAX_ALBUMS = 8
MAX_REFERENCE_ALBUMS = 4
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of two evaluations whose images are put side by side."""

    name: str
    """Over its images."""
    root: Path
    """What its images' paths are relative to."""
    evaluation: Evaluation


def side_of(run: LoadedRun, benchmark: str, name: str) -> Side:
    return Side(name=name, root=run.path, evaluation=run.evaluations[benchmark])


def gallery(data: ReportData) -> Fragment:
    """For each variant the prompts it changed most, against its start; then image sets that are no runs, beside one."""
    albums = [*_own_albums(data), *_reference_albums(data)]
    nothing = "No pair of images before and after: evaluate a start and a run."
    fields = ("variant", "benchmark", "run", "against", "better", "worse", "same")
    named = len(data.benchmarks) > 1
    return Fragment(
        title="Before and after",
        html=render("gallery", albums=albums, named=named) if albums else render("nothing", text=nothing),
        markdown="\n".join(_album_markdown(album, named) for album in albums) or f"{nothing}\n",
        data={"gallery": [{key: album[key] for key in fields} for album in albums]},
    )


def _own_albums(data: ReportData) -> list[dict[str, Any]]:
    albums: list[dict[str, Any]] = []
    for variant in _gcpo_first(data):
        start = data.start_of(variant)
        if start is None:
            continue
        for benchmark in data.benchmarks:
            before = next((run for run in start.runs if benchmark in run.evaluations), None)
            after = next((run for run in variant.runs if benchmark in run.evaluations), None)
            if before is not None and after is not None and len(albums) < MAX_ALBUMS:
                sides = side_of(before, benchmark, "before"), side_of(after, benchmark, "after")
                albums.append(_album(variant, after, *sides, data.panel(benchmark), "its start"))
    return albums


def _reference_albums(data: ReportData) -> list[dict[str, Any]]:
    """Each image set that can be shown and compared, beside the first variant that it can be compared with."""
    albums: list[dict[str, Any]] = []
    for reference in data.references:
        for benchmark, root in sorted(reference.images.items()):
            panel = data.panel(benchmark)
            variant = next(
                (
                    v
                    for v in _gcpo_first(data)
                    if not isinstance(compare(v, reference, benchmark, panel[0], "reference"), NotCompared)
                ),
                None,
            )
            if variant is None or len(albums) == MAX_REFERENCE_ALBUMS:
                continue
            run = next(run for run in variant.runs if benchmark in run.evaluations)
            theirs = Side(name=reference.label, root=root, evaluation=reference.by_benchmark[benchmark])
            ours = side_of(run, benchmark, variant.label)
            albums.append(_album(variant, run, theirs, ours, panel, reference.label))
    return albums


def _gcpo_first(data: ReportData) -> list[Variant]:
    return sorted(data.trained, key=lambda variant: not variant.method.startswith("gcpo"))


def _album(
    variant: Variant, run: LoadedRun, before: Side, after: Side, panel: Sequence[Measure], against: str
) -> dict[str, Any]:
    measure = panel[0]
    pairs = paired(before.evaluation, after.evaluation, measure)
    sign = 1 if measure.higher_is_better else -1
    wins = sorted((pair for pair in pairs if sign * pair.change > 0), key=lambda pair: -sign * pair.change)
    losses = sorted((pair for pair in pairs if sign * pair.change < 0), key=lambda pair: sign * pair.change)
    each = min(len(wins), len(losses), PAIRS_EACH_WAY) or PAIRS_EACH_WAY  # one kind alone is shown as it is
    groups = [("Largest wins", wins[:each]), ("Largest losses", losses[:each])]
    if not wins and not losses:
        groups = [("No prompt changed", pairs[:each])]
    return {
        "variant": variant.label,
        "benchmark": after.evaluation.benchmark,
        "run": run.name,
        "against": against,
        "better": len(wins),
        "worse": len(losses),
        "same": len(pairs) - len(wins) - len(losses),
        "unit": "points" if measure.is_share else measure.label,
        "heads": (before.name, after.name),
        "groups": [
            {
                "title": title,
                "pairs": [
                    {
                        "prompt": plain(pair.prompt),
                        "tag": plain(pair.tag.replace("_", " "), 60),
                        "change": measure.text(pair.change, signed=True),
                        "shots": [shot(before, pair.before, panel), shot(after, pair.after, panel)],
                    }
                    for pair in chosen
                ],
            }
            for title, chosen in groups
            if chosen
        ],
    }


def paired(before: Evaluation, after: Evaluation, measure: Measure) -> list[Pair]:
    """Prompts both scored, each with the image (same index; of runs the same noise) that changed most its way."""
    name = measure.name
    a_scores, b_scores = before.prompt_scores(name), after.prompt_scores(name)
    a_images = {(s.prompt_id, s.image_index): s for s in before.samples if name in s.values and not s.unscored}
    b_images = {(s.prompt_id, s.image_index): s for s in after.samples if name in s.values and not s.unscored}
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


def shot(side: Side, sample: Sample, panel: Sequence[Measure]) -> dict[str, Any]:
    """One judged image, ready for the page: right or wrong, or with its score and those of the rest of the panel."""
    image_YXC, problem = read_image(side.root, sample.image)
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
    names = [_detection_name(item) for item in sample.detections]
    return {
        "when": side.name,
        "kind": verdict if measure.is_verdict else "score",
        "mark": mark,
        "verdict": verdict,
        "beside": beside,
        "reason": reason,
        "problem": problem,
        "uri": None if image_YXC is None else data_uri(image_YXC),
        "width": 1 if image_YXC is None else image_YXC.shape[1],
        "height": 1 if image_YXC is None else image_YXC.shape[0],
        "found": ", ".join(names) or ("nothing" if measure.is_verdict else ""),
        "boxes": [_box(item, name) for item, name in zip(sample.detections, names, strict=True)],
        "alt": f"Image {side.name} for the prompt “{plain(sample.prompt, 100)}”: "
        + ", ".join(filter(None, (verdict, *beside, reason))),
    }


def _detection_name(item: Any) -> str:
    return plain(" ".join(str(item[key]) for key in ("color", "label") if item.get(key)), 60)


def _box(item: Any, name: str) -> dict[str, Any]:
    left, top, right, bottom = (float(edge) for edge in item["box"])
    return {"x": left, "y": top, "width": max(right - left, 0.0), "height": max(bottom - top, 0.0), "name": name}


def read_image(folder: Path, relative: str) -> tuple[np.ndarray | None, str]:
    """uint8 (Y, X, 3) and no problem, or None and the problem. Reads nothing outside `folder`."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None, "the image's path leads out of its folder"
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_IMAGE_PIXELS:
                return None, "the image is too large to show"
            return np.asarray(picture.convert("RGB")), ""
    except FileNotFoundError:
        return None, "the image is missing"
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError):
        return None, "the image is damaged"


def _album_markdown(album: dict[str, Any], named: bool) -> str:
    rows = [
        [
            markdown_text(pair["prompt"]),
            pair["change"],
            *(_shot_markdown(s) for s in pair["shots"]),
        ]
        for group in album["groups"]
        for pair in group["pairs"]
    ]
    unit, against = markdown_text(album["unit"]), markdown_text(album["against"])
    where = f", {markdown_text(album['benchmark'])}" if named else ""
    head = f"{markdown_text(album['variant'])} against {against}{where}"
    return (
        f"{head}: {album['better']} prompts better, {album['worse']} worse, {album['same']} the same.\n\n"
        + markdown_table(["prompt", f"change, {unit}", *map(markdown_text, album["heads"])], rows)
    )


def _shot_markdown(shot: dict[str, Any]) -> str:
    verdict = ", ".join(markdown_text(text) for text in (shot["verdict"], *shot["beside"]))
    return f"{verdict}: {markdown_text(shot['reason'])}" if shot["reason"] else verdict

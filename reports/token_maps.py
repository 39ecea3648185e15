"""Which tokens each criterion chose, over the image they made, step by step."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import plots
from .fragments import Fragment, data_uri, render
from .load import LoadedRun, ReportData, TokenMaps, Variant
from .tables import markdown_table, markdown_text, number, plain

LAYERS = {
    "entropy": ("Entropy", "nats; how open the choice of this token was", "viridis"),
    "entropy_gradient": ("Entropy gradient", "where entropy changes most: edges of objects", "viridis"),
    "similarity": ("Similarity", "mean cosine within the group; low where its images differ", "viridis"),
    "weight": ("Weight", "factor of the token's policy term", "PuOr_r"),
    "divergence": ("Divergence", "log-probability, policy minus reference", "PuOr_r"),
}
DIVERGING = frozenset({"weight", "divergence"})
ABOUT_CRITERIA = {
    "initial": "the first tokens of the raster",
    "structural": "the steepest change of entropy",
    "diverse": "where the group's images differ most",
}
MAX_RUNS = 12
"""Above this, one run (the first seed) of each variant is shown."""
MAX_FRAMES = 16
"""Steps shown of a run; the first and the last are always among them."""
MAX_COMPOSITES = 6
FLAT = 0.01
"""A map that varies less than this is shown as flat rather than as its rounding errors."""


def token_maps(data: ReportData) -> Fragment:
    """The data that token_maps.js draws, and a still picture of the last step for readers without scripts."""
    chosen = _runs_to_show(data)
    if not chosen:
        text = "No run has token maps; train with logging.token_maps_every above 0."
        return Fragment(title="Token maps", html=render("nothing", text=text), markdown=f"{text}\n", data={})
    names = sorted(
        {name for _, run in chosen for maps in run.token_maps for name in maps.subsets_MHW}, key=_criterion_order
    )
    colors = plots.criterion_colors(names)
    runs = [_run_payload(variant, run) for variant, run in chosen]
    payload = {
        "layers": [
            {"key": key, "label": label, "about": about, "palette": plots.palette(colormap)}
            for key, (label, about, colormap) in LAYERS.items()
        ],
        "criteria": [{"name": name, "color": colors[name]} for name in names],
        "runs": runs,
    }
    criteria = [{"name": name, "color": colors[name], "about": ABOUT_CRITERIA.get(name, "")} for name in names]
    composites = [_composite(variant, run, colors) for variant, run in chosen[:MAX_COMPOSITES]]
    return Fragment(
        title="Token maps",
        html=render(
            "token_maps",
            criteria=criteria,
            layers=payload["layers"],
            composites=composites,
            omitted=_omitted(data, chosen),
        ),
        markdown=_markdown(chosen),
        data={"token_maps": [{"run": run.name, "steps": [maps.step for maps in run.token_maps]} for _, run in chosen]},
        pictures={item["file"]: item["png"] for item in composites},
        page_data={"token-map-data": payload},
    )


def _criterion_order(name: str) -> tuple[int, str]:
    known = list(ABOUT_CRITERIA)
    return (known.index(name) if name in known else len(known), name)


def _runs_to_show(data: ReportData) -> list[tuple[Variant, LoadedRun]]:
    """GCPO's runs first: theirs are the maps worth looking at."""
    found = [(variant, run) for variant in data.trained for run in variant.runs if run.token_maps]
    found.sort(key=lambda pair: not pair[0].method.startswith("gcpo"))  # stable
    if len(found) > MAX_RUNS:
        firsts: dict[str, tuple[Variant, LoadedRun]] = {}
        for variant, run in found:
            firsts.setdefault(variant.label, (variant, run))
        found = list(firsts.values())[:MAX_RUNS]
    return found


def _omitted(data: ReportData, chosen: Sequence[tuple[Variant, LoadedRun]]) -> int:
    return sum(bool(run.token_maps) for run in data.runs) - len(chosen)


def _frames(run: LoadedRun) -> list[TokenMaps]:
    maps = run.token_maps
    if len(maps) <= MAX_FRAMES:
        return list(maps)
    return [maps[index] for index in np.linspace(0, len(maps) - 1, MAX_FRAMES).round().astype(int)]


def _run_payload(variant: Variant, run: LoadedRun) -> dict[str, Any]:
    frames = _frames(run)
    ranges = {key: value_range(key, [maps.maps_MHW[key] for maps in frames if key in maps.maps_MHW]) for key in LAYERS}
    prompts = list(dict.fromkeys(text for maps in frames for text in maps.prompts))
    return {
        "label": f"{variant.label}, seed {run.config.seed}",
        "grid": list(frames[0].selected_MHW.shape[1:]),
        "steps": [maps.step for maps in frames],
        "ranges": {key: value for key, value in ranges.items() if value is not None},
        "prompts": [
            {"text": plain(text), "frames": [_frame(maps, text, ranges) for maps in frames]} for text in prompts
        ],
    }


def value_range(key: str, arrays: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """One colour scale for a whole run, so that steps compare; around 1 or 0 where the map has a middle."""
    values = np.concatenate([array[np.isfinite(array)] for array in arrays]) if arrays else np.array([])
    if not len(values):
        return None
    low, high = (float(edge) for edge in np.quantile(values, [0.005, 0.995]))
    if high - low < FLAT:  # one value everywhere, rounding aside: the middle of the scale, not its end
        low, high = low - FLAT, high + FLAT
    if key in DIVERGING:
        # the weight is a factor around 1 in its exp form, a sum around 0 in the printed linear form
        middle = 1.0 if key == "weight" and np.median(values) > 0.5 else 0.0
        reach = max(abs(low - middle), abs(high - middle))
        low, high = middle - reach, middle + reach
    return low, high


def _frame(maps: TokenMaps, text: str, ranges: Mapping[str, tuple[float, float] | None]) -> dict[str, Any] | None:
    if text not in maps.prompts:
        return None
    row = maps.prompts.index(text)
    reward, advantage = float(maps.rewards_M[row]), float(maps.advantages_M[row])
    encoded = {}
    for key, values_MHW in maps.maps_MHW.items():
        limits = ranges.get(key)
        if limits is not None:
            encoded[key] = _encode(values_MHW[row], *limits)
    return {
        "image": data_uri(maps.images_MYXC[row]),
        "reward": reward if np.isfinite(reward) else None,
        "advantage": round(advantage, 3) if np.isfinite(advantage) else None,
        "maps": encoded,
        "selected": _pack(maps.selected_MHW[row]),
        "subsets": {name: _pack(chosen[row]) for name, chosen in maps.subsets_MHW.items()},
    }


def _encode(values_HW: np.ndarray, low: float, high: float) -> str:
    """Base64 of one byte a token, 0 at `low`, 255 at `high`."""
    share_HW = np.nan_to_num((values_HW.astype(np.float64) - low) / max(high - low, 1e-12), nan=0.0).clip(0, 1)
    return base64.b64encode((share_HW * 255).round().astype(np.uint8).tobytes()).decode()


def _pack(mask_HW: np.ndarray) -> str:
    """Base64 of one bit a token, first token in the highest bit."""
    return base64.b64encode(np.packbits(mask_HW.ravel()).tobytes()).decode()


def _composite(variant: Variant, run: LoadedRun, colors: Mapping[str, str]) -> dict[str, Any]:
    """The first tracked prompt at the last step: image, choice and maps side by side."""
    maps = run.token_maps[-1]
    image_YXC = maps.images_MYXC[0]
    pixels = 144
    panels = [
        plots.enlarge(image_YXC, pixels),
        plots.chosen_overlay(
            plots.enlarge(image_YXC, pixels),
            maps.selected_MHW[0],
            {name: chosen[0] for name, chosen in maps.subsets_MHW.items()},
            colors,
        ),
    ]
    shown = [key for key in LAYERS if key in maps.maps_MHW]
    for key in shown:
        limits = value_range(key, [maps.maps_MHW[key]]) or (0.0, 1.0)
        panels.append(plots.enlarge(plots.heat_map(maps.maps_MHW[key][0], *limits, LAYERS[key][2]), pixels))
    strip = plots.strip(panels)
    labels = ["image", "chosen tokens", *(LAYERS[key][0].lower() for key in shown)]
    content = plots.png(strip, max_pixels=strip.shape[1])
    prompt = plain(maps.prompts[0], 100)
    caption = f"{variant.label}, step {maps.step}, “{prompt}”. From left: {', '.join(labels)}."
    return {
        "file": f"token-maps-{run.name}.png",
        "png": content,
        "uri": "data:image/png;base64," + base64.b64encode(content).decode(),
        "caption": caption,
        "width": strip.shape[1],
        "height": strip.shape[0],
    }


def _markdown(chosen: Sequence[tuple[Variant, LoadedRun]]) -> str:
    """Shares and means at the last step: what the pictures show, as far as numbers can."""
    rows = []
    for variant, run in chosen:
        maps = run.token_maps[-1]
        cells = [number(100 * float(np.mean(maps.selected_MHW)), 1)]
        cells += [number(float(np.nanmean(maps.maps_MHW[key])), 3) if key in maps.maps_MHW else "–" for key in LAYERS]
        rows.append([markdown_text(f"{variant.label}, seed {run.config.seed}"), str(maps.step), *cells])
    header = ["run", "step", "selected, %", *(label.lower() for label, *_ in LAYERS.values())]
    return "Means over the tracked prompts at the last step (the pictures are in report.html):\n\n" + markdown_table(
        header, rows
    )

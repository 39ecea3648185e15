"""Figures: numbers in; inline SVG for the page and SVG, PDF and PNG files out. The same input gives the same bytes.

The SVG carries no style attributes or sheets (a strict content policy forbids them on the page) and no fixed text
colour: text, axes and grid use the page's own colour, so that it reads in light and in dark.
"""

from __future__ import annotations

import html
import io
import json
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from gcpo_bench.environment import without
from gcpo_bench.errors import PrerequisiteError

try:
    with without(
        "MPLBACKEND"
    ):  # a notebook's, with which matplotlib refuses to be imported where that is not installed
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
except ValueError as error:  # it reads the user's matplotlibrc, whatever that is
    raise PrerequisiteError(
        f"matplotlib cannot be imported: {error}", hint="mend or remove your matplotlibrc"
    ) from error

OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""Colours that people with colour-blindness tell apart (Okabe and Ito), yellow left out: too pale on white."""
Dashes = Literal["-", "--", ":", "-."]
DASHES: tuple[Dashes, ...] = ("-", "--", ":", "-.")
CRITERIA = {"initial": "#e69f00", "structural": "#56b4e9", "diverse": "#cc79a7"}
"""The three published criteria; the same colours in every figure."""
OTHER_CRITERIA = ("#009e73", "#d55e00", "#f0e442", "#0072b2")
READ_AT = 100
"""Places on a curve whose values can be read off."""
LONG_LABEL, LEGEND_WIDTH, ROW_WIDTH = 24, 68, 36
"""Characters from which a label of the legend has a row to itself, at which it is broken, and at which the
name of a row is."""
SMALL, CHARACTER, LINE = 8.5, 4.7, 10
"""Size of names in a chart, and the room that a character and a line take; points."""
INK = "#010203"
"""Stands for "the page's text colour" until the SVG is finished; all but black in files."""
RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "text.parse_math": False,  # a label is a name, whatever signs are in it
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line with an optional band. Equal lengths."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    style: int = 0
    """Number of the variant; decides colour and dashes."""


Key = tuple[str, str, Dashes]
"""An entry of a legend: label, colour, dashes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One figure: for the page, where the legend is the page's, and to be saved with its own."""

    name: str
    """Of its files."""
    svg: str
    """Inline element."""
    figure: Figure
    keys: tuple[Key, ...] = ()
    """The legend of the files; empty where the axes name everything."""
    y_label: str = ""
    """Of the files; on the page the caption says it."""


@contextmanager
def _own_settings(name: str, more: dict[Any, Any] | None = None) -> Iterator[None]:
    """matplotlib as it comes, with RC: not as a matplotlibrc or a notebook has set it up. `name` salts the ids."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**RC, "svg.hashsalt": name, **(more or {})})
        yield


def color_of(style: int) -> str:
    return OKABE_ITO[style % len(OKABE_ITO)]


def dashes_of(style: int) -> Dashes:
    return DASHES[style // len(OKABE_ITO) % len(DASHES)]


def criterion_colors(names: Sequence[str]) -> dict[str, str]:
    """criterion -> colour, the published three fixed, the others in the order given."""
    others = [name for name in names if name not in CRITERIA]
    return {n: CRITERIA.get(n) or OTHER_CRITERIA[others.index(n) % len(OTHER_CRITERIA)] for n in names}


def line_chart(series: Sequence[Series], *, name: str, x_label: str, y_label: str, description: str) -> Chart:
    """Lines with bands, about 5 x 2.7 inches; `name` keeps its ids apart from other figures of the page."""
    with _own_settings(name):
        figure = Figure(figsize=(5.0, 2.7), layout="constrained")
        axes = figure.subplots()
        for index, line in enumerate(series):
            color = color_of(line.style)
            if line.low is not None and line.high is not None:
                band = axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.18, linewidth=0)
                band.set_gid(f"band-series-{index}")
            marker = "o" if len(line.x) == 1 else None
            (drawn,) = axes.plot(
                line.x, line.y, color=color, linestyle=dashes_of(line.style), linewidth=1.6, marker=marker
            )
            drawn.set_gid(f"line-series-{index}")
        axes.set_xlabel(x_label)
        _plain_axes(axes)
        svg = _svg(figure, name, description)
        plot = html.escape(json.dumps(_values(figure, axes, series), separators=(",", ":")))
        svg = svg.replace(' role="img"', f' data-plot="{plot}" role="img"', 1)
    keys = tuple((line.label, color_of(line.style), dashes_of(line.style)) for line in series)
    return Chart(name=name, svg=svg, figure=figure, keys=keys, y_label=y_label)


def _values(figure: Figure, axes: mpl.axes.Axes, series: Sequence[Series]) -> dict[str, Any]:
    """What the page tells under the pointer: at most READ_AT places, and where the axes lie in the drawing."""
    steps = sorted({x for line in series for x in line.x})
    steps = steps[:: math.ceil(len(steps) / READ_AT)]
    width, height = (72 * inches for inches in figure.get_size_inches())
    box = axes.get_position()
    found = []
    for line in series:
        known = dict(zip(line.x, line.y, strict=True))
        values = [known.get(step, math.nan) for step in steps]
        found.append(
            {"label": line.label, "y": [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]}
        )
    return {
        "x": steps,
        "series": found,
        "range": list(axes.get_xlim()),
        "box": [
            round(edge, 2) for edge in (box.x0 * width, (1 - box.y1) * height, box.x1 * width, (1 - box.y0) * height)
        ],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A value with its interval; `x` is a place on the axis, or a row where the axis names things."""

    label: str
    y: float
    low: float
    high: float
    x: float = 0.0
    style: int = 0


def ladder(
    points: Sequence[Point], *, name: str, x_label: str, description: str, line_at: float | None = None
) -> Chart:
    """A row a variant: value and interval on one axis, first row on top; a dashed line marks the baseline."""
    with _own_settings(name):
        rows = _row_labels([point.label for point in points])
        figure = Figure(figsize=(6.4, 0.8 + _height(rows)), layout="constrained")
        axes = figure.subplots()
        if line_at is not None:
            axes.axvline(line_at, color=INK, alpha=0.5, linewidth=1, linestyle=(0, (3, 3)))
        for row, point in enumerate(points):
            color = color_of(point.style)
            axes.plot([point.low, point.high], [row, row], color=color, linewidth=3, alpha=0.45, solid_capstyle="butt")
            axes.plot(point.y, row, color=color, marker="o", markersize=6)
        axes.set_yticks(range(len(points)), rows, fontsize=SMALL)
        axes.set_ylim(len(points) - 0.5, -0.5)
        axes.set_xlabel(x_label)
        _plain_axes(axes)
        axes.grid(visible=False, axis="y")
        return Chart(name=name, svg=_svg(figure, name, description), figure=figure)


def points_chart(
    lines: Mapping[str, Sequence[Point]],
    *,
    name: str,
    x_label: str,
    y_label: str,
    description: str,
    joined: bool = True,
) -> Chart:
    """Values with intervals over a numeric axis; a line of points each entry, joined or named where it stands."""
    with _own_settings(name):
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        axes = figure.subplots()
        for points in lines.values():
            color, dashes = color_of(points[0].style), dashes_of(points[0].style)
            x, y = [p.x for p in points], [p.y for p in points]
            for point in points:
                axes.plot([point.x, point.x], [point.low, point.high], color=color, linewidth=2.5, alpha=0.45)
            axes.plot(
                x, y, color=color, marker="o", markersize=5, linestyle=dashes if joined else "none", linewidth=1.4
            )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _plain_axes(axes)
        if not joined:
            _name_points(figure, axes, [points[0] for points in lines.values()])
        svg = _svg(figure, name, description)
    first = {label: found[0].style for label, found in lines.items()} if joined and len(lines) > 1 else {}
    keys = tuple((label, color_of(style), dashes_of(style)) for label, style in first.items())
    return Chart(name=name, svg=svg, figure=figure, keys=keys)


def _name_points(figure: Figure, axes: mpl.axes.Axes, points: Sequence[Point]) -> None:
    """Labels beside the points, towards the middle of the chart; one that would lie on another moves below it."""
    axes.margins(x=0.08)
    figure.draw_without_rendering()  # the layout decides where the points are
    per_point = figure.dpi / 72
    middle = axes.bbox.x0 / per_point + axes.bbox.width / per_point / 2
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda point: (-point.y, point.label)):
        x, y = (float(value) / per_point for value in axes.transData.transform((point.x, point.y)))
        side = 1 if x <= middle else -1
        left, right = sorted((x + 6 * side, x + side * (6 + CHARACTER * len(point.label))))
        place = y + 4
        for other_left, other_right, other in sorted(taken, key=lambda entry: -entry[2]):
            if left < other_right and other_left < right and abs(other - place) < LINE:
                place = other - LINE
        taken.append((left, right, place))
        axes.annotate(
            point.label,
            (point.x, point.y),
            xytext=(6 * side, place - y),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            fontsize=SMALL,
            color=INK,
        ).set_in_layout(False)


def phase_bars(rows: Mapping[str, Mapping[str, float]], *, name: str, description: str) -> Chart:
    """Stacked horizontal bars: seconds of a step by phase, one bar a variant."""
    phases = list(next(iter(rows.values())))
    with _own_settings(name):
        labels = _row_labels(list(rows))
        figure = Figure(figsize=(6.4, 0.7 + _height(labels)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(rows))
        for index, phase in enumerate(phases):
            widths = np.array([row[phase] for row in rows.values()])
            axes.barh(range(len(rows)), widths, left=left, color=color_of(index), height=0.62)
            left += widths
        axes.set_yticks(range(len(rows)), labels, fontsize=SMALL)
        axes.invert_yaxis()
        axes.set_xlabel("seconds per step (median)")
        _plain_axes(axes)
        axes.grid(visible=False, axis="y")
        svg = _svg(figure, name, description)
    return Chart(
        name=name, svg=svg, figure=figure, keys=tuple((phase, color_of(i), "-") for i, phase in enumerate(phases))
    )


def chart_files(chart: Chart) -> dict[str, bytes]:
    """File name -> content: the figure with its legend, on white, as SVG, PDF and PNG of 200 dots an inch."""
    metadata: dict[str, dict[str, Any]] = {
        "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        "png": {"Software": None},
    }
    files = {}
    types = {"svg.fonttype": "path", "pdf.fonttype": 42}
    with _own_settings(chart.name, types), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a script the font lacks: boxes, in files only
        _stand_alone(chart)
        for suffix, fields in metadata.items():
            buffer = io.BytesIO()
            chart.figure.savefig(buffer, format=suffix, dpi=200, metadata=fields)
            files[f"{chart.name}.{suffix}"] = buffer.getvalue()
    return files


def _stand_alone(chart: Chart) -> None:
    """What the page says beside a figure, said within it."""
    figure = chart.figure
    figure.patch.set(alpha=1, facecolor="white")
    if chart.y_label:
        figure.axes[0].set_ylabel(chart.y_label, color=INK)
    if chart.keys:
        handles = [Line2D([], [], color=color, linestyle=dashes, linewidth=2) for _, color, dashes in chart.keys]
        labels = [textwrap.fill(label, LEGEND_WIDTH) for label, *_ in chart.keys]
        columns = min(len(labels), 3 if max(map(len, labels)) < LONG_LABEL else 1)
        lines = -(-sum(label.count("\n") + 1 for label in labels) // columns)
        figure.set_figheight(figure.get_figheight() + 0.1 + 0.19 * lines)
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=SMALL, labelcolor=INK
        )


def _row_labels(labels: Sequence[str]) -> list[str]:
    """Broken into short lines, so that they leave room for what they name."""
    return [textwrap.fill(label, ROW_WIDTH, max_lines=4, placeholder=" …") for label in labels]


def _height(rows: Sequence[str]) -> float:
    """Of rows with such labels, inches."""
    return sum(max(0.34, 0.1 + 0.15 * (row.count("\n") + 1)) for row in rows) if rows else 0.0


def _plain_axes(axes: mpl.axes.Axes) -> None:
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
        axes.spines[side].set_alpha(0.35)


def _svg(figure: Figure, name: str, description: str) -> str:
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return inline_svg(buffer.getvalue(), name, description)


def inline_svg(text: str, name: str, description: str) -> str:
    """A stand-alone SVG file -> an element for the page: no prologue, style sheet or style attribute."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'style="([^"]*)"', lambda match: _attributes(match[1]), text)
    text = text.replace(INK, "currentColor")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    head = re.match(r"<svg[^>]*?viewBox=\"([^\"]+)\"[^>]*>", text)
    assert head is not None  # matplotlib always writes a viewBox
    label = html.escape(description)
    return f'<svg class="chart" viewBox="{head[1]}" role="img" aria-label="{label}">' + text[head.end() :].strip()


def _attributes(style: str) -> str:
    """`fill: none; font: 9px 'Sans'` -> presentation attributes; the font's family is the page's."""
    pairs = [part.split(":", 1) for part in style.split(";") if ":" in part]
    found = {key.strip(): value.strip() for key, value in pairs}
    if font := found.pop("font", None):
        size = re.search(r"([\d.]+)px", font)
        if size:
            found["font-size"] = size[1]
    found.pop("font-family", None)
    return " ".join(f'{key}="{html.escape(value)}"' for key, value in found.items())


# --- images ---------------------------------------------------------------------------------------------------------


def png(image_YXC: np.ndarray, *, max_pixels: int = 192) -> bytes:
    """uint8 (Y, X, 3) -> PNG, made smaller where a side is longer than `max_pixels`."""
    picture = Image.fromarray(image_YXC)
    if max(picture.size) > max_pixels:
        picture.thumbnail((max_pixels, max_pixels), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def palette(name: str, count: int = 24) -> list[str]:
    """`count` colours of a matplotlib colour map as "#rrggbb"."""
    return [mpl.colors.to_hex(mpl.colormaps[name](index / (count - 1))) for index in range(count)]


def heat_map(values_HW: np.ndarray, low: float, high: float, colors: str) -> np.ndarray:
    """uint8 (H, W, 3): values between `low` and `high` through a colour map."""
    share_HW = np.nan_to_num((values_HW - low) / max(high - low, 1e-12)).clip(0, 1)
    return (np.asarray(mpl.colormaps[colors](share_HW))[..., :3] * 255).round().astype(np.uint8)


def chosen_overlay(
    image_YXC: np.ndarray, selected_HW: np.ndarray, subsets_HW: Mapping[str, np.ndarray], colors: Mapping[str, str]
) -> np.ndarray:
    """uint8 (Y, X, 3): tokens not trained on are dimmed, those a criterion chose are tinted and framed."""
    height, width = image_YXC.shape[:2]
    row_Y = np.arange(height) * selected_HW.shape[0] // height
    column_X = np.arange(width) * selected_HW.shape[1] // width
    cell = np.ix_(row_Y, column_X)
    line = max(height // selected_HW.shape[0] // 10, 1)
    edge_YX = _near_change(row_Y, line)[:, None] | _near_change(column_X, line)[None, :]
    result = image_YXC.astype(np.float32)
    result *= np.where(selected_HW[cell], 1.0, 0.38)[..., None]
    for name, chosen_HW in subsets_HW.items():
        color = np.array(mpl.colors.to_rgb(colors[name]), dtype=np.float32) * 255
        inside_YX = chosen_HW[cell]
        result[inside_YX] = 0.55 * result[inside_YX] + 0.45 * color
        result[inside_YX & edge_YX] = color
    return result.round().clip(0, 255).astype(np.uint8)


def _near_change(index: np.ndarray, line: int) -> np.ndarray:
    """True within `line` pixels of where a cell begins or ends."""
    padded = np.pad(index, line, constant_values=-1)
    return np.asarray((padded[: -2 * line] != index) | (padded[2 * line :] != index))


def enlarge(image_YXC: np.ndarray, pixels: int) -> np.ndarray:
    """Nearest neighbour, to `pixels` a side."""
    return np.asarray(Image.fromarray(image_YXC).resize((pixels, pixels), Image.Resampling.NEAREST))


def strip(panels_YXC: Sequence[np.ndarray], gap: int = 6) -> np.ndarray:
    """Panels of equal size side by side, transparent gaps drawn as mid grey."""
    height = panels_YXC[0].shape[0]
    spacer = np.full((height, gap, 3), 128, dtype=np.uint8)
    parts = [part for panel in panels_YXC for part in (panel, spacer)]
    return np.concatenate(parts[:-1], axis=1)

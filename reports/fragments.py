"""What a section gives to the page, and the templates that all of them share."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from . import tables
from .plots import Chart, png

LOSSLESS_UP_TO = 96
"""Pixels a side up to which an image is embedded as PNG; larger ones as JPEG, a tenth of the size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """One section in each format."""

    title: str
    html: str
    """Escaped already."""
    markdown: str
    """Without its heading."""
    data: Mapping[str, Any]
    """For report.json."""
    csv: Mapping[str, str] = field(default_factory=dict)
    """name -> content of `report-<name>.csv`; "" is `report.csv` itself."""
    latex: str = ""
    """Whole tables, for `report.tex`."""
    charts: Sequence[Chart] = ()
    """What the section draws, to be saved as files too."""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """File name -> PNG."""
    page_data: Mapping[str, Any] = field(default_factory=dict)
    """What the section's script reads: element id -> JSON."""


def asset(name: str) -> str:
    return (resources.files("gcpo_bench.reports.assets") / name).read_text(encoding="utf-8")


@cache
def templates() -> Environment:
    environment = Environment(
        loader=FunctionLoader(asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        points=tables.points,
        number=tables.number,
        seconds=tables.seconds,
        plain=tables.plain,
        interval=tables.interval_text,
    )
    return environment


def render(macro: str, template: str = "sections.html", **values: Any) -> Markup:
    """One macro of a template in assets/."""
    return Markup(getattr(templates().get_template(template).module, macro)(**values))


def data_uri(image_YXC: np.ndarray) -> str:
    """An image for the page, at most 192 pixels a side."""
    if max(image_YXC.shape[:2]) <= LOSSLESS_UP_TO:
        return "data:image/png;base64," + base64.b64encode(png(image_YXC)).decode()
    picture = Image.fromarray(image_YXC)
    picture.thumbnail((192, 192), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

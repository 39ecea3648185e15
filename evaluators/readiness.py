"""Whether a benchmark can be run, found out before anything is drawn or looked at: prompts, weights, image files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcpo_bench.errors import ConfigError, CorruptDataError, GcpoBenchError, PrerequisiteError, joined

from .folders import find_whole, holds
from .runner import make_benchmark, own_images_per_prompt
from .types import Benchmark


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Images that somebody else made, and how many are wanted."""

    path: Path
    images_per_prompt: int | None = None
    limit: int | None = None
    allow_partial: bool = False


def lack(
    name: str,
    world: str,
    options: Mapping[str, Any],
    folder: Folder | None = None,
    *,
    is_of_group: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> GcpoBenchError | None:
    """All that keeps the benchmark from being run, as one error; None where nothing does. No network is loaded.

    Args:
        is_of_group: a folder without any of its images is then a reason to leave it out, and no mistake.
        on_note: called with each line about a folder that is refused.
    Raises ConfigError for options that cannot be used, or a folder without any image.
    """
    benchmark = make_benchmark(name, world, **options)
    lines: list[str] = []

    def look() -> None:
        if folder is None:
            benchmark.prompts()
            return
        find_whole(
            folder.path,
            benchmark,
            folder.images_per_prompt or own_images_per_prompt(benchmark),
            folder.limit,
            allow_partial=folder.allow_partial,
            on_note=lines.append,
        )

    found: list[GcpoBenchError] = []
    for check in (look, getattr(benchmark, "require", lambda: None)):  # prompts and files before gigabytes of weights
        try:
            if check is look and folder is not None and is_of_group and not holds(folder.path, benchmark):
                return ConfigError(f"{folder.path} holds no images of it", hint=_layouts(benchmark))
            check()
        except (PrerequisiteError, CorruptDataError) as error:
            found.append(error)
    for line in lines if found else ():
        (on_note or (lambda line: None))(line)
    return joined(found) if found else None


def _layouts(benchmark: Benchmark) -> str:
    layout = getattr(benchmark, "official_layout", "") or "<prompt id>-0.png"
    return f"they belong into {layout} or {benchmark.prompt_set}/<prompt id>-0.png"

"""`gcpo-bench evaluate`: what was asked for, and whether it can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says beside the settings of a run."""

    options: Mapping[str, Any] = field(default_factory=dict)
    images_per_prompt: int | None = None
    limit: int | None = None
    batch_rows: int = 256
    shard: tuple[int, int] | None = None
    rescore: bool = False


def check_usage(
    runs: list[str], images: Path | None, out: Path | None, allow_partial: bool, rescore: bool, shard: str | None
) -> None:
    from gcpo_bench.errors import ConfigError

    if not runs and images is None:
        raise ConfigError("Missing argument 'RUN...'", hint="name a run, or a folder with --images")
    if runs and images is not None:
        raise ConfigError("both runs and --images are given", hint="evaluate them one after the other")
    for name, value in (("--out", out), ("--allow-partial", allow_partial)):
        if value and images is None:
            raise ConfigError(f"{name} goes with --images only", hint="leave it out for runs")
    if rescore and shard:
        raise ConfigError("--rescore and --shard are both given", hint="a rescore takes moments; leave --shard out")


def check_benchmarks(names: list[str] | list[None] | list[str | None]) -> None:
    """A wrong name is told before minutes of work."""
    from gcpo_bench.errors import ConfigError, did_you_mean
    from gcpo_bench.registry import BENCHMARKS

    for name in names:
        if name is not None and name not in BENCHMARKS:
            raise ConfigError(f"unknown benchmark {name!r}", hint=did_you_mean(name, BENCHMARKS))


def own_options(pairs: list[str]) -> dict[str, Any]:
    from gcpo_bench.errors import ConfigError

    own = dict(pair.partition("=")[::2] for pair in pairs)
    if wrong := next((pair for pair in pairs if "=" not in pair), None):
        raise ConfigError(f"--option {wrong!r} is not key=value", hint="--option threshold=0.4")
    return {"options": own} if own else {}


def parse_shard(text: str | None) -> tuple[int, int] | None:
    import re

    from gcpo_bench.errors import ConfigError

    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match:
        raise ConfigError(f"--shard {text!r} is not I/N", hint="--shard 1/4 to --shard 4/4")
    return int(match[1]), int(match[2])

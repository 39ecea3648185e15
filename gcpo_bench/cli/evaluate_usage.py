"""`gcpo-bench evaluate`: what was asked for, and whether it can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GOES_WITH = {
    "--out": ("--images", "--generator"),
    "--name": ("--images", "--generator"),
    "--allow-partial": ("--images",),
    "--generator-option": ("--generator",),
    "--seed": ("--generator",),
}
NOT_AGAIN = {
    "--shard": "a rescore takes moments",
    "--limit": "a rescore judges all images of before",
    "--images-per-prompt": "a rescore judges all images of before",
    "--allow-partial": "a rescore judges all images of before",
    "--batch-size": "a rescore opens no image",
    "--detector": "a rescore judges what was seen with the weights of before",
    "--classifier": "a rescore judges what was seen with the weights of before",
    "--device": "a rescore runs no network",
    "--seed": "a rescore draws nothing",
    "--generator-option": "a rescore draws nothing",
}
"""What does not go with --rescore, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says beside the settings of a run."""

    options: Mapping[str, Any] = field(default_factory=dict)
    images_per_prompt: int | None = None
    limit: int | None = None
    batch_rows: int | None = None
    """None: as many as suits what draws."""
    shard: tuple[int, int] | None = None
    rescore: bool = False


def check_usage(
    runs: Sequence[str],
    images: Path | None,
    generator: str | None,
    given: Mapping[str, Any],
    *,
    rescore: bool,
) -> None:
    """
    Args:
        given: option -> value, of those in `GOES_WITH` and `NOT_AGAIN`.
    """
    from gcpo_bench.errors import ConfigError

    sources = [
        name
        for name, value in (("runs", runs), ("--images", images), ("--generator", generator))
        if value or value == ""
    ]
    if not sources:
        raise ConfigError(
            "Missing argument 'RUN...'", hint="name a run, a folder with --images, or a model with --generator"
        )
    if len(sources) > 1:
        raise ConfigError(f"both {' and '.join(sources)} are given", hint="evaluate them one after the other")
    for name, value in given.items():
        if value not in (None, False, []) and sources[0] not in GOES_WITH.get(name, sources[:1]):
            raise ConfigError(
                f"{name} goes with {' and '.join(GOES_WITH[name])} only", hint=f"leave it out for {sources[0]}"
            )
    for name, why in NOT_AGAIN.items() if rescore else ():
        if given.get(name) not in (None, False, []):
            raise ConfigError(f"--rescore and {name} are both given", hint=f"{why}; leave {name} out")


def check_benchmarks(names: list[str] | list[None] | list[str | None]) -> None:
    """A wrong name is told before minutes of work."""
    from gcpo_bench.errors import ConfigError, did_you_mean
    from gcpo_bench.registry import BENCHMARKS

    for name in names:
        if name is not None and name not in BENCHMARKS:
            raise ConfigError(f"unknown benchmark {name!r}", hint=did_you_mean(name, BENCHMARKS))


def pairs_of(option: str, pairs: Sequence[str], example: str) -> dict[str, str]:
    """Of a repeatable option whose values are KEY=VALUE; the last word on a key counts."""
    from gcpo_bench.errors import ConfigError

    if (wrong := next((pair for pair in pairs if "=" not in pair), None)) is not None:
        raise ConfigError(f"{option} {wrong!r} is not key=value", hint=f"{option} {example}")
    return dict(pair.partition("=")[::2] for pair in pairs)


def parse_shard(text: str | None) -> tuple[int, int] | None:
    import re

    from gcpo_bench.errors import ConfigError

    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match:
        raise ConfigError(f"--shard {text!r} is not I/N", hint="--shard 1/4 to --shard 4/4")
    return int(match[1]), int(match[2])

"""`gcpo-bench evaluate`: what was asked for, and whether it can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .evaluate_results import Notes

if TYPE_CHECKING:
    from gcpo_bench.errors import GcpoBenchError
    from gcpo_bench.evaluators.readiness import Folder

GOES_WITH = {
    "--out": ("--images", "--generator"),
    "--name": ("--images", "--generator"),
    "--allow-partial": ("--images",),
    "--generator-option": ("--generator",),
    "--seed": ("--generator",),
    "--trust": ("runs",),
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

    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Benchmark -> what it is made with."""
    device: str | None = None
    images_per_prompt: int | None = None
    limit: int | None = None
    batch_rows: int | None = None
    """None: as many as suits what draws."""
    shard: tuple[int, int] | None = None
    rescore: bool = False

    def of(self, benchmark: str) -> Mapping[str, Any]:
        return self.options.get(benchmark, {})


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


def lacks(
    names: Sequence[str], worlds: Sequence[str], asked: Asked, folder: Folder | None
) -> Callable[[str], GcpoBenchError | None]:
    """What keeps each benchmark from being run, in any of these worlds."""
    from gcpo_bench.evaluators.readiness import lack

    def of(benchmark: str) -> GcpoBenchError | None:
        told = Notes()
        for world in worlds:
            is_of_group = benchmark not in names
            if error := lack(benchmark, world, asked.of(benchmark), folder, is_of_group=is_of_group, on_note=told):
                told.close()
                return error
        return None

    return of


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
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--shard {text!r} is not I/N", hint="--shard 1/4 to --shard 4/4")
    return int(match[1]), int(match[2])

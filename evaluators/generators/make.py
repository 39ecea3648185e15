"""`--generator` to a generator: `diffusers:stabilityai/sdxl-turbo`, `diffusers:folder`, `my_lab.x:Mine:target`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from gcpo_bench import outside
from gcpo_bench.errors import ConfigError, did_you_mean
from gcpo_bench.registry import GENERATORS

from ..types import Generator

MAX_NAME = 64


def make_generator(text: str, *, options: Mapping[str, str] | None = None, device: str | None = None) -> Generator:
    """The generator that `text` names; see `types.Generator`.

    Raises ConfigError for a kind, target or option that does not exist, PrerequisiteError where a package is missing.
    """
    kind, target = _parts(text)
    outside.allow([kind])  # what draws is said here, never read from a folder
    return cast(Generator, GENERATORS.make(kind, target, options=dict(options or {}), device=device))


def default_name(text: str) -> str:
    """A folder name for its images: that of the folder that it names, else what it says, in safe characters only."""
    kind, target = _parts(text)
    shown = target if kind in GENERATORS.entries else text  # one's own generator may have any target, or none
    if kind in GENERATORS.entries and Path(target).is_dir():
        shown = Path(target).resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", shown).strip("-.")[:MAX_NAME] or "generator"


def _parts(text: str) -> tuple[str, str]:
    """Registered name or `module:attribute`, and the target."""
    kind, colon, target = text.partition(":")
    example = "--generator diffusers:stabilityai/stable-diffusion-xl-base-1.0"
    if not colon or not kind:
        raise ConfigError(
            f"--generator {text!r} does not say what draws; known: {', '.join(GENERATORS)}",
            hint=f"for example {example}",
        )
    if kind in GENERATORS.entries:
        if not target:
            raise ConfigError(f"--generator {text!r} names no model", hint=f"for example {example}")
        return kind, target
    if difflib.get_close_matches(kind, GENERATORS, n=1, cutoff=0.8):
        raise ConfigError(f"unknown generator {kind!r}", hint=did_you_mean(kind, GENERATORS))
    attribute, _, target = target.partition(":")
    return f"{kind}:{attribute}", target

"""Prompt sets: a prompt, and the sets grouped by task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from gcpo_bench.errors import ConfigError
from gcpo_bench.registry import PROMPT_SETS

OWN_PROMPTS = (
    "write a function that returns the file's prompts as gcpo_bench.datasets.Prompt, and name it module:function; "
    "see docs/extending.md"
)
"""What to do with a file of prompts where a set is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    id: str
    """Unique within its set, file-name safe."""
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """GenEval schema: `tag`, `include` [{class, count, color?, position?}], optional `exclude`."""

    @property
    def tag(self) -> str:
        return str(self.metadata.get("tag", ""))


def prompts_of(prompt_set: str) -> tuple[Prompt, ...]:
    """The prompts of a registered set or of a function of one's own, in their order.

    Raises ConfigError where a function of one's own returns something else than prompts with an id each.
    """
    given = PROMPT_SETS.make(prompt_set)
    prompts = tuple(given) if isinstance(given, Iterable) else ()
    ids = {prompt.id for prompt in prompts if isinstance(prompt, Prompt)}
    if not prompts or len(ids) < len(prompts):
        what = f"returns {len(prompts)} entries that hold {len(ids)} prompts with an id of their own"
        raise ConfigError(f"prompt set {prompt_set!r} {what}", hint=OWN_PROMPTS)
    return prompts


@cache
def prompts_by_task(prompt_set: str) -> Mapping[str, tuple[Prompt, ...]]:
    """The prompts of a set by tag, in their order; grouped once, since training asks at every step.

    Raises ConfigError as `prompts_of`.
    """
    tasks: dict[str, list[Prompt]] = {}
    for prompt in prompts_of(prompt_set):
        tasks.setdefault(prompt.tag, []).append(prompt)
    return {tag: tuple(prompts) for tag, prompts in tasks.items()}

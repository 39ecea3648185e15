"""Prompt sets: a prompt, and the sets grouped by task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from gcpo_bench.registry import PROMPT_SETS


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


@cache
def prompts_by_task(prompt_set: str) -> Mapping[str, tuple[Prompt, ...]]:
    """The prompts of a registered set by tag, in their order; grouped once, since training asks at every step."""
    tasks: dict[str, list[Prompt]] = {}
    for prompt in PROMPT_SETS.load(prompt_set)():
        tasks.setdefault(prompt.tag, []).append(prompt)
    return {tag: tuple(prompts) for tag, prompts in tasks.items()}

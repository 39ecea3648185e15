"""Prompt sets: a prompt, and where the sets come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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

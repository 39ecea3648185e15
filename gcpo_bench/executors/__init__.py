"""Where the workers of a grid run. An executor only starts workers; which cell is whose, the ledger decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol


class Executor(Protocol):
    def __call__(
        self, runs_dir: Path, ids: Sequence[str], *, max_parallel: int, on_tick: Callable[[], None] = lambda: None
    ) -> None:
        """Run workers until no cell of `ids` is left, calling `on_tick` about once a second."""
        ...

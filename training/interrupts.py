"""SIGINT and SIGTERM end a run between two steps, with its state saved; a second signal ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from gcpo_bench.errors import GcpoBenchError, Interrupted, Preempted

STOPPED_BY: dict[int, type[GcpoBenchError]] = {signal.SIGINT: Interrupted, signal.SIGTERM: Preempted}


class StopRequests:
    """Context manager; `received` is the first signal that arrived inside it, or None."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals nowhere else
            self._previous = {number: signal.signal(number, self._handle) for number in STOPPED_BY}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(STOPPED_BY[number].exit_code)
        self.received = number

    def error(self, run_name: str, step: int) -> GcpoBenchError:
        """What to raise once the state is saved."""
        assert self.received is not None
        return STOPPED_BY[self.received](
            f"stopped by {signal.Signals(self.received).name} after step {step}; the state is saved",
            hint=f"continue with: gcpo-bench train --resume --name {run_name}",
        )

"""SIGINT and SIGTERM end a run between two steps, with its state saved; a second signal ends it at once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from gcpo_bench import stops
from gcpo_bench.errors import GcpoBenchError, Interrupted, Preempted

STOPPED_BY: dict[int, type[GcpoBenchError]] = {signal.SIGINT: Interrupted, signal.SIGTERM: Preempted}


class StopRequests:
    """Context manager; `received` is the first signal that arrived inside it, or None.

    One that came too late to raise for is handed on at the end, to whoever handled signals before.

    Args:
        echo_s: a signal so soon after the first is the same: a launcher hands on what it gets, and may not be the only
            one to do so.
    """

    def __init__(self, echo_s: float = stops.ECHO_S) -> None:
        self.received: int | None = None
        self._at, self._echo_s = 0.0, echo_s
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals nowhere else
            self._previous = {number: signal.signal(number, self._handle) for number in STOPPED_BY}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        handler = self._previous.get(self.received or 0)
        if kind is None and callable(handler):
            handler(self.received, None)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = number, time.monotonic()
        elif time.monotonic() - self._at >= self._echo_s:
            stops.end(number)


def stopped(number: int, run_name: str, step: int) -> GcpoBenchError:
    """What to raise once the state is saved."""
    return STOPPED_BY[number](
        f"stopped by {signal.Signals(number).name} after step {step}; the state is saved",
        hint=f"continue with: gcpo-bench train --resume --name {run_name}",
    )

"""SIGINT and SIGTERM, from the program's first line to its last: what was begun is tidied, one line says why, and the
exit code is 130 or 75.

The first signal raises `Stopped` in the main thread, so that files, claims and other processes are let go of on the way
out. It waits where an exception would be lost: in an import, because libraries swallow it and go on half loaded, and
where Python ignores exceptions. A second signal ends the process at once; so does the first where the main thread is in
a call of a library that does not come back.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # nothing that takes long to import: before this module is there, signals are Python's
    from types import FrameType
    from typing import Any, NoReturn

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
HINT = "what was finished is kept: run the same command again (train: with --resume, once it has a step)"
RETRY_S = 0.02
"""Between looks whether the exception can be raised by now."""
IMPORT_S = 2.0
"""How long an import may take until its end is not waited for."""
PATIENCE_S = 10.0
"""How long the main thread may stay in one call of a library, such as a wait for other machines."""
ECHO_S = 1.0
"""A signal so soon after the first is the same: a terminal sends it to all, and a launcher hands it on."""


class Stopped(KeyboardInterrupt):
    """A signal arrived. No `Exception`, so that nothing takes it for a failure that it can mend."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.exit_code = EXIT_CODES[signal.Signals(number)]


class _State:
    """Of this process."""

    installed = False
    """Whether this program's signals are handled here; not so where it is a library."""
    first: int | None = None
    """The signal that stops it."""
    at = 0.0
    """When that arrived, on the monotonic clock."""
    code: int | None = None
    """What it ends with, once that is known."""
    noticed = threading.Event()
    """The main thread has run the handler."""


def install() -> None:
    """For the main thread of a program, as the first thing it does. What follows is to catch `Stopped`."""
    _State.installed = True
    atexit.register(_ignore)  # the first to be registered is the last to run
    for number in EXIT_CODES:
        signal.signal(number, _handle)
    signal.signal(signal.SIGALRM, _raise)
    sys.unraisablehook = _unraisable
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), name="stops", daemon=True).start()
    os.register_at_fork(after_in_child=_forget)


def received() -> int | None:
    """The signal that stops this process, or None."""
    return _State.first


def settle(code: int) -> None:
    """All is done: from now on a signal ends this process with `code`, which is that of the work it did."""
    if _State.installed:
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm would find nobody to handle it in the last moments
        _State.code = code


def leave(stopped: Stopped) -> NoReturn:
    """Say why, and end."""
    settle(stopped.exit_code)
    os.write(2, f"error: {stopped}\nhint: {HINT}\n".encode())
    sys.exit(stopped.exit_code)


def end(number: int) -> NoReturn:
    """At once, without tidying."""
    if _State.code is None:
        text = f"error: ended at once by {signal.Signals(number).name}\nhint: {HINT}\n"
        os.write(2, text.encode())
    os._exit(EXIT_CODES[signal.Signals(number)] if _State.code is None else _State.code)


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.code is not None or _is_second():
        end(number)
    if _State.first is None:
        _State.first, _State.at = number, time.monotonic()
        _State.noticed.set()
        _raise(number, frame)


def _is_second() -> bool:
    return _State.first is not None and time.monotonic() - _State.at >= ECHO_S


def _raise(_number: int, frame: FrameType | None) -> None:
    if _State.first is None or _State.code is not None:
        return
    if not _imports(frame):
        raise Stopped(_State.first)
    if time.monotonic() - _State.at > IMPORT_S:
        end(_State.first)
    signal.setitimer(signal.ITIMER_REAL, RETRY_S)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _unraisable(unraisable: Any) -> None:
    """Of an exception that Python ignores, as in `__del__`: a stop is raised again a moment later."""
    if isinstance(unraisable.exc_value, Stopped):
        signal.setitimer(signal.ITIMER_REAL, RETRY_S)
    else:
        sys.__unraisablehook__(unraisable)


def _watch(reading: int) -> None:
    """In a thread of its own: signals as they arrive, which the main thread notices between two of its own calls."""
    while arrived := os.read(reading, 1):
        number = arrived[0]
        if number not in EXIT_CODES or signal.getsignal(number) is not _handle:  # such as training's own
            continue
        if _is_second():
            time.sleep(PATIENCE_S)
            end(number)
        if not _State.noticed.wait(PATIENCE_S):
            end(number)


def _ignore() -> None:
    """Nothing is left but to give memory back."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)


def _forget() -> None:
    """In a forked process, which is not the one that the signals are for."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

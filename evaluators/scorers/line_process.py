"""A program of another environment, asked over its own pipes: one JSON object a line, a question and its answer.

It prints one line when it is ready (`{"protocol": 1, "model": ...}`, and what else its answers depend on) and then
answers each `{"id": n, ...}` with `{"id": n, ...}` or `{"id": n, "error": "..."}`. What it writes to stderr is kept for
the error message. It ends when its input is closed. Nothing is pickled, in either direction.

A program that dies, is silent for too long or prints anything else is stopped, with all it has started: after that,
answers could no longer be told apart. The next question starts it anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO, Any

PROTOCOL = 1
MAX_LINE_BYTES = 1 << 20
"""No answer is longer."""
STDERR_LINES = 20
_SHOWN = 120
_ENDING_S = 5.0


class NoAnswer(Exception):
    """The question stays unanswered, and why."""


class Refusal(NoAnswer):
    """It answered that it has no answer to this question; it is alive, and the next one can be asked."""


class LineProcess:
    """Not for several threads at once."""

    def __init__(self, command: Sequence[str], *, start_timeout_s: float, timeout_s: float) -> None:
        """
        Args:
            command: program and arguments; no shell reads it.
            start_timeout_s: until it says that it is ready; large models take minutes.
            timeout_s: for one answer.
        """
        self.command = tuple(command)
        self.start_timeout_s = start_timeout_s
        self.timeout_s = timeout_s
        self.hello: Mapping[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[bytes] = queue.Queue()
        self._questions: queue.Queue[bytes | None] = queue.Queue()
        self._said: deque[str] = deque(maxlen=STDERR_LINES)
        self._listener: threading.Thread | None = None
        self._next_id = 0

    def ask(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer, without a check of its content. Raises NoAnswer; Refusal where the program itself says so."""
        self.start()
        self._next_id += 1
        self._questions.put(json.dumps({**question, "id": self._next_id}).encode() + b"\n")
        answer = self._receive(self.timeout_s)
        if answer.get("id") != self._next_id:
            raise self._stopped(f"it answered question {answer.get('id')!r} instead of {self._next_id}")
        if "error" in answer:
            raise Refusal(f"it says: {str(answer['error'])[:_SHOWN]}")
        return answer

    def start(self) -> None:
        """Start it and wait until it is ready; nothing where it runs. Raises NoAnswer."""
        if self._process is not None:
            return
        try:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise NoAnswer(f"{self.command[0]} cannot be started: {error.strerror}") from error
        self._process = process
        # queues of its own for each start: what a stopped program still says is heard by nobody
        self._answers, self._questions = queue.Queue(), queue.Queue()
        self._said = deque(maxlen=STDERR_LINES)
        _thread(_write, process.stdin, self._questions)
        _thread(_read, process.stdout, self._answers)
        self._listener = _thread(_listen, process.stderr, self._said)
        hello = self._receive(self.start_timeout_s)
        if hello.get("protocol") != PROTOCOL:
            raise self._stopped(f"its first line does not say protocol {PROTOCOL}")
        self.hello = hello

    def _receive(self, timeout_s: float) -> Mapping[str, Any]:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise self._stopped(f"no answer within {timeout_s:g} s") from None
        if not line:
            raise self._stopped("")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or not line.endswith(b"\n"):
            text = line[:_SHOWN].decode(errors="replace").strip()
            raise self._stopped(f"its answer is no line of JSON: {text!r}")
        return answer

    def _stopped(self, reason: str) -> NoAnswer:
        """Stop it; what to raise. Without a reason it ended by itself."""
        process, listener = self._process, self._listener
        assert process is not None
        if not reason:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_ENDING_S)  # it closed its output, and is about to end
            reason = f"it ended with {_code(process)}" if process.poll() is not None else "it closed its output"
        self.close(grace_s=0)
        if listener is not None:
            listener.join(timeout=_ENDING_S)
        last = next((line for line in reversed(self._said) if line.strip()), "")
        return NoAnswer(f"{reason}; its last words: {last[:_SHOWN]}" if last else reason)

    def close(self, grace_s: float = _ENDING_S) -> None:
        """End it: by closing its input, and by force after `grace_s`. The threads close its pipes."""
        process, self._process = self._process, None
        if process is None:
            return
        self._questions.put(None)
        try:
            process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has started and left behind would hold the pipes open


def _code(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _thread(target: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def _write(pipe: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    """Its own thread, because a program that does not read blocks whoever writes."""
    with contextlib.suppress(OSError, ValueError):
        while (line := lines.get()) is not None:
            rest = memoryview(line)
            while rest:
                rest = rest[pipe.write(rest) :]
        pipe.close()


def _read(pipe: io.RawIOBase, lines: queue.Queue[bytes]) -> None:
    """Lines, then b"" for the end."""
    with contextlib.suppress(OSError, ValueError), io.BufferedReader(pipe) as reader:
        while line := reader.readline(MAX_LINE_BYTES):
            lines.put(line)
    lines.put(b"")


def _listen(pipe: io.RawIOBase, said: deque[str]) -> None:
    with contextlib.suppress(OSError, ValueError), io.BufferedReader(pipe) as reader:
        while line := reader.readline(MAX_LINE_BYTES):
            said.append(line.decode(errors="replace").rstrip())


def numbers(value: Any, count: int) -> list[float] | None:
    """Exactly `count` finite numbers, or None."""
    if not isinstance(value, list) or len(value) != count:
        return None
    if any(isinstance(each, bool) or not isinstance(each, int | float) for each in value):
        return None
    found = [float(each) for each in value]
    return found if all(map(math.isfinite, found)) else None

"""Expected failures: what went wrong, the mend, and the exit code the command line returns.

Exit codes: 0 done, 1 regression proven, 2 usage or configuration, 3 inconclusive, 4 prerequisite missing,
5 corrupt data or broken evaluator, 6 training stopped because it cannot go on, 75 preempted and resumable,
130 interrupted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any


class GcpoBenchError(Exception):
    """An error a user can act on: printed as one `error:` line and one `hint:` line, without a traceback."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), hint=self.hint), self.args  # so that it comes through from another process


class ConfigError(GcpoBenchError):
    """A preset, key, value or command-line argument that cannot be used."""


class TrustError(ConfigError):
    """Code from outside the package that a folder names, and nobody here."""


class RunError(GcpoBenchError):
    """A run directory that cannot be created, found or resumed as asked."""


class PrerequisiteError(GcpoBenchError):
    """Something outside the program is missing: a package, weights, disk space, a permission."""

    exit_code = 4


class CorruptDataError(GcpoBenchError):
    """A file that is there but is not what it claims to be."""

    exit_code = 5


class TrainingError(GcpoBenchError):
    """Training cannot go on: non-finite numbers, or nothing left to learn from."""

    exit_code = 6


class Preempted(GcpoBenchError):
    """SIGTERM arrived; the state is saved and the run can be resumed."""

    exit_code = 75


class Interrupted(GcpoBenchError):
    """SIGINT arrived; the state is saved and the run can be resumed."""

    exit_code = 130


LIKENESS = 0.65
"""Twice the common letters over all letters: `dwa` is still taken for `daw`, `ppo` no longer for `grpo`."""


def joined(errors: Sequence[GcpoBenchError]) -> GcpoBenchError:
    """One error of the first one's kind that says what all of them say, so that all can be mended at once."""
    hints = dict.fromkeys(error.hint for error in errors)
    return type(errors[0])("; ".join(map(str, errors)), hint="; ".join(hints))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """One hint sentence: the nearest known name if there is one that a slip of the hand may have meant, then all."""
    names = sorted(known)
    lowered = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=LIKENESS)
    guess = f"did you mean {lowered[near[0]]!r}? " if near else ""
    return f"{guess}known: {', '.join(names)}"

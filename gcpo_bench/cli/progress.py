"""How far it is: a bar where a person watches, plain lines where a file does."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from .output import duration, note

PLAIN_LINES = 20
"""About so many lines a whole job leaves in a log."""
SHOWN = (("reward/mean", "reward", ".3f"), ("loss/kl_all", "KL", ".4f"), ("loss/total", "loss", ".4f"))


class Show(Protocol):
    def __call__(self, done: int, total: int, numbers: str = "") -> None: ...


def describe(metrics: Mapping[str, float]) -> str:
    """`reward 0.531  KL 0.0012`: the numbers of a step that say whether it goes well."""
    return "  ".join(f"{label} {metrics[key]:{form}}" for key, label, form in SHOWN if key in metrics)


@contextmanager
def progress(label: str, done: int = 0) -> Iterator[Show]:
    """Yields what to call whenever more of the work is done; `done` is what was done before."""
    with (_bar if sys.stderr.isatty() else _lines)(label, done) as show:
        yield show


@contextmanager
def _bar(label: str, done: int) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(label),
        TextColumn("{task.fields[count]}"),  # how many there are is known with the first
        BarColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(label, total=None, completed=done, count="", numbers="")

        def show(done: int, total: int, numbers: str = "") -> None:
            display.update(task, completed=done, total=total, count=f"{done}/{total}", numbers=numbers)

        yield show


@contextmanager
def _lines(label: str, done: int) -> Iterator[Show]:
    start, before, printed = time.perf_counter(), done, done

    def show(done: int, total: int, numbers: str = "") -> None:
        nonlocal printed
        if done == before or (done < total and done - printed < max(1, total // PLAIN_LINES)):
            return
        printed = done
        left = (time.perf_counter() - start) / (done - before) * (total - done)
        note("  ".join(part for part in (f"{label} {done}/{total}", numbers, f"{duration(left)} left") if part))

    yield show

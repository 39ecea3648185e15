"""The processes that a launcher started for one run, as one command: the first speaks, and of an error one tells."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

from gcpo_bench.environment import place

if TYPE_CHECKING:
    from gcpo_bench.training.distributed import World


@contextmanager
def together() -> Iterator[World | None]:
    """Yields where this process stands among the others; None where it is alone.

    An error of a process ends all with its exit code. Raises SystemExit in those that have nothing to say of it.
    """
    here = place()
    if here.size == 1:
        yield None
        return
    from gcpo_bench.training.distributed import join

    from .app import explain

    world = join(here)
    try:
        with _quiet(not world.first):
            yield world
            world.leave()
    except BaseException as error:
        message, _, code = explain(error)
        speaks, code = world.speaks(message, code)
        if not speaks:
            raise SystemExit(code) from None
        raise


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield

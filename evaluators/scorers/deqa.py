"""DeQA-Score (arXiv 2501.11561): the quality of a picture on a scale from 1 to 5. It reads no prompt.

Its code needs transformers 4.36, so its model runs as a program of its own environment (`deqa_worker.py`), asked over
JSON lines (`line_process`): a question holds the picture as PNG, `{"id": 1, "png": "<base64>"}`, the answer the model's
logits of the five words, `{"id": 1, "logits": [excellent, good, fair, poor, bad]}`. The score is made here: softmax
over the five, times 5, 4, 3, 2, 1. The published code does that in half precision, in steps of about 0.002 to 0.004.

A picture whose question stays unanswered is unscored, with the reason. A program that died, is silent or prints
something else is started again for the next picture, until it has failed three times in a row. An answer
`{"id": 1, "error": "..."}` is of its picture only.

Source: zhiyuanyou/DeQA-Score `src/model/modeling_mplug_owl2.py`.
"""

from __future__ import annotations

import base64
import io
import math
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image as Pictures

from gcpo_bench.errors import PrerequisiteError

from .line_process import LineProcess, NoAnswer, Refusal, numbers
from .types import Image, Images, Score, Unscored, check_images

OBSERVER = 1
"""Raised when a score can change; pictures that were scored before are then scored again."""
LEVELS = (5, 4, 3, 2, 1)
"""excellent, good, fair, poor, bad."""
COMMAND_VARIABLE = "GCPO_BENCH_DEQA"
START_TIMEOUT_S = 900.0
TIMEOUT_S = 120.0
MAX_FAILURES = 3
"""In a row, of the program, not of single pictures; then the rest stays unscored."""


def quality(logits: Sequence[float]) -> float:
    """Expected level, between 1 and 5."""
    top = max(logits)
    shares = [math.exp(logit - top) for logit in logits]
    return math.fsum(level * share for level, share in zip(LEVELS, shares, strict=True)) / math.fsum(shares)


class Deqa:
    name = "deqa"
    unit = "points"

    def __init__(
        self, command: Sequence[str], *, start_timeout_s: float = START_TIMEOUT_S, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._program = LineProcess(command, start_timeout_s=start_timeout_s, timeout_s=timeout_s)
        self._failures = 0
        self._last = ""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that the program says of itself; starts it. Raises PrerequisiteError where it does not start."""
        try:
            self._program.start()
        except NoAnswer as error:
            raise PrerequisiteError(
                f"DeQA's program does not start: {error}",
                hint=f"run it by hand: {shlex.join(self._program.command)}; it should print one line of JSON",
            ) from error
        said = {key: str(value) for key, value in self._program.hello.items() if key != "protocol"}
        return {"scorer": self.name, "observer": OBSERVER, "model": "not said", **said}

    def check(self) -> None:
        """Raises PrerequisiteError where there is no such program; does not start it."""
        if shutil.which(self._program.command[0]) is None:
            raise PrerequisiteError(
                f"DeQA's program {self._program.command[0]} cannot be found", hint=f"mend {COMMAND_VARIABLE}"
            )

    def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
        return [self._score(image) for image in check_images(images, prompts)]

    def _score(self, image: Image) -> Score:
        if self._failures >= MAX_FAILURES:
            reason = f"given up after {MAX_FAILURES} failures in a row, the last: {self._last}"
            return Unscored(reason, may_pass=True)
        try:
            logits = numbers(self._program.ask({"png": _png(image)}).get("logits"), len(LEVELS))
        except Refusal as error:  # of this picture; the program goes on
            self._failures = 0
            return Unscored(str(error), may_pass=True)
        except NoAnswer as error:
            self._failures += 1
            self._last = str(error)
            return Unscored(self._last, may_pass=True)
        if logits is None:
            return Unscored("its answer has no five finite logits")
        self._failures = 0
        return quality(logits)

    def close(self) -> None:
        self._program.close()

    def __enter__(self) -> Deqa:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _png(image: Image) -> str:
    file = io.BytesIO()
    Pictures.fromarray(image).save(file, format="PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode("ascii")


def deqa() -> Deqa:
    """With the command in `$GCPO_BENCH_DEQA`; raises PrerequisiteError where there is none."""
    command = shlex.split(os.environ.get(COMMAND_VARIABLE, ""))
    if not command:
        raise PrerequisiteError(
            f"DeQA-Score needs a program of its own, and {COMMAND_VARIABLE} names none",
            hint=f"{COMMAND_VARIABLE}='/path/to/its/python deqa_worker.py /path/to/DeQA-Score-Mix3'; "
            "see docs/scorers.md",
        )
    return Deqa(command)

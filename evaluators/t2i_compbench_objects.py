"""T2I-CompBench's 2D and 3D positions and numeracy, judged by which objects are found where.

The arithmetic is the published one (`compbench`), whatever finds the objects (`t2i_compbench_finders`). With UniDet a
third of the 2D score cannot be reached, because nouns are none of its labels; Grounding DINO's labels are the nouns. So
scores of the two are not comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gcpo_bench import catalogue, prompt_sets
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import CorruptDataError, GcpoBenchError

from . import compbench, phrases
from .compbench import Nouns
from .phrases import Phrases
from .t2i_compbench import CompBench, own_options, prompt_set, published_results, summarize
from .t2i_compbench_finders import FIDELITIES, Finder, depth_folder, make_finder, model_folder, remembered
from .t2i_compbench_tasks import Numeracy, Position2D, Position3D, Task
from .types import Asked, Detection, Image, Judged, Metric, SampleScore


class ObjectsBenchmark(CompBench):
    """2D or 3D positions or numeracy. See `types.ObservingBenchmark` and `types.NumberingBenchmark`."""

    def __init__(self, category: str, task: Task, finder: Finder, read: Callable[[], Sequence[Prompt]]) -> None:
        """`read` gives the prompts, and says what is missing on this machine, when they are asked for."""
        self.name = self.prompt_set = prompt_set(category)
        self._category = category
        self.headline = task.name
        self.task = task
        self.finder = finder
        self._read = read

    def prompts(self) -> Sequence[Prompt]:
        """Raises PrerequisiteError where prompts, weights or a table are not on this machine."""
        prompts = self._read()
        self.settings()
        return prompts

    def notes(self, wanted: Sequence[tuple[Prompt, int]]) -> tuple[str, ...]:
        """What is remarkable about imported detections, a line each."""
        return self.finder.notes(self._read(), 1 + max((index for _, index in wanted), default=0))

    # ------------------------------------------------------------ looking

    def look(self) -> dict[str, Any]:
        return self.finder.look()

    def asked(self) -> Asked:
        """What was given that changes what finds objects."""
        return self.finder.asked()

    def recall(self, look: Mapping[str, Any]) -> None:
        """Judge what was seen with this look. Raises RunError where another one was asked for."""
        self.finder = remembered(self.finder, look)

    def question(self, prompt: Prompt) -> Any:
        return self.finder.question(self.task.objects(prompt), prompt, None)

    def question_of(self, prompt: Prompt, index: int) -> Any:
        """`question` of the `index`-th image of a prompt."""
        return self.finder.question(self.task.objects(prompt), prompt, index)

    def observe(self, images: Sequence[Image], questions: Sequence[Any]) -> Iterable[Any]:
        """What is found in each image."""
        return self.finder.observe(images, questions)

    def unfit(self, prompt: Prompt) -> str:
        try:
            self.task.objects(prompt)
        except (ValueError, GcpoBenchError) as error:
            return str(error)
        return ""

    def unfit_of(self, prompt: Prompt, index: int) -> str:
        """Why the `index`-th image of a prompt cannot be judged; empty where it can."""
        return self.unfit(prompt) or self.finder.problem(prompt, index)

    # ------------------------------------------------------------ judging

    def settings(self) -> dict[str, Any]:
        return {**self.task.settings(), **self.finder.settings()}

    def judge(self, observation: Mapping[str, Any], prompt: Prompt) -> Judged:
        """The score, what is not as asked, and the objects found."""
        found = self.finder.found(observation, self.task.objects(prompt))
        score, reason = self.task.score(prompt, found)
        return {self.headline: score}, reason, found.shown(observation["size"])

    def score(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> list[Judged]:
        seen = self.observe(list(images_BYXC), [self.question(prompt) for prompt in prompts_B])
        return [self.judge(observation, prompt) for observation, prompt in zip(seen, prompts_B, strict=True)]

    def summarize(self, samples: Sequence[SampleScore]) -> dict[str, Metric]:
        return summarize(samples, self.headline)

    def export(self, samples: Sequence[SampleScore], prompts: Mapping[str, Prompt]) -> dict[str, str]:
        """Scores as T2I-CompBench's own program writes them."""
        return published_results(self._category, samples, self.headline)

    def self_test(self) -> None:
        """Of the arithmetic. Raises CorruptDataError."""
        left = Detection(label="dog", confidence=0.8, box=(0, 0, 100, 100))
        right = Detection(label="cat", confidence=0.6, box=(50, 0, 150, 100))  # a third of both is shared
        found = {
            "2D": (compbench.spatial_2d("a dog on the left of a cat", ("dog", "cat"), [left, right]), 0.35 + 0.15),
            "3D": (compbench.spatial_3d("a dog behind a cat", ("dog", "cat"), [left, right], [0, 1]), 0.35 + 1 / 3),
            "numeracy": (compbench.numeracy("two dogs", Nouns({"dog": "dogs"}), [left]), 0.5),
        }
        if wrong := [name for name, (got, expected) in found.items() if not math.isclose(got, expected)]:
            raise CorruptDataError(
                f"T2I-CompBench's arithmetic is broken: {', '.join(wrong)}", hint="reinstall gcpo-bench"
            )


# ---------------------------------------------------------------- from options


def require(category: str, given: Mapping[str, Any]) -> None:
    """Raises PrerequisiteError that names the weights that are missing, of those that the options leave to be used."""
    if not given.keys() & {"detections", "model", "depth_model"}:
        catalogue.require([prompt_set(category)])
    elif "detections" not in given:
        model_folder(given)
        if category == "3d-spatial":
            depth_folder(given)


def parser(given: Mapping[str, Any]) -> Callable[[], Phrases]:
    """Reads the table of noun phrases once, when it is needed."""
    table = given.get("noun_phrases")
    return cache(lambda: phrases.load(Path(table) if table else None))


def published_nouns() -> Nouns:
    """Raises PrerequisiteError where the list is not on this machine."""
    return compbench.read_nouns("\n".join(row.text for row in prompt_sets.load("t2i-compbench-objects")))


def _benchmark(category: str, options: Mapping[str, Any] | None, device: str | None) -> ObjectsBenchmark:
    given = own_options(category, options)
    finder = make_finder(category, given, device)
    nouns = cache(published_nouns)

    def read() -> Sequence[Prompt]:
        require(category, given)
        if category == "numeracy":
            nouns()
        return prompt_sets.load(prompt_set(category))

    task: Task
    if category == "numeracy":
        task = Numeracy(nouns)
    elif category == "3d-spatial":
        task = Position3D(parser(given), given.get("fidelity", FIDELITIES[0]))
    else:
        task = Position2D(parser(given))
    return ObjectsBenchmark(category, task, finder, read)


def spatial(
    world: str = "", *, options: Mapping[str, Any] | None = None, device: str | None = None
) -> ObjectsBenchmark:
    """2D positions; `world` is not used. Options: see `t2i_compbench.OPTIONS`.

    Raises ConfigError for an option that cannot be used; what is missing is told by `prompts`.
    """
    return _benchmark("spatial", options, device)


def spatial_3d(
    world: str = "", *, options: Mapping[str, Any] | None = None, device: str | None = None
) -> ObjectsBenchmark:
    """3D positions; as `spatial`."""
    return _benchmark("3d-spatial", options, device)


def numeracy(
    world: str = "", *, options: Mapping[str, Any] | None = None, device: str | None = None
) -> ObjectsBenchmark:
    """Numbers of objects; as `spatial`."""
    return _benchmark("numeracy", options, device)

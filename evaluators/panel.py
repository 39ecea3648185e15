"""Scorers as a benchmark looks at images with them: loaded when first needed, checked before use.

What was seen in an image is one plain record, `{"values": {scorer: raw score}, "unscored": {scorer: reason}}`. It
depends on image and prompt text only, so it can be kept, split over processes and summed up again without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gcpo_bench.catalogue import require
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, did_you_mean
from gcpo_bench.registry import SCORERS

from .scorers.types import Images, Scorer, Unscored, aspect_problem
from .types import Judged

OUTSIDE = frozenset({"deqa", "unified-reward"})
"""Scorers that run elsewhere. They can fail for a while, so what they did not answer must be asked again next time."""
_TEST_SIDE = 64


class Panel:
    def __init__(
        self, scorers: Sequence[str | Scorer], *, options: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """
        Args:
            scorers: registered names, or scorers.
            options: name -> arguments of the function behind it.
        Raises ConfigError for no scorer, one twice, or an unknown name. Nothing is loaded.
        """
        self._given = {scorer if isinstance(scorer, str) else scorer.name: scorer for scorer in scorers}
        if not self._given or len(self._given) < len(scorers):
            raise ConfigError("a panel needs at least one scorer, each once", hint=f"known: {', '.join(SCORERS)}")
        for scorer in scorers:
            if isinstance(scorer, str) and scorer not in SCORERS:
                raise ConfigError(f"unknown scorer {scorer!r}", hint=did_you_mean(scorer, SCORERS))
        self._options = options or {}
        self._loaded: dict[str, Scorer] = {}
        self._is_tested = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._given)

    def require(self) -> None:
        """Raises PrerequisiteError that names all weights that are not there, or an address that is not given."""
        require([name for name, scorer in self._given.items() if isinstance(scorer, str)])
        for name in OUTSIDE & self._given.keys():
            self.scorer(name)  # takes no time: it reads where to ask

    @property
    def is_lasting(self) -> bool:
        """Whether what it says of an image now it will always say."""
        return not OUTSIDE & self._given.keys()

    def scorer(self, name: str) -> Scorer:
        """Loaded when it is first asked for: most have large weights."""
        if name not in self._loaded:
            given = self._given[name]
            self._loaded[name] = SCORERS.load(given)(**self._options.get(name, {})) if isinstance(given, str) else given
        return self._loaded[name]

    def look(self) -> dict[str, Any]:
        """What its scores depend on beside image and text. Loads the scorers."""
        return {"scorers": {name: dict(self.scorer(name).identity) for name in self.names}}

    def see(self, images: Images, texts: Sequence[str]) -> list[dict[str, Any]]:
        """The record of each image."""
        self.self_test()
        return self._see(images, texts, self.names)

    def _see(self, images: Images, texts: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{"values": {}, "unscored": {}} for _ in texts]
        for name in names:
            for record, score in zip(found, self.scorer(name).score(images, texts), strict=True):
                if isinstance(score, Unscored):
                    record["unscored"][name] = score.reason
                else:
                    record["values"][name] = score
        return found

    def self_test(self) -> None:
        """Once: every lasting scorer must tell two plain pictures apart, and say the same again.

        Raises CorruptDataError where one does not: its weights are empty, not numbers, or of something else.
        """
        if self._is_tested:
            return
        lasting = [name for name in self.names if name not in OUTSIDE]
        first, again = (self._see(_test_pictures(), ["a red circle"] * 2, lasting) for _ in range(2))
        for name in lasting:
            scores = [record["values"].get(name) for record in first]
            if None in scores or scores[0] == scores[1] or scores != [record["values"].get(name) for record in again]:
                raise CorruptDataError(
                    f"scorer {name!r} self-test failed: it gives {scores} for a red disc and for stripes",
                    hint="its weights are not what they should be: fetch them again; no score of theirs can be trusted",
                )
        self._is_tested = True


def _test_pictures() -> list[npt.NDArray[np.uint8]]:
    """A red disc on white, and black and white stripes."""
    rows, cols = np.mgrid[:_TEST_SIDE, :_TEST_SIDE] - _TEST_SIDE / 2
    disc = np.full((_TEST_SIDE, _TEST_SIDE, 3), 255, dtype=np.uint8)
    disc[rows**2 + cols**2 < (_TEST_SIDE / 4) ** 2] = (220, 30, 30)
    stripes = np.zeros_like(disc)
    stripes[:, ::2] = 255
    return [disc, stripes]


def verdict(seen: Mapping[str, Any]) -> Judged:
    """Values, and as the reason the scorers that gave none."""
    return dict(seen["values"]), "\n".join(f"{name}: {why}" for name, why in seen["unscored"].items()), ()


class PanelBenchmark:
    """What benchmarks on a panel have in common: looking in batches. See `types.Benchmark`."""

    def __init__(self, panel: Panel, read: Callable[[], Sequence[Prompt]]) -> None:
        """`read` gives the prompts, when they are asked for."""
        self.panel = panel
        self._read = read

    def prompts(self) -> Sequence[Prompt]:
        """Raises PrerequisiteError where prompts or weights are not on this machine: before anything is drawn.

        Summing up again what was seen before needs neither.
        """
        self.panel.require()
        return self._read()

    def problem(self, image_YXC: npt.NDArray[np.uint8]) -> str:
        """Why this image cannot be scored; empty where it can."""
        return aspect_problem(*image_YXC.shape[:2])

    def score(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> list[Judged]:
        """One raw value a scorer; the reason names the scorers that gave none."""
        return [verdict(seen) for seen in self.panel.see(images_BYXC, [prompt.text for prompt in prompts_B])]


class LastingPanelBenchmark(PanelBenchmark):
    """With a lasting panel what was seen is kept. See `types.ObservingBenchmark`."""

    def look(self) -> dict[str, Any]:
        return self.panel.look()

    def question(self, prompt: Prompt) -> str:
        return prompt.text

    def observe(self, image_YXC: npt.NDArray[np.uint8], question: str) -> dict[str, Any]:
        return self.panel.see([image_YXC], [question])[0]

    def unfit(self, prompt: Prompt) -> str:
        return ""

    def settings(self) -> dict[str, Any]:
        return {}

    def judge(self, observation: Mapping[str, Any], prompt: Prompt) -> Judged:
        return verdict(observation)

    def self_test(self) -> None:
        """Of the arithmetic there is none; scorers are tested before they look."""

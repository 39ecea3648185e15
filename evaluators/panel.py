"""Scorers as a benchmark looks at images with them: loaded when first needed, checked before use.

What a scorer says of an image is its raw score, or `{"unscored": reason}`. It depends on image and prompt text only, so
it can be kept, split over processes and summed up again without a model; each scorer's on its own, so that one can be
added to a panel. A failure that may pass, of a program or a server, is no answer: that scorer is asked again next time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gcpo_bench.addresses import outside_source
from gcpo_bench.catalogue import require
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, RunError, did_you_mean
from gcpo_bench.registry import SCORERS

from .scorers.plain_pictures import plain_pictures
from .scorers.types import Images, Score, Scorer, Unscored, aspect_problem
from .types import Asked, Image, Judged, Passing

OUTSIDE = frozenset({"deqa", "unified-reward"})
"""Scorers that run elsewhere: they take no device, and are not tested beforehand."""


class Panel:
    def __init__(
        self,
        scorers: Sequence[str | Scorer],
        *,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        asked: Asked | None = None,
    ) -> None:
        """
        Args:
            scorers: registered names, or scorers.
            options: name -> arguments of the function behind it.
            asked: those of them that somebody gave, see `types.Asked`.
        Raises ConfigError for no scorer, one twice, or an unknown name. Nothing is loaded.
        """
        self._given = {scorer if isinstance(scorer, str) else scorer.name: scorer for scorer in scorers}
        if not self._given or len(self._given) < len(scorers):
            raise ConfigError("a panel needs at least one scorer, each once", hint=f"known: {', '.join(SCORERS)}")
        for scorer in scorers:
            if isinstance(scorer, str) and scorer not in SCORERS:
                raise ConfigError(f"unknown scorer {scorer!r}", hint=did_you_mean(scorer, SCORERS))
        self._options = options or {}
        self.asked = asked or {}
        self._loaded: dict[str, Scorer] = {}
        self._tested: set[str] = set()
        self._look: dict[str, Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._given)

    def require(self) -> None:
        """Raises PrerequisiteError that names all weights that are not there, or an address that is not given."""
        require([name for name, scorer in self._given.items() if isinstance(scorer, str)])
        for name in OUTSIDE & self._given.keys():
            self.scorer(name)  # takes no time: it reads where to ask

    def scorer(self, name: str) -> Scorer:
        """Loaded when it is first asked for: most have large weights."""
        if name not in self._loaded:
            given = self._given[name]
            self._loaded[name] = SCORERS.make(given, **self._options.get(name, {})) if isinstance(given, str) else given
        return self._loaded[name]

    def look(self) -> dict[str, Any]:
        """What its scores depend on beside image and text. Loads the scorers."""
        if not self._look:
            self._look = {"scorers": {name: {**self.scorer(name).identity, **_sourced(name)} for name in self.names}}
        return self._look

    def score(self, name: str, images: Images, texts: Sequence[str]) -> list[Score]:
        """What one scorer says, after its self-test."""
        if name not in self._tested and name not in OUTSIDE:
            self._self_test(name)
        self._tested.add(name)
        return self.scorer(name).score(images, texts)

    def _self_test(self, name: str) -> None:
        """The scorer must tell two plain pictures apart, and say the same again.

        Raises CorruptDataError where it does not: its weights are empty, not numbers, or of something else.
        """
        first, again = (self.scorer(name).score(plain_pictures(), ["a red circle"] * 2) for _ in range(2))
        if first[0] == first[1] or first != again or any(isinstance(score, Unscored) for score in first):
            raise CorruptDataError(
                f"scorer {name!r} self-test failed: it gives {first} for a red disc and for stripes",
                hint="its weights are not what they should be: fetch them again; no score of theirs can be trusted",
            )


def _sourced(scorer: str) -> dict[str, str]:
    """Digest of the sources of a scorer that is not ours."""
    return {"source": source} if (source := outside_source(SCORERS, scorer)) else {}


class PanelBenchmark:
    """What benchmarks on a panel have in common. See `types.PartedBenchmark`; its parts are the scorers."""

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
        """As `judge`, at once."""
        texts = [prompt.text for prompt in prompts_B]
        seen = [self.observe_part(name, list(images_BYXC), texts) for name in self.panel.names]
        rows = ([each.value if isinstance(each, Passing) else each for each in row] for row in zip(*seen, strict=True))
        return [
            self.judge(dict(zip(self.panel.names, row, strict=True)), prompt)
            for row, prompt in zip(rows, prompts_B, strict=True)
        ]

    # ------------------------------------------------------------ looking

    def look(self) -> dict[str, Any]:
        return self.panel.look()

    def asked(self) -> Asked:
        return self.panel.asked

    def parts(self, look: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Raises RunError where a scorer of the panel was not looked with."""
        scorers = look["scorers"]
        for name in self.panel.names:
            if name not in scorers:
                raise RunError(
                    f"nothing is stored of scorer {name!r}, only of {', '.join(scorers)}",
                    hint=f"--option scorers={'+'.join(scorers)}, or evaluate once without --rescore",
                )
        return {name: scorers[name] for name in self.panel.names}

    def question(self, prompt: Prompt) -> str:
        return prompt.text

    def observe_part(self, part: str, images: Sequence[Image], questions: Sequence[str]) -> Iterator[Any]:
        """What one scorer says of each image."""
        for score in self.panel.score(part, images, questions):
            if isinstance(score, Unscored):
                reason = {"unscored": score.reason}
                yield Passing(reason) if score.may_pass else reason
            else:
                yield score

    def unfit(self, prompt: Prompt) -> str:
        return ""

    # ------------------------------------------------------------ judging

    def settings(self) -> dict[str, Any]:
        return {}

    def judge(self, observation: Mapping[str, Any], prompt: Prompt) -> Judged:
        """One raw value a scorer; the reason names the scorers that gave none."""
        without = {name: said["unscored"] for name, said in observation.items() if isinstance(said, Mapping)}
        values = {name: float(said) for name, said in observation.items() if name not in without}
        return values, "\n".join(f"{name}: {why}" for name, why in without.items()), ()

    def self_test(self) -> None:
        """Of the arithmetic there is none; scorers are tested before they look."""

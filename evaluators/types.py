"""What evaluators read and leave behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gcpo_bench.datasets import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    label: str
    """Class name."""
    confidence: float
    """In (0, 1]."""
    box: tuple[float, float, float, float]
    """Pixels: left, top, right, bottom; right and bottom exclusive."""
    color: str | None = None
    """Colour name where the detector or classifier gave one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleScore:
    """One image, judged: what it scored and why."""

    prompt_id: str
    prompt: str
    tag: str
    """Task family."""
    image_index: int
    image: str
    """Path relative to the run directory."""
    values: Mapping[str, float]
    """metric -> value; empty where the image could not be scored."""
    reason: str
    """Empty where nothing is wrong; else what was expected and what was found."""
    detections: tuple[Detection, ...] = ()
    unscored: str = ""
    """Why the image could not be scored; such an image is counted, never averaged as 0."""
    image_digest: str = ""
    """Checksum of the image file, where observations are kept under it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    value: float
    stderr: float
    """Standard error over prompts; NaN where a task has a single prompt, null in JSON."""
    n: int
    """Prompts behind the value."""
    unscored: int = 0
    """Images that could not be scored."""
    higher_is_better: bool = True
    unit: str = "share"
    """`share`, `per image`, `raw`, or a scale as `x100` and `/26`; reports show numbers by it."""
    by_prompt: bool = False
    """Whether each image weighs alike in the mean; else each task does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    benchmark: str
    version: str
    metrics: Mapping[str, Metric]
    """"overall", "task/<tag>", "strict", "extra_objects", ..."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What makes two evaluations comparable: prompt-set digest, weights digest, images per prompt, seed, guidance."""
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """Versions of the programs that wrote the scores, and the published file that the prompts are from; for the record
    only, and not compared."""
    notes: tuple[str, ...] = ()
    """What was wrong or remarkable about the images, a line each."""
    unanswered: int = 0
    """Images of which something could not be told that may be told another time; it is then asked for again."""
    headline: str = "correct"
    """The value of an image that "overall" is the mean of."""
    panel: tuple[str, ...] = ()
    """Values that stand beside the headline with equal right, the headline among them; empty: it stands alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneReward:
    """What a reward gives training; the same fields as training's own RewardOutput."""

    values_B: tuple[float, ...]
    """What training maximises."""
    anomalies: Mapping[str, tuple[float, ...]]
    """Per image, logged beside the reward."""


Image = npt.NDArray[np.uint8]
"""uint8 (Y, X, 3), RGB."""
Judged = tuple[Mapping[str, float], str, tuple[Detection, ...]]
"""One image's values, reason and detections."""


@dataclass(frozen=True, slots=True)
class Passing:
    """An observation that may be another one next time: it counts now, and is then asked for again."""

    value: Any


class Sampler(Protocol):
    """Draws images. Row b depends on `texts_B[b]` and `uniforms_BT[b]` only, whatever else is in the batch."""

    def __call__(self, texts_B: Sequence[str], uniforms_BT: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """uint8 images (B, Y, X, 3), from one uniform number in [0, 1) a token."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One image as it was drawn."""

    image_YXC: npt.NDArray[np.uint8]
    """uint8 RGB."""
    problem: str = ""
    """Why it must not be scored, whatever it shows: blanked by a safety checker, say. Empty where it may."""


class Generator(Protocol):
    """Draws images and is no policy of a run.

    Made as `factory(target, options=..., device=...)`: what stands behind the colon of `--generator`, the texts of
    `--generator-option`, and `--device` or None. Nothing large is loaded before the first image is drawn.
    """

    def settings(self) -> dict[str, Any]:
        """What an image depends on beside its prompt and seed, as JSON: weights, program, sampling."""
        ...

    def __call__(self, texts_B: Sequence[str], seeds_B: Sequence[int]) -> Sequence[Drawn]:
        """Image b depends on `texts_B[b]` and `seeds_B[b]` (63 bits) only, whatever else is in the batch."""
        ...


class Home(Protocol):
    """Where images and their scores lie: a run's folder, or that of images which no run drew."""

    @property
    def path(self) -> Path: ...

    def images_dir(self, prompt_set: str) -> Path: ...

    def evaluation_dir(self, benchmark: str) -> Path: ...


class Benchmark(Protocol):
    name: str
    version: str
    prompt_set: str
    """Folder name of its prompts' images in a run."""

    def prompts(self) -> Sequence[Prompt]: ...

    def problem(self, image_YXC: npt.NDArray[np.uint8]) -> str:
        """Why this image cannot be scored; empty where it can."""
        ...

    def score(self, images_BYXC: npt.NDArray[np.uint8], prompts_B: Sequence[Prompt]) -> list[Judged]:
        """For each image (uint8, B x Y x X x 3): values, reason, detections."""
        ...

    def summarize(self, samples: Sequence[SampleScore]) -> dict[str, Metric]: ...


class KeepingBenchmark(Benchmark, Protocol):
    """A benchmark that keeps what it sees apart from what it makes of it.

    What was seen in an image is stored under (image digest, `look()`, question). So an evaluation can be stopped, split
    over processes and gone on with, and the arithmetic can be done again without networks or images. It is an
    `ObservingBenchmark`, which looks with one thing, or a `PartedBenchmark`, which looks with several.
    """

    def look(self) -> dict[str, Any]:
        """What observations depend on beside image and question, as JSON: weights, flags. May load weights."""
        ...

    def question(self, prompt: Prompt) -> Any:
        """What of a prompt an observation depends on, as JSON."""
        ...

    def unfit(self, prompt: Prompt) -> str:
        """Why this prompt cannot be judged by; empty where it can."""
        ...

    def settings(self) -> dict[str, Any]:
        """What a judgement depends on beside the observation, as JSON."""
        ...

    def judge(self, observation: Any, prompt: Prompt) -> Judged:
        """Values, reason and detections."""
        ...

    def self_test(self) -> None:
        """Raises CorruptDataError where something with a known verdict gets another one; runs before each scoring."""
        ...


class ObservingBenchmark(KeepingBenchmark, Protocol):
    def observe(self, images: Sequence[Image], questions: Sequence[Any]) -> Iterable[Any]:
        """What is seen in each image, as JSON or `Passing` JSON, in order; images may be of any sizes.

        On a CPU it is the same to the bit whatever else is looked at. Each is kept as it comes: where a batch takes
        long, yield.
        """
        ...


class PartedBenchmark(KeepingBenchmark, Protocol):
    """What each part saw is kept on its own: one can be added, or asked again, without the others.

    `judge` takes the observations of all parts, by name.
    """

    def parts(self, look: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """Of each part, what of `look` its observations depend on. Loads nothing."""
        ...

    def observe_part(self, part: str, images: Sequence[Image], questions: Sequence[Any]) -> Iterable[Any]:
        """As `ObservingBenchmark.observe`."""
        ...


Asked = Mapping[str, Mapping[str, Any]]
"""Option as it was given -> what it means in a look: some of the look's entries, nested as they are there."""
ANY = object()
"""In `Asked`: an entry that comes with another one, whatever it is."""


class ChoosyBenchmark(KeepingBenchmark, Protocol):
    """A benchmark with options that change what is seen, so that judging again needs what was seen with them."""

    def asked(self) -> Asked:
        """Of the options that were given, those that change `look`. Loads nothing."""
        ...


class NumberingBenchmark(KeepingBenchmark, Protocol):
    """A benchmark that may know something of an image by its number, such as what another program saw in it."""

    def question_of(self, prompt: Prompt, index: int) -> Any:
        """`question` of the `index`-th image of a prompt."""
        ...

    def unfit_of(self, prompt: Prompt, index: int) -> str:
        """Why the `index`-th image of a prompt cannot be judged; empty where it can."""
        ...

    def recall(self, look: Mapping[str, Any]) -> None:
        """Judge what was seen with this look. Raises RunError where another one was asked for."""
        ...

    def notes(self, wanted: Sequence[tuple[Prompt, int]]) -> tuple[str, ...]:
        """What is remarkable about what it knows of these images, a line each."""
        ...


class ExportingBenchmark(KeepingBenchmark, Protocol):
    """A benchmark whose own program writes results that others read."""

    def export(self, samples: Sequence[SampleScore], prompts: Mapping[str, Prompt]) -> dict[str, str]:
        """Files (name -> text) in the format of that program; `prompts` by id."""
        ...

"""What evaluators read and leave behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    value: float
    stderr: float
    """Standard error over prompts."""
    n: int
    """Prompts behind the value."""
    unscored: int = 0
    """Images that could not be scored."""
    higher_is_better: bool = True
    unit: str = "share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    benchmark: str
    version: str
    metrics: Mapping[str, Metric]
    """"overall", "task/<tag>", "strict", "extra_objects", ..."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What makes two evaluations comparable: prompt-set digest, weights digest, images per prompt, seed, guidance."""


class Benchmark(Protocol):
    name: str
    version: str

    def prompts(self) -> Sequence[Prompt]: ...

    def score(self, images_BYXC: Any, prompts_B: Sequence[Prompt]) -> list[tuple[Mapping[str, float], str, tuple[Detection, ...]]]:
        """For each image (numpy uint8, B x Y x X x 3): values, reason, detections."""
        ...

    def summarize(self, samples: Sequence[SampleScore]) -> dict[str, Metric]: ...

"""The embedded world's benchmark as one that keeps what it sees, so that it can be split into shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gcpo_bench.datasets import Prompt
from gcpo_bench.evaluators.scenes import ScenesBenchmark
from gcpo_bench.evaluators.types import Image, Judged


class Keeping(ScenesBenchmark):
    name = "keeping"
    gcpo_bench_part = "benchmark"

    def look(self) -> dict[str, Any]:
        return {"by": "mean"}

    def question(self, prompt: Prompt) -> str:
        return prompt.text

    def observe(self, images: Sequence[Image], questions: Sequence[Any]) -> Iterator[Any]:
        yield from (float(image.mean()) for image in images)

    def unfit(self, prompt: Prompt) -> str:
        return ""

    def settings(self) -> dict[str, Any]:
        return {}

    def judge(self, observation: Any, prompt: Prompt) -> Judged:
        names = ("correct", "strict", "extra_objects", "unknown_blobs", "dense")
        return dict.fromkeys(names, float(observation > 128)), "", ()

    def self_test(self) -> None:
        """There is nothing to test."""

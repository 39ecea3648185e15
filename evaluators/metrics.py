"""Means over judged images, task by task, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .types import Metric, SampleScore


def stratified(
    samples: Sequence[SampleScore],
    key: str,
    *,
    by_prompt: bool = False,
    reduce: Callable[[Sequence[float]], float] | None = None,
    **more: Any,
) -> Metric:
    """Stratified mean over prompts: prompts are drawn, tasks are fixed.

    Value = sum_t w_t m_t and SE^2 = sum_t w_t^2 s_t^2 / n_t over tasks t of n_t prompts, where m_t and s_t are mean and
    standard deviation of the prompts' values; w_t = 1 / T, or n_t / n where `by_prompt`. With equally many images a
    prompt, the means over prompts are GenEval's means over images.
    """
    by_task: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        by_task.setdefault(sample.tag, {}).setdefault(sample.prompt_id, []).append(sample.values[key])
    prompts = {tag: [(reduce or _mean)(values) for values in of_prompt.values()] for tag, of_prompt in by_task.items()}
    weights = [len(values) if by_prompt else 1 for values in prompts.values()]
    value = math.fsum(w * _mean(values) for w, values in zip(weights, prompts.values(), strict=True)) / sum(weights)
    variance = math.fsum(
        (w / sum(weights)) ** 2 * _variance(values) / len(values)
        for w, values in zip(weights, prompts.values(), strict=True)
    )
    total = sum(map(len, prompts.values()))
    return Metric(value=value, stderr=math.sqrt(variance), n=total, by_prompt=by_prompt, **more)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    return float(np.var(values, ddof=1)) if len(values) > 1 else math.nan

"""Means over judged images, task by task, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .types import Metric, SampleScore


def stratified(
    samples: Sequence[SampleScore],
    key: str,
    *,
    by_prompt: bool = False,
    reduce: Callable[[Sequence[float]], float] | None = None,
    **more: Any,
) -> Metric:
    """Stratified mean over images, with an error over prompts: tasks are fixed, prompts are drawn, with their images.

    Value = sum_t w_t m_t, where m_t is the mean over the N_t images of a task; w_t = 1 / T for T tasks, or N_t / N
    where `by_prompt`. SE^2 = sum_t w_t^2 v_t, where v_t = n / (n - 1) sum_i (S_i - m_t N_i)^2 / N_t^2 over the task's n
    prompts with N_i images of sum S_i: the linearised variance of a ratio. With N_i images alike it is s_t^2 / n.

    Published programs take means over images too, so that a prompt with images that could not be scored weighs less.
    With `reduce` a prompt has one value, made of its images'.
    """
    by_task: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        by_task.setdefault(sample.tag, {}).setdefault(sample.prompt_id, []).append(sample.values[key])
    tasks = [
        [[reduce(values)] if reduce else values for values in of_prompt.values()] for of_prompt in by_task.values()
    ]
    counts = [sum(map(len, prompts)) for prompts in tasks]
    means = [math.fsum(map(math.fsum, prompts)) / count for prompts, count in zip(tasks, counts, strict=True)]
    weights = [count / sum(counts) if by_prompt else 1 / len(tasks) for count in counts]
    value = math.fsum(weight * mean for weight, mean in zip(weights, means, strict=True))
    variance = math.fsum(
        weight**2 * _variance(prompts, mean) for weight, prompts, mean in zip(weights, tasks, means, strict=True)
    )
    total = sum(map(len, tasks))
    return Metric(value=value, stderr=math.sqrt(variance), n=total, by_prompt=by_prompt, **more)


def _variance(prompts: Sequence[Sequence[float]], mean: float) -> float:
    """Of the mean over images of one task."""
    n, images = len(prompts), sum(map(len, prompts))
    if n < 2:
        return math.nan
    return n / (n - 1) * math.fsum((math.fsum(each) - mean * len(each)) ** 2 for each in prompts) / images**2

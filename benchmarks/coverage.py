"""Do the 95 % intervals cover the truth 95 times in 100? Simulated images, the report's own functions.

    python benchmarks/coverage.py --trials 4000

An image is right with the chance of its prompt, shifted by what its training seed and variant do; prompts, seeds and
images are drawn anew in every trial. `prompt`, `seed` and `both` are standard deviations of those shifts (of the
difference of two variants), in points.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from gcpo_bench.reports.statistics import paired_difference, two_way_difference

TASKS = 6
REGIMES = {
    "embedded world": {"prompt": 10.0, "seed": 2.0, "both": 5.0},
    "no effect of seeds": {"prompt": 10.0, "seed": 0.0, "both": 0.0},
    "seeds dominate": {"prompt": 2.0, "seed": 6.0, "both": 2.0},
    "prompts dominate": {"prompt": 25.0, "seed": 1.0, "both": 0.0},
}


def simulate(
    generator: np.random.Generator, prompts: int, seeds: int, images: int, effect: float, shifts: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two variants, (seeds, prompts) each; the second scores `effect` less in expectation."""
    difficulty_P = generator.uniform(0.35, 0.65, prompts)
    shift_SP = (
        generator.normal(0, shifts["prompt"] / 100, prompts)[None, :]
        + generator.normal(0, shifts["seed"] / 100, seeds)[:, None]
        + generator.normal(0, shifts["both"] / 100, (seeds, prompts))
    )
    a_SP = (difficulty_P + (effect + shift_SP) / 2).clip(0, 1)
    b_SP = (difficulty_P - (effect + shift_SP) / 2).clip(0, 1)
    return generator.binomial(images, a_SP) / images, generator.binomial(images, b_SP) / images


def coverage(prompts: int, seeds: int, images: int, shifts: dict[str, float], trials: int, seed: int) -> float:
    generator = np.random.default_rng(seed)
    tags = [f"t{i % TASKS}" for i in range(prompts)]
    effect, covered = 0.03, 0
    if seeds == 1:  # about the two checkpoints: their seeds are part of the truth
        shifts = {**shifts, "seed": 0.0}
    for _ in range(trials):
        a_SP, b_SP = simulate(generator, prompts, seeds, images, effect, shifts)
        if seeds == 1:
            a, b = ({str(i): (tags[i], float(x)) for i, x in enumerate(side[0])} for side in (a_SP, b_SP))
            interval = paired_difference(a, b)
        else:
            interval = two_way_difference(a_SP, b_SP, tags)
        covered += interval.low <= effect <= interval.high
    return covered / trials


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--prompts", type=int, default=288)
    parser.add_argument("--images", type=int, default=4)
    options: Any = parser.parse_args(arguments)
    started = time.perf_counter()
    print("| regime | 1 seed, over prompts | 2 seeds | 3 seeds | 5 seeds |\n| --- | ---: | ---: | ---: | ---: |")
    for name, shifts in REGIMES.items():
        cells = [
            coverage(options.prompts, seeds, options.images, shifts, options.trials, seed=seeds)
            for seeds in (1, 2, 3, 5)
        ]
        print(f"| {name} | " + " | ".join(f"{100 * cell:.1f} %" for cell in cells) + " |", flush=True)
    error = 100 * 1.96 * (0.95 * 0.05 / options.trials) ** 0.5
    print(
        f"\n{options.trials} trials a cell (+-{error:.1f} points), {time.perf_counter() - started:.0f} s",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

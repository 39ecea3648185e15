"""Seconds for selecting and weighting tokens: the vectorised code against the written-out loops of the tests.

    python benchmarks/selection.py [--json]

Both see the same random entropies, embeddings and log-probs in one run and must choose the same tokens; the reported
time is the median over repeats. One CPU thread, so that the ratio is that of the algorithms.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the loops live in the tests, which are not installed

from gcpo_bench.training.selectors import Diverse, Initial, Structural, select
from gcpo_bench.training.signals import group_similarity
from gcpo_bench.training.types import Selector, TokenSignals
from gcpo_bench.training.weighting import Confidence
from tests.reference import objective, selection

GROUP_SIZE = 8
EMBEDDING_WIDTH = 8
SELECTORS: list[tuple[str, Selector]] = [
    ("initial", Initial(ratio=0.1)),
    ("structural", Structural(ratio=0.1, window=(0.1, 0.9))),
    ("diverse", Diverse(ratio=0.1)),
]


def make_inputs(rows: int, num_tokens: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logprobs_BT = -3 - normal(rows, num_tokens).abs()
    return {
        "entropy_BT": normal(rows, num_tokens).abs(),
        "embeddings_BTD": normal(rows, num_tokens, EMBEDDING_WIDTH),
        "logprobs_BT": logprobs_BT,
        "ref_logprobs_BT": logprobs_BT + 0.1 * normal(rows, num_tokens),
    }


def vectorised(inputs: dict[str, torch.Tensor], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    signals = TokenSignals(
        grid=(side, side),
        entropy_BT=inputs["entropy_BT"],
        similarity_BT=group_similarity(inputs["embeddings_BTD"], GROUP_SIZE),
        logprobs_BT=inputs["logprobs_BT"],
        noise_BT=torch.zeros_like(inputs["entropy_BT"]),
    )
    selected_BT = select(SELECTORS, signals, "exclude", complement=False).selected_BT
    return selected_BT, Confidence()(inputs["logprobs_BT"], inputs["ref_logprobs_BT"], selected_BT)


def written_out(inputs: dict[str, torch.Tensor], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    entropy, embeddings = inputs["entropy_BT"].tolist(), inputs["embeddings_BTD"].tolist()
    logprobs, reference = inputs["logprobs_BT"].tolist(), inputs["ref_logprobs_BT"].tolist()
    selected_BT = torch.zeros(len(entropy), side * side, dtype=torch.bool)
    weights = []
    for start in range(0, len(entropy), GROUP_SIZE):
        similarity = selection.pair_similarity(embeddings[start : start + GROUP_SIZE])
        for row in range(start, start + GROUP_SIZE):
            chosen = set.union(*selection.released_sets(entropy[row], similarity, side, side))
            selected_BT[row, sorted(chosen)] = True
            weights.append(objective.running_means(logprobs[row], reference[row]))
    return selected_BT, torch.tensor(weights, dtype=torch.float64)


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(rows: int, side: int) -> dict[str, Any]:
    inputs = make_inputs(rows, side * side)
    fast, slow = vectorised(inputs, side), written_out(inputs, side)  # also warms up
    if not torch.equal(fast[0], slow[0]) or not torch.allclose(fast[1], slow[1], atol=1e-12, rtol=0):
        raise SystemExit(f"the two disagree at {rows} rows of {side}x{side}; run the tests")
    fast_s = median_seconds(lambda: vectorised(inputs, side), repeats=15)
    slow_s = median_seconds(lambda: written_out(inputs, side), repeats=3)
    return {"rows": rows, "grid": f"{side}x{side}", "vectorised_s": fast_s, "loops_s": slow_s, "ratio": slow_s / fast_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{platform.machine()}, 1 thread, Python {platform.python_version()}, torch {torch.__version__}, float64"
    results = [measure(rows, side) for rows in (8, 48) for side in (12, 24)]
    if arguments.json:
        print(json.dumps({"machine": machine, "results": results}))
        return
    print(f"{'rows':>4}  {'grid':>5}  {'vectorised s':>12}  {'loops s':>9}  {'ratio':>6}")
    for row in results:
        print(
            f"{row['rows']:>4}  {row['grid']:>5}  {row['vectorised_s']:>12.5f}  "
            f"{row['loops_s']:>9.4f}  {row['ratio']:>6.0f}"
        )
    print(f"machine: {machine}")


if __name__ == "__main__":
    main()

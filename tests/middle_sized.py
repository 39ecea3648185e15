"""Janus-Pro's classes at 18 M parameters and 64 tokens: what a step holds is the policy's, and it takes seconds.

As a program, the memory of two updates of a configuration that is given as JSON: what was computed and what was used.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from gcpo_bench import outside
from gcpo_bench.config import RunConfig
from gcpo_bench.training.policies.janus_pro import JanusPro, Size, byte_tokenizer

SIZE = Size(width=384, mlp=1056, layers=6, heads=6, words=320, side=8, channels=32, multipliers=(1, 2), latent=32)


def build(name: str, *, template: str = "", **_: Any) -> JanusPro:
    return JanusPro(SIZE.config(), byte_tokenizer(), template or "janus-pro")


build.gcpo_bench_part = "model"  # type: ignore[attr-defined]


def bytes_used(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(field))


def main(config: RunConfig) -> dict[str, int]:
    from gcpo_bench.training import memory, starts
    from gcpo_bench.training.learner import build_learner
    from gcpo_bench.training.metrics import Stopwatch
    from gcpo_bench.training.observation import draw_prompts, observe
    from gcpo_bench.training.update import update

    outside.allow(outside.parts_of(config))
    computed = memory.needed(config, starts.without_memory(config.policy))
    before = bytes_used("VmRSS")
    learner = build_learner(config)
    seen = observe(learner, draw_prompts(learner.config, 1), "rollout/1", Stopwatch())
    for step in (1, 2):  # the moments are there from the second on
        update(learner, seen, step)
    return {"computed": computed.peak_bytes - memory.LIBRARIES_BYTES["cpu"], "used": bytes_used("VmHWM") - before}


if __name__ == "__main__":
    print(json.dumps(main(RunConfig.model_validate_json(sys.argv[1]))))

"""Starting weights of the embedded world, from nothing: next-token prediction on rendered scenes and their captions.

Captions come from the training grammar only, so no held-out combination is ever named, and no caption is ever wrong.
Training stops early: the policy draws clean shapes, but often the wrong ones.

For `scenes-8` words are dropped from the captions at random, so that the policy learns each word apart, and to draw
something when it is told little. That leaves a policy that knows more than it does: guidance brings out what words mean
to it, and so does reinforcement learning.

`gcpo-bench pretrain` reruns it; the recipes below made the weights in this package.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gcpo_bench import runs, scenes, streams
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, did_you_mean

from .checkpoints import save_weights
from .muon import Muon
from .policies.scenes import ScenesPolicy, build


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Training with optimisers of its own."""

    steps: int
    batch_rows: int = 32
    learning_rate: float = 8e-3
    """AdamW: embeddings, head and vectors."""
    matrix_learning_rate: float = 0.02
    """Muon: matrices of the blocks."""
    cooldown: float = 0.5
    """Share of the steps, at the end, over which both rates fall linearly to 0."""
    caption_dropout: float = 0.1
    """Share of rows whose caption is replaced by padding: the unconditional branch of guidance."""
    word_dropout: float = 0.15
    """Share of the words of the other captions that are replaced by padding."""


RECIPES = {"scenes-12": (Stage(steps=2200, word_dropout=0.0),), "scenes-8": (Stage(steps=1500),)}


def pretrain(
    model: str,
    out: Path,
    *,
    seed: int = 0,
    max_steps: int | None = None,
    num_threads: int = 1,
    on_step: Callable[[Mapping[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Train from nothing; write `<model>.safetensors` and `<model>.json` into `out` and return the latter's content.

    Args:
        max_steps: stop before the recipe ends (its schedule stays that of the whole recipe).
        num_threads: part of the result, because float sums depend on it.
    Raises:
        ConfigError: for a model without a recipe.
    """
    if model not in RECIPES:
        raise ConfigError(f"{model!r} has no pretraining recipe", hint=did_you_mean(model, RECIPES))
    torch.set_num_threads(num_threads)
    policy = build(model)
    policy.initialize(torch.Generator().manual_seed(seed))
    started = time.perf_counter()
    losses = (loss for stage, first in _stages(model) for loss in run_stage(policy, stage, seed=seed, first_step=first))
    step, loss = 0, float("nan")
    for step, loss in enumerate(islice(losses, max_steps), start=1):
        if on_step:
            on_step({"step": step, "loss/total": loss, "time/elapsed_s": time.perf_counter() - started})
    path = out / f"{model}.safetensors"
    save_weights(policy, path)
    record = {
        "model": model,
        "command": f"gcpo-bench pretrain --model {model} --seed {seed} --num-threads {num_threads} --out weights",
        "seed": seed,
        "steps": step,
        "recipe": [asdict(stage) for stage in RECIPES[model]],
        "architecture": asdict(policy.architecture),
        "torch": torch.__version__,
        "final_loss": round(loss, 6),
        "checksum": runs.checksum(path),
    }
    runs.write_json(out / f"{model}.json", record)
    return record


def _stages(model: str) -> Iterator[tuple[Stage, int]]:
    """Each stage and the number of its first step."""
    first = 1
    for stage in RECIPES[model]:
        yield stage, first
        first += stage.steps


def run_stage(policy: ScenesPolicy, stage: Stage, *, seed: int, first_step: int) -> Iterator[float]:
    """Train through one stage; yields each step's loss, nats a token, once the step is taken."""
    optimizers = _optimizers(policy, stage)
    for done in range(stage.steps):
        scale = min(1.0, (stage.steps - done) / (stage.cooldown * stage.steps))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = scale * group["initial_lr"]
        captions, tokens_BT = training_rows(policy, stage, seed, first_step + done)
        logits_BTV = policy.logits(captions, tokens_BT)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield loss.item()


def _optimizers(policy: ScenesPolicy, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, head and vectors."""
    is_matrix = {name: name.startswith("blocks.") and p.ndim == 2 for name, p in policy.named_parameters()}
    optimizers: list[torch.optim.Optimizer] = [
        Muon([p for name, p in policy.named_parameters() if is_matrix[name]], lr=stage.matrix_learning_rate),
        torch.optim.AdamW(
            [p for name, p in policy.named_parameters() if not is_matrix[name]],
            lr=stage.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=0.0,
        ),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def training_rows(
    policy: ScenesPolicy, stage: Stage, seed: int, step: int
) -> tuple[list[Sequence[str | None] | None], Tensor]:
    """Captions (None: dropped; a None word: dropped) and tokens (B, T) of one step; tasks equally often."""
    rng = streams.generator(seed, "pretrain", step)
    words_rng = streams.generator(seed, "pretrain-words", step)
    world = policy.tokenizer.world
    by_task = prompts_by_task()
    captions: list[Sequence[str | None] | None] = []
    images = []
    for row in range(stage.batch_rows):
        pool = by_task[row % len(by_task)]
        prompt = pool[int(rng.integers(len(pool)))]
        words = [None if words_rng.random() < stage.word_dropout else word for word in prompt.text.split()]
        captions.append(None if rng.random() < stage.caption_dropout else words)
        images.append(scenes.render(scenes.sample_scene(prompt, world, rng), world))
    return captions, torch.from_numpy(policy.tokenizer.encode(np.stack(images)))


@cache
def prompts_by_task() -> list[list[Prompt]]:
    return [[prompt for prompt in scenes.train_prompts() if prompt.tag == task] for task in scenes.TASKS]

"""Starting weights of the embedded world, from nothing: next-token prediction on rendered scenes and their captions.

Captions come from the training grammar only, so no held-out combination is ever named, and no caption is ever wrong.
Training stops early: the policy draws clean shapes, but often the wrong ones.

Words are dropped from the captions at random, and what a dropped word said is then open in the picture too. So the
policy learns each word apart, from pictures in which everything else may be anything, and it learns to draw something
when it is told little. It ends up knowing more than it does: guidance brings out what words mean to it, and so does
reinforcement learning.

`gcpo-bench pretrain` reruns it; the recipes below made the weights in this package.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gcpo_bench import runs, scenes, streams
from gcpo_bench.datasets import Prompt, prompts_by_task
from gcpo_bench.errors import ConfigError, did_you_mean

from .checkpoints import save_weights
from .muon import Muon
from .policies.scenes import ScenesPolicy, build


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    steps: int
    """Of the whole schedule."""
    stop_after: int | None = None
    """Steps that are made of it. Stopping while the rates are high leaves a policy that is unsure of what it knows."""
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


RECIPES = {
    "scenes-12": Recipe(steps=3000, stop_after=2400),
    "scenes-8": Recipe(steps=1500, stop_after=1200),
}


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
    recipe = RECIPES[model]
    optimizers = _optimizers(policy, recipe)
    started = time.perf_counter()
    steps = min(step for step in (recipe.steps, recipe.stop_after, max_steps) if step is not None)
    for step in range(1, steps + 1):
        scale = min(1.0, (recipe.steps - step + 1) / (recipe.cooldown * recipe.steps))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = scale * group["initial_lr"]
        captions, tokens_BT = training_rows(policy, recipe, seed, step)
        logits_BTV = policy.head(policy.hidden(captions, tokens_BT))
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if on_step:
            on_step({"step": step, "loss/total": loss.item(), "time/elapsed_s": time.perf_counter() - started})
    path = out / f"{model}.safetensors"
    save_weights(policy, path)
    record = {
        "model": model,
        "command": f"gcpo-bench pretrain --model {model} --seed {seed} --num-threads {num_threads} --out weights",
        "seed": seed,
        "steps": steps,
        "recipe": asdict(recipe),
        "architecture": asdict(policy.architecture),
        "torch": torch.__version__,
        "final_loss": round(loss.item(), 6),
        "checksum": runs.checksum(path),
    }
    runs.write_json(out / f"{model}.json", record)
    return record


def _optimizers(policy: ScenesPolicy, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, head and vectors."""
    is_matrix = {name: name.startswith("blocks.") and p.ndim == 2 for name, p in policy.named_parameters()}
    optimizers: list[torch.optim.Optimizer] = [
        Muon([p for name, p in policy.named_parameters() if is_matrix[name]], lr=recipe.matrix_learning_rate),
        torch.optim.AdamW(
            [p for name, p in policy.named_parameters() if not is_matrix[name]],
            lr=recipe.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=0.0,
        ),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def training_rows(
    policy: ScenesPolicy, recipe: Recipe, seed: int, step: int
) -> tuple[list[Sequence[str | None] | None], Tensor]:
    """Captions (None: dropped; a None word: dropped) and tokens (B, T) of one step; tasks equally often."""
    rng = streams.generator(seed, "pretrain", step)
    words_rng = streams.generator(seed, "pretrain-words", step)
    world = policy.tokenizer.world
    by_task = list(prompts_by_task("scenes-train").values())
    captions: list[Sequence[str | None] | None] = []
    images = []
    for row in range(recipe.batch_rows):
        pool = by_task[row % len(by_task)]
        prompt = pool[int(rng.integers(len(pool)))]
        words = [None if words_rng.random() < recipe.word_dropout else word for word in prompt.text.split()]
        captions.append(None if rng.random() < recipe.caption_dropout else words)
        told = told_by(prompt, words, words_rng)
        images.append(scenes.render(scenes.sample_scene(told, world, rng), world))
    return captions, torch.from_numpy(policy.tokenizer.encode(np.stack(images)))


def told_by(prompt: Prompt, words: Sequence[str | None], rng: np.random.Generator) -> Prompt:
    """What a caption with gaps still says: shape, colour, number or relation of a dropped word is open.

    Were the picture to follow the whole caption, "red" alone would never stand beside a red circle, because no whole
    caption names one; the policy would learn to avoid just the combinations that it is tested on.
    """
    dropped = {word for word, kept in zip(prompt.text.split(), words, strict=True) if kept is None}
    include = [dict(clause) for clause in prompt.metadata["include"]]
    named = {clause["class"] for clause in include}
    for clause in include:
        if clause["class"] in dropped or scenes.plural(clause["class"]) in dropped:
            free = [shape for shape in scenes.SHAPES if shape == clause["class"] or shape not in named]
            clause["class"] = free[int(rng.integers(len(free)))]
            named.add(clause["class"])
        if clause.get("color") in dropped:
            del clause["color"]
        if "position" in clause and clause["position"][0].split()[0] in dropped:
            del clause["position"]
        if scenes.NUMBERS.get(clause["count"]) in dropped:
            clause["count"] = list(scenes.NUMBERS)[int(rng.integers(len(scenes.NUMBERS)))]
    return replace(prompt, metadata={**prompt.metadata, "include": include})

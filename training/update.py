"""The update: what one rollout changes in the policy."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gcpo_bench import streams
from gcpo_bench.config import LossConfig, OptimizerConfig, RunConfig

from . import health
from .advantages import zero_variance_groups
from .learner import Learner
from .logprobs import token_logprobs
from .losses import denominators, image_counts, policy_loss
from .metrics import Metrics
from .types import Batch, Observation, Weighting


def update(learner: Learner, seen: Observation, step: int) -> Metrics:
    """Every optimiser step that this rollout pays for; one, unless epochs or minibatches say more."""
    config = learner.config.optimizer
    rate = config.learning_rate * rate_scale(config, step, learner.config.num_steps)
    learner.optimizer.set_rate(rate)
    learns_B = rows_that_learn(learner.config, seen)
    is_only_update = config.epochs * config.minibatches == 1
    totals: dict[str, list[float]] = defaultdict(list)
    for epoch in range(config.epochs):
        for rows_B in minibatches(learner.config, len(learns_B), step, epoch):
            rows_B = rows_B[learns_B[rows_B]]
            if len(rows_B) == 0:  # every group of this minibatch was dropped
                continue
            batch = batch_of(learner.config, seen, rows_B, on_policy=is_only_update)
            texts_B = [seen.rollout.texts_B[row] for row in rows_B.tolist()]
            for name, value in optimizer_step(learner, texts_B, seen.rollout.tokens_BT[rows_B], batch, step).items():
                totals[name].append(value)
    means = {name: sum(values) / len(values) for name, values in totals.items()}
    return {"optimizer/learning_rate": rate, "optimizer/updates": float(len(totals["loss/total"])), **means}


def rows_that_learn(config: RunConfig, seen: Observation) -> Tensor:
    """bool B: False for rows whose group has equal rewards, where such groups are dropped."""
    if config.advantages.zero_variance == "keep":
        return torch.ones(len(seen.rewards_B), dtype=torch.bool)
    dead_P = zero_variance_groups(seen.rewards_B, seen.rollout.group_size)
    return ~dead_P.repeat_interleave(seen.rollout.group_size).cpu()


def batch_of(config: RunConfig, seen: Observation, rows_B: Tensor, *, on_policy: bool) -> Batch:
    selected_BT = seen.selection.selected_BT[rows_B]
    policy_denominator, kl_denominator = denominators(selected_BT, config.loss.kl_tokens, config.loss.normalizer)
    return Batch(
        old_logprobs_BT=None if on_policy else seen.rollout.logprobs_BT[rows_B],
        ref_logprobs_BT=seen.ref_logprobs_BT[rows_B],
        advantages_B=seen.advantages_B[rows_B],
        selected_BT=selected_BT,
        policy_denominator=policy_denominator,
        kl_denominator=kl_denominator,
        image_counts_B=image_counts(selected_BT, config.loss.normalizer),
    )


@dataclass(frozen=True, slots=True)
class Share:
    """What one micro-batch adds to an optimiser step."""

    gradients: tuple[Tensor | None, ...]
    """One a parameter; None where the loss does not depend on it."""
    sums: Metrics
    weights_on_selected: Tensor
    gradient_abs: Tensor
    """float64 (2,): absolute gradient on log-probabilities of selected and of unselected tokens."""


def optimizer_step(learner: Learner, texts_B: list[str], tokens_BT: Tensor, batch: Batch, step: int) -> Metrics:
    """One gradient, gathered over micro-batches, clipped and applied."""
    config, optimizer = learner.config.optimizer, learner.optimizer
    parts = learner.workers.parts(len(texts_B), config.micro_batch_rows)
    shares = learner.workers.own(
        lambda rows: micro_batch(learner, texts_B[rows], tokens_BT[rows], batch.rows(rows)), parts
    )
    found: list[Share] = []
    for _ in range(-(-len(parts) // learner.world.size)):
        share = next(shares, None)
        optimizer.add(None if share is None else share.gradients)
        found += [] if share is None else [replace(share, gradients=())]
        del share  # before the next is computed: the gradients of a large model do not fit many times
    found = learner.world.collected(found)
    sums: Metrics = defaultdict(float)
    for share in found:
        for name, value in share.sums.items():
            sums[name] += value
    sums["loss/kl_all"] /= tokens_BT.numel()
    health.check_finite({"the loss": sums["loss/total"]}, step)
    norm = optimizer.norm()
    health.check_finite({"the gradient norm": float(norm)}, step)
    optimizer.step(norm, config.max_grad_norm)
    weight = torch.cat([share.weights_on_selected for share in found])
    absolute = torch.stack([share.gradient_abs for share in found]).sum(dim=0)
    return {
        **sums,
        "optimizer/gradient_norm": float(norm),
        "weight/mean": float(weight.mean()),
        "weight/min": float(weight.min()),
        "weight/max": float(weight.max()),
        "weight/negative_share": float((weight < 0).float().mean()),
        "tokens/unselected_gradient_share": float(absolute[1] / absolute.sum().clamp(min=1e-300)),
    }


def micro_batch(
    learner: Learner, texts_B: list[str], tokens_BT: Tensor, part: Batch, *, chunk_logits: int | None = None
) -> Share:
    """Touches nothing shared, so micro-batches can run side by side. `chunk_logits` as in `token_logprobs`."""
    everywhere = gradient_everywhere(learner.config.loss, learner.weighting)
    where_BT = None if everywhere else part.selected_BT
    logprobs_BT = token_logprobs(
        learner.policy, texts_B, tokens_BT, differentiated_BT=where_BT, chunk_logits=chunk_logits
    )
    output = policy_loss(logprobs_BT, part, learner.weighting, learner.config.loss)
    on_logprobs_BT, *gradients = torch.autograd.grad(output.loss, [logprobs_BT, *learner.parameters], allow_unused=True)
    difference_BT = part.ref_logprobs_BT - logprobs_BT.detach()
    size_BT = on_logprobs_BT.abs().double().cpu()
    chosen_BT = part.selected_BT.cpu()
    return Share(
        gradients=tuple(gradients),
        sums={
            **{name: float(value) for name, value in output.metrics.items()},
            "loss/kl_all": float((difference_BT.expm1() - difference_BT).sum()),
        },
        weights_on_selected=output.weights_BT[part.selected_BT],
        gradient_abs=torch.stack([size_BT[chosen_BT].sum(), size_BT[~chosen_BT].sum()]),
    )


def gradient_everywhere(loss: LossConfig, weighting: Weighting) -> bool:
    """Whether tokens that are not selected get gradient too: through the weight, or through the divergence."""
    return loss.kl_tokens == "all" or not getattr(weighting, "detached", False)


def minibatches(config: RunConfig, rows: int, step: int, epoch: int) -> list[Tensor]:
    """Row indices of each optimiser step; shuffled where there are several."""
    count = config.optimizer.minibatches
    if count == 1:
        return [torch.arange(rows)]
    order = streams.generator(config.seed, "minibatches", step, epoch).permutation(rows)
    return [torch.from_numpy(np.sort(part)) for part in np.array_split(order, count)]


def rate_scale(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Factor of the learning rate at `step` (from 1): linear warm-up, then the schedule.

    As transformers' `linear` and `cosine_with_min_lr`, which the released trainers take: with a warm-up the first
    update has rate 0, and the step after the last one would have `min_rate`.
    """
    done = step - 1
    if done < config.warmup_steps:
        return done / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = min((done - config.warmup_steps) / max(num_steps - config.warmup_steps, 1), 1.0)
    left = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_rate + (1 - config.min_rate) * left

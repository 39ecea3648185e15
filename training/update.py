"""The update: what one rollout changes in the policy."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn

from gcpo_bench import streams
from gcpo_bench.config import OptimizerConfig, RunConfig

from . import health
from .advantages import zero_variance_groups
from .learner import Learner, as_module
from .losses import denominators, policy_loss
from .metrics import Metrics
from .observation import micro_batches
from .types import Batch, Observation


def update(learner: Learner, seen: Observation, step: int) -> Metrics:
    """Every optimiser step that this rollout pays for; one, unless epochs or minibatches say more."""
    config = learner.config.optimizer
    rate = config.learning_rate * rate_scale(config, step, learner.config.num_steps)
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
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
    )


def optimizer_step(learner: Learner, texts_B: list[str], tokens_BT: Tensor, batch: Batch, step: int) -> Metrics:
    """One gradient, gathered over micro-batches, clipped and applied."""
    config = learner.config
    sums: dict[str, float] = defaultdict(float)
    weights_on_selected, gradient_abs = [], torch.zeros(2, dtype=torch.float64)
    learner.optimizer.zero_grad(set_to_none=True)
    for rows in micro_batches(len(texts_B), config.optimizer.micro_batch_rows):
        part = batch.rows(rows)
        logprobs_BT = learner.policy.logprobs(texts_B[rows], tokens_BT[rows])
        logprobs_BT.retain_grad()
        output = policy_loss(logprobs_BT, part, learner.weighting, config.loss)
        output.loss.backward()  # type: ignore[no-untyped-call]
        assert logprobs_BT.grad is not None
        for name, value in output.metrics.items():
            sums[name] += float(value)
        difference_BT = part.ref_logprobs_BT - logprobs_BT.detach()
        sums["loss/kl_all"] += float((difference_BT.expm1() - difference_BT).sum()) / tokens_BT.numel()
        weights_on_selected.append(output.weights_BT[part.selected_BT])
        size_BT = logprobs_BT.grad.abs().double().cpu()
        chosen_BT = part.selected_BT.cpu()
        gradient_abs += torch.stack([size_BT[chosen_BT].sum(), size_BT[~chosen_BT].sum()])
    health.check_finite({"the loss": sums["loss/total"]}, step)
    parameters = list(as_module(learner.policy).parameters())
    norm = float(nn.utils.clip_grad_norm_(parameters, config.optimizer.max_grad_norm))
    health.check_finite({"the gradient norm": norm}, step)
    learner.optimizer.step()
    weights = torch.cat(weights_on_selected)
    return {
        **sums,
        "optimizer/gradient_norm": norm,
        "weight/mean": float(weights.mean()),
        "weight/min": float(weights.min()),
        "weight/max": float(weights.max()),
        "weight/negative_share": float((weights < 0).float().mean()),
        "tokens/unselected_gradient_share": float(gradient_abs[1] / gradient_abs.sum().clamp(min=1e-300)),
    }


def minibatches(config: RunConfig, rows: int, step: int, epoch: int) -> list[Tensor]:
    """Row indices of each optimiser step; shuffled where there are several."""
    count = config.optimizer.minibatches
    if count == 1:
        return [torch.arange(rows)]
    order = streams.generator(config.seed, "minibatches", step, epoch).permutation(rows)
    return [torch.from_numpy(np.sort(part)) for part in np.array_split(order, count)]


def rate_scale(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Factor of the learning rate at `step` (from 1): linear warm-up, then the schedule, 0 after the last step."""
    warmup = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    left = 1.0 - (step - 1) / max(num_steps, 1)
    if config.schedule == "linear":
        return warmup * left
    if config.schedule == "cosine":
        return float(warmup * 0.5 * (1 - np.cos(np.pi * left)))
    return warmup

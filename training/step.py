"""One training step on one page: sample, reward, look at the tokens, select, weigh, update.

Nothing here asks which method runs: GRPO is every token selected with weight 1, every variant is another list of
selectors and another weighting in the configuration.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gcpo_bench import streams
from gcpo_bench.config import OptimizerConfig, RunConfig
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import TrainingError
from gcpo_bench.registry import PROMPT_SETS
from gcpo_bench.runs import Run

from . import checkpoints, health
from .advantages import group_advantages, zero_variance_groups
from .decoding import sample_in_batches
from .losses import denominators, policy_loss
from .metrics import Metrics, Stopwatch, describe, peak_memory_bytes
from .rewards import WeightedSum
from .selectors import build_selectors, select
from .signals import group_similarity
from .types import Batch, Policy, RewardOutput, Rollout, Selection, Selector, TokenSignals, Weighting
from .weighting import build_weighting


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What a step works with; only `policy` and `optimizer` change."""

    config: RunConfig
    policy: Policy
    reference: Policy
    optimizer: torch.optim.Optimizer
    reward: WeightedSum
    selectors: Sequence[tuple[str, Selector]]
    weighting: Weighting


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A rollout and everything known about it before the update."""

    rollout: Rollout
    images_BYXC: npt.NDArray[np.uint8]
    reward: RewardOutput
    rewards_B: Tensor
    advantages_B: Tensor
    signals: TokenSignals
    selection: Selection
    ref_logprobs_BT: Tensor


def build_learner(config: RunConfig, run: Run | None = None) -> Learner:
    policy = checkpoints.start_policy(config, run.path.parent if run else None)
    assert isinstance(policy, nn.Module)
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        policy.parameters(),
        lr=config.optimizer.learning_rate,
        betas=config.optimizer.betas,
        weight_decay=config.optimizer.weight_decay,
    )
    return Learner(
        config=config,
        policy=policy,
        reference=reference,
        optimizer=optimizer,
        reward=WeightedSum(config.rewards),
        selectors=build_selectors(config.selection),
        weighting=build_weighting(config.weighting),
    )


# ---------------------------------------------------------------- one step


def train_step(learner: Learner, step: int) -> Metrics:
    """Sample a batch, learn from it, and say what happened. Everything random is addressed by `step`."""
    clock = Stopwatch()
    with clock.phase("step"):
        prompts = draw_prompts(learner.config, step)
        seen = observe(learner, prompts, f"rollout/{step}", learner.config.seed, clock)
        with clock.phase("update"):
            learned = update(learner, seen, step)
    tokens = seen.rollout.tokens_BT.numel()
    return {
        "step": step,
        **describe(seen),
        **learned,
        **clock.seconds,
        "throughput/tokens_per_s": tokens / clock.seconds["time/step_s"],
        "memory/peak_bytes": peak_memory_bytes(),
    }


def draw_prompts(config: RunConfig, step: int) -> list[Prompt]:
    """Distinct prompts, the tasks in turn."""
    tasks: dict[str, list[Prompt]] = {}
    for prompt in PROMPT_SETS.load(config.data.prompts)():
        tasks.setdefault(prompt.tag, []).append(prompt)
    count = config.sampling.prompts_per_step
    first = (step - 1) * count  # so that fewer prompts than tasks still visit every task
    turns = [list(tasks)[(first + i) % len(tasks)] for i in range(count)]
    rng = streams.generator(config.seed, "prompts", step)
    order = {tag: iter(rng.permutation(len(tasks[tag]))) for tag in tasks if tag in turns}
    return [tasks[tag][next(order[tag])] for tag in turns]


def observe(learner: Learner, prompts: Sequence[Prompt], stream: str, seed: int, clock: Stopwatch) -> Observation:
    """Sample G images a prompt, judge them, and decide which tokens matter."""
    config, policy = learner.config, learner.policy
    group, tokens = config.sampling.group_size, policy.grid[0] * policy.grid[1]
    device = config.policy.device

    def noise(name: str) -> Tensor:
        rows = [streams.uniforms(seed, name, p.id, g, tokens) for p in prompts for g in range(group)]
        return torch.from_numpy(np.stack(rows)).to(device)

    with clock.phase("rollout"):
        samples = sample_in_batches(
            policy,
            [prompt.text for prompt in prompts for _ in range(group)],
            noise(stream),
            batch_rows=config.sampling.batch_rows,
            guidance_scale=config.sampling.guidance_scale,
            temperature=config.sampling.temperature,
            top_k=config.sampling.top_k,
            top_p=config.sampling.top_p,
            entropy_source=config.selection.entropy_source,
        )
        rollout = Rollout(
            prompts=tuple(prompts),
            group_size=group,
            grid=policy.grid,
            tokens_BT=samples.tokens_BT,
            logprobs_BT=samples.logprobs_BT,
            entropy_BT=samples.entropy_BT,
        )
    with clock.phase("reward"):
        images_BYXC = policy.decode(rollout.tokens_BT)
        reward = learner.reward(images_BYXC, rollout.prompts_B)
        rewards_B = torch.tensor(reward.values_B, dtype=torch.float32, device=device)
    with clock.phase("reference"), torch.no_grad():
        ref_logprobs_BT = torch.cat(
            [
                learner.reference.logprobs(rollout.texts_B[rows], rollout.tokens_BT[rows])
                for rows in _slices(len(rewards_B), config.optimizer.micro_batch_rows)
            ]
        )
    with clock.phase("selection"), torch.no_grad():
        embeddings_BTD = policy.embed(rollout.tokens_BT, config.selection.similarity_embedding)
        signals = TokenSignals(
            grid=policy.grid,
            entropy_BT=rollout.entropy_BT,
            similarity_BT=group_similarity(embeddings_BTD, group),
            logprobs_BT=rollout.logprobs_BT,
            noise_BT=noise(f"selection/{stream}"),
        )
        selection = select(
            learner.selectors, signals, overlap=config.selection.overlap, complement=config.selection.complement
        )
    return Observation(
        rollout=rollout,
        images_BYXC=images_BYXC,
        reward=reward,
        rewards_B=rewards_B,
        advantages_B=group_advantages(rewards_B, group, config.advantages.std_epsilon),
        signals=signals,
        selection=selection,
        ref_logprobs_BT=ref_logprobs_BT,
    )


def update(learner: Learner, seen: Observation, step: int) -> Metrics:
    """Every optimiser step that this rollout pays for; one, unless epochs or minibatches say more."""
    config = learner.config.optimizer
    selected_BT = seen.selection.selected_BT
    if learner.config.advantages.zero_variance == "drop":
        dead_P = zero_variance_groups(seen.rewards_B, seen.rollout.group_size)
        selected_BT = selected_BT & ~dead_P.repeat_interleave(seen.rollout.group_size)[:, None]
    num_updates = config.epochs * config.minibatches
    rate = config.learning_rate * rate_scale(config, step, learner.config.num_steps)
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    totals: dict[str, list[float]] = defaultdict(list)
    for epoch in range(config.epochs):
        for rows_B in minibatches(learner.config, len(seen.rewards_B), step, epoch):
            if not selected_BT[rows_B].any():  # every group of this minibatch was dropped
                continue
            policy_denominator, kl_denominator = denominators(
                selected_BT[rows_B], learner.config.loss.kl_tokens, learner.config.loss.normalizer
            )
            batch = Batch(
                old_logprobs_BT=seen.rollout.logprobs_BT[rows_B] if num_updates > 1 else None,
                ref_logprobs_BT=seen.ref_logprobs_BT[rows_B],
                advantages_B=seen.advantages_B[rows_B],
                selected_BT=selected_BT[rows_B],
                policy_denominator=policy_denominator,
                kl_denominator=kl_denominator,
            )
            texts = [seen.rollout.texts_B[row] for row in rows_B.tolist()]
            for name, value in optimizer_step(learner, texts, seen.rollout.tokens_BT[rows_B], batch, step).items():
                totals[name].append(value)
    means = {name: sum(values) / len(values) for name, values in totals.items()}
    return {"optimizer/learning_rate": rate, "optimizer/updates": float(len(totals["loss/total"])), **means}


def optimizer_step(learner: Learner, texts_B: list[str], tokens_BT: Tensor, batch: Batch, step: int) -> Metrics:
    """One gradient, gathered over micro-batches, clipped and applied."""
    config = learner.config
    sums: dict[str, float] = defaultdict(float)
    weights_on_selected, gradient_abs = [], torch.zeros(2, dtype=torch.float64)
    learner.optimizer.zero_grad(set_to_none=True)
    for rows in _slices(len(texts_B), config.optimizer.micro_batch_rows):
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


def _slices(rows: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def as_module(policy: Policy) -> nn.Module:
    if not isinstance(policy, nn.Module):
        raise TrainingError("a policy must be a torch module", hint="derive it from torch.nn.Module")
    return policy

"""Advantages, weights, losses and gradients written out token by token in Python floats (float64).

From the description of the released algorithm and from GRPO's formula; uses none of the package's code.
`logprobs[image][token]`; a mask holds truth values in the same shape; `t` counts from 1 as in the papers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Rows = Sequence[Sequence[float]]


def advantages(rewards: Sequence[float], group_size: int, epsilon: float) -> list[float]:
    result = []
    for start in range(0, len(rewards), group_size):
        group = rewards[start : start + group_size]
        mean = sum(group) / group_size
        std = math.sqrt(sum((reward - mean) ** 2 for reward in group) / (group_size - 1))
        result += [(reward - mean) / (std + epsilon) for reward in group]
    return result


def clipped(value: float, bound: float) -> float:
    return max(-bound, min(bound, value))


def confidence_weights(
    logprobs: Sequence[float],
    reference: Sequence[float],
    mask: Sequence[float],
    *,
    form: str,
    bound: float = 0.5,
    only_selected: bool = False,
) -> list[float]:
    """One image's dynamic weights: at each t the mean over j <= t, every sum made anew."""
    term = math.exp if form == "exp" else float
    weights = []
    for t in range(1, len(logprobs) + 1):
        support = [j for j in range(t) if mask[j] or not only_selected]
        values = [term(clipped(logprobs[j] - reference[j], bound)) for j in support]
        weights.append(sum(values) / len(values) if values else term(0.0))
    return weights


def running_means(logprobs: Sequence[float], reference: Sequence[float], bound: float = 0.5) -> list[float]:
    """The exp weights over all positions with one running sum: the loop a benchmark can compare with fairly."""
    means, total = [], 0.0
    for t, (policy, ref) in enumerate(zip(logprobs, reference, strict=True), start=1):
        total += math.exp(clipped(policy - ref, bound))
        means.append(total / t)
    return means


def released_loss(logprobs: Tensor, reference: Tensor, rewards_advantages: Tensor, mask: Tensor, beta: float) -> Tensor:
    """The released objective, one statement a quantity, gradient left to autograd; nothing is detached in the weight.

    Token by token on scalars: no cumulative sum, no broadcasting.
    """
    total = torch.zeros((), dtype=logprobs.dtype)
    selected = 0
    for image in range(logprobs.shape[0]):
        running = torch.zeros((), dtype=logprobs.dtype)
        for position in range(logprobs.shape[1]):
            policy, ref = logprobs[image, position], reference[image, position]
            running = running + torch.exp(torch.clamp(policy - ref, -0.5, 0.5))
            if not mask[image, position]:
                continue
            weight = running / (position + 1)
            ratio = torch.exp(policy - policy.detach())
            divergence = torch.exp(ref - policy) - (ref - policy) - 1
            total = total - (ratio * rewards_advantages[image] * weight - beta * divergence)
            selected += 1
    return total / selected


def released_gradient(
    logprobs: Rows, reference: Rows, rewards_advantages: Sequence[float], mask: Rows, beta: float
) -> list[list[float]]:
    """Closed form of the released gradient with respect to each log-prob.

    -(A/Z) [ m_j w_j + c_j exp(d_j) sum_{t>=j} m_t/t ]  +  (beta/Z) m_j (1 - exp(-d_j)),  c_j = |d_j| <= 0.5
    """
    selected = sum(bool(value) for row in mask for value in row)
    gradient = []
    for policy, ref, advantage, chosen in zip(logprobs, reference, rewards_advantages, mask, strict=True):
        weights = confidence_weights(policy, ref, chosen, form="exp")
        row = []
        for j in range(len(policy)):
            d = policy[j] - ref[j]
            through_weights = sum(1 / (t + 1) for t in range(j, len(policy)) if chosen[t])
            boost = math.exp(d) * through_weights if abs(d) <= 0.5 else 0.0
            own = weights[j] if chosen[j] else 0.0
            leash = beta * (1 - math.exp(-d)) if chosen[j] else 0.0
            row.append((-advantage * (own + boost) + leash) / selected)
        gradient.append(row)
    return gradient


def printed_loss(logprobs: Tensor, reference: Tensor, rewards_advantages: Tensor, mask: Tensor, beta: float) -> Tensor:
    """The printed objective: a mean over images of the mean over each one's selected tokens, the linear weight.

    Token by token on scalars, gradient left to autograd; an image without a selected token adds nothing.
    """
    images = []
    for image in range(logprobs.shape[0]):
        running = torch.zeros((), dtype=logprobs.dtype)
        terms = []
        for position in range(logprobs.shape[1]):
            policy, ref = logprobs[image, position], reference[image, position]
            running = running + torch.clamp(policy - ref, -0.5, 0.5)
            if mask[image, position]:
                ratio = torch.exp(policy - policy.detach())
                divergence = torch.exp(ref - policy) - (ref - policy) - 1
                terms.append(ratio * rewards_advantages[image] * running / (position + 1) - beta * divergence)
        images.append(torch.stack(terms).mean() if terms else torch.zeros((), dtype=logprobs.dtype))
    return -torch.stack(images).mean()


def grpo_loss(
    logprobs: Rows,
    old: Rows,
    reference: Rows,
    rewards_advantages: Sequence[float],
    *,
    beta: float,
    epsilon: float,
) -> float:
    """GRPO: mean over images of the mean over tokens of the clipped surrogate minus beta times the divergence."""
    image_means = []
    for policy, sampled, ref, advantage in zip(logprobs, old, reference, rewards_advantages, strict=True):
        terms = []
        for lp, lo, lr in zip(policy, sampled, ref, strict=True):
            ratio = math.exp(lp - lo)
            bounded = max(1 - epsilon, min(1 + epsilon, ratio))
            divergence = math.exp(lr - lp) - (lr - lp) - 1
            terms.append(min(ratio * advantage, bounded * advantage) - beta * divergence)
        image_means.append(sum(terms) / len(terms))
    return -sum(image_means) / len(image_means)

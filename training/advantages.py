"""Group-relative advantages: how much better an image is than the others of its prompt.

Source: GRPO (DeepSeekMath, arXiv 2402.03300), with the standard deviation and epsilon of the released GCPO code.
Dimensions: P prompts, G images a prompt, B = P*G rows (a prompt's rows adjacent).
"""

from __future__ import annotations

from torch import Tensor

from gcpo_bench.errors import TrainingError

from .signals import at_least_float32


def group_advantages(rewards_B: Tensor, group_size: int, std_epsilon: float) -> Tensor:
    """(R - mean) / (std + std_epsilon) within each group, std with Bessel's correction.

    A group whose rewards are all equal gets exactly 0: the mean of equal floats may differ from them by a rounding
    error, and dividing that error by a small epsilon would invent a ranking.

    Args:
        rewards_B: any real type; a prompt's rewards adjacent.
    Returns:
        advantages_B: float32 or better.
    Raises:
        ValueError: group_size below 2, or a number of rewards it does not divide.
        TrainingError: a reward that is not finite.
    """
    rewards_PG = _groups(rewards_B, group_size)
    if not rewards_PG.isfinite().all():
        row = int((~rewards_B.isfinite()).nonzero()[0])
        raise TrainingError(
            f"the reward of image {row} is {float(rewards_B[row])}", hint="a reward must give a finite number per image"
        )
    centred_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    scaled_PG = centred_PG / (rewards_PG.std(dim=1, keepdim=True) + std_epsilon)
    equal_P1 = zero_variance_groups(rewards_B, group_size)[:, None]
    return scaled_PG.masked_fill(equal_P1, 0.0).reshape(-1)


def zero_variance_groups(rewards_B: Tensor, group_size: int) -> Tensor:
    """bool P: True where all rewards of a group are equal, so that the group has nothing to learn from."""
    rewards_PG = _groups(rewards_B, group_size)
    return rewards_PG.amax(dim=1) == rewards_PG.amin(dim=1)


def _groups(rewards_B: Tensor, group_size: int) -> Tensor:
    if group_size < 2:
        raise ValueError(f"an advantage compares at least 2 images, got {group_size}; raise sampling.group_size")
    if rewards_B.ndim != 1 or len(rewards_B) % group_size:
        raise ValueError(f"rewards_B is {tuple(rewards_B.shape)}, expected one number a row and groups of {group_size}")
    return at_least_float32(rewards_B).reshape(-1, group_size)

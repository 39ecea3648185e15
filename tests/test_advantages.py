"""Group-relative advantages."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gcpo_bench.errors import TrainingError
from gcpo_bench.training.advantages import group_advantages, zero_variance_groups

from .reference import objective


def test_half_right_half_wrong_by_hand() -> None:
    # mean 0.5, unbiased std = sqrt(4 * 0.25 / 3) = sqrt(1/3)
    expected = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    advantages_B = group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64), 4, 1e-4)
    assert advantages_B.tolist() == pytest.approx([expected, -expected, -expected, expected], abs=1e-12)


@given(
    rewards=st.lists(st.floats(-10, 10), min_size=12, max_size=12),
    group_size=st.sampled_from([2, 3, 4, 6, 12]),
)
@settings(max_examples=60, deadline=None)
def test_advantages_equal_the_written_out_formula(rewards: list[float], group_size: int) -> None:
    rewards_B = torch.tensor(rewards, dtype=torch.float64)
    expected = objective.advantages(rewards, group_size, 1e-4)
    assert group_advantages(rewards_B, group_size, 1e-4).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("group_size", [2, 3, 5, 7])
def test_equal_rewards_give_exactly_zero_in_every_type(dtype: torch.dtype, group_size: int) -> None:
    for value in (0.0, 0.1, 1 / 3, 0.7, 1.0, 123.456):
        rewards_B = torch.full((2 * group_size,), value).to(dtype)
        assert (group_advantages(rewards_B, group_size, 1e-12) == 0).all()


def test_equal_rewards_in_one_group_leave_the_other_alone() -> None:
    advantages_B = group_advantages(torch.tensor([0.1, 0.1, 0.1, 0.0, 0.0, 1.0]), 3, 1e-4)
    assert advantages_B[:3].tolist() == [0.0, 0.0, 0.0]
    assert advantages_B[5] > 0 > advantages_B[3]


def test_advantages_are_float32_or_better() -> None:
    assert group_advantages(torch.tensor([0, 1]), 2, 1e-4).dtype == torch.float32
    assert group_advantages(torch.tensor([0.0, 1.0], dtype=torch.bfloat16), 2, 1e-4).dtype == torch.float32
    assert group_advantages(torch.tensor([0.0, 1.0], dtype=torch.float64), 2, 1e-4).dtype == torch.float64


def test_zero_variance_groups_are_marked() -> None:
    rewards_B = torch.tensor([0.1, 0.1, 0.1, 0.0, 1.0, 0.0])
    assert zero_variance_groups(rewards_B, 3).tolist() == [True, False]


def test_a_group_of_one_is_refused_with_the_setting_to_raise() -> None:
    with pytest.raises(ValueError, match=r"at least 2 images, got 1; raise sampling\.group_size"):
        group_advantages(torch.tensor([1.0, 0.0]), 1, 1e-4)


def test_rewards_that_do_not_fill_their_groups_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards_B is \(5,\), expected one number a row and groups of 2"):
        zero_variance_groups(torch.zeros(5), 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused_by_image(bad: float) -> None:
    with pytest.raises(TrainingError, match=r"the reward of image 2 is") as caught:
        group_advantages(torch.tensor([1.0, 0.0, bad, 1.0]), 2, 1e-4)
    assert "finite" in caught.value.hint

"""Entropy gradient and group similarity."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gcpo_bench.training.observation import distinct
from gcpo_bench.training.signals import (
    at_least_float32,
    entropy_gradient,
    gradient_magnitude,
    group_similarity,
    group_similarity_of,
    smooth,
)

from .reference import selection
from .reference.inputs import make_embeddings

GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))


def random_map(rows: int, grid: tuple[int, int], seed: int) -> Tensor:
    return torch.rand(rows, *grid, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_smoothing_by_hand() -> None:
    map_BHW = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    # (0,0): itself; (0,1): (2+1)/2; (1,0): (3 + up 1 + up-right 2)/3; (1,1): (4 + up-left 1 + up 2 + left 3)/4
    assert smooth(map_BHW).tolist() == [[[1.0, 1.5], [2.0, 2.5]]]


def test_gradient_by_hand() -> None:
    # one-sided at the ends (1 - 0, 9 - 4), central inside ((4 - 0)/2, (9 - 1)/2)
    assert gradient_magnitude(torch.tensor([[[0.0, 1.0, 4.0, 9.0]]])).tolist() == [[[1.0, 2.0, 4.0, 5.0]]]
    # a plane 3x + 4y has length 5 everywhere
    plane_HW = 4 * torch.arange(3.0)[:, None] + 3 * torch.arange(5.0)[None, :]
    assert gradient_magnitude(plane_HW[None]).tolist() == [[[5.0] * 5] * 3]


@given(grid=GRIDS, seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_smoothing_equals_the_written_out_loop(grid: tuple[int, int], seed: int) -> None:
    map_BHW = random_map(2, grid, seed)
    for row in range(2):
        expected = selection.smoothed(map_BHW[row].flatten().tolist(), *grid)
        assert smooth(map_BHW)[row].flatten().tolist() == pytest.approx(expected, abs=1e-14)


@given(grid=GRIDS, seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_entropy_gradient_equals_the_written_out_loop(grid: tuple[int, int], seed: int) -> None:
    map_BHW = random_map(2, grid, seed)
    gradient_BT = entropy_gradient(map_BHW.flatten(1), grid)
    for row in range(2):
        means = selection.smoothed(map_BHW[row].flatten().tolist(), *grid)
        assert gradient_BT[row].tolist() == pytest.approx(selection.gradient_length(means, *grid), abs=1e-14)


def test_a_single_token_has_no_gradient() -> None:
    assert entropy_gradient(torch.tensor([[2.0]]), (1, 1)).tolist() == [[0.0]]


def test_constant_entropy_has_no_gradient() -> None:
    assert (entropy_gradient(torch.full((2, 35), 0.1), (5, 7)).abs() < 1e-7).all()


def test_a_grid_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"entropy_BT is \(2, 12\), the grid 3x5 has 15 tokens"):
        entropy_gradient(torch.zeros(2, 12), (3, 5))


def test_similarity_by_hand() -> None:
    # position 0: the same direction; position 1: opposite; position 2: at right angles. Lengths do not matter
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    second = torch.tensor([[5.0, 0.0], [-2.0, 0.0], [0.0, 3.0]])
    assert group_similarity(torch.stack([first, second]), 2).tolist() == [[1.0, -1.0, 0.0]] * 2


@pytest.mark.parametrize("group_size", [2, 3, 4, 6])
def test_similarity_equals_explicit_pairs(group_size: int) -> None:
    embeddings_BTD = make_embeddings(rows=12, num_tokens=10, seed=group_size)
    similarity_BT = group_similarity(embeddings_BTD, group_size)
    for start in range(0, 12, group_size):
        expected = selection.pair_similarity(embeddings_BTD[start : start + group_size].tolist())
        for row in range(start, start + group_size):
            assert similarity_BT[row].tolist() == pytest.approx(expected, abs=1e-13)


@given(seed=st.integers(0, 999), group_size=st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_similarity_stays_in_its_bounds(seed: int, group_size: int) -> None:
    similarity_BT = group_similarity(make_embeddings(group_size, 8, seed, width=2).float(), group_size)
    assert (similarity_BT >= -1 / (group_size - 1) - 1e-6).all()
    assert (similarity_BT <= 1 + 1e-6).all()


def test_an_all_zero_embedding_is_similar_to_none() -> None:
    embeddings_BTD = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]]])
    # of six ordered pairs only the two between the first images count 1: 2/6
    assert group_similarity(embeddings_BTD, 3).flatten().tolist() == pytest.approx([1 / 3] * 3, abs=1e-7)


def test_similarity_needs_whole_groups_of_two() -> None:
    with pytest.raises(ValueError, match=r"at least 2 images, got 1; raise sampling\.group_size"):
        group_similarity(torch.zeros(2, 3, 4), 1)
    with pytest.raises(ValueError, match="there are 5 rows, not a multiple of group_size 2"):
        group_similarity(torch.zeros(5, 3, 4), 2)


@pytest.mark.parametrize(
    ("given_dtype", "kept_dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_signals_are_float32_or_better(given_dtype: torch.dtype, kept_dtype: torch.dtype) -> None:
    assert at_least_float32(torch.zeros(1, dtype=given_dtype)).dtype == kept_dtype
    assert entropy_gradient(torch.rand(1, 4).to(given_dtype), (2, 2)).dtype == kept_dtype
    assert group_similarity(torch.rand(2, 4, 3).to(given_dtype), 2).dtype == kept_dtype


@pytest.mark.parametrize("group_size", [2, 3, 8])
def test_similarity_of_tokens_is_that_of_their_embeddings(group_size: int) -> None:
    generator = torch.Generator().manual_seed(group_size)
    table_VD = torch.randn(50, 6, generator=generator, dtype=torch.double)
    tokens_BT = torch.randint(50, (2 * group_size, 9), generator=generator)
    codes_U, index_BT = distinct(tokens_BT, 50)
    assert torch.equal(codes_U, torch.unique(tokens_BT))
    assert torch.equal(codes_U[index_BT], tokens_BT)
    found = group_similarity_of(table_VD[codes_U], index_BT, group_size)
    torch.testing.assert_close(found, group_similarity(table_VD[tokens_BT], group_size), atol=1e-14, rtol=0)

"""What selectors look at: where entropy changes on the image grid, where the images of a group differ.

Pure functions without gradient, any device; float32 or better inside, because bfloat16 ties and reorders the ranks.
Dimensions: P prompts, G images a prompt, B = P*G rows, H x W grid, T = H*W tokens in raster order, D embedding width.

Source: GCPO (arXiv 2509.22485) and its released code. Departures from the paper, all as released:
1. At the border of the grid, smoothing divides by the neighbours that exist; outside is not counted as zero.
2. The gradient is one-sided at the border.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The same numbers in float32, or in float64 where they already are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def smooth(map_BHW: Tensor) -> Tensor:
    """Mean of a token and its four neighbours that were sampled before it: up-left, up, up-right and left."""
    return _sum_of_seen(map_BHW) / _sum_of_seen(torch.ones_like(map_BHW[:1]))


def _sum_of_seen(map_BHW: Tensor) -> Tensor:
    height, width = map_BHW.shape[1:]
    # a column of zeros left and right, a row of zeros above: a neighbour outside the grid adds nothing
    padded = F.pad(map_BHW, (1, 1, 1, 0))
    above = padded[:, :height]
    up_left, up, up_right = above[..., :width], above[..., 1 : width + 1], above[..., 2:]
    left = padded[:, 1:, :width]
    return map_BHW + up_left + up + up_right + left


def gradient_magnitude(map_BHW: Tensor) -> Tensor:
    """Length of the gradient on the grid: central differences inside, one-sided at the border.

    Along a side of length 1 nothing changes, so that component is 0.
    """
    return (_slope(map_BHW, dim=1).square() + _slope(map_BHW, dim=2).square()).sqrt()


def _slope(map_BHW: Tensor, dim: int) -> Tensor:
    if map_BHW.shape[dim] == 1:
        return torch.zeros_like(map_BHW)
    return torch.gradient(map_BHW, dim=dim, edge_order=1)[0]


def entropy_gradient(entropy_BT: Tensor, grid: tuple[int, int]) -> Tensor:
    """How steeply the smoothed entropy changes at each token: high values mark structure.

    Args:
        entropy_BT: nats, any float type.
        grid: (H, W) with H*W = T.
    Returns:
        gradient_BT: nats a token, float32 or better.
    Raises:
        ValueError: a grid that has not T tokens.
    """
    rows, tokens = entropy_BT.shape
    height, width = grid
    if height * width != tokens:
        raise ValueError(f"entropy_BT is {(rows, tokens)}, the grid {height}x{width} has {height * width} tokens")
    map_BHW = at_least_float32(entropy_BT).reshape(rows, height, width)
    return gradient_magnitude(smooth(map_BHW)).reshape(rows, tokens)


def group_similarity(embeddings_BTD: Tensor, group_size: int) -> Tensor:
    """Mean cosine similarity over the pairs of different images in a group, per token position.

    Low values mark positions where the images of a group differ. An all-zero embedding has similarity 0 to any other.

    Args:
        embeddings_BTD: token embeddings, any float type; a prompt's rows adjacent.
    Returns:
        similarity_BT: float32 or better, in [-1/(G-1), 1] up to rounding; the same for each row of a group.
    Raises:
        ValueError: group_size below 2, or a number of rows it does not divide.
    """
    rows, tokens, width = embeddings_BTD.shape
    every = torch.arange(rows * tokens, device=embeddings_BTD.device).view(rows, tokens)
    return group_similarity_of(embeddings_BTD.reshape(-1, width), every, group_size)


def group_similarity_of(vectors_UD: Tensor, index_BT: Tensor, group_size: int) -> Tensor:
    """`group_similarity` of the embeddings `vectors_UD[index_BT]`, which are never put together.

    Few different tokens make up many images: their vectors are normalised once, and summed where they stand.

    Args:
        vectors_UD: any float type. index_BT: int64, rows of it.
    """
    rows, tokens = index_BT.shape
    if group_size < 2:
        raise ValueError(f"similarity compares at least 2 images, got {group_size}; raise sampling.group_size")
    if rows % group_size:
        raise ValueError(f"there are {rows} rows, not a multiple of group_size {group_size}")
    unit_UD = F.normalize(at_least_float32(vectors_UD), dim=-1)
    group_NG = index_BT.view(-1, group_size, tokens).transpose(1, 2).reshape(-1, group_size)
    # sum over pairs j != k of u_j.u_k = |sum u|^2 - sum |u|^2: O(G) instead of O(G^2). The last sum is G but for
    # rounding and all-zero embeddings
    own_N = torch.linalg.vector_norm(unit_UD, dim=-1).square()[group_NG].sum(dim=1)
    pairs_N = F.embedding_bag(group_NG, unit_UD, mode="sum").square().sum(dim=-1) - own_N
    similarity_PT: Tensor = (pairs_N / (group_size * (group_size - 1))).view(-1, tokens)
    return similarity_PT.repeat_interleave(group_size, dim=0)

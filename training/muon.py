"""Muon: momentum whose matrix is made nearly orthogonal before each step. For the matrices of pretraining only.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. `torch.optim.Muon` does the same but iterates in
bfloat16, which on CPUs took half of each pretraining step; this one stays in the parameters' dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that pulls singular values towards 1, steepest at 0."""
ITERATIONS = 5


def orthogonalize(matrix: Tensor) -> Tensor:
    """About U V^T of the matrix's SVD: singular values land near 1, between 0.7 and 1.2 for all but tiny ones."""
    a, b, c = COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)  # singular values at most 1
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x if wide else x.T
    return result


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled by sqrt(max(1, rows / columns))."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                direction = orthogonalize(parameter.grad.lerp(buffer, group["momentum"]))
                rows, columns = parameter.shape
                parameter.add_(direction, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

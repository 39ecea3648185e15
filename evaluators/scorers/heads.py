"""The small head that LAION's aesthetic predictor and ImageReward share: 1024-128-64-16-1, without activations.

Trained with dropout between the layers, which scoring leaves out; the numbers in the names count the dropouts too.
Sources: christophschuhmann/improved-aesthetic-predictor `simple_inference.py`, zai-org/ImageReward `ImageReward.py`.
"""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (1024, 128, 64, 16, 1)
DROPOUT_AFTER = 3
"""The first three layers are followed by one."""


class Head(nn.Module):
    def __init__(self, inputs: int = 768) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(zip((inputs, *WIDTHS), WIDTHS, strict=False)):
            layers.append(nn.Linear(before, after))
            if index < DROPOUT_AFTER:
                layers.append(nn.Identity())
        self.layers = nn.Sequential(*layers)

    def forward(self, features_BD: Tensor) -> Tensor:
        """(B,)"""
        values_B: Tensor = self.layers(features_BD).squeeze(-1)
        return values_B

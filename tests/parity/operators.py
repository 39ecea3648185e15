"""The two operators that torchvision's CUDA build does not register on a CPU. Import this before anything else."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

LIBRARY: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
"""They last as long as this object."""
for _name in ("nms", "qnms"):
    with contextlib.suppress(RuntimeError):
        LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

"""Factors of the policy term, one a token: none, the dynamic advantage weight, and its control.

A weighting is a frozen dataclass, called as `weighting(logprobs_BT, ref_logprobs_BT, selected_BT) -> float BT`, in
float32 or better. Positions t are counted from 1 in raster order; d = logprobs - ref_logprobs.

Source: GCPO (arXiv 2509.22485), section on dynamic advantage weights, and its released code. Departures from the paper:
1. form "exp", as released, is the running mean of exp(clip(d)); "linear", as printed, of clip(d). The linear weight
   is 0 while policy and reference agree, and turns the advantage round where it is negative.
2. detached=False, as released, lets gradient through the weight. Position j then also gets the gradient
   (advantage / denominator) * [|d_j| <= clip] * exp(d_j) * sum_{t>=j} selected_t / t, selected or not.
3. support "selected" is ours: the running mean over the selected positions only.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gcpo_bench.config import WeightingConfig
from gcpo_bench.registry import WEIGHTINGS

from .signals import at_least_float32
from .types import Weighting


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """1 everywhere."""

    detached: ClassVar[bool] = True

    def __call__(self, logprobs_BT: Tensor, ref_logprobs_BT: Tensor, selected_BT: Tensor) -> Tensor:
        return torch.ones_like(at_least_float32(logprobs_BT))


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidence:
    """Dynamic advantage weight: running mean of how far the policy has moved from the reference.

    In the exp form a weight lies in [exp(-clip), exp(clip)]. With support "selected", positions before the first
    selected one have nothing to average and get what d = 0 gives: 1 for exp, 0 for linear. The loss never uses them.
    """

    form: Literal["exp", "linear"] = "exp"
    clip: float = 0.5
    detached: bool = True
    support: Literal["all", "selected"] = "all"

    def __call__(self, logprobs_BT: Tensor, ref_logprobs_BT: Tensor, selected_BT: Tensor) -> Tensor:
        logprobs_BT = at_least_float32(logprobs_BT.detach() if self.detached else logprobs_BT)
        clipped_BT = (logprobs_BT - ref_logprobs_BT.detach()).clamp(-self.clip, self.clip)
        term_BT = clipped_BT.exp() if self.form == "exp" else clipped_BT
        if self.support == "all":
            return term_BT.cumsum(dim=1) / _positions_T(term_BT)
        seen_BT = selected_BT.cumsum(dim=1)
        mean_BT = (term_BT * selected_BT).cumsum(dim=1) / seen_BT.clamp(min=1)
        return mean_BT.masked_fill(seen_BT == 0, 1.0 if self.form == "exp" else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Control without policy or reference: w_j = 1 + sum_{t>=j} selected_t / t, never with gradient.

    At a selected position this is the factor by which the released weight multiplies its gradient while policy and
    reference agree.
    """

    detached: ClassVar[bool] = True

    def __call__(self, logprobs_BT: Tensor, ref_logprobs_BT: Tensor, selected_BT: Tensor) -> Tensor:
        share_BT = selected_BT / _positions_T(at_least_float32(logprobs_BT))
        return 1 + share_BT.flip(1).cumsum(dim=1).flip(1)


def build_weighting(config: WeightingConfig) -> Weighting:
    """The configured weighting, made with those fields of the configuration that it has itself.

    Raises:
        ConfigError: an unknown name.
    """
    make = WEIGHTINGS.load(config.name)
    settings = config.model_dump(exclude={"name"})
    taken = {key: settings[key] for key in inspect.signature(make).parameters if key in settings}
    weighting: Weighting = WEIGHTINGS.make(config.name, **taken)
    return weighting


def _positions_T(like_BT: Tensor) -> Tensor:
    """1, 2, ..., T in the dtype and on the device of `like_BT`."""
    return torch.arange(1, like_BT.shape[1] + 1, dtype=like_BT.dtype, device=like_BT.device)

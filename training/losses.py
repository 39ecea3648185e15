"""THE LOSS: clipped surrogate of the selected tokens, weighted, and the divergence from the reference.

    r_t    = exp(logprob_t - old_logprob_t)
    policy = -sum_selected  w_t min(r_t A, clip(r_t, 1 - eps, 1 + eps) A)  /  policy_denominator
    kl     =  sum_covered   exp(x_t) - 1 - x_t,  x_t = ref_logprob_t - logprob_t  /  kl_denominator
    total  =  policy + beta kl

GRPO is the case where every token is selected and w = 1; nothing here asks which method it runs.
Dimensions: B rows, T tokens in raster order.

Source: GRPO (DeepSeekMath, arXiv 2402.03300) and GCPO (arXiv 2509.22485) as released. Departures from the papers:
1. Sums run over all rows and are divided once, so each token counts the same. As printed, an image's terms are first
   divided by its own number of selected tokens, and then by the number of images: `normalizer` "per-image". The two
   agree where every image has as many selected tokens, and not where sets overlap or a selector has no ratio.
2. w multiplies the policy term only, and the divergence covers the selected tokens only, as released; `kl_tokens`
   "all" covers every token.
3. The released image trainer clips no ratio; with one update a rollout r = 1 and clipping is inert.
4. The minimum is taken before w. For w >= 0 the order does not matter; only the linear confidence weight goes below.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gcpo_bench.config import LossConfig
from gcpo_bench.errors import TrainingError

from .signals import at_least_float32
from .types import Batch, LossOutput, Weighting

Tokens = Literal["selected", "all"]
Normalizer = Literal["selected", "all", "per-image"]


def denominators(selected_BT: Tensor, kl_tokens: Tokens, normalizer: Normalizer) -> tuple[float, float]:
    """What the sums of the policy term and of the divergence are divided by, for the rows of one update.

    With normalizer "selected" each term is a mean over the tokens it covers; with "all" both are divided by the
    number of all tokens, so that fewer selected tokens also mean a smaller step. With "per-image" the sums are of
    means over each image's tokens (`image_counts`), and their number is the number of images.

    Raises:
        TrainingError: nothing is selected, so there is no policy term.
    """
    num_selected, num_tokens = int(selected_BT.sum()), selected_BT.numel()
    if num_selected == 0:
        raise TrainingError(
            f"none of the update's {num_tokens} tokens is selected",
            hint="change selection.selectors, or set advantages.zero_variance=keep",
        )
    if normalizer == "all":
        return float(num_tokens), float(num_tokens)
    if normalizer == "per-image":
        num_images = len(selected_BT)
        return float(num_images), float(num_images if kl_tokens == "selected" else num_tokens)
    return float(num_selected), float(num_selected if kl_tokens == "selected" else num_tokens)


def image_counts(selected_BT: Tensor, normalizer: Normalizer) -> Tensor | None:
    """int64 (B,): what an image's own terms are divided by first with normalizer "per-image"; else None.

    An image without a selected token has no policy term, and still counts among the images.
    """
    return selected_BT.sum(dim=1).clamp(min=1) if normalizer == "per-image" else None


def policy_loss(logprobs_BT: Tensor, batch: Batch, weighting: Weighting, config: LossConfig) -> LossOutput:
    """The one differentiable call of training.

    Losses and metrics of micro-batches (`batch.rows(...)`) add up to those of the whole batch.

    Args:
        logprobs_BT: of the current policy, any float type, with gradient.
    Returns:
        loss in float32 or better, and three detached scalars: "loss/policy", "loss/kl" (the mean divergence, not
        multiplied by beta) and "loss/total".
    Raises:
        ValueError: log-probs whose shape is not the batch's.
    """
    if logprobs_BT.shape != batch.selected_BT.shape:
        raise ValueError(f"logprobs_BT is {tuple(logprobs_BT.shape)}, selected_BT is {tuple(batch.selected_BT.shape)}")
    logprobs_BT = at_least_float32(logprobs_BT)
    old_logprobs_BT = logprobs_BT.detach() if batch.old_logprobs_BT is None else batch.old_logprobs_BT
    advantages_B1 = batch.advantages_B[:, None]
    weights_BT = weighting(logprobs_BT, batch.ref_logprobs_BT, batch.selected_BT)

    ratio_BT = (logprobs_BT - old_logprobs_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - config.clip_epsilon, 1 + config.clip_epsilon)
    surrogate_BT = torch.minimum(ratio_BT * advantages_B1, clipped_BT * advantages_B1) * weights_BT
    surrogate_BT = surrogate_BT.where(batch.selected_BT, 0.0)

    shift_BT = batch.ref_logprobs_BT.detach() - logprobs_BT
    if config.kl_tokens == "selected":
        # before the exponential: a token that is not covered can then neither overflow nor get gradient
        shift_BT = shift_BT.where(batch.selected_BT, 0.0)
    # expm1 keeps the divergence exact to rounding where policy and reference almost agree
    divergence_BT = shift_BT.expm1() - shift_BT

    if batch.image_counts_B is not None:
        surrogate_BT = surrogate_BT / batch.image_counts_B[:, None]
        if config.kl_tokens == "selected":  # that of all tokens has as many in every image
            divergence_BT = divergence_BT / batch.image_counts_B[:, None]
    policy = -surrogate_BT.sum() / batch.policy_denominator
    kl = divergence_BT.sum() / batch.kl_denominator
    loss = policy + config.beta * kl
    metrics = {"loss/policy": policy.detach(), "loss/kl": kl.detach(), "loss/total": loss.detach()}
    return LossOutput(loss=loss, metrics=metrics, weights_BT=weights_BT.detach())

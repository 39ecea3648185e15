"""GCPO on one page, to be read from top to bottom by those who know GRPO.

    prompts -> G images each -> rewards -> group advantages                     as GRPO
    entropy, embeddings      -> critical tokens: initial, structural, diverse   new: 30 % of the tokens
    policy, reference        -> dynamic advantage weights                       new: one a token
    all of it                -> clipped loss and KL -> step                     as GRPO, on the critical tokens

    python examples/gcpo_on_one_page.py

The world, its policy (0.4 M parameters, images of 8x8 tokens), the prompts and the verifier are the package's. The
method is all here, and equals `gcpo-bench train --method gcpo` (tests/test_example.py). Paper: arXiv 2509.22485, whose
abstract numbers the three kinds of critical tokens (1) to (3). "As released" is what its code decides where the paper
is silent or says something else; docs/method.md lists these places.
Dimensions: P prompts, G images a prompt, B = P*G rows, T = H*W tokens in raster order, D embedding width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcpo_bench import streams
from gcpo_bench.config import PolicyConfig, RunConfig, SamplingConfig
from gcpo_bench.datasets import Prompt
from gcpo_bench.evaluators.scenes import GenEvalReward
from gcpo_bench.training.decoding import sample
from gcpo_bench.training.logprobs import token_logprobs
from gcpo_bench.training.observation import draw_prompts
from gcpo_bench.training.starts import start_policy

SHARE = 0.1  # of the tokens, in each of the three sets
WINDOW = (0.1, 0.9)  # part of the raster that may be structural; as released
WEIGHT_CLIP = 0.5  # nats, as released; the paper names no number
RATIO_CLIP, BETA = 0.2, 0.01
LEARNING_RATE, MAX_GRADIENT_NORM = 6e-4, 1.0


def group_advantages(rewards_PG: Tensor) -> Tensor:
    """GRPO: how much better an image is than the others of its prompt; 0 where all rewards of a group are equal."""
    return (rewards_PG - rewards_PG.mean(dim=1, keepdim=True)) / (rewards_PG.std(dim=1, keepdim=True) + 1e-4)


def entropy_gradient(entropy_BT: Tensor, grid: tuple[int, int]) -> Tensor:
    """Abstract (2): how steeply entropy changes on the image grid. Steep tokens lie where regions of the image meet."""
    map_B1HW = entropy_BT.view(-1, 1, *grid)
    # mean of a token and its up-left, up, up-right and left neighbours; of those that exist, as released
    kernel = torch.tensor([[[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]]])
    sums, counts = (F.conv2d(F.pad(each, (1, 1, 1, 0)), kernel) for each in (map_B1HW, torch.ones_like(map_B1HW)))
    down, right = torch.gradient(sums / counts, dim=(2, 3))  # central differences
    return (down.square() + right.square()).sqrt().flatten(1)


def group_similarity(embeddings_PGTD: Tensor) -> Tensor:
    """Abstract (3): mean cosine over the pairs of a group's images, at each position of the raster."""
    group = embeddings_PGTD.shape[1]
    unit_PGTD = F.normalize(embeddings_PGTD, dim=-1)
    # all pairs without a loop over them: |sum_k u_k|^2 = sum_k |u_k|^2 + sum_{j != k} u_j.u_k
    own_PT = unit_PGTD.norm(dim=-1).square().sum(dim=1)
    pairs_PT: Tensor = unit_PGTD.sum(dim=1).square().sum(dim=-1) - own_PT
    return pairs_PT / (group * (group - 1))


def critical_tokens(entropy_BT: Tensor, embeddings_PGTD: Tensor, grid: tuple[int, int]) -> Tensor:
    """bool BT: three sets of floor(0.1 T) tokens an image, each chosen among those left: disjoint, as released."""
    num_tokens, group = entropy_BT.shape[1], embeddings_PGTD.shape[1]
    count = int(SHARE * num_tokens)
    index_BT = torch.arange(num_tokens, dtype=torch.float32).expand_as(entropy_BT)
    first, length = int(WINDOW[0] * num_tokens), int((WINDOW[1] - WINDOW[0]) * num_tokens)
    outside_BT = (index_BT < first) | (index_BT >= first + length)
    similarity_BT = group_similarity(embeddings_PGTD).repeat_interleave(group, dim=0)
    selected_BT = torch.zeros_like(entropy_BT, dtype=torch.bool)
    for score_BT in (
        index_BT,  # initial, abstract (1): everything after depends on them
        -entropy_gradient(entropy_BT, grid).masked_fill(outside_BT, -torch.inf),  # structural: the steepest
        similarity_BT,  # diverse: where the images of the group are least alike
    ):
        lowest_BK = score_BT.masked_fill(selected_BT, torch.inf).argsort(dim=1, stable=True)[:, :count]
        selected_BT = selected_BT.scatter(1, lowest_BK, True)
    return selected_BT


def weights(logprobs_BT: Tensor, ref_logprobs_BT: Tensor) -> Tensor:
    """Dynamic advantage weight: w_t = mean over j <= t of exp(clip(log pi_j - log pi_ref_j)).

    The exp is as released: without it, as printed, all weights are 0 while policy and reference agree. Detached, unlike
    the released code, in which tokens that are not selected get gradient through the weights of later ones.
    """
    term_BT = (logprobs_BT.detach() - ref_logprobs_BT).clamp(-WEIGHT_CLIP, WEIGHT_CLIP).exp()
    return term_BT.cumsum(dim=1) / torch.arange(1, term_BT.shape[1] + 1)


def loss(
    logprobs_BT: Tensor, old_logprobs_BT: Tensor, ref_logprobs_BT: Tensor, advantages_B: Tensor, selected_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """GRPO's loss on the critical tokens, its policy term weighted; and the KL in it."""
    advantages_B1 = advantages_B[:, None]
    ratio_BT = (logprobs_BT - old_logprobs_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - RATIO_CLIP, 1 + RATIO_CLIP)
    surrogate_BT = torch.minimum(ratio_BT * advantages_B1, clipped_BT * advantages_B1)
    surrogate_BT = surrogate_BT * weights(logprobs_BT, ref_logprobs_BT)
    shift_BT = ref_logprobs_BT - logprobs_BT
    kl_BT = shift_BT.expm1() - shift_BT  # exp(x) - 1 - x
    # both are means over the critical tokens of all images; as released, nothing ties the others to the reference
    policy, kl = ((each_BT * selected_BT).sum() / selected_BT.sum() for each_BT in (surrogate_BT, kl_BT))
    return BETA * kl - policy, kl


def step(
    policy: Any, reference: Any, optimizer: torch.optim.Optimizer, prompts: Sequence[Prompt], uniforms_BT: Tensor
) -> dict[str, float]:
    """One rollout and its update. `uniforms_BT` is the noise that images are drawn with, a prompt's rows adjacent."""
    group = len(uniforms_BT) // len(prompts)
    prompts_B = [prompt for prompt in prompts for _ in range(group)]
    texts_B = [prompt.text for prompt in prompts_B]
    drawn = sample(policy, texts_B, uniforms_BT)
    rewards_B = torch.tensor(GenEvalReward()(policy.decode(drawn.tokens_BT), prompts_B).values_B)
    advantages_B = group_advantages(rewards_B.view(-1, group)).flatten()
    with torch.no_grad():
        ref_logprobs_BT = token_logprobs(reference, texts_B, drawn.tokens_BT)
        embeddings_PGTD = policy.embed(drawn.tokens_BT, "projected").unflatten(0, (-1, group))
        selected_BT = critical_tokens(drawn.entropy_BT, embeddings_PGTD, policy.grid)

    logprobs_BT = token_logprobs(policy, texts_B, drawn.tokens_BT, differentiated_BT=selected_BT)
    old_logprobs_BT = logprobs_BT.detach()  # one update a rollout, as released: the ratio is 1 and nothing clips it
    total, kl = loss(logprobs_BT, old_logprobs_BT, ref_logprobs_BT, advantages_B, selected_BT)
    optimizer.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()
    return {
        "reward/mean": float(rewards_B.mean()),
        "loss/total": float(total.detach()),
        "loss/kl": float(kl.detach()),
        "tokens/selected_fraction": float(selected_BT.float().mean()),
    }


def main(num_steps: int = 20) -> None:
    # what is not the method: start, prompts (one of each task a step), seed
    config = RunConfig(policy=PolicyConfig(name="scenes-8"), sampling=SamplingConfig(prompts_per_step=6))
    policy: Any = start_policy(config)
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    num_tokens = policy.grid[0] * policy.grid[1]
    print("step  reward       KL  tokens trained")
    for number in range(1, num_steps + 1):
        prompts = draw_prompts(config, number)
        rows = [(prompt.id, image) for prompt in prompts for image in range(config.sampling.group_size)]
        noise = [streams.uniforms(config.seed, f"rollout/{number}", *row, num_tokens) for row in rows]
        found = step(policy, reference, optimizer, prompts, torch.from_numpy(np.stack(noise)))
        reward, kl, share = found["reward/mean"], found["loss/kl"], found["tokens/selected_fraction"]
        print(f"{number:4}  {reward:6.3f}  {kl:7.5f}  {share:14.1%}", flush=True)


if __name__ == "__main__":
    main()

"""What a token decides: noise in one range of the raster at a time, and how far the image that follows moves.

The paper perturbs the first tokens and some in the middle of Janus-Pro's raster and finds that the first ones change
the layout and the later ones details. Here every range of equal length is perturbed in turn. The image with noise in a
range and the image without share all other random numbers, so whatever differs follows from the noise.

An early range has more tokens after it than a late one, so in any causal model more of the image may change. With
`equal_reach` equally many tokens after each range are drawn anew; those further on stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gcpo_bench import streams
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError

from .decoding import sample
from .learner import as_module
from .types import Policy, Reward

Noise = Literal["uniform", "redraw"]
"""`uniform`: tokens of the codebook at random; `redraw`: other draws from what the policy predicts there."""
COARSE = 4
"""Cells a side to which an image is averaged before coarse change is measured: where things are, not what they are."""
SHOWN = 4
"""Prompts whose images are kept."""
STREAM = "perturb"
_Drawn = tuple[Tensor, npt.NDArray[np.uint8], Sequence[float]]
"""Tokens, images and rewards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Tokens `first` to `last`, both included, were noise; lists hold a value a prompt."""

    first: int
    last: int
    successors: int
    """Tokens after the range that were drawn anew."""
    coarse: list[float]
    """Mean absolute difference of the images averaged to 4x4 cells, 1 is black against white."""
    fine: list[float]
    """Mean absolute difference of the pixels."""
    later: list[float | None]
    """Share of the successors that came out otherwise; None where there is none."""
    reward: list[float]
    """Change of the reward."""

    def to_json(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "last": self.last,
            "successors": self.successors,
            "coarse_by_prompt": self.coarse,
            "fine_by_prompt": self.fine,
            "later_by_prompt": self.later,
            "reward_by_prompt": self.reward,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    ranges: list[Range]
    images_RMYXC: npt.NDArray[np.uint8]
    """Images of the first M prompts: without noise, then with noise in each range."""


def equal_parts(ranges: int, tokens: int) -> list[slice]:
    """The raster cut into `ranges` parts of equal length. Raises ConfigError: fewer than 2, or more than tokens."""
    if not 2 <= ranges <= tokens:
        raise ConfigError(f"--ranges is {ranges}; the image has {tokens} tokens", hint=f"choose 2 to {tokens}")
    length = tokens // ranges
    return [slice(index * length, (index + 1) * length) for index in range(ranges)]


def perturb(
    policy: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    *,
    ranges: Sequence[slice],
    noise: Noise,
    equal_reach: bool = False,
    seed: int = 0,
    on_range: Callable[[int, int], None] = lambda done, total: None,
    **distribution: float,
) -> Study:
    """One image a prompt, drawn once as it is and once with noise in each of `ranges`.

    `distribution` is what tokens are drawn from: fields of `decoding.Distribution`.

    Raises:
        ConfigError: a range that is not within the image, or, with `equal_reach`, that nothing follows.
    """
    tokens = policy.grid[0] * policy.grid[1]
    end = max(inside.stop for inside in ranges)
    if end > tokens or (equal_reach and end == tokens):
        raise ConfigError(
            f"the image has {tokens} tokens, and noise in {end - 1} {'is outside' if end > tokens else 'is the end'}",
            hint=f"choose ranges that end before {tokens}",
        )
    device = next(as_module(policy).parameters()).device
    plain_BT = _uniforms(seed, STREAM, prompts, tokens, device)
    other_BT = _uniforms(seed, f"{STREAM}/noise", prompts, tokens, device)
    random_BT = (other_BT * policy.vocab_size).long()

    def draw(uniforms_BT: Tensor, forced_BT: Tensor | None) -> _Drawn:
        texts = [prompt.text for prompt in prompts]
        options = {**distribution, "forced_BT": forced_BT}
        tokens_BT = sample(policy, texts, uniforms_BT, **options).tokens_BT  # type: ignore[arg-type]
        images_BYXC = policy.decode(tokens_BT)
        return tokens_BT, images_BYXC, reward(images_BYXC, prompts).values_B

    on_range(0, len(ranges) + 1)
    before = draw(plain_BT, None)
    images = [before[1]]
    on_range(1, len(ranges) + 1)
    found = []
    for index, inside in enumerate(ranges):
        successors = tokens - (end if equal_reach else inside.stop)
        uniforms_BT, forced_BT = plain_BT, torch.full_like(random_BT, -1)
        if noise == "redraw":
            uniforms_BT = plain_BT.clone()
            uniforms_BT[:, inside] = other_BT[:, inside]
        else:
            forced_BT[:, inside] = random_BT[:, inside]
        kept = slice(inside.stop + successors, tokens)
        forced_BT[:, kept] = before[0][:, kept]
        after = draw(uniforms_BT, forced_BT)
        images.append(after[1])
        found.append(_compare(before, after, inside, successors))
        on_range(index + 2, len(ranges) + 1)
    return Study(ranges=found, images_RMYXC=np.stack([batch[:SHOWN] for batch in images]))


def _uniforms(seed: int, stream: str, prompts: Sequence[Prompt], tokens: int, device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack([streams.uniforms(seed, stream, prompt.id, 0, tokens) for prompt in prompts])).to(
        device
    )


def _compare(before: _Drawn, after: _Drawn, inside: slice, successors: int) -> Range:
    (tokens_BT, images_BYXC, rewards_B), (noisy_BT, noisy_BYXC, noisy_rewards_B) = before, after
    moved_BT = (tokens_BT != noisy_BT)[:, inside.stop : inside.stop + successors]
    later: list[float | None] = moved_BT.float().mean(dim=1).tolist() if moved_BT.shape[1] else [None] * len(moved_BT)
    return Range(
        first=inside.start,
        last=inside.stop - 1,
        successors=successors,
        coarse=_difference(coarse(images_BYXC), coarse(noisy_BYXC)),
        fine=_difference(images_BYXC / 255, noisy_BYXC / 255),
        later=later,
        reward=[float(new) - float(old) for new, old in zip(noisy_rewards_B, rewards_B, strict=True)],
    )


def coarse(images_BYXC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Images averaged over COARSE x COARSE cells, in 0..1; sides that do not divide are cut at the end."""
    rows, cols = (side // COARSE for side in images_BYXC.shape[1:3])
    cut = images_BYXC[:, : rows * COARSE, : cols * COARSE] / 255
    return np.asarray(cut.reshape(len(cut), COARSE, rows, COARSE, cols, -1).mean(axis=(2, 4)))


def _difference(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> list[float]:
    return [float(value) for value in np.abs(a - b).mean(axis=(1, 2, 3))]

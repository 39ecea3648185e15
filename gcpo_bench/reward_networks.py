"""How much memory a reward's networks take on the device that they compute on, without building them.

Scorers compute in float32, on the GPU where there is one, which is the policy's; they stay there from the first step
on. Rewards of the embedded world have no networks. DeQA and UnifiedReward are programs of their own: what they hold,
possibly on the same GPU, is not known here, nor is what a reward of one's own holds.

Parameters are those of the architectures. Bytes are the most that tensors held in one pass on a CPU with random
weights, above the weights; a GPU's kernels may hold less (attention) or more (work space of convolutions).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    name: str
    """Rewards with the same name share them."""
    parameters: int
    """float32."""
    image_bytes: int
    """Held by each image of a pass."""
    rows: int = 32
    """Images of a pass on a GPU; on a CPU it is one."""


def _vit_h(name: str) -> Networks:
    return Networks(name=name, parameters=986_109_441, image_bytes=16_500_000)


_GENEVAL = Networks(name="geneval", parameters=68_741_083 + 427_616_513, image_bytes=735_000_000, rows=8)
"""Mask2Former at 800 x 800, which is what counts, and CLIP ViT-L/14."""
REWARD_NETWORKS: dict[str, Networks] = {
    **dict.fromkeys(("geneval-server", "geneval-server-dense", "geneval-server-strict"), _GENEVAL),
    "hps-v2.1": _vit_h("hps-v2.1"),
    "hps-v2.0": _vit_h("hps-v2.0"),
    "pickscore": _vit_h("pickscore"),
    "clip-score": Networks(name="clip-score", parameters=427_616_513, image_bytes=17_500_000),
    "aesthetic": Networks(name="aesthetic", parameters=427_616_513 + 927_969, image_bytes=17_500_000),
    "image-reward": Networks(name="image-reward", parameters=446_206_689, image_bytes=12_800_000),
}
"""Reward -> its networks."""

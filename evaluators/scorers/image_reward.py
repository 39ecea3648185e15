"""ImageReward v1.0 (arXiv 2304.05977): BLIP's text tower reads the prompt and looks at the picture; a head scores it.

Raw scale: standardised with the published mean and deviation of the training scores, about -2.3 to 2.
The prompt is cut and padded to 35 tokens and begins with BERT's `[CLS]`; the last state at that token goes into the
head.
Source: zai-org/ImageReward `ImageReward/ImageReward.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipTextModel, BlipVisionModel, PreTrainedTokenizerBase

from gcpo_bench.catalogue import BERT_WORDS, IMAGE_REWARD
from gcpo_bench.files import checksum
from gcpo_bench.weights import locate

from .blip_weights import BlipSize, convert_vision, split
from .checkpoints import State, fill, read_state
from .compute import CPU, Compute, Precision, inference, on
from .heads import Head
from .images import CLIP, Preprocessing
from .tokens import bert_ids, bert_tokenizer, words_digest
from .types import Images, Score, check_images, finite

MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
OBSERVER = 1
"""Raised when a score can change; pictures that were scored before are then scored again."""
MAX_TOKENS = 35
PREFIXES = {"vision": "blip.visual_encoder.", "text": "blip.text_encoder.", "head": "mlp."}


class ImageRewardModel(nn.Module):
    def __init__(self, size: BlipSize) -> None:
        super().__init__()
        self.vision = BlipVisionModel(size.vision_config())
        self.text = BlipTextModel(size.text_config(), add_pooling_layer=False)
        self.head = Head(size.text_width)

    def forward(self, pixels_BCYX: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Standardised scores (B,)."""
        # every picture has the same number of tokens, so the cross attention needs no mask
        picture = self.vision(pixel_values=pixels_BCYX).last_hidden_state
        text = self.text(input_ids=ids_BT, attention_mask=mask_BT, encoder_hidden_states=picture)
        values_B: Tensor = (self.head(text.last_hidden_state[:, 0]) - MEAN) / DEVIATION
        return values_B


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReward:
    model: ImageRewardModel
    tokenizer: PreTrainedTokenizerBase
    weights: str
    """Checksum."""
    preprocessing: Preprocessing = CLIP
    compute: Compute = CPU
    name: str = "image-reward"
    unit: str = "standard deviations"

    def __post_init__(self) -> None:
        self.compute.place(self.model)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {
            "scorer": self.name,
            "observer": OBSERVER,
            "weights": self.weights,
            "words": words_digest(self.tokenizer),
            "preprocessing": self.preprocessing.identity,
            **self.compute.identity,
        }

    @inference
    def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
        pictures = check_images(images, prompts)
        values: list[float] = []
        for portion in self.compute.portions(len(pictures)):
            pixels_BCYX = torch.stack([self.preprocessing(image) for image in pictures[portion]])
            ids_BT, mask_BT = bert_ids(self.tokenizer, prompts[portion], MAX_TOKENS)
            with self.compute.autocast():
                found = self.model(*(each.to(self.compute.device) for each in (pixels_BCYX, ids_BT, mask_BT)))
            values += found.tolist()
        return finite(values, "the reward")


def convert(state: State) -> dict[str, Tensor]:
    """ImageReward.pt's tensors under the names of `ImageRewardModel`; unknown names stay."""
    parts = split(state, PREFIXES)
    parts["vision"] = convert_vision(parts["vision"])
    named = {f"{part}.{name}": value for part in PREFIXES for name, value in parts[part].items()}
    return named | parts[""]


def load_image_reward(
    weights: Path, tokenizer: Path, *, size: BlipSize | None = None, compute: Compute = CPU
) -> ImageReward:
    """From ImageReward.pt and BERT's tokenizer.

    Raises PrerequisiteError where something is not there, CorruptDataError for other weights or a damaged file.
    """
    reader = bert_tokenizer(tokenizer)
    state, digest = convert(read_state(weights)), checksum(weights)
    shape = size or BlipSize()
    return ImageReward(
        model=fill(lambda: ImageRewardModel(shape), state, "ImageReward"),
        tokenizer=reader,
        weights=digest,
        preprocessing=Preprocessing(size=shape.pixels),
        compute=compute,
    )


def image_reward(*, device: str | None = None, precision: Precision = "float32") -> ImageReward:
    """From the weights folder, on the GPU where there is one."""
    return load_image_reward(locate(IMAGE_REWARD), locate(BERT_WORDS), compute=on(device, precision))

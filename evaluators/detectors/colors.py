"""GenEval's colour classifier: which of ten colours has an object that was found? Zero-shot CLIP ViT-L/14.

The activation decides what is measured. OpenAI's CLIP was trained with QuickGELU, and GenEval's own environment runs it
so; open_clip from 2.29 on builds the same model with GELU and says so in a warning that GenEval switches off. Here the
activation is named, and a model folder that states another one is refused.

Sources: GenEval `evaluation/evaluate_images.py` (af4902f) for crops, templates and colours; clip-benchmark
`zeroshot_classification` for the classifier's weights; open_clip 2.20 for the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase

from gcpo_bench.errors import CorruptDataError, PrerequisiteError
from gcpo_bench.geneval_prompts import COLORS as COLORS

from ..scorers.compute import inference, require_numbers
from ..scorers.tokens import clip_tokenizer
from .mask2former import Instance, portions

TEMPLATES = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")
GREY = (153, 153, 153)
"""What hides everything outside an object's mask: #999."""
BATCH = 16
"""Crops looked at together."""
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)

Activation = Literal["quick_gelu", "gelu"]
UInt8 = npt.NDArray[np.uint8]
Tokenizer = Callable[..., Any]
"""As transformers' tokenizers: texts to `input_ids` and `attention_mask`."""


# ---------------------------------------------------------------- crops


def crop(image_YXC: UInt8, instance: Instance) -> Image.Image:
    """The object's box with everything outside its mask in grey. Edges are rounded half to even."""
    picture = Image.fromarray(np.where(instance.mask_YX[..., None], image_YXC, np.array(GREY, dtype=np.uint8)))
    left, top, right, bottom = (round(edge) for edge in instance.box)
    return picture.crop((left, top, right, bottom))


def preprocess(picture: Image.Image, side: int) -> npt.NDArray[np.float32]:
    """float32 (3, side, side): the shorter side scaled to `side` (bicubic), the centre cut out, normalised."""
    width, height = picture.size
    short = min(width, height)
    if short != side:
        picture = picture.resize((side * width // short, side * height // short), Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in picture.size)
    centre = picture.crop((left, top, left + side, top + side))
    pixels_YXC = np.asarray(centre.convert("RGB"), dtype=np.float32) / np.float32(255)
    return np.ascontiguousarray(((pixels_YXC - MEAN) / STD).transpose(2, 0, 1))


# ---------------------------------------------------------------- the classifier


class ColorClassifier:
    """Names the colour of objects, class by class."""

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: Tokenizer,
        *,
        colors: Sequence[str] = COLORS,
        device: str = "cpu",
        half_precision: bool = True,
        together: bool | None = None,
    ) -> None:
        """
        Args:
            half_precision: runs the network in float16 on CUDA, as GenEval does; elsewhere it has no effect.
            together: whether objects of several images and classes go through the network together; None: not on a CPU.
        """
        network: Any = model.train(mode=False)
        self.model = network.to(device)
        self.tokenizer = tokenizer
        self.colors = tuple(colors)
        self.device = device
        self.half_precision = half_precision
        self.together = torch.device(device).type != "cpu" if together is None else together
        self._weights: dict[str, Tensor] = {}

    def __call__(self, image_YXC: UInt8, found: Sequence[Instance]) -> list[str]:
        """The colour of each object in an image."""
        return self.tell([(image_YXC, each) for each in found])

    @inference
    def tell(self, objects: Sequence[tuple[UInt8, Instance]]) -> list[str]:
        """The colour of each object in its image.

        Unless `together`, only objects of one image and class share a batch, as in GenEval.
        """
        side = int(self.model.config.vision_config.image_size)
        names: list[str] = []
        for some in portions(objects, BATCH, key=lambda each: None if self.together else (id(each[0]), each[1].label)):
            crops_BCYX = np.stack([preprocess(crop(image_YXC, each), side) for image_YXC, each in some])
            features_BD = self._encode(torch.from_numpy(crops_BCYX))
            for label, run in groupby(range(len(some)), key=lambda row: some[row][1].label):
                logits_BK = 100 * features_BD[list(run)] @ self._weights_of(label).T
                require_numbers(logits_BK, "CLIP")
                names += [self.colors[index] for index in logits_BK.argmax(dim=1).tolist()]
        return names

    def _half(self) -> torch.autocast:
        return torch.autocast("cuda", enabled=self.half_precision and self.device.startswith("cuda"))

    def _encode(self, pixels_BCYX: Tensor) -> Tensor:
        with self._half():
            features = _features(self.model.get_image_features(pixel_values=pixels_BCYX.to(self.device)))
        return F.normalize(features.float(), dim=-1)

    def _weights_of(self, label: str) -> Tensor:
        """Unit vectors (K, D), one a colour: the mean of its three sentences' directions."""
        if label not in self._weights:
            rows = []
            for color in self.colors:
                texts = [template.format(color=color, label=label) for template in TEMPLATES]
                tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
                inputs = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
                with self._half():
                    features = _features(self.model.get_text_features(**inputs))
                directions = F.normalize(features.float(), dim=-1)
                rows.append(F.normalize(directions.mean(dim=0), dim=0))
            self._weights[label] = torch.stack(rows)
        return self._weights[label]


def _features(output: Any) -> Tensor:
    """transformers 5 wraps what earlier versions returned bare."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def load(folder: Path, activation: Activation = "quick_gelu") -> tuple[CLIPModel, PreTrainedTokenizerBase]:
    """CLIP and its tokenizer from a transformers folder, run with `activation`.

    Raises PrerequisiteError where the folder lacks a file, CorruptDataError where it states another activation than
    OpenAI's models have, or holds something else.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise PrerequisiteError(f"{folder / name} is missing", hint="gcpo-bench models ls says what is needed")
    tokenizer = clip_tokenizer(folder)  # transformers makes one without words of a folder that has none
    try:
        config: Any = CLIPConfig.from_pretrained(folder, local_files_only=True)
        stated = {config.text_config.hidden_act, config.vision_config.hidden_act}
        if stated != {"quick_gelu"}:
            raise ValueError(f"its activation is {' and '.join(sorted(stated))}, OpenAI's models have quick_gelu")
        for part in (config.text_config, config.vision_config):
            part.hidden_act = activation
        loaded: Any = CLIPModel.from_pretrained(
            folder, config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        model, loading = loaded
        if absent := sorted(loading["missing_keys"]):  # transformers would go on with random numbers
            raise ValueError(f"{len(absent)} of its weights are missing, the first is {absent[0]!r}")
        return model, tokenizer
    except (OSError, ValueError, RuntimeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CorruptDataError(
            f"{folder} holds no CLIP model that can be used: {reason}",
            hint="it is to be a copy of openai/clip-vit-large-patch14 in transformers' layout",
        ) from error

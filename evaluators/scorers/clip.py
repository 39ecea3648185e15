"""CLIP's features of pictures and texts, shared by the scorers that are built on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel, PreTrainedTokenizerBase

from gcpo_bench.errors import CorruptDataError

from .clip_weights import Architecture, load_clip
from .compute import CPU, Compute, inference
from .images import Preprocessing
from .tokens import clip_ids, clip_tokenizer, words_digest
from .types import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    model: CLIPModel
    tokenizer: PreTrainedTokenizerBase | None
    """None where only pictures are looked at."""
    preprocessing: Preprocessing
    unescape: bool = True
    """Whether texts are freed of HTML entities, as open_clip does and transformers does not."""
    weights: str
    """Checksum of the weights."""
    compute: Compute = CPU
    _last_texts: dict[tuple[str, ...], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.compute.place(self.model)

    @property
    def identity(self) -> Mapping[str, Any]:
        texts: dict[str, Any] = {}
        if self.tokenizer is not None:
            texts = {"words": words_digest(self.tokenizer), "unescape": self.unescape}
        return {"weights": self.weights, **texts, "preprocessing": self.preprocessing.identity, **self.compute.identity}

    @inference
    def picture_features(self, images: Sequence[Image]) -> Tensor:
        """Unit length, (B, D)."""
        parts = []
        for portion in self.compute.portions(len(images)):
            pixels_BCYX = torch.stack([self.preprocessing(image) for image in images[portion]])
            with self.compute.autocast():
                found = self.model.get_image_features(pixel_values=pixels_BCYX.to(self.compute.device))
                parts.append(unit(_pooled(found)))
        return torch.cat(parts)

    @inference
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit length, (B, D)."""
        if self.tokenizer is None:
            raise ValueError("this CLIP was made without a tokenizer")
        context = self.model.text_model.embeddings.position_embedding.num_embeddings
        parts = []
        for portion in self.compute.portions(len(texts)):
            ids_BT = clip_ids(self.tokenizer, texts[portion], context, unescape=self.unescape)
            with self.compute.autocast():
                found = self.model.get_text_features(input_ids=ids_BT.to(self.compute.device))
                parts.append(unit(_pooled(found)))
        return torch.cat(parts)

    @inference
    def cosines(self, images: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        """Cosine of each image with its prompt. A prompt of several images is read once."""
        if not images:
            return []
        distinct = tuple(dict.fromkeys(prompts))
        if distinct not in self._last_texts:  # a benchmark asks for the images of a prompt one after the other
            self._last_texts.clear()
            self._last_texts[distinct] = self.text_features(distinct)
        row_of = {text: row for row, text in enumerate(distinct)}
        texts_BD = self._last_texts[distinct][[row_of[prompt] for prompt in prompts]]
        pictures_BD = self.picture_features(images)
        values: list[float] = []
        for portion in self.compute.portions(len(images)):
            with self.compute.autocast():  # as published: a product of matrices, half precision where they are
                values += (pictures_BD[portion] @ texts_BD[portion].T).diagonal().tolist()
        return values


def _pooled(found: Any) -> Tensor:
    """Features; transformers 4 gives them bare, 5 inside an output."""
    features_BD: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return features_BD


def unit(features_BD: Tensor) -> Tensor:
    """Divided by their lengths; NaN where all are 0, so that no score comes of nothing."""
    unit_BD: Tensor = features_BD / features_BD.norm(dim=-1, keepdim=True)
    return unit_BD


def load(
    weights: Path,
    tokenizer: Path | None,
    architecture: str | Architecture,
    preprocessing: Preprocessing,
    *,
    unescape: bool = True,
    compute: Compute = CPU,
) -> Clip:
    """Raises as `load_clip` and `clip_tokenizer` do, and CorruptDataError where the tokenizer is another model's."""
    reader = None if tokenizer is None else clip_tokenizer(tokenizer)
    model, digest = load_clip(weights, architecture)
    words = model.text_model.embeddings.token_embedding.num_embeddings
    # transformers numbers what a tokenizer lacks, begin and end, behind the rest
    if reader is not None and len(reader) != words:
        raise CorruptDataError(
            f"the tokenizer in {tokenizer} has {len(reader):,} words, the model {words:,}", hint="it is another model's"
        )
    return Clip(
        model=model,
        tokenizer=reader,
        preprocessing=preprocessing,
        unescape=unescape,
        weights=digest,
        compute=compute,
    )

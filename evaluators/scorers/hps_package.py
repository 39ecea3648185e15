"""HPS through the package hpsv2 itself, for whoever wants its own code to have run. Needs the extra `hpsv2`.

The same numbers as `hps` (they differ by 3e-8 with random weights; see `tests/parity/hps_hpsv2.py`), and the same
checks of the weights; but loaded once, where `hpsv2.score` loads its 2 GB anew at each call, and no other weights are
downloaded.

* The package pins pytest 7.2 and protobuf below 4, and pulls torchvision: install it in an environment of its own.
* Its wheel 1.2.0 lacks `bpe_simple_vocab_16e6.txt.gz` (tgxs002/HPSv2 issue 30): copy it there from open_clip or CLIP.
* A picture whose longest side is exactly 224 and whose other side is less makes it fail; such a picture is unscored.
* Whether its resize is antialiased depends on torchvision, whose version is part of the identity.

Source: tgxs002/HPSv2 `hpsv2/img_score.py`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pictures
from torch import Tensor, nn

from gcpo_bench.catalogue import HPS_V20, HPS_V21
from gcpo_bench.errors import PrerequisiteError
from gcpo_bench.files import checksum
from gcpo_bench.weights import locate

from .checkpoints import check, read_state
from .compute import Compute, Precision, inference, on
from .hps import Version
from .types import Images, Score, Unscored, check_images, finite

OBSERVER = 1
"""Raised when a score can change; pictures that were scored before are then scored again."""
_SHOWN = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class HpsPackage:
    model: nn.Module
    preprocess: Callable[[Pictures.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    version: Version
    weights: str
    """Checksum."""
    compute: Compute
    unit: str = "cosine"

    @property
    def name(self) -> str:
        return f"hpsv2-package-{self.version}"

    @property
    def identity(self) -> Mapping[str, Any]:
        versions = {name: importlib.metadata.version(name) for name in ("hpsv2", "torchvision")}
        return {"scorer": self.name, "observer": OBSERVER, "weights": self.weights, **versions, **self.compute.identity}

    @inference
    def score(self, images: Images, prompts: Sequence[str]) -> list[Score]:
        pictures = [Pictures.fromarray(image) for image in check_images(images, prompts)]
        scores: list[Score] = []
        for portion in self.compute.portions(len(pictures)):
            scores += self._together(pictures[portion], prompts[portion])
        return scores

    def _together(self, pictures: Sequence[Pictures.Image], prompts: Sequence[str]) -> list[Score]:
        """Where something fails, each picture on its own, so that the others have their score."""
        try:
            pixels_BCYX = torch.stack([self.preprocess(picture) for picture in pictures]).to(self.compute.device)
            ids_BT = self.tokenize(list(prompts)).to(self.compute.device)
            with self.compute.autocast():
                found = self.model(pixels_BCYX, ids_BT)
                values = (found["image_features"] @ found["text_features"].T).diagonal().tolist()
        except (RuntimeError, ValueError, AssertionError) as error:
            if len(pictures) > 1:
                pairs = zip(pictures, prompts, strict=True)
                return [score for picture, prompt in pairs for score in self._together([picture], [prompt])]
            lines = str(error).splitlines() or [type(error).__name__]
            return [Unscored(f"hpsv2 failed: {lines[0][:_SHOWN]}", may_pass=isinstance(error, torch.OutOfMemoryError))]
        return finite(values, "the cosine")


def load_hps_package(weights: Path, *, version: Version, compute: Compute) -> HpsPackage:
    """Raises PrerequisiteError without the package or its vocabulary, CorruptDataError for other weights."""
    try:
        from hpsv2.src.open_clip import create_model_and_transforms, get_tokenizer
    except ModuleNotFoundError as error:
        raise PrerequisiteError(
            f"the package hpsv2 cannot be imported: {error}",
            hint="pip install 'gcpo-bench[hpsv2]' in an environment of its own; the scorer hps-v2.1 does without it",
        ) from error
    except FileNotFoundError as error:
        raise PrerequisiteError(
            f"the package hpsv2 lacks its vocabulary: {error.filename}",
            hint="copy bpe_simple_vocab_16e6.txt.gz there, from open_clip or CLIP",
        ) from error
    state = read_state(weights)
    model, _, preprocess = create_model_and_transforms(
        "ViT-H-14",
        None,
        precision="amp",
        device="cpu",
        light_augmentation=True,
        output_dict=True,
    )
    check(model.state_dict(), state, f"HPS {version}")
    model.load_state_dict(state)
    model.train(mode=False)
    compute.place(model)
    return HpsPackage(
        model=model,
        preprocess=preprocess,
        tokenize=get_tokenizer("ViT-H-14"),
        version=version,
        weights=checksum(weights),
        compute=compute,
    )


def hps_package_v21(*, device: str | None = None, precision: Precision = "float32") -> HpsPackage:
    """From the weights folder, on the GPU where there is one."""
    return load_hps_package(locate(HPS_V21), version="v2.1", compute=on(device, precision))


def hps_package_v20(*, device: str | None = None, precision: Precision = "float32") -> HpsPackage:
    """From the weights folder, on the GPU where there is one."""
    return load_hps_package(locate(HPS_V20), version="v2.0", compute=on(device, precision))

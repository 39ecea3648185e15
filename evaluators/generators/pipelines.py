"""Which of diffusers' pipelines draw images from texts alone, read from the signatures of their calls."""

from __future__ import annotations

import inspect
import re
from typing import Any

import diffusers

from gcpo_bench.errors import ConfigError

from .checkpoints import Checkpoint

FROM_IMAGES = re.compile(r"image|images|mask_image|control_image|input_images_mask")
NO_IMAGES = re.compile(r".*(video|audio|waveform|frame).*")
"""Parameters of a call that makes films or sounds."""


def pipeline_class(checkpoint: Checkpoint) -> Any:
    """The pipeline's class in diffusers, if it draws from text alone."""
    class_name = checkpoint.index["_class_name"]
    if not isinstance(class_name, str):
        raise ConfigError(
            f"{checkpoint.name} brings code of its own, which is never run",
            hint="use a checkpoint of a pipeline that diffusers has, or write a generator: docs/extending.md",
        )
    kind = getattr(diffusers, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise ConfigError(
            f"{checkpoint.name} is a {class_name}, which diffusers {diffusers.__version__} does not have",
            hint="pip install --upgrade diffusers, or choose another checkpoint",
        )
    accepted = inspect.signature(kind.__call__).parameters
    required = [
        each.name
        for each in accepted.values()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    takes = {"prompt", "generator"} <= accepted.keys() and set(required) <= {"self", "prompt"}
    makes_images = not any(NO_IMAGES.fullmatch(name) for name in accepted)
    needs_images = any(FROM_IMAGES.fullmatch(name) for name in accepted) and not _is_listed(kind)
    if not takes or not makes_images or needs_images:
        raise ConfigError(
            f"{checkpoint.name} is a {class_name}, which does not draw images from texts alone",
            hint="choose a text-to-image pipeline",
        )
    return kind


def _is_listed(kind: type) -> bool:
    """Whether diffusers lists a pipeline for text-to-image: it may also take images then, but with a control network
    it needs them."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING  # takes seconds

    return kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values() and "Control" not in kind.__name__

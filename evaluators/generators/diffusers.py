"""Images of any text-to-image pipeline of diffusers: SD, SDXL, SD3, PixArt, FLUX and others.

* Every image has its own torch.Generator on the CPU, so its noise is the same whatever the device, batch, shard and
  order. On a CPU images are drawn one at a time and are then the same to the bit. Elsewhere a batch goes together, and
  an image depends on it as far as networks round, or pad prompts to the longest, differently.
* The safety checker is off. Where it is asked for, an image that it blanked is recorded as not to be scored.
* SDXL's invisible watermark is off: whether it is there would depend on an installed package.
* No code comes from a checkpoint: pipelines and components that bring their own are refused. Safetensors are taken
  where there are any; other weights are unpickled as plain tensors only.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gcpo_bench.environment import package_version
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError, RunError

from ..scorers.compute import usable_device
from ..types import Drawn

try:
    import diffusers
    import transformers
except ModuleNotFoundError as error:
    if error.name != "diffusers":
        raise
    raise PrerequisiteError(
        "the package diffusers is not installed", hint="pip install 'gcpo-bench[diffusers]'"
    ) from error

from .checkpoints import locate, one_line
from .pipelines import pipeline_class
from .settings import call_settings, split

BLANKED = "the pipeline's safety checker blanked the image"
NOT_FINITE = "the pipeline's numbers are not finite"


class DiffusersGenerator:
    """See `types.Generator`."""

    def __init__(self, target: str, *, options: Mapping[str, str] | None = None, device: str | None = None) -> None:
        """
        Args:
            target: a folder that `save_pretrained` wrote, or an id on the hub.
            options: see `settings.split` and `settings.call_settings`.
        Raises:
            ConfigError: no such pipeline, option or device. PrerequisiteError: the hub cannot be reached, or refuses.
        """
        self._loading, given = split(options or {})
        self._device = torch.device(usable_device(device))
        with _quiet():
            self._checkpoint = locate(target, self._loading.revision)
            self._class = pipeline_class(self._checkpoint)
        self._call = _with_packages(call_settings(self._class, given), given)
        self._given = {name: self._call[name] for name in self._call if name in given or name == "clean_caption"}
        self._dtype = self._loading.dtype or ("float32" if self._device.type == "cpu" else "bfloat16")
        if self._loading.offload != "none" and self._device.type == "cpu":
            raise ConfigError("generator option offload needs a GPU", hint="leave it out, or use --device cuda")
        if self._loading.safety_checker and "safety_checker" not in self._checkpoint.components():
            raise ConfigError(f"{target} has no safety checker", hint="leave the option safety_checker out")
        self._has_drawn = False
        """Whether an image was more than numbers that are not finite."""

    def settings(self) -> dict[str, Any]:
        """What an image depends on beside its prompt and seed. Reads the weights of a folder, for their checksum."""
        return {
            "pipeline": self._class.__name__,
            "weights": self._weights,
            **({"variant": self._loading.variant} if self._loading.variant else {}),
            "diffusers": diffusers.__version__,
            "device": self._device.type,
            "dtype": self._dtype,
            "safety_checker": self._loading.safety_checker,
            "sampling": self._call,
        }

    def __call__(self, texts_B: Sequence[str], seeds_B: Sequence[int]) -> list[Drawn]:
        rows = 1 if self._device.type == "cpu" else len(texts_B)
        drawn: list[Drawn] = []
        for start in range(0, len(texts_B), rows):
            drawn += self._draw(texts_B[start : start + rows], seeds_B[start : start + rows])
        self._has_drawn = self._has_drawn or any(each.problem != NOT_FINITE for each in drawn)
        if not self._has_drawn:
            raise RunError(
                f"{NOT_FINITE} with dtype {self._dtype}", hint="try --generator-option dtype=bfloat16 or float32"
            )
        return drawn

    @cached_property
    def _weights(self) -> str:
        return self._checkpoint.digest()

    @cached_property
    def _pipeline(self) -> Any:
        with _quiet():
            folder = self._checkpoint.fetch(self._loading.variant)
            try:
                return self._loaded(folder)
            except torch.OutOfMemoryError as error:
                raise self._out_of_memory(error, 0) from error
            except ImportError as error:
                raise PrerequisiteError(
                    f"{self._checkpoint.name} needs a package: {one_line(error)}", hint="install it, then try again"
                ) from error
            except Exception as error:  # whatever the libraries meet in files that are cut off, altered or of others
                raise CorruptDataError(
                    f"{self._checkpoint.name} cannot be loaded: {one_line(error)}",
                    hint="fetch it again; check the options variant and revision",
                ) from error

    def _loaded(self, folder: Path) -> Any:
        accepted = inspect.signature(self._class.__init__).parameters
        parts: dict[str, Any] = self._transformers_models(folder, accepted)
        if "safety_checker" in accepted and not self._loading.safety_checker:
            parts |= {"safety_checker": None}
            parts |= {"requires_safety_checker": False} if "requires_safety_checker" in accepted else {}
        if "add_watermarker" in accepted:
            parts |= {"add_watermarker": False}
        if self._loading.variant:
            parts |= {"variant": self._loading.variant}
        pipeline = self._class.from_pretrained(folder, torch_dtype=getattr(torch, self._dtype), **parts)
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                _require_all(name, [key for key, tensor in part.named_parameters() if tensor.is_meta])
        pipeline.set_progress_bar_config(disable=True)
        match self._loading.offload:
            case "model":
                pipeline.enable_model_cpu_offload(device=self._device)
            case "sequential":
                pipeline.enable_sequential_cpu_offload(device=self._device)
            case _:
                pipeline.to(self._device)
        return pipeline

    def _transformers_models(self, folder: Path, accepted: Mapping[str, Any]) -> dict[str, Any]:
        """Text encoders and the like, loaded here because transformers fills up weights that a file lacks at random."""
        models: dict[str, Any] = {}
        for name, (library, class_name) in self._checkpoint.components().items():
            kind: Any = getattr(transformers, class_name, None) if library == "transformers" else None
            is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
            if name not in accepted or not is_model:
                continue
            variant = self._loading.variant
            has_variant = variant is not None and any(f".{variant}." in path.name for path in (folder / name).iterdir())
            models[name], loading = kind.from_pretrained(
                folder / name,
                local_files_only=True,
                dtype=getattr(torch, self._dtype),
                output_loading_info=True,
                **({"variant": variant} if has_variant else {}),
            )
            _require_all(name, sorted(loading["missing_keys"]))
        return models

    def _draw(self, texts_B: Sequence[str], seeds_B: Sequence[int]) -> list[Drawn]:
        pipeline, name = self._pipeline, self._class.__name__
        given = {  # one a row: pipelines disagree on what a single text says to several prompts
            key: [value] * len(texts_B) if key.startswith("negative_prompt") else value
            for key, value in self._given.items()
        }
        try:
            with _quiet(), _own_noise(self._device, seeds_B[0]):
                output = pipeline(
                    prompt=list(texts_B),
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds_B],
                    output_type="np",
                    **given,
                )
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory(error, len(texts_B)) from error
        except (ValueError, TypeError, RuntimeError) as error:  # what pipelines raise for settings they cannot use
            if "allocate memory" in str(error):
                raise self._out_of_memory(error, len(texts_B)) from error
            raise ConfigError(
                f"{name} cannot draw with these options: {one_line(error)}",
                hint="see its page in diffusers' documentation for what --generator-option may say",
            ) from error
        images_B = getattr(output, "images", None)
        if not isinstance(images_B, (list, np.ndarray)) or len(images_B) != len(texts_B):
            raise ConfigError(f"{name} draws no images from texts alone", hint="choose a text-to-image pipeline")
        blanked_B = getattr(output, "nsfw_content_detected", None) or [False] * len(texts_B)
        drawn_B = [_drawn(image, bool(blanked)) for image, blanked in zip(images_B, blanked_B, strict=True)]
        self._require_size(drawn_B[0].image_YXC.shape)
        return drawn_B

    def _require_size(self, shape: tuple[int, ...]) -> None:
        """Some pipelines take another height and width than they are told to, without a word."""
        wanted = [self._given.get(name, shape[axis]) for axis, name in enumerate(("height", "width"))]
        if wanted != list(shape[:2]):
            raise ConfigError(
                f"{self._class.__name__} draws images of height {shape[0]} and width {shape[1]}, "
                f"not of {wanted[0]} and {wanted[1]}",
                hint="give both height and width, as multiples of what the pipeline draws in: 16 for most",
            )

    def _out_of_memory(self, error: Exception, rows: int) -> PrerequisiteError:
        what = f"drawing {rows} image{'' if rows == 1 else 's'} at once" if rows else "loading the pipeline"
        fewer = "a smaller --batch-size, " if rows > 1 else ""
        return PrerequisiteError(
            f"{self._device.type} is out of memory {what}: {one_line(error)}",
            hint=f"try {fewer}a smaller height and width, dtype=bfloat16 or, on a GPU, offload=model",
        )


def _with_packages(call: dict[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Captions are cleaned only where two packages are there; pipelines then say so in a log line and go on."""
    if call.get("clean_caption") and not all(package_version(name) for name in ("beautifulsoup4", "ftfy")):
        if "clean_caption" in given:
            raise PrerequisiteError("clean_caption needs two packages", hint="pip install beautifulsoup4 ftfy")
        return {**call, "clean_caption": False}
    return call


def _require_all(component: str, missing: Sequence[str]) -> None:
    if missing:
        raise ValueError(f"{component} lacks {len(missing)} of its weights, the first is {missing[0]!r}")


def _drawn(image: Any, is_blanked: bool) -> Drawn:
    """From a PIL image or floats in [0, 1] (Y, X, 3), rounded as diffusers does it."""
    if isinstance(image, Image.Image):
        return Drawn(image_YXC=np.asarray(image.convert("RGB")), problem=BLANKED if is_blanked else "")
    is_finite = bool(np.isfinite(image).all())
    image_YXC = (np.nan_to_num(image).clip(0, 1) * 255).round().astype(np.uint8)
    return Drawn(image_YXC=image_YXC, problem=BLANKED if is_blanked else "" if is_finite else NOT_FINITE)


@contextmanager
def _own_noise(device: torch.device, seed: int) -> Iterator[None]:
    """What a pipeline draws past its generators is also the image's own, as far as a batch of one goes."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """What matters is raised; hints, reports and bars of the libraries would only hide what this program prints."""
    logs = (diffusers.utils.logging, transformers.utils.logging)
    before = [log.get_verbosity() for log in logs]
    bars = [log.is_progress_bar_enabled() for log in logs]
    for log in logs:
        log.set_verbosity(logging.CRITICAL)
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level, bar in zip(logs, before, bars, strict=True):
            log.set_verbosity(level)
            if bar:
                log.enable_progress_bar()

"""GenEval's detector run by mmdet itself, for whoever wants its own code to have run. Needs the extra `mmdet`.

mmdet 3.x runs the network and makes the instances. The pixels are those of `mask2former.preprocess`, which are mmdet
2.x's to the bit; mmdet 3.x on its own would scale in floating point and pad after normalising. So both backends differ
by rounding only.

* Checkpoints of mmdet 2.x are given the names of 3.x here; mmdet 3.x would leave out what it does not know, and go on.
* The extra installs mmcv-lite, which needs no compiler and has no operators: deformable attention then runs in plain
  torch, on a CPU. For a GPU install mmcv itself.

Source: mmdet 3.3.0 `Mask2Former`, `MaskFormerFusionHead`, config `mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco`.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Mask2FormerConfig

from gcpo_bench.environment import package_version
from gcpo_bench.errors import PrerequisiteError
from gcpo_bench.geneval_prompts import CLASSES

from ..scorers.compute import inference, require_numbers
from .mask2former import Instance, UInt8, portions, preprocess, rows_on
from .mask2former_weights import UNUSED, config_of, convert, read, refusing

CONFIG = "mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"
PACKAGES = ("mmdet", "mmengine", "mmcv", "mmcv-lite")
OPERATORS = "mmcv._ext"
_TO_3 = (
    (re.compile(r"(\.pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\."), r"\1.self_attn."),
    (re.compile(r"(\.transformer_decoder\.layers\.\d+)\.attentions\.0\."), r"\1.cross_attn."),
    (re.compile(r"(\.transformer_decoder\.layers\.\d+)\.attentions\.1\."), r"\1.self_attn."),
    (re.compile(r"(\.layers\.\d+)\.ffns\.0\."), r"\1.ffn."),
)
"""Names of mmdet 2.x, and what 3.x calls them."""


class MmdetMask2Former:
    """As `mask2former.Mask2Former`."""

    def __init__(self, model: Any, *, device: str = "cpu", antialias: bool = False, rows: int | None = None) -> None:
        self.model = model.train(mode=False).to(device)
        self.device = device
        self.antialias = antialias
        self.rows = rows or rows_on(device)

    def detect(self, images: Sequence[UInt8], min_confidence: float = -1.0) -> Iterator[list[Instance]]:
        """The instances above `min_confidence` in each RGB image, surest first."""
        for alike in portions(images, self.rows):
            yield from self._together(alike, min_confidence)

    @inference
    def _together(self, images_BYXC: Sequence[UInt8], min_confidence: float) -> list[list[Instance]]:
        from mmdet.structures import DetDataSample

        prepared = [preprocess(image_YXC, antialias=self.antialias) for image_YXC in images_BYXC]
        pixels_BCYX = torch.from_numpy(np.stack([pixels_CYX for pixels_CYX, _ in prepared])).to(self.device)
        padded = tuple(pixels_BCYX.shape[2:])
        samples = [
            DetDataSample(
                metainfo={
                    "img_shape": unpadded,
                    "ori_shape": image_YXC.shape[:2],
                    "pad_shape": padded,
                    "batch_input_shape": padded,
                }
            )
            for image_YXC, (_, unpadded) in zip(images_BYXC, prepared, strict=True)
        ]
        return [_instances(each.pred_instances, min_confidence) for each in self.model.predict(pixels_BCYX, samples)]


def _instances(found: Any, min_confidence: float) -> list[Instance]:
    require_numbers(found.scores, "mmdet")
    rows = zip(
        found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(), found.masks.cpu().numpy(), strict=True
    )
    kept = [
        Instance(label=CLASSES[label], confidence=score, box=(box[0], box[1], box[2], box[3]), mask_YX=mask_YX)
        for label, score, box, mask_YX in rows
        if score > min_confidence
    ]
    return sorted(kept, key=lambda each: (-each.confidence, each.label, each.box))  # mmdet leaves them unsorted


# ---------------------------------------------------------------- from a checkpoint to a network


def load(path: Path, *, sha256_prefix: str = "", device: str = "cpu") -> tuple[Any, str]:
    """mmdet's network with the weights of an mmdet checkpoint, and the file's SHA-256.

    Raises PrerequisiteError without the packages, or without operators for a GPU, and as `mask2former_weights.load`.
    """
    state, digest = read(path, sha256_prefix=sha256_prefix)
    with refusing(path):
        model = build(config_of(convert(state)), device=device)
        missing, extra = model.load_state_dict(as_in_3(state), strict=False)
        strange = [name for name in (*missing, *extra) if not UNUSED.search(name)]
        if strange:
            raise ValueError(f"{len(strange)} entries are missing or too many, the first is {strange[0]!r}")
    return model, digest


def as_in_3(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of mmdet 3.x, without the buffers that it computes."""
    return {_in_3(name): tensor for name, tensor in state.items() if not UNUSED.search(name)}


def _in_3(name: str) -> str:
    for pattern, new in _TO_3:
        name = pattern.sub(new, name)
    return name


def build(sizes: Mask2FormerConfig, *, device: str = "cpu") -> Any:
    """mmdet's Mask2Former of these sizes, with random weights. Raises PrerequisiteError as `load`."""
    try:
        is_whole = has_operators()
        import mmdet
        from mmdet.registry import MODELS
        from mmdet.utils import register_all_modules
        from mmengine import Config
    except (ImportError, AssertionError) as error:  # mmdet asserts the versions of the other two
        raise PrerequisiteError(
            f"the package mmdet cannot be imported: {' '.join(str(error).split())}",
            hint="pip install 'gcpo-bench[mmdet]'; --option backend=transformers does without it",
        ) from error
    if not is_whole and torch.device(device).type != "cpu":
        raise PrerequisiteError(
            f"mmcv-lite has no operators for {device}",
            hint="install mmcv with its operators instead, or use --device cpu or --option backend=transformers",
        )
    register_all_modules(init_default_scope=True)
    config = Config.fromfile(str(Path(mmdet.__file__).parent / ".mim/configs" / CONFIG))
    config.merge_from_dict(_settings(sizes))
    return MODELS.build(config.model)


def _settings(sizes: Mask2FormerConfig) -> dict[str, Any]:
    """mmdet's names of these sizes; the published ones are its own."""
    backbone: Any = sizes.backbone_config
    width = sizes.hidden_dim
    head = {
        "in_channels": [backbone.embed_dim * 2**stage for stage in range(len(backbone.depths))],
        "feat_channels": sizes.feature_size,
        "out_channels": sizes.mask_feature_size,
        "num_queries": sizes.num_queries,
        "positional_encoding.num_feats": width // 2,
        "pixel_decoder.positional_encoding.num_feats": width // 2,
        "pixel_decoder.encoder.num_layers": sizes.encoder_layers,
        "pixel_decoder.encoder.layer_cfg.self_attn_cfg.embed_dims": width,
        "pixel_decoder.encoder.layer_cfg.ffn_cfg.embed_dims": width,
        "pixel_decoder.encoder.layer_cfg.ffn_cfg.feedforward_channels": sizes.encoder_feedforward_dim,
        "transformer_decoder.num_layers": sizes.decoder_layers - 1,
        "transformer_decoder.layer_cfg.self_attn_cfg.embed_dims": width,
        "transformer_decoder.layer_cfg.cross_attn_cfg.embed_dims": width,
        "transformer_decoder.layer_cfg.ffn_cfg.embed_dims": width,
        "transformer_decoder.layer_cfg.ffn_cfg.feedforward_channels": sizes.dim_feedforward,
    }
    swin = {
        "embed_dims": backbone.embed_dim,
        "depths": list(backbone.depths),
        "num_heads": list(backbone.num_heads),
        "window_size": backbone.window_size,
        "mlp_ratio": round(backbone.mlp_ratio),
        "init_cfg": None,  # or it would look for weights of its own on the network
    }
    return {f"model.panoptic_head.{name}": value for name, value in head.items()} | {
        f"model.backbone.{name}": value for name, value in swin.items()
    }


def has_operators() -> bool:
    """Whether mmcv has its compiled operators. Without them it can be imported all the same after this."""
    if OPERATORS not in sys.modules and importlib.util.find_spec(OPERATORS) is None:
        module = _Operators(OPERATORS)
        module.__spec__ = importlib.machinery.ModuleSpec(OPERATORS, loader=None)
        sys.modules[OPERATORS] = module
    return not isinstance(sys.modules.get(OPERATORS), _Operators)


class _Operators(types.ModuleType):
    """What stands in for mmcv's compiled operators, and names one that is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> Any:
            raise RuntimeError(f"mmcv operator {name} is not compiled")

        return missing


def versions() -> dict[str, str]:
    found = {name: package_version(name) for name in PACKAGES}
    return {name: version for name, version in found.items() if version}

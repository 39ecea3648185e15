"""Mask2Former checkpoints of mmdet, 2.x and 3.x, under the names of transformers 5.

Every name of such a checkpoint is known here, with what becomes of it; anything else is refused, so that no checkpoint
of another network or version scores in silence. Two tensors change their layout beside their name: mmdet's fused
query-key-value projections are split, and the patch-merging layers of Swin, whose input mmdet orders (channel, corner)
and transformers (corner, channel) with the corners in another order.

Source: mmdet 2.28.2 and 3.3.0 (parameter names), transformers 5 `modeling_mask2former`, `modeling_swin`.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from gcpo_bench.errors import CorruptDataError, PrerequisiteError
from gcpo_bench.files import sha256

UNUSED = re.compile(r"\.relative_position_index$")
"""Buffers that transformers computes."""
OURS = re.compile(r"^criterion\.empty_weight$|\.swin\.layernorm\.")
"""Entries of transformers' network that no checkpoint fills: a training loss, and a norm that nobody reads."""

_SCALAR: Any = np.array(0)[()].__reduce__()[0]  # numpy's maker of single numbers, whose module was renamed
NUMPY_NUMBERS: list[Any] = [
    np.dtype,
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
]
"""What the notes beside the weights may hold: training loops write down seeds and losses as they come."""

_PIXEL = "model.pixel_level_module."
_SWIN = _PIXEL + "encoder.swin."
_DECODER = _PIXEL + "decoder."
_QUERIES = "model.transformer_module."
Named = Iterator[tuple[str, Tensor]]
_FFN = {"0.0": "fc1", "1": "fc2"}
_ENCODER_NORMS = {"0": "self_attn_layer_norm", "1": "final_layer_norm"}
_DECODER_NORMS = {"0": "cross_attn_layer_norm", "1": "self_attn_layer_norm", "2": "final_layer_norm"}


# ---------------------------------------------------------------- what becomes of a name


def _renamed(name: str) -> Callable[[re.Match[str], Tensor], Named]:
    """The tensor as it is; `name` may use the pattern's groups."""

    def apply(match: re.Match[str], tensor: Tensor) -> Named:
        yield match.expand(name), tensor

    return apply


def _looked_up(name: str, table: Mapping[str, str]) -> Callable[[re.Match[str], Tensor], Named]:
    """As `_renamed`, with `{}` for what the table says of the pattern's group `key`."""

    def apply(match: re.Match[str], tensor: Tensor) -> Named:
        yield match.expand(name).format(table[match["key"]]), tensor

    return apply


def _split(name: str) -> Callable[[re.Match[str], Tensor], Named]:
    """A fused projection in three: `{}` becomes q, k and v."""

    def apply(match: re.Match[str], tensor: Tensor) -> Named:
        for letter, part in zip("qkv", tensor.chunk(3), strict=True):
            yield match.expand(name).format(letter), part.contiguous()

    return apply


def _corners_first(name: str) -> Callable[[re.Match[str], Tensor], Named]:
    """Input features of a patch merging from (channel, corner) to (corner, channel), corners 0, 2, 1, 3."""

    def apply(match: re.Match[str], tensor: Tensor) -> Named:
        features = tensor.reshape(*tensor.shape[:-1], -1, 4)
        yield match.expand(name), features[..., [0, 2, 1, 3]].transpose(-1, -2).reshape(tensor.shape).contiguous()

    return apply


_STAGE = r"backbone\.stages\.(\d+)\."
_BLOCK = _STAGE + r"blocks\.(\d+)\."
_TO_BLOCK = _SWIN + r"encoder.layers.\1.blocks.\2."
_ENCODER = r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\."
_TO_ENCODER = _DECODER + r"encoder.layers.\1."
_LAYER = r"panoptic_head\.transformer_decoder\.layers\.(\d+)\."
_TO_LAYER = _QUERIES + r"decoder.layers.\1."
_END = r"(weight|bias)"
_OF_FFN = r"(?:ffns\.0|ffn)\.layers\.(?P<key>0\.0|1)\."
_ATTENTION = r"(?:attn\.)?"

RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], Tensor], Named]], ...] = tuple(
    (re.compile(pattern), action)
    for pattern, action in (
        (rf"backbone\.patch_embed\.projection\.{_END}", _renamed(_SWIN + r"embeddings.patch_embeddings.projection.\1")),
        (rf"backbone\.patch_embed\.norm\.{_END}", _renamed(_SWIN + r"embeddings.norm.\1")),
        (
            rf"backbone\.norm(?P<key>[0-3])\.{_END}",
            _looked_up(_PIXEL + r"encoder.hidden_states_norms.{}.\2", {str(i): f"stage{i + 1}" for i in range(4)}),
        ),
        (rf"{_BLOCK}norm1\.{_END}", _renamed(_TO_BLOCK + r"layernorm_before.\3")),
        (rf"{_BLOCK}norm2\.{_END}", _renamed(_TO_BLOCK + r"layernorm_after.\3")),
        (rf"{_BLOCK}attn\.w_msa\.qkv\.{_END}", _split(_TO_BLOCK + r"attention.{}_proj.\3")),
        (rf"{_BLOCK}attn\.w_msa\.proj\.{_END}", _renamed(_TO_BLOCK + r"attention.o_proj.\3")),
        (
            rf"{_BLOCK}attn\.w_msa\.relative_position_bias_table",
            _renamed(_TO_BLOCK + "attention.relative_position_bias.relative_position_bias_table"),
        ),
        (rf"{_BLOCK}ffn\.layers\.(?P<key>0\.0|1)\.{_END}", _looked_up(_TO_BLOCK + r"mlp.{}.\4", _FFN)),
        (
            rf"{_STAGE}downsample\.(norm|reduction)\.{_END}",
            _corners_first(_SWIN + r"encoder.layers.\1.downsample.\2.\3"),
        ),
        (
            rf"panoptic_head\.pixel_decoder\.input_convs\.(\d+)\.(?P<key>conv|gn)\.{_END}",
            _looked_up(_DECODER + r"input_projections.\1.{}.\3", {"conv": "0", "gn": "1"}),
        ),
        (
            rf"panoptic_head\.pixel_decoder\.lateral_convs\.0\.(?P<key>conv|gn)\.{_END}",
            _looked_up(_DECODER + r"adapter_1.{}.\2", {"conv": "0", "gn": "1"}),
        ),
        (
            rf"panoptic_head\.pixel_decoder\.output_convs\.0\.(?P<key>conv|gn)\.{_END}",
            _looked_up(_DECODER + r"layer_1.{}.\2", {"conv": "0", "gn": "1"}),
        ),
        (rf"panoptic_head\.pixel_decoder\.mask_feature\.{_END}", _renamed(_DECODER + r"mask_projection.\1")),
        (r"panoptic_head\.pixel_decoder\.level_encoding\.weight", _renamed(_DECODER + "level_embed")),
        (
            rf"{_ENCODER}(?:attentions\.0|self_attn)\."
            rf"(sampling_offsets|attention_weights|value_proj|output_proj)\.{_END}",
            _renamed(_TO_ENCODER + r"self_attn.\2.\3"),
        ),
        (rf"{_ENCODER}{_OF_FFN}{_END}", _looked_up(_TO_ENCODER + r"{}.\3", _FFN)),
        (rf"{_ENCODER}norms\.(?P<key>[01])\.{_END}", _looked_up(_TO_ENCODER + r"{}.\3", _ENCODER_NORMS)),
        (
            rf"{_LAYER}(?:attentions\.0|cross_attn)\.{_ATTENTION}(in_proj_weight|in_proj_bias|out_proj\.{_END})",
            _renamed(_TO_LAYER + r"cross_attn.\2"),
        ),
        (
            rf"{_LAYER}(?:attentions\.1|self_attn)\.{_ATTENTION}in_proj_{_END}",
            _split(_TO_LAYER + r"self_attn.{}_proj.\2"),
        ),
        (
            rf"{_LAYER}(?:attentions\.1|self_attn)\.{_ATTENTION}out_proj\.{_END}",
            _renamed(_TO_LAYER + r"self_attn.out_proj.\2"),
        ),
        (rf"{_LAYER}{_OF_FFN}{_END}", _looked_up(_TO_LAYER + r"{}.\3", _FFN)),
        (rf"{_LAYER}norms\.(?P<key>[012])\.{_END}", _looked_up(_TO_LAYER + r"{}.\3", _DECODER_NORMS)),
        (rf"panoptic_head\.transformer_decoder\.post_norm\.{_END}", _renamed(_QUERIES + r"decoder.layernorm.\1")),
        (rf"panoptic_head\.cls_embed\.{_END}", _renamed(r"class_predictor.\1")),
        (
            rf"panoptic_head\.mask_embed\.(?P<key>[024])\.{_END}",
            _looked_up(_QUERIES + r"decoder.mask_predictor.mask_embedder.{}.0.\2", {"0": "0", "2": "1", "4": "2"}),
        ),
        (r"panoptic_head\.level_embed\.weight", _renamed(_QUERIES + "level_embed.weight")),
        (r"panoptic_head\.query_embed\.weight", _renamed(_QUERIES + "queries_embedder.weight")),
        (r"panoptic_head\.query_feat\.weight", _renamed(_QUERIES + "queries_features.weight")),
    )
)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An mmdet state dict under transformers' names.

    Raises ValueError that names the first entry no such checkpoint has.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not UNUSED.search(name):
            converted.update(_convert(name, tensor))
    return converted


def _convert(name: str, tensor: Tensor) -> Named:
    for pattern, action in RULES:
        if match := pattern.fullmatch(name):
            return action(match, tensor)
    raise ValueError(f"{name!r} is no entry of an mmdet Mask2Former with a Swin backbone")


# ---------------------------------------------------------------- from a file to a network


def config_of(state: Mapping[str, Tensor]) -> Mask2FormerConfig:
    """The architecture of a converted state dict, read off its shapes; heads of the query decoder are always 8."""
    table = "attention.relative_position_bias.relative_position_bias_table"

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise ValueError(f"the entry behind {name!r} is missing")
        return state[name].shape

    def count(prefix: str) -> int:
        numbers = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
        return len(numbers)

    stages = range(count(_SWIN + "encoder.layers."))
    embed_dim = shape(_SWIN + "embeddings.patch_embeddings.projection.weight")[0]
    backbone: dict[str, Any] = {
        "embed_dim": embed_dim,
        "depths": [count(f"{_SWIN}encoder.layers.{stage}.blocks.") for stage in stages],
        "num_heads": [shape(f"{_SWIN}encoder.layers.{stage}.blocks.0.{table}")[1] for stage in stages],
        "window_size": (math.isqrt(shape(f"{_SWIN}encoder.layers.0.blocks.0.{table}")[0]) + 1) // 2,
        "mlp_ratio": shape(_SWIN + "encoder.layers.0.blocks.0.mlp.fc1.weight")[0] / embed_dim,
        "out_features": [f"stage{stage + 1}" for stage in stages],
    }
    num_queries, hidden_dim = shape(_QUERIES + "queries_features.weight")
    options: dict[str, Any] = {
        "num_labels": shape("class_predictor.weight")[0] - 1,
        "num_queries": num_queries,
        "hidden_dim": hidden_dim,
        "feature_size": shape(_DECODER + "adapter_1.0.weight")[0],
        "mask_feature_size": shape(_DECODER + "mask_projection.weight")[0],
        "encoder_layers": count(_DECODER + "encoder.layers."),
        "encoder_feedforward_dim": shape(_DECODER + "encoder.layers.0.fc1.weight")[0],
        "decoder_layers": count(_QUERIES + "decoder.layers.") + 1,
        "dim_feedforward": shape(_QUERIES + "decoder.layers.0.fc1.weight")[0],
    }
    return Mask2FormerConfig(backbone_config=SwinConfig(**backbone), **options)


def from_state(state: Mapping[str, Tensor]) -> Mask2FormerForUniversalSegmentation:
    """The network of an mmdet state dict. Raises ValueError where an entry is unknown, missing or of another shape."""
    converted = convert(state)
    model = Mask2FormerForUniversalSegmentation(config_of(converted))
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if not OURS.search(name)}
    if missing := sorted(wanted.keys() - converted.keys()):
        raise ValueError(f"{len(missing)} entries are missing, the first becomes {missing[0]!r}")
    if extra := sorted(converted.keys() - wanted.keys()):
        raise ValueError(f"{len(extra)} entries are too many, the first becomes {extra[0]!r}")
    for name, tensor in converted.items():
        if tensor.shape != wanted[name]:
            raise ValueError(f"{name!r} would be {tuple(tensor.shape)}, the network has {tuple(wanted[name])}")
    model.load_state_dict(converted, strict=False)
    model.train(mode=False)
    return model


def load(path: Path, *, sha256_prefix: str = "") -> tuple[Mask2FormerForUniversalSegmentation, str]:
    """The network of an mmdet checkpoint file, and the file's SHA-256. Raises as `read`, also for another network."""
    state, digest = read(path, sha256_prefix=sha256_prefix)
    with refusing(path):
        return from_state(state), digest


def read(path: Path, *, sha256_prefix: str = "") -> tuple[dict[str, Tensor], str]:
    """The state dict of an mmdet checkpoint file, and the file's SHA-256.

    Args:
        sha256_prefix: how the digest must begin, as in OpenMMLab's file names; empty accepts any.
    Raises:
        PrerequisiteError: there is no such file.
        CorruptDataError: another digest, or no checkpoint of plain tensors.
    """
    if not path.is_file():
        raise PrerequisiteError(f"{path}: there is no such checkpoint", hint="gcpo-bench models ls says what is needed")
    digest = sha256(path)
    if not digest.startswith(sha256_prefix):
        raise CorruptDataError(
            f"{path}: SHA-256 is {digest}, should begin with {sha256_prefix}",
            hint="it was cut off in a download, or is another checkpoint; fetch it again",
        )
    with refusing(path):
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
        state = content.get("state_dict", content) if isinstance(content, dict) else None
        if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise ValueError("it holds no state dict")
        return state, digest


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turns what goes wrong with a checkpoint into a CorruptDataError that names the file."""
    try:
        yield
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CorruptDataError(
            f"{path} is not mmdet's Mask2Former with a Swin backbone: {reason}",
            hint="GenEval's checkpoint is mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco of mmdet 2.x",
        ) from error

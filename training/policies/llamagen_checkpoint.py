"""Published LlamaGen weights, once, into the one file that the policy loads.

Understood: `t2i_XL_stage1_256.pt`, `t2i_XL_stage2_512.pt` and `vq_ds16_t2i.pt` of FoundationVision/LlamaGen; the same
tensors as safetensors; and transformers that were renamed to those of Hugging Face's Llama (jadohu/LlamaGen-T2I and
-T2I-2, and what was trained from them). The renaming is read off zghhui/GCPO, `simpar/model/llama_model.py`, which
loads such files: query, key and value projections apart, rotary pairs still neighbours, so rows keep their order.

A `.pt` file is read as plain tensors only, which is all that the published ones hold by the hub's listing of them.
What else such files may hold is named here and left out; every other surplus, missing or misshapen tensor is an error,
and so are integers and numbers that are not finite.
Nothing in a file tells 256 from 512 px: both have the same shapes.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gcpo_bench import runs
from gcpo_bench.errors import CorruptDataError, PrerequisiteError
from gcpo_bench.weight_files import unwrapped
from gcpo_bench.weights import MODEL_FILES, Weights, files_of

from ..checkpoints import DTYPES, check_finite, write_tensors
from .llamagen import build

WRAPPERS = ("model", "module", "state_dict")
"""Keys under which a `.pt` file holds its tensors: plain, DeepSpeed, other trainers."""
COMPUTED = re.compile(r"(?:.*\.)?(?:freqs_cis|causal_mask|rotary_emb\.inv_freq)|layers\.\d+\.attention\.kv_cache\..*")
"""In a transformer's file: tables and caches, which are made anew."""
ENCODER = re.compile(r"encoder\..*|quant_conv\..*|quantize\.codebook_used")
"""In an image tokenizer's file: what makes codes of pixels, and a count of codes."""
HUGGING_FACE = {
    "model.embed_tokens.": "tok_embeddings.",
    "model.cls_embedding.": "cls_embedding.",
    "model.layers.": "layers.",
    "model.norm.": "norm.",
    "lm_head.": "output.",
    ".self_attn.o_proj.": ".attention.wo.",
    ".mlp.gate_proj.": ".feed_forward.w1.",
    ".mlp.up_proj.": ".feed_forward.w3.",
    ".mlp.down_proj.": ".feed_forward.w2.",
    ".input_layernorm.": ".attention_norm.",
    ".post_attention_layernorm.": ".ffn_norm.",
}
DAMAGED = (
    *(RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(AssertionError, ArithmeticError, MemoryError, struct.error, zipfile.BadZipFile),
)
"""What torch raises on a file with changed bytes."""
FILE_HINT = (
    "transformer: t2i_XL_stage1_256.pt for llamagen-xl-256, t2i_XL_stage2_512.pt for llamagen-xl-512, or a Hugging "
    "Face conversion of them; image tokenizer: vq_ds16_t2i.pt"
)
COPY_HINT = "fetch it again and compare its size with the published one"


def convert(model: str, transformer: Path, image_tokenizer: Path, out: Path) -> Path:
    """Write `<out>/<model>.safetensors`, and beside it a record with its checksum; `-o policy.weights=<out>` takes it.

    Either source is a file, or a folder with `model.safetensors` or `pytorch_model.bin`. Takes some 4 GB of memory for
    XL in float32, most of it pages of the files. Raises CorruptDataError, PrerequisiteError.
    """
    sources = {"transformer": _file(transformer), "vqmodel": _file(image_tokenizer)}
    tensors = read(model, **sources)
    path = out / f"{model}.safetensors"
    write_tensors(path, tensors)
    record = {
        "model": model,
        "sources": {part: {"file": source.name, "checksum": runs.checksum(source)} for part, source in sources.items()},
        "torch": torch.__version__,
        "checksum": runs.checksum(path),
    }
    runs.write_json(out / f"{model}.json", record)
    return path


def read(model: str, transformer: Path, vqmodel: Path) -> dict[str, Tensor]:
    """The tensors of two files under the policy's names. Raises CorruptDataError where they are not exactly those."""
    with torch.device("meta"):
        policy = build(model)
    renamed = published_names(read_tensors(transformer))
    return {
        **_part("transformer", transformer, renamed, COMPUTED, policy.transformer),
        **_part("vqmodel", vqmodel, read_tensors(vqmodel), ENCODER, policy.vqmodel),
    }


def check_folder(weights: Weights, folder: Path) -> None:
    """For `gcpo-bench models`: raises where `convert_folder` would."""
    read(weights.name, *files_of(weights, folder))


def convert_folder(weights: Weights, folder: Path) -> None:
    """Convert, inside `folder`, what `gcpo-bench models fetch` brought there."""
    transformer, image_tokenizer = files_of(weights, folder)
    convert(weights.name, transformer, image_tokenizer, folder)


def _file(source: Path) -> Path:
    if not source.is_dir():
        return source
    found = [source / name for name in MODEL_FILES if (source / name).exists()]
    if not found:
        raise PrerequisiteError(f"{source} holds neither {' nor '.join(MODEL_FILES)}", hint=FILE_HINT)
    return found[0]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors or `.pt` file, which may hold them under one of `WRAPPERS`."""
    with runs.reading(path):
        content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_archive(path)
    if isinstance(content, Mapping):
        wrapped = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
        if wrapped and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in wrapped.items()):
            plain = {unwrapped(name): tensor for name, tensor in wrapped.items()}
            return plain if len(plain) == len(wrapped) else dict(wrapped)
    raise CorruptDataError(
        f"{path} holds no named tensors, neither at its top nor under {', '.join(WRAPPERS)}", hint=FILE_HINT
    )


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CorruptDataError(f"{path} is no whole safetensors file: {error}", hint=COPY_HINT) from error


def _load_archive(path: Path) -> object:
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        if is_zip and not zipfile.is_zipfile(path):
            raise CorruptDataError(f"{path} is cut off: the end of the archive is missing", hint=COPY_HINT)
        # the training script stores its arguments beside the tensors; a Namespace is a plain record
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        # torch's message goes on to recommend what would run the file's code
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it refers to {found[1]}" if found else "it is damaged, or no file of torch.save"
        raise CorruptDataError(
            f"{path} is no plain archive of tensors: {what}; nothing in it was run",
            hint=f"give a published file. {FILE_HINT}",
        ) from error
    except DAMAGED as error:
        reason = str(error).strip().partition("\n")[0]
        reason = reason if " " in reason else type(error).__name__  # some are a bare number
        raise CorruptDataError(f"{path} is no whole archive of tensors: {reason}", hint=COPY_HINT) from error


def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformer's tensors under the published names, from those or from the names of Hugging Face's Llama."""
    renamed: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        for theirs, published in HUGGING_FACE.items():
            name = name.replace(theirs, published)
        match = re.fullmatch(r"(layers\.\d+)\.self_attn\.([qkv])_proj\.weight", name)
        if match:
            projections.setdefault(match[1], {})[match[2]] = tensor
        else:
            renamed[name] = tensor
    for layer, parts in projections.items():
        alike = len({(tensor.dtype, tensor.shape) for tensor in parts.values()}) == 1
        if len(parts) == 3 and alike and parts["q"].ndim:  # else the fused tensor is missing, and is reported as such
            renamed[f"{layer}.attention.wqkv.weight"] = torch.cat([parts[part] for part in "qkv"])
    return renamed


def _part(
    part: str, path: Path, tensors: Mapping[str, Tensor], left_out: re.Pattern[str], module: nn.Module
) -> dict[str, Tensor]:
    """`tensors` under the policy's names, once they are exactly those of `module`."""
    kept = {name: tensor for name, tensor in tensors.items() if not left_out.fullmatch(name)}
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in kept.items()}
    wrong = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
    if wrong:
        what = "transformer" if part == "transformer" else "image tokenizer"
        first = wrong[0]
        raise CorruptDataError(
            f"{path} is not the {what} of this model: {len(wrong)} of {len(own)} tensors differ, first {first!r} "
            f"(file {given.get(first, 'none')}, model {own.get(first, 'none')})",
            hint=FILE_HINT,
        )
    if integers := [name for name in own if kept[name].dtype not in DTYPES]:
        raise CorruptDataError(
            f"{path}: {len(integers)} tensors are no floating point numbers, first {integers[0]!r} "
            f"({kept[integers[0]].dtype})",
            hint="take the unquantised weights",
        )
    for name in own:
        check_finite(kept[name].detach(), f"{path}: {name!r}")
    return {f"{part}.{name}": kept[name] for name in own}

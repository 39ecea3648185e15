"""Weights as others publish them, read into a policy: safetensors files in a folder, under the publisher's names.

Names, shapes and what config.json says of the pass are compared before a tensor is read, so a checkpoint of another
model is told at once, whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import nn

from gcpo_bench import catalogue
from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.files import checksum, read_object
from gcpo_bench.registry import POLICIES
from gcpo_bench.weight_files import ADAPTER, HINT, MERGE, Header, model_files, read_headers, refuse_adapter, unwrapped
from gcpo_bench.weights import Weights, recorded_checksums, stamp

from .checkpoints import check_finite

Shape = tuple[int, ...]
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""What weights are; anything else is quantised, or no weights."""
DEEPSEEK = "multi_modality"
"""`model_type` of what deepseek-ai publishes, before it was converted for transformers."""
CONVERT = (
    "take the same model as converted for transformers, deepseek-community/Janus-Pro-1B or -7B; of your own training "
    "convert it, with transformers' convert_janus_weights_to_hf.py"
)
OTHER_MODEL = "these are weights of another model: name the one that they belong to, or fetch this one's"


class Publishable(Protocol):
    """A policy that has published weights."""

    published_type: str
    """`model_type` of the checkpoint's config.json."""

    def published_name(self, name: str) -> str:
        """What the publisher calls one of our tensors."""
        ...

    def is_unused(self, published_name: str) -> bool:
        """Whether a tensor of the publisher is one that drawing images does not need."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """What its pass uses beside tensors and no shape tells, by its place in config.json."""
        ...

    def published_settings(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same of a checkpoint's config.json; raises anything where that is damaged."""
        ...


def is_published(folder: Path) -> bool:
    """Whether `folder` looks like a checkpoint of others; adapters do too, and are refused as what they are."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER)) and not (folder / "state.json").exists()


def digest(folder: Path) -> str:
    """One checksum over all weight files; those that did not change since they were fetched are not read for it."""
    recorded = recorded_checksums(folder, unchanged=True)
    found = {path.name: recorded.get(path.name) or _checksum(path.resolve(), stamp(path)) for path in _files(folder)}
    text = "\n".join(f"{name} {found[name]}" for name in sorted(found))
    return f"xxh3:{xxhash.xxh3_128_hexdigest(text.encode())}"


@lru_cache(maxsize=64)
def _checksum(path: Path, state: tuple[int, int]) -> str:
    """Of a file in the state that `stamp` told: a start asks several times, and 15 GB take a while."""
    return checksum(path)


def check_folder(weights: Weights, folder: Path) -> None:
    """For `gcpo-bench models`: raises where the policy of that name could not be filled from the folder.

    Raises as `check_published` does.
    """
    with torch.device("meta"):
        policy = POLICIES.load(weights.name)(weights.name, folder=folder)
    check_published(policy, folder)


def model_of(folder: Path) -> str:
    """The policy that can be filled from the folder. Raises CorruptDataError, with every reason, where none can."""
    reasons = []
    for name in catalogue.POLICIES:
        weights = catalogue.CATALOGUE[name]
        if weights.check and not weights.convert:
            try:
                check_folder(weights, folder)
            except (ConfigError, CorruptDataError) as error:
                reasons.append(f"{name}: {error}")
            else:
                return name
    raise CorruptDataError(f"{folder} fits no policy. As {'; as '.join(reasons)}", hint=OTHER_MODEL)


def check_any(weights: Weights, folder: Path) -> None:
    """As `check_folder`, for weights that say of no policy that they are its."""
    model_of(folder)


def read_published(policy: nn.Module, folder: Path) -> None:
    """Fill `policy` from the folder; our dtype, whatever the file's.

    Raises as `check_published` does, and CorruptDataError for numbers that are not finite.
    """
    headers = check_published(policy, folder)
    model: Any = policy
    with ExitStack() as stack, torch.no_grad():
        try:
            files = {path: stack.enter_context(safe_open(path, framework="pt")) for path in _files(folder)}
            for name, tensor in policy.state_dict().items():
                header = headers[model.published_name(name)]
                tensor.copy_(files[header.file].get_tensor(header.name))
                check_finite(tensor, f"{header.file}: {header.name!r}", HINT)
        except (SafetensorError, OSError) as error:
            raise CorruptDataError(f"{folder} cannot be read: {error}", hint=HINT) from error


def check_published(policy: nn.Module, folder: Path) -> dict[str, Header]:
    """What the folder's files say of each tensor, once they can fill `policy`; no tensor is read.

    Raises:
        ConfigError: a checkpoint of another kind of model.
        CorruptDataError: a file that is damaged, tensors that are missing, too many, of another shape or no floating
            point numbers, or a config.json by which the same tensors are another model.
    """
    model: Any = policy
    refuse_adapter(folder)
    config = read_object(folder / "config.json")
    found = config.get("model_type")
    if found == DEEPSEEK:
        raise ConfigError(
            f"{folder} holds a Janus under DeepSeek's own names ({DEEPSEEK!r}), which are not read", hint=CONVERT
        )
    if found != model.published_type:
        raise ConfigError(
            f"{folder} holds a {found or 'nameless'!r} checkpoint, not {model.published_type!r}", hint=OTHER_MODEL
        )
    headers = _headers(folder)
    expected = {model.published_name(name): tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    given = {name: each.shape for name, each in headers.items() if name in expected or not model.is_unused(name)}
    _refuse_adapted(folder, given)
    _refuse_padded(folder, given, expected)
    _require_equal(folder, "tensors", given, expected)
    if integers := [name for name in expected if headers[name].dtype not in FLOATS]:
        raise CorruptDataError(
            f"{folder}: {len(integers)} tensors are no floating point numbers, first {integers[0]!r} "
            f"({headers[integers[0]].dtype})",
            hint="take the unquantised weights",
        )
    try:
        settings = model.published_settings(config)
    except Exception as error:  # transformers refuses a configuration in many ways
        reason = " ".join(str(error).split())[:120]
        raise CorruptDataError(f"{folder / 'config.json'} is damaged: {reason}", hint=HINT) from error
    _require_equal(folder, "settings of config.json", settings, model.settings())
    return headers


def _refuse_adapted(folder: Path, given: Iterable[str]) -> None:
    if adapted := [name for name in given if ".lora_" in name or ".base_layer." in name]:
        raise ConfigError(f"{folder} holds adapters that are not merged, first {adapted[0]!r}", hint=MERGE)


def _refuse_padded(folder: Path, given: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Raises CorruptDataError where all that differs are tables with rows to spare."""
    wrong = [name for name in given.keys() | expected.keys() if given.get(name) != expected.get(name)]
    longer = [
        name
        for name in sorted(wrong)
        if len(given.get(name, ())) == len(expected.get(name, (0,))) == 2
        and given[name][1] == expected[name][1]
        and given[name][0] > expected[name][0]
    ]
    if longer and len(longer) == len(wrong):
        name, rows = longer[0], expected[longer[0]][0]
        raise CorruptDataError(
            f"{folder}: {name!r} has {given[name][0]} rows, the model's {rows}: it was padded, or has words of its own",
            hint=f"cut it with transformers: model.resize_token_embeddings({rows}), then save_pretrained",
        )


def _require_equal(folder: Path, what: str, given: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    wrong = sorted(name for name in given.keys() | expected.keys() if given.get(name) != expected.get(name))
    if wrong:
        first = wrong[0]
        raise CorruptDataError(
            f"{folder} holds another model: {len(wrong)} {what} differ, first {first!r} "
            f"(file {given.get(first, 'none')}, model {expected.get(first, 'none')})",
            hint=OTHER_MODEL,
        )


def _headers(folder: Path) -> dict[str, Header]:
    headers: dict[str, Header] = {}
    for path in _files(folder):
        read = read_headers(path)
        found = {unwrapped(name): header for name, header in read.items()}
        if len(found) < len(read):
            raise CorruptDataError(
                f"{path} holds tensors under the names of two programs", hint="keep those of one model"
            )
        if doubled := headers.keys() & found.keys():
            name = min(doubled)
            raise CorruptDataError(
                f"{folder} holds {name!r} twice, in {headers[name].file.name} and {path.name}",
                hint="keep the files of one model",
            )
        headers |= found
    return headers


def _files(folder: Path) -> list[Path]:
    if files := model_files(folder):
        return files
    pickles = [path.name for path in folder.glob("*.bin")] + [path.name for path in folder.glob("*.pt*")]
    raise ConfigError(
        f"{folder} holds no .safetensors file" + (f", only {pickles[0]}" if pickles else ""),
        hint="take the safetensors conversion, such as deepseek-community/Janus-Pro-1B; pickles are not opened",
    )

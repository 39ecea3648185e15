"""Weights as others publish them, read into a policy: safetensors files in a folder, under the publisher's names.

Names and shapes are compared before a tensor is read, so a checkpoint of another model is told at once, whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.files import checksum, read_json
from gcpo_bench.weights import recorded_checksums

INDEX = "model.safetensors.index.json"


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


def is_published(folder: Path) -> bool:
    """Whether `folder` looks like a checkpoint of others."""
    return (folder / "config.json").is_file() and not (folder / "state.json").exists()


def digest(folder: Path) -> str:
    """One checksum over all weight files: as recorded when they were fetched, else read now."""
    recorded = recorded_checksums(folder)
    found = {name: value for name, value in recorded.items() if name.endswith(".safetensors")}
    found = found or {path.name: checksum(path) for path in _files(folder)}
    text = "\n".join(f"{name} {found[name]}" for name in sorted(found))
    return f"xxh3:{xxhash.xxh3_128_hexdigest(text.encode())}"


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [path.name for path in folder.glob("*.bin")] + [path.name for path in folder.glob("*.pt*")]
        raise ConfigError(
            f"{folder} holds no .safetensors file" + (f", only {pickles[0]}" if pickles else ""),
            hint="take the safetensors conversion, such as deepseek-community/Janus-Pro-1B; pickles are not opened",
        )
    if (folder / INDEX).is_file():
        listed = set(read_json(folder / INDEX).get("weight_map", {}).values())
        if missing := sorted(listed - {path.name for path in files}):
            raise CorruptDataError(
                f"{folder} is not whole: {missing[0]} is missing ({len(missing)} of {len(listed)} files)",
                hint="fetch the model again; an interrupted download goes on",
            )
    return files


def read_published(policy: nn.Module, folder: Path) -> None:
    """Fill `policy` from the folder; our dtype, whatever the file's. Raises as `check_published` does."""
    with _matching(policy, folder) as (own, given), torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name].get_tensor(name))


def check_published(policy: nn.Module, folder: Path) -> None:
    """Compare names and shapes; nothing else is read.

    Raises:
        ConfigError: a checkpoint of another kind of model.
        CorruptDataError: a file that is damaged, or tensors that are missing, too many or of another shape.
    """
    with _matching(policy, folder):
        pass


@contextmanager
def _matching(policy: nn.Module, folder: Path) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Published name -> our tensor, and -> the open file that holds it."""
    model: Any = policy
    found_type = read_json(folder / "config.json").get("model_type")
    if found_type != model.published_type:
        raise ConfigError(
            f"{folder} holds a {found_type!r} checkpoint, not {model.published_type!r}",
            hint="choose the --model that these weights belong to",
        )
    own = {model.published_name(name): tensor for name, tensor in policy.state_dict().items()}
    with _opened(folder) as given:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in given.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
        extra = [name for name in shapes if name not in expected and not model.is_unused(name)]
        wrong = [name for name in expected if shapes.get(name) != expected[name]]
        if extra or wrong:
            first = sorted([*extra, *wrong])[0]
            raise CorruptDataError(
                f"{folder} holds another model: {len(extra) + len(wrong)} tensors differ, first {first!r} "
                f"(file {shapes.get(first, 'none')}, model {expected.get(first, 'none')})",
                hint="choose the --model that these weights belong to",
            )
        yield own, given


@contextmanager
def _opened(folder: Path) -> Iterator[dict[str, Any]]:
    """Tensor name -> the open file that holds it."""
    with ExitStack() as stack:
        given: dict[str, Any] = {}
        for path in _files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise CorruptDataError(
                    f"{path} is no safetensors file, or cut off: {error}", hint="delete it and fetch the model again"
                ) from error
            given |= dict.fromkeys(file.keys(), file)
        yield given

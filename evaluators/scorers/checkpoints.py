"""Weights from files into models: nothing is executed, every tensor has its place, every defect is one sentence."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gcpo_bench.errors import CorruptDataError, PrerequisiteError
from gcpo_bench.files import checksum, read_json

M = TypeVar("M", bound=nn.Module)
State = Mapping[str, Tensor]

WRAPPERS = ("state_dict", "model")
"""Keys under which training code saves the tensors."""
_AGAIN = "copy or fetch it again, and compare its digest with the published one"
_NAMES_SHOWN = 3


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a torch file read with `weights_only`, unwrapped.

    Raises PrerequisiteError where there is no such file, CorruptDataError where it holds anything but tensors.
    """
    if not path.is_file():
        raise PrerequisiteError(f"weights {path} are not there", hint="give the path of the downloaded file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CorruptDataError(f"weights {path} are damaged: {_line(error)}", hint=_AGAIN) from error
    if _is_torchscript(path):
        raise CorruptDataError(
            f"{path} is a TorchScript archive, which holds a program",
            hint="use the same weights as a transformers folder or as a .safetensors file",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CorruptDataError(
            f"weights {path} are damaged, or hold more than tensors: {_line(error)}", hint=_AGAIN
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(f"weights {path} are damaged: {_line(error)}", hint=_AGAIN) from error
    return _unwrap(path, content)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise CorruptDataError(f"{path} holds {type(content).__name__}, not named tensors", hint=_AGAIN)
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise CorruptDataError(f"{path} holds something that is no tensor: {_some(strange)}", hint=_AGAIN)
    return dict(content)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """config.json, the tensors and their checksum, of a model folder as transformers saves it; shards are joined.

    Raises PrerequisiteError where a file is missing, CorruptDataError for a damaged one.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    if not isinstance(config, dict):
        raise PrerequisiteError(f"{folder} has no config.json", hint="give the folder that holds the whole model")
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return config, read_state(folder / name), checksum(folder / name)
        if (folder / f"{name}.index.json").is_file():
            index = read_json(folder / f"{name}.index.json")
            parts = sorted({str(part) for part in index.get("weight_map", {}).values()})
            if any(Path(part).name != part for part in parts):
                raise CorruptDataError(f"{folder / name}.index.json names files outside its folder", hint=_AGAIN)
            state: dict[str, Tensor] = {}
            for part in parts:
                state |= read_state(folder / part)
            return config, state, " ".join(checksum(folder / part) for part in parts)
    raise PrerequisiteError(
        f"{folder} has no weights", hint="it should hold model.safetensors or pytorch_model.bin beside config.json"
    )


def fill(build: Callable[[], M], state: State, what: str, *, ignored: Collection[str] = ()) -> M:
    """The model that `build` makes, with these weights as float32, ready to score and without gradients.

    It is built without memory for its own random weights, so that the largest need little more than their size.
    Position numbers (`position_ids`), which older files carry, are skipped; so are names in `ignored`.
    Raises CorruptDataError where a tensor is missing, left over, of another shape, or not of floats.
    """
    with torch.device("meta"):
        model = build()
    given = {name: value for name, value in state.items() if not name.endswith("position_ids") and name not in ignored}
    check(model.state_dict(), given, what)
    model.load_state_dict({name: value.float() for name, value in given.items()}, assign=True)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:  # not saved: numbers of positions
                setattr(module, name, torch.arange(buffer.shape[-1]).expand(buffer.shape))
    model.requires_grad_(False)
    model.train(mode=False)
    return model


def check(expected: State, given: State, what: str) -> None:
    """Raises CorruptDataError unless both have the same names and shapes, and `given` holds floats."""
    missing = [name for name in expected if name not in given]
    extra = [name for name in given if name not in expected]
    shapes = [
        f"{name} is {tuple(value.shape)}, not {tuple(expected[name].shape)}"
        for name, value in given.items()
        if name in expected and value.shape != expected[name].shape
    ]
    types = [f"{name} is {value.dtype}" for name, value in given.items() if not value.is_floating_point()]
    problems = [
        f"{len(names)} {word}: {_some(names)}"
        for word, names in (
            ("missing", missing),
            ("left over", extra),
            ("of another shape", shapes),
            ("no floats", types),
        )
        if names
    ]
    if problems:
        raise CorruptDataError(
            f"the weights are not those of {what}; tensors {'; '.join(problems)}",
            hint="check that the file is the published one and belongs to this scorer",
        )


def _some(names: Collection[str]) -> str:
    shown = [*names][:_NAMES_SHOWN]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")

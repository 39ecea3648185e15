"""Weights and optimiser state on disk: atomic, checksummed, never unpickled.

A checkpoint is a folder; its state.json is written last and holds the other files' checksums, so a folder with a
state.json is complete and whatever else happened to it since is noticed.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gcpo_bench import runs
from gcpo_bench.errors import CorruptDataError, RunError, TrainingError

from .health import SAFE
from .optimizers import Optimizer

WEIGHTS, OPTIMIZER, STATE = "policy.safetensors", "optimizer.pt", "state.json"
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""In safetensors' words, and in the order in which it lays tensors out, so that each is aligned."""
HINT = "delete this checkpoint's folder to go on from the one before it, or train again under another --name"


# ---------------------------------------------------------------- weights


def save_weights(policy: nn.Module, path: Path, *, whole: bool = False) -> None:
    """What the policy trains, or all of it."""
    write_tensors(path, _tensors(policy, whole))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """The file that safetensors' `save_file` writes, one tensor in memory after the other.

    The library's `save` holds all of them twice; its `save_file` takes the permissions away and hides a full disk.
    """
    places = list(DTYPES)
    names = sorted(tensors, key=lambda name: (places.index(tensors[name].dtype), name))
    header, end = {}, 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": DTYPES[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with runs.replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            numbers = tensors[name].detach().contiguous().cpu()
            file.write(numbers.reshape(-1).view(torch.uint8).numpy().data)


def _tensors(policy: nn.Module, whole: bool) -> dict[str, Tensor]:
    if whole:
        return dict(policy.state_dict())
    return {name: parameter.detach() for name, parameter in policy.named_parameters() if parameter.requires_grad}


def load_weights(policy: nn.Module, path: Path, *, expected_checksum: str | None = None, whole: bool = False) -> None:
    """Fill what `policy` trains, or all of it, from a safetensors file.

    Raises CorruptDataError if the file is damaged or of another architecture, or holds numbers that are not finite.
    """
    filled = _tensors(policy, whole)
    before = _inode(path)
    with _opened(path) as file, torch.no_grad():
        if expected_checksum is not None:
            _check(path, expected_checksum)
        if _inode(path) != before:  # files are replaced, not changed: what was checked is what is open
            raise CorruptDataError(f"{path} was replaced while it was read", hint="run the same command again")
        _compare(path, filled, _shapes(file))
        for name, tensor in filled.items():
            tensor.copy_(file.get_tensor(name))
            check_finite(tensor, f"{path}: {name!r}")


def is_finite(tensor: Tensor) -> bool:
    """Whether every number is one; integers are."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor.detach())  # passes NaN on, and takes no memory
    return math.isfinite(low) and math.isfinite(high)


def check_finite(tensor: Tensor, what: str, hint: str = HINT) -> None:
    """Raises CorruptDataError where a number is infinite or none."""
    if not is_finite(tensor):
        raise CorruptDataError(f"{what} holds numbers that are not finite", hint=hint)


def _inode(path: Path) -> int:
    with runs.reading(path):
        return path.stat().st_ino


def check_names(policy: nn.Module, path: Path, *, whole: bool = False) -> None:
    """Raises CorruptDataError where a safetensors file is cut off or of another architecture; reads no tensor."""
    with _opened(path) as file:
        _compare(path, _tensors(policy, whole), _shapes(file))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with runs.reading(path), safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise CorruptDataError(f"{path} is no safetensors file: {error}", hint=HINT) from error


def _shapes(file: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _compare(path: Path, filled: dict[str, Tensor], given: dict[str, tuple[int, ...]]) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in filled.items()}
    if own != given:
        wrong = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
        first = wrong[0]
        raise CorruptDataError(
            f"{path} holds another model: {len(wrong)} tensors differ, first {first!r} "
            f"(file {given.get(first, 'none')}, model {own.get(first, 'none')})",
            hint="choose the --model that these weights belong to",
        )


def _check(path: Path, expected: str) -> None:
    found = runs.checksum(path)
    if found != expected:
        raise CorruptDataError(f"{path} is damaged: checksum {found}, expected {expected}", hint=HINT)


# ---------------------------------------------------------------- checkpoints


def save(run: runs.Run, step: int, policy: nn.Module, optimizer: Optimizer | None, *, keep: int) -> None:
    """Write the checkpoint of `step` and drop all but the newest `keep`. Of several processes all call it.

    Raises TrainingError where the weights are not finite; the checkpoints before are untouched.
    """
    for name, tensor in _tensors(policy, False).items():
        if not is_finite(tensor):
            raise TrainingError(f"{name} holds numbers that are not finite at step {step}", hint=SAFE)
    state = optimizer.state_dict() if optimizer is not None else None
    if not run.writable:
        return
    folder = run.checkpoint_path(step)
    (folder / STATE).unlink(missing_ok=True)  # while its files are replaced, the folder is not complete
    save_weights(policy, folder / WEIGHTS)
    files = [WEIGHTS]
    if state is not None:
        _write_state(folder / OPTIMIZER, state)
        files.append(OPTIMIZER)
    checksums = {name: runs.checksum(folder / name) for name in files}
    runs.sync(run.metrics_path)  # what a checkpoint was trained on is on the disk before it counts
    runs.write_json(folder / STATE, {"step": step, "model": run.config.policy.name, "checksums": checksums})
    for old in run.checkpoint_steps()[:-keep]:
        (run.checkpoint_path(old) / STATE).unlink()
        shutil.rmtree(run.checkpoint_path(old), ignore_errors=True)


def _write_state(path: Path, state: dict[str, Any]) -> None:
    with runs.replacing(path) as file:
        try:
            torch.save(state, file)  # of a path, torch would write the name into it
        except RuntimeError as error:  # after a full disk torch tries to write the end, and tells how that went
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint, as its record said when it was read."""

    folder: Path
    step: int
    checksums: Mapping[str, str]

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    @property
    def digest(self) -> str:
        """Checksum of the weights."""
        return self.checksums[WEIGHTS]

    def is_as_read(self) -> bool:
        """False once training has removed it or written it anew."""
        try:
            return read(self.folder, self.step) == self
        except CorruptDataError:
            return False


def read(folder: Path, step: int, model: str | None = None) -> Checkpoint:
    """Raises CorruptDataError where the record is damaged or no longer there, or of another model than is given."""
    return Checkpoint(folder=folder, step=step, checksums=_read_state(folder, model)["checksums"])


def newest(run: runs.Run) -> Checkpoint:
    """The newest complete checkpoint now; a run that is being trained has another one later.

    Raises RunError where there is none, CorruptDataError where its record is damaged.
    """
    while True:
        step = latest_step(run)
        folder = run.checkpoint_path(step)
        try:
            return read(folder, step, run.config.policy.name)
        except CorruptDataError as error:
            if not isinstance(error.__cause__, FileNotFoundError):  # else training removed it just now
                raise


def load_newest(run: runs.Run, policy: nn.Module) -> Checkpoint:
    """Fill `policy` from the newest checkpoint, and say which one that was.

    Training may remove a checkpoint, or write it anew, while it is read: then the one that is newest by then is taken.
    Raises as `newest`, and CorruptDataError where the weights are damaged or of another model.
    """
    while True:
        checkpoint = newest(run)
        try:
            load_weights(policy, checkpoint.weights, expected_checksum=checkpoint.digest)
            return checkpoint
        except CorruptDataError:
            if checkpoint.is_as_read():
                raise


def latest_step(run: runs.Run) -> int:
    """Raises RunError where the run has no complete checkpoint."""
    steps = run.checkpoint_steps()
    if not steps:
        raise RunError(
            f"{run.path} has no checkpoint yet", hint=f"train it first: gcpo-bench train --resume --name {run.name}"
        )
    return steps[-1]


def load(run: runs.Run, step: int, policy: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Fill `policy` (and `optimizer`) from a checkpoint; every file's checksum is verified first."""
    folder = run.checkpoint_path(step)
    state = _read_state(folder, run.config.policy.name)
    load_weights(policy, folder / WEIGHTS, expected_checksum=state["checksums"][WEIGHTS])
    if optimizer is not None:
        path = folder / OPTIMIZER
        if OPTIMIZER not in state["checksums"]:
            raise RunError(
                f"{folder} holds weights only, training cannot resume from it", hint="start a new run from it"
            )
        _check(path, state["checksums"][OPTIMIZER])
        # weights_only: plain tensors and numbers; anything else in the pickle is refused, not run. Several processes
        # share the file's pages, each reads those of its own part
        many = optimizer.world.size > 1
        optimizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True, mmap=many))


def _read_state(folder: Path, model: str | None = None) -> dict[str, Any]:
    """The record of a checkpoint.

    Raises CorruptDataError where it is damaged, of another step than its folder, or of another model than is given.
    """
    path = folder / STATE
    state = runs.read_json(path, HINT)
    if not (isinstance(state, dict) and isinstance(state.get("checksums"), dict) and WEIGHTS in state["checksums"]):
        raise CorruptDataError(f"{path} is no checkpoint record", hint=HINT)
    named = runs.STEP_FOLDER.fullmatch(folder.name)
    if named and state.get("step") != int(named[1]):
        raise CorruptDataError(f"{path} is of step {state.get('step')!r}, which is another one", hint=HINT)
    if model is not None and state.get("model") != model:
        raise CorruptDataError(f"{path} is of model {state.get('model')!r}, and the run of {model!r}", hint=HINT)
    return state


def weights_checksum(folder: Path) -> str:
    """As recorded when the checkpoint was written."""
    return str(_read_state(folder)["checksums"][WEIGHTS])


def weights_digest(run: runs.Run) -> str:
    """Checksum of the newest checkpoint's weights; who loads them takes it from `load_newest`."""
    return newest(run).digest

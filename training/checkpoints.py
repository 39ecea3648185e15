"""Weights and optimiser state on disk: atomic, checksummed, never unpickled.

A checkpoint is a folder; its state.json is written last and holds the other files' checksums, so a folder with a
state.json is complete and whatever else happened to it since is noticed.
"""

from __future__ import annotations

import io
import shutil
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import nn

from gcpo_bench import runs
from gcpo_bench.ablations import start_config, start_name
from gcpo_bench.config import RunConfig
from gcpo_bench.errors import ConfigError, CorruptDataError, RunError
from gcpo_bench.registry import POLICIES

if TYPE_CHECKING:
    from .types import Policy

WEIGHTS, OPTIMIZER, STATE = "policy.safetensors", "optimizer.pt", "state.json"
HINT = "delete this checkpoint's folder to go on from the one before it, or train again under another --name"


# ---------------------------------------------------------------- weights


def save_weights(policy: nn.Module, path: Path) -> None:
    runs.write_bytes(path, dump_tensors({name: t.contiguous().cpu() for name, t in policy.state_dict().items()}))


def load_weights(policy: nn.Module, path: Path, *, expected_checksum: str | None = None) -> None:
    """Fill `policy` from a safetensors file. Raises CorruptDataError if it is damaged or of another architecture."""
    if expected_checksum is not None:
        _check(path, expected_checksum)
    try:
        with runs.reading(path):
            tensors = load_tensors(path.read_bytes())
    except SafetensorError as error:
        raise CorruptDataError(f"{path} is no safetensors file: {error}", hint=HINT) from error
    own = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if own != given:
        wrong = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
        first = wrong[0]
        raise CorruptDataError(
            f"{path} holds another model: {len(wrong)} tensors differ, first {first!r} "
            f"(file {given.get(first, 'none')}, model {own.get(first, 'none')})",
            hint="choose the --model that these weights belong to",
        )
    policy.load_state_dict(tensors)


def _check(path: Path, expected: str) -> None:
    found = runs.checksum(path)
    if found != expected:
        raise CorruptDataError(f"{path} is damaged: checksum {found}, expected {expected}", hint=HINT)


def packaged_weights(model: str) -> tuple[Path, str]:
    """File and checksum of the starting weights that ship with the package. Raises ConfigError where none do."""
    folder = Path(str(resources.files("gcpo_bench.training.weights")))
    if not (folder / f"{model}.json").exists():
        raise ConfigError(
            f"no weights of {model} ship with gcpo-bench",
            hint="name a run or a checkpoint folder with -o policy.weights=..., or take -o policy.random_init=true",
        )
    return _pretrained(folder, model)


def _pretrained(folder: Path, model: str) -> tuple[Path, str]:
    """What `pretrain` wrote into `folder`."""
    record = runs.read_json(folder / f"{model}.json")
    if not isinstance(record, dict) or not isinstance(record.get("checksum"), str):
        raise CorruptDataError(f"{folder / f'{model}.json'} is damaged: it has no checksum", hint="pretrain again")
    return folder / f"{model}.safetensors", record["checksum"]


def start_weights(config: RunConfig, runs_root: Path | None = None) -> tuple[Path | None, str]:
    """File and checksum that training starts from: packaged, pretrained, a checkpoint, or a run's newest one.

    Random weights have no file; their model's name stands for the checksum.
    """
    source = config.policy.weights
    if config.policy.random_init:
        return None, f"random:{config.policy.name}"
    if source == "packaged":
        return packaged_weights(config.policy.name)
    folder = Path(source)
    if (folder / f"{config.policy.name}.json").exists():
        return _pretrained(folder, config.policy.name)
    if not (folder / STATE).exists():
        run = runs.open_run(source, runs_root or Path("runs"))
        folder = run.checkpoint_path(latest_step(run))
    state = _read_state(folder)
    return folder / WEIGHTS, str(state["checksums"][WEIGHTS])


def start_policy(config: RunConfig, runs_root: Path | None = None) -> Policy:
    """The policy before reinforcement learning, in evaluation mode (no policy here uses dropout)."""
    policy = _build(config)
    path, expected = start_weights(config, runs_root)
    if path is None:
        policy.initialize(torch.Generator().manual_seed(0))  # type: ignore[operator]
    else:
        load_weights(policy, path, expected_checksum=expected)
    return policy.to(config.policy.device)  # type: ignore[return-value]


def _build(config: RunConfig) -> nn.Module:
    policy: nn.Module = POLICIES.load(config.policy.name)(config.policy.name, template=config.policy.template)
    return policy.eval()


# ---------------------------------------------------------------- checkpoints


def save(run: runs.Run, step: int, policy: nn.Module, optimizer: torch.optim.Optimizer | None, *, keep: int) -> None:
    """Write the checkpoint of `step` and drop all but the newest `keep`."""
    folder = run.checkpoint_path(step)
    (folder / STATE).unlink(missing_ok=True)  # while its files are replaced, the folder is not complete
    save_weights(policy, folder / WEIGHTS)
    files = [WEIGHTS]
    if optimizer is not None:
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        runs.write_bytes(folder / OPTIMIZER, buffer.getvalue())
        files.append(OPTIMIZER)
    checksums = {name: runs.checksum(folder / name) for name in files}
    runs.write_json(folder / STATE, {"step": step, "model": run.config.policy.name, "checksums": checksums})
    for old in run.checkpoint_steps()[:-keep]:
        (run.checkpoint_path(old) / STATE).unlink()
        shutil.rmtree(run.checkpoint_path(old), ignore_errors=True)


def latest_step(run: runs.Run) -> int:
    """Raises RunError where the run has no complete checkpoint."""
    steps = run.checkpoint_steps()
    if not steps:
        raise RunError(
            f"{run.path} has no checkpoint yet", hint=f"train it first: gcpo-bench train --resume --name {run.name}"
        )
    return steps[-1]


def load(run: runs.Run, step: int, policy: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Fill `policy` (and `optimizer`) from a checkpoint; every file's checksum is verified first."""
    folder = run.checkpoint_path(step)
    state = _read_state(folder)
    load_weights(policy, folder / WEIGHTS, expected_checksum=state["checksums"][WEIGHTS])
    if optimizer is not None:
        path = folder / OPTIMIZER
        if OPTIMIZER not in state["checksums"]:
            raise RunError(
                f"{folder} holds weights only, training cannot resume from it", hint="start a new run from it"
            )
        _check(path, state["checksums"][OPTIMIZER])
        # weights_only: plain tensors and numbers; anything else in the pickle is refused, not run
        optimizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    state = runs.read_json(path)
    if not (isinstance(state, dict) and isinstance(state.get("checksums"), dict) and WEIGHTS in state["checksums"]):
        raise CorruptDataError(f"{path} is no checkpoint record", hint=HINT)
    return state


def load_policy(run: runs.Run) -> Policy:
    """The run's policy at its newest checkpoint, ready to sample."""
    policy = _build(run.config)
    load(run, latest_step(run), policy)
    return policy  # type: ignore[return-value]


def weights_digest(run: runs.Run) -> str:
    """Checksum of the newest checkpoint's weights."""
    return str(_read_state(run.checkpoint_path(latest_step(run)))["checksums"][WEIGHTS])


def start_run(config: RunConfig, root: Path) -> runs.Run:
    """The weights that `config` starts from, as a run of 0 steps in `root`: what a report calls the start."""
    name = start_name(config, start_weights(config, root)[1])
    try:
        start = runs.open_run(name, root)
    except RunError:
        start = runs.create(root, name, start_config(config))
    if not start.checkpoint_steps():
        save(start, 0, start_policy(config, root), None, keep=1)  # type: ignore[arg-type]
        start.set_status("finished", 0)
    return start

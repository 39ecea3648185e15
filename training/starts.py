"""The policy before reinforcement learning: which weights, in which type, what of it learns.

A run's own checkpoints hold only what it trained; the rest is read here again, from where the run started.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gcpo_bench import catalogue, runs
from gcpo_bench.ablations import start_config, start_name
from gcpo_bench.config import PolicyConfig, RunConfig
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError, RunError
from gcpo_bench.registry import POLICIES
from gcpo_bench.weights import local

from . import checkpoints, lora, published
from .types import Policy


def packaged_weights(model: str) -> tuple[Path, str]:
    """File and checksum of the starting weights that ship with the package.

    Raises PrerequisiteError where there are others to fetch, ConfigError where there are none.
    """
    folder = Path(str(resources.files("gcpo_bench.training.weights")))
    if not (folder / f"{model}.json").exists():
        POLICIES.load(model)  # a name that means nothing is told as that
        is_published = model in catalogue.CATALOGUE
        mend = f"gcpo-bench models fetch {model}; or" if is_published else "name a folder:"
        raise (PrerequisiteError if is_published else ConfigError)(
            f"there are no weights of {model} here",
            hint=f"{mend} -o policy.weights=FOLDER; or random ones: -o policy.random_init=true",
        )
    return _pretrained(folder, model)


def _pretrained(folder: Path, model: str) -> tuple[Path, str]:
    """What `pretrain` or a converter wrote into `folder`."""
    record = runs.read_json(folder / f"{model}.json")
    if not isinstance(record, dict) or not isinstance(record.get("checksum"), str):
        raise CorruptDataError(f"{folder / f'{model}.json'} is damaged: it has no checksum", hint="make it again")
    return folder / f"{model}.safetensors", record["checksum"]


def start_weights(config: RunConfig, runs_root: Path | None = None) -> tuple[Path | None, str]:
    """Where training starts from, and its checksum: a file of ours, a folder as others publish it, or no file.

    `policy.weights` is `packaged` (what ships, else what `gcpo-bench models fetch` brought), a folder (published
    weights, a checkpoint, or what `pretrain` wrote) or a run. Random weights have no file; their model's name stands
    for the checksum.
    """
    name, source = config.policy.name, config.policy.weights
    if config.policy.random_init:
        return None, f"random:{name}"
    if source == "packaged":
        fetched = local(catalogue.CATALOGUE[name]) if name in catalogue.CATALOGUE else None
        if fetched is None:
            return packaged_weights(name)
        folder = fetched
    else:
        folder = Path(source)
    if (folder / f"{name}.json").exists():
        return _pretrained(folder, name)
    if published.is_published(folder):
        return folder, published.digest(folder)
    if (folder / checkpoints.STATE).exists():
        return folder / checkpoints.WEIGHTS, checkpoints.weights_checksum(folder)
    run = runs.open_run(source, runs_root or Path("runs"))
    if run.config.policy.lora is not None:
        raise ConfigError(
            f"{run.path} trained adapters, which another run cannot start from",
            hint="resume it, or start from its base",
        )
    folder = run.checkpoint_path(checkpoints.latest_step(run))
    return folder / checkpoints.WEIGHTS, checkpoints.weights_checksum(folder)


def start_policy(config: RunConfig, runs_root: Path | None = None) -> Policy:
    """The policy before reinforcement learning, in evaluation mode (no policy here uses dropout)."""
    path, expected = start_weights(config, runs_root)
    policy = build(config.policy, path)
    _fill(policy, path, expected, runs_root)
    if config.policy.lora is not None:
        lora.add(policy, config.policy.lora, torch.Generator().manual_seed(config.seed))
    return policy.to(_device(config.policy.device))  # type: ignore[no-any-return]


def _fill(policy: Any, path: Path | None, expected: str, runs_root: Path | None) -> None:
    if path is None:
        policy.initialize(torch.Generator().manual_seed(0))
        return
    if path.is_dir():
        published.read_published(policy, path)
        return
    whole = path.name != checkpoints.WEIGHTS  # what `pretrain` or a converter wrote
    if not whole and not all(parameter.requires_grad for parameter in policy.parameters()):
        run = runs.open_run(path.parents[2])
        _fill(policy, *start_weights(run.config, runs_root or run.path.parent), runs_root)
    checkpoints.load_weights(policy, path, expected_checksum=expected, whole=whole)


def build(config: PolicyConfig, folder: Path | None = None) -> Any:
    """The policy with weights unset; what is not to be trained is frozen.

    Args:
        folder: published weights, whose tokenizer is taken.
    """
    options = {"folder": folder} if folder is not None and folder.is_dir() else {}
    policy: Any = POLICIES.load(config.name)(config.name, template=config.template, **options)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    policy = cast(policy, dtype).train(mode=False)
    _freeze(policy, config)
    if hasattr(policy, "recompute"):
        policy.recompute = config.recompute
    return policy


def cast(policy: Any, dtype: torch.dtype) -> Any:
    """Weights in `dtype`. Tables that a module computes for itself (buffers in no checkpoint) stay as they were made.

    `policy.to(dtype)` rounds those too, and a rotary rate in bfloat16 is an angle wrong by 0.7 at position 600.
    """
    weights = policy.state_dict()
    tables = {name: table for name, table in policy.named_buffers(remove_duplicate=False) if name not in weights}
    policy = policy.to(dtype)
    for name, table in tables.items():
        owner, _, own_name = name.rpartition(".")
        setattr(policy.get_submodule(owner), own_name, table)
    return policy


def _freeze(policy: nn.Module, config: PolicyConfig) -> None:
    parts: dict[str, tuple[str, ...]] = getattr(policy, "parts", {})
    if not parts:
        if config.trained:
            raise ConfigError(f"{config.name} is trained as a whole", hint="leave policy.trained empty")
        return
    trained = config.trained or next(iter(parts))
    if trained not in parts:
        raise ConfigError(f"{config.name} has no part {trained!r} to train", hint=f"known: {', '.join(parts)}")
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name.startswith(parts[trained]))


def _device(name: str) -> torch.device:
    """Raises PrerequisiteError for a GPU that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"policy.device {name!r} is no device", hint="cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise PrerequisiteError(
            "torch sees no GPU, and policy.device is cuda",
            hint="-o policy.device=cpu, or install a CUDA build of torch",
        )
    return device


def load_policy(run: runs.Run) -> Policy:
    """The run's policy at its newest checkpoint, ready to sample."""
    policy: Any = start_policy(run.config, run.path.parent)
    checkpoints.load(run, checkpoints.latest_step(run), policy)
    return policy  # type: ignore[no-any-return]


def start_run(config: RunConfig, root: Path) -> runs.Run:
    """The weights that `config` starts from, as a run of 0 steps in `root`: what a report calls the start."""
    name = start_name(config, start_weights(config, root)[1])
    try:
        start = runs.open_run(name, root)
    except RunError:
        start = runs.create(root, name, start_config(config))
    if not start.checkpoint_steps():
        checkpoints.save(start, 0, start_policy(config, root), None, keep=1)  # type: ignore[arg-type]
        start.set_status("finished", 0)
    return start

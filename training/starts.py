"""The policy before reinforcement learning: which weights, in which type, what of it learns.

A run's own checkpoints hold only what it trained; the rest is read here again, from where the run started.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gcpo_bench import catalogue, runs
from gcpo_bench.ablations import start_config, start_name
from gcpo_bench.config import PolicyConfig, RunConfig
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError, RunError
from gcpo_bench.locks import OnWait
from gcpo_bench.registry import POLICIES
from gcpo_bench.weights import local, locate

from . import checkpoints, lora, published
from .types import Policy

DEVICES = "use cpu, cuda or cuda:1"
SHOWN = len("xxh3:") + 12
"""Of a checksum, in a message."""
Start = tuple[Path | None, str]
"""Where weights are read, and their checksum; see `start_weights`. Looked up once and handed on: a run that others
start from may be trained meanwhile."""


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


def start_weights(config: RunConfig, runs_root: Path | None = None) -> Start:
    """Where training starts from, and its checksum: a file of ours, a folder as others publish it, or no file.

    `policy.weights` is `packaged` (what ships, else what `gcpo-bench models fetch` brought), a folder (published
    weights, a checkpoint, or what `pretrain` wrote), a hub id whose weights were fetched, or a run. Random weights have
    no file; their model's name stands for the checksum.
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
        if not folder.exists():
            folder = catalogue.fetched_from_hub(source, name) or folder
    if (folder / f"{name}.json").exists():
        return _pretrained(folder, name)
    if published.is_published(folder):
        return folder, published.digest(folder)
    if (folder / checkpoints.STATE).exists():
        return folder / checkpoints.WEIGHTS, checkpoints.weights_checksum(folder)
    run = _source_run(source, runs_root or Path("runs"))
    if run.config.policy.lora is not None:
        raise ConfigError(
            f"{run.path} trained adapters, which another run cannot start from",
            hint="resume it, or start from its base",
        )
    checkpoint = checkpoints.newest(run)
    return checkpoint.weights, checkpoint.digest


def _source_run(source: str, root: Path) -> runs.Run:
    try:
        return runs.open_run(source, root)
    except RunError as error:
        if not catalogue.HUB_ID.fullmatch(source):
            raise ConfigError(
                f"policy.weights: there is no folder and no run {source!r}",
                hint=f"{error.hint}; or name a folder, or a hub id, owner/name",
            ) from error
        raise PrerequisiteError(
            f"policy.weights: {source!r} is no folder, no run in {root}, and was not fetched from the hub",
            hint=f"gcpo-bench models fetch {source}; or name a folder or a run (gcpo-bench ls runs)",
        ) from error


def start_policy(config: RunConfig, runs_root: Path | None = None, start: Start | None = None) -> Policy:
    """The policy before reinforcement learning, in evaluation mode (no policy here uses dropout).

    Args:
        start: its weights, if they were looked up before.
    """
    device = usable_device(config.policy.device)  # before anything large is built
    path, expected = start or start_weights(config, runs_root)
    policy = build(config.policy, path)
    _require_outside(policy, config.policy)
    for source, checksum in _sources(policy, path, expected, runs_root):
        _fill(policy, source, checksum)
    if config.policy.lora is not None:
        lora.add(policy, config.policy.lora, torch.Generator().manual_seed(config.seed))
    return policy.to(device)  # type: ignore[no-any-return]


def check_start(config: RunConfig, runs_root: Path | None = None) -> None:
    """Raises what `start_policy` would for weights that are missing or of another model; reads names and shapes only.

    Not for models of one's own, whose `build` may do anything.
    """
    path, expected = start_weights(config, runs_root)
    policy = without_memory(config.policy, path)
    for source, _ in _sources(policy, path, expected, runs_root):
        if source is not None and source.is_dir():
            published.check_published(policy, source)
        elif source is not None:
            checkpoints.check_names(policy, source, whole=_is_whole(source))
    if config.policy.lora is not None:
        lora.check(policy, config.policy.lora)


def check_outside(config: PolicyConfig) -> None:
    """Raises PrerequisiteError where weights are missing that the policy reads beside its own: a text encoder."""
    _require_outside(without_memory(config), config)


def _require_outside(policy: Any, config: PolicyConfig) -> None:
    for weights in () if config.random_init else getattr(policy, "outside", ()):
        locate(weights)


def without_memory(config: PolicyConfig, folder: Path | None = None) -> Any:
    """As `build`, with shapes only."""
    with torch.device("meta"):
        return _placed(_made(config, folder), config, torch.device("meta"))


def _sources(
    policy: Any, path: Path | None, expected: str, runs_root: Path | None
) -> Iterator[tuple[Path | None, str]]:
    """Where the policy's weights are read, one after the other: a checkpoint holds only what its run trained."""
    partial = path is not None and path.is_file() and not _is_whole(path)
    if partial and not all(parameter.requires_grad for parameter in policy.parameters()):
        assert path is not None
        run = runs.open_run(path.parents[2])
        start = start_weights(run.config, runs_root or run.path.parent)
        require_first_weights(run, start)
        yield from _sources(policy, *start, runs_root)
    yield path, expected


def _is_whole(path: Path) -> bool:
    """What `pretrain` or a converter wrote, and not a run."""
    return path.name != checkpoints.WEIGHTS


def _fill(policy: Any, path: Path | None, expected: str) -> None:
    if path is None:
        policy.initialize(torch.Generator().manual_seed(0))
    elif path.is_dir():
        published.read_published(policy, path)
    else:
        checkpoints.load_weights(policy, path, expected_checksum=expected, whole=_is_whole(path))


def build(config: PolicyConfig, folder: Path | None = None) -> Any:
    """The policy on its device, with weights unset; what is not to be trained is frozen.

    Args:
        folder: published weights, whose tokenizer is taken.
    """
    # a model of one's own may read its weights as it is made
    with _without_weights() if config.name in POLICIES.entries else nullcontext():
        policy = _made(config, folder)
    return _placed(policy, config, torch.device(config.device))


def _made(config: PolicyConfig, folder: Path | None) -> Any:
    options = {"folder": folder} if folder is not None and folder.is_dir() else {}
    policy: Any = POLICIES.make(config.name, config.name, template=config.template, **options)
    policy.train(mode=False)
    _freeze(policy, config)
    if hasattr(policy, "recompute"):
        policy.recompute = config.recompute
    return policy


@contextmanager
def _without_weights() -> Iterator[None]:
    """Parameters that this thread makes have shapes only; tables that modules compute for themselves have numbers."""
    thread = threading.get_ident()

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or threading.get_ident() != thread:
            return None  # as it is
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(emptied)
    try:
        yield
    finally:
        hook.remove()


def _placed(policy: Any, config: PolicyConfig, device: torch.device) -> Any:
    """Weights in their type on `device`, those that have shapes only in memory that nothing was written to yet.

    Tables that a module computes for itself (buffers in no checkpoint) keep their type: `policy.to(dtype)` rounds those
    too, and a rotary rate in bfloat16 is an angle wrong by 0.7 at position 600.
    """
    buffers = dict(policy.named_buffers(remove_duplicate=False))
    policy = policy.to({"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype])
    weights = policy.state_dict()
    is_empty = all(parameter.is_meta for parameter in policy.parameters())
    policy = policy.to_empty(device=device) if is_empty else policy.to(device)
    for name, buffer in buffers.items():
        owner, _, own_name = name.rpartition(".")
        dtype = weights[name].dtype if name in weights else buffer.dtype
        setattr(policy.get_submodule(owner), own_name, buffer.to(device, dtype))
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


def text_and_parts(policy: Any, config: PolicyConfig) -> dict[str, Any]:
    """What `config` may leave to the policy, as it is used.

    Returns:
        `template`: the name of what prompts are put into; None where a policy knows no choice.
        `trained`: the part that learns; `all` where a policy names no parts, `adapters` where they learn.
        `adapters`: names of the layers that have one, without their places.
        `trained_parameters`: how many numbers learn.
    """
    learns = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    adapted = {name.partition(".lora_")[0].rpartition(".")[2] for name in learns} if config.lora else set()
    part = config.trained or next(iter(getattr(policy, "parts", {})), "all")
    return {
        "template": config.template or next(iter(getattr(policy, "templates", {})), None),
        "trained": "adapters" if config.lora else part,
        "adapters": sorted(adapted),
        "trained_parameters": sum(parameter.numel() for parameter in learns.values()),
    }


def usable_device(name: str) -> torch.device:
    """The device, after looking whether it is there; a GPU with a number becomes the one that torch works on.

    Raises ConfigError for another kind of device, PrerequisiteError for a GPU that is not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"policy.device {name!r} is no device", hint=DEVICES) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"policy.device {name!r} is not supported", hint=DEVICES)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise PrerequisiteError(
                f"torch sees no GPU, and policy.device is {name}",
                hint="-o policy.device=cpu, or install a CUDA build of torch",
            )
        if device.index is not None:
            if device.index >= count:
                raise PrerequisiteError(
                    f"policy.device is {name}, and torch sees {count} GPU{'s' * (count > 1)}",
                    hint=f"cuda:0 to cuda:{count - 1}, or cuda; CUDA_VISIBLE_DEVICES says which are seen",
                )
            torch.cuda.set_device(device)  # graphs, rewards and measurements are on the current one
    return device


def require_first_weights(run: runs.Run, start: Start) -> None:
    """Raises RunError where `start`, which `run` starts from now, is not what it began from.

    The reference, and what is frozen, are read from there again: with other weights it would be another run.
    """
    now = start[1]
    first = runs.first_weights(run.environments()) or now
    if first != now:
        raise RunError(
            f"{run.path} began from weights {first[:SHOWN]}, and where they were now lie {now[:SHOWN]}",
            hint="put the first ones back, or train another run with another --name",
        )


def load_policy(run: runs.Run, config: RunConfig | None = None) -> Policy:
    """As `load_newest`, where it does not matter which checkpoint that was."""
    return load_newest(run, config)[0]


def load_newest(run: runs.Run, config: RunConfig | None = None) -> tuple[Policy, checkpoints.Checkpoint]:
    """The run's policy at its newest checkpoint, ready to sample, and that checkpoint: nobody needs to ask again.

    `config` may name another device or precision. Raises as `start_policy` does, and as `require_first_weights` where
    not all of it was trained.
    """
    checkpoints.latest_step(run)  # a run without one is told before anything large is built
    start = start_weights(run.config, run.path.parent)
    policy: Any = start_policy(config or run.config, run.path.parent, start)
    if not all(parameter.requires_grad for parameter in policy.parameters()):
        require_first_weights(run, start)
    return policy, checkpoints.load_newest(run, policy)


def start_run(config: RunConfig, root: Path, on_wait: OnWait = lambda owner: None) -> runs.Run:
    """The weights that `config` starts from, as a run of 0 steps in `root`: what a report calls the start.

    Processes that need it at the same time make it once; `on_wait` is called where another one is doing so.
    """
    start = start_weights(config, root)
    run = runs.open_or_create(root, start_name(config, start[1]), start_config(config))
    if not run.checkpoint_steps():
        with run.lock(on_wait):
            if not run.checkpoint_steps():
                run.set_status("finished", 0)
                checkpoints.save(run, 0, start_policy(config, root, start), None, keep=1)  # type: ignore[arg-type]
    run.mended_status()
    return run

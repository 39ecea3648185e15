"""What a run was made on: an allow-listed record, without secrets, cheap enough for every start."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

from gcpo_bench import __version__
from gcpo_bench.errors import ConfigError

PACKAGES = ("torch", "transformers", "numpy", "scipy", "safetensors", "pydantic", "pillow", "pandas")
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
"""The only environment variables that are recorded: they change numbers or speed, and none is a secret."""


CGROUPS = "sys/fs/cgroup"
COMMAND = "GCPO_BENCH_COMMAND"
"""Environment variable with the arguments of a grid's command, JSON; its workers inherit it."""


def record(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """One entry of a run's environment.json; `argv` is `command()` by default."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(command() if argv is None else argv),
        "version": __version__,
        **_checkout(Path(__file__).resolve().parent.parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "packages": {name: version for name in PACKAGES if (version := package_version(name))},
        "cuda_devices": _cuda_devices(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def command() -> list[str]:
    """What the user typed: this process's arguments, or for a worker of a grid those of the grid's command."""
    with suppress(KeyError, ValueError, TypeError):  # a variable that says nothing must not stop a run: it is a record
        return [str(word) for word in json.loads(os.environ[COMMAND])]
    return sys.argv


@contextmanager
def without(variable: str) -> Iterator[None]:
    """The environment without this variable, for a library that reads it while it is imported."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


@dataclass(frozen=True, slots=True)
class Place:
    """This process among those that a launcher started for one run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those of this machine."""


def place() -> Place:
    """As torchrun and `accelerate launch` say it; alone where WORLD_SIZE is not set, or empty.

    Raises ConfigError for numbers that do not fit together.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if int_of("WORLD_SIZE", 1) == 1:
        return Place()
    rank = int_of("RANK", 0)
    found = Place(rank, int_of("WORLD_SIZE", 1), int_of("LOCAL_RANK", rank))
    if not 0 <= found.local_rank <= found.rank < found.size:
        told = ", ".join(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))
        raise ConfigError(f"{told}: there is no such process", hint=PLACE_HINT)
    return found


PLACE_HINT = "start it with torchrun, or unset WORLD_SIZE to train in one process"


def int_of(variable: str, default: int) -> int:
    """An environment variable that holds a number; one that is set and empty is not set. Raises ConfigError."""
    text = os.environ.get(variable, "").strip() or str(default)
    if not text.isdecimal():
        raise ConfigError(f"{variable} is {text!r}, expected a number", hint=PLACE_HINT)
    return int(text)


def launcher() -> str:
    """Who started this process, as far as its variables show."""
    signs = {"ACCELERATE_MIXED_PRECISION": "accelerate", "TORCHELASTIC_RUN_ID": "torchrun", "SLURM_STEP_ID": "srun"}
    return next((name for sign, name in signs.items() if os.environ.get(sign)), "unknown")


def package_version(name: str) -> str | None:
    """The installed version, without importing the package; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def usable_cores() -> int:
    """Cores this process may use, which under a container or scheduler are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_memory_bytes(system: Path = Path("/")) -> int:
    """Memory that this process may have at most: the machine's, or what its container or scheduler allows."""
    return min([memory_bytes(), *(limit for limit, _ in _memory_limits(system))])


def free_memory_bytes(system: Path = Path("/")) -> int:
    """Memory that can still be had: what the machine has left, and what its container or scheduler leaves of that."""
    table = system / "proc" / "meminfo"
    lines = table.read_text(encoding="ascii").splitlines() if table.is_file() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return max(0, min([*(free or [memory_bytes()]), *(limit - used for limit, used in _memory_limits(system))]))


def _memory_limits(system: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, bytes, of this process's control group and of those around it; files in the cache are no use.

    No limit is a file that is not there or says "max" (version 2), or a number beyond all memory (version 1).
    """
    member = system / "proc" / "self" / "cgroup"
    lines = member.read_text(encoding="utf-8").splitlines() if member.is_file() else []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, limit_name, use_name = CGROUPS, "memory.max", "memory.current"
        elif controllers == "memory":
            root, limit_name, use_name = f"{CGROUPS}/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = system / root / path.strip("/")
        for folder in (own, *own.parents[: len(Path(path.strip("/")).parts)]):
            with suppress(OSError, ValueError):
                limit, used = (int((folder / name).read_text(encoding="ascii")) for name in (limit_name, use_name))
                words = (folder / "memory.stat").read_text(encoding="ascii").split()
                yield limit, used - int(dict(zip(words[::2], words[1::2], strict=True)).get("inactive_file", 0))


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _checkout(root: Path) -> dict[str, str | None]:
    """The commit, and a hash of what differs from it; both None outside a checkout, the hash None in a clean one."""
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    commit = _git(root, "rev-parse", "HEAD")
    # untracked files count too: a new module changes a run as much as a changed one
    changes = _git(root, "status", "--porcelain"), _git(root, "diff", "HEAD")
    dirty = f"xxh3:{xxhash.xxh3_128_hexdigest(repr(changes).encode())}" if any(changes) else None
    return {"commit": commit, "dirty": dirty}


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), "--no-optional-locks", *arguments]
    try:
        result = subprocess.run(command, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or a checkout it refuses: the record then simply has no commit
    return result.stdout.decode("utf-8", "replace").strip()


def _cuda_devices() -> list[str]:
    """Names of the GPUs torch sees, if torch is in use at all: this module must not be what imports it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]

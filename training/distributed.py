"""Several processes that train one run together, as a launcher started them: torchrun, accelerate launch, or srun.

Every process holds the whole policy and computes some of the parts that a step is cut into; what the parts give is
gathered, so that all processes know what one would know alone. A part is computed as it would be alone, and results are
put together in the order of the parts: the numbers do not depend on how many processes there are, as long as there are
no more than parts (`training.parallel`).

Everything small travels between CPUs (gloo), only gradients and weights between GPUs (NCCL). Before those, something
small always does. A process that is gone is thus noticed at once, when its connections close, and not in the middle of
a NCCL call, which would wait for its time limit.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from gcpo_bench import environment
from gcpo_bench.config import RunConfig
from gcpo_bench.environment import PLACE_HINT, Place
from gcpo_bench.errors import ConfigError, PrerequisiteError, TrainingError

Item = TypeVar("Item")

MEET = timedelta(minutes=5)
"""How long processes wait for each other at the start."""
WAIT = timedelta(minutes=30)
"""How long one may be slower than another, as while a checkpoint is written; then a lost machine is noticed."""
LET_GO_S = 0.1
"""Before connections close."""
LISTEN_S = 5.0
"""How long processes that fail wait for the one that tells why, and the one that keeps the store for the others."""
FAILURE, TOLD, HEARD = "gcpo-bench/failure", "gcpo-bench/told", "gcpo-bench/heard"


class StoppedElsewhere(TrainingError):
    """Another process failed; it says why."""


class World:
    """The processes of a run; alone, everything here gives back what it is given."""

    def __init__(self, place: Place | None = None, store: Any = None, talk: Any = None) -> None:
        place = place or Place()
        self.rank, self.size, self.local_rank = place.rank, place.size, place.local_rank
        self._store, self._talk = store, talk

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    # ---------------------------------------------------------------- small things, through CPUs

    def gather(self, value: Item) -> list[Item]:
        """What every process has, in their order; tensors come to the device of this one."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(found, _packed(value), group=self._talk)
        return [_unpacked(content) for content in found]

    def from_first(self, make: Callable[[], Item]) -> Item:
        """What `make` gives in the first process; the others do not call it."""
        if self.size == 1:
            return make()
        found: list[Any] = [_packed(make())] if self.first else [None]
        with self._together():
            dist.broadcast_object_list(found, src=0, group=self._talk)
        made: Item = _unpacked(found[0])
        return made

    def wait(self) -> None:
        """Until all processes are here."""
        self.gather(None)

    def dealt(self, parts: Sequence[Item]) -> list[Item]:
        """Those of this process, one a round."""
        return list(parts[self.rank :: self.size])

    def collected(self, results: Sequence[Item]) -> list[Item]:
        """What all processes made of the parts that were `dealt`, in the order of the parts."""
        rounds = self.gather(list(results))
        return [own[turn] for turn in range(len(rounds[0])) for own in rounds if turn < len(own)]

    # ---------------------------------------------------------------- tensors, from device to device

    def exchanged(self, sent: Tensor) -> Tensor:
        """Row r of `sent` goes to process r; row r of the result came from it."""
        if self.size == 1:
            return sent
        got = torch.empty_like(sent)
        with self._together():
            # as bytes: not every backend adds, or knows, every type; here nothing is added
            dist.all_to_all_single(got.view(torch.uint8), sent.view(torch.uint8))
        return got

    def spread(self, tensor: Tensor, source: int) -> None:
        """Overwrites `tensor` (contiguous) with what it is in the process `source`."""
        if self.size > 1:
            with self._together():
                dist.broadcast(tensor.view(torch.uint8), src=source)

    def to_first(self, tensor: Tensor | None, source: int) -> Tensor | None:
        """To the first process, on its CPU, what `tensor` (contiguous) is in `source`; None in the others.

        `tensor` is needed in these two, and overwritten in the first.
        """
        if self.rank not in (0, source):
            return None
        assert tensor is not None
        if source:
            with self._together():
                # a view of bytes needs a dimension
                if self.first:
                    dist.recv(tensor.view(-1).view(torch.uint8), src=source)
                else:
                    dist.send(tensor.view(-1).view(torch.uint8), dst=0)
        return tensor.cpu() if self.first else None

    # ---------------------------------------------------------------- where it is

    def settled(self, config: RunConfig) -> RunConfig:
        """The configuration for this process: `cuda` becomes the GPU that is its own.

        Raises:
            ConfigError: a certain GPU is named, or there are more processes than images.
            PrerequisiteError: this machine has fewer GPUs than processes.
        """
        if self.size == 1:
            return config
        images = config.sampling.prompts_per_step * config.sampling.group_size
        if images < self.size:
            raise ConfigError(
                f"{self.size} processes for {images} images a step: some would have nothing to do",
                hint="start fewer, or raise sampling.prompts_per_step or sampling.group_size",
            )
        device = torch.device(config.policy.device)
        if device.type != "cuda" or not torch.cuda.is_available():  # building the policy says that there is no GPU
            return config
        if config.policy.device != device.type:
            raise ConfigError(
                f"policy.device is {device}, but every process needs a GPU of its own", hint="policy.device=cuda"
            )
        index = gpu_index(self.local_rank, torch.cuda.device_count())
        torch.cuda.set_device(index)
        policy = config.policy.model_copy(update={"device": f"cuda:{index}"})
        return config.model_copy(update={"policy": policy})

    def record(self) -> dict[str, Any]:
        """For environment.json; empty where a process is alone."""
        if self.size == 1:
            return {}
        hosts = list(dict.fromkeys(self.gather(socket.gethostname())))
        return {"processes": self.size, "hosts": hosts, "launcher": environment.launcher()}

    def require_equal(self, what: str, value: str) -> None:
        """Raises PrerequisiteError where the processes differ in `value`."""
        values = self.gather(value)
        if len(set(values)) > 1:
            other = next(rank for rank, found in enumerate(values) if found != values[0])
            raise PrerequisiteError(
                f"process 0 has {what} {values[0]}, process {other} has {values[other]}",
                hint="install the same versions and put the same weights on all machines",
            )

    # ---------------------------------------------------------------- the end

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Around a call that needs the others."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if failure := self._failure():
                raise StoppedElsewhere(
                    f"process {failure['rank']}: {failure['message']}", hint="see the error of that process"
                ) from error
            why = str(error).partition("\n")[0][:160]
            raise TrainingError(
                f"process {self.rank} lost another process of this run: {why}",
                hint="the launcher says how that one ended; the newest checkpoint is kept: go on with --resume",
            ) from error

    def _failure(self) -> dict[str, Any] | None:
        with suppress(RuntimeError):  # the store itself may be gone, where the first process kept it
            if self._store is not None and self._store.check([FAILURE]):
                return json.loads(self._store.get(FAILURE))  # type: ignore[no-any-return]
        return None

    def speaks(self, message: str, exit_code: int) -> tuple[bool, int]:
        """Of processes that stop with an error, one tells: whether it is this one, and the exit code of all.

        The others return when it has told, so that none of them ends before, upon which the launcher would end all.
        """
        mine = json.dumps({"rank": self.rank, "message": message, "exit_code": exit_code})
        atexit.register(self._end_failed)
        with suppress(RuntimeError):
            said = self._store.compare_set(FAILURE, "", mine)
            if said.decode() != mine:
                self._store.wait([TOLD], timedelta(seconds=LISTEN_S))
                return False, int(json.loads(said)["exit_code"])
        return True, exit_code

    def leave(self) -> None:
        """After an orderly end: together, because what a process still has to send would be lost with it."""
        self.wait()
        self._leave()

    def _leave(self) -> None:
        # modules of torch keep the group of all as a default argument, and with it its connections: those of the group
        # for small things close here, and the others notice
        if self._talk is not None:
            # gloo's threads let go of what they sent a moment after it arrived, and need Python's lock for it; torch
            # 2.7 seems to wait for them with that lock held, and a process then never ended
            time.sleep(LET_GO_S)
            talk, self._talk = self._talk, None
            dist.destroy_process_group(talk)
        if dist.is_initialized():
            dist.destroy_process_group()

    def _end_failed(self) -> None:
        """When the interpreter ends, the error is told. Those who wait for this process notice that it leaves."""
        with suppress(RuntimeError):
            self._store.set(TOLD, "")
            self._leave()
            self._store.add(HEARD, 1)
            # without torchrun the store is the first process's, and gone with it
            if self.first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                until = time.monotonic() + LISTEN_S
                while self._store.add(HEARD, 0) < self.size and time.monotonic() < until:
                    time.sleep(0.02)


ALONE = World()


def join(place: Place) -> World:
    """Meet the other processes. The group is left when the interpreter ends, however it ends.

    Raises:
        ConfigError: the launcher did not say where to meet.
        PrerequisiteError: they did not meet.
    """
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name, "").strip()]:
        raise ConfigError(f"WORLD_SIZE is {place.size}, but {missing[0]} is not set", hint=PLACE_HINT)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, rank, size = next(rendezvous("env://", timeout=MEET))
        store.set_timeout(MEET)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WAIT)
        talk = dist.new_group(backend="gloo", timeout=WAIT)
    except (RuntimeError, ValueError) as error:  # dist.DistError is a RuntimeError
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise PrerequisiteError(
            f"process {place.rank} of {place.size} did not meet the others at {where}: {error}",
            hint="the address must be of the machine of process 0, and its port open; see docs/several-gpus.md",
        ) from error
    world = World(place, store, talk)
    atexit.register(world._leave)
    return world


def gpu_index(local_rank: int, visible: int) -> int:
    """Raises PrerequisiteError where there is no GPU for this process."""
    if local_rank < visible:
        return local_rank
    if visible == 1:  # srun --gpus-per-task=1 shows each process its own alone
        return 0
    raise PrerequisiteError(
        f"process {local_rank} of this machine has no GPU: torch sees {visible}",
        hint="start as many processes as there are GPUs; CUDA_VISIBLE_DEVICES says which are seen",
    )


def _packed(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(content: bytes) -> Any:
    # written by another process of this program, not read from a file: anything may be in it
    return torch.load(io.BytesIO(content), map_location=_here, weights_only=False)


def _here(storage: Any, location: str) -> Any:
    return storage.cuda(torch.cuda.current_device()) if location.startswith("cuda") else storage

"""One run in several processes: the same numbers as in one, to the bit, and an end that no process waits for forever.

Processes are forked from this one with the variables that a launcher sets, which saves importing torch in each; one
test goes through torchrun itself.
"""

from __future__ import annotations

import atexit
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gcpo_bench import runs
from gcpo_bench.cli.app import run as command_line
from gcpo_bench.config import OptimizerConfig
from gcpo_bench.environment import COMMAND, Place, command, place
from gcpo_bench.errors import PrerequisiteError
from gcpo_bench.resolve import resolve
from gcpo_bench.training import checkpoints, distributed, sharding
from gcpo_bench.training.distributed import World, gpu_index, join
from gcpo_bench.training.interrupts import StopRequests
from gcpo_bench.training.loop import train
from gcpo_bench.training.optimizers import Optimizer
from gcpo_bench.training.parallel import Workers, slices
from gcpo_bench.training.sharding import buckets, deal

from .conftest import Cli
from .processes import LIMIT_S

REWARD = "rewards=[{name: 'tests.test_distributed:Fussy'}]"
SMALL = (
    "policy.name=scenes-8",
    "sampling.prompts_per_step=3",
    "sampling.group_size=2",
    "sampling.batch_rows=2",
    "optimizer.micro_batch_rows=2",
    "logging.checkpoint_every=2",
    "logging.token_maps_every=3",
    "logging.tracked_prompts=3",
    "loss.beta=0.1",
    REWARD,
)
JANUS = (
    *SMALL,
    "policy.name=janus-pro-tiny",
    "policy.random_init=true",
    "policy.dtype=bfloat16",
    "sampling.guidance_scale=3",
    "sampling.prompts_per_step=2",
    "logging.tracked_prompts=2",
)


class Fussy:
    """Brightness; where the environment says so, a failure of one process at one of its calls: `1:4:raise`."""

    gcpo_bench_part = "reward"
    calls = 0

    def __call__(self, images_BYXC: Any, prompts_B: Any) -> Any:
        from gcpo_bench.training.types import RewardOutput

        type(self).calls += 1
        rank, call, how = os.environ.get("TEST_FAILURE", "::").split(":")
        if (os.environ.get("RANK"), str(self.calls)) == (rank, call):
            if how == "raise":
                raise KeyError("missing")
            os.kill(os.getpid(), getattr(signal, how))
        if how == "slow":
            time.sleep(1.0)
        return RewardOutput(values_B=[float(image.mean()) / 255 for image in images_BYXC], anomalies={})


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str
    given: Any


def processes(size: int, work: Callable[[], object], folder: Path, **variables: str) -> list[Ended]:
    """`work` in `size` processes, as srun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **variables}
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ.update(meeting, RANK=str(rank), LOCAL_RANK=str(rank))
            _child(work, folder / f"{rank}")
        children.append(child)
    deadline = time.monotonic() + LIMIT_S
    codes: dict[int, int] = {}
    while len(codes) < size:
        for rank, child in enumerate(children):
            if rank not in codes and (found := os.waitpid(child, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(found[1])
        if time.monotonic() > deadline:
            for rank in set(range(size)) - codes.keys():
                os.kill(children[rank], signal.SIGKILL)
            pytest.fail(f"processes {set(range(size)) - codes.keys()} did not end")
        time.sleep(0.02)
    ended = []
    for rank in range(size):
        out, err, given = (folder / f"{rank}.{kind}" for kind in ("out", "err", "given"))
        said = pickle.loads(given.read_bytes()) if given.exists() else None
        ended.append(Ended(codes[rank], out.read_text(), err.read_text(), said))
    return ended


def _child(work: Callable[[], object], stem: Path) -> None:
    code = 70
    try:
        atexit._clear()  # what the tests' process has to do at its end is not the child's
        Fussy.calls = 0
        with open(f"{stem}.out", "w") as out, open(f"{stem}.err", "w") as err:
            sys.stdout, sys.stderr = out, err
            try:
                given = work()
                Path(f"{stem}.given").write_bytes(pickle.dumps(given))
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
            atexit._run_exitfuncs()
    finally:
        os._exit(code)


def trained(size: int, root: Path, name: str, *overrides: str, num_steps: int, **variables: str) -> list[Ended]:
    """`gcpo-bench train`, new or resumed, in so many processes."""
    options = [part for override in overrides for part in ("-o", override)]
    again = ["--resume"] if (root / name).exists() else []
    arguments = ["train", "--runs-dir", str(root), "--name", name, "--num-steps", str(num_steps), *again, *options]
    return processes(size, lambda: command_line(arguments), root, **variables)


def alone(root: Path, name: str, *overrides: str, num_steps: int) -> runs.Run:
    run = runs.create(root, name, resolve(None, list(overrides), {"num_steps": num_steps}).config)
    train(run.config, run)
    return run


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A nested record of tensors and numbers as name -> value, in its order."""
    if isinstance(value, Mapping):
        items: Sequence[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return {name: value.numpy().tobytes() if isinstance(value, Tensor) else value}
    return {key: found for part, inner in items for key, found in flat(inner, f"{name}/{part}").items()}


def outcome(run: runs.Run) -> dict[str, Any]:
    """Everything that must be equal: metrics but for seconds and memory, weights, optimiser, token maps."""
    folder = run.checkpoint_path(checkpoints.latest_step(run))
    measured = ("time/", "throughput/", "memory/")
    return {
        "metrics": [{k: v for k, v in row.items() if not k.startswith(measured)} for row in run.metrics()],
        "weights": runs.read_json(folder / "state.json")["checksums"]["policy.safetensors"],
        "optimizer": flat(torch.load(folder / "optimizer.pt", weights_only=True)),
        "maps": [runs.checksum(path) for path in sorted((run.path / "tokens").iterdir())],
    }


def errors_of(ended: Sequence[Ended]) -> list[str]:
    return [line for each in ended for line in each.err.splitlines() if line.startswith("error:")]


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    return alone(tmp_path_factory.mktemp("runs"), "six", *SMALL, num_steps=6)


# ---------------------------------------------------------------- the same numbers


def test_one_run_passed_between_one_two_and_three_processes_is_the_unbroken_one(
    six: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New in 2, one of which is killed in step 4; on with 3 to step 4; and alone to step 6."""
    monkeypatch.setattr(distributed, "LISTEN_S", 1.0)  # for the killed one
    killed = trained(2, tmp_path, "passed", *SMALL, num_steps=6, TEST_FAILURE="1:4:SIGKILL")
    run = runs.open_run("passed", tmp_path)
    assert killed[1].code == -signal.SIGKILL
    assert killed[0].code == 6
    assert len(errors_of(killed)) == 1
    assert "process 0 lost another process of this run" in killed[0].err
    assert run.status().state == "failed"
    assert run.checkpoint_steps() == [0, 2]
    for size, steps in ((3, 4), (1, 6)):
        ended = trained(size, tmp_path, "passed", num_steps=steps)
        assert [each.code for each in ended] == [0] * size, ended
        assert all(each.out == each.err == "" for each in ended[1:])
        assert ended[0].out == f"{run.path}\n"
    assert run.status().state == "finished"
    # a run of fewer steps ends with token maps of its own
    (run.path / "tokens" / "step-000004.npz").unlink()
    assert outcome(run) == outcome(six)
    records = run.environments()
    assert [record.get("processes") for record in records] == [2, 3, None]
    assert records[0]["hosts"] == [socket.gethostname()]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("copies", JANUS),
        ("adapters", (*JANUS, "policy.lora={rank: 2}")),
        (
            "epochs",
            (
                *SMALL,
                *("optimizer.epochs=2", "optimizer.minibatches=2", "optimizer.micro_batch_rows=1"),
                *("advantages.zero_variance=drop", "weighting.detached=false", "num_threads=2"),
            ),
        ),
    ],
)
def test_two_processes_give_what_one_gives(name: str, overrides: Sequence[str], tmp_path: Path) -> None:
    """In bfloat16 with float32 copies, with adapters, and with several updates a rollout."""
    ended = trained(2, tmp_path, name, *overrides, num_steps=2)
    assert [each.code for each in ended] == [0, 0], ended
    together = runs.open_run(name, tmp_path)
    assert together.metrics()[-1]["optimizer/gradient_norm"] > 0
    assert outcome(together) == outcome(alone(tmp_path, "alone", *overrides, num_steps=2))


def test_parts_made_smaller_change_nothing_but_rounding(tmp_path: Path) -> None:
    whole = ("sampling.batch_rows=6", "optimizer.micro_batch_rows=6")
    assert [each.code for each in trained(3, tmp_path, "cut", *SMALL, *whole, num_steps=2)] == [0, 0, 0]
    one, other = runs.open_run("cut", tmp_path), alone(tmp_path, "whole", *SMALL, *whole, num_steps=2)
    for mine, theirs in zip(outcome(one)["metrics"], outcome(other)["metrics"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    # six rows cut in three are the parts that SMALL asks for
    assert outcome(one) == outcome(alone(tmp_path, "small", *SMALL, num_steps=2))


SHAPES = [(3, 4), (7,), (), (2, 2, 3), (1,)]


def drawn(dtype: torch.dtype) -> tuple[list[nn.Parameter], list[list[Tensor | None]]]:
    """Parameters, and their gradients from four micro-batches."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    gradients: list[list[Tensor | None]] = [
        [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES] for _ in range(4)
    ]
    for micro_batch in gradients:
        micro_batch[4] = None  # nothing depends on it: neither moments nor decay
    gradients[1][1] = None
    return parameters, gradients


def updated(dtype: torch.dtype, world: World) -> tuple[list[Any], dict[str, Any]]:
    """Weights and the optimiser's state after two updates; between them it is saved and another one loads it."""
    parameters, _ = drawn(dtype)
    state: dict[str, Any] = {}
    for rate in (0.1, 0.05):
        gradients = drawn(dtype)[1]
        optimizer = Optimizer(parameters, OptimizerConfig(weight_decay=0.1), world)
        if state:
            optimizer.load_state_dict(state)
        optimizer.set_rate(rate)
        own = world.dealt(list(gradients))
        for turn in range(-(-len(gradients) // world.size)):
            optimizer.add(own[turn] if turn < len(own) else None)
        optimizer.step(optimizer.norm(), 0.5)
        state = world.gather(optimizer.state_dict())[0]
    return [parameter.tolist() for parameter in parameters], flat(state)


@pytest.mark.parametrize("size", [3, 6])  # 6: more than there are micro-batches, and than parameters
def test_the_update_is_that_of_torch_on_the_whole_gradient(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against AdamW and its clipping on summed gradients: 1e-12 in float64. Against one process: to the bit."""
    monkeypatch.setattr(sharding, "EXCHANGED", 20)  # many exchanges, and parameters that are cut

    def work() -> list[Any]:
        world = join(place())
        found = [updated(dtype, world) for dtype in (torch.float64, torch.bfloat16)]
        world.leave()
        return found

    found = [each.given for each in processes(size, work, tmp_path)]
    parameters, gradients = drawn(torch.float64)
    adamw = torch.optim.AdamW(parameters, weight_decay=0.1)
    for rate in (0.1, 0.05):
        adamw.param_groups[0]["lr"] = rate
        for parameter, parts in zip(parameters, zip(*gradients, strict=True), strict=True):
            there = [part for part in parts if part is not None]
            parameter.grad = torch.stack(there).sum(dim=0) if there else None
        nn.utils.clip_grad_norm_(parameters, 0.5)
        adamw.step()
    for mine, expected in zip(found[0][0][0], parameters, strict=True):
        torch.testing.assert_close(torch.tensor(mine, dtype=torch.float64), expected.detach(), atol=1e-12, rtol=1e-12)
    assert found == [[updated(dtype, World()) for dtype in (torch.float64, torch.bfloat16)]] * size


# ---------------------------------------------------------------- how work and state are dealt


@given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=30), owners=st.integers(1, 9))
def test_every_parameter_has_one_owner_and_loads_differ_by_no_more_than_the_largest(
    sizes: list[int], owners: int
) -> None:
    dealt = deal(sizes, owners)
    assert sorted(index for indices in dealt for index in indices) == list(range(len(sizes)))
    loads = [sum(sizes[index] for index in indices) for indices in dealt]
    assert max(loads) - min(loads) <= max(sizes)
    assert all(one < other for indices in dealt for one, other in pairwise(indices))


@given(sizes=st.lists(st.integers(1, 50), max_size=20), limit=st.integers(1, 40))
def test_buckets_hold_every_number_once_and_are_full_but_for_the_last(sizes: list[int], limit: int) -> None:
    filled = buckets(range(len(sizes)), sizes, limit)
    numbers = [(piece.parameter, n) for bucket in filled for piece in bucket for n in range(piece.start, piece.stop)]
    assert numbers == [(index, n) for index, size in enumerate(sizes) for n in range(size)]
    for bucket in filled:
        places = [at for piece in bucket for at in range(piece.packed.start, piece.packed.stop)]
        assert places == list(range(len(places)))
        assert len(places) == limit or bucket is filled[-1]


@given(rows=st.integers(1, 100), size=st.integers(1, 100), many=st.integers(1, 12))
def test_parts_are_those_of_one_process_where_there_are_enough(rows: int, size: int, many: int) -> None:
    parts = Workers(1, world=World(Place(0, many))).parts(rows, size)
    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
    if size * many <= rows:
        assert parts == slices(rows, size)
    else:  # one each, at most, and none larger than need be
        assert len(parts) <= many
        assert parts[0].stop == min(size, math.ceil(rows / many))
    dealt = [World(Place(rank, many)).dealt(parts) for rank in range(many)]
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert sorted(part.start for own in dealt for part in own) == [part.start for part in parts]


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_ends_all_with_one_error(rank: int, tmp_path: Path) -> None:
    failure = f"{rank}:3:raise"
    ended = trained(3, tmp_path, "bad", *SMALL, "logging.token_maps_every=0", num_steps=6, TEST_FAILURE=failure)
    assert [each.code for each in ended] == [6, 6, 6]
    assert errors_of(ended) == ["error: reward 'tests.test_distributed:Fussy' failed: KeyError: 'missing'"]
    assert "error:" in ended[rank].err
    run = runs.open_run("bad", tmp_path)
    assert run.status().state == "failed"
    assert run.status().step == 2
    assert run.status().error.startswith("process 1: reward" if rank else "reward")
    assert run.checkpoint_steps() == [0, 2]


def test_more_processes_than_images_are_refused_before_there_is_a_run(tmp_path: Path) -> None:
    ended = trained(3, tmp_path, "few", *SMALL, "sampling.prompts_per_step=1", num_steps=1)
    assert [each.code for each in ended] == [2, 2, 2]
    assert errors_of(ended) == ["error: 3 processes for 2 images a step: some would have nothing to do"]
    assert not (tmp_path / "few").exists()


def test_processes_that_start_from_different_weights_are_refused(tmp_path: Path) -> None:
    def work() -> str:
        world = join(place())
        with pytest.raises(PrerequisiteError) as caught:
            world.require_equal("start weights", "xxh3:1" if world.rank < 2 else "xxh3:2")
        world.leave()
        return str(caught.value)

    told = [each.given for each in processes(3, work, tmp_path)]
    assert told == ["process 0 has start weights xxh3:1, process 2 has xxh3:2"] * 3


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "but MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": ""}, "but MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "2", "RANK": " "}, "but RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2, WORLD_SIZE=2: there is no such process"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a number"),
    ],
)
def test_variables_that_do_not_fit_are_refused(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused = cli("train", "--num-steps", "1")
    assert refused.code == 2
    assert message in refused.err


def test_one_process_of_a_launcher_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert place() == Place(0, 1, 0)
    assert World().gather("me") == ["me"]


@pytest.mark.parametrize("variables", [("WORLD_SIZE",), ("WORLD_SIZE", "RANK", "LOCAL_RANK", COMMAND)])
def test_variables_that_are_set_and_empty_are_not_set(monkeypatch: pytest.MonkeyPatch, variables: list[str]) -> None:
    """Job templates leave such."""
    for name in variables:
        monkeypatch.setenv(name, "")
    assert place() == Place(0, 1, 0)
    assert command() == sys.argv


def test_every_process_of_a_machine_gets_a_gpu_of_its_own() -> None:
    assert [gpu_index(rank, 4) for rank in range(4)] == [0, 1, 2, 3]
    assert gpu_index(3, 1) == 0  # shown its own alone
    with pytest.raises(PrerequisiteError, match="process 4 of this machine has no GPU: torch sees 4"):
        gpu_index(4, 4)


def test_a_signal_that_comes_twice_at_once_is_one() -> None:
    with StopRequests(echo_s=60) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM


# ---------------------------------------------------------------- through the launcher


def test_a_signal_to_torchrun_saves_and_the_run_goes_on(six: runs.Run, tmp_path: Path) -> None:
    options = [part for override in SMALL for part in ("-o", override)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "gcpo_bench", "train", "--runs-dir", str(tmp_path), "--name", "stopped", "--num-steps", "6"]
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "TEST_FAILURE": "::slow"}
    with open(tmp_path / "said", "w") as said:
        launched = subprocess.Popen([*launch, *command, *options], cwd=root, env=environment, stderr=said, stdout=said)
    deadline = time.monotonic() + LIMIT_S
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n")) and time.monotonic() < deadline:
        time.sleep(0.05)
    launched.send_signal(signal.SIGTERM)
    assert launched.wait(LIMIT_S) != 0
    text = (tmp_path / "said").read_text()
    run = runs.open_run("stopped", tmp_path)
    assert run.status().state == "preempted", text
    step = run.status().step
    assert 1 <= step < 6
    assert run.checkpoint_steps()[-1] == step
    assert f"error: stopped by SIGTERM after step {step}; the state is saved" in text
    assert text.count("error:") == 1
    assert run.environments()[0]["launcher"] == "torchrun"
    train(run.config, run, resume=True)
    assert outcome(run)["metrics"] == outcome(six)["metrics"]
    assert outcome(run)["weights"] == outcome(six)["weights"]


def test_a_dry_run_says_what_one_of_many_gpus_holds(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("policy.lora=null", "policy.random_init=true")
    command = ("train", "--preset", "janus-pro-7b-gcpo-geneval", "--dry-run")
    overrides = tuple(part for option in options for part in ("-o", option))
    monkeypatch.setenv("WORLD_SIZE", "8")
    told = cli(*command, *overrides)
    assert told.code == 0
    assert "on 8 H200" in told.out
    memory = next(line for line in told.out.splitlines() if line.strip().startswith("memory"))
    assert 50 < float(memory.split()[1]) < 70  # GB: fits one of 80
    monkeypatch.setenv("RANK", "3")
    assert cli(*command, *overrides).out == ""

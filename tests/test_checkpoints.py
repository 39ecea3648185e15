"""What a checkpoint takes of memory while it is written, and that its files are those of the libraries."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save

from gcpo_bench.training.checkpoints import write_tensors

from .memory import peak_mb


def test_weights_are_written_as_the_library_writes_them(tmp_path: Path) -> None:
    numbers = torch.arange(12.0)
    tensors = {
        "b.weight": numbers.reshape(3, 4),
        "z": numbers.bfloat16(),
        "a": numbers[:5].half(),
        "double": numbers.double().requires_grad_(),
        "one": torch.tensor(3.5),
        "none": torch.zeros(0, 4),
        "naïve": numbers.reshape(3, 4).T,
    }
    write_tensors(tmp_path / "new" / "a.safetensors", tensors)
    expected = save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    assert (tmp_path / "new" / "a.safetensors").read_bytes() == expected
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_saving_takes_no_copy_of_weights_and_optimiser(tmp_path: Path) -> None:
    before = f"""
        import pathlib, torch
        from gcpo_bench import runs
        from gcpo_bench.config import RunConfig
        from gcpo_bench.training import checkpoints
        from gcpo_bench.training.distributed import ALONE
        from gcpo_bench.training.optimizers import Optimizer

        policy = torch.nn.ParameterList(torch.nn.Parameter(torch.ones(250_000)) for _ in range(50))
        optimizer = Optimizer(list(policy), RunConfig().optimizer, ALONE)
        for parameter in policy:
            parameter.grad = torch.ones_like(parameter)
        optimizer.adamw.step()
        run = runs.create(pathlib.Path({str(tmp_path)!r}), "a", RunConfig())
    """
    peak, _ = peak_mb(before, "checkpoints.save(run, 1, policy, optimizer, keep=1)")
    folder = tmp_path / "a" / "checkpoints" / "step-000001"
    assert (folder / "policy.safetensors").stat().st_size > 50e6
    assert (folder / "optimizer.pt").stat().st_size > 100e6
    assert peak < 30

"""Memory that the loss takes above the hidden states: all logits kept, in chunks, and at selected tokens only.

    python benchmarks/loss_memory.py [--images 64] [--dtype bfloat16] [--device cpu] [--json]

The output layer is that of Janus-Pro-1B with random weights, frozen as in training; the hidden states of that many
images (576 positions, width 2048) are random numbers, and the gradient stops at them. So what is measured is what the
head, the softmax, the loss and their gradients need at most, beside the hidden states and their gradient. On a CPU each
variant runs in a process of its own, and its memory is that of the process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAEHead

from gcpo_bench.config import LossConfig
from gcpo_bench.training.bench import memory_bytes
from gcpo_bench.training.logprobs import token_logprobs
from gcpo_bench.training.losses import policy_loss
from gcpo_bench.training.policies.janus_pro import SIZES
from gcpo_bench.training.types import Batch
from gcpo_bench.training.weighting import Uniform

VARIANTS: dict[str, dict[str, Any]] = {
    "all positions, logits kept": {"ratio": 1.0, "chunk_logits": 2**62},
    "all positions, in chunks": {"ratio": 1.0, "chunk_logits": None},
    "30 % of the positions": {"ratio": 0.3, "chunk_logits": None},
}


class Head(nn.Module):
    """What is left of a policy where its transformer's results are given."""

    def __init__(self, hidden_BTD: Tensor) -> None:
        super().__init__()
        codes = SIZES["janus-pro-1b"].config().vq_config
        self.vocab_size = codes.num_embeddings
        self.output = JanusVQVAEHead(codes).to(hidden_BTD.device, hidden_BTD.dtype).requires_grad_(False)
        self.hidden_BTD = hidden_BTD

    def hidden(self, texts_B: list[str], tokens_BT: Tensor) -> Tensor:
        return self.hidden_BTD

    def head(self, hidden: Tensor) -> Tensor:
        return self.output(hidden)


@dataclass(frozen=True, kw_only=True)
class Measured:
    variant: str
    seconds: float
    peak_bytes: int
    """Above the hidden states and their gradient."""
    loss: float


def measure(variant: str, images: int, dtype: torch.dtype, device: torch.device) -> Measured:
    """The second of two passes: the first makes what libraries keep."""
    ratio, chunk_logits = VARIANTS[variant]["ratio"], VARIANTS[variant]["chunk_logits"]
    size = SIZES["janus-pro-1b"]
    tokens = size.side**2
    generator = torch.Generator().manual_seed(0)
    hidden_BTD = torch.randn(images, tokens, size.width, generator=generator, dtype=dtype).to(device).requires_grad_()
    head = Head(hidden_BTD)
    tokens_BT = torch.randint(size.codes, (images, tokens), generator=generator).to(device)
    selected_BT = (torch.rand(images, tokens, generator=generator) < ratio).to(device)
    batch = Batch(
        old_logprobs_BT=None,
        ref_logprobs_BT=torch.full((images, tokens), -9.7, device=device),
        advantages_B=torch.randn(images, generator=generator).to(device),
        selected_BT=selected_BT,
        policy_denominator=float(selected_BT.sum()),
        kl_denominator=float(selected_BT.sum()),
    )
    for _ in range(2):
        hidden_BTD.grad = torch.zeros_like(hidden_BTD)
        before = memory_bytes(device, reset=True)
        started = time.perf_counter()
        logprobs_BT = token_logprobs(
            head, [""] * images, tokens_BT, differentiated_BT=selected_BT, chunk_logits=chunk_logits
        )
        output = policy_loss(logprobs_BT, batch, Uniform(), LossConfig())
        output.loss.backward()
        loss = float(output.loss.detach())
        seconds = time.perf_counter() - started
        peak_bytes = memory_bytes(device) - before
        del logprobs_BT, output
    return Measured(variant=variant, seconds=seconds, peak_bytes=peak_bytes, loss=loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    found = []
    for variant in VARIANTS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(measure, (variant, arguments.images, dtype, device)))
    machine = f"{platform.machine()}, {device}, torch {torch.__version__}, {arguments.dtype}, {arguments.images} images"
    if arguments.json:
        command = shlex.join(["python", "benchmarks/loss_memory.py", *sys.argv[1:]])
        date = datetime.now(UTC).date().isoformat()
        results = [asdict(each) for each in found]
        print(json.dumps({"command": command, "date": date, "machine": machine, "results": results}, indent=2))
        return
    for each in found:
        print(f"{each.variant:<28} {each.peak_bytes / 2**30:6.2f} GiB  {each.seconds:7.1f} s  loss {each.loss:.6f}")
    print(f"machine: {machine}")


if __name__ == "__main__":
    main()

"""How fast and how large the parts of a step are here, beside the least that this machine could do them in.

A floor is the larger of two times: the bytes that must move, at the rate this machine copies memory, and the arithmetic
that must be done, at the rate it multiplies matrices. Both rates are measured in the same run. A ratio to the floor is
comparable between machines; seconds are not.

    rollout   B images: the weights are read once a token, each row's cache once a token. Beside it stands how many
              kernels a token takes (`gcpo_bench.training.kernels`), counted in single steps
    update    policy forward and backward, reference forward: 8 FLOPs a weight and token
    select    signals, selection and weight: their inputs are read once
    step      rollout and update; what else a step does has no floor
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gcpo_bench.config import RunConfig
from gcpo_bench.errors import ConfigError
from gcpo_bench.resolve import resolve
from gcpo_bench.variants import signals_read

from . import starts
from .decoding import Distribution, sample
from .floors import rollout_bytes, rollout_flops, update_flops
from .kernels import KernelCount
from .learner import Learner, as_module, build_learner
from .logprobs import token_logprobs
from .loop import train_step
from .observation import draw_prompts, token_signals
from .selectors import select
from .types import Batch, Policy, Rollout
from .update import micro_batch

PARTS = ("rollout", "update", "select", "step")
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Many times what caches hold; on a GPU at most a quarter of what is free."""
MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
TIMED = {"cpu": 1, "cuda": 10}
"""Calls that are timed as one: a GPU does each of these in a millisecond or two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What is measured."""

    config: RunConfig
    images: int
    threads: int
    repeats: int

    @property
    def device(self) -> torch.device:
        return starts.usable_device(self.config.policy.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    copy_bytes_per_s: float
    """Read and written together."""
    matmul_flops_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    variant: str
    seconds: float
    """Median."""
    seconds_min: float
    peak_bytes: int
    """Above what there was before it ran."""
    floor_s: float | None
    tokens: int
    kernels_per_token: int | None
    """Of a rollout."""

    def to_json(self) -> dict[str, Any]:
        rate = self.tokens / self.seconds
        ratio = self.seconds / self.floor_s if self.floor_s else None
        return {**asdict(self), "tokens_per_s": rate, "ratio_to_floor": ratio}


Action = Callable[..., object]
"""Called without arguments. A rollout can be told to stop after so many tokens, and then replays nothing."""


def measure(part: str, spec: Spec) -> tuple[Rates, list[Measured]]:
    """Every variant of a part, each in a process of its own on the CPU, so that its peak memory is its own.

    Raises ConfigError for a part that is not known or a policy that a part cannot measure.
    """
    if part not in PARTS:
        raise ConfigError(f"unknown part {part!r}", hint=f"known: {', '.join(PARTS)}")
    rate = rates(spec)
    policy = starts.without_memory(spec.config.policy)
    return rate, [_apart(part, variant, spec, rate) for variant in VARIANTS[part] if _can(policy, variant)]


def _can(policy: Policy, variant: str) -> bool:
    if variant == TRANSFORMERS:
        return hasattr(policy, "language_model")
    return variant != GRAPHS or getattr(policy, "fixed_shapes", False)


def _apart(part: str, variant: str, spec: Spec, rate: Rates) -> Measured:
    if spec.device.type != "cpu":
        gc.collect()  # what the variant before held is not this one's
        return _measure(part, variant, spec, rate)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (part, variant, spec, rate))


def _measure(part: str, variant: str, spec: Spec, rate: Rates) -> Measured:
    torch.set_num_threads(spec.threads)
    action, learner = VARIANTS[part][variant](spec)
    torch.set_num_threads(spec.threads)
    before = memory_bytes(spec.device, reset=True)
    seconds = []
    for repeat in range(spec.repeats + 1):
        _wait(spec.device)
        started = time.perf_counter()
        action()
        _wait(spec.device)
        if repeat:  # the first warms up
            seconds.append(time.perf_counter() - started)
    tokens = spec.images * learner.policy.grid[0] * learner.policy.grid[1]
    return Measured(
        variant=variant,
        seconds=statistics.median(seconds),
        seconds_min=min(seconds),
        peak_bytes=memory_bytes(spec.device) - before,
        floor_s=floor_s(part, learner, spec, rate),
        tokens=tokens,
        kernels_per_token=kernels_per_token(action) if part == "rollout" else None,
    )


def kernels_per_token(rollout: Action) -> int:
    """What a third token takes beside two."""
    counts = []
    for tokens in (2, 3):
        with KernelCount() as kernels:
            rollout(tokens)
        counts.append(kernels.count)
    return counts[1] - counts[0]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_bytes(device: torch.device, *, reset: bool = False) -> int:
    """Peak so far, bytes: of the device, or of this process. With `reset`, what is in use, and the peak begins here."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
            return torch.cuda.memory_allocated(device)
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    with suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: forgets the peak
        field = "VmRSS" if reset else "VmHWM"
        found = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith(field))
        return int(found.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---------------------------------------------------------------- floors


def rates(spec: Spec) -> Rates:
    """What this machine can move and multiply, best of several tries."""
    torch.set_num_threads(spec.threads)
    device = spec.device
    count, side = COPY_BYTES[device.type], MATRIX_SIDE[device.type]
    if device.type == "cuda":
        count = min(count, torch.cuda.mem_get_info(device)[0] // 4)
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _best(lambda: target.copy_(source), device)
    dtype = torch.bfloat16 if spec.config.policy.dtype == "bfloat16" else torch.float32
    # random numbers: on a GPU, what is multiplied changes the power that it takes, and so the clock
    matrix = torch.randn(side, side, device=device, generator=torch.Generator(device).manual_seed(0)).to(dtype)
    matmul_s = _best(lambda: matrix @ matrix, device)
    return Rates(copy_bytes_per_s=2 * count / copy_s, matmul_flops_per_s=2 * side**3 / matmul_s)


def _best(action: Action, device: torch.device, tries: int = 8) -> float:
    """Seconds of a call; the first try warms up."""
    return min(_timed(action, device, TIMED[device.type]) for _ in range(tries))


def _timed(action: Action, device: torch.device, calls: int) -> float:
    """Seconds of one of several calls, on a GPU by its own clock: the host's counts launch and wait as well."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(calls):
            action()
        return (time.perf_counter() - started) / calls
    with torch.cuda.device(device):
        begin: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(calls):
            action()
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / calls


def floor_s(part: str, learner: Learner, spec: Spec, rate: Rates) -> float:
    """Seconds; see the module."""
    work = learner.policy.work()
    size = next(as_module(learner.policy).parameters()).element_size()
    tokens = learner.policy.grid[0] * learner.policy.grid[1]
    if part == "select":
        width = learner.policy.embed(torch.zeros(1, 1, dtype=torch.int64, device=spec.device), "projected").shape[-1]
        return spec.images * tokens * (width * size + 5 * 4) / rate.copy_bytes_per_s
    update = update_flops(work, spec.images, tokens) / rate.matmul_flops_per_s
    if part == "update":
        return update
    guided = spec.config.sampling.guidance_scale != 1.0
    moved = rollout_bytes(work, spec.images * (1 + guided), tokens, size)
    flops = rollout_flops(work, spec.images * (1 + guided), tokens)
    rollout = max(moved / rate.copy_bytes_per_s, flops / rate.matmul_flops_per_s)
    return rollout if part == "rollout" else rollout + update


# ---------------------------------------------------------------- variants

TRANSFORMERS, GRAPHS = "transformers, growing cache", "fixed shapes, CUDA graphs on a GPU"
Prepared = tuple[Action, Learner]


def _learner(spec: Spec, **changes: Any) -> Learner:
    return build_learner(spec.config.model_copy(update=changes))


def _drawn(learner: Learner, spec: Spec) -> tuple[list[str], Tensor]:
    """Texts and uniform numbers of `spec.images` images."""
    group = min(spec.images, spec.config.sampling.group_size)
    prompts = draw_prompts(learner.config, 1)
    texts = [prompts[row // group % len(prompts)].text for row in range(spec.images)]
    tokens = learner.policy.grid[0] * learner.policy.grid[1]
    generator = torch.Generator().manual_seed(0)
    return texts, torch.rand(spec.images, tokens, generator=generator).to(spec.device)


def _distribution(spec: Spec) -> dict[str, Any]:
    config = spec.config.sampling
    return {
        "guidance_scale": config.guidance_scale,
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
    }


def _rollout(graphs: bool | None) -> Callable[[Spec], Prepared]:
    def prepare(spec: Spec) -> Prepared:
        learner = _learner(spec)
        texts, uniforms = _drawn(learner, spec)

        def rollout(tokens: int | None = None) -> object:
            recorded = graphs if tokens is None else False
            return sample(learner.policy, texts, uniforms[:, :tokens], graphs=recorded, **_distribution(spec))

        return rollout, learner

    return prepare


def _rollout_transformers(spec: Spec) -> Prepared:
    """The loop that released trainers use: transformers' own pass, a cache that grows by concatenation, every step's
    logits kept for the entropy."""
    from transformers import DynamicCache

    learner = _learner(spec)
    policy: Any = learner.policy
    texts, uniforms = _drawn(learner, spec)
    settings = Distribution(**_distribution(spec))

    @torch.no_grad()
    def loop(tokens: int | None = None) -> Tensor:
        ids, lengths = policy.prompt_ids(texts)
        if settings.guided:
            ids, lengths = torch.cat([ids, policy.unconditional(ids)]), torch.cat([lengths, lengths])
        mask = torch.arange(ids.shape[1] + 1, device=ids.device) < lengths[:, None]
        mask[:, -1] = True
        inputs = torch.cat([policy.word_vectors(ids), policy.begin(len(ids))], dim=1)
        cache, kept = DynamicCache(config=policy.language_model.config), []
        for uniforms_B in uniforms.t()[:tokens]:
            with warnings.catch_warnings():  # the cache's argument has another name in newer versions
                warnings.simplefilter("ignore", FutureWarning)
                hidden = policy.language_model(
                    inputs_embeds=inputs, attention_mask=mask.long(), past_key_values=cache, use_cache=True
                ).last_hidden_state[:, -1]
            logits = policy.head(hidden)
            kept.append(logits[: len(texts)])
            drawn_B, *_ = settings.choose(logits, uniforms_B, None)
            inputs = policy.token_vectors((torch.cat([drawn_B, drawn_B]) if settings.guided else drawn_B)[:, None])
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logprobs_BTV = torch.stack(kept, dim=1).float().log_softmax(-1)
        return -(logprobs_BTV.exp() * logprobs_BTV).sum(-1)

    return loop, learner


def _update(selected: bool, chunk_logits: int | None) -> Callable[[Spec], Prepared]:
    def prepare(spec: Spec) -> Prepared:
        method = resolve(None, (), {"method": "gcpo-no-daw" if selected else "grpo"}).config
        learner = _learner(spec, selection=method.selection, weighting=method.weighting, loss=method.loss)
        texts, uniforms = _drawn(learner, spec)
        tokens_BT = (uniforms * learner.policy.vocab_size).long()
        chosen_BT = uniforms < 0.3 if selected else torch.ones_like(uniforms, dtype=torch.bool)
        with torch.no_grad():
            reference_BT = token_logprobs(learner.policy, texts[:1], tokens_BT[:1]).expand(len(texts), -1)
        count = float(chosen_BT.sum())
        batch = Batch(
            old_logprobs_BT=None,
            ref_logprobs_BT=reference_BT,
            advantages_B=uniforms[:, 0] - 0.5,
            selected_BT=chosen_BT,
            policy_denominator=count,
            kl_denominator=count,
        )
        rows = learner.config.optimizer.micro_batch_rows

        def update() -> None:
            for first in range(0, len(texts), rows):
                part = slice(first, first + rows)
                with torch.no_grad(), learner.reference() as reference:
                    token_logprobs(reference, texts[part], tokens_BT[part], chunk_logits=chunk_logits)
                micro_batch(learner, texts[part], tokens_BT[part], batch.rows(part), chunk_logits=chunk_logits)

        return update, learner

    return prepare


def _select(spec: Spec) -> Prepared:
    learner = _learner(spec)
    _, uniforms = _drawn(learner, spec)
    group = min(spec.images, learner.config.sampling.group_size)
    prompts = tuple(draw_prompts(learner.config, 1)[: spec.images // group])
    rows = len(prompts) * group
    rollout = Rollout(
        prompts=prompts,
        group_size=group,
        grid=learner.policy.grid,
        tokens_BT=(uniforms[:rows] * learner.policy.vocab_size).long(),
        logprobs_BT=-uniforms[:rows],
        entropy_BT=uniforms[:rows],
    )
    config = learner.config.selection

    @torch.no_grad()
    def run() -> None:
        signals = token_signals(learner, rollout, "bench", signals_read(config))
        chosen = select(learner.selectors, signals, overlap=config.overlap, complement=config.complement)
        learner.weighting(rollout.logprobs_BT, rollout.logprobs_BT, chosen.selected_BT)

    return run, learner


def _step(method: str) -> Callable[[Spec], Prepared]:
    def prepare(spec: Spec) -> Prepared:
        chosen = resolve(None, (), {"method": method}).config
        group = min(spec.images, spec.config.sampling.group_size)
        sampling = spec.config.sampling.model_copy(
            update={"prompts_per_step": max(spec.images // group, 1), "group_size": group}
        )
        learner = _learner(
            spec, selection=chosen.selection, weighting=chosen.weighting, loss=chosen.loss, sampling=sampling
        )
        return lambda: train_step(learner, 1), learner

    return prepare


VARIANTS: Mapping[str, Mapping[str, Callable[[Spec], Prepared]]] = {
    "rollout": {
        TRANSFORMERS: _rollout_transformers,
        "static cache": _rollout(graphs=False),
        GRAPHS: _rollout(graphs=True),
    },
    "update": {
        "all positions, logits kept": _update(selected=False, chunk_logits=2**62),
        "all positions, in chunks": _update(selected=False, chunk_logits=None),
        "30 % of the positions": _update(selected=True, chunk_logits=None),
    },
    "select": {"signals, selection and weight": _select},
    "step": {method: _step(method) for method in ("grpo", "gcpo", "gcpo-official")},
}


def spec_for(config: RunConfig, *, images: int, threads: int, repeats: int) -> Spec:
    """Random weights, the cheap pixel reward: what is measured depends on neither."""
    policy = config.policy.model_copy(update={"random_init": True})
    rewards = (config.rewards[0].model_copy(update={"name": "redness", "weight": 1.0}),)
    changed = {"policy": policy, "rewards": rewards, "num_threads": threads}
    return Spec(config=config.model_copy(update=changed), images=images, threads=threads, repeats=repeats)

"""The algorithm, and the run around it: from its start or last checkpoint to its last step, whatever interrupts it.

A step draws prompts, observes (sample, reward, look at the tokens, select) and updates. Nothing here asks which method
runs: GRPO is every token selected with weight 1, every variant is another list of selectors and another weighting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from gcpo_bench import __version__, environment, stops
from gcpo_bench.addresses import outside_sources
from gcpo_bench.config import RunConfig
from gcpo_bench.datasets import prompts_by_task
from gcpo_bench.errors import GcpoBenchError, Interrupted, Preempted
from gcpo_bench.runs import Run

from . import checkpoints, health, starts
from .decoding import keep_one_layout
from .distributed import ALONE, World
from .interrupts import StopRequests, stopped
from .learner import Learner, as_module, build_learner
from .metrics import Metrics, Stopwatch, describe, peak_memory_bytes
from .observation import draw_prompts, observe
from .token_maps import save_token_maps
from .update import update

ECHO_S = 5.0
"""Of several processes, each may get a signal from the launcher and from whoever sent it to the launcher."""


def train_step(learner: Learner, step: int) -> Metrics:
    """Sample a batch, learn from it, and say what happened. Everything random is addressed by `step`."""
    clock = Stopwatch()
    with clock.phase("step"):
        prompts = draw_prompts(learner.config, step)
        seen = observe(learner, prompts, f"rollout/{step}", clock)
        with clock.phase("update"):
            learned = update(learner, seen, step)
    return {
        "step": step,
        **describe(seen),
        **learned,
        **clock.seconds,
        "throughput/tokens_per_s": seen.rollout.tokens_BT.numel() / clock.seconds["time/step_s"],
        "memory/peak_bytes": max(learner.world.gather(peak_memory_bytes(torch.device(learner.config.policy.device)))),
    }


def train(
    config: RunConfig,
    run: Run,
    *,
    resume: bool = False,
    on_step: Callable[[Mapping[str, float]], None] | None = None,
    world: World = ALONE,
) -> None:
    """Train `run` to `config.num_steps`. The processes of `world` all call it, the first with a run that it may write.

    Raises:
        RunError: another process trains the run, or its start weights are no longer those that it began from.
        TrainingError: numbers went bad, or nothing could be learned; the last checkpoint is untouched.
        Interrupted, Preempted: a signal arrived; the state is saved.
    """
    with run.lock():
        run.remove_leftovers()
        step = 0
        start = starts.start_weights(config, run.path.parent)
        if resume:  # what the run began from is told in its record, which is the first process's
            world.from_first(lambda: None if run.is_empty() else starts.require_first_weights(run, start))
        try:
            world.require_equal("version", f"{__version__} on torch {torch.__version__}")
            world.require_equal("start weights", start[1])
            learner = build_learner(config, run, world, start)
            if torch.device(config.policy.device).type == "cuda":  # on a CPU nothing is recorded
                prompts = [prompt for task in prompts_by_task(config.data.prompts).values() for prompt in task]
                keep_one_layout(learner.policy, [prompt.text for prompt in prompts])
            step = _restore(learner, run) if resume else 0
            used = {"start_weights": start[1], "policy": starts.text_and_parts(learner.policy, config.policy)}
            if sources := outside_sources(config):
                used["sources"] = sources
            with StopRequests(ECHO_S if world.size > 1 else stops.ECHO_S) as stop:  # before, there is nothing to save
                run.add_environment({**environment.record(), **world.record(), **used})
                run.set_status("running", step)
                if step == 0:
                    _keep(learner, run, 0, stopping=False)
                while step < config.num_steps:
                    metrics = train_step(learner, step + 1)
                    run.log(metrics)
                    step += 1
                    if on_step:
                        on_step(metrics)
                    if step == health.PATIENCE_STEPS and world.first:
                        health.check_learning(run.metrics(), learner.parameters, learner.start)
                    # a signal that reached one process stops all of them, after the same step
                    signal = max(world.gather(stop.received or 0))
                    _keep(learner, run, step, stopping=signal != 0)
                    if signal and step < config.num_steps:
                        raise stopped(signal, run.name, step)
                run.set_status("finished", step)
        except (Interrupted, Preempted) as error:
            run.set_status("interrupted" if isinstance(error, Interrupted) else "preempted", step)
            world.wait()  # as soon as one process is gone, the launcher ends the others
            raise
        except GcpoBenchError as error:
            run.set_status("failed", step, str(error))
            raise


def _keep(learner: Learner, run: Run, step: int, *, stopping: bool) -> None:
    """Token maps and checkpoint, where they are due."""
    config = learner.config
    last = step == config.num_steps
    every = config.logging.token_maps_every
    if every and (last or step % every == 0):
        save_token_maps(learner, run, step)
    if last or stopping or step % config.logging.checkpoint_every == 0:
        checkpoints.save(run, step, as_module(learner.policy), learner.optimizer, keep=config.logging.keep_checkpoints)


def _restore(learner: Learner, run: Run) -> int:
    """Continue from the newest checkpoint; metrics after it are dropped and will be made again, equal."""
    steps = learner.world.from_first(run.checkpoint_steps)
    step = steps[-1] if steps else 0
    if steps:
        checkpoints.load(run, step, as_module(learner.policy), learner.optimizer)
    run.set_status("running", step)  # first: the metrics never show fewer steps than the status tells
    run.truncate_metrics(step)
    return step

"""`gcpo-bench train`: a run, from the start or from where it stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gcpo_bench.environment import place

from .options import (
    MethodOption,
    ModelOption,
    OverrideOption,
    PresetOption,
    RatioOption,
    RunsDirOption,
    SeedOption,
    StepsOption,
    TrustOption,
)
from .output import duration, note, print_table, shell_quote, size
from .progress import describe, progress
from .together import together

if TYPE_CHECKING:
    from gcpo_bench.config import RunConfig
    from gcpo_bench.runs import Run, Status
    from gcpo_bench.training.distributed import World
    from gcpo_bench.training.estimate import Estimate
    from gcpo_bench.training.memory import Memory

MAY_CHANGE = ("num_steps", "num_threads", "logging.")
"""What a resumed run may do differently: last longer, log otherwise, and need less memory (`config.RESOURCES`). Else it
would be another experiment. `policy.device` may become another one of its kind."""
SUMMARY_STEPS = 5
"""Steps at each end that the printed rewards are means of; a single step is too noisy to compare."""


def train_command(
    preset: PresetOption = None,
    method: MethodOption = None,
    model: ModelOption = None,
    ratio: RatioOption = None,
    seed: SeedOption = None,
    num_steps: StepsOption = None,
    override: OverrideOption = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: made from method, model, seed.")] = None,
    runs_dir: RunsDirOption = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, how long; write nothing.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue --name, or the run that stopped last; same settings.")
    ] = False,
    trust: TrustOption = False,
) -> None:
    """Train a policy; without options GCPO on the embedded world. Under torchrun on several GPUs."""
    from gcpo_bench import outside
    from gcpo_bench.errors import ConfigError

    flags = {"method": method, "model": model, "ratio": ratio, "seed": seed, "num_steps": num_steps}
    if trust and not resume:
        raise ConfigError("--trust goes with --resume only", hint="leave it out: what you name yourself is trusted")

    def prepare() -> Plan | None:
        if resume:
            return _resumed(name, runs_dir, preset, override or [], flags, dry_run=dry_run, trust=trust)
        return _new(name, runs_dir, preset, override or [], flags, dry_run)

    if dry_run:  # needs no other process: WORLD_SIZE=8 gcpo-bench train --dry-run says what 8 would take
        if place().rank == 0:
            prepare()
        return
    with together() as world:
        plan = prepare() if world is None else world.from_first(prepare)
        if plan is not None:
            outside.allow(outside.parts_of(plan.config))  # the first process was asked; the others follow it
            _train(plan, runs_dir, world)


Flags = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    name: str | None
    """None: made from the settings, the first that is free when the run is made."""
    config: RunConfig
    run: Run | None
    """To go on with; None is a new one."""


def _resumed(
    name: str | None,
    root: Path,
    preset: str | None,
    override: list[str],
    flags: Flags,
    *,
    dry_run: bool,
    trust: bool,
) -> Plan | None:
    """What to go on with; None where nothing is left to do."""
    from gcpo_bench import outside, runs

    run = runs.open_run(name, root) if name else _stopped_last(root)
    config = _resumed_config(run, preset, override, flags)
    if dry_run:  # which is to look before anything of the folder is run, so --trust changes nothing here
        _print_plan(config, run.path, root, done=(run.checkpoint_steps() or [0])[-1])
        return None
    if trust:
        outside.allow(outside.parts_of(config))
    status, steps = run.mended_status(), run.checkpoint_steps()
    # a newest checkpoint that was damaged and deleted is made again from the one before it
    has_last = not steps or steps[-1] >= config.num_steps
    if status.state == "finished" and status.step >= config.num_steps and has_last:
        note(f"{run.path} is finished; train on with a larger --num-steps")
        print(run.path)
        return None
    outside.require_named(config)
    return Plan(run.name, config, run)


def _new(
    name: str | None, root: Path, preset: str | None, override: list[str], flags: Flags, dry_run: bool
) -> Plan | None:
    """What to begin; None where nothing is to be written."""
    from gcpo_bench import runs
    from gcpo_bench.resolve import resolve

    resolved = resolve(preset, override, flags)
    config = resolved.config
    for line in resolved.notes:
        note(line)
    if name is not None:
        runs.check_new(root, name)
    if dry_run:
        _print_plan(config, root / (name or runs.unused_name(root, _stem(config))), root)
        return None
    return Plan(name, config, None)


def _stem(config: RunConfig) -> str:
    """Name of a run that nobody named."""
    from gcpo_bench.variants import run_prefix

    return f"{run_prefix(config)}-{config.policy.name}-seed{config.seed}"


def _begun(plan: Plan, root: Path) -> Run:
    """The run's folder, made or brought up to date."""
    from gcpo_bench import runs
    from gcpo_bench.errors import RunError

    if plan.run is None:
        if plan.name is None:
            return runs.create_unused(root, _stem(plan.config), plan.config)
        return runs.create(root, plan.name, plan.config)
    with plan.run.lock():
        if runs.open_run(plan.run.path).config != plan.run.config:
            raise RunError(
                f"{plan.run.path} was given other settings by another process just now",
                hint="the same command takes them into account: run it again",
            )
        if plan.config != plan.run.config:
            plan.run.replace_config(plan.config)
    return plan.run


def _stopped_last(root: Path) -> Run:
    """The run whose state was written last among those that are not finished, and that no other process trains."""
    from gcpo_bench.errors import GcpoBenchError, RunError
    from gcpo_bench.runs import list_runs, open_run

    stopped: list[tuple[float, Run]] = []
    for path in list_runs(root):
        try:
            run = open_run(path)
            if run.status().state != "finished" and not run.is_in_use():
                stopped.append((path.stat().st_mtime, run))
        except GcpoBenchError as error:
            note(f"passing over {path}: {error}")
    if not stopped:
        raise RunError(
            f"no unfinished run in {root} that stands still",
            hint="name one with --name, or start one: gcpo-bench train",
        )
    return max(stopped, key=lambda pair: pair[0])[1]


def _resumed_config(run: Run, preset: str | None, override: list[str], flags: Mapping[str, Any]) -> RunConfig:
    """The run's own configuration with the given options on top. Raises RunError if that is another experiment."""
    from gcpo_bench.errors import RunError
    from gcpo_bench.files import inline_yaml
    from gcpo_bench.resolve import config_diff, resolve

    resolved = resolve(preset, override, flags, base=run.config)
    config = resolved.config
    for line in resolved.notes:
        note(line)
    done = max(run.checkpoint_steps(), default=0)
    if config.num_steps < done and config.num_steps != run.config.num_steps:
        raise RunError(
            f"{run.path} has trained {done} steps: {config.num_steps} are fewer",
            hint="leave --num-steps out to resume it, or train another run of so many steps with another --name",
        )
    differences = [item for item in config_diff(run.config, config) if not _may_change(*item)]
    if differences and not run.is_empty():
        listed = ", ".join(f"{key} {inline_yaml(was)} -> {inline_yaml(now)}" for key, was, now in differences)
        raise RunError(
            f"{run.path} was made with other settings: {listed}",
            hint="leave these options out to resume it, or start another run with another --name",
        )
    return config


def _may_change(key: str, was: Any, now: Any) -> bool:
    from gcpo_bench.config import RESOURCES

    if key == "policy.device":
        return str(was).partition(":")[0] == str(now).partition(":")[0]
    return key.startswith((*MAY_CHANGE, *RESOURCES))


def _train(plan: Plan, root: Path, world: World | None) -> None:
    """What is missing on any machine is told before there is a run; one that fails before its first step is removed."""
    from gcpo_bench.runs import WatchedRun
    from gcpo_bench.training import preflight
    from gcpo_bench.training.distributed import ALONE

    if world is None and plan.run is None and (task := os.environ.get("SLURM_PROCID", "0")) not in {"", "0"}:
        note(f"task {task} of srun: each task trains a run of its own; how several train one: docs/several-gpus.md")
    world = world or ALONE
    preflight.require(world.settled(plan.config), root, world.size)
    before = _Before.of(plan.run) if plan.run and world.first else None
    world.wait()
    run = world.from_first(lambda: _begun(plan, root))
    run = run if world.first else WatchedRun(run.path, run.config)
    try:
        _trained(run, root, world, resume=plan.run is not None)
    except (Exception, KeyboardInterrupt):
        if world.first and plan.run is None and run.discard():
            note(f"{run.path} had no step yet and was removed")
        if before:
            before.put_back(run)
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Before:
    """A run as it stood before it was resumed: a resume that is refused must not leave another configuration."""

    config: RunConfig
    status: Status
    starts: int
    """How often training began."""

    @classmethod
    def of(cls, run: Run) -> _Before:
        return cls(config=run.config, status=run.mended_status(), starts=len(run.environments()))

    def put_back(self, run: Run) -> None:
        """Unless training began, or another process trains the run now."""
        from gcpo_bench.errors import RunError

        with suppress(RunError), run.lock():
            if len(run.environments()) == self.starts:
                run.replace_config(self.config)
                run.set_status(self.status.state, self.status.step, self.status.error)


def _trained(run: Run, root: Path, world: World, *, resume: bool) -> None:
    from gcpo_bench import variants
    from gcpo_bench.errors import GcpoBenchError
    from gcpo_bench.files import writing
    from gcpo_bench.training import memory
    from gcpo_bench.training.loop import train

    config, activations = memory.settled(run.config, world.size)
    many = f" in {world.size} processes" if world.size > 1 else ""
    note(f"training {variants.describe(config)} on {config.policy.name}{many}: {run.path}")
    if world.first:
        _warn_of_leaks(config)
        _warn_of_edits(run, config)
    started = time.perf_counter()
    done = (run.checkpoint_steps() or [0])[-1] if resume else 0
    with writing(run.log_path), run.log_path.open("a", encoding="utf-8") as log, progress("step", done) as show:

        def on_step(metrics: Mapping[str, float]) -> None:
            step = int(metrics["step"])
            show(step, config.num_steps, describe(metrics))
            print(f"step {step}/{config.num_steps}  {describe(metrics)}", file=log, flush=True)

        if activations and world.first:
            print(f"policy.recompute auto: {activations}", file=log, flush=True)
        try:
            train(config, run, resume=resume, on_step=on_step, world=world)
        except (GcpoBenchError, KeyboardInterrupt) as error:
            print(f"stopped: {error}", file=log)
            raise
        except Exception as error:
            # training marks the failures it knows; a defect must not leave the run "running" either
            if world.first:
                run.set_status("failed", run.status().step, f"internal error: {type(error).__name__}: {error}")
            raise
    if world.first:
        _print_summary(run, root, time.perf_counter() - started)


def _warn_of_edits(run: Run, config: RunConfig) -> None:
    """Says which parts from elsewhere are not what the run began with: its steps are then of two kinds."""
    from gcpo_bench.addresses import outside_sources

    first: Mapping[str, str] = next((record["sources"] for record in run.environments() if "sources" in record), {})
    for name, source in outside_sources(config).items():
        if first.get(name, source) != source:
            note(
                f"warning: the source of {name} has changed since {run.name} began; its first steps are of the old one"
            )


def _warn_of_leaks(config: RunConfig) -> None:
    """Says which evaluation prompts are trained on; the embedded world's sets are disjoint by construction."""
    from gcpo_bench.prompt_sets import leaks, texts

    if config.data.prompts.startswith("scenes-"):
        return
    for name, found in leaks(texts(config.data.prompts)).items():
        count = len(found.exact) + len(found.normalized)
        note(f"warning: {count} of {found.total} evaluation prompts of {name} are training prompts")
        note(f"look with: gcpo-bench data overlap {config.data.prompts} {name}")


def first_to_last(rewards: Sequence[float]) -> str:
    """`0.512 -> 0.634 (means of the first and last 5 steps)`; no step is in both."""
    if len(rewards) == 1:
        return f"{rewards[0]:.3f} (one step)"
    count = min(SUMMARY_STEPS, len(rewards) // 2)
    first, last = (sum(part) / count for part in (rewards[:count], rewards[-count:]))
    of = f"means of the first and last {count} steps" if count > 1 else "first and last step"
    return f"{first:.3f} -> {last:.3f} ({of})"


def _print_summary(run: Run, root: Path, seconds: float) -> None:
    rewards = [row["reward/mean"] for row in run.metrics()]
    if rewards:
        note(f"reward {first_to_last(rewards)}, {duration(seconds)}")
    where = [] if root == Path("runs") else ["--runs-dir", str(root)]
    note(f"next: {shell_quote(['gcpo-bench', 'evaluate', run.name, *where])}")
    note(f"then: {shell_quote(['gcpo-bench', 'report', *where])}")
    print(run.path)


def _time(cost: Estimate, steps: int, config: RunConfig) -> str:
    seconds, many = cost.seconds_per_step, place().size
    if cost.measured:
        alone = ", in one process" if many > 1 else ""
        return f"about {duration(seconds * steps)}, {seconds:.2f} s a step (one measured{alone})"
    if config.policy.device.startswith("cpu"):
        return f"not known on this CPU; measure a step: gcpo-bench bench step --model {config.policy.name}"
    where = f"{many} H200 (without what they send each other)" if many > 1 else "one H200"
    step = f"{seconds:.2f} s a step (computed floor of rollout and update)"
    return f"at least {duration(seconds * steps)} on {where}, {step}"


def _differentiated(cost: Estimate) -> str:
    """Where the output layer has a backward pass, and what it costs where that is more than the method's tokens."""
    found = cost.everywhere
    if found is None:
        return "differentiated at the tokens trained on only"
    return (
        f"differentiated at all positions: {found.reason}; its backward pass is {found.times:.1f} times that at the "
        f"tokens trained on, the whole update {found.more:.1%} more arithmetic"
    )


def _costs(cost: Estimate, steps: int, config: RunConfig) -> Iterator[tuple[str, object]]:
    many = place().size
    yield "output layer", _differentiated(cost)
    yield "time", _time(cost, steps, config)
    yield "disk", size(cost.bytes_on_disk)
    if many > 1:
        yield "processes", many
    yield "memory", f"{size(cost.peak_memory_bytes)} at the peak{' of each process' * (many > 1)}"
    if cost.memory:
        yield from _memory(cost.memory)


def _memory(memory: Memory) -> list[tuple[str, str]]:
    """What it is for, the largest first."""
    parts = sorted(memory.parts.items(), key=lambda part: -part[1])
    others = {name: sum(phase.values()) for name, phase in memory.in_turn.items() if name != memory.largest}
    smaller = ", ".join(f"{name} {size(count)}" for name, count in others.items() if count)
    return [
        *((f"  {name}", size(count)) for name, count in parts if count),
        *([("  at other times", f"{smaller}; not added")] if smaller else []),
        ("recompute", memory.activations),
    ]


def _print_plan(config: RunConfig, path: Path, root: Path, done: int = 0) -> None:
    from gcpo_bench import outside, variants
    from gcpo_bench.training import preflight
    from gcpo_bench.training.estimate import estimate, is_tried

    many = place().size
    unasked = outside.refused(config)
    lacking = [] if unasked else preflight.missing(config, root, many)
    cost = None if unasked or (lacking and is_tried(config)) else estimate(config, many)
    steps = max(config.num_steps - done, 0)
    images = config.sampling.prompts_per_step * config.sampling.group_size
    selectors = [f"{item.name} {item.ratio:g}" if item.ratio else item.name for item in config.selection.selectors]
    kept = "everything but " if config.selection.complement else ""
    rows = [
        ("run", path),
        ("method", variants.describe(config)),
        ("model", config.policy.name),
        ("tokens trained on", kept + " + ".join(selectors)),
        ("weight", config.weighting.name),
        ("reward", " + ".join(f"{item.weight:g} {item.name}" for item in config.rewards)),
        ("steps", f"{done + 1} to {config.num_steps}" if done else config.num_steps),
        ("images", f"{images} a step, {images * steps:,} in all"),
        *(_costs(cost, steps, config) if cost else ()),
        *(("from outside", f"{kind} {part}: not run here; see --trust") for part, kind in unasked.items()),
        *(("missing", f"{error}: {error.hint}") for error in lacking),
    ]
    print_table(("would run", ""), rows)
    note("nothing was written")

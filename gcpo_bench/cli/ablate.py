"""`gcpo-bench ablate`: a grid of runs, from a plan to a report."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ModelOption, OverrideOption, PresetOption, RunsDirOption, StepsOption
from .output import duration, note, visible
from .together import require_alone

if TYPE_CHECKING:
    from gcpo_bench.ablations import Cell, Plan
    from gcpo_bench.config import RunConfig
    from gcpo_bench.executors import Executor
    from gcpo_bench.ledger import CellState, Ledger

PLAIN_EVERY_S = 30.0
"""Between lines where no person watches a terminal."""


def complete_plans(incomplete: str) -> list[tuple[str, str]]:
    from gcpo_bench.ablations import list_plans

    return [(name, text) for name, text in list_plans() if name.startswith(incomplete)]


def ablate_command(
    plan: Annotated[
        str | None, typer.Option(help="Shipped plan or path of a .yaml file.", autocompletion=complete_plans)
    ] = None,
    ratio: Annotated[str | None, typer.Option(help="Shares of tokens per set: 0.1, or 0.05,0.1,0.15.")] = None,
    methods: Annotated[str | None, typer.Option(help="Methods instead of the published study: grpo,gcpo,...")] = None,
    components: Annotated[str | None, typer.Option(help="Of init,struct,sim,daw: each alone and together.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Training seeds: 0..4 or 0,2,5 (0..2).")] = None,
    preset: PresetOption = None,
    model: ModelOption = None,
    num_steps: StepsOption = None,
    override: OverrideOption = None,
    executor: Annotated[str, typer.Option(help="Where workers run: local, slurm, ray.")] = "local",
    executor_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="As slurm_partition=gpu or num_gpus=1; repeatable.")
    ] = None,
    max_parallel: Annotated[int | None, typer.Option(min=1, help="Workers at once; default: usable cores.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, how long, what it can detect; write nothing.")
    ] = False,
    detect: Annotated[
        str | None, typer.Option(metavar="POINTS", help="As many seeds as it takes to find this difference: 1pt.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Only watch what others work on.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try finally failed cells again.")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report at the end.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
    runs_dir: RunsDirOption = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
) -> None:
    """Train and evaluate every variant over several seeds; the same command continues an interrupted grid."""
    from gcpo_bench.environment import usable_cores
    from gcpo_bench.errors import ConfigError, PrerequisiteError
    from gcpo_bench.executors import load as load_executor

    from .design import enough_seeds, parse_points, print_design

    require_alone("start ablate without a launcher; it starts the processes of its cells itself")
    options = _options(executor_option or [])
    try:
        start = load_executor(executor, options)
    except PrerequisiteError as error:
        if not dry_run:
            raise
        note(f"missing: {error}; {error.hint}")
    wanted = _plan(plan, ratio, methods, components, seeds, preset, model, num_steps, override or [])
    parallel = max_parallel or usable_cores()
    threads = max(1, usable_cores() // parallel)
    _say_of_no_use(wanted)
    cells = _expand(wanted, runs_dir, num_threads=threads)
    if detect:
        if seeds:
            raise ConfigError("--detect chooses the seeds", hint="leave --seeds out, or look with --dry-run only")
        wanted = enough_seeds(wanted, cells, parse_points(detect), runs_dir)
        cells = _expand(wanted, runs_dir, num_threads=threads)
    if dry_run:
        print_design(wanted, cells, parallel, runs_dir, as_json=as_json)
        return
    if executor == "local" and not follow:
        _require(cells, runs_dir)
    _run(cells, start, parallel, runs_dir, options, follow=follow, retry=retry)
    if not no_report:
        _report(cells, runs_dir, out)
    _raise_for_failed(cells, runs_dir)


# ---------------------------------------------------------------- plan


def _plan(
    name: str | None,
    ratio: str | None,
    methods: str | None,
    components: str | None,
    seeds: str | None,
    preset: str | None,
    model: str | None,
    num_steps: int | None,
    override: list[str],
) -> Plan:
    """The plan of a file or of the options; options beside a file change it for all of its variants."""
    from gcpo_bench import ablations
    from gcpo_bench.errors import ConfigError

    ratios = ablations.parse_ratios(ratio) if ratio else ()
    if name and (methods or components):
        raise ConfigError(
            "--plan cannot be combined with --methods or --components", hint="name the variants in the plan's file"
        )
    if name:
        found = ablations.load_plan(name)
        variants = [
            variant if variant.ratio is not None else changed
            for variant in found.variants
            for changed in ablations.at_ratios(variant, ratios)
        ]
    else:
        found = ablations.Plan(variants=(ablations.VariantSpec(method="grpo"),))
        variants = _variants(methods, components, ratios)
    changes: dict[str, Any] = {"preset": preset, "model": model, "num_steps": num_steps}
    changes = {key: value for key, value in changes.items() if value is not None}
    if seeds:
        changes["seeds"] = ablations.parse_seeds(seeds)
    changes |= {"variants": tuple(variants), "overrides": (*found.overrides, *override)}
    return found.model_copy(update=changes)


def _variants(methods: str | None, components: str | None, ratios: Sequence[float]) -> list[Any]:
    from gcpo_bench import ablations

    if methods:
        named = ablations.with_ratios(ablations.parse_methods(methods), ratios)
    elif components:
        named = ablations.with_ratios(["grpo"], ratios)
    else:
        named = ablations.with_ratios(["grpo", *ablations.STUDY, *ablations.CONTROLS], ratios)
    if components:
        parts = [part.strip() for part in components.split(",") if part.strip()]
        named += [variant for variant in ablations.component_variants(parts, ratios) if variant not in named]
    return named


def _say_of_no_use(plan: Plan) -> None:
    from gcpo_bench.ablations import of_no_use
    from gcpo_bench.errors import ConfigError

    texts = [*plan.overrides, *(text for variant in plan.variants for text in variant.overrides)]
    if any(text.partition("=")[0].strip() == "num_threads" for text in texts):
        raise ConfigError("-o num_threads does nothing in a grid", hint="say how many run at once: --max-parallel")
    for line in of_no_use(plan):
        note(line)


def _expand(plan: Plan, runs_dir: Path, *, num_threads: int) -> list[Cell]:
    """Threads change no result and are no part of a cell's address, so they are set last."""
    from gcpo_bench.ablations import expand
    from gcpo_bench.addresses import code_digest
    from gcpo_bench.ledger import run_names
    from gcpo_bench.training.starts import start_weights

    @cache
    def digest(policy: Any) -> str:
        from gcpo_bench.config import RunConfig

        return start_weights(RunConfig(policy=policy), runs_dir)[1]

    cells = expand(plan, lambda config: digest(config.policy), code_digest())
    names = run_names(runs_dir, [cell.id for cell in cells])
    return [
        replace(
            cell,
            name=names.get(cell.id, cell.name),
            config=cell.config.model_copy(update={"num_threads": num_threads}),
        )
        for cell in cells
    ]


# ---------------------------------------------------------------- running


def _require(cells: Sequence[Cell], runs_dir: Path) -> None:
    """What all cells would fail for on this machine is told once, before there is anything."""
    from .design import is_done
    from .work import require

    if left := [cell for cell in cells if cell.config.num_steps and not is_done(cell, runs_dir)]:
        require(left[0].config, runs_dir)


def _options(texts: Sequence[str]) -> dict[str, str]:
    from gcpo_bench.errors import ConfigError

    pairs = [text.partition("=") for text in texts]
    if wrong := [
        text for text, (key, equals, value) in zip(texts, pairs, strict=True) if not (key and equals and value)
    ]:
        raise ConfigError(f"--executor-option {wrong[0]!r} is not key=value", hint="write it as slurm_partition=gpu")
    return {key: value for key, _, value in pairs}


def _run(
    cells: Sequence[Cell],
    start: Executor,
    parallel: int,
    runs_dir: Path,
    options: dict[str, str],
    *,
    follow: bool,
    retry: bool,
) -> None:
    from gcpo_bench import environment, outside
    from gcpo_bench.ledger import Ledger

    os.environ[environment.COMMAND] = json.dumps(sys.argv)  # workers inherit it, so that runs record what was typed
    ledger = Ledger(runs_dir)
    ledger.plan(cells)
    ids = [cell.id for cell in cells]
    for cell_id in ids:  # the workers run what the ledger says, and it may be older than this plan
        outside.require_named(ledger.cell(cell_id).config)
    if again := ledger.reopen_lost(ids):
        note(f"{len(again)} finished cells have lost their run and are run again")
    if retry and (again := ledger.retry(ids)):
        note(f"trying {len(again)} failed cells again")
    with _display(ledger, ids) as tick:
        if follow:
            while ledger.unfinished(ids):
                tick()
                time.sleep(1.0)
            tick()
        else:
            start(runs_dir, ids, max_parallel=parallel, options=options, on_tick=tick)


def _report(cells: Sequence[Cell], runs_dir: Path, out: Path) -> None:
    from gcpo_bench.reports.page import write_report

    from .report import shown

    paths = [runs_dir / cell.name for cell in cells if (runs_dir / cell.name / "config.yaml").exists()]
    written = write_report(paths, out) if paths else []  # where no cell got so far, the first error says why
    for path in shown(written, out):
        print(path)


def _raise_for_failed(cells: Sequence[Cell], runs_dir: Path) -> None:
    from gcpo_bench.errors import TrainingError
    from gcpo_bench.ledger import Ledger

    failed = [state for state in Ledger(runs_dir).states([cell.id for cell in cells]) if state.state == "failed"]
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(cells)} cells failed; {failed[0].cell.name}: {failed[0].error}",
            hint="the rest is done and in the report; mend the cause, then run the same command with --retry",
        )


# ---------------------------------------------------------------- watching


@contextmanager
def _display(ledger: Ledger, ids: Sequence[str]) -> Iterator[Any]:
    """A live table on a terminal, else a line now and then; yields what to call about once a second."""
    started = time.perf_counter()
    if not sys.stderr.isatty():
        last = [0.0, -1.0]

        def line() -> None:
            states = ledger.states(ids)
            done = sum(state.state in ("done", "failed") for state in states)
            if done != last[1] or time.perf_counter() - last[0] > PLAIN_EVERY_S:
                last[:] = [time.perf_counter(), done]
                note(_summary(states, time.perf_counter() - started))

        yield line
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), auto_refresh=False, transient=False) as live:

        def draw() -> None:
            states = ledger.states(ids)
            summary = _summary(states, time.perf_counter() - started)
            live.update(Group(_table(ledger, states), Text(summary)), refresh=True)

        yield draw


def _summary(states: Sequence[CellState], elapsed_s: float) -> str:
    count = Counter(state.state for state in states)
    parts = [f"{count['done']}/{len(states)} done", f"{count['claimed']} running"]
    parts += [f"{count['failed']} failed"] if count["failed"] else []
    times = [state.seconds for state in states if state.seconds and state.cell.config.num_steps]
    if times and count["claimed"]:
        left = (count["planned"] + count["claimed"] / 2) * sum(times) / len(times) / count["claimed"]
        parts.append(f"about {duration(left)} left")
    return f"{', '.join(parts)} ({duration(elapsed_s)})"


def _table(ledger: Ledger, states: Sequence[CellState]) -> Any:
    """What runs and what failed; what is done or waits is in the summary."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("run", "state", "step", "reward", "error"):
        table.add_column(column)
    for state in states:
        if state.state in ("claimed", "failed"):
            step, reward = _progress(ledger.runs_dir / state.cell.name, state.cell.config)
            table.add_row(*map(Text, (state.cell.name, state.state, step, reward, visible(state.error[:80]))))
    return table


def _progress(path: Path, config: RunConfig) -> tuple[str, str]:
    """Step and reward of a run that another process writes; nothing where that cannot be read just now."""
    from gcpo_bench.errors import GcpoBenchError
    from gcpo_bench.files import read_jsonl

    try:
        last = read_jsonl(path / "metrics.jsonl")[-1]
        return f"{last['step']}/{config.num_steps}", f"{last['reward/mean']:.3f}"
    except (GcpoBenchError, IndexError, KeyError):
        return f"0/{config.num_steps}", ""

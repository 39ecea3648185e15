"""`gcpo-bench work`: one worker of a grid. `ablate` starts them; on a cluster a scheduler does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import RunsDirOption, TrustOption
from .output import note

if TYPE_CHECKING:
    from gcpo_bench.ablations import Cell
    from gcpo_bench.config import RunConfig
    from gcpo_bench.ledger import Claim, Ledger
    from gcpo_bench.runs import Run

POLL_S = 1.0
"""Between looks at cells that other workers hold, and may yet give back."""


def work_command(
    order: Annotated[
        Path | None, typer.Option(help="File with the cells to work on, as long as it is there; default: all.")
    ] = None,
    worker: Annotated[str, typer.Option(help="Name of this worker in the ledger.")] = "worker",
    parent: Annotated[int, typer.Option(help="Stop when this process is gone; 0 for none.")] = 0,
    runs_dir: RunsDirOption = Path("runs"),
    trust: TrustOption = False,
) -> None:
    """Work on planned cells until none is left."""
    from gcpo_bench import outside
    from gcpo_bench.files import read_object
    from gcpo_bench.ledger import Ledger

    ledger = Ledger(runs_dir)

    def abandoned() -> bool:
        return bool(parent and os.getppid() != parent) or bool(order and not order.exists())

    if not abandoned():
        wanted = read_object(order)["ids"] if order else ledger.ids()
        if trust:
            outside.allow(part for cell_id in wanted for part in outside.parts_of(ledger.cell(cell_id).config))
        work(ledger, wanted, worker, abandoned)


def work(ledger: Ledger, ids: Sequence[str], worker: str, abandoned: Callable[[], bool] = lambda: False) -> None:
    """Claim and run cells until all of `ids` are done or finally failed, or nobody waits for them any more.

    Raises Preempted or Interrupted where a signal arrived: the cell's state is saved and the cell given back.
    """
    while not abandoned():
        claim = ledger.claim(ids, worker)
        if claim is None:
            if not ledger.unfinished(ids):
                return
            time.sleep(POLL_S)
            continue
        with claim.heartbeat(abandoned):
            _attempt(claim, ledger.runs_dir)


def _attempt(claim: Claim, runs_dir: Path) -> None:
    from gcpo_bench.errors import GcpoBenchError, Interrupted, Preempted

    started = time.perf_counter()
    note(f"{claim.cell.name}: attempt {claim.attempt}")
    try:
        run_cell(claim.cell, runs_dir)
    except (Interrupted, Preempted, KeyboardInterrupt):
        claim.release("stopped by a signal")
        raise
    except GcpoBenchError as error:
        note(f"{claim.cell.name}: {error}")
        claim.failed(str(error), error.hint)
    except Exception as error:  # a defect in one cell must not take the other cells with it
        note(f"{claim.cell.name}: internal error: {error}")
        claim.failed(f"internal error: {type(error).__name__}: {error}", "run the cell alone with --debug")
    else:
        claim.done(time.perf_counter() - started)


def run_cell(cell: Cell, runs_dir: Path) -> None:
    """Train from where the run stands, if at all, and evaluate; nothing that is there is made again.

    Raises RunError where code, parts, prompts or weights are not those that the cell was planned with, or change while
    it runs: what comes out would be filed under the wrong address.
    """
    from .evaluate_runs import evaluate_run

    _require_address(cell, runs_dir)
    evaluate_run(_start(cell, runs_dir) if cell.config.num_steps == 0 else _trained(cell, runs_dir), cell.config)
    _require_address(cell, runs_dir)


def _require_address(cell: Cell, runs_dir: Path) -> None:
    from gcpo_bench.ablations import address
    from gcpo_bench.addresses import code_digest
    from gcpo_bench.errors import RunError
    from gcpo_bench.training.starts import start_weights

    if address(cell.config, start_weights(cell.config, runs_dir)[1], code_digest()) != cell.id:
        raise RunError(
            f"{cell.name} was planned with other code, prompts or weights than there are now",
            hint="the same ablate command plans it anew; edited by mistake: put them back and add --retry",
        )


def require(config: RunConfig, runs_dir: Path) -> None:
    """Raises what would keep this machine from training or, hours later, from evaluating the run."""
    from gcpo_bench.training import preflight

    preflight.require(config, runs_dir)
    benchmark(config).prompts()


def benchmark(config: RunConfig) -> Any:
    """That of the run's own evaluation."""
    from gcpo_bench.evaluators.runner import make_benchmark

    return make_benchmark(config.evaluation.benchmark, config.policy.name)


def _start(cell: Cell, runs_dir: Path) -> Run:
    from gcpo_bench.training.starts import start_run

    return start_run(cell.config, runs_dir)


def _trained(cell: Cell, runs_dir: Path) -> Run:
    from gcpo_bench import runs
    from gcpo_bench.errors import RunError
    from gcpo_bench.resolve import config_diff
    from gcpo_bench.training.loop import train

    require(cell.config, runs_dir)
    if not (runs_dir / cell.name).exists():
        run = runs.create(runs_dir, cell.name, cell.config)
    else:
        run = runs.open_run(cell.name, runs_dir)
    differing = [
        key for key, *_ in config_diff(run.config, cell.config) if not key.startswith(("logging.", "num_threads"))
    ]
    if differing:
        raise RunError(
            f"{run.path} was made with other settings: {', '.join(differing)}",
            hint="its config.yaml was edited; delete the folder, and the same command makes it again",
        )
    status = run.mended_status()
    if status.state != "finished" or status.step < cell.config.num_steps:
        train(run.config, run, resume=True)
    return run

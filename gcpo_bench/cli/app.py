"""The command line: wires the commands; a failure becomes one `error:` line, one `hint:` line and an exit code."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from gcpo_bench import __version__, stops
from gcpo_bench.errors import GcpoBenchError

from . import (
    ablate,
    analyze,
    bench,
    data,
    doctor,
    evaluate,
    gate,
    ls,
    models,
    pretrain,
    report,
    sample,
    show,
    train,
    work,
)
from .output import visible

UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # Typer bundles its own click: this finds either
INTERNAL_ERROR = 70
FEWER_IMAGES = "lower --batch-size: default 256 drawn, 4 of a generator, 32 looked at; what was done is kept"
INTERRUPTED = 130
LONGEST = 400
"""Characters of a library's message."""

app = typer.Typer(
    name="gcpo-bench",
    help="GCPO against GRPO for autoregressive text-to-image models: train, evaluate, report.",
    epilog="Start with: gcpo-bench train; then gcpo-bench evaluate RUN; then gcpo-bench report",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: it appears in half the time
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit()


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; works anywhere.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


for module, example in (
    (train, "gcpo-bench train --method grpo --seed 1 --name my-grpo"),
    (ablate, "gcpo-bench ablate --ratio 0.1 --seeds 0..2"),
    (evaluate, "gcpo-bench evaluate my-grpo my-gcpo; gcpo-bench evaluate --images outputs --bench geneval"),
    (report, "gcpo-bench report my-grpo my-gcpo --out report"),
    (gate, "gcpo-bench gate --baseline baselines/main.json --margin scenes=1.5pt"),
    (sample, 'gcpo-bench sample my-gcpo "a photo of a red circle" --out circle.png'),
    (ls, "gcpo-bench ls methods"),
    (show, "gcpo-bench show scenes-gcpo -o loss.beta=0.1"),
    (doctor, "gcpo-bench doctor"),
    (bench, "gcpo-bench bench rollout --model janus-pro-small --images 8 -o sampling.guidance_scale=5"),
    (pretrain, "gcpo-bench pretrain --model scenes-8 --out weights"),
):
    name = module.__name__.rpartition(".")[2]
    app.command(name, epilog=f"Example: {example}")(getattr(module, f"{name}_command"))
app.add_typer(analyze.app, name="analyze")
app.add_typer(gate.baseline_app, name="baseline")
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.command("work", hidden=True)(work.work_command)


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """The `gcpo-bench` command. Exit codes: see `gcpo_bench.errors`; 70 is a defect of the program itself."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text
    sys.exit(_guarded([argument for argument in arguments if argument != "--debug"], debug))


def _guarded(arguments: list[str], debug: bool) -> int:
    try:
        result = app(args=arguments, prog_name="gcpo-bench", standalone_mode=False)
        sys.stdout.flush()
        if result == INTERRUPTED:  # Typer makes this of KeyboardInterrupt, without a word
            raise stops.Stopped(stops.received() or signal.SIGINT)
        code = result if isinstance(result, int) else 0
        stops.settle(code)
        return code
    except (BrokenPipeError, SystemExit) as end:
        if isinstance(end, SystemExit) and not isinstance(end.__context__, BrokenPipeError):
            raise
        # the reader, such as `head`, has seen enough; Typer makes exit code 1 of that
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        if (number := stops.received()) is not None and not isinstance(error, stops.Stopped):
            error = stops.Stopped(number)  # whatever failed after the signal is not what ends the command
        message, hint, code = explain(error)
        if type(error).__name__ == "OutOfMemoryError" and arguments[:1] == ["evaluate"]:
            hint = FEWER_IMAGES
        stops.settle(code)
        print(f"error: {_one_line(message)}\nhint: {_one_line(hint)}", file=sys.stderr)
        return code


def explain(error: BaseException) -> tuple[str, str, int]:
    """Message, hint and exit code."""
    if isinstance(error, GcpoBenchError):
        return str(error), error.hint, error.exit_code
    if isinstance(error, stops.Stopped):
        return str(error), stops.HINT, error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted", stops.HINT, INTERRUPTED
    if isinstance(error, UsageError):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "gcpo-bench"
        message = getattr(error, "format_message", error.__str__)()
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help
            message = f"{command} needs a command"
        return message.replace("Value error, ", ""), f"see {command} --help", 2
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"{error.filename or 'a file'}: the disk is full", "free some space, then try again; nothing is lost", 4
    if isinstance(error, PermissionError):
        return f"{error.filename}: {error.strerror}", "mend its permissions, or choose another folder", 4
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        mend = "look at its disk; or choose another file or folder, or a shorter name"
        return f"{os.fsdecode(error.filename)}: {error.strerror}", mend, 4
    if type(error).__name__ == "OutOfMemoryError":  # torch's; this file does not import torch
        mend = (
            "take fewer images at once; train goes on with --resume and lower -o sampling.batch_rows=N "
            "-o optimizer.micro_batch_rows=N, or -o policy.recompute=always"
        )
        return f"the GPU is out of memory: {_cut(str(error))}", mend, 4
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("gcpo_bench"):
        return f"the package {error.name!r} is missing", f"pip install {error.name}; or look with: gcpo-bench doctor", 4
    hint = "run it again with --debug and report what it prints"
    return f"internal error: {type(error).__name__}: {_cut(str(error))}", hint, INTERNAL_ERROR


def _cut(text: str) -> str:
    """Libraries may have much to say; --debug shows all of it."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))

"""`gcpo-bench sample`: look at what a policy draws for a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import OverrideOption, RunsDirOption, TrustOption, complete_runs
from .output import note

if TYPE_CHECKING:
    import numpy as np

    from gcpo_bench.config import RunConfig
    from gcpo_bench.datasets import Prompt
    from gcpo_bench.runs import Run

SHOWN_PIXELS = 256
"""About the side of each picture in the grid; images are enlarged by a whole factor, pixel by pixel."""
GAP_PIXELS = 8
DRAWN_FROM = ("evaluation.guidance_scale", "evaluation.temperature", "evaluation.top_k", "evaluation.top_p")
CHANGEABLE = ("policy.device", "policy.dtype", "sampling.batch_rows", *DRAWN_FROM)
"""Of a run, what may differ while it draws."""
READS = ("policy.", "sampling.batch_rows", "seed", *DRAWN_FROM)
"""Of a start, what decides its images: the seed is that of fresh adapters."""


def sample_command(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run; or a preset's or a model's name for its start.", autocompletion=complete_runs
        ),
    ],
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=256, help="Images.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    guidance: Annotated[
        float | None, typer.Option(min=1.0, help="Classifier-free guidance; 1 is none. As the run is evaluated.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=1e-6, help="As the run is evaluated.")] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Tokens that are drawn from; 0 is all. As the run is evaluated.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=1e-6, max=1, help="Probability mass that is drawn from. As the run is evaluated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("sample.png"),
    overrides: OverrideOption = None,
    runs_dir: RunsDirOption = Path("runs"),
    trust: TrustOption = False,
) -> None:
    """Draw a prompt and write the images as one PNG.

    Guidance, temperature, top-k and top-p are those that the run is evaluated with, unless given. Of a run,
    -o changes where and how precisely it is computed (policy.device, policy.dtype, sampling.batch_rows); of a start,
    anything.
    """
    import io

    from PIL import Image

    from gcpo_bench import outside
    from gcpo_bench.files import write_bytes
    from gcpo_bench.scenes import WORLDS

    flags = {"guidance_scale": guidance, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    _refuse_twice(flags, overrides or [])
    config, trained = configuration(run, runs_dir, overrides or [])
    if trust:
        outside.allow(outside.parts_of(config))
    distribution = config.evaluation.distribution() | _given(flags)
    world = config.policy.name
    known = _find(prompt) if world in WORLDS else None
    images_BYXC = _draw(config, trained, runs_dir, prompt, known.id if known else prompt, count, seed, distribution)
    note(", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in distribution.items()))
    buffer = io.BytesIO()
    Image.fromarray(_grid(images_BYXC)).save(buffer, "PNG")
    write_bytes(out, buffer.getvalue())
    print(out)
    if world in WORLDS:
        _judge(images_BYXC, known, world)


def _refuse_twice(flags: dict[str, float | None], overrides: list[str]) -> None:
    from gcpo_bench.errors import ConfigError

    overridden = {text.partition("=")[0].strip() for text in overrides}
    for name, value in flags.items():
        if value is not None and f"evaluation.{name}" in overridden:
            raise ConfigError(f"-o evaluation.{name} and {_option(name)} are both given", hint="give one of the two")


def _option(name: str) -> str:
    return f"--{name.removesuffix('_scale').replace('_', '-')}"


def _given(flags: dict[str, float | None]) -> dict[str, float]:
    """Those that were given, looked at."""
    import math

    from gcpo_bench.errors import ConfigError

    given = {name: value for name, value in flags.items() if value is not None}
    for name, value in given.items():
        if not math.isfinite(value):
            raise ConfigError(f"{_option(name)} is {value}: must be a finite number", hint="gcpo-bench sample --help")
    return given


def configuration(name: str, runs_dir: Path, overrides: list[str]) -> tuple[RunConfig, Run | None]:
    """Of a run with it, or of a start: a preset's, or a model's, evaluated as the first preset with this model is."""
    from gcpo_bench.config import PolicyConfig, RunConfig
    from gcpo_bench.errors import ConfigError
    from gcpo_bench.registry import POLICIES
    from gcpo_bench.resolve import config_diff, list_presets, resolve
    from gcpo_bench.runs import open_run

    presets = [preset.name for preset in list_presets()]
    if not (runs_dir / name).exists():
        if name in presets:
            return resolve(name, overrides, reads=READS).config, None
        if name in POLICIES.entries:
            shipped = (resolve(preset).config for preset in presets)
            alike = next((config for config in shipped if config.policy.name == name), RunConfig())
            base = RunConfig(policy=PolicyConfig(name=name), evaluation=alike.evaluation)
            return resolve(overrides=overrides, base=base, reads=READS).config, None
    run = open_run(name, runs_dir)
    config = resolve(overrides=overrides, base=run.config, reads=READS).config
    fixed = [key for key, _, _ in config_diff(run.config, config) if not key.startswith(CHANGEABLE)]
    if fixed:
        raise ConfigError(
            f"{', '.join(fixed)}: {run.name} was trained with another value",
            hint=f"of a run, -o changes {', '.join(CHANGEABLE)}",
        )
    return config, run


def _find(text: str) -> Prompt | None:
    """The prompt of the grammar with this text; only for such a prompt is it known what is right."""
    from gcpo_bench.scenes import held_out_prompts, train_prompts

    return next((prompt for prompt in (*held_out_prompts(), *train_prompts()) if prompt.text == text), None)


def _draw(
    config: RunConfig,
    trained: Run | None,
    runs_dir: Path,
    prompt: str,
    item: str,
    count: int,
    seed: int,
    distribution: dict[str, Any],
) -> np.ndarray[Any, Any]:
    """uint8 (B, Y, X, 3)."""
    import numpy as np
    import torch

    from gcpo_bench.streams import uniforms
    from gcpo_bench.training.decoding import sample_in_batches
    from gcpo_bench.training.starts import load_policy, start_policy

    policy = load_policy(trained, config) if trained else start_policy(config, runs_dir)
    tokens = policy.grid[0] * policy.grid[1]
    uniforms_BT = torch.from_numpy(np.stack([uniforms(seed, "sample", item, index, tokens) for index in range(count)]))
    samples = sample_in_batches(
        policy,
        [prompt] * count,
        uniforms_BT.to(config.policy.device),
        batch_rows=config.sampling.batch_rows,
        **distribution,
    )
    images_BYXC: np.ndarray[Any, Any] = policy.decode(samples.tokens_BT)
    return images_BYXC


def _grid(images_BYXC: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """One picture of all images, enlarged, in a nearly square grid on white."""
    import math

    import numpy as np

    factor = max(1, SHOWN_PIXELS // images_BYXC.shape[2])
    large = images_BYXC.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, _ = large.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    shape = (rows * (height + GAP_PIXELS) - GAP_PIXELS, columns * (width + GAP_PIXELS) - GAP_PIXELS, 3)
    page = np.full(shape, 255, dtype=np.uint8)
    for index, image in enumerate(large):
        top, left = (index // columns) * (height + GAP_PIXELS), (index % columns) * (width + GAP_PIXELS)
        page[top : top + height, left : left + width] = image
    return page


def _judge(images_BYXC: np.ndarray[Any, Any], prompt: Prompt | None, world: str) -> None:
    if prompt is None:
        note("the prompt is not one of the grammar, so nothing says what would be right")
        return
    from gcpo_bench.registry import BENCHMARKS

    benchmark = BENCHMARKS.load("scenes")(world=world)
    verdicts = benchmark.score(images_BYXC, [prompt] * len(images_BYXC))
    for index, (values, reason, _) in enumerate(verdicts, start=1):
        verdict = "correct" if values["correct"] else "wrong"
        print(f"image {index}: {verdict}" + (f" ({' | '.join(reason.splitlines())})" if reason else ""))

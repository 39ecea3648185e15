"""`gcpo-bench sample`: look at what a policy draws for a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import RunsDirOption, complete_runs
from .output import note

if TYPE_CHECKING:
    import numpy as np

    from gcpo_bench.datasets import Prompt
    from gcpo_bench.training.types import Policy

SHOWN_PIXELS = 256
"""About the side of each picture in the grid; images are enlarged by a whole factor, pixel by pixel."""
GAP_PIXELS = 8


def sample_command(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, or a model's name for its start.", autocompletion=complete_runs)
    ],
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=256, help="Images.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    guidance: Annotated[float, typer.Option(min=1.0, help="Classifier-free guidance; 1 is none.")] = 1.0,
    temperature: Annotated[float, typer.Option(min=1e-6, help="Sampling temperature.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Tokens that are drawn from; 0 is all. LlamaGen uses 1000.")] = 0,
    top_p: Annotated[float, typer.Option(min=1e-6, max=1, help="Probability mass that is drawn from.")] = 1.0,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("sample.png"),
    runs_dir: RunsDirOption = Path("runs"),
) -> None:
    """Draw a prompt and write the images as one PNG."""
    import io
    import math

    from PIL import Image

    from gcpo_bench.errors import ConfigError
    from gcpo_bench.files import write_bytes
    from gcpo_bench.scenes import WORLDS

    for option, value in (("--guidance", guidance), ("--temperature", temperature), ("--top-p", top_p)):
        if not math.isfinite(value):
            raise ConfigError(f"{option} is {value}: must be a finite number", hint="gcpo-bench sample --help")
    policy, model = _policy(run, runs_dir)
    known = _find(prompt) if model in WORLDS else None
    distribution = {"guidance_scale": guidance, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    images_BYXC = _draw(policy, prompt, known.id if known else prompt, count, seed, distribution)
    buffer = io.BytesIO()
    Image.fromarray(_grid(images_BYXC)).save(buffer, "PNG")
    write_bytes(out, buffer.getvalue())
    print(out)
    if model in WORLDS:
        _judge(images_BYXC, known, model)


def _find(text: str) -> Prompt | None:
    """The prompt of the grammar with this text; only for such a prompt is it known what is right."""
    from gcpo_bench.scenes import held_out_prompts, train_prompts

    return next((prompt for prompt in (*held_out_prompts(), *train_prompts()) if prompt.text == text), None)


def _policy(run: str, runs_dir: Path) -> tuple[Policy, str]:
    """The run's newest checkpoint, or the packaged weights of a model, and the model's name."""
    from gcpo_bench.registry import POLICIES
    from gcpo_bench.runs import open_run

    if run in POLICIES.entries and not (runs_dir / run).exists():
        from gcpo_bench.config import PolicyConfig, RunConfig
        from gcpo_bench.training.starts import start_policy

        return start_policy(RunConfig(policy=PolicyConfig(name=run))), run
    opened = open_run(run, runs_dir)
    from gcpo_bench.training.starts import load_policy

    return load_policy(opened), opened.config.policy.name


def _draw(
    policy: Policy, prompt: str, item: str, count: int, seed: int, distribution: dict[str, Any]
) -> np.ndarray[Any, Any]:
    """uint8 (B, Y, X, 3)."""
    import numpy as np
    import torch

    from gcpo_bench.streams import uniforms
    from gcpo_bench.training.decoding import sample
    from gcpo_bench.training.learner import as_module

    tokens = policy.grid[0] * policy.grid[1]
    uniforms_BT = torch.from_numpy(np.stack([uniforms(seed, "sample", item, index, tokens) for index in range(count)]))
    device = next(as_module(policy).parameters()).device
    samples = sample(policy, [prompt] * count, uniforms_BT.to(device), **distribution)
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

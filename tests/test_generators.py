"""Other models as rows of a table: real diffusers pipelines in miniature, drawn, scored, stopped, split and refused."""

from __future__ import annotations

import http.server
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gcpo_bench import addresses, outside, streams
from gcpo_bench.errors import ConfigError, CorruptDataError, GcpoBenchError, PrerequisiteError, RunError
from gcpo_bench.evaluators.generate import read_manifest
from gcpo_bench.evaluators.generators.diffusers import BLANKED, DiffusersGenerator
from gcpo_bench.evaluators.generators.make import default_name, make_generator
from gcpo_bench.evaluators.runner import evaluate_generator
from gcpo_bench.evaluators.stored import load, load_all_samples
from gcpo_bench.sources import Collection, Source, read_source

from . import pipelines
from .conftest import Cli

LAB = '''
from gcpo_bench.datasets import Prompt
from gcpo_bench.evaluators.drawbench import DrawBench
from gcpo_bench.evaluators.panel import Panel
from gcpo_bench.evaluators.types import Drawn
import numpy as np

PROMPTS = [Prompt(id=f"{row:05d}", text=text, metadata={"tag": tag}) for row, (text, tag) in
           enumerate([("a red cat", "a"), ("a blue dog", "a"), ("green", "b")])]


class Brightness:
    name, unit, identity = "brightness", "grey levels", {"scorer": "brightness"}

    def score(self, images, prompts):
        return [float(image.mean()) for image in images]


class Bench(DrawBench):
    name, prompt_set = "lab:bench", "lab"


def bench(world="", *, options=None, device=None):
    return Bench(Panel([Brightness()]), lambda: PROMPTS)


bench.gcpo_bench_part = "benchmark"


class Painter:
    """One colour an image, from its seed; and none to score of the second prompt."""

    gcpo_bench_part = "generator"

    def __init__(self, target, *, options, device):
        self.target, self.options = target, options

    def settings(self):
        return {"target": self.target, "options": self.options, "size": (8, 8)}

    def __call__(self, texts_B, seeds_B):
        if "stop" in self.options:
            raise KeyboardInterrupt
        problem = {"a blue dog": "the painter was asleep"}
        return [Drawn(image_YXC=np.full((8, 8, 3), seed % 251, dtype=np.uint8), problem=problem.get(text, ""))
                for text, seed in zip(texts_B, seeds_B, strict=True)]
'''
"""A benchmark that anyone can check, and a generator of one's own."""
IMAGES = 2
TOTAL = 3 * IMAGES
FEW = {"steps": "2"}
SMALL = {"height": "16", "width": "24", "max_sequence_length": "16"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {
        "sd": pipelines.stable_diffusion(root / "sd"),
        "safe": pipelines.stable_diffusion(root / "safe", safety_checker=True),
        "flux": pipelines.flux(root / "flux"),
    }


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(str(tmp_path))
    outside.allow(["lab:bench"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def on_cpu(folder: Path, **options: str) -> DiffusersGenerator:
    return DiffusersGenerator(str(folder), options={"steps": "2", **options}, device="cpu")


def draw(generator: DiffusersGenerator, out: Path, **more: Any) -> dict[str, bytes]:
    """Images and scores of the lab's benchmark."""
    evaluate_generator(
        Collection(out), generator, "diffusers:x", "lab:bench", name="x", images_per_prompt=IMAGES, **more
    )
    return contents(out)


def contents(out: Path) -> dict[str, bytes]:
    """Every file but locks and what was seen, which shards keep apart; the manifest as a set of lines."""
    files = [path for path in out.rglob("*") if path.is_file() and path.parent.name != "observations"]
    files = [path for path in files if path.suffix != ".lock"]
    return {
        path.relative_to(out).as_posix(): b"\n".join(sorted(path.read_bytes().splitlines()))
        if path.name == "manifest.jsonl"
        else path.read_bytes()
        for path in files
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [("sd", {}), ("flux", SMALL)],
)
def test_images_do_not_depend_on_batch_shard_or_stop(
    folders: dict[str, Path], tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    generator = on_cpu(folders[name], **options)
    whole = draw(generator, tmp_path / "8", batch_rows=8)
    assert len([each for each in whole if each.endswith(".png")]) == TOTAL
    assert len({data for each, data in whole.items() if each.endswith(".png")}) == TOTAL
    for rows in (1, 3):
        assert draw(on_cpu(folders[name], **options), tmp_path / str(rows), batch_rows=rows) == whole

    def stop(done: int, total: int) -> None:
        if done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(on_cpu(folders[name], **options), tmp_path / "stopped", batch_rows=1, on_batch=stop)
    assert len(list((tmp_path / "stopped").rglob("*.png"))) == 2
    counts: list[int] = []
    assert (
        draw(on_cpu(folders[name], **options), tmp_path / "stopped", on_batch=lambda done, total: counts.append(done))
        == whole
    )
    assert counts[0] == 2

    for shard in ((2, 3), (3, 3)):
        with pytest.raises(RunError, match="others are not"):
            draw(generator, tmp_path / "shards", shard=shard)
    assert draw(generator, tmp_path / "shards", shard=(1, 3)) == whole


@pytest.mark.parametrize(("name", "options"), [("sd", {}), ("flux", SMALL)])
def test_an_image_is_what_the_pipeline_itself_draws_from_that_seed(
    folders: dict[str, Path], tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    draw(on_cpu(folders[name], **options), tmp_path / "out", seed=5)
    seed = int(streams.generator(5, "evaluate", "00001", 1).integers(2**63))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folders[name])
    numbers = {key: int(value) for key, value in options.items()}
    output = pipeline("a blue dog", num_inference_steps=2, generator=torch.Generator().manual_seed(seed), **numbers)
    with Image.open(tmp_path / "out/images/lab/00001-1.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(output.images[0]))


@pytest.mark.parametrize(("name", "options"), [("sd", {"negative_prompt": "red"}), ("flux", SMALL)])
def test_a_batch_that_goes_through_the_networks_together_is_the_same_up_to_rounding(
    folders: dict[str, Path], name: str, options: dict[str, str]
) -> None:
    """As it does on a GPU."""
    generator = on_cpu(folders[name], **options)
    texts_B, seeds_B = ["a cat", "a blue dog", ""], [1, 2**62, 3]
    for one, other in zip(generator(texts_B, seeds_B), generator._draw(texts_B, seeds_B), strict=True):
        assert np.abs(one.image_YXC.astype(int) - other.image_YXC).max() <= 1


def test_whatever_lies_there_says_who_drew_it(folders: dict[str, Path], tmp_path: Path) -> None:
    options = {"negative_prompt": "no", "guidance_scale": "3"}
    generator = on_cpu(folders["sd"], **options)
    out = tmp_path / "evaluations/x"
    draw(generator, out, seed=3)
    evaluation = load(out / "lab:bench")
    settings = evaluation.identity["generator"]
    assert settings == {
        "generator": "diffusers:x",
        "pipeline": "StableDiffusionPipeline",
        "weights": generator.settings()["weights"],
        "diffusers": diffusers.__version__,
        "device": "cpu",
        "dtype": "float32",
        "safety_checker": False,
        "sampling": {
            "num_inference_steps": 2,
            "guidance_scale": 3.0,
            "eta": 0.0,
            "guidance_rescale": 0.0,
            "negative_prompt": "no",
        },
        "seed": 3,
    }
    assert read_source(out / "lab:bench") == Source(kind="generator", name="x", images=out, generator=settings)
    for sample in load_all_samples(out / "lab:bench"):
        assert (out / sample.image).is_file()
        assert sample.image == f"images/lab/{sample.prompt_id}-{sample.image_index}.png"
    assert evaluation.metrics["overall"].n == 3


def test_a_negative_prompt_and_a_seed_change_the_image(folders: dict[str, Path]) -> None:
    def image(seed: int, **options: str) -> bytes:
        generator = on_cpu(folders["sd"], **options)
        return generator(["a cat"], [seed])[0].image_YXC.tobytes()

    assert image(1) == image(1) != image(2)
    assert image(1) != image(1, negative_prompt="dog")


def test_the_digest_changes_with_any_file_that_matters(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["sd"], tmp_path / "copy")

    def digest() -> str:
        return str(on_cpu(copy).settings()["weights"])

    first = digest()
    assert first == on_cpu(folders["sd"]).settings()["weights"]
    (copy / "README.md").write_text("x")
    assert digest() == first
    path = copy / "scheduler/scheduler_config.json"
    path.write_text(path.read_text().replace('"beta_end": 0.02', '"beta_end": 0.03'))
    assert digest() != first


# ---------------------------------------------------------------- images that are none


def test_the_safety_checker_is_off_unless_asked_for(folders: dict[str, Path], tmp_path: Path) -> None:
    generator = on_cpu(folders["safe"])
    assert [drawn.problem for drawn in generator(["a", "b"], [1, 2])] == ["", ""]
    checked = on_cpu(folders["safe"], safety_checker="true")
    assert checked.settings()["safety_checker"] is True
    with pytest.raises(CorruptDataError, match=f"none of the {TOTAL} images could be scored; the first: {BLANKED}"):
        draw(checked, tmp_path / "out")
    rows = read_manifest(tmp_path / "out/images/lab").values()
    assert [row["problem"] for row in rows] == [BLANKED] * TOTAL
    with pytest.raises(ConfigError, match="has no safety checker"):
        on_cpu(folders["sd"], safety_checker="true")


def test_numbers_that_are_not_finite_are_no_black_image(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["sd"], tmp_path / "copy")
    change(copy / "vae/diffusion_pytorch_model.safetensors", lambda weights: scale(weights, 1e30))
    with pytest.raises(RunError, match="not finite with dtype float32"):
        on_cpu(copy)(["a"], [1])


def scale(weights: dict[str, torch.Tensor], factor: float) -> None:
    for tensor in weights.values():
        tensor.mul_(factor)


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


# ---------------------------------------------------------------- the command line


def command(target: Path | str, *more: str) -> list[str]:
    small = ["--bench", "lab:bench", "--images-per-prompt", str(IMAGES), "--device", "cpu"]
    return ["evaluate", "--generator", f"diffusers:{target}", *small, "--generator-option", "steps=2", *more]


def test_a_pipeline_from_the_command_line(folders: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    result = cli(*command(folders["sd"]))
    assert result.code == 0, result.err
    first_words = [line.split()[0] for line in result.out.splitlines() if line.strip()]
    assert first_words[0].rstrip(",") == "lab:bench"
    assert first_words[-3:] == ["overall", "a", "b"]
    assert "torchvision" not in result.err
    assert result.err.splitlines()[0] == f"evaluating diffusers:{folders['sd']} on lab:bench"
    out = tmp_path / "evaluations/sd"
    assert read_source(out / "lab:bench").name == "sd"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    scores = (out / "lab:bench/scores.json").read_bytes()
    gone, *kept = sorted(before)
    gone.unlink()
    (out / "lab:bench/scores.json").unlink()
    assert cli(*command(folders["sd"])).code == 0
    assert (out / "lab:bench/scores.json").read_bytes() == scores
    assert [path.stat().st_mtime_ns for path in kept] == [before[path] for path in kept]

    limited = json.loads(cli(*command(folders["sd"], "--limit", "1", "--json")).out)
    assert (limited["run"], limited["metrics"]["overall"]["n"]) == ("sd", 2)
    shutil.rmtree(out / "images")
    rescored = ("--name", "sd", "--bench", "lab:bench", "--rescore", "--json")
    again = json.loads(cli("evaluate", "--generator", "diffusers:a/pipeline-that-is-not-there", *rescored).out)
    assert again["metrics"] == limited["metrics"]


def test_images_drawn_otherwise_are_not_replaced(folders: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    assert cli(*command(folders["sd"], "--limit", "1")).code == 0
    before = contents(tmp_path / "evaluations/sd")
    other = cli(*command(folders["sd"], "--generator-option", "eta=0.5", "--seed", "1"))
    assert other.code == 2
    assert "evaluations/sd holds images that were drawn otherwise: sampling.eta is 0.5, was 0.0, seed is 1, was 0" in (
        other.err
    )
    assert contents(tmp_path / "evaluations/sd") == before
    moved = shutil.copytree(folders["sd"], tmp_path / "elsewhere" / "sd")
    assert cli(*command(moved, "--limit", "1")).code == 0  # where the weights lie is of no effect
    named = cli(*command(folders["sd"], "--limit", "1", "--seed", "1", "--name", "second"))
    assert named.code == 0, named.err
    (tmp_path / "evaluations/sd/generator.json").unlink()
    assert "drawn otherwise: nothing says how" in cli(*command(folders["sd"])).err


def test_shards_from_the_command_line(folders: dict[str, Path], cli: Cli) -> None:
    square = ["--generator-option", "height=16", "--generator-option", "width=16"]
    first = cli(*command(folders["flux"], *square, "--shard", "1/2"))
    assert (first.code, first.out) == (0, "")
    assert "shard 1/2: its 3 images are looked at, others are not" in first.err
    second = cli(*command(folders["flux"], *square, "--shard", "2/2"))
    assert second.code == 0, second.err
    assert "overall" in second.out


def test_a_generator_of_ones_own(tmp_path: Path, cli: Cli) -> None:
    arguments = [
        "evaluate",
        "--generator",
        "lab:Painter:a-target",
        "--bench",
        "lab:bench",
        "--images-per-prompt",
        "4",
        "--generator-option",
        "a=b=c",
    ]
    result = cli(*arguments)
    assert result.code == 5
    assert "lab:bench: 4 images could not be scored; the scores of the others are kept" in result.err
    assert "images/lab/00001-0.png is not scored: the painter was asleep" in result.err
    out = tmp_path / "evaluations/lab-Painter-a-target"
    settings = read_source(out / "lab:bench").generator
    assert settings is not None
    assert settings == {
        "source": addresses.source_digest("lab"),
        "generator": "lab:Painter:a-target",
        "target": "a-target",
        "options": {"a": "b=c"},
        "size": [8, 8],
        "seed": 0,
    }
    metrics = load(out / "lab:bench").metrics
    assert (metrics["overall"].n, metrics["overall"].unscored) == (2, 4)
    drawn = [streams.generator(0, "evaluate", "00000", index).integers(2**63) % 251 for index in range(4)]
    assert metrics["brightness/a"].value == pytest.approx(np.mean(drawn))
    assert cli(*arguments).code == 5  # the same settings again, tuples and all


def test_ctrl_c_is_told(cli: Cli) -> None:
    result = cli("evaluate", "--generator", "lab:Painter", "--bench", "lab:bench", "--generator-option", "stop=now")
    assert result.code == 130
    assert "error: interrupted\nhint: what was finished is kept" in result.err


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("diffusers:stabilityai/sdxl-turbo", "stabilityai-sdxl-turbo"),
        ("diffusers:" + "x" * 80, "x" * 64),
        ("lab:Painter", "lab-Painter"),
        ("lab:Painter:../..", "lab-Painter"),
        ("diffusers:.", "here"),
    ],
)
def test_default_names_are_plain_folder_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert default_name(text) == name


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--generator-option", "stepz=3"),
            "Pipeline has no option 'stepz'\nhint: did you mean 'steps'?",
        ),
        (("--generator-option", "prompt=x"), "StableDiffusionPipeline has no option 'prompt'"),
        (("--generator-option", "latents=x"), "StableDiffusionPipeline has no option 'latents'"),
        (("--generator-option", "num_inference_steps=3"), "generator option num_inference_steps is given twice"),
        (("--generator-option", "height=true"), "generator option height cannot be 'true'"),
        (("--generator-option", "height=many"), "generator option height cannot be 'many'"),
        (("--generator-option", "guidance_scale=.nan"), "generator option guidance_scale cannot be '.nan'"),
        (("--generator-option", "dtype=float8"), "generator option dtype cannot be 'float8'"),
        (("--generator-option", "revision=main"), "is a folder and has no revision 'main'"),
        (("--generator-option", "offload=model"), "generator option offload needs a GPU"),
        (("--generator-option", "height=13", "--generator-option", "width=13"), "have to be divisible by 8"),
        (("--generator-option", "height=16"), "draws images of height 32 and width 32, not of 16 and 32"),
        (("--generator-option", "steps"), "--generator-option 'steps' is not key=value"),
        (("--name", "a/b"), "--name 'a/b' cannot be used"),
        (("--device", "abacus"), "--device 'abacus' cannot be used"),
        (("--images", "."), "both --images and --generator are given"),
        (("--allow-partial",), "--allow-partial goes with --images only"),
        (("--rescore",), "--rescore and --images-per-prompt are both given"),
        (("--shard", "3/2"), "--shard '3/2' is not I/N"),
    ],
)
def test_bad_usage_is_exit_code_2(folders: dict[str, Path], cli: Cli, more: tuple[str, ...], message: str) -> None:
    result = cli(*command(folders["sd"], *more))
    assert result.code == 2, result.err
    assert f"{message}" in result.err
    assert result.err.count("hint: ") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sd", "--generator 'sd' does not say what draws"),
        ("diffusers:", "--generator 'diffusers:' names no model"),
        ("diffuser:x", "unknown generator 'diffuser'\nhint: did you mean 'diffusers'?"),
        ("nobodys_lab:Mine", "no module 'nobodys_lab'"),
        ("lab:Nothing", "lab has no 'Nothing'"),
        ("diffusers:a/b/c", "'a/b/c' is neither a folder nor an id"),
        ("diffusers:.", "holds no diffusers pipeline: it has no model_index.json"),
    ],
)
def test_a_generator_that_does_not_exist_is_exit_code_2(cli: Cli, text: str, message: str) -> None:
    result = cli("evaluate", "--generator", text, "--bench", "lab:bench")
    assert result.code == 2, result.err
    assert message in result.err


def test_options_of_a_generator_need_one(cli: Cli) -> None:
    for option, value in (("--generator-option", "steps=2"), ("--seed", "1")):
        result = cli("evaluate", "--images", ".", option, value)
        assert result.code == 2
        assert f"error: {option} goes with --generator only\nhint: leave it out for --images" in result.err
    assert "--name goes with --images and --generator only" in cli("evaluate", "a-run", "--name", "x").err


def test_generators_are_listed(cli: Cli) -> None:
    assert "diffusers:<hub id or folder>" in cli("ls", "generators").out


# ---------------------------------------------------------------- checkpoints that cannot be used


def edited(folder: Path, **index: Any) -> Path:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **index}))
    return folder


def cut_off(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def lacking(file: str, key: str) -> Callable[[Path], None]:
    return lambda folder: change(folder / file, lambda weights: weights.pop(key))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "model_index.json").write_text("{"), CorruptDataError, "is damaged: it is not JSON"),
        (lambda f: (f / "model_index.json").write_text("[]"), CorruptDataError, "it names no pipeline"),
        (
            lambda f: edited(f, _class_name="NoSuchPipeline"),
            ConfigError,
            "is a NoSuchPipeline, which diffusers",
        ),
        (lambda f: edited(f, _class_name="UNet2DModel"), ConfigError, "is a UNet2DModel, which diffusers"),
        (lambda f: edited(f, _class_name=["mine", "Pipeline"]), ConfigError, "brings code of its own"),
        (lambda f: edited(f, _class_name="DDPMPipeline"), ConfigError, "does not draw images from texts alone"),
        (lambda f: edited(f, _class_name="StableDiffusionImg2ImgPipeline"), ConfigError, "from texts alone"),
        (lambda f: edited(f, _class_name="StableDiffusionControlNetPipeline"), ConfigError, "from texts alone"),
        (lambda f: edited(f, _class_name="AnimateDiffPipeline"), ConfigError, "from texts alone"),
        (lambda f: edited(f, unet=["my_unet", "Unet"]), GcpoBenchError, "cannot be loaded|needs a package"),
        (cut_off, CorruptDataError, "cannot be loaded"),
        (lambda f: shutil.rmtree(f / "vae"), CorruptDataError, "cannot be loaded"),
        (
            lacking("unet/diffusion_pytorch_model.safetensors", "conv_in.weight"),
            CorruptDataError,
            "unet lacks 1 of its weights, the first is 'conv_in.weight'",
        ),
        (
            lacking("text_encoder/model.safetensors", "final_layer_norm.weight"),
            CorruptDataError,
            "text_encoder lacks 1 of its weights, the first is 'final_layer_norm.weight'",
        ),
    ],
)
def test_a_folder_that_is_no_such_pipeline(
    folders: dict[str, Path],
    tmp_path: Path,
    damage: Callable[[Path], Any],
    error: type[GcpoBenchError],
    message: str,
) -> None:
    copy = shutil.copytree(folders["sd"], tmp_path / "copy")
    damage(copy)
    with pytest.raises(error, match=message) as caught:
        on_cpu(copy)(["a"], [1])
    assert caught.value.hint


def test_weights_that_are_no_safetensors_and_variants(tmp_path: Path) -> None:
    pickled = pipelines.stable_diffusion(tmp_path / "pickled", safe_serialization=False)
    half = pipelines.stable_diffusion(tmp_path / "half", variant="fp16")
    first = on_cpu(pickled)(["a"], [1])[0]
    second = on_cpu(half, variant="fp16")(["a"], [1])[0]
    assert np.array_equal(first.image_YXC, second.image_YXC)
    with pytest.raises(CorruptDataError, match="cannot be loaded"):
        on_cpu(half)(["a"], [1])


def test_memory_that_is_not_enough_is_told(folders: dict[str, Path]) -> None:
    huge = {"height": "8000000", "width": "8000000"}
    with pytest.raises(PrerequisiteError, match="out of memory drawing 1 image at once") as caught:
        on_cpu(folders["sd"], **huge)(["a"], [1])
    assert "smaller height and width" in caught.value.hint


def test_without_diffusers_it_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, DiffusersGenerator.__module__)
    result = cli(*command("x"))
    assert result.code == 4
    assert result.err == "error: the package diffusers is not installed\nhint: pip install 'gcpo-bench[diffusers]'\n"


# ---------------------------------------------------------------- the hub


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(folders: dict[str, Path], tmp_path: Path) -> None:
    """`org/tiny` in the hub's cache, as a download leaves it."""
    repository = tmp_path / "hub/models--org--tiny"
    shutil.copytree(folders["sd"], repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)


@pytest.mark.usefixtures("cached")
def test_a_pipeline_in_the_hubs_cache_needs_no_network(folders: dict[str, Path]) -> None:
    generator = make_generator("diffusers:org/tiny", options=FEW, device="cpu")
    assert generator.settings()["weights"] == f"commit {COMMIT}"
    local = on_cpu(folders["sd"])
    assert np.array_equal(generator(["a"], [1])[0].image_YXC, local(["a"], [1])[0].image_YXC)
    named = make_generator("diffusers:org/tiny", options={**FEW, "revision": COMMIT}, device="cpu")
    assert named.settings() == generator.settings()


@pytest.mark.usefixtures("cached")
def test_a_variant_that_the_hub_does_not_have() -> None:
    generator = make_generator("diffusers:org/tiny", options={**FEW, "variant": "fp16"}, device="cpu")
    with pytest.raises((ConfigError, CorruptDataError), match="variant"):
        generator(["a"], [1])


def test_offline_and_not_in_the_cache(cli: Cli) -> None:
    result = cli(*command("org/tiny"))
    assert result.code == 4
    assert "there is no folder 'org/tiny', it is not in the hub's cache, and the hub cannot be reached" in result.err
    assert "hf download org/tiny --local-dir FOLDER; then --generator diffusers:FOLDER" in result.err


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, str]]]:
    """A hub that answers every request with the status and error code in the list."""
    answers: list[tuple[int, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            status, code = answers[-1]
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield answers
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((403, "GatedRepo"), PrerequisiteError, "org/tiny is gated"),
        ((404, "RepoNotFound"), ConfigError, "there is no folder 'org/tiny' and no such repository"),
        ((404, "RevisionNotFound"), ConfigError, "org/tiny has no such revision"),
        ((404, "EntryNotFound"), ConfigError, "org/tiny holds no diffusers pipeline: it has no model_index.json"),
    ],
)
def test_what_the_hub_refuses_is_told(
    hub: list[tuple[int, str]], answer: tuple[int, str], error: type[GcpoBenchError], message: str
) -> None:
    hub.append(answer)
    with pytest.raises(error, match=message):
        make_generator("diffusers:org/tiny", device="cpu")

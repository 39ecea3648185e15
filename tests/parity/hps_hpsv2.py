"""HPS, CLIP's pixels and tokens here against the packages hpsv2 and open_clip: random weights, the same pictures.

Needs, in an environment beside this package: hpsv2==1.2.0 open_clip_torch==3.3.0 torchvision==0.28.0 with their ftfy,
regex, timm and requests (`pip install --no-deps` keeps them from pulling another torch). Not collected by pytest:

    python -m tests.parity.hps_hpsv2 [PROMPTS.txt ...] --out parity.json

The packages' own code runs: hpsv2's transform, tokenizer, model, `score` and `evaluate_benchmark`. Only what they need
to be imported is put in place: the vocabulary that hpsv2's wheel lacks (open_clip has the same), modules for downloads
and drawing that it imports and does not use here, and the operators that torchvision's CUDA build misses on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import shutil
import sys
import tempfile
import types
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

OPERATORS: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
"""Of torchvision, before anything imports it; they last as long as this object."""
for _name in ("nms", "qnms"):
    with contextlib.suppress(RuntimeError):
        OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

# ruff: noqa: E402
from gcpo_bench.datasets import Prompt
from gcpo_bench.evaluators.hps import STYLES, published_summary
from gcpo_bench.evaluators.scorers import images as presets
from gcpo_bench.evaluators.scorers.clip_weights import ARCHITECTURES, Architecture, Tower, clip_of
from gcpo_bench.evaluators.scorers.hps import HPS, load_hps
from gcpo_bench.evaluators.scorers.tokens import clip_ids, clip_tokenizer
from gcpo_bench.evaluators.types import SampleScore

SIZES = ((224, 224), (512, 512), (1024, 1024), (384, 512), (300, 224), (97, 61), (100, 333))
"""Height and width. A picture whose longest side is 224 and whose other is less makes hpsv2 fail, so there is none."""
SMALL = replace(
    ARCHITECTURES["ViT-H-14"],
    vision=Tower(width=160, layers=3, heads=2),  # 80 wide, as ViT-H's
    text=Tower(width=128, layers=3, heads=2),
    embed=64,
)
QUICK = replace(
    ARCHITECTURES["ViT-L-14"],
    vision=Tower(width=128, layers=3, heads=2),
    text=Tower(width=128, layers=3, heads=2),
    embed=64,
)
ODD = (
    "",
    "a red cube",
    "Two DOGS &amp; a cat's 3 toys",
    "  spaces\tand\nlines  ",
    "ein Schloß, naïve façade, 東京タワー 🗼",
    "word " * 100,
    'hyphen-ated e.g. 3.14159 (parentheses) "quotes" #tag @name',
)


def prepare() -> None:
    """Makes both packages importable."""
    for name in ("clint", "clint.textui", "clint.textui.progress", "turtle"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["clint.textui"].progress = sys.modules["clint.textui.progress"]  # type: ignore[attr-defined]
    sys.modules["turtle"].forward = None  # type: ignore[attr-defined]
    for name, contents in (
        ("hpsv2.src.training.train", ("calc_ImageReward", "inversion_score")),
        ("hpsv2.src.training.data", ("ImageRewardDataset", "collate_rank", "RankingDataset")),
    ):
        module = types.ModuleType(name)
        for each in contents:
            setattr(module, each, None)
        sys.modules[name] = module
    target = folder_of("hpsv2") / "src" / "open_clip" / vocabulary().name
    if not target.exists():
        shutil.copy(vocabulary(), target)


def folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def vocabulary() -> Path:
    return folder_of("open_clip") / "bpe_simple_vocab_16e6.txt.gz"


def picture(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """Blocks and noise: edges that resizing shows."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3))
    large = np.kron(blocks, np.ones((16, 16, 1)))[:height, :width]
    return np.clip(large + rng.normal(0, 20, large.shape), 0, 255).astype(np.uint8)


def their_model(architecture: Architecture, module: str) -> Any:
    model = importlib.import_module(module)
    torch.manual_seed(0)
    made = model.CLIP(
        embed_dim=architecture.embed,
        vision_cfg=model.CLIPVisionCfg(
            layers=architecture.vision.layers,
            width=architecture.vision.width,
            head_width=architecture.vision.width // architecture.vision.heads,
            patch_size=architecture.patch,
            image_size=architecture.pixels,
        ),
        text_cfg=model.CLIPTextCfg(
            width=architecture.text.width, heads=architecture.text.heads, layers=architecture.text.layers
        ),
        quick_gelu=architecture.activation == "quick_gelu",
        output_dict=True,
    )
    with torch.no_grad():
        for parameter in made.parameters():  # away from their start, so that every part matters
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return made.eval()


# ---------------------------------------------------------------- comparisons


def pixels() -> dict[str, float]:
    """Largest difference of normalised pixels over all sizes."""
    from hpsv2.src.open_clip.transform import image_transform as hps_transform
    from open_clip.transform import image_transform as clip_transform

    pairs = {
        "hpsv2, light_augmentation": (hps_transform(224, False, resize_longest_max=True), presets.HPS),
        "hpsv2, otherwise": (hps_transform(224, False), replace(presets.HPS, fit="crop")),
        "open_clip": (clip_transform(224, False), presets.CLIP),
    }
    worst: dict[str, float] = {}
    for name, (theirs, ours) in pairs.items():
        for seed, size in enumerate(SIZES):
            image = picture(*size, seed)
            difference = (theirs(Image.fromarray(image)) - ours(image)).abs().max().item()
            worst[name] = max(worst.get(name, 0.0), difference)
    return worst


def tokens(prompts: Sequence[str]) -> dict[str, Any]:
    """Texts whose tokens differ, of those that are the same in every normal form of Unicode and of the rest."""
    from hpsv2.src.open_clip.tokenizer import tokenize
    from open_clip import get_tokenizer

    ours = clip_tokenizer(vocabulary())
    theirs = get_tokenizer("ViT-H-14")
    texts = [*ODD, *prompts]
    differing = [
        text
        for text in texts
        if not (clip_ids(ours, [text]).equal(tokenize([text])) and clip_ids(ours, [text]).equal(theirs([text])))
    ]
    plain = [text for text in differing if unicodedata.is_normalized("NFKC", text)]
    return {
        "texts": len(texts),
        "differing": len(differing),
        "differing, plain Unicode": len(plain),
        "which": differing,
    }


def features() -> dict[str, float]:
    """Largest difference of unit features: hpsv2's model with exact GELU, open_clip's with QuickGELU."""
    found = {}
    for name, architecture, module in (
        ("hpsv2, gelu", SMALL, "hpsv2.src.open_clip.model"),
        ("open_clip, gelu", SMALL, "open_clip.model"),
        ("open_clip, quick_gelu", QUICK, "open_clip.model"),
    ):
        theirs = their_model(architecture, module)
        ours = clip_of(theirs.state_dict(), architecture)
        shown = torch.stack([presets.HPS(picture(*size, seed)) for seed, size in enumerate(SIZES)])
        words = clip_ids(clip_tokenizer(vocabulary()), ODD)
        with torch.no_grad():
            expected = theirs(shown, words)
            image: Any = ours.get_image_features(pixel_values=shown)
            text: Any = ours.get_text_features(input_ids=words)
        pairs = ((image, expected["image_features"]), (text, expected["text_features"]))
        found[name] = max(
            (each.pooler_output / each.pooler_output.norm(dim=-1, keepdim=True) - theirs_).abs().max().item()
            for each, theirs_ in pairs
        )
    return found


@contextlib.contextmanager
def checkpoint(folder: Path) -> Iterator[tuple[Any, HPS]]:
    """hpsv2's model inside its own functions, and ours from the same file."""
    from hpsv2 import evaluation, img_score
    from hpsv2.src.open_clip.transform import image_transform

    model = their_model(SMALL, "hpsv2.src.open_clip.model")
    path = folder / "small.pt"
    torch.save({"epoch": 0, "state_dict": model.state_dict()}, path)
    for module in (img_score, evaluation):
        module.model_dict.update(model=model, preprocess_val=image_transform(224, False, resize_longest_max=True))
    yield path, load_hps(path, vocabulary(), architecture=SMALL)


def scores(folder: Path, prompts: Sequence[str]) -> dict[str, float]:
    """Largest difference of `hpsv2.score` and ours, from files to cosines."""
    from hpsv2 import img_score

    with checkpoint(folder) as (path, ours):
        worst = 0.0
        for row, text in enumerate([*ODD, *prompts[:20]]):
            image = picture(*SIZES[row % len(SIZES)], row)
            (theirs,) = img_score.score(Image.fromarray(image), text, cp=str(path))
            (mine,) = ours.score([image], [text])
            assert isinstance(mine, float)
            worst = max(worst, abs(float(theirs) - mine))
    return {"scores": len(ODD) + len(prompts[:20]), "difference": worst}


def benchmark(folder: Path) -> dict[str, Any]:
    """What `evaluate_benchmark` prints for 4 x 800 small pictures, and what our summary says of them."""
    from hpsv2.evaluation import evaluate_benchmark
    from hpsv2.src.open_clip.tokenizer import tokenize

    rng = np.random.default_rng(1)
    samples: list[SampleScore] = []
    with checkpoint(folder) as (_, ours):
        from hpsv2 import evaluation

        for style in STYLES:
            texts = [f"{style} picture number {row}" for row in range(800)]
            (folder / f"{style}.json").write_text(json.dumps(texts))
            place = folder / "pictures" / style
            place.mkdir(parents=True)
            shown = []
            for row in range(800):
                noise = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(noise).resize((32, 32)).save(place / f"{row:05d}.jpg")
                shown.append(np.asarray(Image.open(place / f"{row:05d}.jpg").convert("RGB")))
            for row, score in enumerate(ours.score(shown, texts)):
                prompt = Prompt(id=f"{style}-{row:05d}", text=texts[row])
                assert isinstance(score, float)
                samples.append(
                    SampleScore(
                        prompt_id=prompt.id,
                        prompt=prompt.text,
                        tag=style,
                        image_index=0,
                        image="",
                        values={"hps-v2.1": score},
                        reason="",
                    )
                )
        printed = io.StringIO()
        model = evaluation.model_dict
        with contextlib.redirect_stdout(printed):
            evaluate_benchmark(
                str(folder), str(folder / "pictures"), model["model"], 20, model["preprocess_val"], tokenize, "cpu"
            )
    rows = [line.split() for line in printed.getvalue().splitlines() if line.startswith("pictures")]
    theirs = {row[1]: row[2:] for row in rows}
    ours_ = {style: [f"{s.mean:.2f}", f"{s.std:.4f}"] for style, s in published_summary(samples).items()}
    ours_["Average"] = [f"{100 * np.mean([sample.values['hps-v2.1'] for sample in samples]):.2f}"]
    return {"hpsv2 prints": theirs, "here": ours_, "equal": theirs == ours_}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prompts", nargs="*", type=Path, metavar="PROMPTS.txt")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    prompts = [line for path in given.prompts for line in path.read_text(encoding="utf-8").splitlines() if line]
    prepare()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, compare in (
            ("pixels", pixels),
            ("tokens", lambda: tokens(prompts)),
            ("features", features),
            ("scores", lambda: scores(Path(folder), prompts)),
            ("benchmark", lambda: benchmark(Path(folder))),
        ):
            results[name] = compare()
            print(name, json.dumps(results[name], indent=1, ensure_ascii=False), flush=True)
    if given.out:
        given.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

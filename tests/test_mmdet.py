"""GenEval's detector run by mmdet: the same instances as by transformers' classes, from the same checkpoint.

What needs mmdet is skipped without it. It runs in an environment with the extra `mmdet`.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError, RunError
from gcpo_bench.evaluators import judging, stored
from gcpo_bench.evaluators.detectors import mask2former, mmdet
from gcpo_bench.evaluators.detectors.mask2former import Mask2Former
from gcpo_bench.evaluators.detectors.mask2former_weights import UNUSED, load
from gcpo_bench.evaluators.geneval_benchmark import GenEvalBenchmark
from gcpo_bench.evaluators.images import of_folder
from gcpo_bench.evaluators.runner import rescore

from . import miniatures

needs_mmdet = pytest.mark.skipif(importlib.util.find_spec("mmdet") is None, reason="the extra mmdet is not installed")


@pytest.fixture(autouse=True)
def seen_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask2former, "LONG_SIDE", 266)
    monkeypatch.setattr(mask2former, "SHORT_SIDE", 160)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    return {
        "detector": miniatures.write_checkpoint(folder / "detector.pth", miniatures.detector()),
        "classifier": miniatures.write_clip(folder / "clip", miniatures.clip()),
    }


def benchmark(files: dict[str, Path], backend: str, **more: Any) -> GenEvalBenchmark:
    return GenEvalBenchmark(options={"backend": backend}, device="cpu", **{**files, **more})


def pictures() -> list[Any]:
    rng = np.random.default_rng(0)
    images = []
    for height, width in ((48, 48), (48, 48), (48, 72), (300, 220)):
        image_YXC = np.full((height, width, 3), rng.integers(0, 256, 3), dtype=np.uint8)
        image_YXC[8:30, 12:40] = rng.integers(0, 256, 3)
        images.append(image_YXC)
    return images


# ---------------------------------------------------------------- without mmdet


def test_without_the_package_it_is_said_what_to_install(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mmdet", None)
    with pytest.raises(PrerequisiteError, match="the package mmdet cannot be imported: ") as error:
        benchmark(files, "mmdet").look()
    assert error.value.hint == "pip install 'gcpo-bench[mmdet]'; --option backend=transformers does without it"


def test_what_the_backend_cannot_be_is_told(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="backend cannot be 'mmdetection'"):
        benchmark(files, "mmdetection")
    with pytest.raises(ConfigError, match="which mmdet does not read"):
        benchmark(files, "mmdet", detector=tmp_path).look()
    assert benchmark(files, "transformers").look()["backend"] == "transformers"
    assert "backend" not in benchmark(files, "mmdet").settings()


def test_names_of_2_x_become_those_of_3_x() -> None:
    model = miniatures.detector()
    old, new = (miniatures.published_state(model, version) for version in (2, 3))
    assert old.keys() != new.keys()
    expected = {name: tensor for name, tensor in new.items() if not UNUSED.search(name)}
    for state in (old, new):
        found = mmdet.as_in_3(state)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# ---------------------------------------------------------------- with mmdet


@needs_mmdet
@pytest.mark.parametrize("version", [2, 3])
def test_both_backends_find_the_same_instances(tmp_path: Path, version: int) -> None:
    path = tmp_path / "detector.pth"
    torch.save({"state_dict": miniatures.published_state(miniatures.detector(), version)}, path)
    network, digest = load(path)
    theirs, their_digest = mmdet.load(path)
    assert digest == their_digest
    ours = Mask2Former(network).detect(pictures())
    for found, other in zip(ours, mmdet.MmdetMask2Former(theirs, rows=2).detect(pictures()), strict=True):
        assert len(found) == len(other) == 100
        # instances of nearly the same confidence come in either order, so each is compared with its best match
        cost = np.array([[_difference(x, y) for y in other] for x in found])
        pairs = [(found[row], other[column]) for row, column in zip(*linear_sum_assignment(cost), strict=True)]
        for x, y in pairs:
            assert (x.label, x.box) == (y.label, y.box)
            turned = (x.mask_YX != y.mask_YX).sum()  # pixels at the edge, by rounding
            assert turned <= 2
            # the confidence holds the mean over the mask, of which such a pixel is one part
            assert x.confidence == pytest.approx(y.confidence, rel=1e-4 + turned / max(x.mask_YX.sum(), 1))


def _difference(a: Any, b: Any) -> float:
    """0 for the same instance, 3 for one that shares nothing."""
    return float((a.label != b.label) + abs(a.confidence - b.confidence) + (a.mask_YX != b.mask_YX).mean())


@needs_mmdet
def test_both_backends_judge_alike_and_are_told_apart(files: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    include = [{"class": "airplane", "count": 1, "color": "red"}]
    prompts = [Prompt(id="00000", text="a red airplane", metadata={"tag": "colors", "include": include})]
    for index, image in enumerate(pictures()):
        Image.fromarray(image).save(folder / f"00000-{index}.png")
    found = of_folder(folder, prompts, 4).pictures
    out = tmp_path / "out"
    samples = {}
    for backend in ("transformers", "mmdet"):
        judge = benchmark(files, backend)
        samples[backend] = judging.observe(judge, judging.Place(out=out, root=folder), found).samples
        stored.save(out, judge, samples[backend], {"look": judge.look()})
        stored.save_prompts(out, prompts)
    for ours, theirs in zip(samples["transformers"], samples["mmdet"], strict=True):
        assert (ours.values, ours.reason) == (theirs.values, theirs.reason)
        assert len(ours.detections) == len(theirs.detections) > 0
        assert {(each.label, each.box, each.color) for each in ours.detections} == {
            (each.label, each.box, each.color) for each in theirs.detections
        }
    look = benchmark(files, "mmdet").look()
    assert (look["backend"], look["mmdet"]) == ("mmdet", importlib.import_module("mmdet").__version__)
    assert len(list((out / "observations").iterdir())) == 2
    assert rescore(out, "geneval").identity["look"]["backend"] == "mmdet"
    again = rescore(out, "geneval", options={"options": {"backend": "transformers"}})
    assert again.identity["look"]["backend"] == "transformers"
    (tmp_path / "out/observations").rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="no stored observations"):
        rescore(out, "geneval", options={"options": {"backend": "mmdet"}})


@needs_mmdet
def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    state = miniatures.published_state(miniatures.detector())
    for change, message in (
        ({"backbone.conv1.weight": torch.zeros(1)}, "'backbone.conv1.weight' is no entry"),
        ({"panoptic_head.cls_embed.bias": None}, "1 entries are missing or too many, the first is 'panoptic_head.cls"),
    ):
        torch.save({name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}, tmp_path / "x")
        with pytest.raises(CorruptDataError, match=message):
            mmdet.load(tmp_path / "x")

"""GenEval's detector: weights under mmdet's names, the input as OpenCV makes it, instances against a slow oracle."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from PIL import Image, ImageDraw
from torch import Tensor, nn
from transformers import Mask2FormerForUniversalSegmentation

from gcpo_bench.errors import CorruptDataError, PrerequisiteError
from gcpo_bench.evaluators.detectors.mask2former import Mask2Former, instances, preprocess, scaled_size
from gcpo_bench.evaluators.detectors.mask2former_weights import OURS, from_state, load
from gcpo_bench.evaluators.detectors.resize import resize_bilinear
from gcpo_bench.geneval_prompts import CLASSES

from .miniatures import detector, published_state, write_checkpoint
from .reference import mask2former as oracle
from .reference.mmdet_names import Tensors

OPENCV = {
    (512, 512, 800, 800): "2732a951138472e5",
    (1024, 1024, 800, 800): "64c1859a9380bdea",
    (1600, 1600, 800, 800): "804d71010278bed2",
    (300, 500, 800, 1333): "9a83fbddf0cde92d",
    (37, 53, 800, 1146): "fd25167c9f8616e8",
    (1, 1, 5, 7): "e058fc5176fc973c",
}
"""(old height, old width, new height, new width) -> xxh3 of what cv2.resize 4.10.0 and 5.0.0 make of `pattern`."""


@pytest.fixture(scope="module")
def model() -> Mask2FormerForUniversalSegmentation:
    return detector()


def pattern(height: int, width: int) -> Any:
    y, x, c = np.ogrid[:height, :width, :3]
    return ((y * y * 7 + x * x * 13 + y * x * 29 + c * 71 + (x // 3) * (y // 2) * 37) % 256).astype(np.uint8)


def picture(height: int = 96, width: int = 96) -> Any:
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    draw.ellipse((10, 2, 50, height - 2), fill="red")
    draw.rectangle((width // 2, height // 3, width - 8, height - 3), fill="blue")
    return np.asarray(page)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("version", [2, 3])
def test_published_names_load_without_a_missing_or_unexpected_entry(
    model: Mask2FormerForUniversalSegmentation, version: int
) -> None:
    loaded = from_state(published_state(model, version))
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()  # the architecture is read off the shapes
    ours = loaded.state_dict()
    filled = [name for name in model.state_dict() if not OURS.search(name)]
    assert len(filled) == 200
    assert all(torch.equal(ours[name], model.state_dict()[name]) for name in filled)


def test_patch_merging_sees_the_same_corners_as_in_mmdet(model: Mask2FormerForUniversalSegmentation) -> None:
    """mmdet merges patches by nn.Unfold, norm and a linear layer; its weights must act the same after conversion."""
    state = published_state(model)
    x_1YXC = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    unfolded = nn.Unfold(kernel_size=2, stride=2)(x_1YXC.permute(0, 3, 1, 2)).transpose(1, 2)
    name = "backbone.stages.0.downsample"
    normed = nn.functional.layer_norm(unfolded, (32,), state[f"{name}.norm.weight"], state[f"{name}.norm.bias"])
    theirs = normed @ state[f"{name}.reduction.weight"].T
    merge = from_state(state).model.pixel_level_module.encoder.swin.encoder.layers[0].downsample
    with torch.no_grad():
        ours = merge(x_1YXC.reshape(1, 48, 8), (6, 8))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def without(name: str) -> Any:
    def change(state: Tensors) -> None:
        del state[name]

    return change


def with_entry(name: str, tensor: Tensor) -> Any:
    def change(state: Tensors) -> None:
        state[name] = tensor

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("panoptic_head.query_feat.weight"), "queries_features.weight' is missing"),
        (without("backbone.norm2.bias"), "1 entries are missing, the first becomes 'model.pixel_level_module"),
        (with_entry("backbone.conv1.weight", torch.zeros(1)), "'backbone.conv1.weight' is no entry of an mmdet"),
        (with_entry("backbone.stages.0.blocks.1.norm1.weight", torch.zeros(8)), "missing"),
        (with_entry("panoptic_head.cls_embed.bias", torch.zeros(80)), "would be (80,), the network has (81,)"),
    ],
)
def test_another_network_is_refused_with_its_first_wrong_entry(
    model: Mask2FormerForUniversalSegmentation, tmp_path: Path, change: Any, message: str
) -> None:
    state = published_state(model)
    change(state)
    path = tmp_path / "wrong.pth"
    torch.save({"state_dict": state}, path)
    with pytest.raises(CorruptDataError) as error:
        load(path)
    assert message in str(error.value)
    assert "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco" in error.value.hint


def test_the_digest_is_checked_before_the_file_is_opened(
    model: Mask2FormerForUniversalSegmentation, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "tiny.pth", model)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load(path, sha256_prefix=digest[:8])[1] == digest
    with pytest.raises(CorruptDataError, match=f"SHA-256 is {digest}, should begin with 743b7d99"):
        load(path, sha256_prefix="743b7d99")


def test_numbers_of_numpy_beside_the_weights_do_no_harm(
    model: Mask2FormerForUniversalSegmentation, tmp_path: Path
) -> None:
    path = tmp_path / "noted.pth"
    notes = {"seed": np.int64(3), "loss": np.float64(0.5), "best": np.float32(0.4), "resumed": np.bool_(True)}
    torch.save({"meta": notes, "state_dict": published_state(model)}, path)
    load(path)
    with zipfile.ZipFile(path) as archive:  # as an earlier numpy writes it
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    load(path)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", [1, 2], {"state_dict": {"a": 1}}, {"state_dict": Evil()}])
def test_a_file_that_is_no_checkpoint_is_refused_and_never_executed(
    tmp_path: Path, content: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CorruptDataError, match=r"x\.pth is not mmdet's Mask2Former"):
        load(path)
    assert capsys.readouterr().out == ""


def test_a_missing_checkpoint_is_a_missing_prerequisite(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="there is no such checkpoint"):
        load(tmp_path / "nothing.pth")


# ---------------------------------------------------------------- input


@pytest.mark.parametrize(("sizes", "digest"), OPENCV.items())
def test_the_resize_is_opencvs_to_the_bit(sizes: tuple[int, int, int, int], digest: str) -> None:
    height, width, new_height, new_width = sizes
    resized = resize_bilinear(pattern(height, width), new_height, new_width)
    assert xxhash.xxh3_64_hexdigest(resized.tobytes()) == digest


@pytest.mark.parametrize("sizes", [(7, 9, 20, 13), (20, 13, 7, 9), (1, 5, 4, 4), (9, 9, 10, 10)])
def test_the_resize_equals_the_written_out_loop(sizes: tuple[int, int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*sizes[:2], 3), dtype=np.uint8)
    assert (resize_bilinear(image, *sizes[2:]) == oracle.resized(image, *sizes[2:])).all()


def test_an_image_is_scaled_to_fit_1333_by_800_either_way_round() -> None:
    assert [scaled_size(*size) for size in ((384, 384), (300, 500), (500, 300), (1024, 1024), (1, 1), (10, 1000))] == [
        (800, 800), (800, 1333), (1333, 800), (800, 800), (800, 800), (13, 1333),
    ]  # fmt: skip


def test_the_input_is_padded_with_grey_and_then_normalised() -> None:
    pixels_CYX, unpadded = preprocess(np.full((300, 500, 3), (255, 0, 128), dtype=np.uint8))
    assert (pixels_CYX.shape, unpadded) == ((3, 800, 1344), (800, 1333))
    # (255 - 123.675) / 58.395, (0 - 116.28) / 57.12, (128 - 103.53) / 57.375; the padding is 128 everywhere
    np.testing.assert_allclose(pixels_CYX[:, 0, 0], [2.24891, -2.03571, 0.42649], atol=1e-5)
    np.testing.assert_allclose(pixels_CYX[:, 799, 1340], [0.07406, 0.20518, 0.42649], atol=1e-5)
    square, size = preprocess(np.zeros((512, 512, 3), dtype=np.uint8))
    assert (square.shape, size) == ((3, 800, 800), (800, 800))


def test_antialiasing_is_an_option_that_matters_where_images_become_smaller() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    sharp, smooth = (preprocess(noise, antialias=each)[0] for each in (False, True))
    assert np.abs(sharp - smooth).mean() > 0.1
    ramp = np.broadcast_to(np.linspace(0, 255, 400).astype(np.uint8)[:, None, None], (400, 400, 3))
    larger = [preprocess(np.ascontiguousarray(ramp), antialias=each)[0] for each in (False, True)]
    assert np.abs(larger[0] - larger[1]).max() <= 1.01 / 57  # one grey level of rounding


# ---------------------------------------------------------------- instances


def compare(class_logits: Any, mask_logits: Any, sizes: dict[str, Any], count: int = 100) -> list[Any]:
    labels = tuple(f"c{i}" for i in range(class_logits.shape[1] - 1))
    got = instances(
        torch.tensor(class_logits, dtype=torch.float32),
        torch.tensor(mask_logits, dtype=torch.float32),
        **sizes,
        classes=labels,
    )
    want = oracle.instances(class_logits, mask_logits, sizes["padded"], sizes["unpadded"], sizes["original"], count)
    assert [each.label for each in got] == [labels[label] for _, label, *_ in want]
    for ours, (_, _, confidence, box, mask_YX) in zip(got, want, strict=True):
        assert ours.confidence == pytest.approx(confidence, abs=1e-5)
        assert list(ours.box) == box
        assert (ours.mask_YX == mask_YX).all()
    return got


@pytest.mark.parametrize("seed", range(6))
def test_instances_equal_the_slow_oracle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries = int(rng.integers(3, 15))
    padded = (8 * int(rng.integers(1, 4)), 8 * int(rng.integers(1, 4)))
    unpadded = (int(rng.integers(4, padded[0] + 1)), int(rng.integers(4, padded[1] + 1)))
    original = (int(rng.integers(1, 30)), int(rng.integers(1, 30)))
    class_logits = rng.normal(size=(queries, 12)) * 3
    mask_logits = rng.normal(size=(queries, padded[0] // 4, padded[1] // 4)) * 4
    mask_logits[0] = -np.abs(mask_logits[0])  # an empty mask
    mask_logits[1] = np.abs(mask_logits[1])  # a full one
    found = compare(class_logits, mask_logits, {"padded": padded, "unpadded": unpadded, "original": original})
    assert len(found) == min(100, queries * 11)
    assert {each.box for each in found if each.confidence == 0} <= {(0.0, 0.0, 0.0, 0.0)}


def test_of_equally_probable_pairs_at_the_cut_the_first_are_taken() -> None:
    class_logits = np.zeros((30, 6))  # 150 pairs, all of 1/6
    class_logits[29, 4] = 5  # and a surer one at the end
    mask_logits = np.random.default_rng(1).normal(size=(30, 2, 2))
    sizes = {"padded": (8, 8), "unpadded": (8, 8), "original": (8, 8)}
    found = compare(class_logits, mask_logits, sizes)
    assert len(found) == 100
    assert found[-1].label == "c4"
    assert found[-1].confidence > 0.5


def test_an_empty_mask_has_no_confidence_and_no_box() -> None:
    found = instances(
        torch.tensor([[9.0, 0.0, 0.0]]), torch.full((1, 2, 2), -3.0),
        padded=(8, 8), unpadded=(8, 8), original=(8, 8), classes=("a", "b"),
    )  # fmt: skip
    assert [(each.confidence, each.box) for each in found] == [(0.0, (0.0, 0.0, 0.0, 0.0))] * 2
    assert not any(each.mask_YX.any() for each in found)


def test_only_confident_instances_are_kept_where_asked(model: Mask2FormerForUniversalSegmentation) -> None:
    find = Mask2Former(model)
    everything = find(picture())
    middle = sorted(each.confidence for each in everything)[50]
    some = find(picture(), middle)
    assert [each.confidence for each in some] == [e.confidence for e in everything if e.confidence > middle]


def test_a_network_of_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="tells 2 classes apart, 80 are named"):
        instances(torch.zeros(1, 3), torch.zeros(1, 2, 2), padded=(8, 8), unpadded=(8, 8), original=(8, 8))


# ---------------------------------------------------------------- end to end


def test_images_of_any_shape_are_searched_in_their_own_pixels(model: Mask2FormerForUniversalSegmentation) -> None:
    find = Mask2Former(from_state(published_state(model)))
    for height, width in ((96, 96), (60, 131), (8, 300)):
        found = find(picture(height, width))
        assert len(found) == 100
        assert {each.label for each in found} <= set(CLASSES)
        assert all(each.mask_YX.shape == (height, width) for each in found)
        assert all(0 <= each.confidence <= 1 for each in found)
        for left, top, right, bottom in (each.box for each in found):
            assert 0 <= left <= right <= width
            assert 0 <= top <= bottom <= height


def test_what_is_found_depends_on_the_image_and_on_nothing_before_it(
    model: Mask2FormerForUniversalSegmentation,
) -> None:
    find = Mask2Former(model)
    first = find(picture())
    find(picture(8, 300))  # so narrow that a stage is smaller than the attention's window
    again, other = find(picture()), find(255 - picture())
    assert [(e.label, e.confidence, e.box) for e in first] == [(e.label, e.confidence, e.box) for e in again]
    assert [e.confidence for e in first] != [e.confidence for e in other]


def test_images_are_found_in_order_however_many_go_through_the_network_together(
    model: Mask2FormerForUniversalSegmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(96, 96), (96, 96), (60, 131), (96, 96), (96, 96), (96, 96)]
    images = [picture(*size) // (row + 1) for row, size in enumerate(sizes)]
    one_by_one = [Mask2Former(model)(image) for image in images]
    seen: list[int] = []
    together = Mask2Former.__dict__["_together"]

    def counting(self: Mask2Former, images_BYXC: list[Any], min_confidence: float) -> Any:
        seen.append(len(images_BYXC))
        return together(self, images_BYXC, min_confidence)

    monkeypatch.setattr(Mask2Former, "_together", counting)
    on_a_cpu = list(Mask2Former(model).detect(images))
    assert seen == [1] * 6
    for a, b in zip(one_by_one, on_a_cpu, strict=True):
        assert [(e.label, e.confidence, e.box) for e in a] == [(e.label, e.confidence, e.box) for e in b]
        assert all((x.mask_YX == y.mask_YX).all() for x, y in zip(a, b, strict=True))
    seen.clear()
    as_on_a_gpu = list(Mask2Former(model, rows=2).detect(images))
    assert seen == [2, 1, 2, 1]
    for a, b in zip(one_by_one, as_on_a_gpu, strict=True):
        assert sorted(e.confidence for e in b) == pytest.approx(sorted(e.confidence for e in a), abs=1e-4)
    assert list(Mask2Former(model).detect([])) == []


def test_red_and_blue_are_not_swapped(model: Mask2FormerForUniversalSegmentation) -> None:
    find = Mask2Former(model)
    straight, swapped = find(picture()), find(np.ascontiguousarray(picture()[..., ::-1]))
    assert [each.confidence for each in straight] != [each.confidence for each in swapped]
    red_CYX, _ = preprocess(np.full((32, 32, 3), (255, 0, 0), dtype=np.uint8))
    assert red_CYX[0].min() > 2
    assert red_CYX[1:].max() < 0


def test_the_classes_are_cocos_in_genevals_spelling() -> None:
    assert len(set(CLASSES)) == 80
    assert [CLASSES[i] for i in (0, 11, 64, 65, 66, 79)] == [
        "person", "stop sign", "computer mouse", "tv remote", "computer keyboard", "toothbrush",
    ]  # fmt: skip

"""GenEval's colour classifier: crops, classifier weights against a written-out loop, and the activation trap."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from gcpo_bench.errors import CorruptDataError, PrerequisiteError
from gcpo_bench.evaluators.detectors.colors import COLORS, ColorClassifier, crop, load, preprocess
from gcpo_bench.evaluators.detectors.geneval import SWATCHES, color_test
from gcpo_bench.evaluators.detectors.mask2former import Instance

from .miniatures import clip, tokenizer, write_clip


@pytest.fixture(scope="module")
def model() -> CLIPModel:
    return clip()


def instance(box: tuple[float, float, float, float], label: str = "cup", size: int = 40) -> Instance:
    mask_YX = np.zeros((size, size), dtype=bool)
    left, top, right, bottom = (int(edge) for edge in box)
    mask_YX[top:bottom, left:right] = True
    mask_YX[top, left] = False
    return Instance(label=label, confidence=0.9, box=box, mask_YX=mask_YX)


def noise(size: int = 40, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def test_a_crop_is_the_box_with_grey_around_the_mask() -> None:
    image_YXC = noise()
    cut = np.asarray(crop(image_YXC, instance((3, 5, 13, 9))))
    assert cut.shape == (4, 10, 3)
    assert cut[0, 0].tolist() == [153, 153, 153]
    assert (cut[1:] == image_YXC[6:9, 3:13]).all()


def test_edges_are_rounded_half_to_even() -> None:
    assert crop(noise(), instance((2.5, 3.5, 10.5, 11.5))).size == (8, 8)  # 2, 4, 10, 12
    assert crop(noise(), instance((0.5, 1.5, 3.5, 4.5))).size == (4, 2)  # 0, 2, 4, 4


def test_the_input_is_the_centre_of_the_picture_scaled_by_its_shorter_side() -> None:
    wide = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (32, 1, 3)))
    pixels_CYX = preprocess(wide, 32)
    assert pixels_CYX.shape == (3, 32, 32)  # not scaled: columns 16 to 47
    red = pixels_CYX[0, 0] * 0.26862954 + 0.48145466
    np.testing.assert_allclose(red * 255, np.arange(16, 48) * 4, atol=1e-3)
    assert preprocess(Image.new("RGB", (3, 50)), 32).shape == (3, 32, 32)


def slow_color(model: CLIPModel, image_YXC: Any, found: Instance) -> str:
    """One sentence and one crop at a time, in Python floats."""

    def unit(vector: list[float]) -> list[float]:
        length = math.sqrt(sum(x * x for x in vector))
        return [x / length for x in vector]

    def vector(output: Any) -> list[float]:
        return [float(x) for x in output.pooler_output[0]]

    words = tokenizer()
    with torch.no_grad():
        image = preprocess(crop(image_YXC, found), 32)
        seen = unit(vector(model.get_image_features(pixel_values=torch.from_numpy(image)[None])))
        scores = []
        for color in COLORS:
            sentences = (
                f"a photo of a {color} {found.label}",
                f"a photo of a {color}-colored {found.label}",
                f"a photo of a {color} object",
            )
            units = []
            for sentence in sentences:
                ids = torch.tensor([words(sentence)["input_ids"]])
                units.append(unit(vector(model.get_text_features(input_ids=ids))))
            mean = unit([sum(column) / 3 for column in zip(*units, strict=True)])
            scores.append(sum(a * b for a, b in zip(seen, mean, strict=True)))
    return COLORS[scores.index(max(scores))]


def test_colours_equal_the_written_out_loop(model: CLIPModel) -> None:
    classify = ColorClassifier(model, tokenizer())
    image_YXC = np.concatenate([noise(), 255 - noise() // 8], axis=0)[20:60]
    boxes = [(0, 0, 10, 10), (3, 5, 30, 40), (20, 0, 40, 20), (0, 20, 40, 40), (5, 22, 9, 40)]
    for label in ("cup", "wine glass"):
        found = [instance(box, label) for box in boxes]
        names = classify(image_YXC, found)
        assert names == [slow_color(model, image_YXC, each) for each in found]
    assert len(set(names)) > 1


def test_more_objects_than_a_batch_and_none_at_all(model: CLIPModel) -> None:
    classify = ColorClassifier(model, tokenizer())
    found = [instance((i, i, i + 10, i + 12)) for i in range(20)]
    assert classify(noise(), found) == [classify(noise(), [each])[0] for each in found]
    assert classify(noise(), []) == []


def test_objects_of_several_images_and_classes_may_share_a_batch(model: CLIPModel, fed: list[int]) -> None:
    images = [noise(), 255 - noise(), noise() // 2]
    boxes = [(0, 0, 10, 10), (3, 5, 30, 40), (20, 0, 40, 20)]
    objects = [(image, instance(box, label)) for image in images for label in ("cup", "dog") for box in boxes]
    apart = ColorClassifier(model, tokenizer()).tell(objects)
    assert fed == [3] * 6  # images and classes each on their own
    fed.clear()
    assert ColorClassifier(model, tokenizer(), together=True).tell(objects) == apart
    assert fed == [16, 2]
    vision = [slow_color(model, *each) for each in objects]
    assert apart == vision
    assert len(set(apart)) > 1


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many crops went through the network at each call."""
    counts: list[int] = []
    encode = ColorClassifier._encode

    def counted(self: ColorClassifier, pixels_BCYX: torch.Tensor) -> torch.Tensor:
        counts.append(len(pixels_BCYX))
        return encode(self, pixels_BCYX)

    monkeypatch.setattr(ColorClassifier, "_encode", counted)
    return counts


def test_a_folder_loads_with_the_activation_asked_for(tmp_path: Path, model: CLIPModel) -> None:
    folder = write_clip(tmp_path / "clip", model)
    outputs = []
    for activation in ("quick_gelu", "gelu"):
        loaded, words = load(folder, activation)
        assert words("a cup")["input_ids"] == tokenizer()("a cup")["input_ids"]
        with torch.no_grad():
            output: Any = loaded.get_image_features(
                pixel_values=torch.from_numpy(preprocess(Image.new("RGB", (9, 9)), 32))[None]
            )
        outputs.append(output.pooler_output)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
    with torch.no_grad():
        want: Any = model.get_image_features(
            pixel_values=torch.from_numpy(preprocess(Image.new("RGB", (9, 9)), 32))[None]
        )
    # weights read from a file lie elsewhere in memory, and matrix products of some CPUs then round otherwise
    torch.testing.assert_close(outputs[0], want.pooler_output, rtol=1e-5, atol=1e-5)


def test_a_folder_that_states_another_activation_is_refused(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip", clip(activation="gelu"))
    with pytest.raises(CorruptDataError, match="its activation is gelu, OpenAI's models have quick_gelu"):
        load(folder)


def test_a_folder_that_lacks_a_file_or_holds_rubbish_is_told(tmp_path: Path, model: CLIPModel) -> None:
    with pytest.raises(PrerequisiteError, match=r"config\.json is missing"):
        load(tmp_path / "nothing")
    folder = write_clip(tmp_path / "clip", model)
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CorruptDataError, match=r"1 of its weights are missing, the first is 'visual_projection\.weight'"
    ):
        load(folder)
    (folder / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CorruptDataError, match="holds no CLIP model"):
        load(folder)
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(PrerequisiteError, match="no CLIP tokenizer at"):
        load(folder)
    clip().save_pretrained(folder)
    with pytest.raises(PrerequisiteError, match="no CLIP tokenizer at"):  # transformers makes one without words
        load(folder)
    tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CorruptDataError, match="holds no CLIP model"):
        load(folder)


# ---------------------------------------------------------------- self-test


class Naming(ColorClassifier):
    """Names what it is shown by a table, in place of a network."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = {SWATCHES[color]: name for color, name in names.items()}

    def __call__(self, image_YXC: Any, found: Any) -> list[str]:
        return [self.names[tuple(image_YXC[0, 0].tolist())]]


RIGHT = {color: color for color in SWATCHES}


def test_plain_colours_must_have_their_names() -> None:
    assert color_test(Naming(RIGHT)) == ""
    assert color_test(Naming({**RIGHT, "yellow": "orange"})) == ""  # one may be a matter of taste
    label = color_test(Naming({**RIGHT, "yellow": "orange", "red": "blue"}))
    assert label == "the colour classifier calls plain red blue, yellow orange: do not trust colours"
    with pytest.raises(CorruptDataError, match="plain red, green, blue, yellow are not all pink"):
        color_test(Naming(dict.fromkeys(RIGHT, "pink")))


def test_random_weights_do_not_pass_for_the_published(model: CLIPModel) -> None:
    label = color_test(ColorClassifier(model, tokenizer()))
    assert label.startswith("the colour classifier calls plain ")
    assert label.endswith(": do not trust colours")

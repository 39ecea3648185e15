"""Grounding DINO and DPT in miniature: what they are shown, how their answers become objects and depths."""

from __future__ import annotations

import math
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import DPTConfig, DPTForDepthEstimation, PreTrainedTokenizerBase
from transformers.image_transforms import get_size_with_aspect_ratio

from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError
from gcpo_bench.evaluators import grounding
from gcpo_bench.evaluators.compbench import box_depth, frame_size
from gcpo_bench.evaluators.detectors import compbench as eyes
from gcpo_bench.evaluators.detectors import depth, grounding_dino
from gcpo_bench.evaluators.detectors.grounding_dino import GroundingDino, Question, ask
from gcpo_bench.evaluators.detectors.pretrained import load_model
from gcpo_bench.evaluators.grounding import Candidate, Thresholds, thresholds
from gcpo_bench.evaluators.scorers.compute import usable_device

from . import miniatures
from .reference import grounding as reference
from .scorer_factory import pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniatures.write_grounding_dino(tmp_path_factory.mktemp("dino"), miniatures.grounding_dino())


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniatures.write_depth(tmp_path_factory.mktemp("dpt"), miniatures.depth())


@pytest.fixture
def detector(folder: Path, monkeypatch: pytest.MonkeyPatch) -> GroundingDino:
    monkeypatch.setattr(grounding_dino, "SHORT_SIDE", 96)
    monkeypatch.setattr(grounding_dino, "LONG_SIDE", 160)
    return grounding_dino.load(folder)[0]


# ---------------------------------------------------------------- what the network is shown


@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
@settings(max_examples=300)
def test_sizes_are_those_of_transformers(height: int, width: int) -> None:
    assert grounding_dino.scaled_size(height, width) == get_size_with_aspect_ratio((height, width), 800, 1333)


@pytest.mark.parametrize("size", [(40, 40), (37, 61), (90, 20)])
def test_pixels_are_those_of_transformers(size: tuple[int, int], detector: GroundingDino) -> None:
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    image_YXC = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    processor = GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 160})
    expected_CYX = processor(images=image_YXC, return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(grounding_dino.preprocess(image_YXC), expected_CYX, atol=1e-5)


NAMES = st.lists(
    st.one_of(st.sampled_from([*miniatures.NAMES, "teddy bear", "telephone", "", "?"]), st.text(max_size=6)), max_size=5
)


@given(names=NAMES)
@settings(max_examples=150)
def test_every_word_of_the_question_belongs_to_one_name(folder: Path, names: list[str]) -> None:
    from gcpo_bench.evaluators.scorers.tokens import bert_tokenizer

    tokenizer = _TOKENIZERS.setdefault(folder, bert_tokenizer(folder))
    question = ask(tokenizer, names)
    inside = [place for begin, end in question.spans for place in range(begin, end)]
    outside = [place for place in range(len(question.ids)) if place not in inside]
    assert len(inside) == len(set(inside))
    assert all(question.ids[place] in {101, 102, 1012} for place in outside)
    assert not {101, 102, 1012, 1029} & {question.ids[place] for place in inside}
    for name, (begin, end) in zip(names, question.spans, strict=True):
        plain = name.replace(".", " ").replace("?", " ")
        if "[" not in name:  # the names of special words are read as those words
            assert list(question.ids[begin:end]) == tokenizer.encode(plain, add_special_tokens=False)
            assert end == begin or question.ids[end] == 1012


_TOKENIZERS: dict[Path, PreTrainedTokenizerBase] = {}


def test_one_sentence_of_all_names_is_what_transformers_makes(detector: GroundingDino) -> None:
    names = ["cat", "teddy bear", "telephone"]
    whole = detector.tokenizer("cat. teddy bear. telephone.")["input_ids"]
    assert list(ask(detector.tokenizer, names).ids) == whole


# ---------------------------------------------------------------- answers into boxes

SHARES = st.sampled_from([0.0, 0.125, 0.3, 0.5, 0.77, 1.0])
LOGITS = st.sampled_from([-math.inf, -20.0, -2.3, -2.1, 0.0, 0.7, 20.0])  # the floor of 0.1 is at -2.197


@given(
    size=st.tuples(st.integers(200, 2000), st.integers(200, 2000)),
    rows=st.lists(st.tuples(st.tuples(*[SHARES] * 4), st.tuples(*[LOGITS] * 6)), min_size=1, max_size=6),
)
@settings(max_examples=60)
def test_boxes_are_mapped_into_the_frame(
    size: tuple[int, int], rows: list[tuple[tuple[float, ...], tuple[float, ...]]]
) -> None:
    question = Question((101, 7, 1012, 8, 9, 102), ((1, 2), (3, 5), (0, 0)))
    boxes, logits = (torch.tensor(part) for part in zip(*rows, strict=True))
    found = grounding_dino.candidates(logits, boxes, question, frame_size(*size))
    expected = []
    for box, row in rows:
        first, second, third = (reference.sigmoid(row[place]) for place in (1, 3, 4))
        left, top, right, bottom = reference.corners(box, *frame_size(*size))
        if max(first, second, third) > 0.1 and left < right and top < bottom:
            surest, least = (first, max(second, third), 0.0), (first, min(second, third), 0.0)
            expected.append(((left, top, right, bottom), surest, least))
    assert len(found) == len(expected)
    for each, (sides, surest, least) in zip(found, expected, strict=True):
        assert np.allclose(each.box, sides, atol=0.006)
        assert np.allclose(each.surest, surest, atol=1e-6)
        assert np.allclose(each.least, least, atol=1e-6)


CHANCES = st.sampled_from([0.0, 0.1, 0.24, 0.25, 0.26, 0.35, 0.36, 0.5, 0.9])
SIDES = st.sampled_from([0.0, 10.0, 11.0, 50.0, 100.0])


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[str], list[reference.Box], list[list[list[float]]]]:
    lengths = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    boxes, words = [], []
    for _ in range(draw(st.integers(0, 8))):
        (left, right), (top, bottom) = (sorted(draw(st.tuples(SIDES, SIDES))) for _ in range(2))
        boxes.append((left, top, right, bottom))
        words.append([[draw(CHANCES) for _ in range(length)] for length in lengths])
    return ["cat", "dog", "teddy bear"][: len(lengths)], boxes, words


@given(scene=scenes(), box=CHANCES.filter(lambda x: x >= 0.1), text=CHANCES, nms=st.sampled_from([0.0, 0.5, 0.8, 1.0]))
@settings(max_examples=300)
def test_labels_are_those_of_the_plain_loops(
    scene: tuple[list[str], list[reference.Box], list[list[list[float]]]], box: float, text: float, nms: float
) -> None:
    names, boxes, words = scene
    candidates = [
        Candidate(
            box=each,
            surest=tuple(max(values, default=0.0) for values in of_box),
            least=tuple(min(values, default=0.0) for values in of_box),
        )
        for each, of_box in zip(boxes, words, strict=True)
    ]
    limits = Thresholds(box_threshold=box, text_threshold=text, nms_threshold=nms)
    found = grounding.detections(names, candidates, limits)
    expected = reference.labelled(names, boxes, words, box, text, nms)
    assert [(each.label, each.confidence, each.box) for _, each in found] == expected
    assert all(candidates[place].box == each.box for place, each in found)


def test_a_name_needs_all_its_words_and_a_box_is_one_thing() -> None:
    def labels(*words: tuple[float, ...], **limits: float) -> list[tuple[str, float]]:
        surest, least = tuple(map(max, words)), tuple(map(min, words))
        candidate = Candidate(box=(0, 0, 9, 9), surest=surest, least=least)
        found = grounding.detections(["cat", "teddy bear"], [candidate], Thresholds(**limits))
        return [(each.label, each.confidence) for _, each in found]

    assert labels((0.6,), (0.7, 0.5)) == [("teddy bear", 0.7)]
    assert labels((0.6,), (0.7, 0.2)) == [("cat", 0.6)]  # half a teddy bear is none
    assert labels((0.5,), (0.5, 0.5)) == [("cat", 0.5)]  # of equals the one asked for first
    assert labels((0.35,), (0.1, 0.1)) == []
    assert labels((0.35,), (0.1, 0.1), box_threshold=0.3) == [("cat", 0.35)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_threshold": "0.05"}, "box_threshold is 0.05"),
        ({"text_threshold": "1.5"}, "text_threshold is 1.5"),
        ({"nms_threshold": "nan"}, "nms_threshold is nan"),
        ({"box_threshold": "much"}, "a threshold is no number"),
    ],
)
def test_a_threshold_out_of_range_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        thresholds(options)
    assert thresholds({"nms_threshold": "1"}) == Thresholds(nms_threshold=1.0)


def test_the_network_s_answer_is_that_of_transformers_own_processor(detector: GroundingDino) -> None:
    from transformers import GroundingDinoProcessor
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    image_YXC = pictures(1, seed=3, sides=(40, 60))[0]
    names = ["cat", "dog"]
    processor = GroundingDinoProcessor(  # type: ignore[no-untyped-call]
        GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 160}), detector.tokenizer
    )
    inputs = processor(images=Image.fromarray(image_YXC), text=[names], return_tensors="pt")
    frame = frame_size(*image_YXC.shape[:2])
    with torch.inference_mode():
        output = detector.model(**inputs)
    (theirs,) = processor.post_process_grounded_object_detection(
        output, inputs["input_ids"], threshold=0.35, text_threshold=0.25, target_sizes=[frame]
    )
    spans = ask(detector.tokenizer, names).spans
    probabilities_QT = output.logits[0].sigmoid()
    sure_Q = torch.stack([probabilities_QT[:, begin:end].amax(dim=1) for begin, end in spans]).amax(dim=0)
    # theirs also keeps boxes that only the full stops, [CLS] or [SEP] fit
    rows = [row for row, keep in enumerate(sure_Q[probabilities_QT.amax(dim=1) > 0.35] > 0.35) if keep]
    kept = [each for each in detector(image_YXC, names) if max(each.surest) > 0.35]
    assert len(kept) == len(rows) > 2
    for each, row in zip(kept, rows, strict=True):
        limits = [frame[1], frame[0]] * 2
        cut = [min(max(side, 0), limit) for side, limit in zip(theirs["boxes"][row].tolist(), limits, strict=True)]
        assert np.allclose(each.box, cut, atol=0.05)
        words = [word for word in theirs["text_labels"][row].replace(".", " ").split() if word in names]
        assert words == [name for name, sure in zip(names, each.surest, strict=True) if sure > 0.25]


def test_nothing_is_asked_where_no_name_has_a_word_and_too_much_is_refused(detector: GroundingDino) -> None:
    image_YXC = pictures(1)[0]
    assert detector(image_YXC, []) == detector(image_YXC, ["?", "."]) == []
    some = detector(image_YXC, ["cat", "."])
    assert some
    assert all(each.surest[1] == each.least[1] == 0 for each in some)
    assert [(each.box, each.surest[0]) for each in detector(image_YXC, ["cat"])] == [
        (each.box, each.surest[0]) for each in some
    ]
    with pytest.raises(CorruptDataError, match="reads 40"):
        detector(image_YXC, ["cat"] * 30)


# ---------------------------------------------------------------- depth


def test_a_picture_is_shown_to_dpt_at_480_from_minus_1_to_1() -> None:
    image_YXC = np.full((30, 50, 3), (255, 0, 51), dtype=np.uint8)
    pixels_CYX = depth.preprocess(image_YXC)
    assert pixels_CYX.shape == (3, 480, 480)
    assert torch.allclose(pixels_CYX.amax(dim=(1, 2)), torch.tensor([1.0, -1.0, -0.6]), atol=1e-6)
    assert torch.equal(pixels_CYX.amax(dim=(1, 2)), pixels_CYX.amin(dim=(1, 2)))
    ramp_YXC = np.repeat(np.arange(240, dtype=np.uint8)[None, :, None], 240, axis=0).repeat(3, axis=2)
    row_X = (depth.preprocess(ramp_YXC)[0, 7] + 1) / 2 * 255
    # twice the size without corners aligned: column x lies at (x + 0.5) / 2 - 0.5, held at the borders; 8 bits
    expected_X = np.clip((np.arange(480) + 0.5) / 2 - 0.5, 0, 239)
    assert np.abs(row_X.numpy() - expected_X).max() <= 0.51


@given(seed=st.integers(0, 10**6), size=st.tuples(st.integers(1, 40), st.integers(1, 40)))
@settings(max_examples=40)
def test_depth_levels_are_those_of_the_plain_loops(seed: int, size: tuple[int, int]) -> None:
    height, width = size
    depth_YX = np.random.default_rng(seed).normal(size=(6, 7)).astype(np.float32)
    framed = depth.to_frame(torch.from_numpy(depth_YX), height, width)
    levels = np.array(reference.depth_levels(depth_YX.tolist(), height, width))
    frame = frame_size(height, width)
    assert framed.shape == frame
    assert framed.dtype == np.uint8
    resized = Image.fromarray(levels.astype(np.uint8)).resize((frame[1], frame[0]), Image.Resampling.BILINEAR)
    assert np.abs(framed.astype(int) - np.asarray(resized).astype(int)).max() <= 1  # a sum at a whole number's edge


def test_eight_bits_are_cut_off_as_pillow_does_it() -> None:
    share_YX = torch.linspace(0, 1, 479 * 479).reshape(479, 479)
    whole = Image.fromarray((255 * share_YX).numpy()).convert("L")
    assert np.array_equal(depth.to_frame(share_YX, 479, 479), np.asarray(whole))


def test_a_flat_map_is_zero_and_depth_does_not_depend_on_its_scale() -> None:
    assert not depth.to_frame(torch.full((5, 5), 3.0), 8, 8).any()
    assert not depth.to_frame(torch.full((5, 5), math.nan), 8, 8).any()
    depth_YX = torch.arange(25.0).reshape(5, 5)
    assert np.array_equal(depth.to_frame(depth_YX, 9, 9), depth.to_frame(depth_YX * 4 - 7, 9, 9))


def test_both_ways_of_reading_a_box_s_depth_are_kept(detector: GroundingDino, folder: Path, depth_folder: Path) -> None:
    made, origin = eyes.build(folder, depth=depth_folder, device="cpu")
    assert (origin["detector"], origin["depth"], origin["device"]) == ("grounding-dino", "dpt", "cpu")
    image_YXC = pictures(1, seed=5, sides=(40, 60))[0]
    (seen,) = made([image_YXC], [["cat", "dog"]])
    assert made.depth is not None
    depth_YX = made.depth(image_YXC)
    assert depth_YX.shape == frame_size(*image_YXC.shape[:2])
    assert len(seen["boxes"]) == len(seen["depths"]) > 2
    for box, (exchanged, plain) in zip(seen["boxes"], seen["depths"], strict=True):
        left, top, right, bottom = map(int, box)
        part_YX = depth_YX[top:bottom, left:right] / 255
        assert plain == (pytest.approx(part_YX.mean()) if part_YX.size else None)
        value = box_depth(tuple(box), depth_YX) / 255
        assert exchanged == (None if math.isnan(value) else pytest.approx(value))
    assert any(exchanged != plain for exchanged, plain in seen["depths"])
    (seen,) = eyes.build(folder)[0]([image_YXC], [["cat"]])
    assert "depths" not in seen


class Counted:
    """Runs a network and notes how many images it was given."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.config = network.config
        self.rows: list[int] = []

    def __call__(self, **inputs: torch.Tensor) -> Any:
        self.rows.append(len(inputs["pixel_values"]))
        return self.network(**inputs)


IMAGES = [*pictures(3, seed=1, sides=(40, 41)), *pictures(1, seed=2, sides=(30, 31)), *pictures(1, sides=(40, 41))]
ASKED = [["cat"], ["dog"], ["teddy bear", "cat"], ["cat", "dog"], []]


def test_images_of_one_size_with_questions_of_one_length_go_together_and_are_found_in_order(
    detector: GroundingDino,
) -> None:
    alone = [detector(image_YXC, names) for image_YXC, names in zip(IMAGES, ASKED, strict=True)]
    apart, together = Counted(detector.model), Counted(detector.model)
    detector.model = apart
    assert list(detector.detect(IMAGES, ASKED)) == alone  # on a CPU to the bit
    assert apart.rows == [1, 1, 1, 1]
    detector.model, detector.rows = together, 4
    found = list(detector.detect(IMAGES, ASKED))
    assert together.rows == [2, 1, 1]
    assert [len(each) for each in found] == [len(each) for each in alone]
    for mine, theirs in zip(chain(*found), chain(*alone), strict=True):
        assert np.allclose(
            [*mine.box, *mine.surest, *mine.least], [*theirs.box, *theirs.surest, *theirs.least], atol=0.02
        )
    assert sum(map(len, alone)) > 5


def test_depth_is_the_same_alone_and_together_whatever_the_sizes(depth_folder: Path) -> None:
    maker, _ = depth.load(depth_folder)
    alone = [maker(image_YXC) for image_YXC in IMAGES]
    counted = Counted(maker.model)
    maker.model = counted
    assert all(np.array_equal(*each) for each in zip(maker.maps(IMAGES), alone, strict=True))
    maker.rows = 3
    maps = list(maker.maps(IMAGES))
    assert counted.rows == [1, 1, 1, 1, 1, 3, 2]
    for mine, theirs in zip(maps, alone, strict=True):
        assert np.abs(mine.astype(int) - theirs).max() <= 1


# ---------------------------------------------------------------- files


def test_what_is_wrong_with_a_folder_is_told(folder: Path, depth_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="no BERT tokenizer"):
        grounding_dino.load(tmp_path)
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n.\n?\ncat\n")
    with pytest.raises(CorruptDataError, match="not that of bert-base-uncased"):
        grounding_dino.load(other)
    with pytest.raises(CorruptDataError, match=r"lacks \d+ weights of DPTForDepthEstimation|no DPTForDepthEstimation"):
        depth.load(folder)
    plain = DPTForDepthEstimation(
        DPTConfig(hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8, image_size=32,
                  backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4, fusion_hidden_size=8)
    )  # fmt: skip
    with pytest.raises(CorruptDataError, match="is no hybrid DPT"):
        depth.load(miniatures.write_depth(tmp_path / "plain", plain))
    empty = miniatures.bert_words(tmp_path / "empty")
    with pytest.raises(PrerequisiteError, match=r"holds no model\.safetensors or pytorch_model\.bin"):
        grounding_dino.load(empty)
    (empty / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(PrerequisiteError, match=r"holds no config\.json"):
        grounding_dino.load(empty)
    shutil.copy(folder / "config.json", empty)
    with pytest.raises(CorruptDataError, match="no GroundingDinoForObjectDetection that can be used"):
        grounding_dino.load(empty)
    with pytest.raises(CorruptDataError, match="lacks"):  # without the pattern of what published files lack
        load_model(DPTForDepthEstimation, depth_folder)
    with pytest.raises(ConfigError, match="cannot be used"):
        usable_device("toaster")


def test_weights_that_are_no_numbers_are_refused(
    detector: GroundingDino, folder: Path, depth_folder: Path, tmp_path: Path
) -> None:
    broken = miniatures.grounding_dino()
    with torch.no_grad():
        next(broken.model.text_projection.parameters()).fill_(math.nan)
    with pytest.raises(CorruptDataError, match="not a number"):
        eyes.build(miniatures.write_grounding_dino(tmp_path / "dino", broken))
    flat = miniatures.depth()
    with torch.no_grad():
        for parameter in flat.head.parameters():
            parameter.zero_()
    with pytest.raises(CorruptDataError, match="equally near"):
        eyes.build(folder, depth=miniatures.write_depth(tmp_path / "dpt", flat))

"""BLIP-VQA in miniature: against the slow model, whatever is asked together, and from damaged files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gcpo_bench import catalogue
from gcpo_bench.errors import CorruptDataError
from gcpo_bench.evaluators.scorers import blip_vqa
from gcpo_bench.evaluators.scorers.blip_vqa import BlipVqa, BlipVqaModel, load_blip_vqa, plain_question, self_test
from gcpo_bench.evaluators.scorers.blip_weights import BLIP_VQA
from gcpo_bench.evaluators.scorers.compute import Compute
from gcpo_bench.evaluators.scorers.types import Image

from .reference import blip as reference
from .scorer_factory import BLIP, arrays, bert_tokenizer_folder, blip_vqa_state, pictures, save

QUESTIONS = ("a red cube?", "a dog?", "two very big blue cats (one of them asleep)?", "a cat?", "?")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blip")
    torch.save({"model": {name: value.float() for name, value in blip_vqa_state(BLIP).items()}}, folder / "vqa.pth")
    bert_tokenizer_folder(folder / "words")
    return folder


def load(files: Path, batch_size: int | None = None) -> BlipVqa:
    return load_blip_vqa(files / "vqa.pth", files / "words", size=BLIP, compute=Compute(batch_size=batch_size))


def part(state: dict[str, npt.NDArray[np.float64]], prefix: str) -> dict[str, npt.NDArray[np.float64]]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def test_probabilities_are_those_of_the_slow_model(files: Path) -> None:
    scorer, state = load(files), arrays(blip_vqa_state(BLIP))
    assert (scorer.yes, scorer.no) == (5, 6)
    for image in pictures(2):
        pixels_CYX = scorer.preprocessing(image).double().numpy()
        seen = reference.vision(pixels_CYX, part(state, "visual_encoder."), BLIP.vision_heads)
        for question, probability in zip(QUESTIONS, scorer.probabilities(image, QUESTIONS), strict=True):
            ids = scorer.tokenizer(plain_question(question), truncation=True, max_length=35)["input_ids"]
            ids[0] = BLIP.words - 1  # [ENC]
            states = reference.text(ids, [1] * len(ids), seen, part(state, "text_encoder."), BLIP.text_heads)
            logits = reference.answer_logits(
                BLIP.words - 2,
                states,
                part(state, "text_decoder.bert."),
                BLIP.text_heads,
                part(state, "text_decoder.cls."),
            )
            shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            assert probability == pytest.approx(shares[5] / (shares[5] + shares[6]), abs=1e-5)


def test_an_answer_has_the_same_bits_whatever_is_asked_beside_it(files: Path) -> None:
    scorer = load(files)
    (image,) = pictures(1)
    together = scorer.probabilities(image, QUESTIONS)
    assert together == [scorer.probabilities(image, [question])[0] for question in QUESTIONS]
    assert together[::-1] == scorer.probabilities(image, QUESTIONS[::-1])
    assert load(files, batch_size=4).probabilities(image, QUESTIONS) == pytest.approx(together, abs=1e-6)
    assert scorer.probabilities(image, []) == []
    assert len(set(together)) == len(QUESTIONS)


def test_several_pictures_are_asked_about_alike_alone_and_together(files: Path) -> None:
    images, asked = pictures(4), [QUESTIONS, QUESTIONS[:1], [], QUESTIONS[::-1]]
    alone = load(files)
    one_by_one = [alone.probabilities(image, each) for image, each in zip(images, asked, strict=True)]
    assert list(alone.answers(images, asked)) == one_by_one
    for batch_size in (2, 3, 8):
        together = list(load(files, batch_size=batch_size).answers(images, asked))
        for found, expected in zip(together, one_by_one, strict=True):
            assert found == pytest.approx(expected, abs=1e-6)


def test_questions_are_cleaned_as_blip_does() -> None:
    assert plain_question('A "Red" Cube (big): #1!?  ') == "a red cube big 1?"
    assert plain_question("what? ") == "what?"
    assert len(plain_question("word " * 80).split(" ")) == 50


def test_the_published_size_has_as_many_weights_as_published() -> None:
    with torch.device("meta"):
        model = BlipVqaModel(BLIP_VQA)
    assert (
        sum(value.numel() for name, value in model.state_dict().items()) == 384_951_928
    )  # 385 million, tied ones twice
    assert model.begin == 30_522


def test_a_file_may_hold_the_output_weights_once(files: Path, tmp_path: Path) -> None:
    state = {name: value for name, value in blip_vqa_state(BLIP).items() if "predictions.decoder" not in name}
    once = load_blip_vqa(save(state, tmp_path / "once.pth"), files / "words", size=BLIP)
    (image,) = pictures(1)
    assert once.probabilities(image, QUESTIONS) == load(files).probabilities(image, QUESTIONS)


def test_another_vocabulary_is_another_identity(files: Path, tmp_path: Path) -> None:
    words = bert_tokenizer_folder(tmp_path / "words")
    (words / "vocab.txt").write_text((words / "vocab.txt").read_text().replace("a\nb\n", "b\na\n"))
    other = load_blip_vqa(files / "vqa.pth", words, size=BLIP)
    assert other.identity["words"] != load(files).identity["words"]


def test_other_weights_and_vocabularies_are_refused(files: Path, tmp_path: Path) -> None:
    state = blip_vqa_state(BLIP)
    del state["text_decoder.cls.predictions.bias"], state["text_decoder.cls.predictions.decoder.bias"]
    state["itm_head.weight"] = state["surprise"] = torch.zeros(2, 2)
    with pytest.raises(CorruptDataError, match=r"not those of BLIP-VQA; tensors 2 missing: .*; 1 left over: surprise$"):
        load_blip_vqa(save(state, tmp_path / "wrong.pth"), files / "words", size=BLIP)
    with pytest.raises(CorruptDataError, match="not that of bert-base-uncased: yes is 5, no is 6"):
        load_blip_vqa(files / "vqa.pth", files / "words")
    words = tmp_path / "words"
    bert_tokenizer_folder(words)
    (words / "vocab.txt").write_text((words / "vocab.txt").read_text().replace("yes\n", "si\n").replace("no\n", "ne\n"))
    with pytest.raises(CorruptDataError, match="not that of bert-base-uncased"):
        load_blip_vqa(files / "vqa.pth", words, size=BLIP)


# ---------------------------------------------------------------- self-test


class Saying(BlipVqa):
    """Answers as it is told: of the disc, of the stripes."""

    says: tuple[tuple[float, float], tuple[float, float]]

    def answers(self, images: Sequence[Image], questions: Sequence[Sequence[str]]) -> Iterator[list[float]]:
        yield from (list(self.says[int(image[0, 0, 0] == 0 or image[0, 1, 0] == 0)]) for image in images)


def saying(files: Path, disc: tuple[float, float], stripes: tuple[float, float]) -> BlipVqa:
    scorer = Saying(**{each.name: getattr(load(files), each.name) for each in fields(BlipVqa)})
    object.__setattr__(scorer, "says", (disc, stripes))
    return scorer


@pytest.mark.parametrize(
    ("disc", "stripes"),
    [
        ((0.5, 0.5), (0.5, 0.5)),  # never trained
        ((0.9, 0.1), (0.9, 0.1)),  # blind
        ((0.9, 0.9), (0.1, 0.1)),  # deaf
        ((math.nan, 0.1), (0.2, 0.1)),
    ],
)
def test_answers_that_are_all_alike_are_not_believed(
    files: Path, disc: tuple[float, float], stripes: tuple[float, float]
) -> None:
    with pytest.raises(CorruptDataError, match="'blip-vqa' self-test failed: of a red disc and of stripes it says"):
        self_test(saying(files, disc, stripes))


def test_answers_that_cannot_be_right_are_told_with_every_score(files: Path) -> None:
    assert self_test(saying(files, (0.9, 0.1), (0.2, 0.1))) == ""
    label = self_test(saying(files, (0.4, 0.1), (0.6, 0.1)))
    assert label.startswith("BLIP-VQA says of a red disc and of stripes yes to a red circle? 0.4000 and 0.6000; ")
    assert replace(load(files), label=label).identity["label"] == label
    assert "label" not in load(files).identity


def test_weights_that_answer_the_same_to_everything_are_refused(files: Path, tmp_path: Path) -> None:
    """The real network, whose decoder gives every word the same logit."""
    state = blip_vqa_state(BLIP)
    for name in state:
        if name.startswith("text_decoder.cls.predictions.transform"):
            state[name] = torch.zeros_like(state[name])
    scorer = load_blip_vqa(save(state, tmp_path / "flat.pth"), files / "words", size=BLIP)
    with pytest.raises(CorruptDataError, match="self-test failed"):
        self_test(scorer)


def test_the_published_weights_are_tested_before_use(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {catalogue.BLIP_VQA: files / "vqa.pth", catalogue.BERT_WORDS: files / "words"}
    monkeypatch.setattr(blip_vqa, "locate", found.__getitem__)
    monkeypatch.setattr(blip_vqa, "load_blip_vqa", partial(load_blip_vqa, size=BLIP))
    label = self_test(load(files))
    assert blip_vqa.blip_vqa(device="cpu").label == label
    monkeypatch.setattr(blip_vqa, "ALIKE", 1.0)
    with pytest.raises(CorruptDataError, match="self-test failed"):
        blip_vqa.blip_vqa(device="cpu")

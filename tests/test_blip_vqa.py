"""BLIP-VQA in miniature: against the slow model, whatever is asked together, and from damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gcpo_bench.errors import CorruptDataError
from gcpo_bench.evaluators.scorers.blip_vqa import BlipVqa, BlipVqaModel, load_blip_vqa, plain_question
from gcpo_bench.evaluators.scorers.blip_weights import BLIP_VQA
from gcpo_bench.evaluators.scorers.compute import Compute

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

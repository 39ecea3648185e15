"""BLIP-VQA as T2I-CompBench asks it: how probable is "yes" against "no" for a question about a picture?

The picture at 480 x 480, stretched; the question lower-case, without some punctuation, cut at 50 words and 35 tokens,
with `[ENC]` in place of `[CLS]`; the answer is the decoder's first word after `[DEC]`. Published code takes the softmax
over all words and then the ratio of the two; here it is the same ratio from the two logits, which cannot become 0 / 0.

Questions go in batches of equal length, without padding: transformers up to 5.23 ignores the mask of what the decoder
looks at, which moves padded rows by about 1e-2.

Sources: salesforce/BLIP `models/blip_vqa.py`, Karine-Huang/T2I-CompBench `BLIPvqa_eval`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipTextModel, BlipVisionModel, PreTrainedTokenizerBase
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from gcpo_bench.catalogue import BERT_WORDS, BLIP_VQA
from gcpo_bench.errors import CorruptDataError
from gcpo_bench.files import checksum
from gcpo_bench.weights import locate

from . import blip_weights
from .blip_weights import BlipSize, convert_vision, split
from .checkpoints import State, fill, read_state
from .compute import CPU, Compute, Precision, inference, on
from .images import Preprocessing
from .plain_pictures import plain_pictures
from .tokens import bert_tokenizer, words_digest
from .types import Image

OBSERVER = 1
"""Raised when a score can change; pictures that were scored before are then scored again."""
MAX_TOKENS, MAX_WORDS = 35, 50
YES, NO = 2748, 2053
"""In the vocabulary of bert-base-uncased, after which `[DEC]` and `[ENC]` were added."""
PREFIXES = {"vision": "visual_encoder.", "text_encoder": "text_encoder.", "text_decoder": "text_decoder."}
_DELETED = re.compile(r'[.!"()*#:;~]')
_HEAD = "text_decoder.cls.predictions."


def plain_question(text: str) -> str:
    """As BLIP's code cleans it."""
    words = _DELETED.sub("", text.lower()).rstrip(" ").split(" ")
    return " ".join(words[:MAX_WORDS])


class BlipVqaModel(nn.Module):
    def __init__(self, size: BlipSize) -> None:
        super().__init__()
        self.vision = BlipVisionModel(size.vision_config())
        self.text_encoder = BlipTextModel(size.text_config(), add_pooling_layer=False)
        self.text_decoder = BlipTextLMHeadModel(size.text_config(memory_width=size.text_width))
        self.begin = size.words - 2

    def look(self, pixels_BCYX: Tensor) -> Tensor:
        """The pictures' states (B, S, D)."""
        states: Tensor = self.vision(pixel_values=pixels_BCYX).last_hidden_state
        return states

    def forward(self, pictures_BSD: Tensor, ids_BT: Tensor) -> Tensor:
        """Logits of the first word of the answer to each question about its picture (B, words)."""
        question = self.text_encoder(input_ids=ids_BT, encoder_hidden_states=pictures_BSD).last_hidden_state
        begin_B1 = torch.full((len(ids_BT), 1), self.begin, device=ids_BT.device)
        answer = self.text_decoder.bert(input_ids=begin_B1, encoder_hidden_states=question).last_hidden_state
        logits_B1V: Tensor = self.text_decoder.cls(answer)
        return logits_B1V[:, 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlipVqa:
    model: BlipVqaModel
    tokenizer: PreTrainedTokenizerBase
    yes: int
    no: int
    weights: str
    """Checksum."""
    preprocessing: Preprocessing
    compute: Compute = CPU
    name: str = "blip-vqa"
    label: str = ""
    """What must be told with every score; empty where nothing is strange."""

    def __post_init__(self) -> None:
        self.compute.place(self.model)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {
            "scorer": self.name,
            "observer": OBSERVER,
            "weights": self.weights,
            "words": words_digest(self.tokenizer),
            "preprocessing": self.preprocessing.identity,
            **self.compute.identity,
            **({"label": self.label} if self.label else {}),
        }

    def probabilities(self, image: Image, questions: Sequence[str]) -> list[float]:
        """Of "yes" against "no", for each question about one picture."""
        return next(self.answers([image], [questions]))

    def answers(self, images: Sequence[Image], questions: Sequence[Sequence[str]]) -> Iterator[list[float]]:
        """The same for each picture and its questions, in order."""
        for portion in self.compute.portions(len(images)):
            yield from self._answers(images[portion], questions[portion])

    @inference
    def _answers(self, images: Sequence[Image], questions: Sequence[Sequence[str]]) -> list[list[float]]:
        asked = [(picture, question) for picture, each in enumerate(questions) for question in each]
        if not asked:
            return [[] for _ in images]
        found = [0.0] * len(asked)
        with self.compute.autocast():
            pixels_BCYX = torch.stack([self.preprocessing(image) for image in images])
            states_PSD = self.model.look(pixels_BCYX.to(self.compute.device))
            for rows, ids_BT in self._by_length([question for _, question in asked]):
                pictures_BSD = states_PSD[[asked[row][0] for row in rows]]
                logits_BV = self.model(pictures_BSD, ids_BT.to(self.compute.device)).float()
                for row, value in zip(rows, torch.sigmoid(logits_BV[:, self.yes] - logits_BV[:, self.no]), strict=True):
                    found[row] = value.item()
        answers = iter(found)
        return [list(islice(answers, len(each))) for each in questions]

    def _by_length(self, questions: Sequence[str]) -> list[tuple[list[int], Tensor]]:
        """Rows and tokens of questions that are equally long, no more at once than `compute` allows."""
        encoded = [
            self.tokenizer(plain_question(question), truncation=True, max_length=MAX_TOKENS)["input_ids"]
            for question in questions
        ]
        batches = []
        for length in dict.fromkeys(map(len, encoded)):
            rows = [row for row, ids in enumerate(encoded) if len(ids) == length]
            for portion in self.compute.portions(len(rows)):
                ids_BT = torch.tensor([encoded[row] for row in rows[portion]])
                ids_BT[:, 0] = self.model.begin + 1  # [ENC]
                batches.append((rows[portion], ids_BT))
        return batches


def convert(state: State) -> dict[str, Tensor]:
    """BLIP-VQA's tensors under the names of `BlipVqaModel`; unknown names stay.

    The decoder's output weights are those of its words; a file may hold them once or twice.
    """
    parts = split(state, PREFIXES)
    parts["vision"] = convert_vision(parts["vision"])
    named = {f"{part}.{name}": value for part in PREFIXES for name, value in parts[part].items()} | parts[""]
    shared = {
        "decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
        "decoder.bias": f"{_HEAD}bias",
    }
    for name, source in shared.items():
        if source in named:
            named.setdefault(f"{_HEAD}{name}", named[source])
    return named


def load_blip_vqa(
    weights: Path, tokenizer: Path, *, size: BlipSize = blip_weights.BLIP_VQA, compute: Compute = CPU
) -> BlipVqa:
    """From model_base_vqa_capfilt_large.pth and BERT's tokenizer.

    Raises PrerequisiteError where something is not there, CorruptDataError for other weights, another vocabulary or a
    damaged file.
    """
    reader = bert_tokenizer(tokenizer)
    yes, no = (reader.convert_tokens_to_ids(word) for word in ("yes", "no"))
    assert isinstance(yes, int)
    assert isinstance(no, int)
    if yes == no or (size.words == blip_weights.BLIP_VQA.words and (yes, no) != (YES, NO)):
        raise CorruptDataError(
            f"the tokenizer in {tokenizer} is not that of bert-base-uncased: yes is {yes}, no is {no}",
            hint="BLIP-VQA was trained with bert-base-uncased",
        )
    state, digest = convert(read_state(weights)), checksum(weights)
    return BlipVqa(
        model=fill(lambda: BlipVqaModel(size), state, "BLIP-VQA"),
        tokenizer=reader,
        yes=yes,
        no=no,
        weights=digest,
        preprocessing=Preprocessing(size=size.pixels, fit="stretch"),
        compute=compute,
    )


def blip_vqa(*, device: str | None = None, precision: Precision = "float32") -> BlipVqa:
    """From the weights folder, tested; on the GPU where there is one, or on `device`."""
    scorer = load_blip_vqa(locate(BLIP_VQA), locate(BERT_WORDS), compute=on(device, precision))
    return replace(scorer, label=self_test(scorer))


# ---------------------------------------------------------------- self-test

ALIKE = 0.01
"""Answers that differ by no more are one answer. Weights that were never trained give about 1/2 to everything."""
ASKED = ("a red circle?", "a blue elephant?")


def self_test(scorer: BlipVqa) -> str:
    """What is strange about its answers, to be told with every score; empty where nothing is.

    Raises CorruptDataError where it tells neither pictures nor questions apart, or answers otherwise a second time.
    """
    shown = plain_pictures()
    (disc, stripes), again = ([scorer.probabilities(picture, ASKED) for picture in shown] for _ in range(2))
    told = "; ".join(f"{question} {disc[row]:.4f} and {stripes[row]:.4f}" for row, question in enumerate(ASKED))
    is_same = all(abs(a - b) < ALIKE / 10 for a, b in zip(disc + stripes, again[0] + again[1], strict=True))
    if not is_same or not abs(disc[0] - stripes[0]) > ALIKE or not abs(disc[0] - disc[1]) > ALIKE:
        raise CorruptDataError(
            f"scorer {scorer.name!r} self-test failed: of a red disc and of stripes it says yes to {told}"
            + ("" if is_same else ", and otherwise a second time"),
            hint="its weights are not what they should be: fetch them again; no score of theirs can be trusted",
        )
    if disc[0] > max(disc[1], stripes[0]):
        return ""
    return f"BLIP-VQA says of a red disc and of stripes yes to {told}: do not trust these scores"

"""Grounding DINO, an open-vocabulary detector, on transformers' classes: an image and names in, candidate boxes out.

What comes before the network and after it is written out here in Pillow and torch; no torchvision.

* The image: shortest side 800 pixels, longest 1333 at most, Pillow's bilinear filter, ImageNet's mean and deviation.
* The question: `[CLS] cat . dog . [SEP]`. Words see only the words of their own name. Which name a word belongs to is
  known by its place, so no label has to be put together from words again.
* Boxes: corners in the frame that T2I-CompBench's arithmetic wants (`compbench.frame_size`), cut off at its borders.

Departure: only words of names say how sure a box is; published code also counts `[CLS]`, `[SEP]` and the full stops.

Source: arXiv 2303.05499; IDEA-Research/GroundingDINO; transformers `GroundingDinoProcessor`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from transformers import GroundingDinoForObjectDetection, PreTrainedTokenizerBase

from gcpo_bench.errors import CorruptDataError

from ..compbench import frame_size
from ..grounding import FLOOR, Candidate
from ..scorers.compute import inference, require_numbers
from ..scorers.tokens import bert_tokenizer
from .mask2former import portions, rows_on
from .pretrained import load_model

SHORT_SIDE, LONG_SIDE = 800, 1333
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPECIAL = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
"""Words that part names from each other; their numbers in bert-base-uncased are written into the network."""
NOTHING_ASKED = 2
"""Length of a question without words: `[CLS] [SEP]`."""

UInt8 = npt.NDArray[np.uint8]


# ---------------------------------------------------------------- before the network


def scaled_size(height: int, width: int) -> tuple[int, int]:
    """Height and width that the network sees, rounded as transformers does it."""
    short, long = sorted((height, width))
    side: float = SHORT_SIDE
    if long / short * SHORT_SIDE > LONG_SIDE:
        side = LONG_SIDE * short / long
    new_short, new_long = round(side), int(side * long / short)
    if new_short == short:
        return height, width
    return (new_short, new_long) if height <= width else (new_long, new_short)


def preprocess(image_YXC: UInt8) -> Tensor:
    """An RGB image, scaled and normalised: float32 (3, Y, X)."""
    height, width = scaled_size(*image_YXC.shape[:2])
    scaled = Image.fromarray(image_YXC).resize((width, height), Image.Resampling.BILINEAR)
    pixels_CYX = torch.from_numpy(np.array(scaled).transpose(2, 0, 1)).float() / 255
    mean_C, std_C = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels_CYX - mean_C) / std_C


@dataclass(frozen=True, slots=True)
class Question:
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    """Where each name's words begin and end; both are 0 for a name without words."""


def ask(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> Question:
    """One sentence of all names, a full stop after each; what would part a name in two is left out of it."""
    ids, spans = [SPECIAL["[CLS]"]], []
    for name in names:
        words = tokenizer.encode(name, add_special_tokens=False, verbose=False)
        words = [word for word in words if word not in SPECIAL.values()]
        spans.append((len(ids), len(ids) + len(words)) if words else (0, 0))
        ids += [*words, SPECIAL["."]] if words else []
    return Question((*ids, SPECIAL["[SEP]"]), tuple(spans))


# ---------------------------------------------------------------- after the network


def candidates(
    logits_QT: Tensor, boxes_Q4: Tensor, question: Question, frame: tuple[int, int], *, floor: float = FLOOR
) -> list[Candidate]:
    """The boxes that a word fits better than `floor`, in the network's order.

    Args:
        logits_QT: of each query and place in the question.
        boxes_Q4: centre, width, height, as shares of the image.
        frame: height and width of the image that boxes are given in, in pixels.
    Raises:
        CorruptDataError: a number is none.
    """
    probabilities_QT = logits_QT.float().sigmoid().cpu()
    require_numbers(probabilities_QT, "Grounding DINO")
    require_numbers(boxes_Q4, "Grounding DINO")
    empty_Q = torch.zeros(len(probabilities_QT))
    words = [probabilities_QT[:, begin:end] for begin, end in question.spans]
    surest_QN = torch.stack([each.amax(dim=1) if each.shape[1] else empty_Q for each in words], dim=1)
    least_QN = torch.stack([each.amin(dim=1) if each.shape[1] else empty_Q for each in words], dim=1)
    height, width = frame
    centre_Q2, half_Q2 = boxes_Q4[:, :2].float().cpu(), boxes_Q4[:, 2:].float().cpu() / 2
    shares_Q4 = torch.cat([centre_Q2 - half_Q2, centre_Q2 + half_Q2], dim=1).clamp(0, 1)
    corners_Q4 = shares_Q4 * torch.tensor([width, height, width, height])
    found = []
    for query in (surest_QN.amax(dim=1) > floor).nonzero().flatten().tolist():
        left, top, right, bottom = (round(side, 2) for side in corners_Q4[query].tolist())
        if left < right and top < bottom:
            found.append(
                Candidate(
                    box=(left, top, right, bottom),
                    surest=tuple(round(each, 6) for each in surest_QN[query].tolist()),
                    least=tuple(round(each, 6) for each in least_QN[query].tolist()),
                )
            )
    return found


# ---------------------------------------------------------------- the detector


class GroundingDino:
    """Looks for named objects; on a CPU in one image at a time, so that no number depends on a batch."""

    def __init__(
        self,
        model: GroundingDinoForObjectDetection,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: str = "cpu",
        rows: int | None = None,
    ) -> None:
        """`rows` images go through the network together; None: 1 on a CPU, `ROWS_ON_GPU` elsewhere."""
        network: Any = model.train(mode=False)  # whose `to` is typed for transformers' own wrappers only
        self.model = network.to(device)
        self.tokenizer = tokenizer
        self.device = device
        self.rows = rows or rows_on(device)

    def __call__(self, image_YXC: UInt8, names: Sequence[str]) -> list[Candidate]:
        """Boxes in T2I-CompBench's frame, for an RGB image, uint8 (Y, X, 3). Raises as `detect`."""
        return next(self.detect([image_YXC], [names]))

    def detect(self, images: Sequence[UInt8], names: Sequence[Sequence[str]]) -> Iterator[list[Candidate]]:
        """The same for each image and its names, in order.

        Neighbours of one size whose questions are equally long may go through the network together: nothing is padded.
        Raises CorruptDataError where the names of one image together are longer than the network reads.
        """
        asked = [(image_YXC, self._ask(each)) for image_YXC, each in zip(images, names, strict=True)]
        for alike in portions(asked, self.rows, key=lambda each: (each[0].shape, len(each[1].ids))):
            yield from self._together(alike)

    def _ask(self, names: Sequence[str]) -> Question:
        question = ask(self.tokenizer, names)
        longest = self.model.config.max_text_len
        if len(question.ids) > longest:
            raise CorruptDataError(
                f"the names of {len(names)} objects have {len(question.ids)} words; Grounding DINO reads {longest}",
                hint="look at the table of noun phrases: its nouns are to be single words",
            )
        return question

    @inference
    def _together(self, asked: Sequence[tuple[UInt8, Question]]) -> list[list[Candidate]]:
        """Of images of one size, with questions of one length."""
        if len(asked[0][1].ids) == NOTHING_ASKED:
            return [[] for _ in asked]
        output = self.model(
            pixel_values=torch.stack([preprocess(image_YXC) for image_YXC, _ in asked]).to(self.device),
            input_ids=torch.tensor([question.ids for _, question in asked], device=self.device),
        )
        return [
            candidates(logits_QT, boxes_Q4, question, frame_size(*image_YXC.shape[:2]))
            for logits_QT, boxes_Q4, (image_YXC, question) in zip(output.logits, output.pred_boxes, asked, strict=True)
        ]


def load(folder: Path, *, device: str = "cpu") -> tuple[GroundingDino, str]:
    """The detector in a transformers folder and the checksum of its weights.

    Raises PrerequisiteError where something is not there, CorruptDataError for other weights or another vocabulary.
    """
    tokenizer = bert_tokenizer(folder)
    strange = {word for word, number in SPECIAL.items() if tokenizer.convert_tokens_to_ids(word) != number}
    if strange:
        raise CorruptDataError(
            f"the tokenizer in {folder} is not that of bert-base-uncased: {', '.join(sorted(strange))} differ",
            hint="fetch the folder again",
        )
    model, digest = load_model(GroundingDinoForObjectDetection, folder)
    return GroundingDino(model, tokenizer, device=device), digest

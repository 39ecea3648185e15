"""DeQA-Score's own side of `deqa`: run it in an environment with transformers 4.36, it needs nothing of this package.

    /path/to/its/python deqa_worker.py /path/to/DeQA-Score-Mix3

It runs the code that comes with the weights, so look at that first. The protocol is described in `line_process.py`.
Written for Python 3.8 and newer.

Source: zhiyuanyou/DeQA-Score `src/model/modeling_mplug_owl2.py`: question, padding to a square, 448 pixels, five words.
"""

from __future__ import annotations

import os
import sys

# run as a program, it has its own folder first, whose `types` is not the one that Python's own modules mean
sys.path.sort(key=os.path.dirname(os.path.abspath(__file__)).__eq__)

import base64
import hashlib
import io
import json
from typing import Any, Callable, Iterable, Mapping, TextIO  # noqa: UP035  # Python 3.8

QUESTION = ("USER: How would you rate the quality of this image?\n", "\nASSISTANT: The quality of the image is")
IMAGE_TOKEN = -200
WORDS = ("excellent", "good", "fair", "poor", "bad")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIDE = 448


def serve(logits: Callable[[Any], Iterable[float]], model: str, lines: Iterable[str], out: TextIO) -> None:
    """Answer until `lines` end. `logits` takes a Pillow picture and gives five numbers.

    The first line says what the answers depend on: it is recorded, and answers are kept under it.
    """
    from PIL import Image

    def say(record: Mapping[str, Any]) -> None:
        out.write(json.dumps(record) + "\n")
        out.flush()

    question = hashlib.sha256("".join(QUESTION).encode()).hexdigest()
    say({"protocol": 1, "model": model, "question": "sha256:" + question, "side": SIDE})
    for line in lines:
        question = json.loads(line)
        try:
            picture = Image.open(io.BytesIO(base64.b64decode(question["png"]))).convert("RGB")
            say({"id": question["id"], "logits": [float(value) for value in logits(picture)]})
        except Exception as error:  # one bad picture must not end the work
            say({"id": question.get("id"), "error": f"{type(error).__name__}: {error}"})


def square(picture: Any) -> Any:
    """In the middle of a square of the mean colour, at 448 pixels."""
    from PIL import Image

    side = max(picture.size)
    canvas = Image.new("RGB", (side, side), tuple(int(255 * mean) for mean in MEAN))
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return canvas.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def question_ids(tokenizer: Any) -> list[int]:
    """The question's tokens, with the picture's place between its halves."""
    before, after = (tokenizer(half).input_ids for half in QUESTION)
    if after and after[0] == tokenizer.bos_token_id:
        after = after[1:]
    return [*before, IMAGE_TOKEN, *after]


def first_tokens(tokenizer: Any) -> list[int]:
    """The first token of each word."""
    rows = [tokenizer(word).input_ids for word in WORDS]
    return [row[1] if row[0] == tokenizer.bos_token_id else row[0] for row in rows]


def load(folder: str) -> Callable[[Any], Iterable[float]]:
    """A function from a picture to five logits."""
    import numpy
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, attn_implementation="eager", torch_dtype=dtype
    )
    model.to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=False)
    ids, words = torch.tensor([question_ids(tokenizer)], device=device), first_tokens(tokenizer)

    @torch.inference_mode()
    def logits(picture: Any) -> Any:
        pixels = numpy.asarray(square(picture), dtype=numpy.float32) / 255
        pixels = (pixels - numpy.array(MEAN, numpy.float32)) / numpy.array(STD, numpy.float32)
        images = torch.from_numpy(pixels.transpose(2, 0, 1))[None].to(device, dtype)
        return model(input_ids=ids, images=images)["logits"][0, -1, words].float().tolist()

    return logits


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: deqa_worker.py FOLDER_OF_THE_MODEL")
    # libraries print where they like: the answers get a pipe of their own, everything else goes to stderr
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(load(sys.argv[1]), os.path.basename(os.path.normpath(sys.argv[1])), sys.stdin, out)


if __name__ == "__main__":
    main()

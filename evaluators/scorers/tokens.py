"""Words as CLIP and BERT number them.

CLIP: begin, at most 75 tokens, end, then zeros. A longer text is cut and still ends with the end token, in open_clip as
in transformers; what follows the end has no effect, because attention is causal and features are taken at the end
token. OpenAI's and open_clip's tokenizers first undo HTML entities (twice) and mend broken Unicode with `ftfy`;
transformers' does neither. Entities are undone here where `unescape` is set, Unicode is not mended.

BERT: `[CLS]`, tokens, `[SEP]`, cut and padded to a fixed length.

Sources: openai/CLIP `simple_tokenizer.py`, open_clip `tokenizer.py`, zai-org/ImageReward `ImageReward.py`.
"""

from __future__ import annotations

import gzip
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer, CLIPTokenizer, PreTrainedTokenizerBase

from gcpo_bench.errors import CorruptDataError, PrerequisiteError
from gcpo_bench.files import checksum_of

CLIP_CONTEXT = 77
_MERGES = 48_894
"""In CLIP's vocabulary: 49,408 = 2 * 256 bytes + merges + begin and end."""
_CLIP_HINT = "give a folder with tokenizer.json, or vocab.json and merges.txt, or the file bpe_simple_vocab_16e6.txt.gz"
_BERT_HINT = "give a folder with tokenizer.json or vocab.txt of bert-base-uncased"


def clip_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int = CLIP_CONTEXT, *, unescape: bool = True
) -> Tensor:
    """int64 (B, context)."""
    rows = []
    for text in texts:
        plain = html.unescape(html.unescape(text)) if unescape else text
        inner = tokenizer.encode(plain, add_special_tokens=False, verbose=False)[: context - 2]
        row = [tokenizer.bos_token_id, *inner, tokenizer.eos_token_id]
        rows.append(row + [0] * (context - len(row)))
    return torch.tensor(rows, dtype=torch.int64)


def clip_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """CLIP's tokenizer from a transformers folder, or from OpenAI's vocabulary file.

    Raises PrerequisiteError where nothing of the kind is there, CorruptDataError for a damaged file.
    """
    if path.is_file():
        return _from_merges(path, _read_merges(path))
    _require(path, (("tokenizer.json",), ("vocab.json", "merges.txt")), "CLIP", _CLIP_HINT)
    return _from_folder(CLIPTokenizer, path)


def bert_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The lower-casing BERT tokenizer from a folder. Raises as `clip_tokenizer` does."""
    _require(path, (("tokenizer.json",), ("vocab.txt",)), "BERT", _BERT_HINT)
    return _from_folder(BertTokenizer, path)


PROBES = ("A photo of two café-owners' dogs, 2 CATS & 10% <b>blue</b>!", "naïve  Straße\n北京 🙂 don't can't #3.14", "")
"""Texts that tell how a tokenizer takes capitals, accents, spaces, digits, marks and other scripts."""


def words_digest(tokenizer: Any) -> str:
    """Checksum of what a tokenizer does, whatever files it was read from: vocabulary, merges, and some texts' numbers.

    Two that differ in it number some text differently, and scores that come of their numbers are not comparable.
    """
    vocabulary = sorted((number, word) for word, number in tokenizer.get_vocab().items())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    merges = json.loads(backend.to_str())["model"].get("merges", []) if backend is not None else []
    pairs = [each.split(" ") if isinstance(each, str) else each for each in merges]
    probes = [tokenizer(text)["input_ids"] for text in PROBES]
    return checksum_of(json.dumps([vocabulary, pairs, probes]).encode())


def _require(path: Path, choices: Sequence[Sequence[str]], which: str, hint: str) -> None:
    if not any(all((path / name).is_file() for name in choice) for choice in choices):
        raise PrerequisiteError(f"no {which} tokenizer at {path}", hint=hint)


def _from_folder(kind: type[PreTrainedTokenizerBase], path: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(path, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise CorruptDataError(f"the tokenizer in {path} is damaged: {error}", hint="fetch it again") from error
    return tokenizer


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CorruptDataError(f"vocabulary {path} is damaged: {error}", hint=_CLIP_HINT) from error
    merges = [tuple(line.split()) for line in lines[1 : _MERGES + 1]]
    if len(merges) < _MERGES or any(len(merge) != 2 for merge in merges):
        raise CorruptDataError(f"vocabulary {path} does not hold {_MERGES:,} merges", hint=_CLIP_HINT)
    return [(first, second) for first, second in merges]


def _from_merges(path: Path, merges: Sequence[tuple[str, str]]) -> PreTrainedTokenizerBase:
    letters = byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(first + second for first, second in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    try:
        return CLIPTokenizer(vocab=vocabulary, merges=[*merges])  # type: ignore[list-item]  # tokenizers takes pairs
    except Exception as error:  # tokenizers raises bare Exception where a merge joins unknown parts
        raise CorruptDataError(f"vocabulary {path} is damaged: {error}", hint=_CLIP_HINT) from error


def byte_letters() -> list[str]:
    """The letter that stands for each byte, printable bytes first, in the order of CLIP's (and GPT-2's) vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + rank) for rank in range(256 - len(printable))]


def bert_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """int64 ids (B, length) and mask (B, length), 1 where there is a token."""
    encoded = tokenizer([*texts], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]

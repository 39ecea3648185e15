"""Noun phrases and nouns of prompts, as T2I-CompBench gets them from spaCy, kept in a table.

What a parser finds depends on its version, and T2I-CompBench's scores on what it finds. So prompts are parsed once, and
the table says with what. One comes with the package (`SHIPPED`), of the six categories that need it. It holds no
prompt, only places in them. Where spaCy is installed, another can be made, which is then used instead:

    python -m gcpo_bench.evaluators.phrases PROMPTS.txt...

T2I-CompBench pins spaCy 3.5.3 with en_core_web_sm 3.5.0. Another version may move the score of some prompts.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from gcpo_bench.errors import CorruptDataError, GcpoBenchError, PrerequisiteError
from gcpo_bench.files import read_json, reading, sha256, storage, write_bytes, write_json

MODEL = "en_core_web_sm"
SHIPPED = Path(__file__).with_name("noun_phrases.json.gz")
NOUN = "NOUN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    phrases: tuple[str, ...]
    """Noun phrases in order."""
    nouns: tuple[str, ...]
    """Words tagged as common nouns, in order."""
    words: tuple[tuple[str, str], ...] = ()
    """Every word with its part of speech; empty in tables of earlier versions. The complex category needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrases:
    parser: str
    """Which program and model found them."""
    prompts: Mapping[str, Parsed]
    places: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """The same of prompts that are known by their digest: `_key` -> `_places`."""

    def of(self, prompt: str) -> Parsed:
        """Raises CorruptDataError where this prompt was not parsed."""
        if prompt in self.prompts:
            return self.prompts[prompt]
        if (row := self.places.get(_key(prompt))) is not None:
            return _from_places(prompt, row)
        raise CorruptDataError(
            f"the table of noun phrases does not hold {prompt[:60]!r}",
            hint="make it again from the same prompts: python -m gcpo_bench.evaluators.phrases --help",
        )

    def __contains__(self, prompt: str) -> bool:
        return prompt in self.prompts or _key(prompt) in self.places

    def __len__(self) -> int:
        return len(self.prompts) + len(self.places)


def table_file() -> Path:
    return storage("data") / "t2i-compbench" / "noun-phrases.json"


def load(path: Path | None = None) -> Phrases:
    """The table at `path`; None is one that was made here, else the shipped one.

    Raises PrerequisiteError where `path` is not there, CorruptDataError for a damaged one.
    """
    place = path or table_file()
    if path is None and not place.is_file():
        return shipped()
    if not place.is_file():
        raise PrerequisiteError(
            f"the noun phrases of T2I-CompBench's prompts are not at {place}",
            hint=f"where spaCy and {MODEL} are installed: python -m gcpo_bench.evaluators.phrases --help",
        )
    record = read_json(place)
    try:
        prompts = {
            text: Parsed(
                phrases=_texts(each["phrases"]), nouns=_texts(each["nouns"]), words=_pairs(each.get("words", []))
            )
            for text, each in record["prompts"].items()
        }
        return Phrases(parser=str(record["parser"]), prompts=prompts)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise CorruptDataError(f"{place} is no table of noun phrases: {error}", hint="make it again") from error


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{value!r:.60} is no list of texts")
    return tuple(value)


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or any(len(_texts(each)) != 2 for each in value):
        raise ValueError(f"{value!r:.60} is no list of words with their parts of speech")
    return tuple((text, kind) for text, kind in value)


def save(phrases: Phrases, path: Path) -> None:
    prompts = {
        text: {"phrases": list(each.phrases), "nouns": list(each.nouns), "words": [list(word) for word in each.words]}
        for text, each in phrases.prompts.items()
    }
    write_json(path, {"parser": phrases.parser, "prompts": prompts})


# ---------------------------------------------------------------- without prompts


@cache
def shipped() -> Phrases:
    """The table that comes with the package."""
    with reading(SHIPPED):
        record = json.loads(gzip.decompress(SHIPPED.read_bytes()))
    return Phrases(parser=record["parser"], prompts={}, places=record["prompts"])


def save_places(phrases: Phrases, files: Sequence[Path], path: Path) -> None:
    """A table that holds places in prompts in place of prompts, compressed, and the SHA-256 of the prompts' files.

    Raises ValueError for one without parts of speech.
    """
    record = {
        "parser": phrases.parser,
        "files": {each.name: sha256(each) for each in files},
        "prompts": {_key(text): _places(text, parsed) for text, parsed in phrases.prompts.items()},
    }
    content = json.dumps(record, separators=(",", ":")).encode()
    write_bytes(path, gzip.compress(content, mtime=0))  # without a time: the same table has the same bytes


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _places(text: str, parsed: Parsed) -> list[Any]:
    """Where its phrases begin and end, where its words do, and the words' parts of speech."""
    if parsed.nouns != tuple(word for word, kind in parsed.words if kind == NOUN):
        raise ValueError(f"{text[:60]!r} is without parts of speech")
    return [
        _found(text, parsed.phrases),
        _found(text, [word for word, _ in parsed.words]),
        [k for _, k in parsed.words],
    ]


def _found(text: str, parts: Sequence[str]) -> list[int]:
    """First and last place of each part, one after the other."""
    edges = [0]
    for part in parts:
        start = text.index(part, edges[-1])
        edges += [start, start + len(part)]
    return edges[1:]


def _from_places(text: str, row: Sequence[Any]) -> Parsed:
    phrases, words, kinds = row
    pairs = tuple(zip(_parts(text, words), kinds, strict=True))
    nouns = tuple(word for word, kind in pairs if kind == NOUN)
    return Parsed(phrases=tuple(_parts(text, phrases)), nouns=nouns, words=pairs)


def _parts(text: str, edges: Sequence[int]) -> list[str]:
    return [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


# ---------------------------------------------------------------- parsing


def parse(prompts: Sequence[str], parser: Any, name: str) -> Phrases:
    """With a loaded spaCy pipeline, that is one with a tagger and a dependency parser."""
    found = {}
    for text, parsed in zip(prompts, parser.pipe(prompts), strict=True):
        found[text] = Parsed(
            phrases=tuple(chunk.text for chunk in parsed.noun_chunks),
            nouns=tuple(token.text for token in parsed if token.pos_ == NOUN),
            words=tuple((token.text, token.pos_) for token in parsed),
        )
    return Phrases(parser=name, prompts=found)


def spacy_parser(model: str = MODEL) -> tuple[Any, str]:
    """The pipeline and its name with versions. Raises PrerequisiteError where spaCy or the model is not installed."""
    try:
        import spacy

        parser = spacy.load(model)
    except (ImportError, OSError) as error:
        raise PrerequisiteError(
            f"spaCy with {model} is not installed: {str(error).splitlines()[0][:100]}",
            hint=f"pip install spacy, then: python -m spacy download {model}",
        ) from error
    return parser, f"spaCy {spacy.__version__}, {parser.meta['lang']}_{parser.meta['name']} {parser.meta['version']}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the prompts of text files, one a line, and write the table."""
    reader = argparse.ArgumentParser(prog="python -m gcpo_bench.evaluators.phrases", description=main.__doc__)
    reader.add_argument("files", nargs="+", type=Path, metavar="PROMPTS.txt")
    reader.add_argument("-o", "--out", type=Path, default=None, help="default: where the benchmarks look for it")
    reader.add_argument("--model", default=MODEL, help="spaCy pipeline")
    reader.add_argument("--places", action="store_true", help="a compressed table without prompts, as the shipped one")
    given = reader.parse_args(arguments)
    out = given.out or table_file()
    try:
        lines = [line.strip() for path in given.files for line in _lines(path)]
        parser, name = spacy_parser(given.model)
        phrases = parse(list(dict.fromkeys(filter(None, lines))), parser, name)
        if given.places:
            save_places(phrases, given.files, out)
        else:
            save(phrases, out)
    except GcpoBenchError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    print(f"{len(phrases.prompts)} prompts with {name}: {out}")


def _lines(path: Path) -> list[str]:
    with reading(path):
        return path.read_text(encoding="utf-8").split("\n")


if __name__ == "__main__":
    main()

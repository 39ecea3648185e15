"""Noun phrases and nouns of prompts, as T2I-CompBench gets them from spaCy, kept in a table.

What a parser finds depends on its version, and T2I-CompBench's scores on what it finds. So prompts are parsed once,
where spaCy is installed, and the table says with what:

    python -m gcpo_bench.evaluators.phrases PROMPTS.txt... -o noun-phrases.json

T2I-CompBench pins spaCy 3.5.3 with en_core_web_sm 3.5.0. Another version may move the score of some prompts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcpo_bench.errors import CorruptDataError, GcpoBenchError, PrerequisiteError
from gcpo_bench.files import read_json, reading, storage, write_json

MODEL = "en_core_web_sm"


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

    def of(self, prompt: str) -> Parsed:
        """Raises CorruptDataError where this prompt was not parsed."""
        if prompt not in self.prompts:
            raise CorruptDataError(
                f"the table of noun phrases does not hold {prompt[:60]!r}",
                hint="make it again from the same prompts: python -m gcpo_bench.evaluators.phrases --help",
            )
        return self.prompts[prompt]


def table_file() -> Path:
    return storage("data") / "t2i-compbench" / "noun-phrases.json"


def load(path: Path | None = None) -> Phrases:
    """The table at `path`. Raises PrerequisiteError where it is not there, CorruptDataError for a damaged one."""
    place = path or table_file()
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


def parse(prompts: Sequence[str], parser: Any, name: str) -> Phrases:
    """With a loaded spaCy pipeline, that is one with a tagger and a dependency parser."""
    found = {}
    for text, parsed in zip(prompts, parser.pipe(prompts), strict=True):
        found[text] = Parsed(
            phrases=tuple(chunk.text for chunk in parsed.noun_chunks),
            nouns=tuple(token.text for token in parsed if token.pos_ == "NOUN"),
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
    given = reader.parse_args(arguments)
    out = given.out or table_file()
    try:
        lines = [line.strip() for path in given.files for line in _lines(path)]
        parser, name = spacy_parser(given.model)
        phrases = parse(list(dict.fromkeys(filter(None, lines))), parser, name)
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

"""Image sets that are no runs: `evaluations/<name>/<benchmark>/`, scored like runs and shown beside them.

Whose images they are says `source.json` (`gcpo_bench.sources`); without it they have the folder's name, and none of
them is shown. What is damaged or was not finished is left out with a note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gcpo_bench.errors import CorruptDataError, GcpoBenchError, RunError
from gcpo_bench.sources import Source, read_source

from .evaluations import Evaluation, flatten, read_evaluation, remarks
from .statistics import PromptScores
from .tables import plain, without_place

NAME_LIMIT = 60
FILES = ("scores.json", "samples.jsonl")
"""Either says that a folder is an evaluation's; the first is written last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Images of one origin. What comparisons ask of a variant, it has too."""

    label: str
    folder: str
    """Name of the folder its scores lie in."""
    kind: str
    """"folder", "generator", or "unknown"."""
    settings: Mapping[str, Any]
    """Of the generator, by dotted key; none where nobody says."""
    by_benchmark: Mapping[str, Evaluation]
    images: Mapping[str, Path]
    """Benchmark -> what the samples' image paths are relative to, where that is known."""

    def scores(self, benchmark: str, metric: str) -> dict[int, PromptScores]:
        """Prompt scores, as of a single seed."""
        found = self.by_benchmark[benchmark].prompt_scores(metric) if benchmark in self.by_benchmark else {}
        return {0: found} if found else {}

    def evaluations(self, benchmark: str) -> list[Evaluation]:
        return [self.by_benchmark[benchmark]] if benchmark in self.by_benchmark else []

    def images_per_prompt(self, benchmark: str) -> str:
        stated = self.by_benchmark[benchmark].identity.get("images_per_prompt")
        return plain(str(stated), 12) if stated is not None else "?"

    def about(self, benchmark: str) -> str:
        """What a row says of it: that it was not trained here, what it is, how many images."""
        count = self.images_per_prompt(benchmark)
        origin = {"folder": "folder of images", "generator": "generator"}.get(self.kind, "of unknown origin")
        return f"not trained here; {origin}; {count} {'image' if count == '1' else 'images'} a prompt"

    @property
    def drawn_with(self) -> str:
        """The generator's settings in a line; empty where nobody says."""
        return plain(", ".join(f"{key} {without_place(value)}" for key, value in self.settings.items()), 300)


def reference_folders(root: Path) -> list[Path]:
    """Folders below `root` that hold scores, by name; none where it does not exist."""
    return sorted({path.parent.parent for file in FILES for path in root.glob(f"*/*/{file}")})


def load_references(folders: Sequence[Path], taken: Sequence[str] = ()) -> tuple[tuple[Reference, ...], list[str]]:
    """The image sets in these folders by label, none of which is among `taken`; and what is wanting, one line each."""
    found: list[Reference] = []
    notes: list[str] = []
    for folder in sorted(set(folders), key=lambda folder: (folder.name, str(folder))):
        references, lines = _in_folder(folder)
        found += references
        notes += [f"{plain(folder.name, NAME_LIMIT)}: {line}" for line in lines]
    labelled: list[Reference] = []
    for reference in found:
        label = _unused(reference, {*taken, *(other.label for other in labelled)})
        labelled.append(replace(reference, label=label))
    return tuple(sorted(labelled, key=lambda reference: reference.label)), notes


def _in_folder(folder: Path) -> tuple[list[Reference], list[str]]:
    """One image set, or several where the benchmarks' sources differ."""
    sets: dict[str, tuple[Source | None, dict[str, Evaluation], dict[str, Path]]] = {}
    notes: list[str] = []
    for place in sorted({path.parent for file in FILES for path in folder.glob(f"*/{file}")}):
        if not (place / "scores.json").exists():
            notes.append(f"{plain(place.name, NAME_LIMIT)} is left out: its evaluation was not finished")
            continue
        try:
            evaluation = read_evaluation(place)
        except GcpoBenchError as error:
            notes.append(f"{plain(place.name, NAME_LIMIT)} is left out: {_relative(str(error), place)}")
            continue
        notes += remarks(evaluation, "gcpo-bench evaluate --rescore")
        if missing := evaluation.identity.get("missing"):
            notes.append(
                f"{plain(str(missing), 12)} images of {evaluation.benchmark} are missing: its scores are partial"
            )
        source, problem = _source(place)
        if problem:
            notes.append(f"the images of {evaluation.benchmark} are not shown: {problem}")
        key = repr(source and (source.kind, source.name, source.generator))
        _, evaluations, images = sets.setdefault(key, (source, {}, {}))
        evaluations[evaluation.benchmark] = evaluation
        if source is not None:
            images[evaluation.benchmark] = source.images
    references = [
        Reference(
            label=plain(source.name if source else folder.name, NAME_LIMIT) or "unnamed",
            folder=plain(folder.name, NAME_LIMIT),
            kind=source.kind if source else "unknown",
            settings=flatten(source.generator) if source and source.generator else {},
            by_benchmark=evaluations,
            images=images,
        )
        for source, evaluations, images in sets.values()
    ]
    return references, notes


def _source(place: Path) -> tuple[Source | None, str]:
    try:
        return read_source(place), ""
    except RunError:
        return None, "no source.json says where they lie"
    except CorruptDataError as error:
        return None, _relative(str(error), place)


def _unused(reference: Reference, taken: set[str]) -> str:
    """Its name; if that is taken, with the folder's; if that is too, with a number."""
    label = reference.label
    if label in taken:
        label = f"{label} ({reference.folder})"
    number = 2
    while label in taken:
        label = f"{reference.label} ({reference.folder}, {number})"
        number += 1
    return label


def shown_settings(reference: Reference) -> dict[str, str]:
    return {plain(key, 120): plain(without_place(value), 400) for key, value in reference.settings.items()}


def _relative(message: str, place: Path) -> str:
    """Error texts name whole paths; a report that is sent around names the evaluation's files only."""
    return message.replace(f"{place}/", "").replace(f"{place.resolve()}/", "")

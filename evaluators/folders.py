"""Which files of a folder are the images of a benchmark's prompts.

Tried in turn: the layout of the program that published the benchmark, GenEval's, and files named after their prompts.
Where the folder has a folder of the prompt set's name, as a run's `images/` has, the images are looked for in that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gcpo_bench import prompt_sets
from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError

from . import images
from .generate import first_per_task
from .images import ImageSet, Picture
from .types import Benchmark

ARCHIVES = (".tar", ".zip", ".gz", ".tgz", ".parquet")
"""Files that may hold images, and are not looked into."""
MOST_LOOKED_INTO = 200
"""Folders below, in the search for one that is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    pictures: tuple[Picture, ...]
    """Every image that is wanted, a prompt's adjacent."""
    notes: tuple[str, ...]
    """What else lies in the folder, or is wrong with it; a line each."""
    prompts_in_all: int
    """Prompts of the benchmark, whatever the limit."""

    @property
    def missing(self) -> list[Picture]:
        return [picture for picture in self.pictures if picture.is_missing]


def find(folder: Path, benchmark: Benchmark, images_per_prompt: int, limit: int | None = None) -> Found:
    """The images of the first `limit` prompts of each task; other prompts' images are passed over without a word.

    Raises:
        ConfigError: no such folder, or none of its files is one of these images.
        PrerequisiteError, CorruptDataError: the prompts are not on this machine, or are others.
    """
    images.check_folder(folder)
    prompts = _known_prompts(folder, benchmark)
    image_set = _in_layout(folder, benchmark, prompts, images_per_prompt)
    if image_set is None:
        raise _no_layout(folder, benchmark, prompts or [], images_per_prompt)
    if prompts is None:
        prompts = list({picture.prompt.id: picture.prompt for picture in image_set.pictures}.values())
    wanted = {prompt.id for prompt in first_per_task(prompts, limit)}
    chosen = tuple(picture for picture in image_set.pictures if picture.prompt.id in wanted)
    return Found(pictures=chosen, notes=image_set.notes, prompts_in_all=len(prompts))


def find_whole(
    folder: Path,
    benchmark: Benchmark,
    images_per_prompt: int,
    limit: int | None = None,
    *,
    allow_partial: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> Found:
    """As `find`; raises CorruptDataError where files are missing, unless that is allowed.

    `on_note` is called with each line about the folder, before.
    """
    found = find(folder, benchmark, images_per_prompt, limit)
    missing = found.missing
    shown = [picture.path.relative_to(folder).as_posix() for picture in missing]
    for line in (*found.notes, *(images.unscored_line(each, images.MISSING) for each in shown)):
        (on_note or (lambda line: None))(line)
    if missing and not allow_partial:
        raise CorruptDataError(
            f"{folder}: {len(missing)} of {len(found.pictures)} images are missing, the first is {shown[0]}",
            hint="add them, or score what is there with --allow-partial",
        )
    return found


def holds(folder: Path, benchmark: Benchmark) -> bool:
    """Whether the folder has images of a benchmark of a group. Raises as `find`, but no ConfigError."""
    if not folder.is_dir():
        return False
    own = getattr(benchmark, "holds", None)
    prompts = _known_prompts(folder, benchmark)
    if own is not None and prompts is not None and not _own_folder(folder, benchmark).is_dir():
        return bool(own(folder, prompts))
    found = _in_layout(folder, benchmark, prompts, 1)
    return found is not None and any(not picture.problem and not picture.is_missing for picture in found.pictures)


def _own_folder(folder: Path, benchmark: Benchmark) -> Path:
    return folder / benchmark.prompt_set


def _reads_geneval_layout(folder: Path, benchmark: Benchmark) -> bool:
    return benchmark.name in prompt_sets.SETS and images.is_geneval_layout(folder)


def _known_prompts(folder: Path, benchmark: Benchmark) -> list[Prompt] | None:
    """None where they are not on this machine, but in the folder."""
    own = _own_folder(folder, benchmark)
    try:
        return list(benchmark.prompts())
    except PrerequisiteError:
        if not _reads_geneval_layout(own if own.is_dir() else folder, benchmark):
            raise
        return None


def _in_layout(
    folder: Path, benchmark: Benchmark, prompts: list[Prompt] | None, images_per_prompt: int
) -> ImageSet | None:
    """None where no file is one of these images, in no layout."""
    if (own := _own_folder(folder, benchmark)).is_dir():
        folder = own
    official = getattr(benchmark, "official_pictures", None)
    if official is not None and prompts is not None:
        found: ImageSet | None = official(folder, prompts, images_per_prompt)
        if found is not None:
            return found
    if _reads_geneval_layout(folder, benchmark):
        return images.of_geneval_folder(folder, prompt_sets.get(benchmark.name), prompts, images_per_prompt)
    named = images.of_folder(folder, prompts or [], images_per_prompt)
    return named if any(not picture.is_missing for picture in named.pictures) else None


def _no_layout(folder: Path, benchmark: Benchmark, prompts: list[Prompt], images_per_prompt: int) -> ConfigError:
    layouts = [f"{prompts[0].id}-0.png" if prompts else "<prompt id>-0.png"]
    layouts += [getattr(benchmark, "official_layout", "")]
    layouts += ["00000/samples/00000.png beside 00000/metadata.jsonl"] if benchmark.name in prompt_sets.SETS else []
    looked_for = f"looked for {', '.join(filter(None, layouts))} and so on"
    if nearest := next(
        (each for each in _below(folder) if _in_layout(each, benchmark, prompts, images_per_prompt)), None
    ):
        return ConfigError(
            f"{folder} holds no images of {benchmark.name}; {looked_for}", hint=f"did you mean --images {nearest}?"
        )
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in (*images.SUFFIXES, *ARCHIVES))
    if not names:
        return ConfigError(
            f"{folder} holds no images of {benchmark.name}; {looked_for}",
            hint="name the folder in which such files lie",
        )
    return ConfigError(
        f"no name of the {len(names)} files in {folder}, such as {names[0]!r}, says of which prompt of "
        f"{benchmark.name} the image is; {looked_for}",
        hint=f"unpack archives, and name each image by its prompt's id and its number, as in {layouts[0]}",
    )


def _below(folder: Path) -> Iterator[Path]:
    """Folders in it and in these."""
    level: Sequence[Path] = (folder,)
    looked = 0
    for _ in range(2):
        level = [each for above in level for each in sorted(above.iterdir()) if each.is_dir()][:MOST_LOOKED_INTO]
        for each in level:
            if (looked := looked + 1) > MOST_LOOKED_INTO:
                return
            yield each

"""Folders of pictures in the layouts that HPSv2 and T2I-CompBench ask for, read as they are.

HPSv2: `<style>/<number of the prompt in its style, 5 digits>.jpg`, one picture a prompt.
T2I-CompBench: `samples/<prompt>_<6 digits>.png`, numbered over the whole category in the order of its prompts; or a
folder of such folders, one a category: `3d-spatial/samples/...`, or `3d_spatial_val/samples/...` as prompt files are
named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gcpo_bench.datasets import Prompt

from .images import SUFFIXES, ImageSet, Picture

Official = Callable[[Prompt, int], str]
"""Where a prompt's picture belongs in the folder."""


def hps_file(prompt: Prompt, index: int = 0) -> str:
    """`anime/00000.jpg`."""
    style, _, number = prompt.id.rpartition("-")
    return f"{style}/{number}.jpg"


def compbench_file(prompt: Prompt, index: int, images_per_prompt: int) -> str:
    """`samples/a red cube_000012.png`."""
    return f"samples/{prompt.text}_{int(prompt.id) * images_per_prompt + index:06d}.png"


def of_hps_folder(folder: Path, prompts: Sequence[Prompt]) -> ImageSet | None:
    """The picture of each prompt; None where the folder has no style's folder."""
    styles = {prompt.tag for prompt in prompts}
    if not any((folder / style).is_dir() for style in styles):
        return None
    pictures = [Picture(prompt=prompt, index=0, path=_hps_picture(folder, prompt)) for prompt in prompts]
    return _with_notes(folder, pictures, sorted(styles))


def _hps_picture(folder: Path, prompt: Prompt) -> Path:
    return _any_kind(folder / hps_file(prompt))  # HPSv2 itself reads .jpg only


def _any_kind(first: Path) -> Path:
    """The file, or where it is missing one that differs in its ending; `first` where there is none."""
    return next((path for path in (first, *map(first.with_suffix, SUFFIXES)) if path.is_file()), first)


def of_compbench_folder(folder: Path, prompts: Sequence[Prompt], images_per_prompt: int) -> ImageSet | None:
    """The pictures of each prompt; None where there is no folder `samples` for them."""
    place = _compbench_place(folder, prompts)
    if place is None:
        return None
    pictures = [
        Picture(prompt=prompt, index=index, path=_any_kind(place / compbench_file(prompt, index, images_per_prompt)))
        for prompt in prompts
        for index in range(images_per_prompt)
    ]
    return _with_notes(folder, pictures, [(place / "samples").relative_to(folder).as_posix()])


def _compbench_place(folder: Path, prompts: Sequence[Prompt]) -> Path | None:
    """The folder that holds `samples` of these prompts' category."""
    tag = prompts[0].tag if prompts else ""
    names = (tag, tag.replace("-", "_"), f"{tag.replace('-', '_')}_val") if tag else ()
    return next((place for place in (folder, *(folder / name for name in names)) if (place / "samples").is_dir()), None)


def holds_compbench(folder: Path, prompts: Sequence[Prompt]) -> bool:
    """Whether the folder has a picture of any of these prompts in T2I-CompBench's layout, whatever its number."""
    place = _compbench_place(folder, prompts)
    texts = {prompt.text for prompt in prompts}
    return place is not None and any(path.name.rpartition("_")[0] in texts for path in (place / "samples").iterdir())


def _with_notes(folder: Path, pictures: Sequence[Picture], parts: Sequence[str]) -> ImageSet:
    known = {picture.path for picture in pictures}
    there = [path for part in parts if (folder / part).is_dir() for path in sorted((folder / part).iterdir())]
    extra = [path for path in there if path not in known]
    notes = tuple(f"{path.relative_to(folder).as_posix()!r} is no image that is asked for" for path in extra)
    return ImageSet(pictures=tuple(pictures), notes=notes)

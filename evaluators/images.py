"""Images to be judged: found in a folder that anybody made, and decoded without trusting them.

Three layouts are read as they are: GenEval's (`00000/metadata.jsonl`, `00000/samples/*.png`, also without the folder
`samples`), a run's own (`<prompt id>-<k>.png`, perhaps with a manifest.jsonl), and any folder with such names (also
`<prompt id>_<k>`); .jpg and .webp too. Whatever is missing, doubled, left over or damaged is named; nothing is counted
as a wrong image that is no image.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, CorruptDataError, PrerequisiteError
from gcpo_bench.files import checksum_of
from gcpo_bench.prompt_sets import PromptSet

from .generate import Request, read_manifest, requests

MAX_PIXELS = 40_000_000
"""An image file that claims more is refused before it is unpacked; 4096 x 4096 has 16.8 million."""
MIN_SIDE = 8
"""Pixels; smaller images show nothing."""
MAX_FILE_BYTES = 200_000_000
PLAIN_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "La", "RGBa"})
"""Ways of storing colours that turn into RGB without loss or choice, transparency aside."""
PNG, PNG_DEPTH = b"\x89PNG\r\n\x1a\n", 24
"""How a PNG begins, and which byte holds its bits a channel."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Files of pictures; of two with the same number the earlier kind is taken."""
_SUFFIX = rf"({'|'.join(map(re.escape, SUFFIXES))})"
SAMPLE = re.compile(rf"([0-9]+){_SUFFIX}", re.IGNORECASE)
NAMED = re.compile(rf"(.+)[-_]([0-9]{{1,5}}){_SUFFIX}", re.IGNORECASE)
"""A prompt's id and the number of the image."""
JUDGED = ("tag", "include", "exclude")
"""What GenEval judges by, of a prompt's metadata; other keys, such as a seed, say how an image was drawn."""
DRAWN_FOR = "parameters"
"""The text in a PNG where AUTOMATIC1111's web UI and its kin write the prompt, then what else they drew with."""
MISSING = "the image file is missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One image to be judged: the `index`-th of a prompt, and the file that should hold it."""

    prompt: Prompt
    index: int
    path: Path
    checksum: str = ""
    """What the file must have; empty where nobody says."""
    problem: str = ""
    """Why it cannot be scored, whatever the file holds."""
    is_other: bool = False
    """Whether the file is there, but drawn by another hand: this image is still missing."""

    @property
    def is_missing(self) -> bool:
        return not self.problem and (self.is_other or not self.path.is_file())


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    pictures: tuple[Picture, ...]
    """Every image that is wanted, a prompt's adjacent."""
    notes: tuple[str, ...] = ()
    """What else lies in the folder, or is wrong with it; a line each."""


# ---------------------------------------------------------------- decoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    image_YXC: npt.NDArray[np.uint8] | None = None
    """uint8 RGB; None where there is a problem."""
    problem: str = ""
    note: str = ""


def decode(data: bytes) -> Decoded:
    """An image file's pixels, or why there are none to score. Raises nothing, whatever the bytes are."""
    if not data:
        return Decoded(problem="the image file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes that are refused below anyway
            with Image.open(io.BytesIO(data)) as picture:
                if problem := _refused(picture, data):
                    return Decoded(problem=problem)
                picture.load()
                notes = []
                if picture.getexif().get(0x0112, 1) not in {0, 1}:
                    notes.append("turned upright as its EXIF orientation says")
                upright = ImageOps.exif_transpose(picture)
                if _is_transparent(upright):
                    notes.append("has transparent pixels; transparency is dropped")
                image_YXC = np.asarray(upright.convert("RGB"))
        return Decoded(image_YXC=image_YXC, note=", ".join(notes))
    except Image.DecompressionBombError:
        return Decoded(problem=f"the image has more than {MAX_PIXELS:,} pixels")
    except Exception as error:  # decoders of broken files raise what they like: OSError, SyntaxError, struct.error, ...
        return Decoded(problem=f"the image file cannot be read: {type(error).__name__}")


def _refused(picture: Image.Image, data: bytes) -> str:
    """Why a file that can be opened is no picture to score; empty where it is one."""
    if picture.width * picture.height > MAX_PIXELS:
        return f"the image has {picture.width}x{picture.height} pixels, more than {MAX_PIXELS:,}"
    if min(picture.size) < MIN_SIDE:
        return f"the image is {picture.width}x{picture.height} pixels, too small to show anything"
    frames = getattr(picture, "n_frames", 1)
    if frames > 1:
        return f"the image file holds {frames} pictures, not one"
    deep = data.startswith(PNG) and len(data) > PNG_DEPTH and data[PNG_DEPTH] == 16
    if deep or picture.mode.startswith(("I", "F")):
        return "the image has 16 bits a channel or more; make it 8"
    if picture.mode not in PLAIN_MODES:
        return f"the image's colours are {picture.mode}, not RGB"
    return ""


def _is_transparent(picture: Image.Image) -> bool:
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return False
    alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    return bool((alpha < 255).any())


def read(picture: Picture) -> tuple[bytes, str]:
    """The file's bytes, or why there are none."""
    if picture.problem:
        return b"", picture.problem
    try:
        if picture.is_missing:
            return b"", MISSING
        if picture.path.stat().st_size > MAX_FILE_BYTES:
            return b"", f"the image file has more than {MAX_FILE_BYTES:,} bytes"
        data = picture.path.read_bytes()
    except OSError as error:
        return b"", f"the image file cannot be read: {error.strerror}"
    if picture.checksum and picture.checksum != checksum_of(data):
        return b"", "the image file does not match its checksum"
    return data, ""


# ---------------------------------------------------------------- a run's folder


def of_requests(folder: Path, wanted: Sequence[Request], key: str = "") -> tuple[Picture, ...]:
    """The images `<prompt id>-<k>.png`; where there is a manifest, they must match their checksums there and are not
    scored where it says why not, or that they were drawn for another prompt.

    Args:
        key: of the hand that drew them (`generate.generate`); empty takes anybody's.
    """
    manifest = read_manifest(folder)
    return tuple(_of_request(folder, request, manifest.get(request.file, {}), key) for request in wanted)


def _of_request(folder: Path, request: Request, record: Mapping[str, Any], key: str) -> Picture:
    problem = str(record.get("problem", ""))
    if (text := record.get("text", request.prompt.text)) != request.prompt.text:
        problem = f"it was drawn for another prompt: {text!r:.120}"  # ids are the same in many sets
    checksum = str(record.get("checksum", ""))
    return Picture(
        prompt=request.prompt,
        index=request.index,
        path=folder / request.file,
        checksum=checksum,
        problem=problem,
        is_other=bool(key) and record.get("key") != key,
    )


def of_folder(folder: Path, prompts: Sequence[Prompt], images_per_prompt: int) -> ImageSet:
    """Images named after their prompts, and what else lies there."""
    manifest = read_manifest(folder)
    told = {file for file, record in manifest.items() if "text" in record}
    named = _named(folder)
    wanted = requests(prompts, images_per_prompt)
    pictures = []
    for request in wanted:
        name = named.get((request.prompt.id, request.index), request.file)
        picture = replace(_of_request(folder, request, manifest.get(name, {}), key=""), path=folder / name)
        if not picture.problem and name not in told:
            picture = replace(picture, problem=_drawn_for_another(picture))
        pictures.append(picture)
    known = {picture.path.name for picture in pictures} | {"manifest.jsonl"}
    extra = sorted(name for name in os.listdir(folder) if name not in known)
    ids = {prompt.id for prompt in prompts}
    further = {name: index for (prompt_id, index), name in named.items() if prompt_id in ids and name not in known}
    notes = [f"{name!r} is no image that is asked for" for name in extra if name not in further]
    if further:
        first = min(further)
        notes.append(
            f"{len(further)} images beyond {images_per_prompt} a prompt are left out, the first is {first!r}; "
            f"--images-per-prompt {1 + max(further.values())} takes them"
        )
    untold = sum(each.path.name not in told and not each.is_missing for each in pictures)
    if untold:
        notes.append(f"of {untold} images no manifest.jsonl says the prompt; their names alone say whose they are")
    return ImageSet(pictures=tuple(pictures), notes=tuple(notes))


def _named(folder: Path) -> dict[tuple[str, int], str]:
    """Prompt id and number -> the file whose name says so; of several the one that a run would write, or `SUFFIXES`."""
    found: dict[tuple[str, int], str] = {}
    matches = [match for name in os.listdir(folder) if (match := NAMED.fullmatch(name))]
    for match in sorted(matches, key=lambda match: (SUFFIXES.index(match[3].lower()), len(match[0]), match[0])):
        found.setdefault((match[1], int(match[2])), match[0])
    return found


def _drawn_for_another(picture: Picture) -> str:
    """Why the picture is not its prompt's, by what the file itself says; empty where it says nothing else."""
    try:
        with Image.open(picture.path) as file:
            text = str(file.info.get(DRAWN_FOR, ""))
    except Exception:  # what is missing or cannot be read is told where it is decoded
        return ""
    drawn = re.split(r"\n(?:Negative prompt|Steps): ", text)[0].strip()
    if not drawn or drawn == picture.prompt.text.strip():
        return ""
    return f"its file says that it was drawn for {drawn!r:.120}, should be {picture.prompt.text!r:.120}"


# ---------------------------------------------------------------- GenEval's layout


def is_geneval_layout(folder: Path) -> bool:
    return any((path / "metadata.jsonl").exists() for path in folder.iterdir() if path.name.isdecimal())


@dataclass(slots=True)
class _Reader:
    """Reads one folder in GenEval's layout, collecting what is to be noted."""

    folder: Path
    images_per_prompt: int
    notes: list[str] = field(default_factory=list)

    def folders(self) -> dict[int, Path]:
        """Number of a prompt -> its folder."""
        found: dict[int, Path] = {}
        for path in sorted(self.folder.iterdir()):
            if not (path.name.isdecimal() and path.name.isascii() and path.is_dir()):
                self.notes.append(f"{path.name!r} is no prompt's folder")
            elif int(path.name) in found:
                self.notes.append(f"{path.name!r} is prompt {int(path.name)} a second time; left out")
            else:
                found[int(path.name)] = path
        return found

    def metadata(self, path: Path) -> Prompt | str:
        """The prompt in a folder's metadata.jsonl, or what is wrong with it."""
        try:
            record = json.loads((path / "metadata.jsonl").read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            return f"its metadata.jsonl cannot be read: {type(error).__name__}"
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            return "its metadata.jsonl is not one JSON object with a 'prompt'"
        metadata = {key: value for key, value in record.items() if key in JUDGED}
        return Prompt(id=f"{int(path.name):05d}", text=record["prompt"], metadata=metadata)

    def pictures(self, prompt: Prompt, path: Path, problem: str = "") -> list[Picture]:
        """The first images of a prompt in the order of their numbers; places that stay empty are missing files."""
        samples: dict[int, Path] = {}
        inside = path / "samples" if (path / "samples").is_dir() or not path.is_dir() else path
        place = inside.relative_to(self.folder).as_posix()
        files = [file for file in inside.iterdir() if file.name != "metadata.jsonl"] if inside.is_dir() else []
        for file in sorted(files, key=_rank):
            match = SAMPLE.fullmatch(file.name)
            shown = f"{place}/{file.name!r}"
            if not match:
                self.notes.append(f"{shown} is no image that GenEval reads")
            elif int(match[1]) in samples:
                self.notes.append(f"{shown} is image {int(match[1])} a second time; left out")
            else:
                samples[int(match[1])] = file
        files = [file for _, file in sorted(samples.items())]
        for file in files[self.images_per_prompt :]:
            self.notes.append(f"{place}/{file.name} is one image too many; left out")
        free = (inside / f"{number:05d}.png" for number in range(10**6) if number not in samples)
        files += [next(free) for _ in range(self.images_per_prompt - len(files))]
        return [
            Picture(prompt=prompt, index=index, path=file, problem=problem)
            for index, file in enumerate(files[: self.images_per_prompt])
        ]


def _rank(file: Path) -> tuple[int, int, str]:
    """Which of two files of the same number comes first: 00000.png before 0.png, and before 00000.jpg."""
    suffix = file.suffix.lower()
    return (SUFFIXES.index(suffix) if suffix in SUFFIXES else len(SUFFIXES), -len(file.name), file.name)


def of_geneval_folder(
    folder: Path, published: PromptSet, known: Sequence[Prompt] | None, images_per_prompt: int
) -> ImageSet:
    """Images in GenEval's layout, in the order of the prompts.

    Args:
        known: GenEval's prompts; None where they are not on this machine, and then the folder must hold them all.
    Raises:
        PrerequisiteError: without `known`, for a folder that does not hold every prompt.
        CorruptDataError: without `known`, for prompts that are not GenEval's.
        ConfigError: every prompt is GenEval's in other words.
    """
    reader = _Reader(folder, images_per_prompt)
    folders = reader.folders()
    prompts = {number: reader.metadata(path) for number, path in folders.items()}
    if known is None:
        known = _from_folder(folder, published, prompts)
    _refuse_rewritten(folder, prompts, known)
    pictures: list[Picture] = []
    for number, prompt in enumerate(known):
        path = folders.get(number, folder / f"{number:05d}")
        found = prompts.get(number, prompt)
        problem = found if isinstance(found, str) else _difference(found, prompt)
        if problem:
            reader.notes.append(f"{path.name}: {problem}; its images are not scored")
        pictures += reader.pictures(prompt, path, problem)
    for number, path in folders.items():
        if number >= len(known):
            reader.notes.append(f"{path.name!r} is no prompt of {published.name}")
    return ImageSet(pictures=tuple(pictures), notes=tuple(reader.notes))


def _difference(found: Prompt, prompt: Prompt) -> str:
    if found.text != prompt.text:
        return f"its prompt is {found.text!r}, should be {prompt.text!r}"
    return "" if found.metadata == prompt.metadata else "its metadata is not GenEval's"


def _refuse_rewritten(folder: Path, prompts: Mapping[int, Prompt | str], known: Sequence[Prompt]) -> None:
    pairs = [
        (found, known[number]) for number, found in prompts.items() if isinstance(found, Prompt) and number < len(known)
    ]
    if pairs and all(found.text != own.text and found.metadata == own.metadata for found, own in pairs):
        found, own = pairs[0]
        raise ConfigError(
            f"{folder}: all {len(pairs)} prompts are GenEval's in other words; {own.id} is {found.text!r:.120}, "
            f"should be {own.text!r}",
            hint="to judge by GenEval's prompts what was drawn for these, write GenEval's into each metadata.jsonl",
        )


def _from_folder(folder: Path, published: PromptSet, prompts: Mapping[int, Prompt | str]) -> list[Prompt]:
    """The published prompts, if the folder holds them all unchanged."""
    found: list[Prompt] = []
    for number in range(published.count):
        prompt = prompts.get(number)
        if not isinstance(prompt, Prompt):
            why = "is missing" if prompt is None else prompt
            raise PrerequisiteError(
                f"{folder}: prompt {number:05d} {why}, and the published prompts are not on this machine",
                hint=f"gcpo-bench data fetch {published.name}",
            )
        found.append(prompt)
    lines = "".join(json.dumps(_record(prompt)) + "\n" for prompt in found)
    if hashlib.sha256(lines.encode()).hexdigest() != published.sha256:
        raise CorruptDataError(
            f"{folder}: its prompts are not those of {published.name}",
            hint=f"gcpo-bench data fetch {published.name} lets each difference be told",
        )
    return found


def _record(prompt: Prompt) -> dict[str, Any]:
    """As a line of GenEval's own file."""
    return {**prompt.metadata, "prompt": prompt.text}


def unscored_line(image: str, reason: str) -> str:
    return f"{image} is not scored: {reason}"


def check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"--images {str(folder)!r} is no folder", hint="name a folder of images")

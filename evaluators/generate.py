"""Prompts to images in a folder: each image drawn once, recorded with its checksum, found again after a stop.

<run>/images/<prompt set>/, or evaluations/<name>/images/<prompt set>/
  <prompt id>-<k>.png
  manifest.jsonl    one object an image: what it shows, who drew it ("key"), its checksum, why it is not to be scored
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from gcpo_bench import streams
from gcpo_bench.addresses import json_digest
from gcpo_bench.datasets import Prompt
from gcpo_bench.locks import beside, held
from gcpo_bench.runs import append_jsonl, checksum, read_jsonl, write_bytes, write_text

from .types import Drawn, Generator, Sampler

STREAM = "evaluate"
"""Random stream of evaluation images: the same noise for every run, so that runs can be compared in pairs."""


@dataclass(frozen=True, slots=True)
class Request:
    """One image wanted: the `index`-th of a prompt."""

    prompt: Prompt
    index: int

    @property
    def file(self) -> str:
        return f"{self.prompt.id}-{self.index}.png"


Draw = Callable[[Sequence[Request]], Sequence[Drawn]]
"""One image a request, in order."""


def requests(prompts: Sequence[Prompt], images_per_prompt: int) -> list[Request]:
    """A prompt's images are adjacent."""
    return [Request(prompt, index) for prompt in prompts for index in range(images_per_prompt)]


def first_per_task(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """The first `limit` prompts of each task, in their order; all where `limit` is None."""
    seen: dict[str, int] = {}
    chosen = []
    for prompt in prompts:
        seen[prompt.tag] = seen.get(prompt.tag, 0) + 1
        if limit is None or seen[prompt.tag] <= limit:
            chosen.append(prompt)
    return chosen


def from_uniforms(sampler: Sampler, tokens: int, seed: int) -> Draw:
    """With a sampler that takes `tokens` uniform numbers an image."""

    def draw(batch: Sequence[Request]) -> list[Drawn]:
        uniforms_BT = np.stack([streams.uniforms(seed, STREAM, r.prompt.id, r.index, tokens) for r in batch])
        images_BYXC = sampler([request.prompt.text for request in batch], uniforms_BT)
        _check(images_BYXC, len(batch))
        return [Drawn(image_YXC=image_YXC) for image_YXC in images_BYXC]

    return draw


def from_seeds(generator: Generator, seed: int) -> Draw:
    """With a generator that takes a seed an image."""

    def draw(batch: Sequence[Request]) -> Sequence[Drawn]:
        seeds_B = [image_seed(seed, request) for request in batch]
        drawn_B = generator([request.prompt.text for request in batch], seeds_B)
        for drawn in drawn_B:
            _check(drawn.image_YXC[None], 1)
        return drawn_B

    return draw


def image_seed(seed: int, request: Request) -> int:
    """63 bits; the image's own, whatever is drawn before or beside it."""
    return int(streams.generator(seed, STREAM, request.prompt.id, request.index).integers(2**63))


def generate(
    folder: Path,
    draw: Draw,
    wanted: Sequence[Request],
    *,
    identity: Mapping[str, Any],
    batch_rows: int = 256,
    is_shared: bool = False,
    on_batch: Callable[[int, int], None] | None = None,
) -> str:
    """Draw the images that are wanted and not in `folder` yet, whole and by the same hand. Returns that hand's key.

    Args:
        identity: what the images depend on beside the prompt; images made under another one are drawn anew.
        batch_rows: images drawn at once; it changes memory and speed, not the images.
        is_shared: other processes draw into `folder` at the same time.
        on_batch: called with (images there, images wanted) before the first and after every batch.
    Raises:
        ValueError: where something else than uint8 RGB images is drawn, or not as many as were asked for.
    """
    key = json_digest(dict(identity))
    with _manifest_held(folder, is_shared):
        missing = _missing(folder, wanted, key)
    done = len(wanted) - len(missing)
    report = on_batch or (lambda done, total: None)
    report(done, len(wanted))
    for start in range(0, len(missing), batch_rows):
        batch = missing[start : start + batch_rows]
        for request, drawn in zip(batch, draw(batch), strict=True):
            write_bytes(folder / request.file, _png(drawn.image_YXC), sync=False)
            with _manifest_held(folder, is_shared):
                append_jsonl(folder / "manifest.jsonl", _record(request, folder, key, drawn.problem))
        done += len(batch)
        report(done, len(wanted))
    return key


def _manifest_held(folder: Path, is_shared: bool) -> AbstractContextManager[None]:
    """No other process changes the manifest meanwhile."""
    lock = beside(folder.with_name(f"{folder.name}-manifest"))
    return held(lock, on_wait=lambda owner: None) if is_shared else nullcontext()


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """File name -> its last record; empty where there is no manifest."""
    path = folder / "manifest.jsonl"
    return {str(row.get("file")): row for row in read_jsonl(path)} if path.exists() else {}


def _missing(folder: Path, wanted: Sequence[Request], key: str) -> list[Request]:
    """Images still to be drawn. Leaves a manifest that lists no image but those of this `key`."""
    manifest = read_manifest(folder)
    ours = {file: row for file, row in manifest.items() if row.get("key") == key}
    missing = [request for request in wanted if not _is_there(request, folder, ours.get(request.file))]
    for request in missing:
        ours.pop(request.file, None)
    if len(ours) < len(manifest):
        write_text(
            folder / "manifest.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ours.values())
        )
    return missing


def _is_there(request: Request, folder: Path, row: Mapping[str, Any] | None) -> bool:
    path = folder / request.file
    return (
        row is not None
        and row.get("text") == request.prompt.text
        and path.is_file()
        and row.get("checksum") == checksum(path)
    )


def _record(request: Request, folder: Path, key: str, problem: str) -> dict[str, Any]:
    return {
        "prompt": request.prompt.id,
        "index": request.index,
        "text": request.prompt.text,
        "file": request.file,
        "checksum": checksum(folder / request.file),
        "key": key,
        **({"problem": problem} if problem else {}),
    }


def _check(images_BYXC: npt.NDArray[np.uint8], rows: int) -> None:
    if images_BYXC.dtype != np.uint8 or images_BYXC.ndim != 4 or images_BYXC.shape[::3] != (rows, 3):
        raise ValueError(
            f"the sampler returned {images_BYXC.dtype} {images_BYXC.shape}, expected uint8 ({rows}, Y, X, 3)"
        )


def _png(image_YXC: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_YXC).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()

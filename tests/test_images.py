"""Image files of all kinds: what each gets, and that none of them stops the others."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gcpo_bench.datasets import Prompt
from gcpo_bench.evaluators.images import MISSING, Picture, decode, read

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)


def png(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, depth: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def sixteen_bits() -> bytes:
    rows = b"".join(b"\x00" + bytes(8 * 6) for _ in range(8))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def transparent() -> Image.Image:
    picture = Image.fromarray(PIXELS).convert("RGBA")
    picture.putpixel((0, 0), (1, 2, 3, 0))
    return picture


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return png(Image.fromarray(PIXELS), exif=exif)


def animated(format: str) -> bytes:
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    return png(frames[0], format=format, save_all=True, append_images=frames[1:])


GOOD = png(Image.fromarray(PIXELS))
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the image file is empty"),
    "text": (lambda: b"<html>not found</html>", "cannot be read: UnidentifiedImageError"),
    "truncated": (lambda: GOOD[: len(GOOD) // 2], "cannot be read"),
    "header only": (lambda: GOOD[:33], "cannot be read"),
    "no pixels": (lambda: png_header(64, 64), "cannot be read"),
    "changed inside": (lambda: GOOD[:60] + b"\xff" * 20 + GOOD[80:], "cannot be read"),
    "20,000 x 20,000": (lambda: png_header(20_000, 20_000), "more than 40,000,000"),
    "8,000 x 6,000": (lambda: png_header(8_000, 6_000), "the image has 8000x6000 pixels, more than 40,000,000"),
    "a pixel": (lambda: png(Image.new("RGB", (1, 1))), "the image is 1x1 pixels, too small to show anything"),
    "7 rows": (lambda: png(Image.new("RGB", (90, 7))), "the image is 90x7 pixels, too small to show anything"),
    "16 bits, colour": (sixteen_bits, "16 bits a channel"),
    "16 bits, grey": (lambda: png(Image.fromarray(np.zeros((9, 9), dtype=np.uint16))), "16 bits a channel"),
    "float": (lambda: png(Image.new("F", (9, 9)), format="TIFF"), "16 bits a channel or more"),
    "CMYK": (lambda: png(Image.new("CMYK", (9, 9)), format="JPEG"), "the image's colours are CMYK, not RGB"),
    "LAB": (lambda: png(Image.new("LAB", (9, 9)), format="TIFF"), "the image's colours are LAB, not RGB"),
    "animated GIF": (lambda: animated("GIF"), "the image file holds 2 pictures, not one"),
    "animated PNG": (lambda: animated("PNG"), "the image file holds 2 pictures, not one"),
    "several pages": (lambda: animated("TIFF"), "the image file holds 2 pictures, not one"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_files_that_are_no_picture_to_score_are_refused_with_the_reason(kind: str) -> None:
    make, message = REFUSED[kind]
    decoded = decode(make())
    assert decoded.image_YXC is None
    assert message in decoded.problem
    assert "\n" not in decoded.problem


@pytest.mark.parametrize(
    ("data", "want", "note"),
    [
        (GOOD, PIXELS, ""),
        (png(Image.fromarray(PIXELS).convert("RGBA")), PIXELS, ""),
        (png(transparent()), None, "has transparent pixels; transparency is dropped"),
        (rotated(), np.rot90(PIXELS, -1), "turned upright as its EXIF orientation says"),
        (png(Image.fromarray(PIXELS[..., 0])), np.repeat(PIXELS[..., :1], 3, axis=2), ""),
        (png(Image.new("1", (9, 8), 1)), np.full((8, 9, 3), 255), ""),
        (png(Image.new("P", (9, 8), 0), transparency=0), None, "has transparent pixels; transparency is dropped"),
        (png(Image.new("RGB", (8, 8), "red")), np.full((8, 8, 3), (255, 0, 0)), ""),
        (png(Image.new("RGB", (4096, 4096), "red"), format="WEBP"), None, ""),
    ],
)
def test_other_files_become_8_bit_rgb(data: bytes, want: Any, note: str) -> None:
    decoded = decode(data)
    assert (decoded.problem, decoded.note) == ("", note)
    assert decoded.image_YXC is not None
    assert decoded.image_YXC.dtype == np.uint8
    assert decoded.image_YXC.shape[2] == 3
    if want is not None:
        assert (decoded.image_YXC == want).all()


@settings(max_examples=150)
@given(st.binary(max_size=300), st.integers(0, len(GOOD)), st.sampled_from([b"", GOOD, REFUSED["animated GIF"][0]()]))
def test_no_bytes_whatever_raise(noise: bytes, place: int, around: bytes) -> None:
    decoded = decode(around[:place] + noise + around[place + len(noise) // 2 :])
    assert (decoded.image_YXC is None) == bool(decoded.problem)


def test_a_file_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    prompt = Prompt(id="p", text="")

    def reason(path: Path, **more: Any) -> str:
        return read(Picture(prompt=prompt, index=0, path=path, **more))[1]

    assert reason(tmp_path / "nothing.png") == MISSING
    assert reason(tmp_path) == MISSING  # a folder
    (tmp_path / "good.png").write_bytes(GOOD)
    assert reason(tmp_path / "good.png") == ""
    assert reason(tmp_path / "good.png", checksum="xxh3:0") == "the image file does not match its checksum"
    assert reason(tmp_path / "good.png", problem="its prompt is another") == "its prompt is another"
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert reason(tmp_path / "loop.png") in {
        MISSING,
        "the image file cannot be read: Too many levels of symbolic links",
    }

"""What is not a photo, is damaged or is too large is refused, with a short reason and nothing else."""

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from model.errors import ImageError, TooManyPixels
from model.images import open_photo, read_photo, use_own_pixel_limit


def encode(format: str, size: tuple[int, int] = (80, 64), **options: Any) -> bytes:
    """A photo with some detail, so that cutting it cuts pixels."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    pixels = np.stack([x * 3, y * 3, (x * y) % 251], 2).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces its size and has no pixels to speak of."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def reason(source: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_photo(source, **options)
    return str(caught.value)


@pytest.fixture
def own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back afterwards
    use_own_pixel_limit()


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: ImageFile.ImageFile) -> None:
        pytest.fail(f"{image.size} was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


def test_truncated_jpeg(tmp_path: Path) -> None:
    data = encode("JPEG", quality=95)
    assert reason(data[: len(data) // 2]) == "truncated image"
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: len(data) // 2])
    assert reason(path) == "truncated image"
    assert "cut.jpg" not in reason(path)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1, 12, 3])
def test_cut_file_is_an_image_error(format: str, kept: float) -> None:
    data = encode(format)
    assert reason(data[: round(kept * len(data)) if kept < 1 else int(kept)])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged tags
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "MPO", "HEIF"])
def test_damage_anywhere_raises_nothing_but_image_errors(format: str) -> None:
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    rng = np.random.default_rng(0)
    data = encode(format)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        early = rng.random() < 0.5  # most structure lies at the beginning
        for at in rng.integers(0, min(len(data), 300) if early else len(data), rng.integers(1, 6)):
            damaged[at] = rng.choice([0, 1, 0x7F, 0xFF])
        if rng.random() < 0.3:
            at = int(rng.integers(len(damaged)))
            del damaged[at : at + int(rng.integers(1, 40))]
        try:
            shape = read_photo(bytes(damaged), 32, max_pixels=1_000_000).shape
        except ImageError:
            refused += 1
        else:
            assert len(shape) == 3
            assert shape[2] == 3
    assert 0 < refused < 150


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"I am no photo\n" * 20, id="text"),
        pytest.param(b"\0" * 1000, id="zeros"),
        pytest.param(b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", id="SVG"),
        pytest.param(b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", id="PDF"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 640 480\n%%EndComments\n", id="EPS"),
        pytest.param(b"<html><body>404</body></html>", id="HTML"),
        pytest.param(b"\xff\xd8\xff", id="JPEG marker alone"),
    ],
)
def test_what_is_no_photo(data: bytes, tmp_path: Path) -> None:
    assert reason(data) == "not an image that can be read"
    assert reason(io.BytesIO(data)) == "not an image that can be read"
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    assert reason(path) == "not an image that can be read"


@pytest.mark.parametrize("format", ["EPS", "ICO", "PPM", "TGA", "PCX", "JPEG2000", "PDF"])
def test_other_formats_are_not_decoded(format: str) -> None:
    assert reason(encode(format)) == "not an image that can be read"


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    assert reason(path) == reason(str(path)) == reason(b"") == "empty file"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert reason(tmp_path / "none.jpg") == "no such file"
    assert reason(tmp_path) == "a folder, not a photo"
    assert reason(tmp_path / "none" / "none.jpg") == "no such file"


def test_impossible_path_is_an_error() -> None:
    assert "damaged image" in reason("a\0b.jpg")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(encode("JPEG"))
    path.chmod(0)
    assert reason(path) == "no permission to read it"


@pytest.mark.parametrize("size", [(15, 100), (100, 15), (1, 1)])
def test_tiny_photo(size: tuple[int, int]) -> None:
    assert reason(encode("PNG", size)) == f"{size[0]}×{size[1]} is too small, 16 px a side at least"


def test_smallest_photo() -> None:
    assert read_photo(encode("PNG", (16, 16))).shape == (16, 16, 3)
    assert read_photo(encode("PNG", (2000, 16)), 640).shape == (16, 640, 3)


@pytest.mark.usefixtures("own_limit", "no_decoding")
def test_enormous_png_is_refused_by_its_header() -> None:
    for read in (read_photo, open_photo):
        with pytest.raises(TooManyPixels, match=r"^50000×50000 is more than 400 million pixels$"):
            read(png_header(50_000, 50_000))  # and no warning of Pillow's: warnings are errors here


@pytest.mark.usefixtures("no_decoding")
def test_enormous_png_is_refused_by_pillows_limit_too() -> None:
    with pytest.raises(TooManyPixels, match=r"^more than 178\.957 million pixels$"):
        read_photo(png_header(50_000, 50_000))
    with pytest.raises(TooManyPixels, match=r"^more than 100 million pixels$"):
        read_photo(png_header(50_000, 50_000), max_pixels=100_000_000)


@pytest.mark.usefixtures("own_limit")
def test_own_limit_may_exceed_pillows() -> None:
    with open_photo(png_header(19_000, 20_000)) as image:
        assert image.size == (19_000, 20_000)
    with pytest.raises(TooManyPixels, match=r"^9000×10000 is more than 80 million pixels$"):
        open_photo(png_header(9_000, 10_000), max_pixels=80_000_000)


def test_pillow_warns_of_large_photos_unless_its_limit_is_off() -> None:
    with pytest.warns(Image.DecompressionBombWarning), open_photo(png_header(10_000, 10_000)) as image:
        assert image.size == (10_000, 10_000)


def test_pixel_limit_is_inclusive() -> None:
    data = encode("PNG", (80, 64))
    assert read_photo(data, max_pixels=80 * 64).shape == (64, 80, 3)
    with pytest.raises(TooManyPixels):
        read_photo(data, max_pixels=80 * 64 - 1)


def test_callers_stream_stays_open_when_refused() -> None:
    for data, limit in (
        (encode("PNG"), 10),
        (encode("PNG", (8, 8)), 10_000),
        (b"text", 10),
        (encode("PNG")[:900], 9999),
    ):
        stream = io.BytesIO(data)
        assert reason(stream, max_pixels=limit)
        assert not stream.closed


def test_every_reason_is_an_image_error_of_one_line() -> None:
    assert issubclass(TooManyPixels, ImageError)
    for data in (b"", b"text", encode("PNG")[:500], encode("AVIF")[:400], png_header(5, 5)):
        assert "\n" not in reason(data)

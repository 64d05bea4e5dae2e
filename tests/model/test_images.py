"""Every kind of photo becomes the same upright 8-bit RGB array."""

import io
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, JpegImagePlugin

from model.images import open_photo, read_photo, target_size

ORIENTATION = 0x0112
RED, BLUE = (230, 20, 20), (20, 20, 230)

# What must have been done to an upright image to make a camera write this orientation.
UNTURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def quarters() -> NDArray[np.uint8]:
    """64×48, each quarter of another colour: no turn or flip looks like another."""
    image = np.empty((48, 64, 3), np.uint8)
    image[:24, :32], image[:24, 32:] = RED, (20, 230, 20)
    image[24:, :32], image[24:, 32:] = BLUE, (200, 200, 200)
    return image


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def plain(mode: str, colour: Any, size: tuple[int, int] = (40, 32)) -> Image.Image:
    return Image.new(mode, size, colour)


def off(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("image_size", [640, 32])
def test_photo_stands_upright(format: str, orientation: int, image_size: int) -> None:
    upright = Image.fromarray(quarters())
    stored = upright.transpose(UNTURN[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "AVIF": {"quality": 95}}
    options["JPEG"] = {"quality": 95, "subsampling": 0}
    got = read_photo(encode(stored, format, exif=exif, **options.get(format, {})), image_size)
    want = read_photo(encode(upright, "PNG"), image_size)
    assert got.shape == ((48, 64, 3) if image_size == 640 else (24, 32, 3))
    assert off(got, want) < 6


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_tiff_is_turned_once_however_it_is_compressed(compression: str | None, tmp_path: Path) -> None:
    stored = Image.fromarray(quarters()).transpose(Image.Transpose.ROTATE_90)
    path = tmp_path / "photo.tif"
    stored.save(path, compression=compression, tiffinfo={ORIENTATION: 6})
    assert off(read_photo(path), quarters()) < 6


def test_big_turned_jpeg_is_upright_after_draft_mode() -> None:
    upright = Image.fromarray(quarters()).resize((1600, 1200), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encode(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)
    got = read_photo(data, 160)
    assert got.shape == (120, 160, 3)
    assert off(got, read_photo(encode(upright, "PNG"), 160)) < 4


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_leaves_the_photo(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(Image.fromarray(quarters()), "PNG", exif=exif)
    np.testing.assert_array_equal(read_photo(data), quarters())


@pytest.mark.filterwarnings(
    "ignore:Corrupt EXIF data", "ignore:Truncated File Read", "ignore:Tag data larger"
)
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"garbage",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 9,
        b"MM\0*",
    ],
)
def test_damaged_exif_does_not_cost_the_photo(exif: bytes) -> None:
    data = encode(Image.fromarray(quarters()), "JPEG", exif=b"Exif\0\0" + exif, quality=95)
    assert off(read_photo(data), quarters()) < 6


def test_orientation_of_another_type_leaves_the_photo() -> None:
    entry = struct.pack("<HHI4s", ORIENTATION, 2, 4, b"six\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    data = encode(Image.fromarray(quarters()), "JPEG", exif=exif, quality=95)
    assert off(read_photo(data), quarters()) < 6


def coloured() -> Iterator[Any]:
    """(what it is, bytes, the one colour it must have, tolerance)"""
    alpha = 128
    half = [round((c * alpha + 255 * (255 - alpha)) / 255) for c in RED]
    grey_half = [round((100 * alpha + 255 * (255 - alpha)) / 255)] * 3
    yield "grey", encode(plain("L", 100), "PNG"), [100] * 3, 0
    yield "grey JPEG", encode(plain("L", 100), "JPEG"), [100] * 3, 1
    yield "LA, opaque", encode(plain("LA", (100, 255)), "PNG"), [100] * 3, 0
    yield "LA, half", encode(plain("LA", (100, alpha)), "PNG"), grey_half, 1
    yield "LA, clear", encode(plain("LA", (0, 0)), "PNG"), [255] * 3, 0
    yield "RGBA, opaque", encode(plain("RGBA", (*RED, 255)), "PNG"), RED, 0
    yield "RGBA, half", encode(plain("RGBA", (*RED, alpha)), "PNG"), half, 1
    yield "RGBA, clear", encode(plain("RGBA", (0, 0, 0, 0)), "PNG"), [255] * 3, 0
    yield "RGBA, half, WebP", encode(plain("RGBA", (*RED, alpha)), "WEBP", lossless=True), half, 1
    yield "RGBA, half, TIFF", encode(plain("RGBA", (*RED, alpha)), "TIFF"), half, 1
    yield "RGBA, half, AVIF", encode(plain("RGBA", (*RED, alpha)), "AVIF", quality=100), half, 4
    yield "RGB, keyed", encode(plain("RGB", RED), "PNG", transparency=RED), [255] * 3, 0
    yield "RGB, other key", encode(plain("RGB", RED), "PNG", transparency=BLUE), RED, 0
    yield "grey, keyed", encode(plain("L", 100), "PNG", transparency=100), [255] * 3, 0
    palette = plain("P", 0)
    palette.putpalette([*RED, *BLUE])
    yield "palette", encode(palette, "PNG"), RED, 0
    yield "palette, clear", encode(palette, "PNG", transparency=0), [255] * 3, 0
    yield "palette, half", encode(palette, "PNG", transparency=bytes([alpha, 255])), half, 1
    yield "palette, clear, GIF", encode(palette, "GIF", transparency=0), [255] * 3, 0
    yield "palette, BMP", encode(palette, "BMP"), RED, 0
    yield "CMYK JPEG, red", encode(plain("CMYK", (0, 255, 255, 0)), "JPEG", quality=95), [255, 0, 0], 4
    yield "CMYK JPEG, white", encode(plain("CMYK", (0, 0, 0, 0)), "JPEG", quality=95), [255] * 3, 2
    yield "CMYK TIFF, blue", encode(plain("CMYK", (255, 255, 0, 0)), "TIFF"), [0, 0, 255], 2
    yield "YCbCr TIFF", encode(plain("RGB", RED).convert("YCbCr"), "TIFF"), RED, 3
    yield "1 bit, white", encode(plain("1", 1), "PNG"), [255] * 3, 0
    yield "1 bit, black", encode(plain("1", 0), "PNG"), [0] * 3, 0
    yield "1 bit, fax", encode(plain("1", 1), "TIFF", compression="group4"), [255] * 3, 0
    yield "16 bit PNG", encode(Image.fromarray(np.full((32, 40), 100 * 257, np.uint16)), "PNG"), [100] * 3, 0
    yield (
        "16 bit TIFF",
        encode(Image.fromarray(np.full((32, 40), 100 * 257, np.uint16)), "TIFF"),
        [100] * 3,
        0,
    )
    yield "16 bit, dark", encode(Image.fromarray(np.full((32, 40), 257, np.uint16)), "PNG"), [1] * 3, 0
    yield "16 bit, Motorola", encode(plain("I;16B", 100 * 257), "TIFF"), [100] * 3, 0
    yield "float, 0–1", encode(Image.fromarray(np.full((32, 40), 0.5, np.float32)), "TIFF"), [128] * 3, 0
    yield "float, 0–255", encode(Image.fromarray(np.full((32, 40), 99.6, np.float32)), "TIFF"), [100] * 3, 0
    yield (
        "float, 0–65535",
        encode(Image.fromarray(np.full((32, 40), 25700, np.float32)), "TIFF"),
        [100] * 3,
        0,
    )
    yield "float, negative", encode(Image.fromarray(np.full((32, 40), -3, np.float32)), "TIFF"), [0] * 3, 0
    yield "float, none", encode(Image.fromarray(np.full((32, 40), np.nan, np.float32)), "TIFF"), [0] * 3, 0


@pytest.mark.parametrize(
    ("data", "colour", "tolerance"), [pytest.param(*case[1:], id=case[0]) for case in coloured()]
)
def test_every_colour_mode_becomes_rgb(data: bytes, colour: list[int], tolerance: int) -> None:
    got = read_photo(data)
    assert got.shape == (32, 40, 3)
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - np.array(colour)).max() <= tolerance


def test_16_bit_keeps_its_gradient() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (20, 1))
    np.testing.assert_array_equal(read_photo(encode(Image.fromarray(ramp), "PNG"))[..., 0], ramp // 257)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_first_frame_of_an_animation(format: str) -> None:
    data = encode(plain("RGB", RED), format, save_all=True, append_images=[plain("RGB", BLUE)])
    with open_photo(data) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert off(read_photo(data), np.full((32, 40, 3), RED, np.uint8)) < 6


def test_first_picture_of_a_multi_picture_jpeg() -> None:
    data = encode(plain("RGB", RED), "MPO", save_all=True, append_images=[plain("RGB", BLUE)])
    assert off(read_photo(data), np.full((32, 40, 3), RED, np.uint8)) < 4


def test_heic() -> None:
    heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    heif.from_pillow(Image.fromarray(quarters())).save(stream, quality=95)
    assert off(read_photo(stream.getvalue()), quarters()) < 6
    assert read_photo(stream.getvalue(), 32).shape == (24, 32, 3)


@pytest.mark.parametrize(
    ("size", "image_size", "want"),
    [
        ((1000, 500), 640, (640, 320)),
        ((500, 1000), 640, (320, 640)),
        ((640, 480), 640, (640, 480)),
        ((50, 40), 640, (50, 40)),
        ((641, 480), 640, (640, 479)),
        ((4000, 16), 640, (640, 16)),
        ((3, 2), 640, (16, 16)),
    ],
)
def test_target_size(size: tuple[int, int], image_size: int, want: tuple[int, int]) -> None:
    assert target_size(*size, image_size) == want


@pytest.mark.parametrize(
    ("size", "image_size", "min_size", "want"),
    [
        ((100, 50), 640, 256, (256, 128)),
        ((50, 100), 640, 256, (128, 256)),
        ((300, 50), 640, 256, (300, 50)),
        ((100, 50), 64, 256, (64, 32)),
        ((1000, 500), 640, 256, (640, 320)),
        ((100, 50), 640, 0, (100, 50)),
    ],
)
def test_small_photos_are_enlarged_on_request(
    size: tuple[int, int], image_size: int, min_size: int, want: tuple[int, int]
) -> None:
    assert target_size(*size, image_size, min_size) == want
    data = encode(plain("RGB", RED, size), "PNG")
    assert read_photo(data, image_size, min_size).shape == (want[1], want[0], 3)


def test_never_enlarged_and_unresized_pixels_are_kept() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    np.testing.assert_array_equal(read_photo(encode(Image.fromarray(image), "PNG"), 640), image)


@pytest.mark.parametrize("image_size", [64, 333, 480])
def test_longest_side_is_the_image_size(image_size: int) -> None:
    data = encode(plain("RGB", RED, (900, 700)), "JPEG")
    assert read_photo(data, image_size).shape == (round(image_size * 7 / 9), image_size, 3)


def test_big_jpeg_is_decoded_small(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (2400, 1800), (90, 120, 60))
    ImageDraw.Draw(picture).ellipse((300, 200, 2000, 1500), fill=(200, 80, 40))
    decoded: list[tuple[int, int]] = []
    prepare = JpegImagePlugin.JpegImageFile.load_prepare

    def spy(image: JpegImagePlugin.JpegImageFile) -> None:
        decoded.append(image.size)
        prepare(image)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load_prepare", spy)
    got = read_photo(encode(picture, "JPEG", quality=95), 400)
    assert decoded == [(600, 450)]  # a quarter; an eighth would be below the target
    assert off(got, np.asarray(picture.resize((400, 300), Image.Resampling.BICUBIC))) < 1.5


def test_bytes_path_text_and_stream_give_the_same(tmp_path: Path) -> None:
    data = encode(Image.fromarray(quarters()), "JPEG", quality=95)
    path = tmp_path / "Straße 1.jpg"
    path.write_bytes(data)
    want = read_photo(data)
    np.testing.assert_array_equal(read_photo(path), want)
    np.testing.assert_array_equal(read_photo(str(path)), want)
    np.testing.assert_array_equal(read_photo(io.BytesIO(data)), want)
    with path.open("rb") as stream:
        np.testing.assert_array_equal(read_photo(stream), want)
        assert not stream.closed
        np.testing.assert_array_equal(read_photo(stream), want)  # again, from the beginning


def test_format_is_that_of_the_bytes_not_of_the_name(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(Image.fromarray(quarters()), "PNG"))
    np.testing.assert_array_equal(read_photo(path), quarters())


def test_array_is_the_callers_own() -> None:
    got = read_photo(encode(Image.fromarray(quarters()), "PNG"))
    got[0, 0] = 7
    assert got.flags.c_contiguous
    assert got.flags.owndata


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    paths = []
    for i in range(24):
        image = Image.fromarray(rng.integers(0, 256, (90 + i, 120, 3), np.uint8))
        format = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF")[i % 6]
        paths.append(tmp_path / f"{i}.{format.lower()}")
        image.save(paths[-1], format)
    want = [read_photo(path, 64) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda path: read_photo(path, 64), paths * 4))
    for i, array in enumerate(got):
        np.testing.assert_array_equal(array, want[i % 24])

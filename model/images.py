"""Photos as upright 8-bit RGB arrays: the pre-processing that training, indexing and serving share."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from model.errors import ImageError, TooManyPixels

DEFAULT_IMAGE_SIZE = 640
MAX_PIXELS = 400_000_000
MAX_SCANS = 200  # of a JPEG: a progressive one has about ten, and each costs a pass over all pixels
MIN_IMAGE_SIZE = 256
"""Smaller photos are enlarged to this: recall@1 rose by 2 to 10 points on photos of 97 and 160 px."""
MIN_SIDE = 16  # VGG16's four poolings leave nothing of a smaller side

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "HEIF", "GIF", "BMP")

Source = Path | str | bytes | BinaryIO


def use_own_pixel_limit() -> None:
    """Disable Pillow's process-wide pixel limit, for programs that read photos only through this module.

    Pillow warns above 89 and refuses above 179 million pixels. `open_photo` has its own `max_pixels`, checked
    before decoding.
    """
    Image.MAX_IMAGE_PIXELS = None


def open_photo(source: Source, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a photo: read the header, check the number of pixels, decode nothing.

    Raises:
        ImageError: it is missing, empty, not an image of a known format, or below 16 px.
        TooManyPixels: its header has more than `max_pixels` pixels.
    """
    _register_heif()
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        image = Image.open(stream, formats=[name for name in FORMATS if _known(name)])
    except Image.DecompressionBombError:
        allowed = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise TooManyPixels(f"more than {_millions(allowed)} million pixels") from None
    except UnidentifiedImageError:
        raise ImageError(_unidentified(source)) from None
    except Exception as error:  # decoders raise any error for a damaged file
        raise ImageError(_reason(error)) from error
    width, height = image.size
    if width * height > max_pixels:
        with image:  # closes what it opened, not a caller's stream
            raise TooManyPixels(f"{width}×{height} is more than {_millions(max_pixels)} million pixels")
    if min(width, height) < MIN_SIDE:
        with image:
            raise ImageError(f"{width}×{height} is too small, {MIN_SIDE} px a side at least")
    return image


def read_photo(
    source: Source,
    image_size: int = DEFAULT_IMAGE_SIZE,
    min_size: int = 0,
    *,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Decode a photo for the network.

    It is turned upright by EXIF. Grey, palette, CMYK and 16-bit photos become 8-bit RGB; transparency becomes
    white; of an animation, the first frame is read. The longest side is shrunk to `image_size` pixels, or
    enlarged to `min_size`.

    Returns:
        uint8, H W 3, RGB.

    Raises:
        ImageError: see `open_photo`; also a photo that is truncated or damaged inside.
    """
    with open_photo(source, max_pixels=max_pixels) as image:
        return pixels(image, image_size, min_size)


def pixels(image: Image.Image, image_size: int, min_size: int = 0) -> NDArray[np.uint8]:
    """Return the pixels of an opened photo, as `read_photo` does. Raises ImageError."""
    try:
        return _pixels(image, image_size, min_size)
    except ImageError:
        raise
    except Exception as error:  # decoders raise any error for a damaged file
        raise ImageError(_reason(error)) from error


def target_size(width: int, height: int, image_size: int, min_size: int = 0) -> tuple[int, int]:
    """Return width and height in pixels with the longest side between `min_size` and `image_size`."""
    longest = max(width, height)
    scale = min(max(longest, min_size), image_size) / longest
    return max(MIN_SIDE, round(width * scale)), max(MIN_SIDE, round(height * scale))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height in pixels after turning by EXIF; nothing is decoded."""
    width, height = image.size
    turn = orientation(image)
    return (height, width) if turn in _SIDEWAYS else (width, height)


_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)


def _pixels(image: Image.Image, image_size: int, min_size: int) -> NDArray[np.uint8]:
    if image.format in ("JPEG", "MPO"):
        jpeg_data(image)
    size = target_size(*image.size, image_size, min_size)
    image.draft("RGB", size)  # JPEG only: decodes at ½, ¼ or ⅛ if that is still large enough
    image.load()
    upright = orientation(image)  # only now: Pillow turns a TIFF while loading it, and drops its tag
    rgb = _to_rgb(image)
    if rgb.size != size:
        rgb = rgb.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    if upright is not None:
        rgb = rgb.transpose(upright)
    return np.array(rgb, dtype=np.uint8)  # a copy: Pillow's own buffer is read-only


def jpeg_data(image: Image.Image) -> bytes:
    """Return the bytes of an opened JPEG.

    Raises:
        ImageError: it has thousands of scans: a few bytes each, they would take the decoder many minutes.
    """
    file = image.fp if isinstance(image, ImageFile.ImageFile) else None
    if file is None:
        return b""
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    scans = data.count(b"\xff\xda")  # never within compressed data: there 0xff is followed by 0
    if scans > MAX_SCANS:
        raise ImageError(f"a JPEG of {scans} scans, {MAX_SCANS} at most are read")
    return data


def orientation(image: Image.Image) -> Image.Transpose | None:
    """Return how the photo must be turned, by its EXIF."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        return turns.get(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF raises any error; the pixels are still good
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit greys (0–65535) and float greys (0–1) to 0–255; leave 0–255 as it is."""
    values: NDArray[np.floating] = np.nan_to_num(np.asarray(image, dtype=np.float32))
    top = float(values.max(initial=0.0))
    if image.mode.startswith("I;16") or top > 255:
        values = values / 257
    elif image.mode == "F" and top <= 1:
        values = values * 255
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


@functools.cache
def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()


@functools.cache
def _known(name: str) -> bool:
    Image.init()
    return name in Image.OPEN


def _unidentified(source: Source) -> str:
    size = len(source) if isinstance(source, bytes) else None
    if isinstance(source, Path | str):
        size = Path(source).stat().st_size
    return "empty file" if size == 0 else "not an image that can be read"


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, IsADirectoryError):
        return "a folder, not a photo"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    text = str(error).strip() or type(error).__name__
    return "truncated image" if "truncated" in text.lower() else f"damaged image ({text})"


def _millions(pixels: int) -> str:
    return f"{pixels / 1e6:g}"

"""JPEGs decoded and resized on a GPU by nvJPEG; other photos are read by `model.images.read_photo`."""

from __future__ import annotations

import functools
import io
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor
from torch.nn import functional as F

from model.images import (
    DEFAULT_IMAGE_SIZE,
    MAX_PIXELS,
    Source,
    jpeg_data,
    open_photo,
    orientation,
    pixels,
    read_photo,
    target_size,
)

Image = NDArray[np.uint8] | Tensor
"""uint8, H W 3, RGB, in memory or on a GPU."""
Read = Callable[..., Image]
"""`read_photo`, or a `GpuReader` in its place."""

GPU_PIXELS = 50_000_000
"""Most pixels of a photo that is decoded on the GPU: in fp32 they take 12 bytes each, beside the network."""
ALIKE = 3.0
"""Largest mean difference of a pixel from the CPU's, of 256, at which the GPU is used."""
_FRACTIONS = (8, 4, 2)  # scales at which the CPU's decoder decodes, too

log = logging.getLogger(__name__)


@functools.cache
def reader(device: torch.device) -> Read:
    """Return the reader of photos for networks on this device.

    A `GpuReader` if there is a GPU and TorchCodec, and both work correctly; otherwise `read_photo`.
    """
    if device.type != "cuda" or find_spec("torchcodec") is None:
        return read_photo
    try:
        found = GpuReader(device)
        trouble = found.trouble()
    except (ImportError, OSError, RuntimeError) as error:  # TorchCodec built for another PyTorch
        trouble = str(error).partition("\n")[0]
    if trouble is None:
        return found
    log.warning("JPEGs are decoded on the CPU: on %s, %s", device, trouble)
    return read_photo


class GpuReader:
    """Reads photos like `read_photo`, and leaves them on the GPU. For any number of threads.

    A JPEG is decoded at full size and averaged where the CPU's decoder computes a half, a quarter or an
    eighth; its pixels equal the CPU's to a few of 256 steps. Photos that nvJPEG does not take or fails on,
    and truncated ones, are read on the CPU, which reports errors.
    """

    def __init__(self, device: torch.device) -> None:
        """`device`: a GPU; on a CPU, libjpeg computes the same."""
        from torchcodec.decoders import decode_jpeg  # type: ignore[attr-defined]

        self.device = device
        self._decode: Callable[..., Any] = decode_jpeg
        self._own = threading.local()

    def __call__(
        self,
        source: Source,
        image_size: int = DEFAULT_IMAGE_SIZE,
        min_size: int = 0,
        *,
        max_pixels: int = MAX_PIXELS,
    ) -> Image:
        """See `read_photo`; a photo decoded on the GPU is a tensor there, H W 3, and ready."""
        with open_photo(source, max_pixels=max_pixels) as image:
            found = self._on_gpu(image, target_size(*image.size, image_size, min_size))
            return pixels(image, image_size, min_size) if found is None else found

    def trouble(self) -> str | None:
        """Test the GPU's pixels on a picture; return why they cannot be used, or None."""
        y, x = np.mgrid[:240, :320]
        picture = Pillow.fromarray(np.stack([x % 256, y, (x + y) % 256], 2).astype(np.uint8))
        for mode, progressive in (("RGB", False), ("RGB", True), ("L", False)):
            file = io.BytesIO()
            picture.convert(mode).save(file, "JPEG", quality=95, progressive=progressive)
            for size in (320, 64):
                with open_photo(file) as image:
                    found = self._on_gpu(image, target_size(*image.size, size))
                if found is None:
                    return "no JPEG can be decoded"
                away = np.abs(found.cpu().numpy().astype(float) - read_photo(file, size)).mean()
                if away > ALIKE:
                    return f"the pixels of a JPEG are {away:.1f} of 256 off"
        return None

    @torch.inference_mode()
    def _on_gpu(self, image: Pillow.Image, size: tuple[int, int]) -> Tensor | None:
        """Return the photo's pixels, H W 3, with this `size` (width, height) and upright; None if the CPU
        must read it.
        """
        if not _is_common(image):
            return None
        try:
            data = bytearray(jpeg_data(image))
            scan = _hide_exif(data)  # otherwise TorchCodec turns the photo before it is resized
            if scan is None or data.find(b"\xff\xd9", scan) < 0:  # a truncated JPEG
                return None
            with self._aside():
                decoded = self._decode(torch.frombuffer(data, dtype=torch.uint8), device=self.device)
                return turned(resized(decoded, size), orientation(image)).contiguous()
        except (RuntimeError, OSError) as error:  # nvJPEG cannot read it, or the GPU has no memory for it
            log.debug("read on the CPU: %s", error)
            return None

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Within this, the GPU works for this thread beside the network; done at the end."""
        if self.device.type != "cuda":
            yield
            return
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._own.stream):
            yield
            self._own.stream.synchronize()


def resized(decoded: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a decoded JPEG (uint8, 3 H W) to `size` (width, height) as Pillow does: uint8, h w 3.

    Pillow decodes the JPEG at the smallest of ½, ¼ and ⅛ that is not smaller than needed; here means of
    squares of pixels replace that. The rest is its bicubic filter, widened if the photo shrinks.
    """
    width, height = size
    fraction = min(decoded.shape[2] // width, decoded.shape[1] // height)
    x = decoded[None].float()  # 1 3 H W
    for step in _FRACTIONS:
        if fraction >= step:
            x = F.avg_pool2d(x, step, ceil_mode=True)
            break
    if x.shape[2:] != (height, width):
        x = F.interpolate(x, (height, width), mode="bicubic", align_corners=False, antialias=True)
    return x[0].round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)


def turned(image: Tensor, turn: Pillow.Transpose | None) -> Tensor:
    """Turn an image (H W 3) as Pillow's `transpose` does."""
    match turn:
        case Pillow.Transpose.FLIP_LEFT_RIGHT:
            return image.flip(1)
        case Pillow.Transpose.FLIP_TOP_BOTTOM:
            return image.flip(0)
        case Pillow.Transpose.ROTATE_90:
            return image.rot90(1)
        case Pillow.Transpose.ROTATE_180:
            return image.rot90(2)
        case Pillow.Transpose.ROTATE_270:
            return image.rot90(3)
        case Pillow.Transpose.TRANSPOSE:
            return image.transpose(0, 1)
        case Pillow.Transpose.TRANSVERSE:
            return image.rot90(2).transpose(0, 1)
    return image


def _is_common(image: Pillow.Image) -> bool:
    """Whether nvJPEG reads it like libjpeg: a JPEG in YCbCr or grey that the GPU has memory for."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return False
    components = [layer[0] for layer in getattr(image, "layer", [])]
    in_rgb = image.info.get("adobe_transform") == 0 or components == list(b"RGB")
    return not (image.mode == "RGB" and in_rgb) and image.width * image.height <= GPU_PIXELS


def _hide_exif(data: bytearray) -> int | None:
    """Hide a JPEG's EXIF from decoders (APP1 → APP15), and return the offset of its pixels.

    None if its headers are not consecutive.
    """
    at = 2
    while data[at : at + 1] == b"\xff":
        if data[at + 1 : at + 2] == b"\xda":
            return at
        if data[at + 1 : at + 2] == b"\xe1":
            data[at + 1] = 0xEF
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None

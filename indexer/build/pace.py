"""How fast this machine is."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass

import numpy as np
from PIL import Image

from indexer.options import FitOptions
from indexer.photos.reader import Reader

SECONDS = 4.0
BATCHES = 16
"""Whole batches are timed, for about so many seconds, so many at most."""
LARGE = 2048
"""Rows and columns of the matrices that are multiplied."""


@dataclass(frozen=True)
class Pace:
    """What a machine does in a second."""

    photos: float
    """Decoded and embedded."""
    multiplications: float
    """In fp32, of large matrices, a multiplication and an addition counted as one."""


def measure_pace(options: FitOptions, device: str = "auto", precision: str = "auto") -> Pace:
    """Run the network, and multiply matrices, for a few seconds.

    Raises:
        ModelError: no such device or precision.
    """
    from indexer.build.fit import unfitted_model
    from model.embedder import Embedder, with_ranges

    photos = [_photo(number, options.image_size) for number in range(4)]
    reader = Reader(options.image_size, min_image_size=options.min_image_size)
    model = with_ranges(
        unfitted_model(options), [image for photo in photos for image in reader(("", photo))], device
    )
    embedder = Embedder(model, device=device, precision=precision)
    items = [(str(number), photos[number % len(photos)]) for number in range(BATCHES * embedder.batch_size)]
    started, done = 0.0, -embedder.batch_size  # the first batch is to warm up
    for batch in embedder.stream(items, reader):
        done += len(batch)
        started = started or time.perf_counter()
        if done > 0 and time.perf_counter() - started > SECONDS:
            break
    return Pace(done / (time.perf_counter() - started), _multiplications())


def _photo(number: int, side: int) -> bytes:
    """A JPEG of clouds, four by three, twice as large as the network takes it."""
    coarse = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((2 * side, 3 * side // 2), Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=90
    )
    return file.getvalue()


def _multiplications() -> float:
    matrix = np.random.default_rng(0).standard_normal((LARGE, LARGE), np.float32)
    matrix @ matrix
    started = time.perf_counter()
    for _ in range(3):
        matrix @ matrix
    return 3 * LARGE**3 / (time.perf_counter() - started)

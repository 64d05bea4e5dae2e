"""Estimates of the time, disk, memory and machines that a collection will need."""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass

import numpy as np
from PIL import Image

from indexer.confidence.self_queries import QUERIES
from indexer.errors import UsageError
from indexer.options import FitOptions, SearchOptions
from indexer.photos.reader import Reader
from indexer.snapshots.choice import StoreChoice, choose, lists_for
from indexer.snapshots.compressed import CONSTRUCTION, HELD_OUT, LINKS, POINTS_A_LIST
from model.embedder import Embedder, with_ranges
from model.layers.local_features import DIM
from model.modelfile import PlaceModel

CATALOGUE_BYTES = 700
"""Bytes of a photo with its file, descriptor and place; measured on 100,000 photos."""
FILTER_BYTES = 60
"""Bytes of a descriptor's columns for filters, on disk, and in memory after the first filtered query."""
MODEL_BYTES = 96 * 2**20
"""Bytes of a model file with clusters and a reduction to 512 dimensions."""
SPOOL_BYTES = 500 * 8 * 2**20 + 3596 * 32_768 * 4
"""Most bytes that the fit keeps of its photos until it is done, at 640×640."""
NETWORK_BYTES = 1200 * 2**20
"""Bytes of a process with the network, on a CPU."""
FEATURE_BYTES = DIM + 4
LINK_COST = 30
"""Multiply-adds of a matrix product in the time of one while HNSW nodes are linked; measured."""
ITERATIONS = 10
"""Iterations of the k-means that makes inverted lists."""
SECONDS = 4.0
"""Duration of the speed measurement; it ends at the next whole batch."""
BATCHES = 16
"""Most batches of the speed measurement."""
LARGE = 2048
"""Rows and columns of the matrices that are multiplied."""


@dataclass(frozen=True)
class Pace:
    """Speed of a machine."""

    photos: float
    """Photos that are decoded and embedded per second."""
    multiplications: float
    """Multiply-adds per second in fp32 products of large matrices."""


@dataclass(frozen=True)
class Plan:
    """Estimates in seconds and bytes."""

    photos: int
    descriptors: int
    embedding_s: float
    search_s: float
    """Time to calibrate and to build the search structure."""
    shards: int
    local_features: int
    search_file: int
    """Files of a snapshot: search structure and columns for filters."""
    catalogue: int
    model: int
    temporary: int
    """Disk that is needed only until the model is fitted."""
    search_memory: int
    filter_memory: int
    network_memory: int
    factory: str
    machines: int
    """Machines that must embed to keep the time limit."""

    @property
    def disk(self) -> int:
        return self.shards + self.local_features + self.search_file + self.catalogue + self.model

    @property
    def memory(self) -> int:
        return self.search_memory + self.filter_memory + self.network_memory


def make_plan(
    photos: int,
    pace: Pace,
    fit: FitOptions | None = None,
    search: SearchOptions | None = None,
    within_s: float | None = None,
) -> Plan:
    """Estimate the needs of an index of so many photos.

    Args:
        within_s: time limit in seconds for embedding; None: one machine, without a limit.

    Raises:
        UsageError: no photo, no time, or more descriptors than fit the memory.
    """
    fit, search = fit or FitOptions(), search or SearchOptions()
    if photos < 1:
        raise UsageError(f"`photos` must be at least 1, got {photos}")
    if within_s is not None and not within_s > 0:
        raise UsageError("`within` must be above 0 hours")
    descriptors = photos * (fit.panoramas or 1)
    choice = choose(descriptors, fit.dim, search.memory_bytes(), search.recall, hnsw=search.hnsw)
    embedding_s = descriptors / pace.photos
    return Plan(
        photos=photos,
        descriptors=descriptors,
        embedding_s=embedding_s,
        search_s=_search_s(choice, descriptors, fit.dim, search, pace),
        shards=descriptors * fit.dim * 2,
        local_features=descriptors * fit.local_features * FEATURE_BYTES,
        search_file=choice.memory + descriptors * FILTER_BYTES,
        catalogue=photos * CATALOGUE_BYTES,
        model=MODEL_BYTES,
        temporary=int(SPOOL_BYTES * min(1.0, photos / 4096)),
        search_memory=choice.memory,
        filter_memory=descriptors * FILTER_BYTES,
        network_memory=NETWORK_BYTES,
        factory=choice.factory,
        machines=1 if within_s is None else max(1, math.ceil(embedding_s / within_s)),
    )


def _search_s(choice: StoreChoice, descriptors: int, dim: int, search: SearchOptions, pace: Pace) -> float:
    """Estimate calibration, and building and tuning an inverted file or HNSW."""
    multiplications = 2 * QUERIES * descriptors * dim
    if choice.hnsw:
        multiplications += descriptors * (LINK_COST * CONSTRUCTION * LINKS + HELD_OUT) * dim
    elif choice.compressed and search.recall < 1:
        lists = lists_for(descriptors, dim, search.memory_bytes())
        multiplications += ITERATIONS * POINTS_A_LIST * lists * lists * dim
        multiplications += descriptors * (lists + HELD_OUT) * dim
    return multiplications / pace.multiplications


def measure_pace(options: FitOptions, device: str = "auto", precision: str = "auto") -> Pace:
    """Measure the speed of this machine by a few seconds of embedding and of matrix products.

    Raises:
        ModelError: the device or precision is unknown or not available.
    """
    photos = [_photo(number, options.image_size) for number in range(4)]
    reader = Reader(options.image_size, min_image_size=options.min_image_size)
    unfitted = PlaceModel.unfitted(options.model_config())
    model = with_ranges(unfitted, [image for photo in photos for image in reader(("", photo))], device)
    embedder = Embedder(model, device=device, precision=precision)
    items = [(str(number), photos[number % len(photos)]) for number in range(BATCHES * embedder.batch_size)]
    started, done = 0.0, -embedder.batch_size  # the first batch only warms up
    for batch in embedder.stream(items, reader):
        done += len(batch)
        started = started or time.perf_counter()
        if done > 0 and time.perf_counter() - started > SECONDS:
            break
    return Pace(done / (time.perf_counter() - started), _multiplications())


def _photo(number: int, side: int) -> bytes:
    """Return a JPEG of smooth noise, 4:3, twice as large as the network's input."""
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

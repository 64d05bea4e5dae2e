"""What a collection will need, before it is there: time, disk, memory, machines."""

from __future__ import annotations

import math
from dataclasses import dataclass

from indexer.build.pace import Pace
from indexer.confidence.self_queries import QUERIES
from indexer.errors import UsageError
from indexer.options import FitOptions, SearchOptions
from indexer.snapshots.choice import StoreChoice, choose, lists_for
from indexer.snapshots.compressed import CONSTRUCTION, HELD_OUT, LINKS, POINTS_A_LIST
from model.local_features import DIM

CATALOGUE_BYTES = 700
"""Of a photo with its file, descriptor and place; measured on 100,000 photos."""
FILTER_BYTES = 60
"""Of a descriptor's columns, on disk, and in memory once a query is filtered."""
MODEL_BYTES = 96 * 2**20
"""Of a model file with clusters and a reduction to 512 numbers."""
SPOOL_BYTES = 500 * 8 * 2**20 + 3596 * 32_768 * 4
"""Of what the fit keeps of its photos until it is done, at most, at 640×640."""
NETWORK_BYTES = 1200 * 2**20
"""Of a process with the network, on a CPU."""
FEATURE_BYTES = DIM + 4
LINK_COST = 30
"""Multiplications of a matrix product in the time that one takes while a graph is linked; measured."""
ITERATIONS = 10
"""Of the k-means that makes lists."""


@dataclass(frozen=True)
class Plan:
    """Seconds and bytes, estimated."""

    photos: int
    descriptors: int
    embedding_s: float
    search_s: float
    """Of making what is searched."""
    shards: int
    local_features: int
    search_file: int
    """Of a snapshot: what is searched, and columns for filters."""
    catalogue: int
    model: int
    temporary: int
    """While the model is fitted."""
    search_memory: int
    filter_memory: int
    network_memory: int
    factory: str
    machines: int
    """That embed, to be done in the time wanted."""

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
    """What an index of so many photos will need.

    Args:
        within_s: the time in which they are to be embedded; None: however long one machine takes.

    Raises:
        UsageError: no photo, a time that cannot be, or more descriptors than fit the memory.
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
    """Of calibrating, and of fitting, filling and tuning an inverted file, or linking and tuning a graph."""
    multiplications = 2 * QUERIES * descriptors * dim
    if choice.hnsw:
        multiplications += descriptors * (LINK_COST * CONSTRUCTION * LINKS + HELD_OUT) * dim
    elif choice.compressed and search.recall < 1:
        lists = lists_for(descriptors, dim, search.memory_bytes())
        multiplications += ITERATIONS * POINTS_A_LIST * lists * lists * dim
        multiplications += descriptors * (lists + HELD_OUT) * dim
    return multiplications / pace.multiplications

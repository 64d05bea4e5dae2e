"""What kind of FAISS index suits a collection: by its size, the memory it may take and the recall wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from indexer.errors import UsageError
from indexer.snapshots.compressed import LINKS, POINTS_A_LIST
from indexer.snapshots.exact import FLAT

SHARDS = "Shards"
"""No FAISS index: every search reads the shards."""
QUICK_BYTES = 256 * 2**20
"""Descriptors (fp32) up to this are compared one and all: in less time than the network takes for a photo."""
ROW_BYTES = 24
"""Of each descriptor, beside its code: its id, and where it lies."""
LINK_BYTES = 2 * LINKS * 4 * 17 // 16
"""Of a graph's node: links on the lowest level, and what the few on others add."""


@dataclass(frozen=True)
class StoreChoice:
    """A kind of index."""

    factory: str
    """FAISS's description of it, or SHARDS."""
    memory: int
    """Bytes that it keeps in memory."""

    @property
    def hnsw(self) -> bool:
        """Whether it is a graph."""
        return self.factory.startswith("HNSW")

    @property
    def compressed(self) -> bool:
        """Whether it looks descriptors up in the shards."""
        return self.factory != FLAT


def choose(count: int, dim: int, memory: int, recall: float, *, hnsw: bool = False) -> StoreChoice:
    """The kind of index for `count` descriptors of `dim` numbers.

    Exact in memory while that is quick; else an inverted file of codes: RaBitQ's, of a bit a number, or where
    memory is short product quantisation's, of half as much and less. What the codes lose in recall, more
    candidates make up for: their cosines are exact in any case.

    Args:
        memory: bytes that it may keep in memory.
        recall: share of the nearest that is to be found; 1: all, compared one by one.
        hnsw: rather a graph than an inverted file, where it fits the memory.

    Raises:
        UsageError: not even the shortest codes fit.
    """
    flat = StoreChoice(FLAT, count * dim * 4)
    if flat.memory <= min(memory, QUICK_BYTES) or (recall >= 1 and flat.memory <= memory):
        return flat
    if recall >= 1:
        return StoreChoice(SHARDS, count * ROW_BYTES)
    linked = count * (dim + LINK_BYTES + ROW_BYTES)
    if hnsw and linked <= memory:
        return StoreChoice(f"HNSW{LINKS},SQ8", linked)
    lists = lists_for(count, dim, memory)
    fitting = 0
    for kind, code in _codes(dim):
        fitting = count * (code + ROW_BYTES) + lists * dim * 4
        if fitting <= memory:
            return StoreChoice(f"IVF{lists},{kind}", fitting)
    raise UsageError(
        f"`memory` is too small for {count:,} descriptors of {dim} numbers: they need "
        f"{-(-fitting // 2**20):,} MiB"
    )


def lists_for(count: int, dim: int, memory: int) -> int:
    """Lists of an inverted file: about 4√n, a power of two, as many as can be fitted in half the memory."""
    wanted = 1 << round(math.log2(4 * count**0.5))
    most = min(count / POINTS_A_LIST, memory / 2 / (POINTS_A_LIST * dim * 4), 16_384)
    return min(wanted, 1 << max(0, int(most).bit_length() - 1))


def _codes(dim: int) -> list[tuple[str, int]]:
    """Kinds of codes and their bytes, the best first."""
    parts = [dim // share for share in (4, 8, 16) if dim % share == 0]
    return [("RaBitQfs", dim // 8 + 20), *((f"PQ{m}x4fs", m // 2) for m in parts)]

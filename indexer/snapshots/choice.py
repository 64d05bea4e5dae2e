"""Choice of a FAISS index by the size of the collection, the memory and the recall."""

from __future__ import annotations

import math
from dataclasses import dataclass

from indexer.errors import UsageError
from indexer.snapshots.compressed import LINKS, POINTS_A_LIST
from indexer.snapshots.exact import FLAT

SHARDS = "Shards"
"""Description of a store without a FAISS index: every search reads the shards."""
QUICK_BYTES = 256 * 2**20
"""Most bytes of fp32 descriptors that are all compared, which is faster than the network on one photo."""
ROW_BYTES = 24
"""Bytes of a descriptor besides its code: id and slot."""
LINK_BYTES = 2 * LINKS * 4 * 17 // 16
"""Bytes of the links of an HNSW node: lowest level, and a share for higher levels."""


@dataclass(frozen=True)
class StoreChoice:
    """A FAISS index and its memory."""

    factory: str
    """FAISS's description of the index, or SHARDS."""
    memory: int
    """Bytes in memory."""

    @property
    def hnsw(self) -> bool:
        """Whether it is HNSW."""
        return self.factory.startswith("HNSW")

    @property
    def compressed(self) -> bool:
        """Whether descriptors are read from the shards."""
        return self.factory != FLAT


def choose(count: int, dim: int, memory: int, recall: float, *, hnsw: bool = False) -> StoreChoice:
    """Choose an index for `count` descriptors of `dim` numbers.

    Few descriptors are compared exactly, in memory. More are searched by an inverted file of codes: RaBitQ
    with one bit a number, or product quantisation with half a bit or less if memory is short. Shorter codes
    need more candidates for the same recall. The cosines of candidates are always exact.

    Args:
        memory: most bytes in memory.
        recall: share of the nearest descriptors that must be found; 1: all are compared.
        hnsw: choose HNSW instead of an inverted file if it fits the memory.

    Raises:
        UsageError: not even the shortest codes fit the memory.
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
    """Return the number of inverted lists: about 4√n, a power of two, as many as half the memory can fit."""
    wanted = 1 << round(math.log2(4 * count**0.5))
    most = min(count / POINTS_A_LIST, memory / 2 / (POINTS_A_LIST * dim * 4), 16_384)
    return min(wanted, 1 << max(0, int(most).bit_length() - 1))


def _codes(dim: int) -> list[tuple[str, int]]:
    """Return kinds of codes and their bytes, best first."""
    parts = [dim // share for share in (4, 8, 16) if dim % share == 0]
    return [("RaBitQfs", dim // 8 + 20), *((f"PQ{m}x4fs", m // 2) for m in parts)]

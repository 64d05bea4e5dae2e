"""Table of the slots of a snapshot's descriptors, mapped from disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexerError
from indexer.snapshots.store import Floats, Ids, Positions, held
from indexer.storage.files import map_array
from indexer.storage.rows import Slot
from indexer.storage.shards import open_shard, shard_path

BLOCK = 16_384
"""Descriptors in memory at a time while all are read."""

_ROW = np.dtype([("id", "<i8"), ("shard", "<i4"), ("row", "<i4")])


class Rows:
    """Slots of n descriptors in the order of their ids. A descriptor's position is its index here."""

    def __init__(self, shards: Path, dim: int, table: NDArray[Any]) -> None:
        self._shards = shards
        self.dim = dim
        self._table = table

    @classmethod
    def of(cls, shards: Path, dim: int, numbers: Sequence[int], slots: Sequence[Slot]) -> Rows:
        """Make a table of ascending ids and their slots in the folder `shards`."""
        table = np.empty(len(numbers), _ROW)
        table["id"] = numbers
        table["shard"] = [slot.shard for slot in slots]
        table["row"] = [slot.row for slot in slots]
        return cls(shards, dim, table)

    @classmethod
    def load(cls, path: Path, shards: Path, dim: int, *, opened: bool = True) -> Rows:
        """Map a table that `save` wrote.

        Args:
            opened: also map the shards that the table refers to.

        Raises:
            IndexerError: the table or a shard is missing or damaged.
        """
        table = map_array(path, "table of descriptors")
        if table.dtype != _ROW or table.ndim != 1:
            raise IndexerError(f"{path} is no table of descriptors")
        rows = cls(shards, dim, table)
        if opened:
            rows.open()
        return rows

    def save(self, path: Path) -> None:
        """Write the table; not atomic."""
        with path.open("wb") as file:
            np.save(file, self._table)

    def open(self) -> None:
        """Map every shard, so that its descriptors can be read even after its file is deleted.

        Raises:
            IndexerError: a shard is missing, too short or not of this dimension.
        """
        last = self._table["row"].max(initial=-1)
        for shard, opened in self._opened.items():
            if last >= len(opened):  # all shards have the same length when they are made
                raise IndexerError(f"descriptor shard {shard_path(self._shards, shard)} is too short")

    def __len__(self) -> int:
        return len(self._table)

    @cached_property
    def ids(self) -> Ids:
        """Ids of the descriptors, ascending."""
        return np.ascontiguousarray(self._table["id"])

    @property
    def shards(self) -> list[int]:
        """Numbers of the shards with these descriptors."""
        numbers: list[int] = np.unique(self._table["shard"]).tolist()
        return numbers

    def holds(self, ids: Ids) -> NDArray[np.bool_]:
        """Return which of these ids are in the table."""
        return held(self.ids, ids)

    def positions(self, ids: Ids) -> Positions:
        """Return the positions of ids, which must be in the table."""
        return np.searchsorted(self.ids, ids)

    def read(self, positions: Positions) -> Floats:
        """Return the descriptors (n d) at positions."""
        descriptors = np.empty((len(positions), self.dim), np.float32)
        rows = self._table[positions]
        for shard in np.unique(rows["shard"]):
            chosen = rows["shard"] == shard
            descriptors[chosen] = self._opened[int(shard)][rows["row"][chosen]]
        return descriptors

    def blocks(self, positions: Positions | None = None) -> Iterator[Floats]:
        """Yield the descriptors at positions, or all, in order, block by block."""
        count = len(self) if positions is None else len(positions)
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            yield self.read(np.arange(start, stop) if positions is None else positions[start:stop])

    @cached_property
    def _opened(self) -> dict[int, NDArray[np.float16]]:
        return {shard: open_shard(shard_path(self._shards, shard), self.dim) for shard in self.shards}

"""Where a snapshot's descriptors lie in the shards, as a table on disk that is mapped rather than read."""

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
"""Descriptors that are in memory at a time while all are passed through."""

_ROW = np.dtype([("id", "<i8"), ("shard", "<i4"), ("row", "<i4")])


class Rows:
    """n descriptors by id, ascending; a descriptor's position is its number among them, from 0."""

    def __init__(self, shards: Path, dim: int, table: NDArray[Any]) -> None:
        self._shards = shards
        self.dim = dim
        self._table = table

    @classmethod
    def of(cls, shards: Path, dim: int, numbers: Sequence[int], slots: Sequence[Slot]) -> Rows:
        """Of descriptors' ids, ascending, and their slots in the folder `shards`."""
        table = np.empty(len(numbers), _ROW)
        table["id"] = numbers
        table["shard"] = [slot.shard for slot in slots]
        table["row"] = [slot.row for slot in slots]
        return cls(shards, dim, table)

    @classmethod
    def load(cls, path: Path, shards: Path, dim: int, *, opened: bool = True) -> Rows:
        """Map a table that `save` wrote, and unless told otherwise the shards that it names.

        Raises:
            IndexerError: it, or one of the shards, is missing or damaged.
        """
        table = map_array(path, "table of descriptors")
        if table.dtype != _ROW or table.ndim != 1:
            raise IndexerError(f"{path} is no table of descriptors")
        rows = cls(shards, dim, table)
        if opened:
            rows.open()
        return rows

    def save(self, path: Path) -> None:
        """Write the table; not atomic, so write to a temporary name."""
        with path.open("wb") as file:
            np.save(file, self._table)

    def open(self) -> None:
        """Map every shard, so that what others move or delete later can still be read.

        Raises:
            IndexerError: a shard is missing, too short or not of this dimension.
        """
        last = self._table["row"].max(initial=-1)
        for shard, opened in self._opened.items():
            if last >= len(opened):  # all are as long when they are made
                raise IndexerError(f"descriptor shard {shard_path(self._shards, shard)} is too short")

    def __len__(self) -> int:
        return len(self._table)

    @cached_property
    def ids(self) -> Ids:
        """Ids of the descriptors, ascending."""
        return np.ascontiguousarray(self._table["id"])

    @property
    def shards(self) -> list[int]:
        """The shards that the descriptors lie in."""
        found: list[int] = np.unique(self._table["shard"]).tolist()
        return found

    def holds(self, ids: Ids) -> NDArray[np.bool_]:
        """Which of these ids it has."""
        return held(self.ids, ids)

    def positions(self, ids: Ids) -> Positions:
        """The positions of ids that it has."""
        return np.searchsorted(self.ids, ids)

    def read(self, positions: Positions) -> Floats:
        """The descriptors (n d) at positions."""
        found = np.empty((len(positions), self.dim), np.float32)
        rows = self._table[positions]
        for shard in np.unique(rows["shard"]):
            chosen = rows["shard"] == shard
            found[chosen] = self._opened[int(shard)][rows["row"][chosen]]
        return found

    def blocks(self, positions: Positions | None = None) -> Iterator[Floats]:
        """The descriptors at positions, or all, in order, some at a time."""
        count = len(self) if positions is None else len(positions)
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            yield self.read(np.arange(start, stop) if positions is None else positions[start:stop])

    @cached_property
    def _opened(self) -> dict[int, NDArray[np.float16]]:
        return {shard: open_shard(shard_path(self._shards, shard), self.dim) for shard in self.shards}

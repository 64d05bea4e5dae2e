"""Descriptor shards: preallocated fp16 .npy files, from which everything that is searched can be rebuilt."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexerError
from indexer.storage.files import atomic_write, map_array
from indexer.storage.rows import Slot

SHARD_BYTES = 64 * 2**20
RUN = range(1, 500_000)
"""Numbers of the shards that `loci index` appends to."""
POSTED = range(500_000, 1_000_000)
"""Numbers of the shards for POSTed photos, so that a run and a POST never write to the same file."""

Floats = NDArray[np.float32]


class ShardWriter:
    """Appends descriptors after the last slot in use, in shards of one range.

    Bytes beyond that slot were written by a run that was killed before its transaction. They are overwritten.
    """

    def __init__(self, folder: Path, dim: int, last: Slot | None, shards: range = RUN) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._dim = dim
        self._rows = rows_per_shard(dim)
        self._next = Slot(shards.start, 0) if last is None else Slot(last.shard, last.row + 1)

    def append(self, descriptors: Floats) -> list[Slot]:
        """Write descriptors (n d) and return their slots. The bytes are on disk at return."""
        slots = []
        start = 0
        while start < len(descriptors):
            if self._next.row >= self._rows:
                self._next = Slot(self._next.shard + 1, 0)
            part = descriptors[start : start + self._rows - self._next.row]
            self._write(self._next, part)
            slots += [Slot(self._next.shard, self._next.row + i) for i in range(len(part))]
            self._next = Slot(self._next.shard, self._next.row + len(part))
            start += len(part)
        return slots

    def _write(self, slot: Slot, descriptors: Floats) -> None:
        path = shard_path(self._folder, slot.shard)
        if not path.exists():
            with atomic_write(path) as partial:
                shape = (self._rows, self._dim)
                np.lib.format.open_memmap(partial, "w+", np.float16, shape).flush()  # sparse
        offset = open_shard(path, self._dim).offset + slot.row * self._dim * 2
        data = descriptors.astype("<f2").tobytes()
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def rows_per_shard(dim: int) -> int:
    """Return the rows of a shard, which has about 64 MiB."""
    return max(64, SHARD_BYTES // (2 * dim))


def shard_path(folder: Path, shard: int) -> Path:
    """Return the file of a shard."""
    return folder / f"{shard:06}.npy"


def read_slots(folder: Path, slots: Sequence[Slot], dim: int, *, block: int = 65536) -> Iterator[Floats]:
    """Yield the descriptors of `slots`, in order, in fp32 blocks of up to `block` rows.

    Raises:
        IndexerError: a shard is missing, too short or not of this dimension.
    """
    opened: dict[int, np.memmap[Any, np.dtype[np.float16]]] = {}
    for start in range(0, len(slots), block):
        part = slots[start : start + block]
        rows = np.empty((len(part), dim), np.float32)
        shards = np.array([slot.shard for slot in part])
        at = np.array([slot.row for slot in part])
        for shard in np.unique(shards):
            if shard not in opened:
                opened[shard] = open_shard(shard_path(folder, int(shard)), dim)
            chosen = shards == shard
            if at[chosen].max() >= len(opened[shard]):
                raise IndexerError(f"descriptor shard {shard_path(folder, int(shard))} is too short")
            rows[chosen] = opened[shard][at[chosen]]
        yield rows


def open_shard(path: Path, dim: int) -> np.memmap[Any, np.dtype[np.float16]]:
    """Map a shard of descriptors (n d). Raises IndexerError if it is damaged."""
    shard = map_array(path, "descriptor shard")
    if shard.shape[1:] != (dim,) or shard.dtype != np.float16:
        raise IndexerError(f"descriptor shard {path} is not float16 n×{dim}")
    return shard

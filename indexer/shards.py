"""Descriptor shards: preallocated fp16 .npy files, appended a batch at a time; the source of truth.

Local features lie in shards of their own, a record in the row that has the descriptor's number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexerError
from indexer.files import replace_file
from indexer.stored import Slot
from model.local_features import Packed

SHARD_BYTES = 64 * 2**20
RUN = range(1, 500_000)
"""Numbers of the shards that `loci index` appends to."""
POSTED = range(500_000, 1_000_000)
"""Numbers of the shards that POSTed photos go to: beside a run, and never in its way."""

Floats = NDArray[np.float32]
Local = Sequence[Packed | None]
"""Local features of photos, in the order of their descriptors."""


class ShardWriter:
    """Appends descriptors after the last slot that the catalogue claims, into shards of one range.

    Bytes beyond that slot were written by a run that died before its transaction: they are overwritten.
    Local features go into `local`, in the same rows.
    """

    def __init__(
        self, folder: Path, dim: int, last: Slot | None, shards: range = RUN, *, local: Path | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._local = local
        self._dim = dim
        self._rows = rows_per_shard(dim)
        self._next = Slot(shards.start, 0) if last is None else Slot(last.shard, last.row + 1)

    def append(self, descriptors: Floats, local: Local | None = None) -> list[Slot]:
        """Write descriptors (n d), and the local features of each, and return their slots.

        On disk when it returns. Of one index, all descriptors have local features or none has.
        """
        kept = [one for one in local or () if one is not None]
        if kept and self._local is not None:
            self._local.mkdir(exist_ok=True)
        else:
            kept = []
        slots: list[Slot] = []
        while len(slots) < len(descriptors):
            if self._next.row >= self._rows:
                self._next = Slot(self._next.shard + 1, 0)
            start, end = len(slots), len(slots) + self._rows - self._next.row
            if kept and self._local is not None:
                self._write(self._local, np.stack(kept[start:end]))
            part = descriptors[start:end]
            self._write(self._folder, part.astype("<f2"))
            slots += [Slot(self._next.shard, self._next.row + i) for i in range(len(part))]
            self._next = Slot(self._next.shard, self._next.row + len(part))
        return slots

    def _write(self, folder: Path, rows: NDArray[Any]) -> None:
        path = shard_path(folder, self._next.shard)
        if not path.exists():
            replace_file(path, lambda partial: self._preallocate(partial, rows))
        shard = np.load(path, mmap_mode="r") if folder == self._local else _open(path, self._dim)
        if shard.dtype != rows.dtype:
            raise IndexerError(f"shard {path} holds other local features than this model's")
        with path.open("r+b") as file:
            file.seek(shard.offset + self._next.row * rows[0].nbytes)
            file.write(rows.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def _preallocate(self, path: Path, rows: NDArray[Any]) -> None:
        # Sparse, and whole before it gets its name: half a file could not be mapped.
        np.lib.format.open_memmap(path, "w+", rows.dtype, (self._rows, *rows.shape[1:])).flush()


def rows_per_shard(dim: int) -> int:
    """Rows of a shard of about 64 MiB."""
    return max(64, SHARD_BYTES // (2 * dim))


def shard_path(folder: Path, shard: int) -> Path:
    """The file of a shard."""
    return folder / f"{shard:06}.npy"


def read_slots(folder: Path, slots: Sequence[Slot], dim: int, *, block: int = 65536) -> Iterator[Floats]:
    """Descriptors of `slots`, in order, in blocks of up to `block` rows, fp32.

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
                opened[shard] = _open(shard_path(folder, int(shard)), dim)
            chosen = shards == shard
            if at[chosen].max() >= len(opened[shard]):
                raise IndexerError(f"descriptor shard {shard_path(folder, int(shard))} is too short")
            rows[chosen] = opened[shard][at[chosen]]
        yield rows


def read_local(folder: Path, slots: Sequence[Slot]) -> list[Packed | None]:
    """Local features of `slots`, in order; None where there are none.

    Raises:
        IndexerError: a shard is damaged.
    """
    opened: dict[int, Packed | None] = {}
    for shard in {slot.shard for slot in slots}:
        path = shard_path(folder, shard)
        try:
            opened[shard] = np.load(path, mmap_mode="r") if path.exists() else None
        except (OSError, ValueError, EOFError) as error:
            raise IndexerError(f"shard of local features {path} cannot be read: {error}") from error
    found: list[Packed | None] = []
    for slot in slots:
        rows = opened[slot.shard]
        # A row that was never written is all zeros: its map has no size.
        found.append(rows[slot.row] if rows is not None and rows[slot.row]["size"].all() else None)
    return found


def _open(path: Path, dim: int) -> np.memmap[Any, np.dtype[np.float16]]:
    try:
        shard = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise IndexerError(f"descriptor shard {path} cannot be read: {error}") from error
    if not isinstance(shard, np.memmap) or shard.shape[1:] != (dim,) or shard.dtype != np.float16:
        raise IndexerError(f"descriptor shard {path} is not float16 n×{dim}")
    return shard

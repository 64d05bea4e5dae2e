"""Local features beside the descriptor shards: .npy files of records, one to each descriptor's slot.

A descriptor shard's rows are parted among several files, so that none is much larger than what it holds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from indexer.errors import IndexerError
from indexer.storage.files import map_array, replace_file
from indexer.storage.rows import Slot
from model.local_features import Packed

ROWS = 1024
"""Of a file: 35 MB where a photo has 500 features."""

Local = Sequence[Packed | None]
"""Local features of photos, in the order of their descriptors."""


def write_local(folder: Path, slots: Sequence[Slot], local: Local) -> None:
    """Put local features into the slots of their descriptors; on disk when it returns."""
    kept = [(slot, packed) for slot, packed in zip(slots, local, strict=True) if packed is not None]
    if not kept:
        return
    folder.mkdir(exist_ok=True)
    for path in dict.fromkeys(_path(folder, slot) for slot, _ in kept):
        part = [(slot.row % ROWS, packed) for slot, packed in kept if _path(folder, slot) == path]
        dtype = part[0][1].dtype
        if not path.exists():
            # Sparse, and whole before it gets its name.
            replace_file(path, partial(_preallocate, dtype=dtype))
        records = _open(path)
        if records.dtype != dtype:
            raise IndexerError(f"{path} holds other local features than this model's")
        with path.open("r+b") as file:
            for row, packed in part:
                file.seek(records.offset + row * dtype.itemsize)
                file.write(packed.tobytes())
            file.flush()
            os.fsync(file.fileno())


def read_local(folder: Path, slots: Sequence[Slot]) -> list[Packed | None]:
    """Local features of `slots`, in order; None where there are none.

    Raises:
        IndexerError: a file is damaged.
    """
    opened: dict[Path, np.memmap[Any, Any] | None] = {}
    found: list[Packed | None] = []
    for slot in slots:
        path = _path(folder, slot)
        if path not in opened:
            opened[path] = _open(path) if path.exists() else None
        records = opened[path]
        # A record that was never written is all zeros: its map has no size.
        there = records is not None and records[slot.row % ROWS]["size"].all()
        found.append(records[slot.row % ROWS] if records is not None and there else None)
    return found


def drop_local(folder: Path, shard: int) -> None:
    """Delete the files that go with a descriptor shard."""
    for path in folder.glob(f"{shard:06}-*.npy"):
        path.unlink(missing_ok=True)


def _path(folder: Path, slot: Slot) -> Path:
    return folder / f"{slot.shard:06}-{slot.row // ROWS:03}.npy"


def _preallocate(path: Path, dtype: np.dtype[Any]) -> None:
    np.lib.format.open_memmap(path, "w+", dtype, (ROWS,)).flush()


def _open(path: Path) -> np.memmap[Any, Any]:
    records = map_array(path, "local features")
    if records.shape != (ROWS,) or "codes" not in (records.dtype.names or ()):
        raise IndexerError(f"local features {path} are not {ROWS} records")
    return records

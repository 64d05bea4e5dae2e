"""Shards of local features: .npy files with one record for each descriptor's slot.

The rows of one descriptor shard are spread over several files, so that no file is much larger than its
contents.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from indexer.errors import IndexerError
from indexer.storage.files import atomic_write, map_array
from indexer.storage.rows import Slot
from model.layers.local_features import Packed

ROWS = 1024
"""Records in a file; 35 MB with 500 features in each photo."""

Local = Sequence[Packed | None]
"""Local features in the order of the descriptors; None for a descriptor without."""


def write_local(folder: Path, slots: Sequence[Slot], local: Local) -> None:
    """Write local features to the slots of their descriptors. They are on disk at return."""
    kept = [(slot, packed) for slot, packed in zip(slots, local, strict=True) if packed is not None]
    if not kept:
        return
    folder.mkdir(exist_ok=True)
    for path in dict.fromkeys(_path(folder, slot) for slot, _ in kept):
        part = [(slot.row % ROWS, packed) for slot, packed in kept if _path(folder, slot) == path]
        dtype = part[0][1].dtype
        if not path.exists():
            with atomic_write(path) as partial:
                np.lib.format.open_memmap(partial, "w+", dtype, (ROWS,)).flush()  # sparse
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
    """Return the local features of `slots`, in order; None for a slot without.

    Raises:
        IndexerError: a file is damaged.
    """
    opened: dict[Path, np.memmap[Any, Any] | None] = {}
    local: list[Packed | None] = []
    for slot in slots:
        path = _path(folder, slot)
        if path not in opened:
            opened[path] = _open(path) if path.exists() else None
        records = opened[path]
        record = None if records is None else records[slot.row % ROWS]
        # A record that was never written is all zeros, so its map has no size.
        local.append(record if record is not None and record["size"].all() else None)
    return local


def drop_local(folder: Path, shard: int) -> None:
    """Delete the files of local features for a descriptor shard."""
    for path in folder.glob(f"{shard:06}-*.npy"):
        path.unlink(missing_ok=True)


def _path(folder: Path, slot: Slot) -> Path:
    return folder / f"{slot.shard:06}-{slot.row // ROWS:03}.npy"


def _open(path: Path) -> np.memmap[Any, Any]:
    records = map_array(path, "local features")
    if records.shape != (ROWS,) or "codes" not in (records.dtype.names or ()):
        raise IndexerError(f"local features {path} are not {ROWS} records")
    return records

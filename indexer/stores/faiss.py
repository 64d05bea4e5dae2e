"""The vector store in one FAISS file: exact inner products over descriptor ids."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexerError

FACTORY = "Flat"

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class FaissStore:
    """Descriptors, unit length, searched by cosine."""

    def __init__(self, index: faiss.Index) -> None:
        self._index = index

    @classmethod
    def build(cls, dim: int, blocks: Iterable[tuple[Ids, Floats]]) -> FaissStore:
        """From blocks of ids (n) and descriptors (n d)."""
        index = faiss.IndexIDMap(faiss.index_factory(dim, FACTORY, faiss.METRIC_INNER_PRODUCT))
        for ids, descriptors in blocks:
            index.add_with_ids(np.ascontiguousarray(descriptors), ids)
        return cls(index)

    @classmethod
    def load(cls, path: Path) -> FaissStore:
        """Read a store. Raises IndexerError when the file is damaged."""
        try:
            return cls(faiss.read_index(str(path)))
        except (RuntimeError, MemoryError) as error:  # a damaged length may ask for any amount of memory
            reason = str(error).partition("\n")[0] or "it asks for more memory than there is"
            raise IndexerError(f"{path} is damaged: {reason}") from error

    def save(self, path: Path) -> None:
        """Write the store; not atomic, so write to a temporary name. Raises OSError when it does not fit."""
        # Through Python's file: FAISS's own drops what fails when it closes it, as the last bytes do.
        with path.open("wb") as file:
            writer = faiss.PyCallbackIOWriter(file.write)  # type: ignore[attr-defined, unused-ignore]
            faiss.write_index(self._index, writer)

    @property
    def count(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        return int(self._index.d)

    def search(self, descriptors: Floats, k: int) -> tuple[Floats, Ids]:
        """Cosines (B k) and descriptor ids (B k), best first, −1 where there are fewer than k."""
        scores, ids = self._index.search(np.ascontiguousarray(descriptors, np.float32), k)
        return scores, ids

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
        except RuntimeError as error:
            raise IndexerError(f"{path} is damaged: {str(error).splitlines()[0]}") from error

    def save(self, path: Path) -> None:
        """Write the store; not atomic, so write to a temporary name."""
        try:
            faiss.write_index(self._index, str(path))
        except RuntimeError as error:
            raise IndexerError(f"{path} cannot be written: {str(error).splitlines()[-1]}") from error

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

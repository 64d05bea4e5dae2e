"""The vector store in one FAISS file: exact inner products over descriptor ids."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexerError
from indexer.snapshots.store import Floats, Ids, Positions, held

FLAT = "Flat"
"""FAISS's description of an index that holds the descriptors themselves."""


class ExactStore:
    """Descriptors, unit length, searched by cosine."""

    def __init__(self, index: faiss.Index) -> None:
        self._index = index

    @classmethod
    def build(cls, dim: int, blocks: Iterable[tuple[Ids, Floats]]) -> ExactStore:
        """From blocks of ids (n) and descriptors (n d)."""
        index = faiss.IndexIDMap(faiss.index_factory(dim, FLAT, faiss.METRIC_INNER_PRODUCT))
        for ids, descriptors in blocks:
            index.add_with_ids(np.ascontiguousarray(descriptors), ids)
        return cls(index)

    @classmethod
    def load(cls, path: Path) -> ExactStore:
        """Read a store. Raises IndexerError when the file is damaged."""
        return cls(load_index(path))

    def save(self, path: Path) -> None:
        """Write the store; not atomic, so write to a temporary name. Raises OSError when it does not fit."""
        save_index(self._index, path)

    @property
    def count(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        return int(self._index.d)

    @cached_property
    def ids(self) -> Ids:
        """Ids of the descriptors, ascending."""
        return self._ids[self._order]

    @cached_property
    def _ids(self) -> Ids:
        index: Any = self._index
        return np.asarray(faiss.vector_to_array(index.id_map), np.int64)

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        return np.argsort(self._ids, kind="stable")

    @cached_property
    def _vectors(self) -> Floats:
        """FAISS's own memory, n d."""
        index: Any = self._index
        flat: Any = faiss.downcast_index(index.index)
        vectors: Floats = faiss.rev_swig_ptr(flat.get_xb(), self.count * self.dim)
        return vectors.reshape(self.count, self.dim)

    def vectors(self, ids: Ids) -> Floats:
        """The descriptors (n d) of ids that the store holds."""
        return self._vectors[self._order[np.searchsorted(self.ids, ids)]]

    def products(self, queries: Floats) -> Floats:
        """Cosines of queries (B d) with all descriptors, B n in the order of `ids`."""
        return np.asarray((queries @ self._vectors.T)[:, self._order], np.float32)

    def holds(self, ids: Ids) -> NDArray[np.bool_]:
        """Which of these ids it holds."""
        return held(self.ids, ids)

    def scores(self, descriptor: Floats) -> Floats:
        """Cosines of a descriptor (d) with all that it holds, in the order of `ids`."""
        return np.asarray((self._vectors @ descriptor)[self._order], np.float32)

    def search(self, descriptors: Floats, k: int, among: Ids | None = None) -> tuple[Floats, Ids]:
        """Cosines (B k) and descriptor ids (B k), best first, −1 where there are fewer than k.

        `among` narrows the search to these ids: exhaustively and exactly, however few or many they are.
        """
        queries = np.ascontiguousarray(descriptors, np.float32)
        if among is None:
            scores, ids = self._index.search(queries, k)
            return scores, ids
        bits = chosen_bits(among)  # kept until the search is done: FAISS only points at them
        library: Any = faiss
        parameters = library.SearchParameters(sel=library.IDSelectorBitmap(bits))
        scores, ids = self._index.search(queries, k, params=parameters)
        return scores, ids


def chosen_bits(numbers: Ids | Positions) -> NDArray[np.uint8]:
    """A bit for each number from 0, set for these: what FAISS's bitmap selector points at."""
    chosen = np.zeros(int(numbers.max(initial=0)) + 1, bool)
    chosen[numbers] = True
    return np.packbits(chosen, bitorder="little")


def load_index(path: Path) -> faiss.Index:
    """Read FAISS's file. Raises IndexerError when it is damaged."""
    try:
        return faiss.read_index(str(path))
    except (RuntimeError, MemoryError) as error:  # a damaged length may ask for any amount of memory
        reason = str(error).partition("\n")[0] or "it asks for more memory than there is"
        raise IndexerError(f"{path} is damaged: {reason}") from error


def save_index(index: faiss.Index, path: Path) -> None:
    """Write FAISS's file; not atomic. Raises OSError when it does not fit."""
    # Through Python's file: FAISS's own drops what fails when it closes it, as the last bytes do.
    with path.open("wb") as file:
        writer = faiss.PyCallbackIOWriter(file.write)  # type: ignore[attr-defined, unused-ignore]
        faiss.write_index(index, writer)

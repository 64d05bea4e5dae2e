"""Exact search of descriptors in memory, saved as one FAISS file."""

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
"""FAISS's description of an index that contains the descriptors themselves."""


class ExactStore:
    """Descriptors of unit length, searched by cosine."""

    def __init__(self, index: faiss.Index) -> None:
        self._index = index

    @classmethod
    def build(cls, dim: int, blocks: Iterable[tuple[Ids, Floats]]) -> ExactStore:
        """Make a store of blocks of ids (n) and descriptors (n d)."""
        index = faiss.IndexIDMap(faiss.index_factory(dim, FLAT, faiss.METRIC_INNER_PRODUCT))
        for ids, descriptors in blocks:
            index.add_with_ids(np.ascontiguousarray(descriptors), ids)
        return cls(index)

    @classmethod
    def load(cls, path: Path) -> ExactStore:
        """Read a store. Raises IndexerError if the file is damaged."""
        return cls(load_index(path))

    def save(self, path: Path) -> None:
        """Write the store; not atomic. Raises OSError, for example if the disk is full."""
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
        """View of FAISS's own memory, n d."""
        index: Any = self._index
        flat: Any = faiss.downcast_index(index.index)
        vectors: Floats = faiss.rev_swig_ptr(flat.get_xb(), self.count * self.dim)
        return vectors.reshape(self.count, self.dim)

    def vectors(self, ids: Ids) -> Floats:
        """Return the descriptors (n d) of ids in the store."""
        return self._vectors[self._order[np.searchsorted(self.ids, ids)]]

    def products(self, queries: Floats) -> Floats:
        """Return the cosines (B n) of queries (B d) with all descriptors, in the order of `ids`."""
        return np.asarray((queries @ self._vectors.T)[:, self._order], np.float32)

    def holds(self, ids: Ids) -> NDArray[np.bool_]:
        """Return which of these ids are in the store."""
        return held(self.ids, ids)

    def scores(self, descriptor: Floats) -> Floats:
        """Return the cosines (n) of a descriptor (d) with all in the store, in the order of `ids`."""
        return np.asarray((self._vectors @ descriptor)[self._order], np.float32)

    def search(self, descriptors: Floats, k: int, among: Ids | None = None) -> tuple[Floats, Ids]:
        """Return cosines (B k) and ids (B k), best first; the id is −1 if there are fewer than k.

        Args:
            among: ids that may be answers. The search stays exact.
        """
        queries = np.ascontiguousarray(descriptors, np.float32)
        if among is None:
            scores, ids = self._index.search(queries, k)
            return scores, ids
        bits = chosen_bits(among)  # FAISS keeps a pointer only, until the search is done
        library: Any = faiss
        parameters = library.SearchParameters(sel=library.IDSelectorBitmap(bits))
        scores, ids = self._index.search(queries, k, params=parameters)
        return scores, ids


def chosen_bits(numbers: Ids | Positions) -> NDArray[np.uint8]:
    """Return a bitmap with a bit set for each of these numbers, for FAISS's bitmap selector."""
    chosen = np.zeros(int(numbers.max(initial=0)) + 1, bool)
    chosen[numbers] = True
    return np.packbits(chosen, bitorder="little")


def load_index(path: Path) -> faiss.Index:
    """Read a FAISS file. Raises IndexerError if it is damaged."""
    try:
        return faiss.read_index(str(path))
    except (RuntimeError, MemoryError) as error:  # a damaged length may request any amount of memory
        reason = str(error).partition("\n")[0] or "it needs more memory than there is"
        raise IndexerError(f"{path} is damaged: {reason}") from error


def save_index(index: faiss.Index, path: Path) -> None:
    """Write a FAISS file; not atomic. Raises OSError, for example if the disk is full."""
    # FAISS's own writer ignores errors when it closes the file, so a full disk may go unnoticed.
    with path.open("wb") as file:
        writer = faiss.PyCallbackIOWriter(file.write)  # type: ignore[attr-defined, unused-ignore]
        faiss.write_index(index, writer)

"""Interface of the stores that are searched."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Positions = NDArray[np.intp]

SAMPLE = 1000
"""Descriptors that every query is compared with to learn the usual scores of the collection."""


def held(ids: Ids, wanted: Ids) -> NDArray[np.bool_]:
    """Return which of the ids `wanted` are in `ids`, which must ascend."""
    if not len(ids):
        return np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.asarray(ids[at] == wanted, bool)


class Store(Protocol):
    """Descriptors of unit length, compared by cosine."""

    @property
    def count(self) -> int:
        """Number of descriptors."""

    @property
    def dim(self) -> int:
        """Numbers in each descriptor."""

    @property
    def ids(self) -> Ids:
        """Ids of the descriptors, ascending."""

    def holds(self, ids: Ids) -> NDArray[np.bool_]:
        """Return which of these ids are in the store."""

    def vectors(self, ids: Ids) -> Floats:
        """Return the descriptors (n d) of ids in the store."""

    def scores(self, descriptor: Floats) -> Floats:
        """Return the cosines (n) of a descriptor (d) with all, in the order of `ids`."""

    def products(self, queries: Floats) -> Floats:
        """Return the cosines (B n) of queries (B d) with all, in the order of `ids`."""

    def search(self, descriptors: Floats, k: int, among: Ids | None = None) -> tuple[Floats, Ids]:
        """Return cosines (B k) and ids (B k) of the nearest, best first; the id is −1 if there are fewer.

        Args:
            among: ids that may be answers; None: all.
        """


def sampled(ids: Ids) -> Ids:
    """Return at most SAMPLE ids, evenly spaced and always the same."""
    return ids if len(ids) <= SAMPLE else ids[np.linspace(0, len(ids) - 1, SAMPLE).astype(np.int64)]


def sample_of(store: Store) -> Floats:
    """Return the descriptors (m d) of the sample."""
    return np.ascontiguousarray(store.vectors(sampled(store.ids)))

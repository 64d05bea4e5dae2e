"""What a search is asked of: descriptors by id, however they are kept."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Positions = NDArray[np.intp]

SAMPLE = 1000
"""Descriptors that every query is compared with, to know what an ordinary score is."""


def held(ids: Ids, asked: Ids) -> NDArray[np.bool_]:
    """Which of the ids asked for are among `ids`, which ascend."""
    if not len(ids):
        return np.zeros(len(asked), bool)
    at = np.minimum(np.searchsorted(ids, asked), len(ids) - 1)
    return np.asarray(ids[at] == asked, bool)


class Store(Protocol):
    """Descriptors of unit length, compared by cosine."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def dim(self) -> int:
        """Numbers in each."""

    @property
    def ids(self) -> Ids:
        """Their ids, ascending."""

    def holds(self, ids: Ids) -> NDArray[np.bool_]:
        """Which of these ids it holds."""

    def vectors(self, ids: Ids) -> Floats:
        """The descriptors (n d) of ids that it holds."""

    def scores(self, descriptor: Floats) -> Floats:
        """Cosines of a descriptor (d) with all, in the order of `ids`."""

    def products(self, queries: Floats) -> Floats:
        """Cosines of queries (B d) with all, B n in the order of `ids`."""

    def search(self, descriptors: Floats, k: int, among: Ids | None = None) -> tuple[Floats, Ids]:
        """Cosines (B k) and ids (B k) of those nearest, best first, −1 where there are fewer than k.

        Args:
            among: ids to which the search is narrowed.
        """


def sampled(ids: Ids) -> Ids:
    """At most SAMPLE of a snapshot's descriptors, spread evenly over their ids; always the same."""
    return ids if len(ids) <= SAMPLE else ids[np.linspace(0, len(ids) - 1, SAMPLE).astype(np.int64)]


def sample_of(store: Store) -> Floats:
    """The descriptors (m d) that tell what an ordinary score is."""
    return np.ascontiguousarray(store.vectors(sampled(store.ids)))

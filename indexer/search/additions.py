"""The descriptors that an opened index searches: those of its snapshot, and those added since.

Additions are noticed before every search by the number of the catalogue's last change, from a POST or from a
run in another process. Deleted descriptors stay in the stores; the catalogue filters them out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from indexer.errors import IndexerError
from indexer.snapshots.exact import ExactStore
from indexer.snapshots.store import Floats, Ids, Store
from indexer.storage.catalogue import Catalogue
from indexer.storage.layout import Layout, generation_of
from indexer.storage.shards import read_slots

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Searched:
    """The stores at one moment. They have no descriptor in common."""

    snapshot: Store
    added: tuple[ExactStore, ...] = ()
    change: int = 0
    """Number of the last change that they contain."""

    @property
    def count(self) -> int:
        return sum(store.count for store in self.stores)

    @property
    def stores(self) -> tuple[Store, ...]:
        return (self.snapshot, *self.added)

    def missing(self, ids: Ids) -> Ids:
        """Return the ids that no store holds."""
        for store in self.stores:
            ids = ids[~store.holds(ids)]
        return ids

    def search(self, descriptor: Floats, k: int, among: Ids | None = None) -> list[tuple[float, int]]:
        """Return cosine and id of the k descriptors nearest to one (d), best first; only among `among` if
        given.
        """
        found = []
        for store in self.stores:
            _, ids = store.search(descriptor[None], min(k, store.count), among)
            ids = ids[0][ids[0] >= 0]
            found += list(zip(exact_cosines(store.vectors(ids), descriptor), ids.tolist(), strict=True))
        return sorted(found, key=lambda hit: (-hit[0], hit[1]))[:k]

    def vectors(self, ids: Ids) -> Floats:
        """Return the descriptors of ids, n d."""
        found = np.empty((len(ids), self.snapshot.dim), np.float32)
        for store in self.stores:
            held = store.holds(ids)
            found[held] = store.vectors(ids[held])
        return found

    def cosines(self, descriptor: Floats, ids: Ids) -> list[float]:
        """Return cosines of a descriptor (d) with these, equal to those of a search."""
        return exact_cosines(self.vectors(ids), descriptor)


def exact_cosines(vectors: Floats, descriptor: Floats) -> list[float]:
    """Return cosines in fp64: in fp32 the last digits would depend on the store of a descriptor."""
    cosines = np.einsum("nd,d->n", vectors, descriptor, dtype=np.float64)
    rounded: list[float] = np.round(cosines, 9).tolist()
    return rounded


class Additions:
    """Keeps an opened index's stores up to date. May be used from many threads."""

    def __init__(
        self,
        layout: Layout,
        catalogue: Catalogue,
        snapshot: str,
        dim: int,
        store: Store,
        since: int,
    ) -> None:
        """`since` is the number of the last change that the snapshot contains."""
        self._layout = layout
        self._catalogue = catalogue
        self._generation = generation_of(snapshot)
        self._dim = dim
        self._lock = threading.Lock()
        change = catalogue.last_change()
        live = self._live(since)
        self._searched = self._with(Searched(store, change=change), live)

    def current(self) -> Searched:
        """Return what is searched, with everything added before this call."""
        change = self._catalogue.last_change()
        if change <= self._searched.change:
            return self._searched
        with self._lock:
            if change > self._searched.change:
                change = self._catalogue.last_change()
                searched = self._with(self._searched, self._live(self._searched.change))
                self._searched = Searched(searched.snapshot, searched.added, change)
            return self._searched

    def _live(self, since: int) -> Ids:
        rows = self._catalogue.searched_rows(self._generation, since)
        return np.array([row.id for row in rows if row.live], np.int64)

    def _with(self, searched: Searched, live: Ids) -> Searched:
        new = searched.missing(live)
        if not len(new):
            return searched
        try:
            store = self._read(new.tolist())
        except IndexerError:
            if generation_of(self._layout.current()) == self._generation:
                raise
            log.info("a newer model has taken over: this one takes up nothing more")
            return searched
        if not store.count:  # removed meanwhile
            return searched
        return Searched(searched.snapshot, _merged((*searched.added, store), self._dim), searched.change)

    def _read(self, ids: Sequence[int]) -> ExactStore:
        try:
            return self._read_once(ids)
        except IndexerError:  # moved, between the row and its bytes
            return self._read_once(ids)

    def _read_once(self, ids: Sequence[int]) -> ExactStore:
        slots = self._catalogue.slots(self._generation, ids)
        found = np.array([number for number, _ in slots], np.int64)
        blocks = read_slots(self._layout.shards(self._generation), [slot for _, slot in slots], self._dim)
        start = 0
        parts = []
        for block in blocks:
            parts.append((found[start : start + len(block)], block))
            start += len(block)
        return ExactStore.build(self._dim, parts)


def _merged(stores: tuple[ExactStore, ...], dim: int) -> tuple[ExactStore, ...]:
    """Merge stores so that each is more than twice the next: then adding one stays cheap."""
    while len(stores) > 1 and stores[-2].count <= 2 * stores[-1].count:
        parts = [(store.ids, store.vectors(store.ids)) for store in stores[-2:]]
        stores = (*stores[:-2], ExactStore.build(dim, parts))
    return stores

"""Descriptors too many for memory: searched by short codes first, then exactly, where they lie in the shards.

FAISS keeps the codes in an inverted file (IVF; Jégou et al., PAMI 2011), the lists of which hold RaBitQ's
bit for each number (Gao and Long, SIGMOD 2024) or product quantisation's four bits for several; or a byte for
each number in a graph (HNSW; Malkov and Yashunin, PAMI 2018). The codes name candidates; their cosines are
those of the stored descriptors. Only the codes are in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.snapshots.exact import chosen_bits, load_index, save_index
from indexer.snapshots.shard_rows import Rows
from indexer.snapshots.store import Floats, Ids, Positions

EXHAUSTIVE = 50_000
"""Descriptors left by filters up to which all of them are compared."""
POINTS_A_LIST = 40
"""Descriptors that a list's centre is fitted on; FAISS warns below 39."""
LINKS = 32
"""Of a graph's node on each level; on the lowest, where all are, twice as many. Half as many stay at .86."""
CONSTRUCTION = 200
"""Nodes that are looked at to link a new one (efConstruction)."""
HELD_OUT = 1000
"""Descriptors, at most, that come into a graph last: until then they are questions that it has not seen."""
CODE_SAMPLE = 65_536
"""Descriptors that tell in which range the bytes of a graph's codes lie."""
LEAST_EFFORT, MOST_EFFORT = 16, 4096
"""Nodes of a graph that a search keeps in sight (efSearch)."""
NODE_COST = 8 * LINKS
"""Codes of a list that are compared in the time that one more such node takes."""


@dataclass(frozen=True)
class Setting:
    """How thoroughly codes are searched."""

    probes: int
    """Lists looked into, or a graph's nodes kept in sight."""
    depth: int
    """Candidates for each answer asked for."""


class CompressedStore:
    """A snapshot's descriptors in the shards, and their codes; without codes, every search reads them all."""

    def __init__(self, rows: Rows, codes: faiss.Index | None = None, setting: Setting | None = None) -> None:
        self.rows = rows
        self.setting = setting or Setting(1, 1)
        self._codes: Any = codes
        self._order = _order(len(rows)) if self.is_hnsw else None
        """The position of each descriptor in the order in which they came into the graph."""

    @classmethod
    def build(cls, rows: Rows, factory: str) -> CompressedStore:
        """Fit codes on a sample of the descriptors, then encode all, some at a time; not tuned yet.

        A graph has those that are `held_out` only once it is `completed`.

        Args:
            factory: FAISS's description of an inverted file or a graph.
        """
        index: Any = faiss.index_factory(rows.dim, factory, faiss.METRIC_INNER_PRODUCT)
        if isinstance(index, faiss.IndexHNSW):
            index.hnsw.efConstruction = CONSTRUCTION
            index.train(rows.read(spread(len(rows), CODE_SAMPLE)))
        else:
            _fit_lists(index, rows)
        store = cls(rows, index)
        for block in rows.blocks(parted(len(rows))[0] if store.is_hnsw else None):
            index.add(block)
        return store

    def completed(self) -> CompressedStore:
        """The same with all descriptors in it."""
        if self._order is not None:
            for block in self.rows.blocks(self._order[self._codes.ntotal :]):
                self._codes.add(block)
        return self

    @property
    def encoded(self) -> Positions | None:
        """Positions of the descriptors that have codes yet; None: of all."""
        return None if self._order is None else self._order[: self._codes.ntotal]

    @classmethod
    def load(cls, path: Path, rows: Rows, setting: Setting) -> CompressedStore:
        """Read codes that `save` wrote. Raises IndexerError when the file is damaged."""
        return cls(rows, load_index(path), setting)

    def save(self, path: Path) -> None:
        """Write the codes; not atomic, so write to a temporary name. Raises OSError when they do not fit."""
        if self._codes is not None:
            save_index(self._codes, path)

    def tuned(self, setting: Setting) -> CompressedStore:
        """The same, searched so thoroughly."""
        return CompressedStore(self.rows, self._codes, setting)

    @cached_property
    def _rank(self) -> Positions:
        """Where in that order each position is; asked for by filtered searches alone."""
        return np.argsort(_order(self.count))

    @property
    def is_hnsw(self) -> bool:
        return isinstance(self._codes, faiss.IndexHNSW)

    @property
    def lists(self) -> int:
        """How many lists the codes lie in."""
        return int(faiss.extract_index_ivf(self._codes).nlist)

    @property
    def efforts(self) -> list[int]:
        """Numbers of lists, or of nodes, that are worth trying: each 1.3 to 1.5 times the last."""
        least, most = (LEAST_EFFORT, min(MOST_EFFORT, self.count)) if self.is_hnsw else (1, self.lists)
        steps = [step << power for power in range(most.bit_length()) for step in (2, 3)]
        return [least, *(step for step in steps if least < step < most), *([most] if most > least else [])]

    def cost(self, effort: int) -> float:
        """Of looking for candidates with such effort, in codes of a list compared."""
        return effort * (NODE_COST if self.is_hnsw else self.count / self.lists)

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        return self.rows.dim

    @property
    def ids(self) -> Ids:
        return self.rows.ids

    def holds(self, ids: Ids) -> NDArray[np.bool_]:
        return self.rows.holds(ids)

    def vectors(self, ids: Ids) -> Floats:
        return self.rows.read(self.rows.positions(ids))

    def scores(self, descriptor: Floats) -> Floats:
        return np.asarray(self.products(descriptor[None])[0], np.float32)

    def products(self, queries: Floats) -> Floats:
        found = np.empty((len(queries), self.count), np.float32)
        start = 0
        for block in self.rows.blocks():
            found[:, start : start + len(block)] = queries @ block.T
            start += len(block)
        return found

    def search(self, descriptors: Floats, k: int, among: Ids | None = None) -> tuple[Floats, Ids]:
        """As `Store.search`; exact where `among` is EXHAUSTIVE ids or fewer, and where k is a large share."""
        queries = np.ascontiguousarray(descriptors, np.float32)
        positions = None if among is None else self.rows.positions(among[self.holds(among)])
        left = self.count if positions is None else len(positions)
        if (
            self._codes is None
            or k * self.setting.depth > left // 8
            or (positions is not None and left <= EXHAUSTIVE)
        ):
            return self.exact(queries, k, positions)
        count = k * self.setting.depth
        # Of what few descriptors are left, as many are to be seen as of all.
        probes = self.setting.probes * self.count // left
        if not self.is_hnsw:
            probes = max(probes, 2 * count * self.lists // left)
        candidates = self.candidates(queries, count, probes, positions)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), -1, np.int64)
        for query, named, row, own in zip(queries, candidates, scores, ids, strict=True):
            named = named[named >= 0]
            cosines = self.rows.read(named) @ query
            best = np.lexsort((named, -cosines))[:k]
            row[: len(best)] = cosines[best]
            own[: len(best)] = self.ids[named[best]]
        return scores, ids

    def candidates(
        self, queries: Floats, count: int, probes: int, positions: Positions | None = None
    ) -> Positions:
        """Positions (B count) of what by its code is nearest to queries (B d), the nearest first, or −1."""
        library: Any = faiss
        chosen: dict[str, Any] = {}
        if positions is not None:
            numbers = positions if self._order is None else self._rank[positions]
            bits = chosen_bits(numbers)  # kept until the search is done: FAISS only points at them
            chosen["sel"] = library.IDSelectorBitmap(bits)
        if self._order is None:
            parameters = library.SearchParametersIVF(nprobe=min(self.lists, probes), **chosen)
        else:
            parameters = library.SearchParametersHNSW(efSearch=max(probes, count), **chosen)
        found = np.asarray(self._codes.search(queries, count, params=parameters)[1], np.intp)
        return found if self._order is None else np.where(found < 0, -1, self._order[found])

    def exact(
        self, queries: Floats, k: int, positions: Positions | None = None, leave_out: Positions | None = None
    ) -> tuple[Floats, Ids]:
        """As `search`, of the descriptors at positions, or all, every one compared.

        Args:
            leave_out: for each query (B), a position that is no answer.
        """
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), -1, np.int64)
        start = 0
        for block in self.rows.blocks(positions):
            numbers = np.arange(start, start + len(block))
            at = numbers if positions is None else positions[numbers]
            cosines = np.asarray(queries @ block.T, np.float32)
            if leave_out is not None:
                cosines[at[None] == leave_out[:, None]] = -np.inf
            scores, ids = _best(k, (scores, ids), (cosines, np.broadcast_to(self.ids[at], cosines.shape)))
            start += len(block)
        return scores, ids


def _best(k: int, *parts: tuple[Floats, Ids]) -> tuple[Floats, Ids]:
    """The k best of scores and ids (B n each), best first; equal scores by id."""
    scores = np.concatenate([part[0] for part in parts], axis=1)
    ids = np.concatenate([part[1] for part in parts], axis=1)
    if scores.shape[1] > 4 * k:  # else sorting all is as fast
        kept = np.argpartition(-scores, k, axis=1)[:, :k]
        scores, ids = np.take_along_axis(scores, kept, 1), np.take_along_axis(ids, kept, 1)
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


def _fit_lists(index: Any, rows: Rows) -> None:
    lists: Any = faiss.extract_index_ivf(index)
    if faiss.get_num_gpus():
        lists.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(rows.dim))
    index.train(rows.read(spread(len(rows), POINTS_A_LIST * lists.nlist)))
    lists.clustering_index = None


def held_out(count: int) -> Positions:
    """Positions, of so many, of the descriptors that questions are made of."""
    return spread(count, min(HELD_OUT, max(1, count // 3)))


def parted(count: int) -> tuple[Positions, Positions]:
    """All positions but those that are held out, and those."""
    last = held_out(count)
    return np.delete(np.arange(count), last), last


def _order(count: int) -> Positions:
    """All positions, those that are held out last."""
    return np.concatenate(parted(count))


def spread(count: int, most: int) -> Positions:
    """At most so many of `count` positions, evenly spread."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.intp)

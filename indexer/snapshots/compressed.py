"""Search of more descriptors than fit the memory: candidates by codes, then exact cosines from the shards.

FAISS keeps the codes in memory, in one of two structures. An inverted file (IVF; Jégou et al., PAMI 2011) has
RaBitQ codes of one bit a number (Gao and Long, SIGMOD 2024) or product quantisation with four bits for
several numbers. HNSW (Malkov and Yashunin, PAMI 2018) has one byte a number.
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
"""Most descriptors left by filters that are all compared."""
POINTS_A_LIST = 40
"""Descriptors for each list when the lists are fitted; FAISS warns below 39."""
LINKS = 32
"""Links of an HNSW node on each level; twice as many on the lowest. Half as many reach a recall of .86."""
CONSTRUCTION = 200
"""Candidates for the links of a new node (efConstruction)."""
HELD_OUT = 1000
"""Most descriptors that are added to HNSW last. Until then they are queries that it does not contain."""
CODE_SAMPLE = 65_536
"""Descriptors that the range of HNSW's one-byte codes is fitted on."""
LEAST_EFFORT, MOST_EFFORT = 16, 4096
"""Range of candidates that an HNSW search keeps (efSearch)."""
NODE_COST = 8 * LINKS
"""Codes of an inverted list that are compared in the time of one more such candidate."""


@dataclass(frozen=True)
class Setting:
    """Thoroughness of a search by codes."""

    probes: int
    """Inverted lists that are read (nprobe), or candidates that HNSW keeps (efSearch)."""
    depth: int
    """Candidates for each requested answer."""


class CompressedStore:
    """Descriptors in the shards, and their codes. Without codes, every search reads all descriptors."""

    def __init__(self, rows: Rows, codes: faiss.Index | None = None, setting: Setting | None = None) -> None:
        self.rows = rows
        self.setting = setting or Setting(1, 1)
        self._codes: Any = codes
        self._order = _order(len(rows)) if self.is_hnsw else None
        """Positions of the descriptors in the order in which they are added to HNSW."""

    @classmethod
    def build(cls, rows: Rows, factory: str) -> CompressedStore:
        """Fit codes on a sample of the descriptors, then encode all, block by block.

        The store is not tuned yet. HNSW gets the descriptors of `held_out` later, by `completed`.

        Args:
            factory: FAISS's description of an inverted file or HNSW.
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
        """Add the remaining descriptors, and return the store."""
        if self._order is not None:
            for block in self.rows.blocks(self._order[self._codes.ntotal :]):
                self._codes.add(block)
        return self

    @property
    def encoded(self) -> Positions | None:
        """Positions of the descriptors that have codes; None: all have."""
        return None if self._order is None else self._order[: self._codes.ntotal]

    @classmethod
    def load(cls, path: Path, rows: Rows, setting: Setting) -> CompressedStore:
        """Read codes that `save` wrote. Raises IndexerError if the file is damaged."""
        return cls(rows, load_index(path), setting)

    def save(self, path: Path) -> None:
        """Write the codes; not atomic. Raises OSError, for example if the disk is full."""
        if self._codes is not None:
            save_index(self._codes, path)

    def tuned(self, setting: Setting) -> CompressedStore:
        """Return the same store with another setting."""
        return CompressedStore(self.rows, self._codes, setting)

    @cached_property
    def _rank(self) -> Positions:
        """Index of each position in that order; only filtered searches need it."""
        return np.argsort(_order(self.count))

    @property
    def is_hnsw(self) -> bool:
        """Whether the codes are in HNSW."""
        return isinstance(self._codes, faiss.IndexHNSW)

    @property
    def lists(self) -> int:
        """Number of inverted lists."""
        return int(faiss.extract_index_ivf(self._codes).nlist)

    @property
    def efforts(self) -> list[int]:
        """Values of `Setting.probes` worth trying, each 1.3 to 1.5 times the previous one."""
        least, most = (LEAST_EFFORT, min(MOST_EFFORT, self.count)) if self.is_hnsw else (1, self.lists)
        steps = [step << power for power in range(most.bit_length()) for step in (2, 3)]
        return [least, *(step for step in steps if least < step < most), *([most] if most > least else [])]

    def cost(self, effort: int) -> float:
        """Return the cost of a search with `effort` probes, in codes of an inverted list."""
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
        products = np.empty((len(queries), self.count), np.float32)
        start = 0
        for block in self.rows.blocks():
            products[:, start : start + len(block)] = queries @ block.T
            start += len(block)
        return products

    def search(self, descriptors: Floats, k: int, among: Ids | None = None) -> tuple[Floats, Ids]:
        """Search as `Store.search` does; exactly if `among` has few ids, or if k is a large share of them."""
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
        # A filtered search must see as many of the descriptors left as an unfiltered search sees.
        probes = self.setting.probes * self.count // left
        if not self.is_hnsw:
            probes = max(probes, 2 * count * self.lists // left)
        candidates = self.candidates(queries, count, probes, positions)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), -1, np.int64)
        for query, near, row_scores, row_ids in zip(queries, candidates, scores, ids, strict=True):
            near = near[near >= 0]
            cosines = self.rows.read(near) @ query
            best = np.lexsort((near, -cosines))[:k]
            row_scores[: len(best)] = cosines[best]
            row_ids[: len(best)] = self.ids[near[best]]
        return scores, ids

    def candidates(
        self, queries: Floats, count: int, probes: int, positions: Positions | None = None
    ) -> Positions:
        """Return positions (B count) of the codes nearest to queries (B d), nearest first; −1 if too few."""
        library: Any = faiss
        chosen: dict[str, Any] = {}
        if positions is not None:
            numbers = positions if self._order is None else self._rank[positions]
            bits = chosen_bits(numbers)  # FAISS keeps a pointer only, until the search is done
            chosen["sel"] = library.IDSelectorBitmap(bits)
        if self._order is None:
            parameters = library.SearchParametersIVF(nprobe=min(self.lists, probes), **chosen)
        else:
            parameters = library.SearchParametersHNSW(efSearch=max(probes, count), **chosen)
        near = np.asarray(self._codes.search(queries, count, params=parameters)[1], np.intp)
        return near if self._order is None else np.where(near < 0, -1, self._order[near])

    def exact(
        self, queries: Floats, k: int, positions: Positions | None = None, leave_out: Positions | None = None
    ) -> tuple[Floats, Ids]:
        """Search by comparing all descriptors, or all at `positions`.

        Args:
            leave_out: for each query (B), the position of a descriptor that is no answer.
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
    """Return the k best of scores and ids (B n each), best first; equal scores by id."""
    scores = np.concatenate([part[0] for part in parts], axis=1)
    ids = np.concatenate([part[1] for part in parts], axis=1)
    if scores.shape[1] > 4 * k:  # otherwise sorting all is as fast
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
    """Return the positions of the descriptors that queries for tuning are made of."""
    return spread(count, min(HELD_OUT, max(1, count // 3)))


def parted(count: int) -> tuple[Positions, Positions]:
    """Return the positions that are not held out, and those that are."""
    last = held_out(count)
    return np.delete(np.arange(count), last), last


def _order(count: int) -> Positions:
    """Return all positions, the held-out ones last."""
    return np.concatenate(parted(count))


def spread(count: int, most: int) -> Positions:
    """Return at most `most` of `count` positions, evenly spaced."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.intp)

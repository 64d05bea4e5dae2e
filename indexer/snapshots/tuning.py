"""How thoroughly codes must be searched for a recall, and what is reached: measured against exact search.

Asked are descriptors of the collection, each without itself: one half as they are, the other half with a
random mixture of the collection added that is as long as they are, since photos of another day are not found
as easily as those of the same. A graph is asked before they are in it: once they are, it leads from each to
those beside it. The setting is chosen by one half of the questions, measured by the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.snapshots.compressed import CompressedStore, Setting, held_out, parted
from indexer.snapshots.store import Floats, Ids, Positions

NEAREST = 10
"""Recall is the share of so many nearest that are found where so many are asked for."""
DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
EFFORTS = (256, 512, 1024, 2048, 4096)
"""Nodes of a graph made elsewhere that a search keeps in sight (ef); the way there takes longer than 256."""
ROW_COST = 100
"""Codes that are compared in the time in which one descriptor is read and compared."""
MARGIN = 0.001
"""By how much the recall of the questions chosen by must exceed what is wanted."""


@dataclass(frozen=True)
class Questions:
    """What is asked, and what an exact search finds."""

    queries: Floats
    """m d"""
    itself: Positions
    """The position of each query's own descriptor, m."""
    nearest: Positions
    """Positions of the nearest of all others, m NEAREST."""

    def part(self, chosen: slice) -> Questions:
        return Questions(self.queries[chosen], self.itself[chosen], self.nearest[chosen])


def tune(store: CompressedStore, recall: float) -> tuple[Setting, float]:
    """The cheapest setting that reaches a recall, or the most thorough, and the recall that it has.

    Args:
        store: a graph not yet `completed`.
        recall: wanted, 0 to 1.
    """
    asked = questions(store, store.encoded)
    chosen = _cheapest(store, asked.part(slice(0, None, 2)), recall)
    return chosen, measured(store, asked.part(slice(1, None, 2)), chosen)


def least_effort(
    search: Callable[[Floats, int, int], Ids], store: CompressedStore, recall: float
) -> tuple[int, float]:
    """The least effort with which a graph made elsewhere reaches a recall, or the most, and what it reaches.

    Args:
        search: ids of the k nearest to queries, found with an effort.
        store: all descriptors; those that are `held_out` are not in the graph yet.
    """
    asked = questions(store, parted(store.count)[0])
    chosen_by, measured_by = asked.part(slice(0, None, 2)), asked.part(slice(1, None, 2))

    def reached(part: Questions, effort: int) -> float:
        found = search(part.queries, NEAREST, effort)
        return float((found[:, :, None] == store.ids[part.nearest][:, None, :]).sum() / found.size)

    for effort in EFFORTS:
        if reached(chosen_by, effort) >= recall + MARGIN:
            break
    return effort, reached(measured_by, effort)


def questions(store: CompressedStore, among: Positions | None) -> Questions:
    """Questions, always the same for the same collection, and their exact answers among so many or all."""
    itself = held_out(store.count)
    queries = store.rows.read(itself)
    generator = np.random.default_rng(0)
    mixtures = (generator.standard_normal((len(queries), len(queries))) @ queries).astype(np.float32)
    disturbed = _unit(queries + _unit(mixtures))
    halves = np.arange(len(queries)) % 4 < 2  # so that both kinds are among even and odd numbers
    queries = np.where(halves[:, None], queries, disturbed)
    _, ids = store.exact(queries, NEAREST, among, leave_out=itself)
    return Questions(queries, itself, store.rows.positions(ids))


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)


def measured(store: CompressedStore, asked: Questions, setting: Setting) -> float:
    """The recall of a setting."""
    return float(_found(store, asked, setting.probes, setting.depth * NEAREST).sum(1).mean() / NEAREST)


def _cheapest(store: CompressedStore, asked: Questions, recall: float) -> Setting:
    deepest = min(max(DEPTHS), max(1, (store.count - 1) // NEAREST))
    best, least = Setting(store.efforts[-1], deepest), np.inf
    for effort in store.efforts:
        most = min(deepest, (effort - 1) // NEAREST) if store.is_hnsw else deepest  # it sees no more
        found = _found(store, asked, effort, most * NEAREST)
        reached = found.cumsum(1).mean(0) / NEAREST  # with so many candidates
        for depth in DEPTHS:
            cost = store.cost(effort) + depth * NEAREST * ROW_COST
            if depth <= most and reached[depth * NEAREST - 1] >= recall + MARGIN and cost < least:
                best, least = Setting(effort, depth), cost
        if store.cost(effort) >= least:  # more of them only cost more
            break
    return best


def _found(store: CompressedStore, asked: Questions, probes: int, candidates: int) -> NDArray[np.bool_]:
    """Which of the candidates (m n), most promising first, are among the nearest."""
    # One more: a query's own descriptor does not count.
    named = store.candidates(asked.queries, candidates + 1, probes)
    others = named != asked.itself[:, None]
    rank = np.argsort(~others, axis=1, kind="stable")[:, :candidates]
    named = np.take_along_axis(named, rank, 1)
    return np.asarray((named[:, :, None] == asked.nearest[:, None, :]).any(2), bool)

"""Tuning of a search by codes: the cheapest setting for a recall, measured against exact search.

Queries are descriptors of the collection, each searched without itself. Half of them are used as they are. To
the other half a random mixture of the collection with the same length is added, because photos of another day
are harder to find than photos of the same day. HNSW is tuned before it contains the queries' descriptors,
since its links lead from each of them directly to its neighbours. One half of the queries selects the
setting, the other half measures its recall.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.snapshots.compressed import CompressedStore, Setting, held_out, parted
from indexer.snapshots.store import Floats, Ids, Positions

NEAREST = 10
"""Recall is measured as recall@10 against exact search."""
DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
EFFORTS = (256, 512, 1024, 2048, 4096)
"""Values of ef to try for HNSW on a server, where the round trip takes longer than a search with 256."""
ROW_COST = 100
"""Codes that are compared in the time of reading and comparing one descriptor."""
MARGIN = 0.001
"""Excess over the requested recall that the selecting queries must reach."""


@dataclass(frozen=True)
class Questions:
    """Queries with the results of an exact search."""

    queries: Floats
    """m d"""
    itself: Positions
    """Position of each query's own descriptor, m."""
    nearest: Positions
    """Positions of the nearest other descriptors, m NEAREST."""

    def part(self, chosen: slice) -> Questions:
        """Return some of the queries."""
        return Questions(self.queries[chosen], self.itself[chosen], self.nearest[chosen])


def tune(store: CompressedStore, recall: float) -> tuple[Setting, float]:
    """Return the cheapest setting that reaches a recall, or the most thorough one, and its measured recall.

    Args:
        store: HNSW must not be `completed` yet.
        recall: 0 to 1.
    """
    questions = make_questions(store, store.encoded)
    chosen = _cheapest(store, questions.part(slice(0, None, 2)), recall)
    return chosen, measured(store, questions.part(slice(1, None, 2)), chosen)


def least_effort(
    search: Callable[[Floats, int, int], Ids], store: CompressedStore, recall: float
) -> tuple[int, float]:
    """Return the least ef with which HNSW on a server reaches a recall, or the most, and its measured recall.

    Args:
        search: takes queries (m d), k and ef; returns ids (m k).
        store: all descriptors. The server must not have those of `held_out` yet.
    """
    questions = make_questions(store, parted(store.count)[0])
    chosen_by, measured_by = questions.part(slice(0, None, 2)), questions.part(slice(1, None, 2))

    def reached(part: Questions, effort: int) -> float:
        found = search(part.queries, NEAREST, effort)
        return float((found[:, :, None] == store.ids[part.nearest][:, None, :]).sum() / found.size)

    for effort in EFFORTS:
        if reached(chosen_by, effort) >= recall + MARGIN:
            break
    return effort, reached(measured_by, effort)


def make_questions(store: CompressedStore, among: Positions | None) -> Questions:
    """Return queries, the same each time, with their exact results among some positions or all."""
    itself = held_out(store.count)
    queries = store.rows.read(itself)
    generator = np.random.default_rng(0)
    mixtures = (generator.standard_normal((len(queries), len(queries))) @ queries).astype(np.float32)
    disturbed = _unit(queries + _unit(mixtures))
    halves = np.arange(len(queries)) % 4 < 2  # so that even and odd queries contain both kinds
    queries = np.where(halves[:, None], queries, disturbed)
    _, ids = store.exact(queries, NEAREST, among, leave_out=itself)
    return Questions(queries, itself, store.rows.positions(ids))


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)


def measured(store: CompressedStore, questions: Questions, setting: Setting) -> float:
    """Return the recall of a setting."""
    return float(_found(store, questions, setting.probes, setting.depth * NEAREST).sum(1).mean() / NEAREST)


def _cheapest(store: CompressedStore, questions: Questions, recall: float) -> Setting:
    deepest = min(max(DEPTHS), max(1, (store.count - 1) // NEAREST))
    best, least = Setting(store.efforts[-1], deepest), np.inf
    for effort in store.efforts:
        most = (
            min(deepest, (effort - 1) // NEAREST) if store.is_hnsw else deepest
        )  # HNSW finds no more candidates
        hits = _found(store, questions, effort, most * NEAREST)
        reached = hits.cumsum(1).mean(0) / NEAREST  # by number of candidates
        for depth in DEPTHS:
            cost = store.cost(effort) + depth * NEAREST * ROW_COST
            if depth <= most and reached[depth * NEAREST - 1] >= recall + MARGIN and cost < least:
                best, least = Setting(effort, depth), cost
        if store.cost(effort) >= least:  # a larger effort costs more
            break
    return best


def _found(store: CompressedStore, questions: Questions, probes: int, candidates: int) -> NDArray[np.bool_]:
    """Return which of the candidates (m n), best first, are among the nearest."""
    # One more, because a query's own descriptor does not count.
    near = store.candidates(questions.queries, candidates + 1, probes)
    others = near != questions.itself[:, None]
    rank = np.argsort(~others, axis=1, kind="stable")[:, :candidates]
    near = np.take_along_axis(near, rank, 1)
    return np.asarray((near[:, :, None] == questions.nearest[:, None, :]).any(2), bool)

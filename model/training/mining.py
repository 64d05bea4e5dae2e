"""Triplet mining: the best positive and the hardest negatives of a query, by cached descriptors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TrainingSet:
    """Photos as rows 0 … n − 1, and their known pairs.

    `queries` are trained to find `database`; `held_queries`, of places that training does not see (with
    softmax: other photos of the same places), are evaluated on `held_database`.
    """

    ids: tuple[str, ...]
    """Hex digits, from the photo's file."""
    queries: Rows
    database: Rows
    held_queries: Rows
    held_database: Rows
    positives: tuple[Rows, ...]
    """Near photos of each photo, without itself: they may show the same."""
    near: tuple[Rows, ...]
    """Photos too near to each photo to be negatives."""
    right: tuple[Rows, ...]
    """Near photos that look the same way; the right answers if the photo is held out."""
    labels: Rows
    """The place of each photo, 0 … classes − 1; −1 for an untrained place."""

    @property
    def classes(self) -> int:
        """Number of classes of the softmax."""
        return int(self.labels.max(initial=-1)) + 1


@dataclass(frozen=True)
class Triplets:
    """A query with its positive and negatives, as rows."""

    query: int
    positive: int
    negatives: Rows
    violating: bool
    """Whether any negative is within the margin, in cached descriptors."""


class Miner:
    """Mines as NetVLAD does, and remembers each query's hardest negatives.

    Source: Arandjelović et al., CVPR 2016, appendix: the best of the potential positives under the current
    descriptors; the hardest of `sampled` new negatives, and of those remembered.
    """

    def __init__(self, data: TrainingSet, *, negatives: int, sampled: int, margin: float) -> None:
        self._data = data
        self._count = negatives
        self._sampled = sampled
        self._margin = margin
        self._in_database = np.zeros(len(data.ids), bool)
        self._in_database[data.database] = True
        self.hardest = np.full((len(data.ids), negatives), -1, np.int64)
        """The last negatives of each query, −1 if there were fewer."""

    def mine(self, query: int, descriptors: Floats, rng: np.random.Generator) -> Triplets:
        """Return a query's triplets under `descriptors` (n d). It needs a positive and a negative."""
        data = self._data
        own = descriptors[query]
        positives = data.positives[query]
        positives = positives[self._in_database[positives]]
        similar = descriptors[positives] @ own
        best = int(similar.argmax())
        drawn = rng.choice(data.database, min(self._sampled, len(data.database)), replace=False)
        candidates = np.union1d(drawn, self.hardest[query][self.hardest[query] >= 0])
        candidates = candidates[~np.isin(candidates, data.near[query]) & (candidates != query)]
        alike = descriptors[candidates] @ own
        order = np.argsort(-alike, kind="stable")[: self._count]
        self.hardest[query] = -1
        self.hardest[query, : len(order)] = candidates[order]
        # ‖a − b‖² = 2 − 2·cos
        violating = len(order) > 0 and 2 * (alike[order[0]] - similar[best]) + self._margin > 0
        return Triplets(query, int(positives[best]), candidates[order], bool(violating))

    def trainable(self, queries: Rows) -> Rows:
        """Queries that have a positive in the database and a photo of another place."""
        kept = [
            query
            for query in queries
            if self._in_database[self._data.positives[query]].any()
            and self._in_database[self._data.near[query]].sum() < self._in_database.sum()
        ]
        return np.array(kept, np.int64)


def recall_at(
    descriptors: Floats, data: TrainingSet, ranks: tuple[int, ...] = (1, 5, 10)
) -> dict[int, float]:
    """Share of the held-out queries that have a right photo among the N nearest, for each N.

    A query's ranking leaves out itself and near photos that look another way: they share its day and camera,
    not its view. A query without a right answer is not counted.
    """
    found = np.zeros(len(ranks))
    asked = 0
    for query in data.held_queries:
        beside = np.setdiff1d(data.near[query], data.right[query])
        database = data.held_database[~np.isin(data.held_database, beside) & (data.held_database != query)]
        right = np.isin(database, data.right[query])
        if not right.any():
            continue
        asked += 1
        nearest = np.argsort(-(descriptors[database] @ descriptors[query]), kind="stable")[: max(ranks)]
        found += [right[nearest[:n]].any() for n in ranks]
    return {n: float(f) / max(asked, 1) for n, f in zip(ranks, found, strict=True)}

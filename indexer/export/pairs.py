"""Pairs of similar photos, for tools that match images pair by pair."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Cells of a similarity matrix in memory at a time: 64 MB.
_BLOCK = 16_000_000


def retrieval_pairs(
    ids: Sequence[str], descriptors: NDArray[np.float32], neighbours: int
) -> list[tuple[str, str, float]]:
    """Return each photo with its `neighbours` most similar others, best first.

    The similarity of two photos with several rows is that of their most similar rows. Photos are sorted by
    id; equally similar others, too.

    Args:
        ids: photo of each row (n).
        descriptors: rows of unit length (n d).

    Returns:
        Triples of photo, other photo and cosine.
    """
    names, owner = np.unique(np.asarray(ids, dtype=np.str_), return_inverse=True)
    keep = min(neighbours, len(names) - 1)
    if keep < 1:
        return []
    order = np.argsort(owner, kind="stable")
    rows = descriptors[order].astype(np.float32, copy=False)
    starts = np.searchsorted(owner[order], np.arange(len(names) + 1))
    pairs: list[tuple[str, str, float]] = []
    step = max(1, _BLOCK // len(rows) * len(names) // len(rows))
    for first in range(0, len(names), step):
        last = min(first + step, len(names))
        similar = _by_photo(rows[starts[first] : starts[last]] @ rows.T, starts, first, last)
        similar[np.arange(last - first), np.arange(first, last)] = -np.inf
        best = np.argsort(-similar, axis=1, kind="stable")[:, :keep]
        for number, others in enumerate(best):
            name = str(names[first + number])
            pairs += [(name, str(names[other]), float(similar[number, other])) for other in others]
    return pairs


def _by_photo(
    similar: NDArray[np.float32], starts: NDArray[np.int64], first: int, last: int
) -> NDArray[np.float32]:
    """Reduce similarities of rows to those of photos: the best over the rows of each."""
    columns = np.maximum.reduceat(similar, starts[:-1], axis=1)
    return np.asarray(np.maximum.reduceat(columns, starts[first:last] - starts[first], axis=0))

"""The field's measures as functions of plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 10
PRECISIONS = (0.99, 0.95, 0.9)
PERCENTILES = (25, 50, 75, 90, 95)
RESAMPLES = 10_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Precision and recall by threshold, from the most confident answer to all answers."""

    thresholds: Floats
    """Descending thresholds: queries whose answer has at least this value are answered."""
    precision: Floats
    recall: Floats

    def area(self) -> float:
        """Area under the curve (AUC-PR): Σ (R_k − R_{k−1})·P_k, the average precision.

        By steps, not trapezoids: straight lines between two points promise more than any threshold gives
        (Davis and Goadrich, ICML 2006).
        """
        return float(np.diff(self.recall, prepend=0.0) @ self.precision)

    def recall_at(self, precision: float) -> float:
        """Return the largest recall of a threshold with at least this precision; 0 if there is none."""
        return float(self.recall[self.precision >= precision - 1e-12].max(initial=0.0))


@dataclass(frozen=True)
class Bin:
    """Answers whose confidence lies in [low, high); the last bin includes 1."""

    low: float
    high: float
    queries: int
    confidence: float | None
    """Mean confidence; None for an empty bin."""
    right: float | None
    """Share of right answers."""


@dataclass(frozen=True)
class Interval:
    """A difference, and its 95 % interval."""

    difference: float
    low: float
    high: float


def recall_at_n(ranks: Sequence[int | None], n: int) -> float:
    """recall@N: the share of queries with a right photo among their n nearest (Arandjelović et al., 2016).

    `ranks` are the ranks, from 0, of each query's best right photo; None if there is none.

    Raises:
        ValueError: there are no queries.
    """
    if not ranks:
        raise ValueError("recall needs queries")
    return sum(rank is not None and rank < n for rank in ranks) / len(ranks)


def precision_recall(values: Sequence[float], right: Sequence[bool], answerable: int) -> Curve:
    """Precision and recall of answering only queries whose value reaches a threshold.

    `values` are scores or confidences of the first answers. precision = right / answered; recall = answered
    rightly / `answerable`, the number of queries that have a right answer in the index. Queries without one
    belong in `values` and are never right: answering them is a false positive. Equal values are answered
    together.

    This is the single-best-match evaluation of the field (Zaffar et al., VPR-Bench, IJCV 2021; Schubert et
    al., Visual Place Recognition: A Tutorial, 2023). Some papers divide by the rightly answered queries
    instead of the answerable ones: their curve ends at recall 1, and its area is ours divided by recall@1.

    Raises:
        ValueError: the lengths differ, or nothing is answerable.
    """
    if len(values) != len(right) or answerable < 1:
        raise ValueError(f"{len(values)} values, {len(right)} judgements, {answerable} answerable queries")
    order = np.argsort(-np.asarray(values, np.float64), kind="stable")
    ranked, hits = np.asarray(values, np.float64)[order], np.cumsum(np.asarray(right, bool)[order])
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True)[: len(ranked)])
    return Curve(ranked[last], hits[last] / (last + 1), hits[last] / answerable)


def reliability(confidences: Sequence[float], right: Sequence[bool], bins: int = BINS) -> list[Bin]:
    """Return bins of equal width over [0, 1], with mean confidence and share of right answers."""
    sure, correct = np.asarray(confidences, np.float64), np.asarray(right, np.float64)
    number = np.minimum((sure * bins).astype(int), bins - 1)
    found = []
    for b in range(bins):
        inside = number == b
        queries = int(inside.sum())
        means = (float(sure[inside].mean()), float(correct[inside].mean())) if queries else (None, None)
        found.append(Bin(b / bins, (b + 1) / bins, queries, *means))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error, Σ_b n_b/n · |right_b − confidence_b| (Guo et al., ICML 2017)."""
    total = sum(b.queries for b in bins)
    if not total:
        return 0.0
    return sum(b.queries * abs((b.right or 0.0) - (b.confidence or 0.0)) for b in bins) / total


def percentiles(values: Sequence[float], of: Sequence[int] = PERCENTILES) -> dict[str, float]:
    """Return percentiles of the values by name (`p50` is the median), linear between two values."""
    return {f"p{p}": float(np.percentile(np.asarray(values, np.float64), p)) for p in of}


def paired_bootstrap(
    first: Sequence[bool], second: Sequence[bool], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Return the share right in `first` minus that in `second`, with the 95 % interval of a paired bootstrap.

    Queries are drawn with replacement, each with both outcomes; the interval is from the 2.5th to the 97.5th
    percentile of the differences (Efron and Tibshirani, 1993). A query counts +1, 0 or −1, so their numbers
    in a resample are drawn from a multinomial distribution.

    Raises:
        ValueError: the lengths differ, or are 0.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} outcomes cannot be paired")
    change = np.asarray(first, int) - np.asarray(second, int)
    shares = np.array([(change == value).mean() for value in (1, 0, -1)])
    drawn = np.random.default_rng(seed).multinomial(len(change), shares / shares.sum(), size=resamples)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 2]) / len(change), [2.5, 97.5])
    return Interval(float(change.mean()), float(low), float(high))

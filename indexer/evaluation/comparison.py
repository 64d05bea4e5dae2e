"""Compare two indexes on the same queries, with intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from indexer.errors import IndexerError
from indexer.evaluation.metrics import Interval, paired_bootstrap
from indexer.evaluation.results import Evaluation, QueryResult


@dataclass(frozen=True)
class Comparison:
    """This index against another, over the queries that both can answer."""

    this: Evaluation
    other: Evaluation
    path: Path
    """Evaluation of the other index."""
    pairs: tuple[tuple[QueryResult, QueryResult], ...]
    """This index's result and the other's, for each such query."""

    @property
    def name(self) -> str:
        """Name of the other index."""
        return self.path.absolute().name

    @cached_property
    def differences(self) -> dict[str, Interval]:
        """By N: this index's recall@N minus the other's, with its 95 % interval."""
        return {str(n): paired_bootstrap(*self._found(n)) for n in self.this.at}

    @cached_property
    def recalls(self) -> dict[str, tuple[float, float]]:
        """By N: both recalls over the compared queries."""
        outcomes = {str(n): self._found(n) for n in self.this.at}
        return {n: (sum(a) / len(a), sum(b) / len(b)) for n, (a, b) in outcomes.items()}

    def _found(self, n: int) -> tuple[list[bool], list[bool]]:
        outcomes = [
            tuple(result.rank is not None and result.rank < n for result in pair) for pair in self.pairs
        ]
        return [first for first, _ in outcomes], [second for _, second in outcomes]

    @property
    def gained(self) -> list[QueryResult]:
        """Queries that only this index answers rightly."""
        return [this for this, other in self.pairs if this.right and not other.right]

    @property
    def lost(self) -> list[QueryResult]:
        """Queries that only the other index answers rightly."""
        return [this for this, other in self.pairs if other.right and not this.right]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "index": str(self.path),
            "queries": len(self.pairs),
            "recall": {n: other for n, (_, other) in self.recalls.items()},
            "difference": {n: asdict(interval) for n, interval in self.differences.items()},
            "gained": [str(result.path) for result in self.gained],
            "lost": [str(result.path) for result in self.lost],
            "model": self.other.model,
            "snapshot": self.other.snapshot,
        }


def compare(this: Evaluation, other: Evaluation, path: Path) -> Comparison:
    """Pair two evaluations of the same queries; `path` is the other index's.

    Raises:
        IndexerError: no query has a right answer in both.
    """
    others = {result.path: result for result in other.answerable}
    pairs = [(result, others[result.path]) for result in this.answerable if result.path in others]
    if not pairs:
        raise IndexerError(f"no query has a right answer in both this index and {path}")
    return Comparison(this, other, path, tuple(pairs))

"""Results of an evaluation: every query with its answer, and all measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from indexer.answers import PhotoHit, Position
from indexer.evaluation import metrics
from indexer.evaluation.truth import AlignedBy, Expected
from indexer.geo import haversine_m
from indexer.photos.metadata import PhotoMetadata
from indexer.photos.scan import ScannedFile


@dataclass(frozen=True)
class Rule:
    """What counts as right: exactly one of a radius, a truth file and a number of frames."""

    radius_m: float | None = None
    heading_tolerance: float | None = None
    """Largest difference of headings for a right photo; None: any."""
    truth: Path | None = None
    frames: int | None = None
    aligned_by: AlignedBy = "name"

    def __str__(self) -> str:
        if self.truth is not None:
            return "the truth file names it"
        if self.frames is not None:
            own = f"the frame of the same {'name' if self.aligned_by == 'name' else 'position in order'}"
            return own + (f", ±{self.frames}" if self.frames else "")
        same_way = (
            "" if self.heading_tolerance is None else f", looking the same way ±{self.heading_tolerance:g}°"
        )
        return f"within {self.radius_m:g} m{same_way}"


@dataclass(frozen=True)
class QueryResult:
    """A query, its metadata, and the index's answer."""

    file: ScannedFile
    metadata: PhotoMetadata
    expected: Expected
    hits: tuple[PhotoHit, ...]
    """The nearest photos, best first."""
    position: Position | None = None
    """Position of the answer."""
    confidence: float | None = None
    """Confidence of the answer."""
    known: bool | None = None

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def name(self) -> str:
        """Path below the folder of queries."""
        return self.file.relative

    @cached_property
    def marks(self) -> tuple[bool, ...]:
        """Whether each hit is right."""
        return tuple(self.expected.right(hit) for hit in self.hits)

    @cached_property
    def rank(self) -> int | None:
        """Rank of the best right photo, from 0; None if no hit is right."""
        return next((rank for rank, right in enumerate(self.marks) if right), None)

    @property
    def answerable(self) -> bool:
        """Whether a photo of the index is right; otherwise the query is foreign to the index."""
        return bool(self.expected.photos)

    @property
    def right(self) -> bool:
        """Whether the nearest photo is right."""
        return self.rank == 0

    @property
    def score(self) -> float | None:
        """Score of the nearest photo."""
        return self.hits[0].score if self.hits else None

    @cached_property
    def error_m(self) -> float | None:
        """Metres from the answer's position to the query's own."""
        return None if self.position is None else self.distance_m(self.position.lat, self.position.lon)

    def distance_m(self, lat: float | None, lon: float | None) -> float | None:
        """Metres from the query's own position; None if either is unknown."""
        own = self.metadata
        if lat is None or lon is None or own.lat is None or own.lon is None:
            return None
        return float(haversine_m(lat, lon, own.lat, own.lon))


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of an index; every measure follows from `results`."""

    results: tuple[QueryResult, ...]
    """Queries by path: those with a right answer in the index, and those known to be foreign to it."""
    at: tuple[int, ...]
    """The N of recall@N."""
    database: int
    """Photos in the index."""
    rule: Rule
    unjudged: int
    """Queries left out because their right answer is unknown."""
    failed: tuple[tuple[str, str], ...]
    """Query photos that could not be read, with the reason."""
    model: str
    snapshot: str
    by_radius: tuple[Evaluation, ...] = ()
    """The same answers judged by each radius, with this one, if several were given."""

    @cached_property
    def answerable(self) -> tuple[QueryResult, ...]:
        """Queries that have a right answer in the index: the denominator of recall@N."""
        return tuple(result for result in self.results if result.answerable)

    @property
    def queries(self) -> int:
        """Number of readable queries that have a right answer."""
        return len(self.answerable)

    @property
    def foreign(self) -> int:
        """Queries without a right photo in the index: wrong if answered."""
        return len(self.results) - self.queries

    @property
    def without_answer(self) -> int:
        """Queries that recall@N leaves out: foreign ones, and those without truth."""
        return self.foreign + self.unjudged

    @property
    def radius_m(self) -> float | None:
        """Distance within which a photo is right; None if something else decides."""
        return self.rule.radius_m

    @cached_property
    def recall(self) -> dict[str, float]:
        """By N: the share of answerable queries with a right photo among the N nearest."""
        return {str(n): metrics.recall_at_n(self.ranks, n) for n in self.at}

    @cached_property
    def curve(self) -> tuple[float, ...]:
        """recall@1, @2, … up to the largest N."""
        return tuple(metrics.recall_at_n(self.ranks, n) for n in range(1, max(self.at) + 1))

    @cached_property
    def ranks(self) -> list[int | None]:
        """Rank of the best right photo of each answerable query."""
        return [result.rank for result in self.answerable]

    @cached_property
    def ranked_by(self) -> str:
        """The value that ranks answers: confidence if every answer has one, otherwise the score."""
        sure = [result.confidence is not None for result in self.results if result.hits]
        return "confidence" if sure and all(sure) else "score"

    def sureness(self, result: QueryResult) -> float:
        """Return the ranking value of a query's answer."""
        value = result.confidence if self.ranked_by == "confidence" else result.score
        return float("-inf") if value is None else value

    @cached_property
    def precision_recall(self) -> metrics.Curve:
        """Precision and recall by threshold; see `indexer.evaluation.metrics.precision_recall`."""
        asked = [result for result in self.results if result.hits]
        values = [self.sureness(result) for result in asked]
        return metrics.precision_recall(values, [result.right for result in asked], self.queries)

    @cached_property
    def reliability(self) -> list[metrics.Bin] | None:
        """Confidences against the share of right answers; None if no answer has a confidence."""
        sure = [(r.confidence, r.right) for r in self.results if r.confidence is not None]
        return metrics.reliability([c for c, _ in sure], [right for _, right in sure]) if sure else None

    @cached_property
    def errors_m(self) -> list[float]:
        """Position errors in ascending order, of answerable queries with a known position."""
        return sorted(result.error_m for result in self.answerable if result.error_m is not None)

    @cached_property
    def within_radius(self) -> float | None:
        """Share of these positions whose radius contains the truth; None without positions."""
        inside = [
            result.error_m <= result.position.radius_m
            for result in self.answerable
            if result.position is not None and result.error_m is not None
        ]
        return sum(inside) / len(inside) if inside else None

    @property
    def calibration_error(self) -> float | None:
        """Expected calibration error over ten bins; None if no answer has a confidence."""
        return None if self.reliability is None else metrics.calibration_error(self.reliability)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; unmeasured ones are null."""
        return {
            "queries": self.queries,
            "database": self.database,
            "radius_m": self.radius_m,
            "recall": self.recall,
            "without_answer": self.without_answer,
            "foreign": self.foreign,
            "unjudged": self.unjudged,
            "failed": [{"path": path, "reason": reason} for path, reason in self.failed],
            "right": str(self.rule),
            "heading_tolerance": self.rule.heading_tolerance,
            "frames": self.rule.frames,
            "by_radius": [
                {
                    "radius_m": other.radius_m,
                    "queries": other.queries,
                    "without_answer": other.without_answer,
                    "recall": other.recall,
                }
                for other in self.by_radius
            ],
            "precision_recall": self._precision_recall_json(),
            "position_error_m": self._errors_json(),
            "calibration": self._calibration_json(),
            "known": self.known,
            "model": self.model,
            "snapshot": self.snapshot,
        }

    def _precision_recall_json(self) -> dict[str, Any]:
        curve = self.precision_recall
        return {
            "ranked_by": self.ranked_by,
            "auc": curve.area(),
            "recall_at_100_precision": curve.recall_at(1.0),
            "recall_at_precision": {f"{p:g}": curve.recall_at(p) for p in metrics.PRECISIONS},
        }

    def _errors_json(self) -> dict[str, Any] | None:
        if not self.errors_m:
            return None
        return {
            "queries": len(self.errors_m),
            **metrics.percentiles(self.errors_m),
            "within_radius": self.within_radius,
        }

    def _calibration_json(self) -> dict[str, Any] | None:
        if self.reliability is None:
            return None
        return {
            "queries": sum(b.queries for b in self.reliability),
            "expected_error": self.calibration_error,
            "bins": [asdict(b) for b in self.reliability],
        }

    @cached_property
    def known(self) -> dict[str, int] | None:
        """Return the numbers of right, wrong and foreign answers, and how many of each `known` refuses.

        None if no answer says whether the place is known.
        """
        judged = [result for result in self.results if result.known is not None]
        groups = {
            "right": [result for result in judged if result.right],
            "wrong": [result for result in judged if result.answerable and not result.right],
            "foreign": [result for result in judged if not result.answerable],
        }
        found = {}
        for name, group in groups.items():
            found[name] = len(group)
            found[f"{name}_and_refused"] = sum(result.known is False for result in group)
        return found if judged else None

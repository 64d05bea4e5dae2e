"""A CSV of all queries, one row each."""

from __future__ import annotations

import csv
from pathlib import Path

from indexer.evaluation.results import Evaluation, QueryResult

COLUMNS = (
    *("query", "answerable", "right", "rank", "score", "confidence", "known", "best_photo"),
    *("best_photo_distance_m", "first_right_photo", "positives"),
    *("lat", "lon", "radius_m", "true_lat", "true_lon", "error_m"),
)


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """Write a row for every query; unknown values stay empty.

    `rank` counts from 1, as in recall@N. `answerable` is 0 for queries that are foreign to the index.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        rows.writerows(_row(result) for result in evaluation.results)


def _row(result: QueryResult) -> list[object]:
    best = result.hits[0] if result.hits else None
    position, own = result.position, result.metadata
    return [
        result.name,
        int(result.answerable),
        int(result.right),
        None if result.rank is None else result.rank + 1,
        result.score,
        result.confidence,
        None if result.known is None else int(result.known),
        best and best.path,
        _metres(result.distance_m(best.lat, best.lon) if best else None),
        None if result.rank is None else result.hits[result.rank].path,
        len(result.expected.photos or ()),
        *((position.lat, position.lon, position.radius_m) if position else (None, None, None)),
        own.lat,
        own.lon,
        _metres(result.error_m),
    ]


def _metres(value: float | None) -> float | None:
    return None if value is None else round(value, 1)

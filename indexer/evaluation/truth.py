"""What is right for a query: near photos, photos of a truth file, or frames of an aligned traverse."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from indexer.answers import PhotoHit
from indexer.errors import IndexerError, NotFound, UsageError
from indexer.evaluation.queries import Query
from indexer.geo import angle_between, haversine_m
from indexer.index import Index
from indexer.storage.layout import generation_of
from indexer.storage.path_finder import PathFinder

AlignedBy = Literal["name", "order"]


@dataclass(frozen=True)
class Expected:
    """The right photos of one query."""

    photos: frozenset[str] | None
    """Ids; empty if no photo of the index is right. None if unknown."""
    heading: float | None = None
    """Heading of a right photo, or view of a panorama; None if it does not matter."""
    tolerance: float = 180.0
    """Largest difference from it, in degrees."""

    def right(self, hit: PhotoHit) -> bool:
        """Whether this photo is right; a panorama is judged by the view that was found."""
        if hit.id not in (self.photos or ()):
            return False
        if self.heading is None:
            return True
        return hit.heading is not None and bool(angle_between(hit.heading, self.heading) <= self.tolerance)


UNKNOWN = Expected(None)


def by_distance(
    index: Index, queries: Sequence[Query], radius_m: float, heading_tolerance: float | None = None
) -> list[Expected]:
    """Judge by distance: within `radius_m`, and with a tolerance also by heading.

    Truth is unknown for a query without a position or, with a tolerance, without a heading. A photo without a
    heading is then not right.

    Raises:
        IndexerError: the index has no positions; or, with a tolerance, no headings.
        UsageError: the tolerance is not 0 to 180 degrees.
    """
    if heading_tolerance is not None and not 0 <= heading_tolerance <= 180:
        raise UsageError(f"the heading tolerance must be 0 to 180 degrees, not {heading_tolerance:g}")
    if not (math.isfinite(radius_m) and radius_m >= 0):
        raise UsageError(f"the radius must be a number of metres, 0 or more, not {radius_m:g}")
    views = _Views(index, directions=heading_tolerance is not None)
    if heading_tolerance is not None and not views.have_headings:
        raise IndexerError("the index has no headings, so a heading tolerance is impossible")
    return [views.expected(query, radius_m, heading_tolerance) for query in queries]


class _Views:
    """Return position and heading of all photos with a position; with `directions`, of each view."""

    def __init__(self, index: Index, *, directions: bool) -> None:
        views = [(photo, 0.0) for photo in index.photos()]
        if directions:
            hits = index.catalogue.hits(index.catalogue.live_ids(generation_of(index.snapshot)))
            views = [(hit.photo, hit.yaw) for hit in hits.values()]
        located = [(photo, yaw) for photo, yaw in views if photo.lat is not None and photo.lon is not None]
        if not located:
            raise IndexerError("the index has no positions: set `truth` to a file of right answers")
        self._ids = [photo.id for photo, _ in located]
        self._lat = np.array([photo.lat for photo, _ in located], np.float64)
        self._lon = np.array([photo.lon for photo, _ in located], np.float64)
        heading = np.array([photo.heading for photo, _ in located], np.float64)  # NaN for None
        self._heading = heading + np.array([yaw for _, yaw in located], np.float64)

    @property
    def have_headings(self) -> bool:
        return bool(np.isfinite(self._heading).any())

    def expected(self, query: Query, radius_m: float, tolerance: float | None) -> Expected:
        where = query.known
        if where.lat is None or where.lon is None or (tolerance is not None and where.heading is None):
            return UNKNOWN
        right = haversine_m(where.lat, where.lon, self._lat, self._lon) <= radius_m
        if tolerance is None or where.heading is None:
            return Expected(frozenset(self._ids[i] for i in np.flatnonzero(right)))
        right &= (
            angle_between(self._heading, where.heading) <= tolerance
        )  # NaN without a heading: never within
        return Expected(frozenset(self._ids[i] for i in np.flatnonzero(right)), where.heading, tolerance)


def by_frames(index: Index, queries: Sequence[Query], frames: int, aligned_by: AlignedBy) -> list[Expected]:
    """Judge by frames: the query's own frame of an aligned traverse, and `frames` on either side.

    By name: the own frames are all files of the index with the query's name, without extension; neighbours
    are those beside them in order of name within the folder. Without own frames, no photo of the index is
    right. By order: the own frame is at the same position in the order of paths.

    Raises:
        UsageError: `frames` is negative.
        IndexerError: no query has a frame by its name.
    """
    if frames < 0:
        raise UsageError(f"frames must be 0 or more, not {frames}")
    # Unreadable photos count too, or all later numbers would shift.
    files = sorted(index.catalogue.files().items())
    if aligned_by == "order":
        whole = [row.photo for _, row in files]
        own = [[(whole, number)] if number < len(whole) else [] for number in range(len(queries))]
    else:
        own = _own_by_name(
            [(PurePosixPath(root) / relative, row.photo) for (root, relative), row in files], queries
        )
        if not any(own):
            raise IndexerError(
                f"none of the {len(queries)} query photos has the file name of a photo of the index; "
                "set `aligned_by` to order for frames with other names"
            )
    return [
        Expected(frozenset(p for run, at in frames_of for p in run[max(0, at - frames) : at + frames + 1]))
        for frames_of in own
    ]


def _own_by_name(
    files: Sequence[tuple[PurePosixPath, str]], queries: Sequence[Query]
) -> list[list[tuple[list[str], int]]]:
    """Return for each query the runs of frames that contain its name, and the positions in them."""
    runs: dict[PurePosixPath, list[str]] = {}
    named: dict[str, list[tuple[list[str], int]]] = {}
    for path, photo in files:
        run = runs.setdefault(path.parent, [])
        named.setdefault(path.stem, []).append((run, len(run)))
        run.append(photo)
    return [named.get(query.path.stem, []) for query in queries]


def by_file(path: Path, index: Index, queries: Sequence[Query]) -> list[Expected]:
    """Judge by a truth CSV (see `indexer.evaluation.evaluate`).

    A query that the file does not list is unknown; one with empty positives has no right photo.

    Raises:
        UsageError: a column is missing, or a row names an unknown query or photo.
    """
    rows, columns = _read_csv(path)
    form = next((c for c in ("positives", "reference_indices") if c in columns), None)
    if "query" not in columns or form is None:
        raise UsageError(
            f"the truth file {path} needs the columns query and positives, it has {_list(columns)}"
        )
    names = _QueryNames(queries)
    finder = PathFinder(index.catalogue)
    # Unreadable photos count too, or all later numbers would shift.
    ordered = [row.photo for _, row in sorted(index.catalogue.files().items())]
    positives: dict[int, set[str]] = {}
    for line, row in enumerate(rows, 2):
        try:
            if form == "positives":
                right = {finder.find(name) for name in (row[form] or "").split()}
                number = names.find(row["query"] or "")
            else:
                right = {ordered[_at(n, len(ordered), "index")] for n in (row[form] or "").split()}
                number = _at(row["query"] or "", len(queries), "folder")
        except (NotFound, ValueError) as error:
            raise UsageError(f"{path}, line {line}: {error}") from error
        positives.setdefault(number, set()).update(right)
    return [
        Expected(frozenset(positives[number])) if number in positives else UNKNOWN
        for number in range(len(queries))
    ]


def _read_csv(path: Path) -> tuple[list[dict[str, str]], set[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            return list(reader), set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"the truth file {path} cannot be read: {error}") from error


class _QueryNames:
    """Finds a query by a path of the truth file: relative, absolute, or only its end."""

    def __init__(self, queries: Sequence[Query]) -> None:
        self._numbers: dict[str, list[int]] = {}
        for number, query in enumerate(queries):
            parts = query.path.parts
            for start in range(len(parts)):
                self._numbers.setdefault("/".join(parts[start:]).replace("//", "/"), []).append(number)

    def find(self, name: str) -> int:
        found = self._numbers.get(name.removeprefix("./"), [])
        if len(found) != 1:
            raise ValueError(f"the query {name!r} names {len(found) or 'no'} photos of the folder")
        return found[0]


def _at(text: str, count: int, where: str) -> int:
    number = int(text)
    if not 0 <= number < count:
        raise ValueError(f"photo number {number} is not among the {count} of the {where}")
    return number


def _list(columns: set[str]) -> str:
    return ", ".join(sorted(map(str, columns))) or "none"

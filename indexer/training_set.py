"""Photos with positions or place names → what training may know of their pairs, and what it must not see."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from indexer.errors import IndexerError
from indexer.evaluation import query_metadata
from indexer.geo import chord_m, earth_points, to_local
from indexer.metadata import MetadataTable
from indexer.places import PlacePhoto, assign_places
from indexer.scan import ScanResult
from model.errors import ImageError
from model.training.mining import TrainingSet

DATABASE = ("database", "ref", "reference")
QUERIES = ("queries", "query")
HEADING_TOLERANCE = 45.0  # degrees; photos that look further apart than that show different things
CELL = 4  # times the negative radius: the side of the squares of land that are held out or not

Rows = NDArray[np.int64]
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class TrainingPhoto:
    """One photo to train on."""

    id: str
    """Hex digits that change with the file."""
    path: Path
    relative: str
    lat: float | None
    lon: float | None
    heading: float | None
    place: str | None


@dataclass(frozen=True)
class Supervision:
    """What counts as the same place, and how much is held out."""

    positive_radius_m: float = 10.0
    negative_radius_m: float = 25.0
    held_out: float = 0.2
    places: str = "auto"
    seed: int = 0
    classify: bool = False
    """Hold out photos of trained places, not places."""


def find_photos(
    scanned: ScanResult, table: MetadataTable | None
) -> tuple[list[TrainingPhoto], list[tuple[str, str]]]:
    """The photos of a scan with their metadata, and those that cannot be read, each with the reason."""
    photos, failed = [], []
    for file in scanned.files:
        try:
            known = query_metadata(file, table)
        except ImageError as error:
            failed.append((str(file.path), str(error)))
            continue
        text = f"{file.path}:{file.size}:{file.mtime_ns}"
        photo = hashlib.sha256(text.encode()).hexdigest()[:16]
        photos.append(
            TrainingPhoto(photo, file.path, file.relative, known.lat, known.lon, known.heading, known.place)
        )
    return photos, failed


def training_set(photos: Sequence[TrainingPhoto], how: Supervision) -> TrainingSet:
    """Who must find whom, and which photos are held out, by `how.seed`.

    Photos with a position go by it: near enough and, where headings are known, looking the same way is
    a positive, further than the negative radius a negative. Those without go by the metadata's place, or by
    what `how.places` makes a place. Every photo trained on is to find its like among the others, and every
    held-out one among all. Held-out places are squares of land, or places; training photos too near to a
    held-out one are left out. To classify, photos are held out: below folders `database` (`ref`) and
    `queries` the queries, otherwise a share of each place's.

    Raises:
        IndexerError: too few photos or places for that.
        UsageError: `how.places` is no way to make places.
    """
    if len(photos) < 4:
        raise IndexerError(f"training needs photos of several places, got {len(photos)}")
    places = _places(photos, how)
    queries, database = _roles(photos)
    if _located(photos) and not how.classify:
        positives, near = _by_position(photos, how)
        held = _hold_cells(photos, how)
    else:
        near = positives = _by_place(places)
        held = _hold_photos(places, queries, database, how) if how.classify else _hold_places(places, how)
    rows = np.arange(len(photos))
    if how.classify:
        trained = ~held & np.isin(rows, database)
        held_database = rows[trained]
    else:
        close = np.zeros(len(photos), bool)
        for row in rows[held]:
            close[near[row]] = True
        trained = ~held & ~close
        held_database = rows
    labels = _labels(places, trained)
    found = TrainingSet(
        ids=tuple(photo.id for photo in photos),
        queries=rows[trained],
        database=rows[trained],
        held_queries=rows[held],
        held_database=held_database,
        positives=tuple(positives),
        near=tuple(near),
        labels=labels,
    )
    _check(found, how)
    return found


def _check(found: TrainingSet, how: Supervision) -> None:
    in_database = np.zeros(len(found.ids), bool)
    in_database[found.database] = True
    if how.classify:
        enough = found.classes > 1
    else:
        enough = any(in_database[found.positives[row]].any() for row in found.queries)
    if not enough:
        raise IndexerError(
            "no two photos to train on show the same place: training needs photos with positions (in their "
            f"EXIF or names, or by --metadata) within {how.positive_radius_m:g} m of each other, looking the "
            "same way, or with a place in the metadata, or --places"
        )
    in_database[:] = False
    in_database[found.held_database] = True
    if not any(in_database[found.near[row]].any() for row in found.held_queries):
        raise IndexerError(
            "no held-out photo has another of its place to be found by, so that nothing could be measured: "
            "more photos are needed, or another --held-out or --seed"
        )


def _located(photos: Sequence[TrainingPhoto]) -> bool:
    return sum(photo.lat is not None for photo in photos) > len(photos) / 2


def _roles(photos: Sequence[TrainingPhoto]) -> tuple[Rows, Rows]:
    """Rows of queries and of the database; all in both where no folder says so."""
    rows = np.arange(len(photos))
    parts = [{part.lower() for part in photo.path.parent.parts} for photo in photos]
    queries = np.array([not part.isdisjoint(QUERIES) for part in parts])
    database = np.array([not part.isdisjoint(DATABASE) for part in parts])
    if (queries ^ database).all() and queries.any() and database.any():
        return rows[queries], rows[database]
    return rows, rows


def _places(photos: Sequence[TrainingPhoto], how: Supervision) -> list[int]:
    """A number for the place of each photo."""
    assigned = assign_places(
        [PlacePhoto(p.id, p.relative, p.lat, p.lon, p.place) for p in photos],
        how.places,
        how.negative_radius_m,
    )
    number = {photo: i for i, place in enumerate(assigned) for photo in place.members}
    return [number[photo.id] for photo in photos]


def _by_position(photos: Sequence[TrainingPhoto], how: Supervision) -> tuple[list[Rows], list[Rows]]:
    """Positives and near ones of each photo; a photo without a position has none."""
    located = [row for row, photo in enumerate(photos) if photo.lat is not None]
    rows = np.array(located, np.int64)
    lat = np.array([photos[row].lat for row in located], np.float64)
    lon = np.array([photos[row].lon for row in located], np.float64)
    tree = KDTree(earth_points(lat, lon))
    near = [_NONE] * len(photos)
    positives = [_NONE] * len(photos)
    for found, radius in ((near, how.negative_radius_m), (positives, how.positive_radius_m)):
        for row, neighbours in zip(located, tree.query_ball_point(tree.data, chord_m(radius)), strict=True):
            others = rows[np.array(sorted(neighbours))]
            found[row] = others[others != row]
    same_way = [
        np.array([o for o in found if _same_way(photos[row], photos[int(o)])], np.int64)
        for row, found in enumerate(positives)
    ]
    return same_way, near


def _same_way(a: TrainingPhoto, b: TrainingPhoto) -> bool:
    if a.heading is None or b.heading is None:
        return True
    return abs((a.heading - b.heading + 180) % 360 - 180) <= HEADING_TOLERANCE


def _by_place(places: Sequence[int]) -> list[Rows]:
    members: dict[int, list[int]] = {}
    for row, place in enumerate(places):
        members.setdefault(place, []).append(row)
    return [np.array([o for o in members[place] if o != row], np.int64) for row, place in enumerate(places)]


def _hold_cells(photos: Sequence[TrainingPhoto], how: Supervision) -> NDArray[np.bool_]:
    """Photos in squares of land that the seed draws, until they are `held_out` of all."""
    located = [photo for photo in photos if photo.lat is not None and photo.lon is not None]
    lat0 = float(np.median([photo.lat for photo in located if photo.lat is not None]))
    lon0 = float(np.median([photo.lon for photo in located if photo.lon is not None]))
    cells = []
    for number, photo in enumerate(photos):
        if photo.lat is None or photo.lon is None:
            cells.append(f"photo {number}")
        else:
            metres = to_local(photo.lat, photo.lon, lat0, lon0)
            east, north = (int(m // (CELL * how.negative_radius_m)) for m in metres)
            cells.append(f"{east}:{north}")
    return _hold(cells, how)


def _hold_places(places: Sequence[int], how: Supervision) -> NDArray[np.bool_]:
    return _hold([str(place) for place in places], how)


def _hold(groups: Sequence[str], how: Supervision) -> NDArray[np.bool_]:
    order = sorted(set(groups), key=lambda group: _draw(how.seed, group))
    counts = dict.fromkeys(order, 0)
    for group in groups:
        counts[group] += 1
    held: set[str] = set()
    taken = 0
    for group in order:
        if not held or taken + counts[group] / 2 <= how.held_out * len(groups):
            held.add(group)
            taken += counts[group]
    return np.array([group in held for group in groups])


def _hold_photos(places: Sequence[int], queries: Rows, database: Rows, how: Supervision) -> NDArray[np.bool_]:
    """All queries where folders tell them apart; else a share of each place's photos, never all of them."""
    held = np.zeros(len(places), bool)
    if not np.array_equal(queries, database):
        held[queries] = True
        return held
    for place in set(places):
        rows = [row for row, own in enumerate(places) if own == place]
        rows.sort(key=lambda row: _draw(how.seed, str(row)))
        count = min(len(rows) - 1, max(1, round(how.held_out * len(rows))))
        held[rows[:count]] = True
    return held


def _labels(places: Sequence[int], trained: NDArray[np.bool_]) -> Rows:
    """Places of trained photos numbered from 0; −1 elsewhere."""
    known = sorted({place for place, used in zip(places, trained, strict=True) if used})
    number = {place: i for i, place in enumerate(known)}
    return np.array([number.get(place, -1) for place in places], np.int64)


def _draw(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()

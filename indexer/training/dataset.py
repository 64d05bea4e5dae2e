"""The training set: pairs of photos with positions or place names, and what is held out."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from indexer.errors import IndexerError
from indexer.geo import angle_between, chord_m, earth_points, to_local
from indexer.options import PLACE_RADIUS_M
from indexer.photos.metadata_table import MetadataTable
from indexer.photos.read_metadata import read_metadata
from indexer.photos.scan import DATABASE, QUERIES, ScanResult
from indexer.places.assign import PlacePhoto, assign_places
from indexer.storage.files import sha256_of
from model.errors import ImageError
from model.training.mining import TrainingSet

HEADING_TOLERANCE = 45.0  # degrees; photos that look further apart show different things
CELL = 4  # times the negative radius: side of the squares of land that are held out

Rows = NDArray[np.int64]
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class TrainingPhoto:
    """A photo to train on."""

    id: str
    """Hex digits of a hash of its content and its path below the given folder: a copied collection has the
    same.
    """
    path: Path
    relative: str
    lat: float | None
    lon: float | None
    heading: float | None
    place: str | None


@dataclass(frozen=True)
class Supervision:
    """What counts as the same place, and how much is held out."""

    positive_radius_m: float | None = None  # None: the negative radius
    negative_radius_m: float = PLACE_RADIUS_M
    held_out: float = 0.2
    places: str = "auto"
    seed: int = 0
    classify: bool = False
    """Hold out photos of trained places, not places."""

    @property
    def reach_m(self) -> float:
        """Distance of photos that look the same way and show the same place."""
        return self.negative_radius_m if self.positive_radius_m is None else self.positive_radius_m


def find_photos(
    scanned: ScanResult, table: MetadataTable | None
) -> tuple[list[TrainingPhoto], list[tuple[str, str]]]:
    """Return the photos of a scan with their metadata, and the unreadable ones with the reason."""
    photos, failed = [], []
    times: Counter[str] = Counter()
    for file in scanned.files:
        try:
            known = read_metadata(file, table)
            text = f"{file.relative}:{sha256_of(file.path)}"
        except ImageError as error:
            failed.append((str(file.path), str(error)))
            continue
        except OSError as error:
            failed.append((str(file.path), str(error.strerror)))
            continue
        times[text] += 1  # two folders may hold the same photo
        photo = hashlib.sha256(f"{text}:{times[text]}".encode()).hexdigest()[:16]
        photos.append(
            TrainingPhoto(photo, file.path, file.relative, known.lat, known.lon, known.heading, known.place)
        )
    return photos, failed


def training_set(photos: Sequence[TrainingPhoto], how: Supervision) -> TrainingSet:
    """Choose pairs and held-out photos by `how.seed`.

    If most photos have a position, positions decide: photos within the radius that look the same way (if
    headings are known) are positives, those beyond the negative radius are negatives, and photos without a
    position are left out. Otherwise the metadata's places decide, or those of `how.places`. Every trained
    photo is a query among the others, and every held-out one among all. Held-out places are squares of land,
    or places; training photos too near to a held-out one are left out. For classification, photos are held
    out: those below a folder `queries` if there are folders `database` (`ref`) and `queries`, otherwise a
    share of each place.

    Raises:
        IndexerError: too few photos or places.
        UsageError: `how.places` is invalid.
    """
    if len(photos) < 4:
        raise IndexerError(f"training needs photos of several places, got {len(photos)}")
    places = _places(photos, how)
    queries, database = _roles(photos)
    known = np.ones(len(photos), bool)
    if _located(photos) and not how.classify:
        known = np.array([photo.lat is not None for photo in photos])
        positives, near, right = _by_position(photos, how)
        held = _hold_cells(photos, how)
    else:
        near = positives = right = _by_place(places)
        held = _hold_photos(places, queries, database, how) if how.classify else _hold_places(places, how)
    rows = np.arange(len(photos))
    if how.classify:
        trained = ~held & np.isin(rows, database)
        held_database = rows[trained]
    else:
        close = np.zeros(len(photos), bool)
        for row in rows[held]:
            close[near[row]] = True
        trained = known & ~held & ~close
        held_database = rows[known]
    labels = _labels(places, trained)
    found = TrainingSet(
        ids=tuple(photo.id for photo in photos),
        queries=rows[trained],
        database=rows[trained],
        held_queries=rows[held],
        held_database=held_database,
        positives=tuple(positives),
        near=tuple(near),
        right=tuple(right),
        labels=labels,
    )
    _check(found, how)
    return found


def _check(found: TrainingSet, how: Supervision) -> None:
    if how.classify and found.classes < 2:
        raise IndexerError(
            "the training photos show one place, and a softmax needs two: set `places`, or give places in "
            "the metadata"
        )
    if not len(found.queries):
        raise IndexerError(
            f"every photo is within {how.negative_radius_m:g} m of a held-out one, so none is left to train "
            "on: use photos from farther apart, or a smaller `negative_radius_m`"
        )
    if not (how.classify or _any_found(found.queries, found.positives, found.database)):
        raise IndexerError(
            "no two training photos show the same place: training needs photos with positions (in EXIF, "
            f"names or `metadata`) within {how.reach_m:g} m of each other that look the same way, or places "
            "(in `metadata` or by `places`)"
        )
    if not _any_found(found.held_queries, found.right, found.held_database):
        raise IndexerError(
            "no held-out photo shares a place with another photo, so recall cannot be measured: "
            "use more photos, or another `held_out` or `seed`"
        )


def _any_found(queries: Rows, right: Sequence[Rows], database: Rows) -> bool:
    """Whether any query has a right photo in the database."""
    return any(np.isin(right[row], database).any() for row in queries)


def _located(photos: Sequence[TrainingPhoto]) -> bool:
    return sum(photo.lat is not None for photo in photos) > len(photos) / 2


def _roles(photos: Sequence[TrainingPhoto]) -> tuple[Rows, Rows]:
    """Return the rows of queries and of the database; all in both, unless folders separate them."""
    rows = np.arange(len(photos))
    shared = len(Path(os.path.commonpath([photo.path.parent for photo in photos])).parts)
    parts = [{part.lower() for part in photo.path.parent.parts[shared:]} for photo in photos]
    queries = np.array([not part.isdisjoint(QUERIES) for part in parts])
    database = np.array([not part.isdisjoint(DATABASE) for part in parts])
    if (queries ^ database).all() and queries.any() and database.any():
        return rows[queries], rows[database]
    return rows, rows


def _places(photos: Sequence[TrainingPhoto], how: Supervision) -> list[int]:
    """Return a number for the place of each photo."""
    assigned = assign_places(
        [PlacePhoto(p.id, p.relative, p.lat, p.lon, p.place) for p in photos],
        how.places,
        how.negative_radius_m,
    )
    number = {photo: i for i, place in enumerate(assigned) for photo in place.members}
    return [number[photo.id] for photo in photos]


def _by_position(
    photos: Sequence[TrainingPhoto], how: Supervision
) -> tuple[list[Rows], list[Rows], list[Rows]]:
    """Return positives, near and right photos of each photo; a photo without a position has none."""
    located = [row for row, photo in enumerate(photos) if photo.lat is not None]
    rows = np.array(located, np.int64)
    lat = np.array([photos[row].lat for row in located], np.float64)
    lon = np.array([photos[row].lon for row in located], np.float64)
    tree = KDTree(earth_points(lat, lon))
    near = [_NONE] * len(photos)
    positives = [_NONE] * len(photos)
    for found, radius in ((near, how.negative_radius_m), (positives, how.reach_m)):
        for row, neighbours in zip(located, tree.query_ball_point(tree.data, chord_m(radius)), strict=True):
            others = rows[np.array(sorted(neighbours))]
            found[row] = others[others != row]
    return _same_way(photos, positives), near, _same_way(photos, near)


def _same_way(photos: Sequence[TrainingPhoto], found: Sequence[Rows]) -> list[Rows]:
    """Return those that look the same way."""
    return [
        np.array([o for o in others if _alike(photos[row], photos[int(o)])], np.int64)
        for row, others in enumerate(found)
    ]


def _alike(a: TrainingPhoto, b: TrainingPhoto) -> bool:
    if a.heading is None or b.heading is None:
        return True
    return bool(angle_between(a.heading, b.heading) <= HEADING_TOLERANCE)


def _by_place(places: Sequence[int]) -> list[Rows]:
    members: dict[int, list[int]] = {}
    for row, place in enumerate(places):
        members.setdefault(place, []).append(row)
    return [np.array([o for o in members[place] if o != row], np.int64) for row, place in enumerate(places)]


def _hold_cells(photos: Sequence[TrainingPhoto], how: Supervision) -> NDArray[np.bool_]:
    """Hold out squares of land, drawn by the seed, until they have the share `held_out` of the positions."""
    side = CELL * how.negative_radius_m
    located = [(p.lat, p.lon) for p in photos if p.lat is not None and p.lon is not None]
    lat0, lon0 = np.median(located, axis=0)
    cells: list[str | None] = []
    for photo in photos:
        if photo.lat is None or photo.lon is None:
            cells.append(None)
        else:
            east, north = to_local(photo.lat, photo.lon, float(lat0), float(lon0)) // side
            cells.append(f"{east:.0f}:{north:.0f}")
    if len(set(cells) - {None}) == 1:
        raise IndexerError(
            f"all photos are in one square of {side:g} m, so none can be held out: use photos from "
            "farther apart, or a smaller `negative_radius_m`, which makes the squares smaller"
        )
    return _hold(cells, how)


def _hold_places(places: Sequence[int], how: Supervision) -> NDArray[np.bool_]:
    """Hold out places drawn by the seed; a place of one photo cannot be measured."""
    counts = Counter(places)
    if len(counts) == 1:
        raise IndexerError(
            "all photos show one place, so none can be held out: set `places`, or give places in the metadata"
        )
    return _hold([str(place) if counts[place] > 1 else None for place in places], how)


def _hold(groups: Sequence[str | None], how: Supervision) -> NDArray[np.bool_]:
    """Hold out groups, in the seed's order, with about the share; at least one, the smallest if all are too
    large.
    """
    counts = Counter(group for group in groups if group is not None)
    order = sorted(counts, key=lambda group: _draw(how.seed, group))
    wanted = how.held_out * counts.total()
    held: set[str] = set()
    taken = 0
    for group in order:
        if taken + counts[group] / 2 <= wanted:
            held.add(group)
            taken += counts[group]
    if not held and order:
        held.add(min(order, key=lambda group: counts[group]))
    return np.array([group in held for group in groups])


def _hold_photos(places: Sequence[int], queries: Rows, database: Rows, how: Supervision) -> NDArray[np.bool_]:
    """Return all queries if folders separate them; otherwise a share of each place's photos, never all."""
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
    """Return places of trained photos numbered from 0; −1 for others."""
    known = sorted({place for place, used in zip(places, trained, strict=True) if used})
    number = {place: i for i, place in enumerate(known)}
    return np.array([number.get(place, -1) for place in places], np.int64)


def _draw(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()

"""Metadata of all descriptors as columns in memory, for filters.

Each snapshot has its columns in a file, so the first filtered query does not read the whole catalogue: for a
million photos that took ten seconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from indexer.filters import Filters, Moment, read_moment
from indexer.geo import angle_between, band_degrees, haversine_m
from indexer.snapshots.store import held
from indexer.storage.catalogue import Catalogue
from indexer.storage.files import NPY_HEADERS
from indexer.storage.rows import SearchedRow

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Columns:
    """n descriptors by ascending id; NaN if a value is missing."""

    ids: Ids
    lat: Floats
    lon: Floats
    heading: Floats
    """Direction of the view: the photo's heading plus the view's yaw."""
    clock: Floats
    """See `indexer.filters.Moment`, also for the next two."""
    offset: Floats
    lasts: Floats
    place: NDArray[np.int32]
    """Number of its place in `PlaceNumbers`; -1 if it has none."""
    first: Mask
    """Whether it is the first view of its photo; each photo has one."""

    def take(self, chosen: Mask) -> Columns:
        """Return the chosen descriptors."""
        return Columns(*(column[chosen] for column in self._all()))

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        """Return the descriptors of all parts, of which there is at least one."""
        whole = [np.concatenate(column) for column in zip(*(part._all() for part in parts), strict=True)]
        order = np.argsort(whole[0], kind="stable")
        return cls(*(column[order] for column in whole))

    def _all(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)

    def passing(self, filters: Filters, places: Sequence[int]) -> Mask:
        """Return which descriptors pass; `places` are the numbers of `filters.place`."""
        passing = np.ones(len(self.ids), bool)
        if filters.place is not None:
            passing &= np.isin(self.place, np.asarray(places, np.int32))
        if filters.heading is not None:
            passing &= angle_between(self.heading, filters.heading) <= filters.heading_tolerance
        if filters.after is not None:
            passing &= self._seconds(filters.after) >= filters.after.seconds
        if filters.before is not None:
            # the whole day must pass; its last second is before the next day
            passing &= self._seconds(filters.before) + np.maximum(self.lasts - 1, 0) < filters.before.seconds
        if filters.position is not None and filters.radius_m is not None:
            passing &= self._near(*filters.position, filters.radius_m)
        return passing

    def _seconds(self, bound: Moment) -> Floats:
        return self.clock - np.nan_to_num(self.offset) if bound.has_offset else self.clock

    def _near(self, lat: float, lon: float, radius_m: float) -> Mask:
        """Return which are within a circle. The exact formula runs only for its band of latitudes."""
        near = np.abs(self.lat - lat) <= band_degrees(radius_m)
        near[near] = haversine_m(self.lat[near], self.lon[near], lat, lon) <= radius_m
        return near


@dataclass(frozen=True)
class Counts:
    """How much is searched."""

    descriptors: int
    photos: int
    places: int
    """A photo without a place counts as one."""


@dataclass
class PlaceNumbers:
    """Numbers of places, so that a column of them takes four bytes a descriptor."""

    numbers: dict[str, int] = field(default_factory=dict)
    _next: Iterator[int] = field(default_factory=count)

    def of(self, place: str | None) -> int:
        """Return a place's number, new if it has none; -1 for None."""
        if place is None:
            return -1
        number = self.numbers.get(place)
        # not len(): two threads could give two places the same number
        return self.numbers.setdefault(place, next(self._next)) if number is None else number

    def known(self, places: Sequence[str]) -> list[int]:
        """Return the numbers of those places that have one."""
        return [self.numbers[place] for place in places if place in self.numbers]


def columns_of(rows: Sequence[SearchedRow], places: PlaceNumbers) -> Columns:
    """Convert rows to columns."""
    rows = sorted(rows, key=lambda row: row.id)
    moments = [(read_moment(row.taken_at) if row.taken_at else None) or _NO_TIME for row in rows]
    headings = [None if row.heading is None else row.heading + row.yaw for row in rows]
    return Columns(
        ids=np.array([row.id for row in rows], np.int64),
        lat=_floats([row.lat for row in rows]),
        lon=_floats([row.lon for row in rows]),
        heading=_floats(headings),
        clock=_floats([moment.clock for moment in moments]),
        offset=_floats([moment.offset for moment in moments]),
        lasts=_floats([moment.lasts for moment in moments]),
        place=np.array([places.of(row.place) for row in rows], np.int32),
        first=np.array([row.yaw == 0 for row in rows], bool),
    )


_NO_TIME = Moment(float("nan"), None)


def _floats(values: Sequence[float | None]) -> Floats:
    return np.array(values, np.float64)


@dataclass(frozen=True)
class Selection:
    """The descriptors that pass the filters."""

    ids: Ids
    places: int
    """Number of their places; a photo without a place counts as one."""


def save_columns(catalogue: Catalogue, generation: int, path: Path) -> None:
    """Write the columns of everything searched of a generation.

    Raises:
        IndexerError: the catalogue cannot be read.
        OSError: the disk is full.
    """
    places = PlaceNumbers()
    columns = _read(catalogue, generation, places)
    named = {name: getattr(columns, name) for name in Columns.__dataclass_fields__}
    with path.open("wb") as file:
        np.savez(file, places=np.array(list(places.numbers), np.str_), **named)


def _read(catalogue: Catalogue, generation: int, places: PlaceNumbers) -> Columns:
    parts = [columns_of(rows, places) for rows in catalogue.searched_parts(generation)]
    return Columns.joined(parts or [columns_of([], places)])


def _load(path: Path, places: PlaceNumbers) -> Columns | None:
    """Read the columns of `save_columns`; None if they cannot be read."""
    try:
        with NPY_HEADERS, path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in Columns.__dataclass_fields__}
            numbers = np.array([*map(places.of, file["places"].tolist()), -1], np.int32)
        return Columns(**(found | {"place": numbers[found["place"]]}))  # index −1 is the last place
    except (OSError, ValueError, LookupError, EOFError, BadZipFile):
        log.warning("%s is damaged; reading the catalogue instead", path)
        return None


def _places(numbers: NDArray[np.int32]) -> int:
    """Number of distinct places; each −1 counts as one."""
    return int(np.count_nonzero(np.bincount(numbers[numbers >= 0])) + np.count_nonzero(numbers < 0))


class Table:
    """The columns of a generation, read when first needed, and updated when needed again."""

    def __init__(
        self,
        catalogue: Catalogue,
        generation: int,
        saved: Path,
        change: int,
        damaged: Callable[[], object],
    ) -> None:
        """`saved` is a file of columns that contains all changes up to `change`.

        Args:
            damaged: called if the file is damaged.
        """
        self._damaged = damaged
        self._catalogue = catalogue
        self._generation = generation
        self._saved = saved
        self._saved_change = change
        self._places = PlaceNumbers()
        self._columns: Columns | None = None
        self._change = 0
        self._lock = threading.Lock()

    def counts(self) -> Counts:
        """Return how much is searched now."""
        columns = self._current()
        photos = np.count_nonzero(columns.first)
        return Counts(len(columns.ids), int(photos), _places(columns.place[columns.first]))

    def select(self, filters: Filters) -> Selection:
        """Return the descriptors that pass."""
        columns = self._current()
        mask = columns.passing(filters, self._numbers(filters))
        return Selection(columns.ids[mask], _places(columns.place[mask]))

    def passing(self, filters: Filters, rows: Sequence[SearchedRow]) -> set[int]:
        """Return the ids of those `rows` that pass."""
        columns = columns_of(rows, self._places)
        return set(columns.ids[columns.passing(filters, self._numbers(filters))].tolist())

    def _numbers(self, filters: Filters) -> list[int]:
        if filters.place is None:
            return []
        return self._places.known(self._catalogue.places_named(filters.place))

    def _current(self) -> Columns:
        change = self._catalogue.last_change()
        with self._lock:
            if self._columns is None:
                self._columns, self._change = self._first(change)
            if change > self._change:
                rows = self._catalogue.searched_rows(self._generation, self._change)
                changed = np.array(sorted(row.id for row in rows), np.int64)
                kept = self._columns.take(~held(changed, self._columns.ids))
                new = columns_of([row for row in rows if row.live], self._places)
                self._columns = Columns.joined([kept, new])
                self._change = change
            return self._columns

    def _first(self, change: int) -> tuple[Columns, int]:
        """Return the columns, and the number of the last change that they surely contain."""
        if self._saved.exists():
            columns = _load(self._saved, self._places)
            if columns is not None:
                return columns, self._saved_change
            self._damaged()
        return _read(self._catalogue, self._generation, self._places), change

"""Which photos show the same place, its neighbourhood or its surroundings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from indexer.geo import chord_m, earth_points
from indexer.places.assign import parse_mode
from indexer.places.groups import GroupedPhoto, by_folder

NEIGHBOURHOOD = 2
"""Photos within this many place radii of the best one support it."""
SURROUNDINGS = 4
"""Photos within this many place radii of a photo are left out to make its place absent."""
SPOT_M = 0.5
"""Photos within this distance were taken at one moment: directions of one panorama, or a burst."""

Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]


class Placed(Protocol):
    """The data of a photo that say where it was taken."""

    @property
    def id(self) -> str: ...
    @property
    def lat(self) -> float | None: ...
    @property
    def lon(self) -> float | None: ...


@dataclass(frozen=True)
class PlaceRule:
    """The rule for photos of one place: distance, order or named place."""

    radius_m: float
    frames: int | None = None
    """Number of near neighbours in file order; None if order means nothing."""
    named: bool = False
    """Whether folders define places, at any distance."""

    @classmethod
    def of(cls, places: str, radius_m: float) -> PlaceRule:
        """Parse the text of `indexer.options.PlaceOptions`."""
        mode = parse_mode(places)
        return cls(radius_m, mode.frames or None, mode.kind == "folder")


@dataclass(frozen=True)
class Neighbourhoods:
    """The locations of n photos."""

    rule: PlaceRule
    points: NDArray[np.float64]
    """n 3, in metres; NaN if a photo has no position, or positions do not count."""
    place: Numbers
    """Equal for photos of one place."""
    rank: Numbers
    """In file order; −1 − i if unknown, or if order does not count."""

    @classmethod
    def of(
        cls,
        photos: Sequence[Placed],
        places: Mapping[str, str],
        rule: PlaceRule,
        ranks: Mapping[str, int] | None = None,
    ) -> Neighbourhoods:
        """Return it for photos, given the place of each (a photo without one is its own place).

        `ranks`: from `frame_ranks`, if frames decide.
        """
        numbers: dict[str, int] = {}
        place = [numbers.setdefault(places.get(photo.id, photo.id), len(numbers)) for photo in photos]
        where = [(photo.lat, photo.lon) if rule.frames is None else (None, None) for photo in photos]
        positions = np.array(where, np.float64).reshape(-1, 2)
        # Those of unknown rank are far from all others, and from each other.
        far = 4 * (rule.frames or 0) + 1
        rank = [(ranks or {}).get(photo.id, -1 - far * i) for i, photo in enumerate(photos)]
        return cls(
            rule, earth_points(positions[:, 0], positions[:, 1]), np.array(place), np.array(rank, np.int64)
        )

    def right(self, photo: int) -> Mask:
        """Return which photos would be the right answer for this one, by its number."""
        if self.rule.frames is not None:
            return self._beside(photo, self.rule.frames)
        if self.rule.named or np.isnan(self.points[photo, 0]):
            return self._same(photo)
        return self._within(photo, self.rule.radius_m)

    def near(self, photo: int, among: Numbers | None = None) -> Mask:
        """Return which photos (of these numbers, if given) show its place or neighbourhood."""
        if among is not None:
            few = np.append(among, photo)
            part = Neighbourhoods(self.rule, self.points[few], self.place[few], self.rank[few])
            return part.near(len(among))[:-1]
        if self.rule.frames is not None:
            return self._beside(photo, self.rule.frames)
        return self._same(photo) | self._within(photo, NEIGHBOURHOOD * self.rule.radius_m)

    def around(self, photo: int) -> Mask:
        """Return which photos show its surroundings: without them, its place is absent."""
        if self.rule.frames is not None:  # its place, and the two next to it
            return self._beside(photo, 2 * self.rule.frames - 1) | self._same(photo)
        return self._same(photo) | self._within(photo, SURROUNDINGS * self.rule.radius_m)

    def spot(self, photo: int) -> Mask:
        """Return which photos were taken at the same spot, including itself."""
        same = self._within(photo, SPOT_M)
        same[photo] = True
        return same

    def partnered(self, spots: bool) -> Mask:
        """Return which photos share a place with another one; with `spots`, one of the same spot does not
        count.
        """
        alone = np.bincount(self.place)[self.place] == 1
        if self.rule.frames is not None:
            order = np.sort(self.rank)
            close = np.diff(order) <= self.rule.frames
            beside = np.append(close, False) | np.insert(close, 0, False)
            return np.asarray(np.isin(self.rank, order[beside]))
        if self.rule.named:
            return np.asarray(~alone)
        found = np.asarray(~alone)
        placed = ~np.isnan(self.points[:, 0])
        points = self.points[placed]
        if len(points):
            tree = cKDTree(points)
            least = tree.query_ball_point(points, chord_m(SPOT_M), return_length=True) if spots else 1
            within = tree.query_ball_point(points, chord_m(self.rule.radius_m), return_length=True)
            found[placed] = within > least
        return found

    def _same(self, photo: int) -> Mask:
        return np.asarray(self.place == self.place[photo])

    def _beside(self, photo: int, frames: int) -> Mask:
        return np.asarray(np.abs(self.rank - self.rank[photo]) <= frames)

    def _within(self, photo: int, radius_m: float) -> Mask:
        away = np.linalg.norm(self.points - self.points[photo], axis=1)
        return np.asarray(away <= chord_m(radius_m))


def frame_ranks(photos: Sequence[GroupedPhoto], frames: int) -> dict[str, int]:
    """Return the place of each photo in file order, with folders far apart."""
    ranks: dict[str, int] = {}
    rank = 0
    for folder in by_folder(photos):
        for photo in folder.photos:
            ranks[photo.id] = rank
            rank += 1
        rank += 4 * frames
    return ranks

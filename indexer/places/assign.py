"""Assign photos to places."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.errors import UsageError
from indexer.geo import chord_m, earth_points
from indexer.places.cover import cover, nearest, neighbour_counts
from indexer.places.groups import Group, by_folder, by_frames, by_name, central, inherit, points_of

PlaceKind = Literal["auto", "gps", "folder", "frames", "photo"]
_PLAIN_KINDS: dict[str, PlaceKind] = {"auto": "auto", "gps": "gps", "folder": "folder", "photo": "photo"}


class PlacePhoto(NamedTuple):
    """The data of a photo that decide its place."""

    id: str
    path: str
    lat: float | None
    lon: float | None
    place: str | None
    """Name of the place in the metadata."""


@dataclass(frozen=True)
class AssignedPlace:
    """A place and its photos."""

    id: str
    name: str | None
    medoid: str
    """Id of the photo that represents the place."""
    lat: float | None
    lon: float | None
    """Position of the medoid."""
    members: tuple[str, ...]
    """Ids of its photos with the medoid, sorted."""


@dataclass(frozen=True)
class PlaceMode:
    """How photos become places; `frames` is the number of frames in one, for that kind only."""

    kind: PlaceKind
    frames: int = 0


def parse_mode(text: str) -> PlaceMode:
    """Parse `auto`, `gps`, `folder`, `photo` or `frames:N`. Raises UsageError for anything else."""
    if text in _PLAIN_KINDS:
        return PlaceMode(_PLAIN_KINDS[text])
    frames = re.fullmatch(r"frames:([1-9][0-9]{0,8})", text)
    if frames is None:
        raise UsageError(f"places are auto, gps, folder, photo or frames:N with N from 1, not {text!r}")
    return PlaceMode("frames", int(frames[1]))


def assign_places(
    photos: Iterable[PlacePhoto],
    mode: PlaceMode | str,
    radius_m: float,
    existing: Sequence[AssignedPlace] = (),
) -> list[AssignedPlace]:
    """Assign every photo to exactly one place; returns places sorted by id.

    `gps` (and `auto`): every member lies within `radius_m` (> 0) of its place's medoid; a photo without a
    position uses the metadata's place, or is its own place. `folder`: one place for each folder. `frames:N`:
    N neighbours in file order within a folder. `photo`: each its own. The order of the photos does not
    matter.

    `existing` are the current places with their members. A photo keeps its place (except with `frames:N`,
    where a new frame shifts those after it). An id lasts while one of its place's photos is left. If the
    medoid is gone, another member takes over, and members out of its reach leave. Raises UsageError for an
    invalid mode or radius.
    """
    mode = parse_mode(mode) if isinstance(mode, str) else mode
    if not radius_m > 0:
        raise UsageError(f"the place radius must be more than 0 m, not {radius_m:g}")
    ordered = sorted(photos, key=lambda photo: photo.id)
    if mode.kind in ("auto", "gps"):
        return _by_position(ordered, radius_m, existing)
    if mode.kind == "frames":
        return _finish(by_frames(ordered, mode.frames), existing)
    return _finish(by_folder(ordered) if mode.kind == "folder" else by_name(ordered, named=False), existing)


def place_id(medoid: str, taken: Collection[str] = ()) -> str:
    """Return the id of a new place: `p` and 12 hex digits of the hashed medoid's id, not in `taken`."""
    salt = 0
    while True:
        text = f"{medoid}#{salt}" if salt else medoid
        found = "p" + hashlib.sha256(text.encode()).hexdigest()[:12]
        if found not in taken:
            return found
        salt += 1


def _by_position(
    photos: Sequence[PlacePhoto], radius_m: float, existing: Sequence[AssignedPlace]
) -> list[AssignedPlace]:
    placed = [photo for photo in photos if photo.lat is not None and photo.lon is not None]
    unplaced = [photo for photo in photos if photo.lat is None or photo.lon is None]
    near = _Nearby(placed, radius_m, existing).places() if placed else []
    taken = {place.id for place in near}
    rest = [place for place in existing if place.id not in taken]
    return sorted([*near, *_finish(by_name(unplaced), rest, taken)], key=lambda place: place.id)


def _finish(
    groups: Sequence[Group[PlacePhoto]], existing: Sequence[AssignedPlace], taken: Iterable[str] = ()
) -> list[AssignedPlace]:
    """Turn groups into places that keep the ids and medoids of the places they continue."""
    heirs = inherit([{photo.id for photo in group.photos} for group in groups], existing)
    used = {*taken, *(place.id for place in existing)}
    places = []
    for number, group in enumerate(groups):
        old = heirs.get(number)
        by_id = {photo.id: photo for photo in group.photos}
        medoid = by_id.get(old.medoid) if old else None
        place = _place("", medoid or central(group.photos), group.photos)
        place = replace(
            place, id=old.id if old else place_id(place.medoid, used), name=group.name or place.name
        )
        used.add(place.id)
        places.append(place)
    return sorted(places, key=lambda place: place.id)


def _place(id: str, medoid: PlacePhoto, members: Sequence[PlacePhoto]) -> AssignedPlace:
    names = Counter(photo.place for photo in members if photo.place)
    name = min(names, key=lambda name: (-names[name], name)) if names else None
    return AssignedPlace(
        id, name, medoid.id, medoid.lat, medoid.lon, tuple(sorted(photo.id for photo in members))
    )


class _Nearby:
    """An assignment by position; photos are known by their rank in the order of ids."""

    def __init__(
        self, photos: Sequence[PlacePhoto], radius_m: float, existing: Sequence[AssignedPlace]
    ) -> None:
        self._photos = photos
        self._reach = chord_m(radius_m)
        self._points = points_of(photos)
        self._rank = {photo.id: rank for rank, photo in enumerate(photos)}
        self._medoid_of = np.full(len(photos), -1, np.int64)
        self._ids: dict[int, str] = {}
        for place in sorted(existing, key=lambda place: place.id):
            self._take_over(place)

    def places(self) -> list[AssignedPlace]:
        self._join()
        self._found_new({*self._ids.values()})
        members: dict[int, list[PlacePhoto]] = {medoid: [] for medoid in self._ids}
        for photo, medoid in zip(self._photos, self._medoid_of.tolist(), strict=True):
            members[medoid].append(photo)
        return [_place(id, self._photos[medoid], members[medoid]) for medoid, id in self._ids.items()]

    def _take_over(self, place: AssignedPlace) -> None:
        """Continue a place with those members that still exist and are near its medoid."""
        ranks = sorted({self._rank[id] for id in (*place.members, place.medoid) if id in self._rank})
        own = np.asarray([rank for rank in ranks if self._medoid_of[rank] < 0], np.int64)
        if not len(own):
            return
        medoid = self._medoid(place, own)
        # ranks keep the choice independent of everything but the members
        within = np.linalg.norm(self._points[own] - self._points[medoid], axis=1) <= self._reach
        self._medoid_of[own[within]] = medoid
        self._ids[medoid] = place.id

    def _medoid(self, place: AssignedPlace, own: NDArray[np.int64]) -> int:
        old = self._rank.get(place.medoid, -1)
        if old in own and place.lat is not None and place.lon is not None:
            moved = np.linalg.norm(self._points[old] - earth_points(place.lat, place.lon))
            # a medoid whose position was corrected by far would move the place's id
            if moved <= self._reach:
                return old
        return int(own[neighbour_counts(self._points[own], self._reach).argmax()])

    def _join(self) -> None:
        """Assign photos without a place to the nearest medoid within reach."""
        medoids = np.asarray(sorted(self._ids), np.int64)
        free = np.flatnonzero(self._medoid_of < 0)
        if len(medoids) and len(free):
            found = nearest(self._points[free], self._points[medoids], self._reach)
            self._medoid_of[free] = np.where(found < 0, -1, medoids[found])

    def _found_new(self, taken: set[str]) -> None:
        free = np.flatnonzero(self._medoid_of < 0)
        if not len(free):
            return
        self._medoid_of[free] = free[cover(self._points[free], self._reach)]
        for medoid in np.unique(self._medoid_of[free]).tolist():
            self._ids[medoid] = place_id(self._photos[medoid].id, taken)
            taken.add(self._ids[medoid])

"""Groups of photos that are one place by name or order, not by position."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from indexer.geo import earth_points


class GroupedPhoto(Protocol):
    """The data that grouping uses; see `indexer.places.assign.PlacePhoto`."""

    @property
    def id(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def lat(self) -> float | None: ...
    @property
    def lon(self) -> float | None: ...
    @property
    def place(self) -> str | None: ...


class FormerPlace(Protocol):
    """A place as it was; see `indexer.places.assign.AssignedPlace`."""

    @property
    def id(self) -> str: ...
    @property
    def medoid(self) -> str: ...
    @property
    def members(self) -> tuple[str, ...]: ...


P = TypeVar("P", bound=GroupedPhoto)
F = TypeVar("F", bound=FormerPlace)
K = TypeVar("K")


@dataclass(frozen=True)
class Group(Generic[P]):
    """Photos of one place, in file order, and the name of the group."""

    name: str | None
    photos: tuple[P, ...]


def by_folder(photos: Iterable[P]) -> list[Group[P]]:
    """Return one group for each folder, with the folder's name."""
    folders = _gather(photos, _folder)
    return [Group(posixpath.basename(folder) or None, tuple(found)) for folder, found in folders.items()]


def by_frames(photos: Iterable[P], frames: int) -> list[Group[P]]:
    """Return groups of `frames` neighbours in file order; the last of a folder may be smaller."""
    return [
        Group(None, tuple(found[start : start + frames]))
        for found in _gather(photos, _folder).values()
        for start in range(0, len(found), frames)
    ]


def by_name(photos: Iterable[P], *, named: bool = True) -> list[Group[P]]:
    """Return one group for each place in the metadata; other photos are their own (all, unless `named`)."""
    groups = _gather(
        photos, lambda photo: ("place", photo.place) if named and photo.place else ("photo", photo.id)
    )
    return [Group(None, tuple(found)) for found in groups.values()]


def _gather(photos: Iterable[P], key: Callable[[P], K]) -> dict[K, list[P]]:
    found: dict[K, list[P]] = defaultdict(list)
    for photo in sorted(photos, key=lambda photo: (natural_order(photo.path), photo.id)):
        found[key(photo)].append(photo)
    return found


def _folder(photo: GroupedPhoto) -> str:
    return posixpath.dirname(photo.path)


def natural_order(path: str) -> list[tuple[str, int]]:
    """Sorting key that puts frame 2 before frame 10."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", path)
    return [(text, int(digits or -1)) for text, digits in parts]


def points_of(photos: Iterable[GroupedPhoto]) -> NDArray[np.float64]:
    """Return photos with a position as points in space, (n, 3) in metres."""
    positions = np.array([(photo.lat, photo.lon) for photo in photos], np.float64).reshape(-1, 2)
    return earth_points(positions[:, 0], positions[:, 1])


def central(photos: Sequence[P]) -> P:
    """Return the photo that represents a group: nearest to the middle, or the first without positions."""
    placed = [photo for photo in photos if photo.lat is not None and photo.lon is not None]
    if not placed:
        return photos[0]
    points = points_of(placed)
    return placed[int(np.linalg.norm(points - points.mean(axis=0), axis=1).argmin())]


def inherit(groups: Sequence[set[str]], former: Sequence[F]) -> dict[int, F]:
    """Return the former place that each group (of photo ids) continues, by the group's number.

    A former place goes to the group with its medoid, otherwise with most of its members. A group with several
    claims takes the place with which it shares most members; of equals, the lower id.
    """
    home = {id: number for number, group in enumerate(groups) for id in group}
    claims: dict[int, tuple[int, F]] = {}
    for place in sorted(former, key=lambda place: place.id):
        votes = Counter(home[id] for id in place.members if id in home)
        number = home.get(place.medoid, min(votes, key=lambda n: (-votes[n], n), default=None))
        if number is None:
            continue
        if number not in claims or votes[number] > claims[number][0]:
            claims[number] = (votes[number], place)
    return {number: place for number, (_, place) in claims.items()}

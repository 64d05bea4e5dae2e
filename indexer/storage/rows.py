"""The catalogue's records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from indexer.answers import Photo, Place
from indexer.photos.metadata import PhotoMetadata


@dataclass(frozen=True)
class FileRow:
    """A path the catalogue knows, and the photo that it held."""

    size: int
    mtime_ns: int
    photo: str


@dataclass(frozen=True)
class PhotoFacts:
    """What a file's bytes and surroundings say of a photo, before the network sees it."""

    sha256: str
    width: int = 0
    height: int = 0
    metadata: PhotoMetadata = field(default_factory=PhotoMetadata)
    error: str | None = None

    @property
    def id(self) -> str:
        return self.sha256[:16]


@dataclass(frozen=True)
class Slot:
    """Where a descriptor's bytes lie."""

    shard: int
    row: int


class SearchedRow(NamedTuple):
    """A descriptor as filters see it."""

    id: int
    live: bool
    yaw: float
    lat: float | None
    lon: float | None
    heading: float | None
    """Of the photo; where the descriptor looks is `yaw` to the right of it."""
    taken_at: str | None
    place: str | None
    """The place's id."""


@dataclass(frozen=True)
class Hit:
    """A descriptor's photo, as a search needs it."""

    photo: Photo
    place: Place | None
    """Without the number of its photos; None until the photo has been assigned to one."""
    yaw: float
    """Degrees that this view of a panorama looks right of the photo's middle."""

    def row(self, number: int) -> SearchedRow:
        """What filters look at, for the descriptor of this number."""
        photo = self.photo
        place = self.place.id if self.place else None
        where = (photo.lat, photo.lon, photo.heading)
        return SearchedRow(number, True, self.yaw, *where, photo.taken_at, place)

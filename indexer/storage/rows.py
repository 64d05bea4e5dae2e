"""Records of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from indexer.answers import Photo, Place
from indexer.photos.metadata import PhotoMetadata


@dataclass(frozen=True)
class FileRow:
    """A known file, and the photo that it contained."""

    size: int
    mtime_ns: int
    photo: str


@dataclass(frozen=True)
class PhotoFacts:
    """Digest, size and metadata of a photo, read without the network."""

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
    """Position of a descriptor in the shards."""

    shard: int
    row: int


class SearchedRow(NamedTuple):
    """A descriptor with the data that filters use."""

    id: int
    live: bool
    yaw: float
    lat: float | None
    lon: float | None
    heading: float | None
    """Heading of the photo. The descriptor looks `yaw` degrees to the right of it."""
    taken_at: str | None
    place: str | None
    """Id of the place."""


@dataclass(frozen=True)
class Hit:
    """A descriptor's photo with its place."""

    photo: Photo
    place: Place | None
    """Without its number of photos. None until the photo is assigned to a place."""
    yaw: float
    """Degrees from the photo's middle to this view of a panorama, to the right."""

    def row(self, number: int) -> SearchedRow:
        """Return the data for filters, for the descriptor with this id."""
        photo = self.photo
        place = self.place.id if self.place else None
        where = (photo.lat, photo.lon, photo.heading)
        return SearchedRow(number, True, self.yaw, *where, photo.taken_at, place)

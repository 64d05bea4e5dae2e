"""A photo that was sent to an index, with its metadata, checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from indexer.errors import FieldError
from indexer.filters import check_position, within
from indexer.photos.exif import from_exif
from indexer.photos.metadata import PhotoMetadata, heading_or_none, time_or_none
from indexer.storage.rows import PhotoFacts
from model.images import MAX_PIXELS, open_photo, upright_size

SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "AVIF": ".avif",
    "TIFF": ".tif",
    "HEIF": ".heic",
    "GIF": ".gif",
    "BMP": ".bmp",
}

LONGEST = 200  # characters of a name or place


@dataclass(frozen=True)
class NewPhoto:
    """A photo that was sent, before it is decoded."""

    data: bytes
    facts: PhotoFacts
    file: str
    """File name in the index's folder of POSTed photos: by content."""
    name: str
    """Name in answers."""

    @property
    def id(self) -> str:
        return self.facts.id


def given_metadata(
    *,
    lat: float | None = None,
    lon: float | None = None,
    heading: float | None = None,
    taken_at: str | None = None,
    place: str | None = None,
) -> PhotoMetadata:
    """Check the metadata that a caller gives with a photo.

    Raises:
        FieldError: an impossible value.
    """
    check_position(lat, lon)
    within("heading", heading, 0, 360)
    moment = None if taken_at is None else time_or_none(taken_at)
    if taken_at is not None and moment is None:
        raise FieldError("taken_at", f"must be a time such as 2024-09-23T16:06:58, not {taken_at[:40]!r}")
    return PhotoMetadata(
        lat=lat,
        lon=lon,
        heading=None if heading is None else heading_or_none(heading),
        taken_at=moment,
        place=None if place is None else _label("place", place),
    )


def read_new(
    data: bytes, given: PhotoMetadata, name: str | None = None, *, max_pixels: int = MAX_PIXELS
) -> NewPhoto:
    """Read hash, size and EXIF of a photo; EXIF fills what is not given. Pixels are not decoded yet.

    Raises:
        ImageError: it is not a photo, or has too many pixels.
        FieldError: the name is not allowed.
    """
    with open_photo(data, max_pixels=max_pixels) as image:
        width, height = upright_size(image)
        metadata = given.merged_over(from_exif(image))
        suffix = SUFFIXES[image.format or ""]
    sha256 = hashlib.sha256(data).hexdigest()
    facts = PhotoFacts(sha256, width, height, metadata)
    label = f"{facts.id}{suffix}" if name is None else _label("name", name.replace("\\", "/").split("/")[-1])
    return NewPhoto(data, facts, f"{sha256}{suffix}", label)


def _label(field: str, text: str) -> str:
    text = text.strip()
    if not text or text in (".", "..") or len(text) > LONGEST or not text.isprintable():
        raise FieldError(field, f"must be 1 to {LONGEST} printable characters, not {text[:40]!r}")
    return text

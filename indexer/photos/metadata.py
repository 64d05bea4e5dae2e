"""Metadata of a photo, and checks that all sources share."""

import math
import re
from dataclasses import dataclass
from datetime import date, datetime

_EXIF_DATE = re.compile(r"^(\d{4}):(\d{2}):(\d{2})")
_DATE_ONLY = re.compile(r"^\d{4}-\d{2}-\d{2}$")


@dataclass(frozen=True)
class PhotoMetadata:
    """Where and when a photo was taken, from one source."""

    lat: float | None = None
    """Degrees north, WGS84; set if and only if `lon` is."""
    lon: float | None = None
    """Degrees east, in [-180, 180]."""
    heading: float | None = None
    """Heading of the camera, degrees clockwise from north, in [0, 360)."""
    taken_at: str | None = None
    """ISO 8601, to the second, with an offset if known; `datetime.fromisoformat` parses it."""
    place: str | None = None
    """Name of the place."""

    def merged_over(self, other: "PhotoMetadata") -> "PhotoMetadata":
        """Return this with gaps filled from `other`; latitude and longitude always from one source."""
        lat, lon = (self.lat, self.lon) if self.lat is not None else (other.lat, other.lon)
        return PhotoMetadata(
            lat=lat,
            lon=lon,
            heading=other.heading if self.heading is None else self.heading,
            taken_at=self.taken_at or other.taken_at,
            place=self.place or other.place,
        )


def in_range(lat: float, lon: float) -> bool:
    """Whether the two are latitude and longitude in degrees (finite, ±90 and ±180)."""
    return math.isfinite(lat) and math.isfinite(lon) and abs(lat) <= 90 and abs(lon) <= 180


def position_or_none(lat: float, lon: float) -> tuple[float, float] | None:
    """Return the position, or None if it is out of range or exactly (0, 0).

    Receivers without a fix write zeros.
    """
    return (lat, lon) if in_range(lat, lon) and (lat, lon) != (0.0, 0.0) else None


def heading_or_none(degrees: float) -> float | None:
    """Return a heading in [0, 360), or None if it is not a finite number."""
    if not math.isfinite(degrees):
        return None
    # twice, because a tiny negative angle rounds up to 360.0 the first time
    return degrees % 360.0 % 360.0


def time_or_none(text: str, offset: str = "") -> str | None:
    """Return a time as ISO 8601 to the second, or None if it is invalid.

    Reads ISO 8601 and EXIF's `2024:09:23 16:06:58`; a date without a time stays a date. `offset` (`+02:00`)
    is added if the text has none and it is valid.
    """
    text = _EXIF_DATE.sub(r"\1-\2-\3", text.strip(" \t\r\n\0"))
    try:
        if _DATE_ONLY.match(text):
            return date.fromisoformat(text).isoformat()
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = _with_offset(moment, offset.strip(" \t\r\n\0"))
    return moment.isoformat(timespec="seconds")


def _with_offset(moment: datetime, offset: str) -> datetime:
    try:
        return datetime.fromisoformat(f"{moment.isoformat()}{offset}")
    except ValueError:
        return moment

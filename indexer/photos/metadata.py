"""What is known of a photo besides its pixels, and the checks every source of it shares."""

import math
import re
from dataclasses import dataclass
from datetime import date, datetime

_EXIF_DATE = re.compile(r"^(\d{4}):(\d{2}):(\d{2})")
_DATE_ONLY = re.compile(r"^\d{4}-\d{2}-\d{2}$")


@dataclass(frozen=True)
class PhotoMetadata:
    """Where and when a photo was taken, as far as one source knows."""

    lat: float | None = None
    """Degrees north, WGS84; set together with `lon` or not at all."""
    lon: float | None = None
    """Degrees east, in [-180, 180]."""
    heading: float | None = None
    """Degrees clockwise from north the camera looked, in [0, 360)."""
    taken_at: str | None = None
    """ISO 8601, to the second, with an offset where one is known; it parses with `datetime.fromisoformat`."""
    place: str | None = None
    """The name of the place, as the user gives it."""

    def merged_over(self, other: "PhotoMetadata") -> "PhotoMetadata":
        """This with gaps filled from `other`; latitude and longitude go together, never one of each."""
        lat, lon = (self.lat, self.lon) if self.lat is not None else (other.lat, other.lon)
        return PhotoMetadata(
            lat=lat,
            lon=lon,
            heading=other.heading if self.heading is None else self.heading,
            taken_at=self.taken_at or other.taken_at,
            place=self.place or other.place,
        )


def in_range(lat: float, lon: float) -> bool:
    """Whether the two are a latitude and a longitude in degrees (finite, ±90 and ±180)."""
    return math.isfinite(lat) and math.isfinite(lon) and abs(lat) <= 90 and abs(lon) <= 180


def position_or_none(lat: float, lon: float) -> tuple[float, float] | None:
    """The position, or None where it is out of range or exactly (0, 0).

    Receivers without a fix write zeros; nobody's photo is from that very point in the Gulf of Guinea.
    """
    return (lat, lon) if in_range(lat, lon) and (lat, lon) != (0.0, 0.0) else None


def heading_or_none(degrees: float) -> float | None:
    """A compass heading brought into [0, 360), or None where it is no finite number."""
    if not math.isfinite(degrees):
        return None
    # Twice, since a tiny negative angle rounds up to 360.0 itself the first time.
    return degrees % 360.0 % 360.0


def time_or_none(text: str, offset: str = "") -> str | None:
    """A time as ISO 8601 to the second, or None where it is none.

    Reads ISO 8601 and EXIF's `2024:09:23 16:06:58`; a date without a time stays a date. `offset`
    (`+02:00`) is added where the text has none of its own and it can be read.
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

"""Metadata from the file names of visual place recognition.

`@UTM_east@UTM_north@zone@letter@lat@lon@pano@tile@heading@pitch@roll@height@YYYYMMDD_hhmmss@note@.jpg`; any
field may be empty.
"""

import math
import re

from indexer.geo import utm_to_latlon
from indexer.photos.metadata import PhotoMetadata, heading_or_none, position_or_none, time_or_none

_FIELDS = (
    *("east", "north", "zone", "letter", "lat", "lon", "pano", "tile"),
    *("heading", "pitch", "roll", "height", "taken_at", "note"),
)
_ZONE = re.compile(r"^(\d{1,2})([A-Za-z])?$")
_STAMP = re.compile(r"^(\d{4})(\d{2})(\d{2})(?:_(\d{2})(\d{2})(\d{2}))?$")


def from_name(name: str) -> PhotoMetadata:
    """Return position, heading and time from a file name or path; empty if it has another form.

    Latitude and longitude are used if given, otherwise converted from UTM with zone and hemisphere. Without
    zone or letter there is no position.
    """
    fields = _fields(name)
    lat, lon = _given_position(fields) or _utm_position(fields) or (None, None)
    heading = _number(fields.get("heading", ""))
    return PhotoMetadata(
        lat=lat,
        lon=lon,
        heading=None if heading is None else heading_or_none(heading),
        taken_at=_time(fields.get("taken_at", "")),
    )


def panorama_of(name: str) -> str | None:
    """Return the panorama that a file's name says it was cut from, or None."""
    return _fields(name).get("pano") or None


def _fields(name: str) -> dict[str, str]:
    base = re.split(r"[/\\]", name)[-1]
    return dict(zip(_FIELDS, base.split("@")[1:-1], strict=False)) if base.startswith("@") else {}


def _given_position(fields: dict[str, str]) -> tuple[float, float] | None:
    lat, lon = _number(fields.get("lat", "")), _number(fields.get("lon", ""))
    return None if lat is None or lon is None else position_or_none(lat, lon)


def _utm_position(fields: dict[str, str]) -> tuple[float, float] | None:
    east, north = _number(fields.get("east", "")), _number(fields.get("north", ""))
    zone = _ZONE.match(fields.get("zone", "").strip())
    if east is None or north is None or zone is None:
        return None
    letter = (fields.get("letter", "").strip() or zone[2] or "").upper()
    if letter not in tuple("CDEFGHJKLMNPQRSTUVWX"):
        return None
    position = utm_to_latlon(east, north, int(zone[1]), south=_is_south(north, letter))
    return None if position is None else position_or_none(*position)


def _is_south(north: float, letter: str) -> bool:
    """Hemisphere of a UTM letter, which names a latitude band: C to M are south of the equator, N to X north.

    `S` has two meanings in practice: the band 32 to 40° N (San Francisco is 10S) and "southern hemisphere".
    The band's northings are 3,540 to 4,430 km; any other northing means the hemisphere. (`N` is north either
    way.)
    """
    if letter == "S":
        return not 3_500_000 <= north <= 4_500_000
    return letter < "N"


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _time(text: str) -> str | None:
    stamp = _STAMP.match(text.strip())
    if stamp is None:
        return None
    year, month, day, hour, minute, second = stamp.groups()
    return time_or_none(f"{year}-{month}-{day}" + (f"T{hour}:{minute}:{second}" if hour else ""))

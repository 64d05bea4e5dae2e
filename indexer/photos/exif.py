"""Metadata from a photo's EXIF."""

import math
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags, Image

from indexer.photos.metadata import PhotoMetadata, heading_or_none, position_or_none, time_or_none

_GPS = ExifTags.GPS
_BASE = ExifTags.Base


def from_exif(image: Image.Image) -> PhotoMetadata:
    """Return position, heading and time of an opened photo; missing or damaged values are None.

    A position needs both hemisphere letters: without them it may be a continent off. A position that is
    marked as void, (0, 0) or out of range counts as missing. A magnetic heading is used unchanged: the
    declination is a few degrees at most places.
    """
    try:
        exif = image.getexif()
        gps: Mapping[int, Any] = exif.get_ifd(ExifTags.IFD.GPSInfo)
        details: Mapping[int, Any] = exif.get_ifd(ExifTags.IFD.Exif)
    # Pillow raises many errors for a damaged block: struct.error, SyntaxError, KeyError, …
    except Exception:
        return PhotoMetadata()
    lat, lon = _position(gps) or (None, None)
    return PhotoMetadata(lat=lat, lon=lon, heading=_heading(gps), taken_at=_taken_at(details))


def _position(gps: Mapping[int, Any]) -> tuple[float, float] | None:
    if _letter(gps.get(_GPS.GPSStatus)) == "V":
        return None
    lat = _degrees(gps.get(_GPS.GPSLatitude), gps.get(_GPS.GPSLatitudeRef), "N", "S")
    lon = _degrees(gps.get(_GPS.GPSLongitude), gps.get(_GPS.GPSLongitudeRef), "E", "W")
    return None if lat is None or lon is None else position_or_none(lat, lon)


def _degrees(value: Any, reference: Any, positive: str, negative: str) -> float | None:
    parts = value if isinstance(value, tuple | list) else (value,)
    numbers = [_number(part) for part in parts[:3]]
    letter = _letter(reference)
    if not numbers or None in numbers or letter not in (positive, negative):
        return None
    total = sum(number / 60.0**i for i, number in enumerate(numbers) if number is not None)
    return total if letter == positive else -total


def _heading(gps: Mapping[int, Any]) -> float | None:
    value = _number(gps.get(_GPS.GPSImgDirection))
    # 0 to 359.99 by the standard; more than a full turn is damage
    return heading_or_none(value) if value is not None and 0 <= value <= 360 else None


def _taken_at(details: Mapping[int, Any]) -> str | None:
    # Not the main block's DateTime: editors set it to the time of saving.
    for moment, offset in (
        (_BASE.DateTimeOriginal, _BASE.OffsetTimeOriginal),
        (_BASE.DateTimeDigitized, _BASE.OffsetTimeDigitized),
    ):
        taken_at = time_or_none(_text(details.get(moment)), _text(details.get(offset)))
        if taken_at:
            return taken_at
    return None


def _number(value: Any) -> float | None:
    try:
        number: float = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    # a rational with denominator 0 is NaN
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    return value if isinstance(value, str) else ""


def _letter(value: Any) -> str:
    return _text(value).strip(" \t\0")[:1].upper()

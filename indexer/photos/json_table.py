"""Metadata in JSON: GeoJSON points, or Mapillary's image descriptions."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from indexer.errors import UsageError
from indexer.photos.csv_table import COLUMNS
from indexer.photos.metadata import PhotoMetadata, heading_or_none, in_range, position_or_none, time_or_none

_CAPTURE_TIME = re.compile(r"^(\d{4})_(\d{2})_(\d{2})_(\d{2})_(\d{2})_(\d{2})(?:_\d+)?$")

Entry = tuple[str, PhotoMetadata]


def parse_json(text: str, source: str) -> Iterator[Entry]:
    """Yield (path, metadata) from a GeoJSON FeatureCollection or a list of Mapillary image descriptions.

    Raises UsageError with `source` and the entry.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{source}, line {error.lineno}: is not valid JSON: {error.msg}") from error
    if isinstance(document, list):
        return _parse_mapillary(document, source)
    if document.get("type") == "FeatureCollection" and isinstance(document.get("features"), list):
        return _parse_features(document["features"], source)
    raise UsageError(f"{source}: is neither a GeoJSON FeatureCollection nor a list of Mapillary descriptions")


def _parse_features(features: list[Any], source: str) -> Iterator[Entry]:
    for number, feature in enumerate(features, 1):
        at = f"{source}, feature {number}"
        if not isinstance(feature, dict):
            raise UsageError(f"{at}: is not an object")
        properties = feature.get("properties") or {}
        path = _property(properties, "path")
        if not isinstance(path, str) or not path:
            raise UsageError(f"{at}: has no property `path` or `file`")
        lat, lon = _point(feature.get("geometry"), at)
        yield path, _described(properties, lat, lon, at)


def _point(geometry: Any, at: str) -> tuple[float | None, float | None]:
    if geometry is None:
        return None, None
    coordinates = geometry.get("coordinates") if isinstance(geometry, dict) else None
    if not isinstance(coordinates, list) or geometry.get("type") != "Point" or len(coordinates) < 2:
        raise UsageError(f"{at}: `geometry` is not a Point")
    return _position(coordinates[1], coordinates[0], at, "coordinates")


def _described(properties: Mapping[str, Any], lat: float | None, lon: float | None, at: str) -> PhotoMetadata:
    heading, taken_at = _property(properties, "heading"), _property(properties, "taken_at")
    place = _property(properties, "place")
    moment = time_or_none(str(taken_at)) if taken_at not in (None, "") else None
    if taken_at not in (None, "") and moment is None:
        raise UsageError(f"{at}: property `taken_at` is not an ISO 8601 time: {taken_at!r}")
    return PhotoMetadata(
        lat=lat,
        lon=lon,
        heading=None if heading in (None, "") else heading_or_none(_number(heading, at, "heading")),
        taken_at=moment,
        place=str(place) if place not in (None, "") else None,
    )


def _parse_mapillary(entries: list[Any], source: str) -> Iterator[Entry]:
    """Skip entries that report an error, describe a video or have no position."""
    for number, entry in enumerate(entries, 1):
        at = f"{source}, entry {number}"
        if not isinstance(entry, dict):
            raise UsageError(f"{at}: is not an object")
        if "error" in entry or "MAPLatitude" not in entry:
            continue
        path = entry.get("filename")
        if not isinstance(path, str) or not path:
            raise UsageError(f"{at}: has no `filename`")
        lat, lon = _position(
            entry["MAPLatitude"], entry.get("MAPLongitude"), at, "MAPLatitude and MAPLongitude"
        )
        compass = entry.get("MAPCompassHeading")
        heading = compass.get("TrueHeading") if isinstance(compass, dict) else None
        yield (
            path,
            PhotoMetadata(
                lat=lat,
                lon=lon,
                heading=None
                if heading is None
                else heading_or_none(_number(heading, at, "MAPCompassHeading")),
                taken_at=_capture_time(entry.get("MAPCaptureTime")),
            ),
        )


def _capture_time(value: Any) -> str | None:
    """Mapillary's `2018_06_08_20_24_11_000` is UTC; newer files have ISO 8601."""
    text = value if isinstance(value, str) else ""
    stamp = _CAPTURE_TIME.match(text)
    return time_or_none("{}-{}-{}T{}:{}:{}+00:00".format(*stamp.groups()) if stamp else text)


def _position(lat: Any, lon: Any, at: str, name: str) -> tuple[float | None, float | None]:
    lat, lon = _number(lat, at, name), _number(lon, at, name)
    if not in_range(lat, lon):
        raise UsageError(f"{at}: `{name}` is out of range: latitude {lat}, longitude {lon}")
    return position_or_none(lat, lon) or (None, None)


def _number(value: Any, at: str, name: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{at}: `{name}` is not a number: {value!r}") from None


def _property(properties: Mapping[str, Any], column: str) -> Any:
    return next((properties[name] for name in COLUMNS[column] if name in properties), None)

"""Entities of Milvus: descriptors with their photo and place, and filters as expressions."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.answers import Photo, Place
from indexer.filters import Filters
from indexer.geo import band_degrees
from indexer.search.filter_columns import Columns, PlaceNumbers, columns_of
from indexer.snapshots.store import Floats
from indexer.storage.rows import Hit

NOWHERE = 1e15
"""Stands for a missing number: Milvus 2.3 has no nulls, and no comparison reaches it."""
TEXTS = ("photo", "path", "taken_at", "given_place", "place", "place_name")
NUMBERS = (
    *("lat", "lon", "heading", "yaw", "direction", "clock", "seconds", "place_lat", "place_lon"),
    *("width", "height"),
)
FIELDS = ("id", *TEXTS, *NUMBERS)

Entity = dict[str, Any]


def entity(number: int, vector: Floats, hit: Hit, packed: bytes | None) -> Entity:
    """Return the entity of a descriptor: its vector, and its photo and place for answers."""
    photo, place = hit.photo, hit.place
    columns = columns_of([hit.row(number)], PlaceNumbers())
    return {
        "id": number,
        "vector": vector.tolist(),
        "photo": photo.id,
        "path": photo.path,
        "taken_at": photo.taken_at or "",
        "given_place": photo.place or "",
        "place": place.id if place else "",
        "place_name": (place.name if place else None) or "",
        "lat": _number(photo.lat),
        "lon": _number(photo.lon),
        "heading": _number(photo.heading),
        "yaw": hit.yaw,
        "direction": _number(None if photo.heading is None else (photo.heading + hit.yaw) % 360.0),
        "clock": _number(float(columns.clock[0])),
        "seconds": _number(float(columns.clock[0] - np.nan_to_num(columns.offset[0]))),
        "place_lat": _number(place.lat if place else None),
        "place_lon": _number(place.lon if place else None),
        "width": float(photo.width),
        "height": float(photo.height),
        "local": base64.b64encode(packed).decode() if packed else "",
    }


def hit_of(row: Mapping[str, Any]) -> Hit:
    """Return the photo and place of an entity."""
    place = None
    if row["place"]:
        place = Place(
            row["place"], row["place_name"] or None, _known(row["place_lat"]), _known(row["place_lon"]), 0
        )
    photo = Photo(
        row["photo"],
        row["path"],
        row["given_place"] or None,
        _known(row["lat"]),
        _known(row["lon"]),
        _known(row["heading"]),
        row["taken_at"] or None,
        int(row["width"]),
        int(row["height"]),
        "ok",
    )
    return Hit(photo, place, float(row["yaw"]))


def vectors_of(rows: Sequence[Mapping[str, Any]]) -> Floats:
    """Return the descriptors of entities, n d."""
    return np.array([row["vector"] for row in rows], np.float32)


def _number(value: float | None) -> float:
    return NOWHERE if value is None or value != value else float(value)


def _known(value: float) -> float | None:
    return None if value == NOWHERE else float(value)


def expression_of(filters: Filters | None) -> str:
    """Return the filters as a Milvus expression.

    Everything that passes the filters passes the expression. `passing` removes the rest.
    """
    if filters is None:
        return ""
    parts = []
    if filters.place is not None:
        name = filters.place.replace("\\", "\\\\").replace('"', '\\"')
        parts.append(f'(place == "{name}" or place_name == "{name}")')
    if filters.heading is not None and filters.heading_tolerance < 180:
        parts.append(_direction(filters.heading, filters.heading_tolerance))
    elif filters.heading is not None:
        parts.append("direction < 361.0")
    for bound, sign in ((filters.after, ">="), (filters.before, "<")):
        if bound is not None:
            field = "seconds" if bound.has_offset else "clock"
            parts.append(f"{field} {sign} {bound.seconds!r} and {field} < {NOWHERE!r}")
    if filters.position is not None and filters.radius_m is not None:
        parts.append(_box(*filters.position, filters.radius_m))
    return " and ".join(parts)


def _direction(heading: float, tolerance: float) -> str:
    # A thousandth of a degree wider: `passing` decides about rounding.
    low, high = (heading - tolerance - 1e-3) % 360.0, (heading + tolerance + 1e-3) % 360.0
    if low <= high:
        return f"direction >= {low!r} and direction <= {high!r}"
    return f"(direction >= {low!r} and direction < 361.0 or direction <= {high!r})"


def _box(lat: float, lon: float, radius_m: float) -> str:
    """Return a box around a circle; it has no limits of longitude near a pole."""
    band = band_degrees(radius_m)
    parts = [f"lat >= {lat - band!r} and lat <= {lat + band!r}"]
    if abs(lat) + band < 89.0:
        half = band / float(np.cos(np.radians(abs(lat) + band)))
        if half < 180.0:
            west, east = lon - half, lon + half
            if west < -180.0:
                parts.append(f"(lon >= {west + 360.0!r} and lon < 181.0 or lon <= {east!r})")
            elif east > 180.0:
                parts.append(f"(lon >= {west!r} and lon < 181.0 or lon <= {east - 360.0!r})")
            else:
                parts.append(f"lon >= {west!r} and lon <= {east!r}")
    return " and ".join(parts)


def passing(filters: Filters, hits: Mapping[int, Hit]) -> set[int]:
    """Return the ids of the hits that pass the filters exactly."""
    numbers = PlaceNumbers()
    columns: Columns = columns_of([hit.row(number) for number, hit in hits.items()], numbers)
    wanted = {
        hit.place.id
        for hit in hits.values()
        if hit.place is not None and filters.place in (hit.place.id, hit.place.name)
    }
    mask: NDArray[np.bool_] = columns.passing(filters, numbers.known(sorted(wanted)))
    return set(columns.ids[mask].tolist())

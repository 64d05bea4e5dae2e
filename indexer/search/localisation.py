"""From photos that resemble a query to places and a position."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from indexer.answers import PhotoHit, Place, PlaceHit, Position
from indexer.filters import Filters
from indexer.geo import from_local, haversine_m, to_local
from indexer.places.assign import place_id

LOCATE_BY = 20
"""Best photos used for the position."""
GROUP_RADIUS_M = 50.0
"""Hits this near to each other support the same position: two radii of a place, about as far as a street
scene stays recognisable.
"""
LEAST_RESULTANT = 0.85
"""Least agreement of headings for a common heading."""
_GPS_FLOOR_M = 10.0
_LONE_HIT_M = 15.0
_LEAST_TEMPERATURE = 0.01

FloatArray = NDArray[np.float64]


def locate(
    hits: Iterable[PhotoHit], *, group_radius_m: float = GROUP_RADIUS_M, radius_factor: float = 1.0
) -> Position | None:
    """Return position and heading of the query, from the hits that have a position; None if none has.

    Weights: w = exp((s − s₁)/τ) with the best score s₁; τ is a third of its lead over the median, at least
    0.01. So only differences relative to the spread count, not the level of the cosines; a median hit weighs
    1/20. The hit with most weight within `group_radius_m` defines the group; of equals, the best.

    Position: the group's weighted mean µ, in metres around that hit (so the antimeridian is not special).
    Radius: √((10 + 15/√n)² + (2σ)²) metres, with the weighted spread σ² = Σw|p − µ|²/Σw and the effective
    number of hits n = (Σw)²/Σw²: 10 m for GPS errors and the distance between cameras, 15 m more for a single
    photo. It is multiplied by `radius_factor`, which is calibrated on the index. Heading: `_heading` of the
    same group.
    """
    found = [
        (hit.lat, hit.lon, hit.score, np.nan if hit.heading is None else hit.heading)
        for hit in hits
        if hit.lat is not None and hit.lon is not None
    ]
    if not found:
        return None
    values = np.array(sorted(found, key=lambda value: (-value[2], *value[:2])), np.float64)
    lat, lon, weights = values[:, 0], values[:, 1], _weights(values[:, 2])
    offsets = [to_local(lat, lon, lat[i], lon[i]) for i in range(len(values))]
    groups = np.stack([np.hypot(*offset.T) <= group_radius_m for offset in offsets])
    # Rounded, so that equal groups tie, and the first one (with the better score) is taken.
    best = int(np.round(groups @ weights, 9).argmax())
    mean, radius_m = _mean_and_radius(offsets[best][groups[best]], weights[groups[best]])
    position = from_local(mean[0], mean[1], lat[best], lon[best])
    heading = _heading(values[groups[best], 3], weights[groups[best]])
    return Position(*position, radius_factor * radius_m, heading)


def group_hits(hits: Iterable[PhotoHit], place_of: Callable[[str], Place | None]) -> tuple[PlaceHit, ...]:
    """Return the places of the hits, best first, each with its hits, best first.

    `place_of` returns the place of a photo id (for example a dict's `get`); a photo without one is its own
    place. A place has the score of its best hit; equals are ordered by id.
    """
    found: dict[str, tuple[Place | None, list[PhotoHit]]] = {}
    for hit in sorted(hits, key=lambda hit: (-hit.score, hit.id)):
        place = place_of(hit.id)
        found.setdefault(place.id if place else place_id(hit.id), (place, []))[1].append(hit)
    places = [_place_hit(id, place, photos) for id, (place, photos) in found.items()]
    return tuple(sorted(places, key=lambda place: (-place.score, place.id)))


def _place_hit(id: str, place: Place | None, photos: Sequence[PhotoHit]) -> PlaceHit:
    where: Place | PhotoHit = place or photos[0]
    return PlaceHit(
        id=id,
        name=place.name if place else None,
        lat=where.lat,
        lon=where.lon,
        score=photos[0].score,
        photos=tuple(photos),
    )


def _weights(scores: FloatArray) -> FloatArray:
    """Weights of scores sorted from the best; the first is 1."""
    temperature = max((scores[0] - float(np.median(scores))) / 3, _LEAST_TEMPERATURE)
    return np.asarray(np.exp((scores - scores[0]) / temperature), np.float64)


def _mean_and_radius(offsets: FloatArray, weights: FloatArray) -> tuple[tuple[float, float], float]:
    share = weights / weights.sum()
    mean = share @ offsets
    variance = float(share @ ((offsets - mean) ** 2).sum(axis=1))
    floor = _GPS_FLOOR_M + _LONE_HIT_M * float(np.sqrt((share**2).sum()))
    return (float(mean[0]), float(mean[1])), float(np.sqrt(floor**2 + 4 * variance))


def _heading(headings: FloatArray, weights: FloatArray) -> float | None:
    """Circular weighted mean of headings (n, degrees, NaN if unknown); None if they disagree.

    With unit vectors u of the headings (u = 0 if unknown) and v = Σw²u/Σw², it is the direction of v if |v| ≥
    `LEAST_RESULTANT`; |v| is 1 if all look one way. Weights are squared: photos of one spot that look
    elsewhere support the position, but not the heading.
    """
    angles = np.radians(headings)
    vectors = np.nan_to_num(np.stack([np.sin(angles), np.cos(angles)], axis=1))
    east, north = (weights**2 @ vectors / (weights**2).sum()).tolist()
    if np.hypot(east, north) < LEAST_RESULTANT:
        return None
    return float(np.degrees(np.arctan2(east, north)) % 360)


def rounded(position: Position) -> Position:
    """Return a position rounded to a centimetre, its radius to a decimetre, its heading to 0.1 degrees."""
    heading = None if position.heading is None else round(position.heading, 1) % 360
    return Position(round(position.lat, 7), round(position.lon, 7), round(position.radius_m, 1), heading)


def with_distances(places: Sequence[PlaceHit], filters: Filters | None) -> tuple[PlaceHit, ...]:
    """Return places with their distance from the position in the filters, if there is one."""
    if filters is None or filters.position is None:
        return tuple(places)
    lat, lon = filters.position
    return tuple(
        place
        if place.lat is None or place.lon is None
        else replace(place, distance_m=round(float(haversine_m(lat, lon, place.lat, place.lon)), 1))
        for place in places
    )

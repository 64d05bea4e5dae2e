"""How an answer is put into words and numbers, whatever found it: what is shown, rounded and noted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from indexer.answers import PlaceHit, Position
from indexer.confidence.judge import Judgement
from indexer.filters import Filters
from indexer.geo import haversine_m

PHOTOS_A_PLACE = 5
"""Shown in an answer."""


def rounded(position: Position) -> Position:
    """To a centimetre, a decimetre and a tenth of a degree."""
    heading = None if position.heading is None else round(position.heading, 1) % 360
    return Position(round(position.lat, 7), round(position.lon, 7), round(position.radius_m, 1), heading)


def why_untold(
    judgement: Judgement,
    places: Sequence[PlaceHit],
    position: Position | None,
    filters: Filters | None,
) -> str | None:
    """Why known, confidence or position is None."""
    notes = [judgement.note] if judgement.note else []
    if not places:
        notes.append("no photo passes the filters" if filters and filters.narrow else "the index is empty")
    elif position is None:
        notes.append("none of the nearest photos has a position")
    return "; ".join(notes) or None


def shown_places(
    places: Sequence[PlaceHit], judgement: Judgement, filters: Filters | None
) -> tuple[PlaceHit, ...]:
    """Places with the best of their photos, how sure each is and how far from where the query said it was."""
    sure = judgement.confidence is not None
    shown = [
        replace(
            place,
            confidence=judgement.places.get(place.id, 0.0) if sure else None,
            photos=place.photos[:PHOTOS_A_PLACE],
        )
        for place in places
    ]
    return with_distances(shown, filters)


def with_distances(places: Sequence[PlaceHit], filters: Filters | None) -> tuple[PlaceHit, ...]:
    """Places with how far each is from the position that the query named."""
    if filters is None or filters.position is None:
        return tuple(places)
    lat, lon = filters.position
    return tuple(
        place
        if place.lat is None or place.lon is None
        else replace(place, distance_m=round(float(haversine_m(lat, lon, place.lat, place.lon)), 1))
        for place in places
    )

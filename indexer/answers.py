"""Answers of an index, the same from the command line, Python and HTTP."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

KNOWN_SHARE = 0.8
"""Default share of queries that show a place of the index."""
Match = tuple[float, float, float, float]
"""x, y in the query and x, y in the photo, as fractions of width and height."""
STAGES = ("decode", "embed", "search", "verify")


@dataclass(frozen=True, slots=True)
class PhotoHit:
    """A photo of the index that is similar to the query."""

    id: str
    path: str
    score: float
    """Cosine of the two descriptors, -1 to 1; raised towards 1 by inliers if verified."""
    inliers: int | None = None
    """Matched local features that agree on one geometry; None if not verified."""
    lat: float | None = None
    lon: float | None = None
    heading: float | None = None
    """Viewing direction in degrees, clockwise from north."""
    taken_at: str | None = None
    """ISO 8601."""
    matches: tuple[Match, ...] | None = None
    """Positions of some inliers; None if not requested, not verified, or in a panorama."""


@dataclass(frozen=True, slots=True)
class PlaceHit:
    """A place that the query may show, with its similar photos, best first."""

    id: str
    name: str | None
    lat: float | None
    lon: float | None
    score: float
    """Best score of its photos."""
    confidence: float | None = None
    """Probability that this is the place, at most 1 in sum; None if the index is not calibrated."""
    distance_m: float | None = None
    """Metres to the position in the query; None if the query has none."""
    photos: tuple[PhotoHit, ...] = ()


@dataclass(frozen=True, slots=True)
class Position:
    """Position of the query in degrees (WGS 84), with its uncertainty."""

    lat: float
    lon: float
    radius_m: float
    """Radius in metres that contains the true position two times in three, if the place is right."""
    heading: float | None = None
    """Viewing direction in degrees, clockwise from north; None if the matching photos do not determine it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer to one query photo."""

    known: bool | None
    """Whether the first place is more likely right than wrong; None if the index is not calibrated."""
    confidence: float | None
    """Probability that the first place is right; None if the index is not calibrated."""
    position: Position | None
    places: tuple[PlaceHit, ...]
    """Best first."""
    model: str
    """Fingerprint of the model that made the descriptor."""
    snapshot: str
    timings_ms: Mapping[str, float | None]
    """Milliseconds by stage: decode, embed, search, verify."""
    note: str | None = None
    """Why known, confidence or position is None."""

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON values in the documented order, with every stage and every null."""
        answer = asdict(self)
        answer["places"] = [
            place | {"photos": [_photo_json(photo) for photo in place["photos"]]}
            for place in answer["places"]
        ]
        stages = dict.fromkeys(STAGES) | dict(self.timings_ms)
        answer["timings_ms"] = {stage: ms if ms is None else round(ms, 3) for stage, ms in stages.items()}
        return answer


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo of the catalogue; width and height in pixels, upright."""

    id: str
    path: str
    place: str | None
    lat: float | None
    lon: float | None
    heading: float | None
    taken_at: str | None
    width: int
    height: int
    status: str


@dataclass(frozen=True, slots=True)
class Place:
    """A place of the index."""

    id: str
    name: str | None
    lat: float | None
    lon: float | None
    photos: int
    """Number of photos that show the place."""
    members: tuple[Photo, ...] = ()
    """The photos; empty in a list of places."""


def _photo_json(photo: dict[str, Any]) -> dict[str, Any]:
    matches = photo["matches"]
    return photo | {"matches": None if matches is None else [list(match) for match in matches]}

"""What an index answers: the values that the command line, Python and HTTP all hand out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

KNOWN_SHARE = 0.8
"""Share of the queries that show a place of the index, where nothing else is said."""
Match = tuple[float, float, float, float]
"""x, y in the query and x, y in the photo, as shares of width and height."""
STAGES = ("decode", "embed", "search", "verify")


@dataclass(frozen=True, slots=True)
class PhotoHit:
    """A photo of the index that resembles the query."""

    id: str
    path: str
    score: float
    """Cosine of the two descriptors, -1 to 1, raised towards 1 by inliers where verified."""
    inliers: int | None = None
    """Matched local features that agree on one geometry; None where not verified."""
    lat: float | None = None
    lon: float | None = None
    heading: float | None = None
    """Viewing direction in degrees, clockwise from north."""
    taken_at: str | None = None
    """ISO 8601."""
    matches: tuple[Match, ...] | None = None
    """Where inliers lie, some of many; None where not asked for, not verified, or a panorama's."""


@dataclass(frozen=True, slots=True)
class PlaceHit:
    """A place that the query may show, with the photos that speak for it, best first."""

    id: str
    name: str | None
    lat: float | None
    lon: float | None
    score: float
    """The best score among its photos."""
    confidence: float | None = None
    """Probability that this is the place, no more than 1 together; None where the index is not calibrated."""
    distance_m: float | None = None
    """Metres between the place and the position that the query named; None where it named none."""
    photos: tuple[PhotoHit, ...] = ()


@dataclass(frozen=True, slots=True)
class Position:
    """Where the query was taken: degrees (WGS 84) and how many metres that may be off."""

    lat: float
    lon: float
    radius_m: float
    """Within which the truth lies two times in three, where the place is right."""
    heading: float | None = None
    """Where the query looks, degrees clockwise from north; None where the matching photos do not tell."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one query photo, the same from Python, the command line and HTTP."""

    known: bool | None
    """Whether the first place is more likely right than wrong; None where the index cannot tell."""
    confidence: float | None
    """Probability that the first place is right; None where the index is not calibrated."""
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
        """Give the answer as JSON values in the documented order, every stage and every null present."""
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
    """What the catalogue knows about one photo; sizes in pixels, upright."""

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
    """How many photos show it."""
    members: tuple[Photo, ...] = ()
    """The photos themselves, where one place was asked for; empty in a list of places."""


def _photo_json(photo: dict[str, Any]) -> dict[str, Any]:
    matches = photo["matches"]
    return photo | {"matches": None if matches is None else [list(match) for match in matches]}

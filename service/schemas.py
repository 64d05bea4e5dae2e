"""The JSON that goes over HTTP; the answer's names and order are those of `Answer.to_json()`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Schema(BaseModel):
    """A body with exactly the documented fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PhotoMatch(Schema):
    """A photo of the index that resembles the query."""

    id: str
    """Ask /v1/photos/{id} for more, /v1/photos/{id}/image for the photo itself."""
    path: str
    """Where the photo lay, relative to the indexed folder."""
    score: float
    """Cosine similarity of the two descriptors."""
    inliers: int | None
    """Matched local features that agree on one geometry; null where not verified."""
    lat: float | None
    """Degrees, WGS 84."""
    lon: float | None
    """Degrees, WGS 84."""
    heading: float | None
    """Viewing direction in degrees, clockwise from north."""
    taken_at: str | None
    """ISO 8601."""


class PlaceMatch(Schema):
    """A place that the query may show."""

    id: str
    """Ask /v1/places/{id} for more."""
    name: str | None
    """The place's name, where the photos' metadata gave one."""
    lat: float | None
    """Degrees, WGS 84."""
    lon: float | None
    """Degrees, WGS 84."""
    score: float
    """The best score among its photos."""
    confidence: float | None
    """Probability that this is the place; null where the index is not calibrated."""
    distance_m: float | None
    """Metres between the place and the position that the query named; null where it named none."""
    photos: list[PhotoMatch]
    """The photos that speak for this place, best first."""


class EstimatedPosition(Schema):
    """Where the query was taken."""

    lat: float
    """Degrees, WGS 84."""
    lon: float
    """Degrees, WGS 84."""
    radius_m: float
    """How many metres it may be off."""


class Timings(Schema):
    """Milliseconds by stage, as this request saw them: waiting for its turn is included."""

    decode: float | None
    """From the bytes to an upright image of the model's size."""
    embed: float | None
    """From the image to its descriptor, through the shared queue."""
    search: float | None
    """From the descriptor to places and position."""
    verify: float | None
    """Geometric verification; null where it did not run."""


class QueryAnswer(Schema):
    """Which place a photo shows, where that is, how sure that is, and which photos show it."""

    known: bool | None
    """Whether the index knows the place; null where it cannot tell."""
    confidence: float | None
    """Probability that the first place is right; null where the index is not calibrated."""
    position: EstimatedPosition | None
    """Where the photo was taken; null where the matching photos have no position."""
    places: list[PlaceMatch]
    """The nearest places, best first."""
    model: str
    """Fingerprint of the model that made the descriptor."""
    snapshot: str
    """The snapshot of the index that answered."""
    timings_ms: Timings
    """How long each stage took."""
    note: str | None
    """Why known, confidence or position is null."""


class Embeddings(Schema):
    """The descriptors of the images, in the order in which they were sent."""

    model: str
    """Fingerprint of the model: only descriptors of one model may be compared."""
    dim: int
    """Numbers in a descriptor."""
    descriptors: list[list[float]]
    """One unit-length vector an image."""


class PlaceSummary(Schema):
    """A place of the index."""

    id: str
    """Stays the same over snapshots."""
    name: str | None
    """The place's name, where the photos' metadata gave one."""
    lat: float | None
    """Degrees, WGS 84."""
    lon: float | None
    """Degrees, WGS 84."""
    photo_count: int
    """How many photos show it."""


class PlacePage(Schema):
    """Some of the index's places."""

    total: int
    """How many places the index has."""
    limit: int
    """How many were asked for."""
    offset: int
    """How many were passed over."""
    places: list[PlaceSummary]
    """The places, in the index's own order."""


class PhotoInfo(Schema):
    """What the index knows about a photo."""

    id: str
    """The photo's identifier."""
    path: str
    """Where the photo lay, relative to the indexed folder."""
    place: str | None
    """Identifier of its place."""
    lat: float | None
    """Degrees, WGS 84."""
    lon: float | None
    """Degrees, WGS 84."""
    heading: float | None
    """Viewing direction in degrees, clockwise from north."""
    taken_at: str | None
    """ISO 8601."""
    width: int
    """Pixels, upright."""
    height: int
    """Pixels, upright."""
    status: str
    """Whether the photo is in the index, or why not."""


class PlaceDetail(PlaceSummary):
    """A place of the index with the photos that show it."""

    photos: list[PhotoInfo]
    """Its photos."""


class Point(Schema):
    """A GeoJSON point (RFC 7946)."""

    type: Literal["Point"] = "Point"
    """The kind of geometry."""
    coordinates: tuple[float, float]
    """Longitude, latitude; degrees, WGS 84."""


class PlaceFeature(Schema):
    """A place as a GeoJSON feature."""

    type: Literal["Feature"] = "Feature"
    """The kind of object."""
    id: str
    """The place's identifier."""
    geometry: Point
    """Where it is."""
    properties: dict[str, Any]
    """`name` and `photo_count`."""


class PlaceCollection(Schema):
    """The places that have a position, as a GeoJSON feature collection."""

    type: Literal["FeatureCollection"] = "FeatureCollection"
    """The kind of object."""
    features: list[PlaceFeature]
    """One feature a place."""


class Health(Schema):
    """The process is alive."""

    status: Literal["ok"] = "ok"
    """Always ok: a dead process does not answer."""


class Readiness(Schema):
    """The service can answer queries."""

    status: Literal["ready"] = "ready"
    """Ready; otherwise the answer is a problem with status 503."""
    model: str
    """Fingerprint of the model."""
    snapshot: str
    """The snapshot that is being served."""


class ProblemDetail(Schema):
    """Why a request was refused (RFC 9457)."""

    type: str
    """A name for the kind of problem, for programs to switch on."""
    title: str
    """The kind of problem, for people."""
    status: int = Field(ge=400, le=599)
    """The HTTP status."""
    detail: str
    """What was wrong with this request."""
    field: str | None = None
    """The parameter or part that is to blame; absent where none is."""


class PageSettings(Schema):
    """What the web page may offer."""

    version: str
    """The service's version."""
    docs: bool
    """Whether /docs is there."""
    map_tiles: str | None
    """URL template of map tiles; null: a grid is drawn instead."""
    map_attribution: str
    """The tiles' source."""
    max_upload_bytes: int
    """Largest request body."""
    max_images: int
    """Most photos in one clip."""


class PageIndex(Schema):
    """What the web page tells about the index that is loaded."""

    photos: int
    """Photos that are searched."""
    places: int
    """Places that they show."""
    dim: int
    """Numbers in a descriptor."""
    model: str
    """Fingerprint of the model."""
    snapshot: str
    """The snapshot that is being served."""

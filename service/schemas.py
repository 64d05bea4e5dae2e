"""JSON of the service; names and order of an answer equal `Answer.to_json()`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Schema(BaseModel):
    """A body with exactly the documented fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _with_example(**example: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


_WHERE = {"lat": 30.171495, "lon": -98.089367}
_SHOT = {**_WHERE, "heading": 270.0, "taken_at": "2014-10-19T13:21:39"}
_PHOTO = {"id": "51c0cda4f25811e1", "path": "photos/IMG_9375.jpg", **_SHOT}
_PLACE = {"id": "p0f039d73f70c", "name": None, **_WHERE}
_HIT = {**_PHOTO, "score": 0.71, "inliers": None, "matches": None}
_MATCH = {**_PLACE, "score": 0.71, "confidence": None, "distance_m": None}
_TOLD = {**_PHOTO, "place": None, "width": 640, "height": 480, "status": "ok"}


class PhotoMatch(Schema):
    """A photo of the index that resembles the query."""

    id: str
    """Id for /v1/photos/{id} and /v1/photos/{id}/image."""
    path: str
    """Path of the photo, relative to the indexed folder."""
    score: float
    """Cosine of the two descriptors, raised towards 1 by inliers if verified."""
    inliers: int | None
    """Matching local features that agree on one geometry; null if not verified."""
    lat: float | None
    """Degrees, WGS 84."""
    lon: float | None
    """Degrees, WGS 84."""
    heading: float | None
    """Viewing direction in degrees, clockwise from north."""
    taken_at: str | None
    """ISO 8601."""
    matches: list[tuple[float, float, float, float]] | None
    """Positions of inliers, at most 60: x, y in the query and x, y in this photo, as shares of width and
    height; null if not requested, if not verified, and for panoramas.
    """


class PlaceMatch(Schema):
    """A place that the query may show."""

    id: str
    """Id for /v1/places/{id}."""
    name: str | None
    """Name of the place in the photos' metadata, if any."""
    lat: float | None
    """Degrees, WGS 84."""
    lon: float | None
    """Degrees, WGS 84."""
    score: float
    """The best score of its photos."""
    confidence: float | None
    """Probability that this is the right place; together at most 1. Null if the index is not calibrated."""
    distance_m: float | None
    """Metres between the place and the position in the query's filters; null without one."""
    photos: list[PhotoMatch]
    """The matching photos of this place, best first."""


class EstimatedPosition(Schema):
    """The position of the query."""

    lat: float
    """Degrees, WGS 84."""
    lon: float
    """Degrees, WGS 84."""
    radius_m: float
    """Radius in metres that contains the true position two times in three."""
    heading: float | None
    """Heading of the query in degrees, clockwise from north; null if the matching photos disagree."""


class Timings(Schema):
    """Milliseconds of each stage, with waiting."""

    decode: float | None
    """From bytes to an upright image of the model's size."""
    embed: float | None
    """From image to descriptor, with the shared queue."""
    search: float | None
    """From descriptor to places and position."""
    verify: float | None
    """Geometric verification; null if it did not run."""


class QueryAnswer(Schema):
    """The place and position of a query, the confidence, and the matching photos."""

    model_config = _with_example(
        known=True,
        confidence=0.93,
        position={**_WHERE, "radius_m": 12.0, "heading": 265.0},
        places=[{**_MATCH, "confidence": 0.93, "photos": [_HIT]}],
        model="a8fe437695841e30",
        snapshot="01/000001",
        timings_ms={"decode": 6.1, "embed": 280.4, "search": 2.6, "verify": None},
        note=None,
    )

    known: bool | None
    """Whether the first place is more likely right than wrong; null without confidence."""
    confidence: float | None
    """Probability that the first place is right; null if the index is not calibrated."""
    position: EstimatedPosition | None
    """The position of the query; null if the matching photos have none."""
    places: list[PlaceMatch]
    """The nearest places, best first."""
    model: str
    """Fingerprint of the model that made the descriptor."""
    snapshot: str
    """The snapshot that answered."""
    timings_ms: Timings
    """Time of each stage."""
    note: str | None
    """Why known, confidence or position is null."""


class Embeddings(Schema):
    """Descriptors of the images, in the order of the request."""

    model_config = _with_example(model="a8fe437695841e30", dim=2, descriptors=[[0.6, 0.8]])

    model: str
    """Fingerprint of the model. Descriptors of different models cannot be compared."""
    dim: int
    """Numbers in a descriptor."""
    descriptors: list[list[float]]
    """One vector of unit length for each image."""


class PlaceSummary(Schema):
    """A place of the index."""

    id: str
    """Id; it stays the same in later snapshots."""
    name: str | None
    """Name of the place in the photos' metadata, if any."""
    lat: float | None
    """Degrees, WGS 84."""
    lon: float | None
    """Degrees, WGS 84."""
    photo_count: int
    """Number of photos that show it."""


class PlacePage(Schema):
    """A page of the index's places."""

    model_config = _with_example(total=1, limit=100, offset=0, places=[{**_PLACE, "photo_count": 7}])

    total: int
    """Number of places in the index."""
    limit: int
    """Requested number of places."""
    offset: int
    """Number of skipped places."""
    places: list[PlaceSummary]
    """Places in the order of the index."""


class PhotoInfo(Schema):
    """A photo of the index."""

    model_config = _with_example(**_TOLD)

    id: str
    """Id of the photo."""
    path: str
    """Path of the photo, relative to the indexed folder."""
    place: str | None
    """Name of its place in the photo's metadata, if any."""
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


class StoredPhoto(PhotoInfo):
    """A photo that was POSTed."""

    model_config = _with_example(**{**_TOLD, "path": "posted/IMG_9375.jpg"}, created=True)

    created: bool
    """Whether the index did not have it before."""


class PlaceDetail(PlaceSummary):
    """A place of the index with its photos."""

    model_config = _with_example(**_PLACE, photo_count=1, photos=[_TOLD])

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
    """Id of the place."""
    geometry: Point
    """Position of the place."""
    properties: dict[str, Any]
    """`name` and `photo_count`."""


class PlaceCollection(Schema):
    """The places with a position, as a GeoJSON feature collection."""

    model_config = _with_example(
        type="FeatureCollection",
        features=[
            {
                "type": "Feature",
                "id": "p0f039d73f70c",
                "geometry": {"type": "Point", "coordinates": [-98.089367, 30.171495]},
                "properties": {"name": None, "photo_count": 7},
            }
        ],
    )

    type: Literal["FeatureCollection"] = "FeatureCollection"
    """The kind of object."""
    features: list[PlaceFeature]
    """One feature for each place."""


class Health(Schema):
    """The process is running."""

    status: Literal["ok"] = "ok"
    """Always ok."""


class Readiness(Schema):
    """The service can answer queries."""

    model_config = _with_example(status="ready", model="a8fe437695841e30", snapshot="01/000001")

    status: Literal["ready"] = "ready"
    """Always ready; otherwise the response is a problem with status 503."""
    model: str
    """Fingerprint of the model."""
    snapshot: str
    """The served snapshot."""


class ProblemDetail(Schema):
    """The reason for a refusal (RFC 9457)."""

    type: str
    """The kind of problem, for programs."""
    title: str
    """The kind of problem, for people."""
    status: int = Field(ge=400, le=599)
    """The HTTP status."""
    detail: str
    """What was wrong with this request."""
    field: str | None = None
    """The parameter or part with the error; absent if there is none."""
    request_id: str | None = None
    """The X-Request-ID of this request, also in the service's log."""


class PageSettings(Schema):
    """Settings for the web page."""

    version: str
    """Version of the service."""
    docs: bool
    """Whether /docs is served."""
    map_tiles: str | None
    """URL template of map tiles; null: the map draws a grid."""
    map_attribution: str
    """Attribution of the tiles."""
    max_upload_bytes: int
    """Largest request body."""
    max_images: int
    """Most photos in one clip."""


class PageIndex(Schema):
    """The loaded index, for the web page."""

    photos: int
    """Number of searched photos."""
    places: int
    """Number of their places."""
    dim: int
    """Numbers in a descriptor."""
    model: str
    """Fingerprint of the model."""
    snapshot: str
    """The served snapshot."""

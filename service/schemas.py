"""The JSON that goes over HTTP; the answer's names and order are those of `Answer.to_json()`."""

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
    """Ask /v1/photos/{id} for more, /v1/photos/{id}/image for the photo itself."""
    path: str
    """Where the photo lay, relative to the indexed folder."""
    score: float
    """Cosine of the two descriptors, raised towards 1 by inliers where verified."""
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
    matches: list[tuple[float, float, float, float]] | None
    """Where inliers lie, at most 60 of them: x, y in the query and x, y in this photo, as shares of width and
    height; null unless asked for, where not verified, and for panoramas."""


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
    """Probability that this is the place, no more than 1 together; null where the index is not calibrated."""
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
    """How many metres it may be off: the truth lies within two times in three."""
    heading: float | None
    """Where the photo looks, in degrees clockwise from north; null where the matching photos do not tell."""


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
    """Whether the first place is more likely right than wrong; null where the index cannot tell."""
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

    model_config = _with_example(model="a8fe437695841e30", dim=2, descriptors=[[0.6, 0.8]])

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

    model_config = _with_example(total=1, limit=100, offset=0, places=[{**_PLACE, "photo_count": 7}])

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

    model_config = _with_example(**_TOLD)

    id: str
    """The photo's identifier."""
    path: str
    """Where the photo lay, relative to the indexed folder."""
    place: str | None
    """Name of its place, where the photo's metadata gave one."""
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
    """Whether it was not in the index before."""


class PlaceDetail(PlaceSummary):
    """A place of the index with the photos that show it."""

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
    """The place's identifier."""
    geometry: Point
    """Where it is."""
    properties: dict[str, Any]
    """`name` and `photo_count`."""


class PlaceCollection(Schema):
    """The places that have a position, as a GeoJSON feature collection."""

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
    """One feature a place."""


class Health(Schema):
    """The process is alive."""

    status: Literal["ok"] = "ok"
    """Always ok: a dead process does not answer."""


class Readiness(Schema):
    """The service can answer queries."""

    model_config = _with_example(status="ready", model="a8fe437695841e30", snapshot="01/000001")

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
    request_id: str | None = None
    """The X-Request-ID of this request, which the service's log names too."""


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

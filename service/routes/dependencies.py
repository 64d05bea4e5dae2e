"""Dependencies of routes, as typed aliases. All are async: FastAPI runs others in threads."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request, Security
from fastapi.security import HTTPBearer

from indexer.filters import DEFAULT_TOLERANCE, Filters
from indexer.index import Index
from indexer.photos.metadata import PhotoMetadata
from indexer.posting.new_photo import given_metadata
from service.engine.engine import Engine
from service.errors import InvalidRequest
from service.routes.uploads import FIELD, read_images, read_upload
from service.security.access import CALLER, Access
from service.security.keys import Role


async def get_engine(request: Request) -> Engine:
    """Return the app's engine."""
    engine: Engine = request.app.state.engine
    return engine


EngineDep = Annotated[Engine, Depends(get_engine)]


BEARER = Security(HTTPBearer(scheme_name="key", auto_error=False))
"""Documents that a key is needed; the gate has checked it already."""


async def read_access(request: Request) -> None:
    """Require read access. Raises Unauthorised."""
    _access(request).require(Role.READ, request.scope.get(CALLER))


async def write_access(request: Request, _scheme: Annotated[object, BEARER]) -> None:
    """Require write access. Raises Unauthorised or Forbidden."""
    _access(request).require(Role.WRITE, request.scope.get(CALLER))


def _access(request: Request) -> Access:
    access: Access = request.app.state.access
    return access


ReadAccess = Depends(read_access)
WriteAccess = Depends(write_access)


async def get_index(engine: EngineDep) -> Index:
    """Return the snapshot that answers this request. Raises NotReady."""
    return engine.live.current


IndexDep = Annotated[Index, Depends(get_index)]


async def get_images(request: Request, engine: EngineDep, _ready: IndexDep) -> list[bytes]:
    """Read the request's images, at least one and at most `max_images`, if an index is loaded."""
    images = await read_images(request, engine.settings.max_upload_bytes)
    if not images:
        raise InvalidRequest(
            f"no image came; send one as multipart part {FIELD!r} or as the body", field=FIELD
        )
    if len(images) > engine.settings.max_images:
        raise InvalidRequest(
            f"{len(images)} images came, at most {engine.settings.max_images} are taken at once", field=FIELD
        )
    return images


ImagesDep = Annotated[list[bytes], Depends(get_images)]


async def get_image(images: ImagesDep) -> bytes:
    """Read the request's single image."""
    if len(images) != 1:
        raise InvalidRequest(f"{len(images)} images came, this takes one", field=FIELD)
    return images[0]


ImageDep = Annotated[bytes, Depends(get_image)]

K = Annotated[int, Query(ge=1, le=100, description="How many places to answer with.")]
Verify = Annotated[
    bool,
    Query(
        description="Look at the nearest photos once more by their local features, where the index has them."
    ),
]
Matched = Annotated[
    bool,
    Query(description="List where each photo that was verified shows the same as the one asked about."),
]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many to list.")]
Offset = Annotated[int, Query(ge=0, description="How many to pass over.")]
Id = Annotated[
    str,
    Path(max_length=200, description="Identifier, as an answer gives it.", examples=["51c0cda4f25811e1"]),
]

Lat = Annotated[float | None, Query(ge=-90, le=90, description="Degrees north, WGS 84; together with lon.")]
Lon = Annotated[float | None, Query(ge=-180, le=180, description="Degrees east, WGS 84; together with lat.")]
Heading = Annotated[
    float | None, Query(ge=0, le=360, description="Viewing direction in degrees, clockwise from north.")
]
TIME = "ISO 8601; without an offset by the clock of each photo, with one as a moment."


async def get_filters(
    lat: Lat = None,
    lon: Lon = None,
    radius_m: Annotated[
        float | None, Query(gt=0, description="Only photos at most this many metres from lat, lon.")
    ] = None,
    taken_after: Annotated[str | None, Query(description=f"Only photos from this time on: {TIME}")] = None,
    taken_before: Annotated[
        str | None, Query(description=f"Only photos from before this time: {TIME}")
    ] = None,
    heading: Heading = None,
    heading_tolerance: Annotated[
        float, Query(ge=0, le=180, description="Degrees to either side of heading that still count.")
    ] = DEFAULT_TOLERANCE,
    place: Annotated[
        str | None, Query(max_length=200, description="Only photos of the places of this id or name.")
    ] = None,
) -> Filters:
    """Read the filters of a query. Raises FieldError."""
    return Filters(
        lat=lat,
        lon=lon,
        radius_m=radius_m,
        taken_after=taken_after,
        taken_before=taken_before,
        heading=heading,
        heading_tolerance=heading_tolerance,
        place=place,
    )


FiltersDep = Annotated[Filters, Depends(get_filters)]


@dataclass(frozen=True)
class SentPhoto:
    """A photo to store, with its metadata."""

    data: bytes
    metadata: PhotoMetadata
    name: str | None


PHOTO_FIELDS: dict[str, dict[str, Any]] = {
    "lat": {"type": "number", "minimum": -90, "maximum": 90},
    "lon": {"type": "number", "minimum": -180, "maximum": 180},
    "heading": {"type": "number", "minimum": 0, "maximum": 360},
    "taken_at": {"type": "string", "description": "ISO 8601."},
    "place": {"type": "string", "maxLength": 200},
    "name": {"type": "string", "maxLength": 200},
}
"""Metadata of a photo to store, as multipart fields or query parameters."""


async def get_sent_photo(
    request: Request,
    engine: EngineDep,
    _ready: IndexDep,
    lat: Lat = None,
    lon: Lon = None,
    heading: Heading = None,
    taken_at: Annotated[str | None, Query(description="ISO 8601.")] = None,
    place: Annotated[str | None, Query(max_length=200, description="Name of the place.")] = None,
    name: Annotated[str | None, Query(max_length=200, description="What answers are to call it.")] = None,
) -> SentPhoto:
    """Read a photo to store, with metadata from the query or from the form, not both."""
    asked = {
        "lat": lat,
        "lon": lon,
        "heading": heading,
        "taken_at": taken_at,
        "place": place,
        "name": name,
    }
    upload = await read_upload(request, engine.settings.max_upload_bytes, PHOTO_FIELDS)
    for field, text in upload.fields.items():
        if asked[field] is not None:
            raise InvalidRequest(f"{field} is given twice, in the query and in the form", field=field)
        asked[field] = _number(field, text) if PHOTO_FIELDS[field]["type"] == "number" else text
    if len(upload.images) != 1:
        raise InvalidRequest(f"{len(upload.images)} images came, this takes one", field=FIELD)
    label: Any = asked.pop("name")
    values: dict[str, Any] = asked
    return SentPhoto(upload.images[0], given_metadata(**values), label)


def _number(field: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(f"{field} must be a number, not {text[:40]!r}", field=field) from None


SentPhotoDep = Annotated[SentPhoto, Depends(get_sent_photo)]

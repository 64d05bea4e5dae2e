"""The photos of the index."""

import dataclasses
from functools import partial
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from indexer.answers import Photo
from indexer.errors import NotFound
from service.routes.dependencies import PHOTO_FIELDS, EngineDep, Id, IndexDep, SentPhotoDep
from service.routes.openapi import Responses, binary, image_body, problems
from service.routes.photo_files import etag, media_type, thumbnail
from service.schemas import PhotoInfo, StoredPhoto

router = APIRouter(tags=["photos"], responses=problems(404, 422, 500, 503))
writing = APIRouter(tags=["photos"], responses=problems(422, 500, 501, 503, 507))
"""Routes that change the index, which need write access."""

NOT_MODIFIED: Responses = {304: {"description": "The copy that If-None-Match names is still right."}}


def describe_photo(photo: Photo) -> PhotoInfo:
    """Return the documented JSON of a photo."""
    return PhotoInfo(**dataclasses.asdict(photo))


@router.get("/v1/photos/{id}", summary="Describe a photo")
def show_photo(index: IndexDep, id: Id) -> PhotoInfo:
    """Return a photo of the index."""
    return describe_photo(index.photo(id))


@router.get(
    "/v1/photos/{id}/image",
    summary="Fetch a photo",
    response_class=FileResponse,
    responses={200: binary("image/*"), **NOT_MODIFIED},
)
def fetch_image(request: Request, index: IndexDep, id: Id) -> Response:
    """Return the photo's file, unchanged."""
    file = index.photo_file(id)
    headers = _validators(file)
    if _is_current(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return FileResponse(
        file,
        media_type=media_type(file),
        headers=headers,
        filename=Path(index.photo(id).path).name,
        content_disposition_type="inline",
    )


@router.get(
    "/v1/photos/{id}/thumbnail",
    summary="Fetch a small copy of a photo",
    response_class=Response,
    responses={200: binary("image/jpeg"), **NOT_MODIFIED},
)
async def fetch_thumbnail(request: Request, engine: EngineDep, index: IndexDep, id: Id) -> Response:
    """Return a small upright JPEG without the photo's metadata."""
    file = await engine.workers.run(partial(index.photo_file, id))
    size = engine.settings.thumbnail_size
    headers = _validators(file, size)
    if _is_current(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    jpeg = await engine.workers.run(partial(thumbnail, file, size))
    return Response(jpeg, media_type="image/jpeg", headers=headers)


@writing.post(
    "/v1/photos",
    status_code=201,
    summary="Add a photo",
    openapi_extra=image_body(several=False, fields=PHOTO_FIELDS),
    responses={
        200: {
            "model": StoredPhoto,
            "description": "These bytes are in the index already, and stay as they were.",
        },
        **problems(400, 413, 415),
    },
)
async def add_photo(response: Response, engine: EngineDep, photo: SentPhotoDep) -> StoredPhoto:
    """Store a photo permanently and make it searchable from the next query on.

    Send it as multipart part `image`, or as the body with a content type `image/*`. Fields of the form or
    query parameters take precedence over EXIF.
    """
    shown, created = await engine.add(photo.data, photo.metadata, photo.name)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/photos/{shown.id}"
    return StoredPhoto(**dataclasses.asdict(shown), created=created)


@writing.delete("/v1/photos/{id}", status_code=204, summary="Remove a photo", responses=problems(404))
async def remove_photo(engine: EngineDep, id: Id) -> None:
    """Remove a photo permanently; a copy that was stored by a POST is deleted.

    The file of a photo from a folder stays, and later runs leave the photo out.
    """
    await engine.remove(id)


def _validators(file: Path, *variant: object) -> dict[str, str]:
    try:
        tag = etag(file, *variant)
    except OSError as error:
        raise NotFound("the photo's file is gone") from error
    return {"ETag": tag, "Cache-Control": "private, no-cache"}  # cached, but revalidated before each use


def _is_current(request: Request, tag: str) -> bool:
    known = [item.strip().removeprefix("W/") for item in request.headers.get("if-none-match", "").split(",")]
    return tag in known or "*" in known

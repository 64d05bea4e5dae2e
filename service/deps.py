"""What routes depend on, as typed aliases."""

from typing import Annotated

from fastapi import Depends, Path, Query, Request

from service.engine import Engine
from service.errors import InvalidRequest
from service.interfaces import ServedIndex
from service.uploads import FIELD, read_images


def get_engine(request: Request) -> Engine:
    """Give the app's engine."""
    engine: Engine = request.app.state.engine
    return engine


EngineDep = Annotated[Engine, Depends(get_engine)]


def get_index(engine: EngineDep) -> ServedIndex:
    """Give the snapshot that answers this request, or raise NotReady."""
    return engine.live.current


IndexDep = Annotated[ServedIndex, Depends(get_index)]


async def get_images(request: Request, engine: EngineDep, _ready: IndexDep) -> list[bytes]:
    """Read the request's images, at least one and at most `max_images`; not before an index is there."""
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


def get_image(images: ImagesDep) -> bytes:
    """Read the request's one image."""
    if len(images) != 1:
        raise InvalidRequest(f"{len(images)} images came, this takes one", field=FIELD)
    return images[0]


ImageDep = Annotated[bytes, Depends(get_image)]

K = Annotated[int, Query(ge=1, le=100, description="How many places to answer with.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many to list.")]
Offset = Annotated[int, Query(ge=0, description="How many to pass over.")]
Id = Annotated[
    str,
    Path(max_length=200, description="Identifier, as an answer gives it.", examples=["51c0cda4f25811e1"]),
]

"""What routes depend on, as typed aliases; all async, for FastAPI sends others through a thread each."""

from typing import Annotated

from fastapi import Depends, Path, Query, Request, Security
from fastapi.security import HTTPBearer

from service.access import CALLER
from service.engine import Engine
from service.errors import InvalidRequest
from service.interfaces import ServedIndex
from service.keys import Role
from service.uploads import FIELD, read_images


async def get_engine(request: Request) -> Engine:
    """Give the app's engine."""
    engine: Engine = request.app.state.engine
    return engine


EngineDep = Annotated[Engine, Depends(get_engine)]


BEARER = Security(HTTPBearer(scheme_name="key", auto_error=False))
"""Only says in the interface's description that a key is needed; the gate has read it already."""


async def read_access(request: Request, engine: EngineDep) -> None:
    """Let in who may read: everybody, or the holder of a key; else raise Unauthorised."""
    engine.access.require(Role.READ, request.scope.get(CALLER))


async def write_access(request: Request, engine: EngineDep, _scheme: Annotated[object, BEARER]) -> None:
    """Let in the holder of a key that writes; else raise Unauthorised or Forbidden."""
    engine.access.require(Role.WRITE, request.scope.get(CALLER))


ReadAccess = Depends(read_access)
WriteAccess = Depends(write_access)


async def get_index(engine: EngineDep) -> ServedIndex:
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


async def get_image(images: ImagesDep) -> bytes:
    """Read the request's one image."""
    if len(images) != 1:
        raise InvalidRequest(f"{len(images)} images came, this takes one", field=FIELD)
    return images[0]


ImageDep = Annotated[bytes, Depends(get_image)]

K = Annotated[int, Query(ge=1, le=100, description="How many places to answer with.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many to list.")]
Offset = Annotated[int, Query(ge=0, description="How many to pass over.")]
Id = Annotated[str, Path(max_length=200, description="Identifier, as an answer gives it.")]

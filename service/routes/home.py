"""The web page: its files, and data about the service."""

from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response

from service.page.assets import load_assets
from service.routes.dependencies import EngineDep, IndexDep
from service.schemas import PageIndex, PageSettings

router = APIRouter(include_in_schema=False)
reading = APIRouter(include_in_schema=False)
"""Routes about the collection, which need read access."""


@router.get("/")
def home(request: Request) -> Response:
    """Return the page."""
    return _send(request, "index.html")


@router.get("/page/settings.json")
def page_settings(request: Request, engine: EngineDep) -> PageSettings:
    """Return the page's settings; nothing about the collection."""
    settings = engine.settings
    return PageSettings(
        version=request.app.version,
        docs=settings.docs,
        map_tiles=settings.map_tiles,
        map_attribution=settings.map_attribution,
        max_upload_bytes=settings.max_upload_bytes,
        max_images=settings.max_images,
    )


@reading.get("/page/index.json")
async def page_index(engine: EngineDep, index: IndexDep) -> PageIndex:
    """Return what is loaded; a 503 says why nothing is."""
    info: dict[str, Any] = await engine.live.info()
    return PageIndex(
        photos=info["photos"],
        places=info["places"],
        dim=info["dim"],
        model=index.model_fingerprint,
        snapshot=index.snapshot,
    )


@router.get("/page/{name:path}")
def page_file(request: Request, name: str) -> Response:
    """Return one of the page's files."""
    return _send(request, name)


def _send(request: Request, name: str) -> Response:
    asset = load_assets().get(name)
    if asset is None:
        raise HTTPException(404, "the page has no such file")
    headers = {
        "ETag": asset.etag,
        "Cache-Control": "no-cache",  # cached, but revalidated before each use: an update shows at once
    }
    if request.headers.get("if-none-match") == asset.etag:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)

"""The page at /."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from service.deps import EngineDep
from service.page import render

router = APIRouter(include_in_schema=False)


@router.get("/")
async def home(request: Request, engine: EngineDep) -> HTMLResponse:
    """Show what is loaded and how to ask it."""
    trouble = engine.trouble()
    info = await engine.live.info() if trouble is None else None
    return HTMLResponse(render(str(request.base_url), info, trouble, docs=engine.settings.docs))

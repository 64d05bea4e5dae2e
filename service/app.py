"""`create_app` assembles the service."""

import contextlib
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from types import ModuleType
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from indexer.index import Index
from service import errors
from service.engine.engine import Engine
from service.metrics import Metrics
from service.routes import docs, health, home, openapi, photos, places, query
from service.routes.dependencies import ReadAccess, WriteAccess
from service.security.access import Access
from service.security.admission import Admission, Room
from service.security.gate import Gate
from service.security.middleware import Failures, RequestLog, SecurityHeaders
from service.settings import Settings


def create_app(
    settings: Settings,
    index: Index | None = None,
    *,
    on_failure: Callable[[Exception], None] | None = None,
) -> FastAPI:
    """Build the service over the index that `settings` names, or over `index` if given.

    The index is opened in the background when the app starts; until then /readyz returns 503. `on_failure` is
    called if the app cannot recover: the index cannot be opened (it is still retried), or the dispatcher
    dies. It may be called from another thread.
    """
    metrics, access = Metrics(), Access(settings)
    room = Room(settings.max_uploads, int(settings.max_uploads_mb * 1e6))
    metrics.watch("loci_uploads", "Requests with a body that are in progress.", lambda: room.inside)
    metrics.watch("loci_upload_bytes", "Bytes that those may hold.", lambda: room.bytes)
    engine = Engine(settings, metrics, index, on_failure, access.trouble)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with engine.running():
            yield

    app = _bare_app(settings, lifespan)
    app.state.engine, app.state.access = engine, access
    _surround(app, settings, metrics, access, room)
    errors.install(app)
    for routes in (query, places, photos, health, home):
        _include(app, routes)
    if settings.docs:
        _include(app, docs)
    if settings.metrics_here:
        app.include_router(health.metrics_router, dependencies=[ReadAccess])
    openapi.install(app)
    return app


def _include(app: FastAPI, routes: ModuleType) -> None:
    """Add a module's routers: `reading` and `writing` with their access, then `router`.

    `router` needs read access too, except for routes that are open to everybody. It comes last, because the
    page's files match every other name below /page/.
    """
    for name, access in (("reading", ReadAccess), ("writing", WriteAccess)):
        if hasattr(routes, name):
            app.include_router(getattr(routes, name), dependencies=[access])
    is_open = routes in (health, home)
    app.include_router(routes.router, dependencies=[] if is_open else [ReadAccess])


def _surround(app: FastAPI, settings: Settings, metrics: Metrics, access: Access, room: Room) -> None:
    """Add the middleware; the last one added is the first that a request meets."""
    app.add_middleware(Admission, settings=settings, room=room)
    app.add_middleware(Gate, settings=settings, access=access)
    app.add_middleware(Failures)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "X-Request-ID"),
            expose_headers=("Location", "Retry-After", "X-Request-ID"),
        )
    app.add_middleware(SecurityHeaders, map_tiles=settings.map_tiles)
    app.add_middleware(RequestLog, metrics=metrics)


def _bare_app(
    settings: Settings, lifespan: Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]
) -> FastAPI:
    about: dict[str, Any] = {
        "title": "loci",
        "summary": "Tells where a photo was taken.",
        "description": "Errors are `application/problem+json` (RFC 9457): `detail` says in one sentence what"
        " was wrong, `type` names the kind for programs. Positions are degrees, WGS 84.",
        "license_info": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        "version": version("geniusloci"),
    }
    return FastAPI(
        lifespan=lifespan,
        openapi_url="/openapi.json" if settings.docs else None,
        docs_url=None,
        redoc_url=None,
        **about,
    )

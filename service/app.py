"""Puts the service together."""

import contextlib
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from service import errors, openapi
from service.engine import Engine
from service.interfaces import ServedIndex
from service.middleware import RequestLog
from service.routes import health, home, photos, places, query
from service.settings import Settings


def create_app(
    settings: Settings,
    index: ServedIndex | None = None,
    *,
    on_failure: Callable[[Exception], None] | None = None,
) -> FastAPI:
    """Build the service over the index that `settings` names, or over `index` when one is given.

    The index is opened in the background once the app starts: until then /readyz says 503.
    `on_failure` hears of what the app does not recover from by itself: an index that cannot be
    opened (it is tried again all the same) and the death of the dispatcher. It may be called from
    another thread.
    """
    engine = Engine(settings, index, on_failure)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with engine.running():
            yield

    app = _bare_app(settings, lifespan)
    app.state.engine = engine
    app.add_middleware(RequestLog, metrics=engine.metrics)
    errors.install(app)
    openapi.install(app)
    app.include_router(home.reading)  # before the page's own files, which take every other name
    for routes in (query, places, photos, health, home):
        app.include_router(routes.router)
    return app


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
        "lifespan": lifespan,
    }
    if not settings.docs:
        return FastAPI(openapi_url=None, docs_url=None, redoc_url=None, **about)
    app: FastAPI = FastAPIOffline(
        redoc_url=None,
        swagger_ui_parameters={"validatorUrl": None},  # else the page asks a public validator
        **about,
    )
    return app

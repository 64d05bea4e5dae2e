"""Middleware: request id, log line, metrics, security headers, and answers to failures."""

import logging
import time
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import KIND, Problem, respond
from service.logs import name_request, request_id
from service.metrics import Metrics
from service.security.access import CALLER
from service.security.content_security import docs_policy, page_policy

logger = logging.getLogger(__name__)

DOCS = "/docs"

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",  # for browsers without frame-ancestors
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class RequestLog:
    """ASGI middleware: gives a request its id, logs it on one line and counts it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request, and record how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0  # nothing sent yet
        started = time.perf_counter()
        name = name_request(Headers(scope=scope).get("x-request-id"))
        token = request_id.set(name)

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = name
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            self._metrics.request(_route(scope), status, scope.get(KIND))
            _log(scope, status, 1000 * (time.perf_counter() - started))
            request_id.reset(token)


class SecurityHeaders:
    """ASGI middleware: security headers on every answer."""

    def __init__(self, app: ASGIApp, map_tiles: str | None) -> None:
        self._app = app
        self._page, self._docs = page_policy(map_tiles), docs_policy()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request, and add the headers to its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        policy = self._docs if scope["path"] == DOCS else self._page

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers["Content-Security-Policy"] = policy
            await send(message)

        await self._app(scope, receive, add)


class Failures:
    """ASGI middleware: answers refusals of the gate and unexpected errors.

    If the server did so, an exception would also cut the connection under the next request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request, and answer if it fails."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, note)
        except Exception as error:
            if not isinstance(error, Problem):
                logger.exception("%s %s failed", scope["method"], quote(scope["path"]))
            if begun:
                raise  # the answer has begun: only a cut connection can tell the caller
            response = await respond(Request(scope), error)
            await response(scope, receive, send)


def _route(scope: Scope) -> str:
    """Return the route, not the path: a label must have few values."""
    return getattr(scope.get("route"), "path", None) or "none"


def _log(scope: Scope, status: int, milliseconds: float) -> None:
    path = quote(scope["path"])  # decoded by the server: a line break would forge a log line
    client, key = scope.get("client"), scope.get(CALLER)
    logger.info(
        "%s %s %d %.1f ms",
        scope["method"],
        path,
        status,
        milliseconds,
        extra={
            "method": scope["method"],
            "path": path,
            "route": _route(scope),
            "status": status,
            "milliseconds": round(milliseconds, 1),
            "client": client[0] if client else None,
            "key": key.name if key is not None else None,
            "problem": scope.get(KIND),
        },
    )

"""Counts and logs every request, and answers for those that fail unforeseen."""

import logging
import time
from urllib.parse import quote

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import respond
from service.metrics import Metrics

logger = logging.getLogger(__name__)


class RequestLog:
    """ASGI middleware: one log line and one count a request, nosniff on every response.

    An exception that nothing else handles is logged and answered here: left to the server, it would
    also cut the connection under the caller's next request.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and note how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0  # nothing sent yet
        started = time.perf_counter()

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-content-type-options", b"nosniff"))
            await send(message)

        try:
            await self._app(scope, receive, note)
        except Exception as error:
            logger.exception("%s %s failed", scope["method"], quote(scope["path"]))
            if status:
                raise  # half an answer is out: only a cut connection can tell the caller
            response = await respond(Request(scope), error)
            await response(scope, receive, note)
        finally:
            self._metrics.request(_route(scope), status)
            _log(scope, status, 1000 * (time.perf_counter() - started))


def _route(scope: Scope) -> str:
    """Name the route, not the path: a label must have few values."""
    return getattr(scope.get("route"), "path", None) or "none"


def _log(scope: Scope, status: int, milliseconds: float) -> None:
    path = quote(scope["path"])  # decoded by the server: a line break in it would forge a log line
    logger.info(
        "%s %s %d %.1f ms",
        scope["method"],
        path,
        status,
        milliseconds,
        extra={"method": scope["method"], "path": path, "status": status, "milliseconds": milliseconds},
    )

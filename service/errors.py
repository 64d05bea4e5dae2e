"""Errors of this package, and their translation to problem+json (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from indexer.errors import DiskFull, FieldError, IndexBusy, ModelMismatch, NotFound, StoreUnavailable
from model.errors import ImageError, TooManyPixels
from service.logs import request_id
from service.schemas import ProblemDetail

PROBLEM_JSON = "application/problem+json"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
KIND = "loci.problem"
"""Key in a request's scope: the kind of problem that it ended with."""


STORE_UNAVAILABLE = "the store that holds the index cannot be asked now, try again"


class ServiceError(Exception):
    """The service cannot start or continue; the message is one sentence on why, and what to do."""


class Problem(ServiceError):
    """A refused request; each subclass is one status and kind of problem."""

    status = 500
    kind = "internal"
    title = "Internal error"
    retry_after: int | None = None
    """Seconds after which the same request may work."""

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.field = field

    def headers(self) -> dict[str, str]:
        """Return the headers of this status."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class MalformedBody(Problem):
    """The body does not match its content type."""

    status, kind, title = 400, "malformed-body", "Malformed body"


class Unauthorised(Problem):
    """A key is needed, and no known key was sent."""

    status, kind, title = 401, "unauthorised", "Key needed"

    def headers(self) -> dict[str, str]:
        """Return the header with the scheme (RFC 9110)."""
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(Problem):
    """The key has the wrong role, or a page of another site sent the request."""

    status, kind, title = 403, "forbidden", "Not allowed"


class TooSlow(Problem):
    """The body came too slowly, or stopped."""

    status, kind, title = 408, "too-slow", "Upload too slow"

    def headers(self) -> dict[str, str]:
        """Close the connection: otherwise the rest of the body would have to be read."""
        return {"Connection": "close"}


class TooLarge(Problem):
    """The body is larger than the limit."""

    status, kind, title = 413, "too-large", "Upload too large"

    @classmethod
    def than(cls, limit: int) -> TooLarge:
        """Return the problem of a body with more than `limit` bytes."""
        return cls(f"the body is larger than the {limit / 1e6:g} MB that this service takes", field="image")


class UnsupportedMedia(Problem):
    """The content type is not that of an image."""

    status, kind, title = 415, "unsupported-media-type", "Not an image type"


class InvalidRequest(Problem):
    """A parameter or the image is missing or out of range."""

    status, kind, title = 422, "invalid-request", "Invalid request"


class Misdirected(Problem):
    """The Host header names another host."""

    status, kind, title = 421, "misdirected", "Another host"


class TooManyRequests(Problem):
    """One caller sends more requests than allowed."""

    status, kind, title = 429, "too-many-requests", "Too many requests"

    def __init__(self, detail: str, *, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class NotReady(Problem):
    """The index is not loaded, or the dispatcher is not running."""

    status, kind, title = 503, "not-ready", "Not ready"
    retry_after = 5


class Overloaded(Problem):
    """The queue is full."""

    status, kind, title = 503, "overloaded", "Overloaded"
    retry_after = 1


class NotWritable(Problem):
    """The index does not take photos."""

    status, kind, title = 501, "not-writable", "Not writable"


class OutOfMemory(Problem):
    """The device had no memory left, also after a retry."""

    status, kind, title = 503, "out-of-memory", "Out of memory"
    retry_after = 5


class KeysUnreadable(Problem):
    """The keys file is damaged, so no key can be checked."""

    status, kind, title = 503, "keys-unreadable", "Keys unreadable"
    retry_after = 30


def install(app: FastAPI) -> None:
    """Translate expected failures of `app` to problem+json; `Failures` does so for the others."""
    for ours in (
        Problem,
        ImageError,
        NotFound,
        ModelMismatch,
        FieldError,
        DiskFull,
        IndexBusy,
        StoreUnavailable,
    ):
        app.add_exception_handler(ours, respond)
    for theirs in (HTTPException, RequestValidationError, ClientDisconnect):
        app.add_exception_handler(theirs, respond)


def describe(error: Exception) -> ProblemDetail:
    """Return the problem for a failure."""
    match error:
        case Problem():
            return _problem(error.status, error.kind, error.title, str(error), error.field)
        case TooManyPixels():
            return _problem(413, "too-many-pixels", "Image too large", str(error), "image")
        case ImageError():
            return _problem(400, "undecodable-image", "Image cannot be decoded", str(error), "image")
        case NotFound():
            return _problem(404, "not-found", "Not found", str(error))
        case ModelMismatch():
            return _problem(409, "model-mismatch", "Made by another model", str(error))
        case FieldError():
            return _problem(422, InvalidRequest.kind, InvalidRequest.title, str(error), error.field)
        case DiskFull():
            return _problem(507, "disk-full", "Disk full", "the disk of the index has no room for it")
        case IndexBusy():
            return _problem(503, "index-busy", "Index busy", "the index is being written by a run, try again")
        case StoreUnavailable():
            return _problem(503, "store-unavailable", "Store unavailable", STORE_UNAVAILABLE)
        case RequestValidationError():
            return _invalid(error.errors())
        case HTTPException():
            return _plain(error.status_code, error.detail)
        case ClientDisconnect():
            return _problem(400, "disconnected", "Client disconnected", "the body did not arrive whole")
    return _problem(500, "internal", "Internal error", "the service failed on this request; its log says why")


async def respond(request: Request, error: Exception) -> JSONResponse:
    """Return the response for a failure, and note its kind for the log."""
    problem = describe(error)
    request.scope[KIND] = _kind(problem)
    return JSONResponse(
        problem.model_dump(exclude_none=True) | _named(request_id.get()),
        status_code=problem.status,
        headers=_headers(error) | (_allowed(request) if problem.status == 405 else {}),
        media_type=PROBLEM_JSON,
    )


def _allowed(request: Request) -> dict[str, str]:
    """Return all methods of a path; the router knows only those of the first route."""
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    routes = request.app.routes
    found = [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in routes)
    ]
    return {"Allow": ", ".join(found)}


def _kind(problem: ProblemDetail) -> str:
    """Return the kind of a problem for log and metrics; the status's name if it says everything."""
    named = problem.type.startswith("urn:")
    return problem.type.rpartition(":")[2] if named else problem.title.lower().replace(" ", "-")


def _named(request: str | None) -> dict[str, str]:
    return {} if request is None else {"request_id": request}


def _headers(error: Exception) -> dict[str, str]:
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        headers |= dict(error.headers or {})
    if isinstance(error, Problem):
        headers |= error.headers()
    if isinstance(error, IndexBusy | StoreUnavailable):
        headers["Retry-After"] = str(NotReady.retry_after)
    return headers


def _problem(status: int, kind: str, title: str, detail: str, field: str | None = None) -> ProblemDetail:
    return ProblemDetail(
        type=f"urn:loci:problem:{kind}", title=title, status=status, detail=detail, field=field
    )


def _plain(status: int, detail: str) -> ProblemDetail:
    """Return a problem described by its status only (about:blank in RFC 9457)."""
    title = HTTPStatus(status).phrase
    return ProblemDetail(type="about:blank", title=title, status=status, detail=detail or title)


def _invalid(errors: Sequence[Mapping[str, Any]]) -> ProblemDetail:
    fields = [str(error["loc"][-1]) for error in errors]
    detail = "; ".join(f"{field}: {error['msg']}" for field, error in zip(fields, errors, strict=True))
    return _problem(422, InvalidRequest.kind, InvalidRequest.title, detail, fields[0] if fields else None)

"""What this package raises, and the one place that turns failures into problem+json (RFC 9457)."""

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
"""Where a request's scope keeps the kind of problem that it ended in."""


STORE_UNAVAILABLE = "the store that holds the index cannot be asked now, try again"


class ServiceError(Exception):
    """The service cannot start or go on; the message says why, and what to do, in one sentence."""


class Problem(ServiceError):
    """A request that is refused; each subclass is one status and kind of problem."""

    status = 500
    kind = "internal"
    title = "Internal error"
    retry_after: int | None = None
    """Seconds after which the same request may work."""

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.field = field

    def headers(self) -> dict[str, str]:
        """Give the headers that belong to this status."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class MalformedBody(Problem):
    """The body does not follow its own content type."""

    status, kind, title = 400, "malformed-body", "Malformed body"


class Unauthorised(Problem):
    """This needs a key, and none came that is known."""

    status, kind, title = 401, "unauthorised", "Key needed"

    def headers(self) -> dict[str, str]:
        """Name the scheme, as RFC 9110 wants it."""
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(Problem):
    """The key does not open this, or a page of another site asks."""

    status, kind, title = 403, "forbidden", "Not allowed"


class TooSlow(Problem):
    """The body came too slowly, or stopped coming."""

    status, kind, title = 408, "too-slow", "Upload too slow"

    def headers(self) -> dict[str, str]:
        """Give the connection up: what is left of the body would have to be read first."""
        return {"Connection": "close"}


class TooLarge(Problem):
    """The body has more bytes than the service takes."""

    status, kind, title = 413, "too-large", "Upload too large"

    @classmethod
    def than(cls, limit: int) -> TooLarge:
        """Return the problem of a body with more than `limit` bytes."""
        return cls(f"the body is larger than the {limit / 1e6:g} MB that this service takes", field="image")


class UnsupportedMedia(Problem):
    """The content type is not an image's."""

    status, kind, title = 415, "unsupported-media-type", "Not an image type"


class InvalidRequest(Problem):
    """A parameter or the image is missing or out of range."""

    status, kind, title = 422, "invalid-request", "Invalid request"


class Misdirected(Problem):
    """The Host header names another host."""

    status, kind, title = 421, "misdirected", "Another host"


class TooManyRequests(Problem):
    """One caller asks more often than the service allows."""

    status, kind, title = 429, "too-many-requests", "Too many requests"

    def __init__(self, detail: str, *, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class NotReady(Problem):
    """The index is not loaded, or the dispatcher is not at work."""

    status, kind, title = 503, "not-ready", "Not ready"
    retry_after = 5


class Overloaded(Problem):
    """More requests wait than the service queues."""

    status, kind, title = 503, "overloaded", "Overloaded"
    retry_after = 1


class NotWritable(Problem):
    """The index that is served takes no photos."""

    status, kind, title = 501, "not-writable", "Not writable"


class OutOfMemory(Problem):
    """The device had no memory left for this, though it was tried again."""

    status, kind, title = 503, "out-of-memory", "Out of memory"
    retry_after = 5


class KeysUnreadable(Problem):
    """The keys file is damaged, so that nobody can be let in."""

    status, kind, title = 503, "keys-unreadable", "Keys unreadable"
    retry_after = 30


def install(app: FastAPI) -> None:
    """Answer the foreseen failures of `app` with problem+json; `Failures` does so for the others."""
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
    """Translate a failure into what the caller is told."""
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
    """Tell the caller of a failure, and the request's log line of its kind."""
    problem = describe(error)
    request.scope[KIND] = _kind(problem)
    return JSONResponse(
        problem.model_dump(exclude_none=True) | _named(request_id.get()),
        status_code=problem.status,
        headers=_headers(error) | (_allowed(request) if problem.status == 405 else {}),
        media_type=PROBLEM_JSON,
    )


def _allowed(request: Request) -> dict[str, str]:
    """Name every method of a path: the router names those of the first route that has it."""
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    routes = request.app.routes
    found = [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in routes)
    ]
    return {"Allow": ", ".join(found)}


def _kind(problem: ProblemDetail) -> str:
    """Name a problem for log and metrics; one that its status says all about, by that."""
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
    """Describe what the status alone says, as RFC 9457's about:blank."""
    title = HTTPStatus(status).phrase
    return ProblemDetail(type="about:blank", title=title, status=status, detail=detail or title)


def _invalid(errors: Sequence[Mapping[str, Any]]) -> ProblemDetail:
    fields = [str(error["loc"][-1]) for error in errors]
    detail = "; ".join(f"{field}: {error['msg']}" for field, error in zip(fields, errors, strict=True))
    return _problem(422, InvalidRequest.kind, InvalidRequest.title, detail, fields[0] if fields else None)

"""The gate: checks of host, rate, site and key before anything else."""

import math

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Forbidden, KeysUnreadable, Misdirected, TooManyRequests
from service.security.access import CALLER, Access, caller_of
from service.security.addresses import is_allowed, split_host
from service.security.keys import Role
from service.security.rate_limit import RateLimit
from service.settings import Settings

HEALTH = ("/healthz", "/readyz")
OPEN = ("/", *HEALTH)
OPEN_BELOW = ("/page/",)
"""Paths that need no key: liveness, and the page's own files."""
SAFE = ("GET", "HEAD", "OPTIONS", "TRACE")


class Gate:
    """ASGI middleware: refuses foreign hosts, too many requests, other sites, and missing keys."""

    def __init__(self, app: ASGIApp, settings: Settings, access: Access) -> None:
        self._app = app
        self._access = access
        self._hosts = (*settings.allowed_hosts, settings.host)
        self._named = bool(settings.allowed_hosts)
        self._origins = settings.cors_origins
        self._limit = RateLimit(settings.rate_limit, settings.rate_burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request, or raise its Problem."""
        if scope["type"] == "http":
            self._admit(scope)
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        self._check_host(headers)
        if path in HEALTH:
            return
        key = scope[CALLER] = self._access.identify(scope)
        self._check_rate(caller_of(scope, key))
        if scope["method"] not in SAFE:
            self._check_site(headers)
        if path not in OPEN and not path.startswith(OPEN_BELOW):
            self._access.require(Role.READ, key)

    def _check_host(self, headers: Headers) -> None:
        sent = headers.get("host", "")
        name = split_host(sent) if sent else "localhost"  # HTTP/1.0 has no Host
        if name is None or not (is_allowed(name, self._hosts) or self._any_name):
            raise Misdirected(
                "this service does not answer to the name in the Host header; "
                "LOCI_ALLOWED_HOSTS names those that it answers to"
            )

    @property
    def _any_name(self) -> bool:
        """Whether every host is fine: if reading needs a key, a page that was led here has none."""
        try:
            return not self._named and not self._access.reading_is_open
        except KeysUnreadable:
            return True

    def _check_rate(self, caller: str) -> None:
        wait = self._limit.take(caller)
        if wait:
            raise TooManyRequests(
                "too many requests in a short time; Retry-After says when the next one is taken",
                retry_after=math.ceil(wait),
            )

    def _check_site(self, headers: Headers) -> None:
        """Browsers mark requests of other sites' pages, and no page can forge that."""
        if headers.get("sec-fetch-site") != "cross-site":
            return
        if "*" not in self._origins and headers.get("origin") not in self._origins:
            raise Forbidden(
                "pages of other sites may not use this service; LOCI_CORS_ORIGINS names those that may"
            )

"""Content-Security-Policy headers."""

from urllib.parse import urlsplit

RULES = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
"""The page's own files and requests only."""


def page_policy(map_tiles: str | None) -> str:
    """The policy for everything but the documentation; images of one more origin if tiles are set."""
    if map_tiles is None:
        return _policy()
    tiles = urlsplit(map_tiles)
    return _policy({"img-src": f"{RULES['img-src']} {tiles.scheme}://{tiles.netloc}"})


def docs_policy() -> str:
    """The policy for Swagger's page, which sets styles at run time."""
    return _policy({"style-src": "'self' 'unsafe-inline'", "img-src": "'self' data:"})


def _policy(instead: dict[str, str] | None = None) -> str:
    return "; ".join(f"{name} {value}" for name, value in (RULES | (instead or {})).items())

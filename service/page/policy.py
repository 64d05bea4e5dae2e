"""What the page's browser may load, as a Content-Security-Policy."""

from urllib.parse import urlsplit


def content_security_policy(map_tiles: str | None) -> str:
    """Allow the page its own files and requests, and images of one more origin where tiles are set."""
    images = ["'self'", "blob:", "data:", *([tile_origin(map_tiles)] if map_tiles else [])]
    rules = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": " ".join(images),
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def tile_origin(map_tiles: str) -> str:
    """Give the origin of a tile URL, as a policy names it."""
    parts = urlsplit(map_tiles)
    return f"{parts.scheme}://{parts.netloc}"

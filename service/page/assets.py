"""The files of the web page: this folder's own, and Leaflet's from its package."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
LEAFLET = ("leaflet.js", "leaflet.css", "images/layers.png", "images/layers-2x.png", "images/marker-icon.png")


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent."""

    content: bytes
    media_type: str
    etag: str


@cache
def load_assets() -> dict[str, Asset]:
    """Read every file of the page, by the name that it is asked for below /page/.

    They are read once and looked up by name: no path from a request reaches the file system.
    """
    own = (file for file in resources.files(__package__).iterdir() if _suffix(file.name) in MEDIA_TYPES)
    leaflet = resources.files("xstatic.pkg.leaflet") / "data"
    files = {file.name: file for file in own} | {f"leaflet/{name}": leaflet / name for name in LEAFLET}
    return {name: _load(file) for name, file in files.items()}


def _load(file: Traversable) -> Asset:
    content = file.read_bytes()
    return Asset(content, MEDIA_TYPES[_suffix(file.name)], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix

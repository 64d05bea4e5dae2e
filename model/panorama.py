"""Cut a 360° photo into upright views, as a camera at that spot would take them."""

import math
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MIN_FOV_DEG = 60.0
MAX_FOV_DEG = 100.0
_OVERLAP = 1.5
_ASPECT = 3 / 4
_TOLERANCE = 0.02
Pixels = NDArray[np.uint8]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class View:
    """One perspective view of a panorama."""

    image: Pixels
    """H W 3, upright."""
    yaw_deg: float
    """Degrees right of the panorama's middle, in [0, 360)."""


def is_panorama(image: Image.Image) -> bool:
    """Whether an opened photo is a full equirectangular panorama; see `is_equirectangular`."""
    xmp = image.info.get("xmp")
    return is_equirectangular(*image.size, xmp if isinstance(xmp, bytes | str) else None)


def is_equirectangular(width: int, height: int, xmp: bytes | str | None = None) -> bool:
    """Whether a photo is a full equirectangular panorama.

    It is if its width is twice its height within 2 %, or its XMP names that projection
    (`GPano:ProjectionType`), unless the XMP says that only a part of the circle is there. Sizes in pixels,
    upright.
    """
    text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else xmp or ""
    full, there = (_gpano(text, name) for name in ("FullPanoWidthPixels", "CroppedAreaImageWidthPixels"))
    if full.isdigit() and there.isdigit() and int(there) < int(full):
        return False
    if width > 0 and height > 0 and abs(width / (2 * height) - 1) <= _TOLERANCE:
        return True
    return _gpano(text, "ProjectionType").lower() == "equirectangular"


def _gpano(xmp: str, name: str) -> str:
    """Return a GPano property, as an attribute or as an element; empty if there is none."""
    found = re.search(rf"GPano:{name}\s*(?:=\s*[\"']|>)\s*([^\"'<\s]*)", xmp)
    return found[1] if found else ""


def field_of_view(views: int) -> float:
    """Return the horizontal degrees of each of `views` views: 1.5 times its share of the circle.

    So neighbours share a third. It is kept between 60° (below, a view shows too little of a place) and 100°
    (above, perspective stretches its edges), so fewer than four views leave gaps.
    """
    if views < 1:
        raise ValueError(f"expected at least 1 view, got {views}")
    return min(max(_OVERLAP * 360.0 / views, MIN_FOV_DEG), MAX_FOV_DEG)


def source_width(view_width: int, views: int) -> int:
    """Return the width (pixels) of a panorama whose views are `view_width` wide."""
    return math.floor(view_width * math.pi / math.tan(math.radians(field_of_view(views)) / 2))


def view_yaws(views: int) -> list[float]:
    """Return the direction of each view, in degrees right of the panorama's middle."""
    return [360.0 * i / views for i in range(views)]


def cut_views(image: Pixels, views: int, view_width: int | None = None) -> list[View]:
    """Cut a panorama, uint8 H W 3, into `views` upright perspective views evenly around the horizon.

    The first shows the panorama's middle, the next ones are further right. Gnomonic projection, bilinear,
    4:3, at the panorama's own resolution in a view's middle (f = W/2π pixels). If a view would be wider than
    `view_width`, the panorama is scaled down first. The horizon is the middle row, so a panorama that lacks
    zenith and nadir alike is cut correctly, too. Raises ValueError for another shape or fewer than one view.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"expected a uint8 image of shape (H, W, 3), got {image.dtype} {image.shape}")
    image = _no_wider(image, source_width(view_width, views)) if view_width else image
    height, width, _ = image.shape
    columns, rows = _lookup(height, width, field_of_view(views))
    return [View(_sample(image, columns + width * yaw / 360.0, rows), yaw) for yaw in view_yaws(views)]


def _no_wider(image: Pixels, limit: int) -> Pixels:
    """Scale down with all pixels counted: bilinear sampling of a finer image would alias."""
    height, width, _ = image.shape
    if width <= limit:
        return image
    size = (limit, max(1, round(height * limit / width)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


@lru_cache(maxsize=4)
def _lookup(height: int, width: int, fov_deg: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the pixels of the panorama for the view at yaw 0: columns and rows, (h, w) each.

    Other views differ by a shift of the columns only.
    """
    focal = width / (2 * math.pi)
    view_width = max(1, round(2 * focal * math.tan(math.radians(fov_deg) / 2)))
    view_height = max(1, round(view_width * _ASPECT))
    x = (np.arange(view_width) + 0.5 - view_width / 2)[None, :] / focal
    y = (np.arange(view_height) + 0.5 - view_height / 2)[:, None] / focal
    longitude = np.broadcast_to(np.arctan(x), (view_height, view_width))
    latitude_down = np.arctan2(y, np.hypot(x, 1.0))
    # pixel centres lie at half numbers
    columns = longitude * focal + width / 2 - 0.5
    rows = np.clip(latitude_down * focal + height / 2 - 0.5, 0, height - 1)
    columns.flags.writeable = rows.flags.writeable = False
    return columns, rows


def _sample(image: Pixels, columns: NDArray[np.float64], rows: NDArray[np.float64]) -> Pixels:
    """Bilinear values of an image whose right edge continues at its left edge."""
    height, width, _ = image.shape
    left, top = np.floor(columns).astype(np.int64), np.floor(rows).astype(np.int64)
    across = (columns - left).astype(np.float32)[..., None]
    down = (rows - top).astype(np.float32)[..., None]
    left %= width
    right, bottom = (left + 1) % width, np.minimum(top + 1, height - 1)
    upper = _mix(image[top, left], image[top, right], across)
    lower = _mix(image[bottom, left], image[bottom, right], across)
    return np.asarray(np.rint(upper + (lower - upper) * down), np.uint8)


def _mix(a: Pixels, b: Pixels, share: FloatArray) -> FloatArray:
    first = a.astype(np.float32)
    return np.asarray(first + (b.astype(np.float32) - first) * share, np.float32)

"""Distances and projections on the earth.

The earth is a sphere here, except for UTM, which is defined on WGS84. The error of distances is at most 0.6
%, which below a kilometre is less than the error of GPS.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import Transformer
from pyproj.exceptions import ProjError

EARTH_RADIUS_M = 6_371_008.8
"""Mean radius of the earth (IUGG), in metres."""

SEAM_DEGREES = 1e-6
"""Margin of a band of latitudes around a circle, against rounding."""

FloatArray = NDArray[np.float64]


def haversine_m(lat1: ArrayLike, lon1: ArrayLike, lat2: ArrayLike, lon2: ArrayLike) -> FloatArray:
    """Return the great-circle distance in metres between positions in degrees. The arguments broadcast.

    Formula: 2R·asin √(sin²(Δφ/2) + cos φ₁ cos φ₂ sin²(Δλ/2)), which is precise for close points and across
    the antimeridian.
    """
    phi1, phi2 = np.radians(np.asarray(lat1, np.float64)), np.radians(np.asarray(lat2, np.float64))
    half_dlam = np.radians(np.asarray(lon2, np.float64) - np.asarray(lon1, np.float64)) / 2
    h = np.sin((phi2 - phi1) / 2) ** 2 + np.cos(phi1) * np.cos(phi2) * np.sin(half_dlam) ** 2
    return np.asarray(2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(np.minimum(h, 1.0))), np.float64)


def band_degrees(radius_m: float) -> float:
    """Return the degrees of latitude from the middle of a circle to its edge, with a margin."""
    return float(np.degrees(radius_m / EARTH_RADIUS_M)) + SEAM_DEGREES


def earth_points(lat: ArrayLike, lon: ArrayLike) -> FloatArray:
    """Convert positions in degrees to points in space, (n, 3), in metres from the earth's centre.

    Neighbours of these points can be searched without special cases at the poles and the antimeridian.
    """
    phi, lam = np.radians(np.asarray(lat, np.float64)), np.radians(np.asarray(lon, np.float64))
    return EARTH_RADIUS_M * np.stack(
        [np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1
    )


def chord_m(arc_m: float) -> float:
    """Return the straight distance in metres between two points `arc_m` metres apart along the ground."""
    return float(2 * EARTH_RADIUS_M * np.sin(min(arc_m / (2 * EARTH_RADIUS_M), np.pi / 2)))


def wrap_lon(lon: ArrayLike) -> FloatArray:
    """Wrap longitudes in degrees to [-180, 180)."""
    return np.asarray((np.asarray(lon, np.float64) + 180.0) % 360.0 - 180.0, np.float64)


def angle_between(one: ArrayLike, other: ArrayLike) -> FloatArray:
    """Return the degrees between directions, 0 to 180; the two broadcast."""
    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    return np.asarray(np.abs((difference + 180.0) % 360.0 - 180.0))


def to_local(lat: ArrayLike, lon: ArrayLike, lat0: float, lon0: float) -> FloatArray:
    """Return metres east and north of (lat0, lon0), (n, 2), also across the antimeridian.

    Accurate for distances of a few kilometres.
    """
    east = np.radians(wrap_lon(np.asarray(lon, np.float64) - lon0)) * np.cos(np.radians(lat0))
    north = np.radians(np.asarray(lat, np.float64) - lat0)
    return EARTH_RADIUS_M * np.stack([east, north], axis=-1)


def from_local(east_m: float, north_m: float, lat0: float, lon0: float) -> tuple[float, float]:
    """Return latitude and longitude of a point in metres from (lat0, lon0): the inverse of `to_local`."""
    lat = lat0 + float(np.degrees(north_m / EARTH_RADIUS_M))
    # The bound avoids a division by zero at the poles.
    shrink = max(float(np.cos(np.radians(lat0))), 1e-12)
    lon = float(wrap_lon(lon0 + np.degrees(east_m / (EARTH_RADIUS_M * shrink))))
    return min(max(lat, -90.0), 90.0), lon


def utm_to_latlon(east: float, north: float, zone: int, *, south: bool) -> tuple[float, float] | None:
    """Convert UTM coordinates in metres to latitude and longitude (degrees, WGS84); None if they are invalid.

    Args:
        south: whether the northing has the false origin of the southern hemisphere, 10,000 km.
    """
    if not 1 <= zone <= 60:
        return None
    try:
        lon, lat = _utm(zone, south).transform(east, north, errcheck=True)
    except ProjError:
        return None
    return (float(lat), float(lon)) if np.isfinite(lat) and np.isfinite(lon) else None


@lru_cache(maxsize=120)
def _utm(zone: int, south: bool) -> Transformer:
    return Transformer.from_crs(
        f"EPSG:{32700 + zone if south else 32600 + zone}", "EPSG:4326", always_xy=True
    )

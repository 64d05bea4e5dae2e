"""Distances and projections on the earth, exact enough for places a few metres apart.

A sphere is assumed except for UTM, which is WGS84 by its own definition: below a kilometre a sphere's
distances are within 0.6 % of the ellipsoid's, less than any GPS fix is off.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import Transformer
from pyproj.exceptions import ProjError

EARTH_RADIUS_M = 6_371_008.8
"""Mean radius of the earth (IUGG), in metres."""

SEAM_DEGREES = 1e-6
"""By how much a band of latitudes is wider than its circle: rounding must not cut it."""

FloatArray = NDArray[np.float64]


def haversine_m(lat1: ArrayLike, lon1: ArrayLike, lat2: ArrayLike, lon2: ArrayLike) -> FloatArray:
    """Great-circle distance between positions in degrees, in metres.

    The four arguments broadcast. Formula: 2R·asin √(sin²(Δφ/2) + cos φ₁ cos φ₂ sin²(Δλ/2)), which keeps
    its precision for points close together and across the antimeridian.
    """
    phi1, phi2 = np.radians(np.asarray(lat1, np.float64)), np.radians(np.asarray(lat2, np.float64))
    half_dlam = np.radians(np.asarray(lon2, np.float64) - np.asarray(lon1, np.float64)) / 2
    h = np.sin((phi2 - phi1) / 2) ** 2 + np.cos(phi1) * np.cos(phi2) * np.sin(half_dlam) ** 2
    return np.asarray(2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(np.minimum(h, 1.0))), np.float64)


def band_degrees(radius_m: float) -> float:
    """How far in latitude a circle reaches from its middle: what lies further is not within it."""
    return float(np.degrees(radius_m / EARTH_RADIUS_M)) + SEAM_DEGREES


def earth_points(lat: ArrayLike, lon: ArrayLike) -> FloatArray:
    """Positions in degrees as points in space, (n, 3) in metres from the earth's centre.

    Here the poles and the antimeridian are nowhere special, so neighbours can be searched on a plain grid.
    """
    phi, lam = np.radians(np.asarray(lat, np.float64)), np.radians(np.asarray(lon, np.float64))
    return EARTH_RADIUS_M * np.stack(
        [np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1
    )


def chord_m(arc_m: float) -> float:
    """Straight distance in space between two points `arc_m` apart along the ground, both in metres."""
    return float(2 * EARTH_RADIUS_M * np.sin(min(arc_m / (2 * EARTH_RADIUS_M), np.pi / 2)))


def wrap_lon(lon: ArrayLike) -> FloatArray:
    """Longitudes in degrees brought into [-180, 180)."""
    return np.asarray((np.asarray(lon, np.float64) + 180.0) % 360.0 - 180.0, np.float64)


def to_local(lat: ArrayLike, lon: ArrayLike, lat0: float, lon0: float) -> FloatArray:
    """Metres east and north of (lat0, lon0), (n, 2); for distances of a few kilometres.

    Longitude differences are wrapped, so that the antimeridian does not tear a neighbourhood apart.
    """
    east = np.radians(wrap_lon(np.asarray(lon, np.float64) - lon0)) * np.cos(np.radians(lat0))
    north = np.radians(np.asarray(lat, np.float64) - lat0)
    return EARTH_RADIUS_M * np.stack([east, north], axis=-1)


def from_local(east_m: float, north_m: float, lat0: float, lon0: float) -> tuple[float, float]:
    """Latitude and longitude in degrees of a point given in metres from (lat0, lon0): `to_local` undone."""
    lat = lat0 + float(np.degrees(north_m / EARTH_RADIUS_M))
    # At the very pole every longitude is the same place; the bound only avoids a division by zero.
    shrink = max(float(np.cos(np.radians(lat0))), 1e-12)
    lon = float(wrap_lon(lon0 + np.degrees(east_m / (EARTH_RADIUS_M * shrink))))
    return min(max(lat, -90.0), 90.0), lon


def utm_to_latlon(east: float, north: float, zone: int, *, south: bool) -> tuple[float, float] | None:
    """Latitude and longitude (degrees, WGS84) of UTM coordinates in metres, None where they name no place.

    `south` says that the northing counts from the false origin 10,000 km below the equator.
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

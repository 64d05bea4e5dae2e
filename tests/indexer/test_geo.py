import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.geo import chord_m, earth_points, from_local, haversine_m, to_local, utm_to_latlon, wrap_lon

# The machine may be busy with other things; slow is not wrong.
anywhere = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

lats = st.floats(-90, 90)
lons = st.floats(-180, 180)


def test_haversine_of_a_degree_along_the_equator() -> None:
    assert haversine_m(0, 0, 0, 1) == pytest.approx(111_195.08, abs=0.01)


def test_haversine_broadcasts() -> None:
    distances = haversine_m(np.zeros((3, 1)), np.zeros((3, 1)), np.zeros(2), np.array([0.0, 90.0]))
    assert distances.shape == (3, 2)
    assert distances[:, 1] == pytest.approx(np.pi / 2 * 6_371_008.8)


def test_haversine_across_the_antimeridian_and_over_a_pole() -> None:
    assert haversine_m(10, 179.9999, 10, -179.9999) == pytest.approx(haversine_m(10, 0, 10, 0.0002), rel=1e-6)
    assert haversine_m(89.9999, 0, 89.9999, 180) == pytest.approx(haversine_m(0, 0, 0.0002, 0), rel=1e-6)


@given(lats, lons, lats, lons)
@anywhere
def test_chords_agree_with_arcs(lat1: float, lon1: float, lat2: float, lon2: float) -> None:
    chord = np.linalg.norm(earth_points(lat1, lon1) - earth_points(lat2, lon2))
    assert chord == pytest.approx(chord_m(float(haversine_m(lat1, lon1, lat2, lon2))), abs=0.5, rel=1e-6)


@given(st.floats(-80, 80), lons, st.floats(-2000, 2000), st.floats(-2000, 2000))
@anywhere
def test_from_local_is_inverse_of_to_local(lat: float, lon: float, east: float, north: float) -> None:
    found = to_local(*from_local(east, north, lat, lon), lat, lon)
    assert found == pytest.approx([east, north], abs=1e-3)


@given(st.floats(-80, 80), lons, st.floats(-500, 500), st.floats(-500, 500))
@anywhere
def test_local_metres_agree_with_haversine(lat: float, lon: float, east: float, north: float) -> None:
    there = from_local(east, north, lat, lon)
    assert haversine_m(lat, lon, *there) == pytest.approx(np.hypot(east, north), rel=2e-3, abs=1e-3)


def test_longitudes_are_wrapped() -> None:
    assert wrap_lon([180.0, -180.0, 190.0, -190.0, 540.0]).tolist() == [-180, -180, -170, 170, -180]


def test_utm_of_known_points() -> None:
    """Published coordinates of the Eiffel tower and the Sydney opera house; a metre is 1e-5 degrees."""
    assert utm_to_latlon(448_252, 5_411_955, 31, south=False) == pytest.approx((48.8583, 2.2945), abs=2e-4)
    assert utm_to_latlon(334_897, 6_252_291, 56, south=True) == pytest.approx((-33.8568, 151.2153), abs=2e-4)


def test_utm_depends_on_zone() -> None:
    here, next_door = (utm_to_latlon(500_000, 5_000_000, zone, south=False) for zone in (31, 32))
    assert here is not None
    assert next_door is not None
    assert here[0] == pytest.approx(next_door[0])
    assert next_door[1] - here[1] == pytest.approx(6)


@pytest.mark.parametrize("zone", [0, 61, -3])
def test_invalid_utm_zone_has_no_position(zone: int) -> None:
    assert utm_to_latlon(500_000, 5_000_000, zone, south=False) is None


def test_utm_far_outside_has_no_position() -> None:
    assert utm_to_latlon(1e12, 1e12, 31, south=False) is None

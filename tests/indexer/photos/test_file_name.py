import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.photos.file_name import from_name
from indexer.photos.metadata import PhotoMetadata

# The machine may be busy with other things; slow is not wrong.
anywhere = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

FULL = "@302800.83@5787594.66@31@U@52.20346759@0.11408925@999@2@270@1@0@2.5@20240923_160658@rain@.jpg"


def test_a_full_name() -> None:
    assert from_name(FULL) == PhotoMetadata(52.20346759, 0.11408925, 270.0, "2024-09-23T16:06:58")


def test_the_folder_does_not_matter() -> None:
    assert from_name(f"a@b/database/{FULL}") == from_name(FULL)
    assert from_name(f"database\\{FULL}") == from_name(FULL)


def test_empty_fields_are_unknown() -> None:
    assert from_name("@@@@@@@@@@@@@@@.jpg") == PhotoMetadata()
    assert from_name("@302800.83@5787594.66@31@U@@@@@90@@@@@@.jpg").heading == 90.0


def utm(east: str, north: str, zone: str, letter: str) -> tuple[float, float] | None:
    found = from_name(f"@{east}@{north}@{zone}@{letter}@@@@@@@@@@@.jpg")
    return None if found.lat is None or found.lon is None else (found.lat, found.lon)


def test_utm_stands_in_for_latitude_and_longitude() -> None:
    assert utm("302800.83", "5787594.66", "31", "U") == pytest.approx((52.203467, 0.114089), abs=1e-5)
    assert utm("302800.83", "5787594.66", "31U", "") == pytest.approx((52.203467, 0.114089), abs=1e-5)


def test_the_letter_names_the_hemisphere() -> None:
    assert utm("334897", "6252291", "56", "H") == pytest.approx((-33.8568, 151.2153), abs=1e-3)
    assert utm("500000", "9999000", "31", "M") == pytest.approx((-0.009, 3), abs=1e-3)
    assert utm("500000", "1000", "31", "N") == pytest.approx((0.009, 3), abs=1e-3)


def test_s_is_san_franciscos_band_and_else_the_south() -> None:
    assert utm("551000", "4180000", "10", "S") == pytest.approx((37.766, -122.421), abs=1e-2)
    assert utm("334897", "6252291", "56", "S") == pytest.approx((-33.8568, 151.2153), abs=1e-3)


@pytest.mark.parametrize(
    ("east", "north", "zone", "letter"),
    [
        ("", "5787594.66", "31", "U"),
        ("302800.83", "5787594.66", "", "U"),
        ("302800.83", "5787594.66", "31", ""),
        ("302800.83", "5787594.66", "31", "I"),
        ("302800.83", "5787594.66", "77", "U"),
        ("nan", "5787594.66", "31", "U"),
        ("1e300", "1e300", "31", "U"),
    ],
)
def test_utm_that_names_no_place(east: str, north: str, zone: str, letter: str) -> None:
    assert utm(east, north, zone, letter) is None


@pytest.mark.parametrize(
    ("stamp", "taken_at"),
    [
        ("20240923", "2024-09-23"),
        ("20240923_160658", "2024-09-23T16:06:58"),
        ("201309", None),
        ("20241399", None),
    ],
)
def test_stamps(stamp: str, taken_at: str | None) -> None:
    assert from_name(f"@1@2@@@@@@@@@@@{stamp}@@.jpg").taken_at == taken_at


@pytest.mark.parametrize("name", ["img.jpg", "@handle.jpg", "@", "a@52@0.jpg", ""])
def test_other_names_say_nothing(name: str) -> None:
    assert from_name(name) == PhotoMetadata()


@given(st.lists(st.one_of(st.text(), st.floats().map(str)), max_size=18))
@anywhere
def test_any_name_raises_nothing(fields: list[str]) -> None:
    found = from_name("@" + "@".join(fields))
    assert (found.lat is None) == (found.lon is None)

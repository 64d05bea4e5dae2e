from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.photos.metadata import PhotoMetadata, heading_or_none, position_or_none, time_or_none

# The machine may be busy with other things; slow is not wrong.
anywhere = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_merging_fills_gaps_group_by_group() -> None:
    first = PhotoMetadata(lat=1.0, lon=2.0, place="bridge")
    second = PhotoMetadata(lat=3.0, lon=4.0, heading=5.0, taken_at="2024-01-01", place="tower")
    assert first.merged_over(second) == PhotoMetadata(1.0, 2.0, 5.0, "2024-01-01", "bridge")
    assert second.merged_over(first) == second


def test_merging_keeps_zeros() -> None:
    north = PhotoMetadata(lat=0.0, lon=0.5, heading=0.0)
    assert north.merged_over(PhotoMetadata(lat=9.0, lon=9.0, heading=9.0)) == north


@pytest.mark.parametrize(
    "position", [(0.0, 0.0), (90.1, 0.0), (0.0, -180.5), (float("nan"), 1.0), (1.0, float("inf"))]
)
def test_invalid_positions_are_none(position: tuple[float, float]) -> None:
    assert position_or_none(*position) is None


@given(st.floats(allow_nan=True, allow_infinity=True))
@anywhere
def test_headings_are_brought_into_the_circle(degrees: float) -> None:
    heading = heading_or_none(degrees)
    assert heading is None or 0 <= heading < 360


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("2024:09:23 16:06:58", "2024-09-23T16:06:58"),
        ("2024:09:23 16:06:58\0", "2024-09-23T16:06:58"),
        ("2024-09-23 16:06:58", "2024-09-23T16:06:58"),
        ("2024-09-23T16:06:58.25Z", "2024-09-23T16:06:58+00:00"),
        ("2024-09-23T16:06:58+05:30", "2024-09-23T16:06:58+05:30"),
        ("2024-09-23", "2024-09-23"),
        ("2024:09:23", "2024-09-23"),
        ("0000:00:00 00:00:00", None),
        ("    :  :     :  :  ", None),
        ("2024:13:40 99:00:00", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_times(text: str, iso: str | None) -> None:
    assert time_or_none(text) == iso


@pytest.mark.parametrize(
    ("offset", "iso"),
    [("-04:00", "-04:00"), ("+05:30\0", "+05:30"), ("Z", "+00:00"), ("", ""), ("   :  ", ""), ("east", "")],
)
def test_readable_offsets_are_added(offset: str, iso: str) -> None:
    assert time_or_none("2024:09:23 16:06:58", offset) == "2024-09-23T16:06:58" + iso


def test_own_offset_is_kept() -> None:
    assert time_or_none("2024-09-23T16:06:58Z", "-04:00") == "2024-09-23T16:06:58+00:00"


@given(st.text())
@anywhere
def test_any_text_gives_a_time_or_none(text: str) -> None:
    found = time_or_none(text)
    assert found is None or datetime.fromisoformat(found)

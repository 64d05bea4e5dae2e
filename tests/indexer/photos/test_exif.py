import io
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from indexer.photos.exif import from_exif
from indexer.photos.metadata import PhotoMetadata

# The machine may be busy with other things; slow is not wrong.
anywhere = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

GPS = ExifTags.GPS
BASE = ExifTags.Base
CAMBRIDGE: dict[int, Any] = {
    GPS.GPSLatitudeRef: "N",
    GPS.GPSLatitude: (52.0, 12.0, 12.5),
    GPS.GPSLongitudeRef: "E",
    GPS.GPSLongitude: (0.0, 6.0, 50.7),
}


def photo(gps: dict[int, Any] | None = None, details: dict[int, Any] | None = None) -> Image.Image:
    """A JPEG opened from bytes that carries these EXIF entries."""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(gps or {})
    exif.get_ifd(ExifTags.IFD.Exif).update(details or {})
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG", exif=exif)
    return Image.open(io.BytesIO(out.getvalue()))


def test_photo_without_exif_has_no_metadata() -> None:
    assert from_exif(Image.new("RGB", (8, 8))) == PhotoMetadata()


def test_position_in_degrees_minutes_seconds() -> None:
    found = from_exif(photo(CAMBRIDGE))
    assert found.lat == pytest.approx(52 + 12 / 60 + 12.5 / 3600, abs=1e-7)
    assert found.lon == pytest.approx(6 / 60 + 50.7 / 3600, abs=1e-7)


def test_the_letters_name_the_hemisphere() -> None:
    found = from_exif(photo(CAMBRIDGE | {GPS.GPSLatitudeRef: "S", GPS.GPSLongitudeRef: "W"}))
    assert found.lat == pytest.approx(-52.203472, abs=1e-6)
    assert found.lon == pytest.approx(-0.114083, abs=1e-6)


@pytest.mark.parametrize("missing", sorted(CAMBRIDGE))
def test_incomplete_position_is_none(missing: int) -> None:
    found = from_exif(photo({key: value for key, value in CAMBRIDGE.items() if key != missing}))
    assert (found.lat, found.lon) == (None, None)


@pytest.mark.parametrize(
    "damage",
    [
        {GPS.GPSLatitude: (IFDRational(0, 0), IFDRational(0, 0), IFDRational(0, 0))},
        {GPS.GPSLatitude: (52.0, 12.0, IFDRational(5, 0))},
        {GPS.GPSLatitude: (91.0, 0.0, 0.0)},
        {GPS.GPSLongitude: (181.0, 0.0, 0.0)},
        {GPS.GPSLatitudeRef: "?"},
        {GPS.GPSStatus: "V"},
        {GPS.GPSLatitude: (0.0, 0.0, 0.0), GPS.GPSLongitude: (0.0, 0.0, 0.0)},
    ],
)
def test_invalid_position_is_none(damage: dict[int, Any]) -> None:
    found = from_exif(photo(CAMBRIDGE | damage))
    assert (found.lat, found.lon) == (None, None)


def test_a_lost_position_leaves_the_rest() -> None:
    found = from_exif(
        photo(
            {GPS.GPSImgDirection: 350.5, GPS.GPSImgDirectionRef: "T"},
            {BASE.DateTimeOriginal: "2024:09:23 16:06:58", BASE.OffsetTimeOriginal: "-04:00"},
        )
    )
    assert found == PhotoMetadata(heading=350.5, taken_at="2024-09-23T16:06:58-04:00")


@pytest.mark.parametrize(
    ("written", "read"), [(0.0, 0.0), (360.0, 0.0), (361.0, None), (IFDRational(1, 0), None)]
)
def test_headings(written: Any, read: float | None) -> None:
    assert from_exif(photo({GPS.GPSImgDirection: written})).heading == read


def test_the_time_of_saving_is_not_the_time_of_taking() -> None:
    image = photo()
    image.getexif()[BASE.DateTime] = "2024:09:23 16:06:58"
    assert from_exif(image).taken_at is None


def test_the_time_of_digitising_stands_in() -> None:
    details: dict[int, Any] = {
        BASE.DateTimeOriginal: "0000:00:00 00:00:00",
        BASE.DateTimeDigitized: "2001:02:03 04:05:06",
    }
    assert from_exif(photo(None, details)).taken_at == "2001-02-03T04:05:06"


class Damaged:
    """Stands in for an image whose EXIF block holds what no camera writes."""

    def __init__(self, gps: dict[int, Any]) -> None:
        self._gps = gps

    def getexif(self) -> "Damaged":
        return self

    def get_ifd(self, tag: int) -> dict[int, Any]:
        return self._gps if tag == ExifTags.IFD.GPSInfo else {BASE.DateTimeOriginal: self._gps.get(2)}


values = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.one_of(st.none(), st.floats(), st.text())),
)
values = st.one_of(
    values, st.builds(IFDRational, st.integers(-5, 400), st.integers(0, 3)), st.tuples(values, values, values)
)


@given(st.dictionaries(st.sampled_from([1, 2, 3, 4, 9, 17]), values))
@anywhere
def test_odd_entries_raise_nothing(gps: dict[int, Any]) -> None:
    found = from_exif(Damaged(gps))  # type: ignore[arg-type]
    assert (found.lat is None) == (found.lon is None)
    assert found.lat is None or abs(found.lat) <= 90


@given(st.binary(max_size=400))
@anywhere
def test_damaged_blocks_raise_nothing(block: bytes) -> None:
    image = Image.new("RGB", (8, 8))
    image.info["exif"] = b"Exif\0\0MM\0*\0\0\0\x08" + block
    assert isinstance(from_exif(image), PhotoMetadata)

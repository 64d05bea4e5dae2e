"""Metadata, scan and places on real photos, where they lie beside the repository."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from indexer.geo import haversine_m
from indexer.photos.exif import from_exif
from indexer.photos.file_name import from_name
from indexer.photos.metadata import PhotoMetadata
from indexer.photos.metadata_table import read_table
from indexer.photos.scan import scan
from indexer.places.assign import PlacePhoto, assign_places

DATA = Path(__file__).parents[4] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no real photos in ../shared/data")


def exif(path: Path) -> PhotoMetadata:
    with Image.open(path) as image:
        return from_exif(image)


def apart_m(a: PhotoMetadata, b: PhotoMetadata) -> float:
    if a.lat is None or a.lon is None or b.lat is None or b.lon is None:
        return float("inf")
    return float(haversine_m(a.lat, a.lon, b.lat, b.lon))


def test_varied_exif() -> None:
    """Nine photos of Arezzo; the time of saving, eleven days later, is not taken."""
    files = scan([DATA / "exif-samples"]).files
    assert len(files) == 9
    arezzo = PhotoMetadata(lat=43.4670, lon=11.8833)
    for file in files:
        found = exif(file.path)
        assert apart_m(found, arezzo) < 500
        assert (found.taken_at or "").startswith("2008-10-22T")
        assert found.heading is None


@pytest.mark.parametrize("root", ["campus-phone", "campus-phone/small"])
def test_phone_photos_agree_with_their_table(root: str) -> None:
    table = read_table(DATA / "campus-phone/images.csv")
    files = [file for file in scan([DATA / root]).files if "originals" not in file.relative]
    assert len(files) == 81
    with_heading = 0
    for file in files:
        own, listed = exif(file.path), table.for_photo(file.root, file.relative)
        assert listed is not None
        assert apart_m(own, listed) < 0.1
        # Five photos carry no offset.
        assert own.taken_at in (listed.taken_at, f"{listed.taken_at}-04:00")
        assert (own.heading is None) == (listed.heading is None)
        assert own.heading == pytest.approx(listed.heading)
        with_heading += own.heading is not None
    assert with_heading == 60
    assert table.unused() == []


def test_original_and_small_copy_have_equal_metadata() -> None:
    for original in sorted((DATA / "campus-phone/originals").iterdir()):
        assert exif(original) == exif(DATA / "campus-phone/small" / original.name)


def test_drone_photos_agree_with_their_table() -> None:
    table = read_table(DATA / "ranch-drone/images.csv")
    files = scan([DATA / "ranch-drone"]).files
    assert len(files) == 75
    for file in files:
        listed = table.for_photo(file.root, file.relative)
        assert listed is not None
        assert apart_m(exif(file.path), listed) < 0.1


def test_utm_in_names_agrees_with_latitude_and_longitude() -> None:
    names = [file.relative for file in scan([DATA / "cambridge-street/database"]).files]
    assert len(names) == 1000
    for name in names:
        fields = name.split("@")
        plain = from_name(name)
        fields[5:7] = "", ""
        assert apart_m(plain, from_name("@".join(fields))) < 3
        assert plain.heading == float(fields[9])


def test_places_of_a_town() -> None:
    names = sorted(path.name for path in (DATA / "cambridge-street/database").iterdir())
    photos = []
    for name in names:
        found = from_name(name)
        photos.append(PlacePhoto(name, name, found.lat, found.lon, None))
    where = {photo.id: (photo.lat or 0.0, photo.lon or 0.0) for photo in photos}
    places = assign_places(photos, "auto", 25.0)
    assert sum(len(place.members) for place in places) == 1000
    assert 40 < len(places) < 120
    for place in places:
        away = [haversine_m(*where[id], *where[place.medoid]) for id in place.members]
        assert max(away) <= 25.001
    half = assign_places(photos[::2], "auto", 25.0)
    grown = {place.id: place for place in assign_places(photos, "auto", 25.0, half)}
    assert all(set(place.members) <= set(grown[place.id].members) for place in half)


def test_every_line_of_a_table_is_read() -> None:
    path = DATA / "campus-phone/images.csv"
    with path.open(newline="") as text:
        lines = list(csv.DictReader(text))
    entries = read_table(path).entries
    assert [line["file"] for line in lines] == list(entries)
    assert [float(line["lat"]) for line in lines] == [entry.lat for entry in entries.values()]

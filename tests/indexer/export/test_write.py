import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from indexer.answers import Photo
from indexer.errors import IndexerError, UsageError
from indexer.export.write import FORMATS, export
from indexer.photos.metadata import PhotoMetadata
from indexer.photos.metadata_table import read_table

PHOTOS = [
    Photo("1a", "b/a.jpg", "Old bridge", 52.5, -0.25, 90.0, "2024-09-23T16:06:58", 640, 480, "ok"),
    Photo("2b", "b/b.jpg", None, None, None, None, None, 640, 480, "ok"),
    Photo("3c", "c.jpg", None, 52.6, 0.1234567891, None, None, 640, 480, "ok"),
]
IDS = ["1a", "2b", "3c", "3c"]
ROWS = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], np.float32)


def text(format: str, photos: Sequence[Photo] = PHOTOS, neighbours: int = 20) -> str:
    out = io.BytesIO()
    assert export(photos, IDS, ROWS, format, out, neighbours=neighbours).files == ()
    return out.getvalue().decode()


def test_geojson_has_positions_and_properties() -> None:
    document = json.loads(text("geojson"))
    assert document["type"] == "FeatureCollection"
    first, second, _ = document["features"]
    assert first == {
        "type": "Feature",
        "id": "1a",
        "geometry": {"type": "Point", "coordinates": [-0.25, 52.5]},
        "properties": {
            "path": "b/a.jpg",
            "heading": 90.0,
            "taken_at": "2024-09-23T16:06:58",
            "place": "Old bridge",
            "width": 640,
            "height": 480,
        },
    }
    assert second["geometry"] is None


def test_csv_has_a_line_for_each_photo() -> None:
    rows = list(csv.DictReader(io.StringIO(text("csv"))))
    assert [row["path"] for row in rows] == ["b/a.jpg", "b/b.jpg", "c.jpg"]
    assert (rows[0]["lat"], rows[0]["place"], rows[0]["id"]) == ("52.5", "Old bridge", "1a")
    assert (rows[1]["lat"], rows[1]["heading"]) == ("", "")


@pytest.mark.parametrize("format", ["csv", "geojson"])
def test_geojson_and_csv_are_metadata_tables(tmp_path: Path, format: str) -> None:
    export(PHOTOS, IDS, ROWS, format, tmp_path / "photos")
    table = read_table(tmp_path / "photos")
    assert table.for_photo(tmp_path, "b/a.jpg") == PhotoMetadata(
        52.5, -0.25, 90.0, "2024-09-23T16:06:58", "Old bridge"
    )
    assert table.for_photo(tmp_path, "b/b.jpg") == PhotoMetadata()
    assert table.for_photo(tmp_path, "c.jpg") == PhotoMetadata(52.6, 0.1234567891)


def test_numpy_has_descriptors_and_paths(tmp_path: Path) -> None:
    target = tmp_path / "descriptors"
    exported = export(PHOTOS, IDS, ROWS, "numpy", target)
    assert exported.files == (target,)
    with np.load(target, allow_pickle=False) as found:
        assert found["descriptors"].dtype == np.float32
        assert np.array_equal(found["descriptors"], ROWS)
        assert found["ids"].tolist() == IDS
        assert found["paths"].tolist() == ["b/a.jpg", "b/b.jpg", "c.jpg", "c.jpg"]


def test_hloc_has_pairs() -> None:
    """hloc reads two names on each line, separated by white space."""
    pairs = [tuple(line.split()) for line in text("hloc", neighbours=1).rstrip("\n").split("\n")]
    assert pairs == [("b/a.jpg", "b/b.jpg"), ("b/b.jpg", "c.jpg"), ("c.jpg", "b/b.jpg")]


def test_kapture_has_pairs_with_scores() -> None:
    assert text("kapture", neighbours=1).splitlines() == [
        "# kapture format: 1.1",
        "# query_image, map_image, score",
        "b/a.jpg, b/b.jpg, 0.800000",
        "b/b.jpg, c.jpg, 0.960000",
        "c.jpg, b/b.jpg, 0.960000",
    ]


def test_colmap_has_images_and_positions(tmp_path: Path) -> None:
    exported = export(PHOTOS, IDS, ROWS, "colmap", tmp_path / "images.txt")
    assert exported.files == (tmp_path / "images.txt", tmp_path / "images.geo.txt")
    assert exported.files[0].read_text() == "b/a.jpg\nb/b.jpg\nc.jpg\n"
    assert exported.files[1].read_text() == (
        "b/a.jpg 52.50000000 -0.25000000 0\nc.jpg 52.60000000 0.12345679 0\n"
    )


def test_colmap_without_positions_has_images_only(tmp_path: Path) -> None:
    exported = export(PHOTOS[1:2], IDS, ROWS, "colmap", tmp_path / "images.txt")
    assert exported.files == (tmp_path / "images.txt",)
    assert text("colmap") == "b/a.jpg\nb/b.jpg\nc.jpg\n"


@pytest.mark.parametrize(
    ("format", "out"), [("hloc", {"b/a b.jpg"}), ("colmap", {"b/a b.jpg"}), ("kapture", {"c,d.jpg"})]
)
def test_impossible_names_are_left_out_and_reported(format: str, out: set[str]) -> None:
    odd = ["b/a b.jpg", "c,d.jpg"]
    photos = [
        Photo(id, path, None, 1.0, 2.0, None, None, 1, 1, "ok")
        for id, path in zip(("1a", "2b"), odd, strict=True)
    ]
    stream = io.BytesIO()
    exported = export([*photos, PHOTOS[2]], IDS, ROWS, format, stream)
    assert set(exported.left_out) == out
    assert exported.photos == 2
    assert not any(name in stream.getvalue().decode() for name in out)


def test_empty_index_is_exported() -> None:
    nothing = np.empty((0, 2), np.float32)
    for format in FORMATS:
        assert export([], [], nothing, format, io.BytesIO()).photos == 0


def test_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no export format 'kml'; there are geojson, csv, numpy, hloc"):
        export(PHOTOS, IDS, ROWS, "kml", io.BytesIO())


def test_unequal_rows_and_ids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(4, 2\) and 1"):
        export(PHOTOS, ["1a"], ROWS, "csv", io.BytesIO())


def test_unwritable_target_stays_unchanged(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(IndexerError, match=r"cannot write .*out: Is a directory"):
        export(PHOTOS, IDS, ROWS, "csv", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

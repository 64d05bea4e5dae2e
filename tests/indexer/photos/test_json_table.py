import json
from pathlib import Path
from typing import Any

import pytest

from indexer.errors import UsageError
from indexer.photos.metadata import PhotoMetadata
from indexer.photos.metadata_table import read_table


def read(folder: Path, document: Any) -> dict[str, PhotoMetadata]:
    path = folder / "photos.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return dict(read_table(path).entries)


def collection(*features: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def point(coordinates: Any, **properties: Any) -> dict[str, Any]:
    geometry = None if coordinates is None else {"type": "Point", "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def test_points(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        collection(
            point(
                [0.25, 52.5, 17.0], path="a.jpg", heading=-90, taken_at="2024-09-23T16:06:58Z", place="Bridge"
            ),
            point([1, 2], file="b/c.jpg", img_direction_deg="10", other={"x": 1}),
            point(None, path="d.jpg", heading=None, place=""),
        ),
    )
    assert found == {
        "a.jpg": PhotoMetadata(52.5, 0.25, 270.0, "2024-09-23T16:06:58+00:00", "Bridge"),
        "b/c.jpg": PhotoMetadata(2.0, 1.0, 10.0),
        "d.jpg": PhotoMetadata(),
    }


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ("{", "line 1: is not valid JSON"),
        ({"type": "Feature"}, "is neither a GeoJSON FeatureCollection nor a list of Mapillary descriptions"),
        (collection(3), "feature 1: is not an object"),
        (
            collection(point([1, 2], path="a.jpg"), point([1, 2])),
            "feature 2: has no property `path` or `file`",
        ),
        (collection(point([1, 95], path="a.jpg")), "feature 1: `coordinates` is out of range: latitude 95.0"),
        (collection(point(["x", 2], path="a.jpg")), "feature 1: `coordinates` is not a number: 'x'"),
        (collection(point([1], path="a.jpg")), "feature 1: `geometry` is not a Point"),
        (collection(point([1, 2], path="a.jpg", heading="N")), "feature 1: `heading` is not a number: 'N'"),
        (
            collection(point([1, 2], path="a.jpg", taken_at="noon")),
            "feature 1: property `taken_at` is not an ISO 8601",
        ),
        ([3], "entry 1: is not an object"),
        ([{"MAPLatitude": 1, "MAPLongitude": 2}], "entry 1: has no `filename`"),
        (
            [{"MAPLatitude": 1, "filename": "a.jpg"}],
            "entry 1: `MAPLatitude and MAPLongitude` is not a number: None",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, document: Any, complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        read(tmp_path, document)
    assert "photos.json" in str(error.value)
    assert complaint in str(error.value)


def test_mapillary_descriptions(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        [
            {
                "filename": "DSC00001.JPG",
                "filetype": "image",
                "MAPLatitude": 45.5169031,
                "MAPLongitude": -122.572765,
                "MAPCaptureTime": "2018_06_08_20_24_11_000",
                "MAPCompassHeading": {"TrueHeading": 270.89, "MagneticHeading": 250.0},
            },
            {"error": {"type": "MapillaryGeoTaggingError", "message": "no GPS"}, "filename": "DSC00002.JPG"},
            {"filename": "DSC00003.JPG", "MAPLatitude": 1, "MAPLongitude": 2, "MAPCaptureTime": "soon"},
            {"filename": "ride.mp4", "filetype": "gopro", "MAPGPSTrack": []},
        ],
    )
    assert found == {
        "DSC00001.JPG": PhotoMetadata(45.5169031, -122.572765, 270.89, "2018-06-08T20:24:11+00:00"),
        "DSC00003.JPG": PhotoMetadata(1.0, 2.0),
    }

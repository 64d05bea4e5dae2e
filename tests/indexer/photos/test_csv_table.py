from pathlib import Path

import pytest

from indexer.errors import UsageError
from indexer.photos.metadata import PhotoMetadata
from indexer.photos.metadata_table import read_table


def read(folder: Path, text: str, encoding: str = "utf-8") -> dict[str, PhotoMetadata]:
    path = folder / "photos.csv"
    path.write_bytes(text.encode(encoding))
    return dict(read_table(path).entries)


ONE = {"a.jpg": PhotoMetadata(lat=52.5, lon=-0.25)}


@pytest.mark.parametrize(
    "text",
    [
        "path,lat,lon\na.jpg,52.5,-0.25\n",
        "file,latitude,longitude\r\na.jpg,52.5,-0.25\r\n",
        "\ufeffFILE;Lat;LNG\na.jpg;52,5;-0,25\n",
        "camera\tlon\tlat\tpath\nX\t-0.25\t52.5\t./a.jpg\n",
        'path,note,lat,lon\n"a.jpg","two\nlines, and a comma",52.5,-0.25\n\n,,,\n',
        "path, lat, lon\na.jpg, 52.5, -0.25",
    ],
)
def test_the_same_table_in_many_spellings(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == ONE


def test_excels_unicode_text(tmp_path: Path) -> None:
    assert read(tmp_path, "path\tlat\tlon\na.jpg\t52.5\t-0.25\n", "utf-16") == ONE


def test_every_column(tmp_path: Path) -> None:
    text = "path,lat,lon,heading,taken_at,place\nb/c.jpg,1,2,370,2024:09:23 16:06:58,Old bridge\n"
    assert read(tmp_path, text) == {
        "b/c.jpg": PhotoMetadata(1.0, 2.0, 10.0, "2024-09-23T16:06:58", "Old bridge")
    }


def test_the_other_names_of_columns(tmp_path: Path) -> None:
    text = "file,lat,lon,img_direction_deg,datetime\na.jpg,1,2,90,2024-09-23T16:06:58Z\n"
    assert read(tmp_path, text)["a.jpg"] == PhotoMetadata(1.0, 2.0, 90.0, "2024-09-23T16:06:58+00:00")


def test_empty_cells_are_unknown(tmp_path: Path) -> None:
    text = "path,lat,lon,heading,taken_at,place\na.jpg,,,,,\nb.jpg,,\nc.jpg,0,0,0,,\n"
    assert read(tmp_path, text) == {
        "a.jpg": PhotoMetadata(),
        "b.jpg": PhotoMetadata(),
        "c.jpg": PhotoMetadata(heading=0.0),
    }


def test_places_without_positions(tmp_path: Path) -> None:
    assert read(tmp_path, "file,place\na.jpg,Town hall\n") == {"a.jpg": PhotoMetadata(place="Town hall")}
    with pytest.raises(UsageError, match="no column `lon`"):
        read(tmp_path, "file,place,lat\na.jpg,Town hall,1\n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("path,latt,lon\na.jpg,1,2\n", "line 1: no column `lat` or `latitude`; did you mean `latt`?"),
        (
            "path,lat,x\na.jpg,1,2\n",
            "line 1: no column `lon` or `lng` or `longitude`; there are `path`, `lat`, `x`",
        ),
        ("image,lat,lon\na.jpg,1,2\n", "line 1: no column `path` or `file`; there are `image`, `lat`, `lon`"),
        ("", "line 1: no column `path` or `file`; there are none"),
        ("path,lat,lon\na.jpg,1,2\nb.jpg,north,2\n", "line 3: column `lat` is not a number: 'north'"),
        ("path,Latitude,lon\na.jpg,91,2\n", "line 2: column `Latitude` is outside -90 to 90: '91'"),
        ("path,lat,lon\na.jpg,1,181\n", "line 2: column `lon` is outside -180 to 180: '181'"),
        ("path,lat,lon\na.jpg,nan,2\n", "line 2: column `lat` is not a number: 'nan'"),
        ("path,lat,lon\na.jpg,1,\n", "line 2: column `lon` is empty, though the other half is given"),
        ("path,lat,lon\n,1,2\n", "line 2: column `path` is empty"),
        ("path,lat,lon,heading\na.jpg,1,2,NE\n", "line 2: column `heading` is not a number: 'NE'"),
        ("path,lat,lon,datetime\na.jpg,1,2,noon\n", "line 2: column `datetime` is no time such as"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        read(tmp_path, text)
    assert f"photos.csv, {complaint}" in str(error.value)
    assert "\n" not in str(error.value)


def test_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"photos\.csv: is not UTF-8 text"):
        read(tmp_path, "path,lat,lon\nä.jpg,1,2\n", "latin-1")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the metadata file .*none\.csv: No such file"):
        read_table(tmp_path / "none.csv")

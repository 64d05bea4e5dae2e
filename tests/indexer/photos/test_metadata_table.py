from pathlib import Path

import pytest

from indexer.photos.metadata import PhotoMetadata
from indexer.photos.metadata_table import MetadataTable, read_table


def table(path: Path, *names: str) -> MetadataTable:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("path,lat,lon\n" + "".join(f"{name},1,2\n" for name in names))
    return read_table(path)


HERE = PhotoMetadata(1.0, 2.0)


@pytest.mark.parametrize(
    ("listed", "root", "relative"),
    [
        ("small/a.jpg", "campus", "small/a.jpg"),  # relative to the indexed folder
        ("small/a.jpg", "campus/small", "a.jpg"),  # to the table's own folder, above the indexed one
        ("a.jpg", "elsewhere", "a.jpg"),
        ("elsewhere/b/a.jpg", "elsewhere", "b/a.jpg"),  # the indexed folder's name comes first
        ("data/elsewhere/a.jpg", "data/elsewhere", "a.jpg"),
        ("../other/a.jpg", "other", "a.jpg"),
        ("campus/a.jpg", "campus", "a.jpg"),
        (".\\small\\a.jpg", "campus", "small/a.jpg"),
    ],
)
def test_a_path_may_be_relative_to_several_folders(
    tmp_path: Path, listed: str, root: str, relative: str
) -> None:
    found = table(tmp_path / "campus/images.csv", listed)
    assert found.for_photo(tmp_path / root, relative) == HERE
    assert found.unused() == []


def test_the_table_may_lie_below_the_indexed_folder(tmp_path: Path) -> None:
    found = table(tmp_path / "all/campus/images.csv", "small/a.jpg")
    assert found.for_photo(tmp_path / "all", "campus/small/a.jpg") == HERE
    assert found.for_photo(tmp_path / "all", "campus2/small/a.jpg") is None


def test_a_path_may_be_absolute(tmp_path: Path) -> None:
    found = table(tmp_path / "images.csv", f"{tmp_path}/photos/a.jpg")
    assert found.for_photo(tmp_path / "photos", "a.jpg") == HERE


def test_a_relative_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = table(Path("images.csv"), "photos/b/a.jpg")
    assert found.for_photo(Path("photos"), "b/a.jpg") == HERE


def test_the_indexed_folder_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "images.csv"
    path.write_text("path,lat,lon\na.jpg,1,2\nb/a.jpg,3,4\n")
    assert read_table(path).for_photo(tmp_path / "b", "a.jpg") == HERE


def test_unmatched_rows_are_unused(tmp_path: Path) -> None:
    found = table(tmp_path / "images.csv", "z.jpg", "a.jpg", "m.jpg")
    assert found.for_photo(tmp_path, "a.jpg") == HERE
    assert found.for_photo(tmp_path, "n.jpg") is None
    assert found.unused() == ["z.jpg", "m.jpg"]


def test_the_last_line_of_a_photo_counts(tmp_path: Path) -> None:
    path = tmp_path / "images.csv"
    path.write_text("path,lat,lon\na.jpg,1,2\n./a.jpg,3,4\n")
    assert read_table(path).for_photo(tmp_path, "a.jpg") == PhotoMetadata(3.0, 4.0)

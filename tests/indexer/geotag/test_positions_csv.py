"""The CSV of positions: added to a line at a time, gone on with, and read back as metadata."""

import io
import os
from pathlib import Path

import pytest

from indexer.errors import IndexerError, UsageError
from indexer.geotag.positions_csv import PositionsCsv
from indexer.photos.metadata import PhotoMetadata
from indexer.photos.metadata_table import read_table

HEADER = "path,lat,lon,radius_m,confidence,heading,place,photo\n"
ROW = ("b/a, b.jpg", 52.2034, 0.114, 12.4, 0.93, None, None, "photos/x.jpg")
LINE = '"b/a, b.jpg",52.2034,0.114,12.4,0.93,,,photos/x.jpg\n'


def add(path: Path, *rows: tuple[object, ...], anew: bool = False) -> PositionsCsv:
    table = PositionsCsv(path, anew=anew)
    table.begin()
    for row in rows:
        table.add(row)
    table.close()
    return table


def test_lines_are_added(tmp_path: Path) -> None:
    path = tmp_path / "new" / "positions.csv"
    assert not add(path, ROW).has("b/a, b.jpg")
    assert path.read_text() == HEADER + LINE
    again = add(path, ("c.jpg", *ROW[1:]))
    assert (again.has("b/a, b.jpg"), again.has("c.jpg"), again.has("")) == (True, False, False)
    assert path.read_text() == HEADER + LINE + "c.jpg,52.2034,0.114,12.4,0.93,,,photos/x.jpg\n"


def test_line_is_on_disk_when_added(tmp_path: Path) -> None:
    table = PositionsCsv(tmp_path / "p.csv")
    table.add(ROW)
    assert (tmp_path / "p.csv").read_text() == HEADER + LINE
    table.close()


def test_file_can_be_started_again(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    add(path, ROW)
    add(path, ("c.jpg", *ROW[1:]), anew=True)
    assert path.read_text() == HEADER + "c.jpg,52.2034,0.114,12.4,0.93,,,photos/x.jpg\n"


@pytest.mark.parametrize("cut", [LINE[:-1], LINE[:20], LINE[:5], '"a photo\nof two lines.jpg",1,2'])
def test_a_line_that_was_cut_off_goes(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(HEADER + "c.jpg,1,2,3,,,,\n" + cut)
    table = add(path, ROW)
    assert (table.has("c.jpg"), table.has("b/a, b.jpg")) == (True, False)
    assert path.read_text() == HEADER + "c.jpg,1,2,3,,,,\n" + LINE


def test_an_empty_file_becomes_one(tmp_path: Path) -> None:
    (tmp_path / "p.csv").touch()
    add(tmp_path / "p.csv", ROW)
    assert (tmp_path / "p.csv").read_text() == HEADER + LINE


def test_reading_changes_nothing(tmp_path: Path) -> None:
    PositionsCsv(tmp_path / "p.csv").close()
    assert list(tmp_path.iterdir()) == []
    add(tmp_path / "p.csv", ROW)
    before = (tmp_path / "p.csv").read_bytes()
    PositionsCsv(tmp_path / "p.csv", anew=True).close()
    assert (tmp_path / "p.csv").read_bytes() == before


def test_it_is_read_as_metadata(tmp_path: Path) -> None:
    add(tmp_path / "p.csv", ROW, ("c.jpg", 1.0, 2.0, 3.0, None, 90.0, "the gate", None))
    table = read_table(tmp_path / "p.csv")
    assert table.for_photo(tmp_path / "elsewhere", "b/a, b.jpg") == PhotoMetadata(52.2034, 0.114)
    assert table.for_photo(tmp_path, "c.jpg") == PhotoMetadata(1.0, 2.0, 90.0, place="the gate")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,lat,lon\n", r"exists with other columns than path,lat,.*: use another file$"),
        (b"\xff\xd8\xff a photo", "exists and is not a table of positions: use another file$"),
        (HEADER.encode() + b"a,1\nb,1,2,3,,,,\n", "row 2 has 2 cells, not 8$"),
    ],
)
def test_another_file_is_never_added_to(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        PositionsCsv(path)
    assert path.read_bytes() == content


def test_unreadable_and_unwritable_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/full")):
        with pytest.raises(UsageError, match=f"^{path} is not a file$"):
            PositionsCsv(path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot be read: Not a directory$"):
        PositionsCsv(tmp_path / "file" / "p.csv")


def test_full_disk_is_reported(tmp_path: Path) -> None:
    table = PositionsCsv(tmp_path / "p.csv")
    table.begin()
    table.close()
    table._file = io.FileIO("/dev/full", "a")
    with pytest.raises(IndexerError, match=f"^cannot write {tmp_path}/p.csv: No space left on device$"):
        table.add(ROW)
    table._file.close()


def test_read_only_target_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "p.csv"
    PositionsCsv(path).check_writable()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may do anything
    with pytest.raises(IndexerError, match=rf"^cannot write {path}: {tmp_path} is read-only$"):
        PositionsCsv(path).check_writable()

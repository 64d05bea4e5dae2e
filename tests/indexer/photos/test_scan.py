import os
import sys
from pathlib import Path

import pytest

from indexer.errors import IndexerError
from indexer.photos import scan as module
from indexer.photos.scan import scan


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def listed(*sources: Path) -> list[str]:
    return [file.relative for file in scan(sources).files]


def test_photos_below_a_folder_sorted(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.jpeg", "a.png", "c.webp", "d.tif", "e.TIFF", "f.avif", "g.jpe"):
        touch(tmp_path / name)
    for name in ("notes.txt", "b/x.csv", "jpg", "h.gif"):
        touch(tmp_path / name)
    result = scan([tmp_path])
    expected = ["a.png", "b/1.jpeg", "b/2.JPG", "c.webp", "d.tif", "e.TIFF", "f.avif", "g.jpe"]
    assert [file.relative for file in result.files] == expected
    assert result.roots == [tmp_path]
    assert result.problems == []


def test_a_file_carries_size_and_time(tmp_path: Path) -> None:
    path = touch(tmp_path / "b/a.jpg", b"12345")
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))
    (file,) = scan([tmp_path]).files
    assert (file.root, file.path, file.size, file.mtime_ns) == (tmp_path, path, 5, path.stat().st_mtime_ns)


@pytest.mark.parametrize(("installed", "names"), [(True, ["a.heic", "b.HEIF"]), (False, [])])
def test_heic_only_with_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool, names: list[str]
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: object() if installed else None)
    touch(tmp_path / "a.heic")
    touch(tmp_path / "b.HEIF")
    assert listed(tmp_path) == names


def test_hidden_files_and_other_indexes_are_passed_over(tmp_path: Path) -> None:
    for name in (".trash/a.jpg", "._b.jpg", "c.jpg", "index/catalogue.sqlite", "index/photos/d.jpg"):
        touch(tmp_path / name)
    assert listed(tmp_path) == ["c.jpg"]


def test_hidden_source_folder_is_scanned(tmp_path: Path) -> None:
    touch(tmp_path / ".camera/a.jpg")
    assert listed(tmp_path / ".camera") == ["a.jpg"]


def test_loops_of_links_end(tmp_path: Path) -> None:
    touch(tmp_path / "b/a.jpg")
    (tmp_path / "b/up").symlink_to(tmp_path)
    (tmp_path / "a-link").symlink_to(tmp_path / "b")
    assert listed(tmp_path) == ["b/a.jpg"]


def test_linked_folder_is_listed_once(tmp_path: Path) -> None:
    touch(tmp_path / "disk/deep/a.jpg")
    touch(tmp_path / "disk/b.jpg")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "one").symlink_to(tmp_path / "disk")
    (photos / "two").symlink_to(tmp_path / "disk")
    (photos / "three.jpg").symlink_to(tmp_path / "disk/b.jpg")
    assert listed(photos) == ["one/b.jpg", "one/deep/a.jpg"]


def test_a_link_to_nothing_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    result = scan([tmp_path])
    assert result.files == []
    assert result.problems == [(tmp_path / "a.jpg", "link to nothing")]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_undecodable_name_is_a_problem(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg"))).write_bytes(b"x")
    result = scan([tmp_path])
    assert result.files == []
    assert [reason for _, reason in result.problems] == ["its name is not valid UTF-8"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read any folder")
def test_a_folder_that_may_not_be_read_is_a_problem(tmp_path: Path) -> None:
    touch(tmp_path / "shut/a.jpg")
    (tmp_path / "shut").chmod(0)
    try:
        assert scan([tmp_path]).problems == [(tmp_path / "shut", "cannot be listed: Permission denied")]
    finally:
        (tmp_path / "shut").chmod(0o700)


def test_hard_links_are_two_files(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").hardlink_to(tmp_path / "a.jpg")
    assert listed(tmp_path) == ["a.jpg", "b.jpg"]


def test_single_files_lie_in_their_folder_but_do_not_stand_for_it(tmp_path: Path) -> None:
    touch(tmp_path / "b/a.jpg")
    touch(tmp_path / "b/b.jpg")
    result = scan([tmp_path / "b/a.jpg", tmp_path / "b/a.jpg"])
    assert [(file.root, file.relative) for file in result.files] == [(tmp_path / "b", "a.jpg")]
    assert result.roots == []


def test_a_source_below_another_is_part_of_it(tmp_path: Path) -> None:
    touch(tmp_path / "a/b/c.jpg")
    touch(tmp_path / "ab/d.jpg")
    result = scan([tmp_path / "a/b", tmp_path / "ab", tmp_path / "a", tmp_path / "a/b/c.jpg"])
    assert [(file.root.name, file.relative) for file in result.files] == [("a", "b/c.jpg"), ("ab", "d.jpg")]
    assert result.roots == [tmp_path / "a", tmp_path / "ab"]


def test_relative_sources_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "b/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert scan([Path("b/../b")]).roots == [tmp_path / "b"]


def test_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexerError, match="nowhere does not exist"):
        scan([tmp_path, tmp_path / "nowhere"])

"""Runs on a collection that has changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from indexer.build.report import BuildReport
from indexer.build.run import remove_photos
from indexer.errors import IndexerError
from indexer.storage.catalogue import Catalogue

if TYPE_CHECKING:
    from tests.indexer.conftest import Paint, World


def counts(report: BuildReport) -> dict[str, int]:
    """Nonzero counts of a report."""
    names = ("added", "changed", "moved", "removed", "unchanged", "embedded")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def test_run_without_changes_does_nothing(world: World) -> None:
    snapshot = world.build().snapshot
    before = {file: file.stat().st_mtime_ns for file in world.index.glob("**/*.safetensors")}
    report = world.build()
    assert counts(report) == {"unchanged": 8}
    assert (report.photos, report.snapshot, report.places) == (8, snapshot, 4)
    assert {file: file.stat().st_mtime_ns for file in world.index.glob("**/*.safetensors")} == before


def test_new_photo_is_found(world: World, paint: Paint) -> None:
    paint(world.photos / "new" / "a.jpg", 9)
    report = world.build()
    assert counts(report) == {"added": 1, "unchanged": 8, "embedded": 1}
    assert (report.photos, report.snapshot, report.places) == (9, "01/000002", 5)
    assert world.nearest(paint(world.photos.parent / "question.jpg", 9, 1)) == "photos/new/a.jpg"


def test_changed_photo_replaces_old_one(world: World, paint: Paint) -> None:
    old = shutil.copy(world.photo(3), world.photos.parent / "old.jpg")
    paint(world.photo(3), 9)
    report = world.build()
    assert counts(report) == {"changed": 1, "unchanged": 7, "embedded": 1}
    assert report.photos == 8
    assert world.nearest(world.photo(3)) == "photos/wall3/view0.jpg"
    assert world.nearest(Path(old)) == "photos/wall3/view1.jpg"


def test_touched_photo_is_not_embedded_again(world: World) -> None:
    os.utime(world.photo(0), ns=(1, 1))
    assert counts(world.build()) == {"unchanged": 8}


def test_change_with_same_size_and_time_needs_rehash(world: World, paint: Paint) -> None:
    before = world.photo(0).stat()
    paint(world.photo(0), 9)
    world.photo(0).write_bytes(world.photo(0).read_bytes()[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(world.photo(0), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert counts(world.build()) == {"unchanged": 8}
    assert counts(world.build(rehash=True))["changed"] == 1


def test_renamed_folder_is_not_embedded_again(world: World) -> None:
    ids = {photo.id for photo in world.open().photos()}
    (world.photos / "wall2").rename(world.photos / "renamed")
    report = world.build()
    assert counts(report) == {"moved": 2, "unchanged": 6}
    index = world.open()
    assert {photo.id for photo in index.photos()} == ids
    assert "photos/renamed/view0.jpg" in [photo.path for photo in index.photos()]
    assert index.photo_file(index.photos()[0].id) == world.photos / "renamed" / "view0.jpg"


def test_copies_are_one_photo_with_several_paths(world: World) -> None:
    shutil.copy(world.photo(1), world.photos / "copy.jpg")
    report = world.build()
    assert counts(report) == {"unchanged": 8}
    assert report.photos == 8
    world.photo(1).unlink()
    report = world.build()
    assert counts(report) == {"unchanged": 8}
    assert world.nearest(world.photos / "copy.jpg") == "photos/copy.jpg"


def test_new_copies_count_once(world: World, paint: Paint) -> None:
    paint(world.photos / "a.jpg", 9)
    shutil.copy(world.photos / "a.jpg", world.photos / "b.jpg")
    assert counts(world.build()) == {"added": 1, "unchanged": 8, "embedded": 1}


def test_swapped_photos_are_not_embedded_again(world: World) -> None:
    other = world.photo(0).rename(world.photos / "other.jpg")
    world.photo(1).rename(world.photo(0))
    other.rename(world.photo(1))
    report = world.build()
    assert report.embedded == 0
    assert report.photos == 8
    assert world.nearest(world.photo(0)) == "photos/wall0/view0.jpg"


def test_vanished_photo_comes_back_without_embedding(world: World) -> None:
    away = world.photos.parent / "away.jpg"
    world.photo(2).rename(away)
    report = world.build()
    assert counts(report) == {"removed": 1, "unchanged": 7}
    assert report.photos == 7
    assert world.nearest(away) == "photos/wall2/view1.jpg"
    away.rename(world.photo(2))
    report = world.build()
    assert counts(report) == {"added": 1, "unchanged": 7}
    assert world.nearest(world.photo(2)) == "photos/wall2/view0.jpg"


def test_run_stops_if_over_a_fifth_vanished(world: World, paint: Paint) -> None:
    shutil.rmtree(world.photos / "wall2")
    paint(world.photos / "new.jpg", 9)
    with pytest.raises(
        IndexerError,
        match=r"2 of 8 photos are gone from .*photos; nothing .*mount it.*`prune`",
    ):
        world.build()
    index = world.open()
    assert len(index.photos()) == 9
    assert (index.snapshot, index.manifest.photos) == ("01/000001", 8)
    report = world.build(prune=True)
    assert counts(report) == {"removed": 2, "unchanged": 7, "embedded": 1}
    assert report.photos == 7


def test_vanished_share_is_counted_by_root(world: World, paint: Paint) -> None:
    small = world.photos.parent / "small-disk"
    for wall in (10, 11):
        paint(small / f"{wall}.jpg", wall)
    assert world.build(world.photos, small).photos == 10
    shutil.rmtree(small)
    small.mkdir()  # a mount point without its disk
    with pytest.raises(IndexerError, match=r"2 of 2 photos are gone from .*small-disk"):
        world.build(world.photos, small)
    assert world.build().photos == 10


def test_pruning_last_photo_is_refused(world: World) -> None:
    for file in world.photos.glob("*/*"):
        file.rename(world.photos.parent / f"{file.parent.name}-{file.name}")
    with pytest.raises(IndexerError, match="no photo would be left in the index: nothing was changed"):
        world.build(prune=True)
    question = world.photos.parent / "wall3-view1.jpg"
    assert world.nearest(question) == "photos/wall3/view1.jpg"
    assert len(world.open().photos()) == 8


def test_photos_in_unreadable_folder_have_not_vanished(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = os.scandir

    def scandir(path: Any) -> Any:
        if not isinstance(path, int) and Path(path).name == "wall1":
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    report = world.build()
    assert report.photos == 8
    assert counts(report) == {"unchanged": 6}
    assert report.notes == (f"{world.photos / 'wall1'}: cannot be listed: Permission denied",)


def test_photos_outside_given_folders_stay(world: World) -> None:
    for file in world.photos.glob("wall[012]/*"):
        file.unlink()
    report = world.build(world.photos / "wall3")
    assert counts(report) == {"unchanged": 2}
    assert report.photos == 8


def test_other_roots_find_the_same_files(world: World) -> None:
    assert counts(world.build(world.photos / "wall3")) == {"unchanged": 2}
    assert counts(world.build(world.photo(3))) == {"unchanged": 1}
    assert counts(world.build(world.photos.parent)) == {"unchanged": 8}
    paths = Catalogue(world.index).paths()
    assert len(paths) == 8
    world.photo(3).unlink()
    assert counts(world.build(world.photos.parent)) == {"removed": 1, "unchanged": 7}


def test_folders_with_the_same_name_stay_distinct(world: World, paint: Paint) -> None:
    other = world.photos.parent / "elsewhere" / "photos"
    paint(other / "wall0" / "view0.jpg", 9)
    report = world.build(world.photos, other)
    assert counts(report) == {"added": 1, "unchanged": 8, "embedded": 1}
    with pytest.raises(IndexerError, match="matches 2 photos of the index: give more of its path"):
        remove_photos(world.index, ["photos/wall0/view0.jpg"])
    remove_photos(world.index, [str(other / "wall0" / "view0.jpg")])
    assert world.nearest(world.photo(0)) == "photos/wall0/view0.jpg"


def test_single_files_are_indexed(world: World, paint: Paint) -> None:
    new = paint(world.photos.parent / "single.jpg", 9)
    world.photo(0).unlink()
    report = world.build(new)
    assert counts(report) == {"added": 1, "embedded": 1}
    assert report.photos == 9


def test_removed_photo_stays_out(world: World) -> None:
    assert remove_photos(world.index, ["wall1/view0.jpg"]) == ["photos/wall1/view0.jpg"]
    report = world.build()
    assert (report.photos, counts(report)) == (7, {"unchanged": 7})
    os.utime(world.photo(1), ns=(1, 1))
    report = world.build(rehash=True)
    assert (report.photos, counts(report)) == (7, {"unchanged": 7})
    assert report.notes == ("1 photos were removed earlier and stay out",)
    world.photo(1).rename(world.photos / "renamed.jpg")
    assert world.build().photos == 7
    assert world.nearest(world.photos / "renamed.jpg") == "photos/wall1/view1.jpg"


def test_removed_photos_do_not_hide_unmounted_disk(world: World) -> None:
    remove_photos(world.index, [f"wall{wall}/view{view}.jpg" for wall in (0, 1, 2) for view in (0, 1)])
    world.photo(3).unlink()
    with pytest.raises(IndexerError, match="1 of 2 photos are gone"):
        world.build()


def test_unreadable_photo_is_reported_and_tried_again(world: World, paint: Paint) -> None:
    whole = paint(world.photos / "new.jpg", 9).read_bytes()
    (world.photos / "new.jpg").write_bytes(whole[: len(whole) // 2])  # only decoding shows the damage
    (world.photos / "text.jpg").write_text("not a photo")
    (world.photos / "empty.png").touch()
    snapshot = world.build().snapshot
    for _ in range(2):
        report = world.build()
        assert [(Path(failure.path).name, failure.reason) for failure in report.failed] == [
            ("empty.png", "empty file"),
            ("new.jpg", "truncated image"),
            ("text.jpg", "not an image that can be read"),
        ]
        assert (report.photos, report.embedded, report.snapshot) == (8, 0, snapshot)
    (world.photos / "new.jpg").write_bytes(whole)
    (world.photos / "empty.png").unlink()
    report = world.build()
    assert [Path(failure.path).name for failure in report.failed] == ["text.jpg"]
    assert (report.photos, report.embedded, report.removed) == (9, 1, 1)


def test_unreadable_file_is_reported(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(world.photo(0), ns=(1, 1))
    reading = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path == world.photo(0):
            raise OSError(5, "Input/output error")
        return reading(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    report = world.build()
    assert [(f.path, f.reason) for f in report.failed] == [
        (str(world.photo(0)), "cannot be read: Input/output error")
    ]
    assert report.photos == 8


def test_later_metadata_moves_photos_without_embedding(world: World) -> None:
    table = world.photos.parent / "metadata.csv"
    table.write_text(
        "path,lat,lon,place\nwall0/view0.jpg,10.5,20.5,Harbour\nwall0/view1.jpg,10.5,20.5,Harbour\nno.jpg,1,2,\n"
    )
    report = world.build(metadata=table)
    assert counts(report) == {"unchanged": 8}
    assert report.snapshot == "01/000002"
    assert report.notes == (f"1 rows of {table} name no photo that was given: no.jpg",)
    answer = world.open().query(world.photo(0), k=1)
    assert (answer.places[0].name, answer.places[0].lat, answer.places[0].lon) == ("Harbour", 10.5, 20.5)
    assert answer.position is not None
    assert answer.position.lat == pytest.approx(10.5)
    assert world.build().snapshot == "01/000002"
    assert world.build(rehash=True).snapshot == "01/000002"  # the table still overrides EXIF


def test_places_change_without_embedding(world: World) -> None:
    report = world.build(places="photo")
    assert (report.places, report.embedded) == (8, 0)
    assert world.build().places == 8
    assert world.build(places="gps", place_radius_m=30_000.0).places == 1


def test_index_inside_photo_folder_is_skipped(empty: World) -> None:
    inside = empty.photos / "my-index"
    world = type(empty)(empty.photos, inside)
    assert world.build().photos == 4
    shutil.copy(empty.photo(0), inside / "copy.jpg")
    assert counts(world.build()) == {"unchanged": 4}

"""Photos that come and go one at a time: searched at once, there for good, beside runs and one another."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.build.rebuild import rebuild
from indexer.build.run import remove_photos
from indexer.errors import DiskFull, FieldError, IndexBusy, IndexerError, IndexLocked, NotFound, Superseded
from indexer.filters import Filters
from indexer.index import Index
from indexer.maintenance.check import check_index
from indexer.photos.metadata import PhotoMetadata
from indexer.posting.new_photo import given_metadata, read_new
from indexer.storage.catalogue import Catalogue
from indexer.storage.lock import write_lock
from indexer.storage.stored_files import sweep
from model.errors import ImageError, TooManyPixels

if TYPE_CHECKING:
    from tests.indexer.conftest import Handmade, Paint, World

Floats = NDArray[np.float32]
Unit = Callable[..., Floats]


@pytest.fixture
def thirty(handmade: Handmade, unit: Unit) -> Handmade:
    """Thirty photos at one spot."""
    draw = np.random.default_rng(0)
    handmade.make([(PhotoMetadata(lat=1.0, lon=1.0), [unit(draw)]) for _ in range(30)])
    return handmade


def problems(folder: Path) -> list[str]:
    """What is wrong with an index, except that one made by hand has no model."""
    return [problem for problem in check_index(folder) if not problem.startswith("no model file")]


def post(world: World, photo: Path, **given: Any) -> tuple[str, bool]:
    """Add a photo as the service does; its id and whether it was new."""
    index = world.open()
    new = read_new(photo.read_bytes(), given_metadata(**given))
    views = index.posting().reader((new.id, new.data))
    shown, created = index.posting().add(new, index.embedder.embed(views))
    return shown.id, created


# Searched at once


def test_random_changes_against_a_naive_search(thirty: Handmade, unit: Unit) -> None:
    """Adds, deletes, returns and snapshots in any order: two opened indexes find what a list would."""
    draw, dice = np.random.default_rng(1), random.Random(1)
    writer, reader = thirty.open(), thirty.open()
    ids, descriptors = writer.descriptors()
    known = dict(zip(ids, descriptors, strict=True))
    live, numbers = set(ids), {}
    for step in range(250):
        action = dice.choice(["add"] * 5 + ["delete"] * 3 + ["return", "rebuild", "reopen"])
        if action == "add":
            new = thirty.new(step)
            known[new.id], numbers[new.id] = unit(draw), step
            assert writer.posting().add(new, known[new.id][None])[1]
            live.add(new.id)
        elif action == "delete":
            gone = dice.choice(sorted(live))
            writer.posting().remove(gone)
            live.remove(gone)
        elif action == "return":
            back = sorted(numbers.keys() - live)
            if back:
                returned = dice.choice(back)
                new = thirty.new(numbers[returned])
                assert writer.posting().add(new, known[returned][None])[1]
                live.add(returned)
        elif action == "rebuild" and step % 4 == 0:
            rebuild(thirty.folder)
        elif action == "reopen":
            writer = thirty.open()
        query = unit(draw)
        expected = sorted(live, key=lambda id: -float(known[id].astype(float) @ query.astype(float)))
        for index in (writer, reader):
            hits = index.nearest(query, 10)
            assert [hit.id for hit in hits] == expected[:10]
            assert index.counts().photos == len(live)
    assert problems(thirty.folder) == []
    assert {photo.id for photo in reader.photos()} == live


def test_added_photos_score_as_in_a_snapshot(thirty: Handmade, unit: Unit) -> None:
    draw = np.random.default_rng(2)
    index = thirty.open()
    for number in range(20):
        index.posting().add(thirty.new(number), unit(draw)[None])
    queries = [unit(draw) for _ in range(10)]
    beside = [index.nearest(query, 50) for query in queries]
    rebuild(thirty.folder)
    newest = thirty.open()
    assert newest.manifest.count == 50
    assert [newest.nearest(query, 50) for query in queries] == beside


def test_filters_see_added_photos(thirty: Handmade, unit: Unit) -> None:
    index = thirty.open()
    query = unit(np.random.default_rng(3))
    near = Filters(lat=5.0, lon=5.0, radius_m=1.0)
    assert index.nearest(query, 5, near) == []
    new = thirty.new(1, PhotoMetadata(lat=5.0, lon=5.0))
    index.posting().add(new, -query[None])
    assert [hit.id for hit in index.nearest(query, 5, near)] == [new.id]
    index.posting().remove(new.id)
    assert index.nearest(query, 5, near) == []


def test_many_threads_add_delete_search_and_publish(thirty: Handmade, unit: Unit) -> None:
    """Whoever added a photo finds it at once, and not once it is deleted; no search fails."""
    index = thirty.open()
    wrong: list[object] = []
    stop = threading.Event()

    def change(thread: int) -> None:
        draw = np.random.default_rng(100 + thread)
        for number in range(12):
            descriptor = unit(draw)
            new = thirty.new(1000 * thread + number)
            index.posting().add(new, descriptor[None])
            if index.nearest(descriptor, 1)[0].id != new.id:
                wrong.append(("not found", new.id))
            if number % 3 == 0:
                index.posting().remove(new.id)
                if new.id in [hit.id for hit in index.nearest(descriptor, 5)]:
                    wrong.append(("found", new.id))

    def publish() -> None:
        while not stop.is_set():
            rebuild(thirty.folder)
            time.sleep(0.05)

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            wrong.append(error)

    changing = [threading.Thread(target=guarded, args=(lambda n=n: change(n),)) for n in range(4)]
    publishing = threading.Thread(target=guarded, args=(publish,))
    for thread in (*changing, publishing):
        thread.start()
    for thread in changing:
        thread.join()
    stop.set()
    publishing.join()
    assert wrong == []
    assert index.counts().photos == thirty.open().counts().photos == 30 + 4 * 8
    assert problems(thirty.folder) == []


# What is stored


def test_photo_is_stored_with_its_metadata(world: World, paint: Paint, tmp_path: Path) -> None:
    photo = paint(tmp_path / "new.jpg", 9)
    index = world.open()
    id, created = post(world, photo, heading=90.0, taken_at="2024:09:23 16:06:58", place="Gate")
    assert created
    shown = index.photo(id)
    assert (shown.path, shown.status, shown.width, shown.height) == (f"posted/{id}.jpg", "ok", 48, 32)
    assert [shown.lat, shown.lon] == pytest.approx([52.09, 0.25])  # from its EXIF
    assert (shown.heading, shown.taken_at, shown.place) == (90.0, "2024-09-23T16:06:58", "Gate")
    assert index.photo_file(id).read_bytes() == photo.read_bytes()
    assert index.photo_file(id).parent == world.index / "photos"
    assert index.query(photo).places[0].photos[0].id == id
    assert index.info()["photos"] == 9


def test_the_same_bytes_again_change_nothing(world: World, paint: Paint, tmp_path: Path) -> None:
    photo = paint(tmp_path / "new.jpg", 9)
    first = post(world, photo, place="Gate")
    index = world.open()
    before = index.photo(first[0])
    assert post(world, photo, place="Hall", heading=3.0) == (first[0], False)
    assert index.photo(first[0]) == before
    assert len(list((world.index / "photos").iterdir())) == 1


def test_a_posted_photo_of_a_folder_outlives_the_folder(world: World) -> None:
    id, created = post(world, world.photo(0))
    assert not created
    assert world.open().photo(id).path == "photos/wall0/view0.jpg"
    shutil.rmtree(world.photos / "wall0")
    assert world.build(prune=True).photos == 7
    assert world.open().photo(id).path == f"posted/{id}.jpg"
    assert world.open().photo_file(id).is_file()


def test_names_are_shown_and_never_shared(world: World, paint: Paint, tmp_path: Path) -> None:
    index = world.open()
    shown = []
    for wall, name in (
        (9, "gate.jpg"),
        (10, "gate.jpg"),
        (11, "../../etc/passwd"),
        (12, "C:\\photos\\a b.jpg"),
    ):
        new = read_new(paint(tmp_path / f"{wall}.jpg", wall).read_bytes(), PhotoMetadata(), name)
        images = index.posting().reader((new.id, new.data))
        shown.append(index.posting().add(new, index.embedder.embed(images))[0])
    expected = ["gate.jpg", f"gate-{shown[1].id}.jpg", "passwd", "a b.jpg"]
    assert [photo.path for photo in shown] == [f"posted/{name}" for name in expected]
    assert remove_photos(world.index, ["posted/gate.jpg"]) == ["posted/gate.jpg"]
    assert len(list((world.index / "photos").iterdir())) == 3


@pytest.mark.parametrize("name", ["", " ", "..", "a/", "x" * 201, "a\nb"])
def test_invalid_names_are_rejected(paint: Paint, tmp_path: Path, name: str) -> None:
    data = paint(tmp_path / "a.jpg", 1).read_bytes()
    with pytest.raises(FieldError, match=r"^name must be 1 to 200 printable characters, not"):
        read_new(data, PhotoMetadata(), name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lat": 1.0}, "lon is missing, though lat is given"),
        ({"lat": 100.0, "lon": 1.0}, "lat must be -90 to 90, not 100"),
        ({"heading": float("nan")}, "heading must be 0 to 360, not nan"),
        ({"taken_at": "soon"}, "taken_at must be a time such as 2024-09-23T16:06:58, not 'soon'"),
        ({"place": "\x00"}, "place must be 1 to 200 printable characters, not '\\x00'"),
    ],
)
def test_invalid_metadata_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError) as caught:
        given_metadata(**values)
    assert str(caught.value) == message


def test_other_files_are_refused(paint: Paint, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not an image"):
        read_new(b"<svg/>", PhotoMetadata())
    with pytest.raises(TooManyPixels):
        read_new(paint(tmp_path / "a.jpg", 1).read_bytes(), PhotoMetadata(), max_pixels=100)


def test_a_panorama_is_stored_as_its_views(world: World, paint: Paint, tmp_path: Path) -> None:
    world.build(refit=True, panoramas=4)
    index = world.open()
    id, _ = post(world, paint(tmp_path / "street.jpg", 9, size=(64, 32)), lat=10.0, lon=20.0, heading=90.0)
    ids, descriptors = index.descriptors()
    rows = [row for row, owner in zip(descriptors, ids, strict=True) if owner == id]
    assert [index.nearest(row, 1)[0].heading for row in rows] == [90, 180, 270, 0]


# Deleting


def test_a_deleted_photo_stays_out_until_it_is_posted(world: World) -> None:
    index = world.open()
    id = next(photo.id for photo in index.photos() if photo.path == "photos/wall0/view0.jpg")
    index.posting().remove(id)
    with pytest.raises(NotFound, match=f"no photo '{id}' in this index"):
        index.photo(id)
    with pytest.raises(NotFound):
        index.posting().remove(id)
    report = world.build()
    assert (report.photos, report.added) == (7, 0)
    assert world.photo(0).is_file()
    assert post(world, world.photo(0), place="back") == (id, True)
    assert index.photo(id).place == "back"
    assert index.query(world.photo(0)).places[0].photos[0].id == id
    assert world.build().photos == 8


def test_deleting_takes_the_stored_file_away(world: World, paint: Paint, tmp_path: Path) -> None:
    photo = paint(tmp_path / "new.jpg", 9)
    id, _ = post(world, photo)
    index = world.open()
    index.posting().remove(id)
    assert list((world.index / "photos").iterdir()) == []
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(photo, folder)
    assert world.build(folder).photos == 8  # its hash is remembered
    assert post(world, photo) == (id, True)
    assert index.photo_file(id).is_file()


def test_the_last_photo_may_be_deleted(thirty: Handmade, unit: Unit) -> None:
    index = thirty.open()
    for photo in index.photos():
        index.posting().remove(photo.id)
    answer = index.answer(unit(np.random.default_rng(0)))
    assert (answer.places, answer.position) == ((), None)
    assert answer.note == "the index is empty"
    with pytest.raises(IndexerError, match="no photo would be left"):
        rebuild(thirty.folder)
    new = thirty.new(1)
    index.posting().add(new, unit(np.random.default_rng(1))[None])
    assert thirty.open().counts().photos == 1


# Places


def test_a_photo_joins_the_nearest_place_or_founds_one(thirty: Handmade, unit: Unit) -> None:
    draw = np.random.default_rng(5)
    index = thirty.open()
    (old,) = index.places()
    for number, (lat, photos) in enumerate(((1.0001, 31), (1.001, 31), (1.0011, 31), (-30.0, 31))):
        index.posting().add(
            thirty.new(number, PhotoMetadata(lat=lat, lon=1.0, place="new")), unit(draw)[None]
        )
        assert index.place(old.id).photos == photos  # the first is 11 m from it, the others over 100 m
    before = {place.id: (place.lat, place.photos) for place in index.places()}
    assert sorted(photos for _, photos in before.values()) == [1, 2, 31]
    assert index.place(old.id).name == "new"  # it had none
    rebuild(thirty.folder)
    assert {place.id: (place.lat, place.photos) for place in thirty.open().places()} == before


@pytest.mark.parametrize(
    ("mode", "places"),
    [("gps", 2), ("folder", 2), ("frames:3", 3), ("photo", 3)],
)
def test_without_a_position_the_name_of_the_place_counts(
    handmade: Handmade, unit: Unit, mode: str, places: int
) -> None:
    draw = np.random.default_rng(6)
    handmade.make([(PhotoMetadata(), [unit(draw)])], places=mode)
    index = handmade.open()
    for number, place in enumerate(("Gate", "Gate", "Hall")):
        index.posting().add(handmade.new(number, PhotoMetadata(place=place)), unit(draw)[None])
    assert len(index.places()) == 1 + places
    ids = {place.id for place in index.places()}
    rebuild(handmade.folder)
    assert {place.id for place in handmade.open().places()} <= ids
    if not mode.startswith("frames"):  # which the snapshot groups anew
        assert len(handmade.open().places()) == 1 + places


def test_returning_photo_gets_its_place_back(handmade: Handmade, unit: Unit) -> None:
    draw = np.random.default_rng(7)
    handmade.make([(PhotoMetadata(), [unit(draw)])], places="photo")
    index = handmade.open()
    found = []
    for _ in range(2):
        index.posting().add(handmade.new(1), unit(draw)[None])
        found.append({place.id for place in index.places()})
        index.posting().remove(handmade.new(1).id)
    assert found[0] == found[1]
    assert len(found[0]) == 2


# Beside runs


def test_runs_never_lose_posted_photos(world: World, paint: Paint, tmp_path: Path) -> None:
    ids = [post(world, paint(tmp_path / f"{wall}.jpg", wall))[0] for wall in (9, 10)]
    paint(world.photos / "more.jpg", 11)
    report = world.build()
    assert (report.photos, report.added, report.removed, report.embedded) == (11, 1, 0, 1)
    other = tmp_path / "other"
    paint(other / "one.jpg", 12)
    world.build(other)
    world.build(rehash=True)
    report = world.build(refit=True, clusters=3)
    assert (report.photos, report.embedded) == (12, 12)
    index = world.open()
    for wall, id in zip((9, 10), ids, strict=True):
        assert index.query(tmp_path / f"{wall}.jpg").places[0].photos[0].id == id
    assert check_index(world.index) == []


def test_photos_posted_while_a_new_generation_is_fitted(
    world: World, paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come before the fit, during the embedding, and at the last moment before CURRENT changes."""
    import indexer.build.embed
    import indexer.build.fit
    import indexer.build.publish
    import indexer.build.run

    posted: list[str] = []
    service = world.open()

    def meanwhile(module: Any, name: str, wall: int) -> None:
        real = getattr(module, name)

        def then(*values: Any, **more: Any) -> Any:
            if not (tmp_path / f"{wall}.jpg").exists():
                new = read_new(paint(tmp_path / f"{wall}.jpg", wall).read_bytes(), PhotoMetadata())
                views = service.posting().reader((new.id, new.data))
                posted.append(service.posting().add(new, service.embedder.embed(views))[0].id)
            return real(*values, **more)

        monkeypatch.setattr(module, name, then)

    meanwhile(indexer.build.fit, "_fit_reduction", 20)
    meanwhile(indexer.build.embed, "_reduced", 21)
    meanwhile(indexer.build.publish, "_assign", 22)
    meanwhile(indexer.build.publish, "_take_over", 23)
    world.build(refit=True, clusters=3)
    assert len(posted) == 4
    index = world.open()
    assert index.snapshot == "02/000001"
    for wall, id in zip((20, 21, 22, 23), posted, strict=True):
        for opened in (index, service):
            assert opened.query(tmp_path / f"{wall}.jpg").places[0].photos[0].id == id
    new = read_new(paint(tmp_path / "24.jpg", 24).read_bytes(), PhotoMetadata())
    with pytest.raises(Superseded, match="another model has taken over"):
        service.posting().add(new, service.embedder.embed(service.posting().reader((new.id, new.data))))
    assert len(list((world.index / "photos").iterdir())) == 4
    with pytest.raises(NotFound):
        service.photo(new.id)


def test_a_rebuild_waits_for_no_run(thirty: Handmade) -> None:
    with write_lock(thirty.folder), pytest.raises(IndexLocked, match="is being written by process"):
        rebuild(thirty.folder)


def test_a_run_and_posts_append_side_by_side(world: World, paint: Paint, tmp_path: Path) -> None:
    """Numbers of shards never meet: descriptors are each photo's own, whoever wrote last."""
    for round_ in range(3):
        post(world, paint(tmp_path / f"{round_}.jpg", 30 + round_))
        paint(world.photos / f"{round_}.jpg", 40 + round_)
        world.build()
    names = sorted(file.name for file in (world.index / "generations/01/shards").iterdir())
    assert names == ["000001.npy", "500000.npy"]
    index = world.open()
    ids, descriptors = index.descriptors()
    for id, descriptor in zip(ids, descriptors, strict=True):
        assert index.embed([index.photo_file(id)])[0] @ descriptor == pytest.approx(1, abs=1e-3)


# Where and how it lies


def test_a_moved_index_keeps_its_photos(world: World, paint: Paint, tmp_path: Path) -> None:
    photo = paint(tmp_path / "new.jpg", 9)
    id, _ = post(world, photo)
    moved = Path(shutil.move(world.index, tmp_path / "elsewhere"))
    index = Index.open(moved, device="cpu", precision="fp32")
    assert index.photo_file(id) == moved / "photos" / f"{read_new(photo.read_bytes(), PhotoMetadata()).file}"
    assert index.query(photo).places[0].photos[0].id == id


def test_check_looks_at_stored_files(thirty: Handmade, unit: Unit) -> None:
    index = thirty.open()
    stored = [thirty.new(number) for number in range(3)]
    for number, new in enumerate(stored):
        index.posting().add(new, unit(np.random.default_rng(number))[None])
    folder = thirty.folder / "photos"
    (folder / stored[0].file).unlink()
    (folder / stored[1].file).write_bytes(b"other")
    assert problems(thirty.folder) == [
        f"the file {folder / new.file} of the POSTed photo {new.id} is {what}: POST it again"
        for new, what in sorted(zip(stored[:2], ("missing", "damaged"), strict=True), key=lambda x: x[0].id)
    ]
    assert [index.posting().known(new) is not None for new in stored] == [False, False, True]
    for new in stored[:2]:
        index.posting().add(new, unit(np.random.default_rng(9))[None])
    assert problems(thirty.folder) == []


def test_another_writer_is_waited_for_and_then_reported(thirty: Handmade, unit: Unit) -> None:
    index = thirty.open()
    index.posting()._catalogue._rows("PRAGMA busy_timeout = 20")
    other = Catalogue(thirty.folder, create=True)
    with other.transaction(), pytest.raises(IndexBusy, match="cannot be written: database is locked"):
        index.posting().add(thirty.new(1), unit(np.random.default_rng(1))[None])
    assert list((thirty.folder / "photos").iterdir()) == []
    assert index.posting().add(thirty.new(1), unit(np.random.default_rng(1))[None])[1]


def test_files_of_killed_posts_are_deleted(thirty: Handmade, unit: Unit) -> None:
    index = thirty.open()
    kept = thirty.new(1)
    index.posting().add(kept, unit(np.random.default_rng(1))[None])
    folder = thirty.folder / "photos"
    for name in ("deadbeef.jpg", "old.jpg.12.partial", "new.jpg.34.partial"):
        (folder / name).write_bytes(b"left")
    os.utime(folder / "old.jpg.12.partial", (0, 0))
    catalogue = Catalogue(thirty.folder, create=True)
    sweep(catalogue)
    assert sorted(file.name for file in folder.iterdir()) == sorted([kept.file, "new.jpg.34.partial"])


@pytest.mark.parametrize("at", ["file", "shard", "catalogue"])
def test_a_full_disk_leaves_nothing(
    thirty: Handmade, unit: Unit, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    index = thirty.open()
    index.posting().add(thirty.new(0), unit(np.random.default_rng(0))[None])
    new, descriptor = thirty.new(1), unit(np.random.default_rng(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if at == "file":
            patch.setattr("indexer.posting.posting.os.fsync", full)
        elif at == "shard":
            patch.setattr("indexer.storage.shards.ShardWriter._write", full)
        else:
            pages = next(iter(index.posting()._catalogue._rows("PRAGMA page_count")))[0]
            index.posting()._catalogue._rows(f"PRAGMA max_page_count = {pages}")
            new = thirty.new(1, PhotoMetadata(place="x" * 100_000))
        with pytest.raises(DiskFull):
            index.posting().add(new, descriptor[None])
    assert index.counts().photos == 31
    assert [file.name for file in (thirty.folder / "photos").iterdir()] == [thirty.new(0).file]
    if at != "catalogue":
        assert index.posting().add(new, descriptor[None])[1]
    assert problems(thirty.folder) == []


class Killed(BaseException):
    """As if the process had ended here: nothing is cleaned up."""


@pytest.mark.parametrize("nth", range(8))
def test_killed_at_any_write_all_of_it_is_there_or_nothing(
    thirty: Handmade, unit: Unit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nth: int
) -> None:
    """A copy of the folder taken before each sync is what a kill there would leave."""
    descriptor = unit(np.random.default_rng(1))
    index = thirty.open()
    index.posting().add(thirty.new(0), unit(np.random.default_rng(0))[None])
    syncs = 0

    def sync(_: int) -> None:
        nonlocal syncs
        if syncs == nth:
            shutil.copytree(thirty.folder, tmp_path / "killed")
        syncs += 1

    monkeypatch.setattr(os, "fsync", sync)
    index.posting().add(thirty.new(1), descriptor[None])
    if not (tmp_path / "killed").exists():
        assert nth >= syncs >= 3
        return
    killed = type(thirty)(tmp_path / "killed")
    assert thirty.new(1).id not in {photo.id for photo in killed.open().photos()}
    assert killed.open().nearest(descriptor, 1)[0].score < 1 - 1e-4
    assert killed.open().posting().add(thirty.new(1), descriptor[None])[1]
    assert killed.open().nearest(descriptor, 1)[0].id == thirty.new(1).id
    assert problems(killed.folder) == []

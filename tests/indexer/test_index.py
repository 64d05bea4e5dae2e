"""An opened index: queries, ids, and changes by others."""

from __future__ import annotations

import dataclasses
import io
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from indexer.build.run import remove_photos
from indexer.errors import IndexMissing, ModelMismatch, NotFound, UsageError
from indexer.index import Index
from indexer.storage.catalogue import Catalogue
from model.errors import ImageError

if TYPE_CHECKING:
    from tests.indexer.conftest import Paint, World


def test_query_by_indexed_photo_finds_its_place(opened: Index, made: World) -> None:
    answer = opened.query(made.photo(2), k=3)
    assert [place.score for place in answer.places] == sorted((p.score for p in answer.places), reverse=True)
    best = answer.places[0]
    assert [photo.path for photo in best.photos] == ["photos/wall2/view0.jpg", "photos/wall2/view1.jpg"]
    assert best.score == pytest.approx(1, abs=1e-3)
    assert best.lat == pytest.approx(52.02)
    assert len(answer.places) == 3
    assert answer.position is not None
    assert (answer.known, answer.confidence, best.confidence) == (None, None, None)
    assert answer.note
    assert (answer.model, answer.snapshot) == (opened.model_fingerprint, opened.snapshot)
    assert set(answer.timings_ms) == {"decode", "embed", "search", "verify"}


def test_query_takes_path_bytes_or_file(opened: Index, made: World) -> None:
    data = made.photo(2).read_bytes()
    answers = [opened.query(p) for p in (made.photo(2), str(made.photo(2)), data, io.BytesIO(data))]
    assert len({answer.places for answer in answers}) == 1
    with pytest.raises(ImageError):
        opened.query(b"no photo")


def test_nearest_equals_naive_search(opened: Index, made: World) -> None:
    ids, descriptors = opened.descriptors()
    query = opened.embed([made.photo(1)])[0]
    naive = [ids[i] for i in np.argsort(-(descriptors @ query), kind="stable")]
    assert [hit.id for hit in opened.nearest(query, 5)] == naive[:5]
    assert [hit.id for hit in opened.nearest(query, 100)] == naive


def test_k_is_a_positive_number_of_places(opened: Index, made: World) -> None:
    assert [len(opened.query(made.photo(0), k=k).places) for k in (1, 4, 99)] == [1, 4, 4]
    for k in (0, -1):
        with pytest.raises(UsageError, match=f"must be at least 1, got {k}"):
            opened.query(made.photo(0), k=k)


def test_k_places_are_found_behind_a_large_place(world: World, paint: Paint) -> None:
    for view in range(30):
        paint(world.photos / "wall0" / f"more{view}.jpg", 0, 100 + view)
    world.build()
    answer = world.open().query(world.photo(0), k=2)
    assert len(answer.places) == 2
    assert [len(place.photos) for place in answer.places] == [5, 2]


@pytest.mark.parametrize("shape", [(2047,), (1, 2048), ()])
def test_descriptor_of_another_model_is_refused(opened: Index, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelMismatch, match="this index has 2048-D descriptors, got one of shape"):
        opened.answer(np.ones(shape, np.float32))


def test_unknown_photo_or_place_is_not_found(opened: Index) -> None:
    for read in (opened.photo, opened.photo_file, opened.place):
        with pytest.raises(NotFound):
            read("nothing")


def test_missing_photo_file_is_not_found(world: World) -> None:
    index = world.open()
    photo = index.query(world.photo(0)).places[0].photos[0]
    world.photo(0).unlink()
    with pytest.raises(NotFound, match=r"the file of photo photos/wall0/view0\.jpg is not here"):
        index.photo_file(photo.id)
    assert index.photo(photo.id).path == "photos/wall0/view0.jpg"


def test_places_list_their_photos(opened: Index) -> None:
    places = opened.places()
    assert [place.photos for place in places] == [2] * 4
    whole = opened.place(places[0].id)
    assert dataclasses.replace(whole, members=()) == places[0]
    assert len(whole.members) == 2


def test_info_describes_index(opened: Index) -> None:
    info = opened.info()
    assert {
        name: info[name] for name in ("photos", "failed", "places", "dim", "clusters", "with_position")
    } == {
        "photos": 8,
        "failed": 0,
        "places": 4,
        "dim": 2048,
        "clusters": 4,
        "with_position": 8,
    }
    assert info["bytes"] > 0


@pytest.mark.parametrize("path", ["no", "no/deeper", "file", "file/deeper"])
def test_missing_index_is_an_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IndexMissing, match=r"no index in .*: make one with 'loci index'"):
        Index.open(tmp_path / path)


def test_removed_photo_is_hidden_in_opened_snapshot(world: World) -> None:
    index = world.open()
    remove_photos(world.index, ["wall0/view0.jpg"])
    assert index.query(world.photo(0)).places[0].photos[0].path == "photos/wall0/view1.jpg"
    assert len(index.nearest(index.embed([world.photo(0)])[0], 8)) == 7
    latest = index.latest()
    assert latest.snapshot > index.snapshot
    assert latest.embedder is index.embedder


def test_search_continues_past_removed_photos(world: World, paint: Paint) -> None:
    for view in range(40):
        paint(world.photos / "wall0" / f"more{view}.jpg", 0, 100 + view)
    world.build()
    index = world.open()
    catalogue = Catalogue(world.index, create=True)
    with catalogue.transaction() as db:
        db.execute("UPDATE photos SET status = 'removed' WHERE lat < 52.005")
    hits = index.nearest(index.embed([world.photo(0)])[0], 3)
    assert len(hits) == 3
    assert not [hit for hit in hits if "wall0" in hit.path]


def test_latest_changes_with_next_snapshot(world: World, paint: Paint) -> None:
    index = world.open()
    assert index.latest() is index
    paint(world.photos / "new.jpg", 9)
    world.build()
    assert len(index.latest().photos()) == 9
    assert index.latest().snapshot == "01/000002"


def test_panorama_counts_once_and_turns_heading(world: World, paint: Paint) -> None:
    paint(world.photos / "street.jpg", 9, size=(64, 32))
    table = world.photos.parent / "m.csv"
    table.write_text("path,lat,lon,heading\nstreet.jpg,10,20,90\n")
    report = world.build(refit=True, panoramas=4, metadata=table)
    index = world.open()
    assert (report.photos, index.manifest.count) == (9, 12)
    ids, descriptors = index.descriptors()
    photo = next(photo.id for photo in index.photos() if photo.path.endswith("street.jpg"))
    rows = [row for row, owner in zip(descriptors, ids, strict=True) if owner == photo]
    assert len(rows) == 4
    hits = [index.nearest(np.asarray(row, np.float32), 9) for row in rows]
    assert [hit[0].heading for hit in hits] == [90, 180, 270, 0]
    assert [len(hit) for hit in hits] == [9] * 4


@pytest.mark.parametrize("following", [False, True], ids=["as opened", "latest"])
def test_threads_answer_during_runs(world: World, paint: Paint, following: bool) -> None:
    """Every answer has the query photo first, and both photos of its place."""
    index = world.open()
    queries = {wall: index.embed([world.photo(wall)])[0] for wall in range(4)}
    stop = threading.Event()
    wrong: list[object] = []
    asked = [0, 0]

    def ask(thread: int) -> None:
        ours = index
        while not stop.is_set():
            newer = ours.latest() if following else ours
            # The refitted model would need another descriptor.
            ours = newer if newer.model_fingerprint == index.model_fingerprint else ours
            for wall, query in queries.items():
                best = ours.answer(query, k=2).places[0]
                if [photo.path for photo in best.photos] != [
                    f"photos/wall{wall}/view{v}.jpg" for v in (0, 1)
                ]:
                    wrong.append(best)
                asked[thread] += 1

    def asking(thread: int) -> None:
        try:
            ask(thread)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=asking, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for number in range(4):
        paint(world.photos / f"{number}.jpg", 10 + number)
        world.build(places=("gps", "auto")[number % 2])
    world.build(refit=True, clusters=3)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert min(asked) > 4


def test_moved_index_answers(world: World, tmp_path: Path) -> None:
    moved = Path(shutil.move(world.index, tmp_path / "elsewhere"))
    assert len(Index.open(str(moved), device="cpu").query(world.photo(0)).places) == 4

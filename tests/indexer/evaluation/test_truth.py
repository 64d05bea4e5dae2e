"""What counts as right: by distance and direction, by frames of aligned traverses; which photos are asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import pytest

from indexer.answers import PhotoHit
from indexer.errors import IndexerError, UsageError
from indexer.evaluation.queries import Query, find_queries, queries_of
from indexer.evaluation.run import _nearest, _panoramas, evaluate
from indexer.evaluation.truth import UNKNOWN, _own_by_name, by_distance, by_frames
from indexer.geo import angle_between
from indexer.index import Index
from indexer.photos.metadata import PhotoMetadata
from indexer.photos.read_metadata import read_metadata
from indexer.photos.scan import ScannedFile
from indexer.search.searcher import Question

if TYPE_CHECKING:
    from tests.indexer.conftest import Floats, Handmade, Paint, World

LAT, LON = 52.0, 0.25
METRE = 1 / 111_195
"""Degrees of latitude."""

Unit = Callable[[np.random.Generator, int], "Floats"]


def query(name: str = "q.jpg", north_m: float | None = 0.0, heading: float | None = None) -> Query:
    known = PhotoMetadata(heading=heading)
    if north_m is not None:
        known = PhotoMetadata(lat=LAT + north_m * METRE, lon=LON, heading=heading)
    return Query(ScannedFile("/asked", name, 1, 1), known)


def at(north_m: float, heading: float | None = None) -> PhotoMetadata:
    return PhotoMetadata(lat=LAT + north_m * METRE, lon=LON, heading=heading)


@pytest.fixture
def vectors(unit: Unit) -> Callable[[int], list[Floats]]:
    rng = np.random.default_rng(0)
    return lambda views: [unit(rng, 8) for _ in range(views)]


# By distance and direction


def test_turns() -> None:
    assert angle_between([10, 350, 0, 90], [350, 10, 180, 450]).tolist() == [20, 20, 180, 0]


def test_right_photos_look_the_same_way(handmade: Handmade, vectors: Callable[[int], list[Floats]]) -> None:
    """Three photos here: looking north, east and nowhere in particular; one looking north, far off."""
    photos = [at(0, 350), at(0, 90), at(0), at(40, 0)]
    north, east, none, far = handmade.make([(photo, vectors(1)) for photo in photos])
    index = handmade.open()
    (anyhow,) = by_distance(index, [query(heading=20)], 25)
    assert anyhow.photos == frozenset({north, east, none})
    (same_way, wide, blind, lost) = by_distance(
        index, [query(heading=20), query(heading=55), query(), query(north_m=None, heading=0)], 25, 35
    )
    assert same_way.photos == frozenset({north})
    assert wide.photos == frozenset({east})
    assert (blind, lost) == (UNKNOWN, UNKNOWN)
    (foreign,) = by_distance(index, [query(heading=200)], 25, 35)
    assert foreign.photos == frozenset()
    assert by_distance(index, [query(heading=20)], 60, 35)[0].photos == frozenset({north, far})


def test_a_panorama_is_right_by_the_view_that_was_found(
    handmade: Handmade, vectors: Callable[[int], list[Floats]]
) -> None:
    """Its middle looks east; four views, so the second looks south."""
    (panorama,) = handmade.make([(at(0, 90), vectors(4))])
    index = handmade.open()
    (expected,) = by_distance(index, [query(heading=185)], 25, 30)
    assert expected.photos == frozenset({panorama})
    judged = {
        heading: expected.right(PhotoHit(panorama, "p.jpg", 0.9, heading=heading))
        for heading in (90.0, 180.0, 270.0, None)
    }
    assert judged == {90.0: False, 180.0: True, 270.0: False, None: False}
    assert not expected.right(PhotoHit("other", "o.jpg", 0.9, heading=180.0))
    (between,) = by_distance(index, [query(heading=225)], 25, 30)
    assert between.photos == frozenset()


def test_a_heading_tolerance_needs_headings(
    handmade: Handmade, vectors: Callable[[int], list[Floats]]
) -> None:
    handmade.make([(at(0), vectors(1))])
    with pytest.raises(IndexerError, match=r"^the index has no headings, so a heading tolerance"):
        by_distance(handmade.open(), [query(heading=0)], 25, 30)
    with pytest.raises(UsageError, match=r"^the heading tolerance must be 0 to 180 degrees, not 181$"):
        by_distance(handmade.open(), [query(heading=0)], 25, 181)
    with pytest.raises(UsageError, match=r"^the radius must be a number of metres, 0 or more, not nan$"):
        by_distance(handmade.open(), [query()], float("nan"))


# Frames of aligned traverses


@pytest.fixture
def traverse(handmade: Handmade, vectors: Callable[[int], list[Floats]]) -> tuple[Index, list[str]]:
    """Frames /made/0000.jpg to 0005.jpg."""
    ids = handmade.make([(PhotoMetadata(), vectors(1)) for _ in range(6)])
    return handmade.open(), ids


def test_frames_by_name(traverse: tuple[Index, list[str]]) -> None:
    index, ids = traverse
    names = ("0000.jpg", "0003.png", "night/0005.jpg", "0009.jpg")
    found = by_frames(index, [query(name) for name in names], 1, "name")
    expected = [ids[0:2], ids[2:5], ids[4:6], []]
    assert [one.photos for one in found] == [frozenset(photos) for photos in expected]
    exact = by_frames(index, [query("0003.jpg")], 0, "name")
    assert exact[0].photos == frozenset({ids[3]})


def test_frames_by_order(traverse: tuple[Index, list[str]]) -> None:
    index, ids = traverse
    found = by_frames(index, [query(f"winter{n}.jpg") for n in range(7)], 2, "order")
    expected = [ids[0:3], ids[0:4], ids[0:5], ids[1:6], ids[2:6], ids[3:6], []]
    assert [one.photos for one in found] == [frozenset(photos) for photos in expected]


def test_invalid_frames_are_refused(traverse: tuple[Index, list[str]]) -> None:
    index, _ = traverse
    with pytest.raises(UsageError, match=r"^frames must be 0 or more, not -1$"):
        by_frames(index, [query("0000.jpg")], -1, "name")
    with pytest.raises(
        IndexerError, match=r"^none of the 2 query photos has the file name of a photo of the"
    ):
        by_frames(index, [query("a.jpg"), query("b.jpg")], 1, "name")


def test_neighbours_are_of_the_same_folder() -> None:
    """Two traverses in one index: a frame's neighbours are of its own."""
    files = [(PurePosixPath(f"/{run}/{n}.jpg"), f"{run}{n}") for run in ("day", "night") for n in range(3)]
    found = _own_by_name(files, [query("0.png"), query("2.png"), query("3.png")])
    day, night = ["day0", "day1", "day2"], ["night0", "night1", "night2"]
    assert found == [[(day, 0), (night, 0)], [(day, 2), (night, 2)], []]


def test_frames_of_every_traverse_in_the_index(opened: Index) -> None:
    (found,) = by_frames(opened, [query("view0.jpg")], 0, "name")
    own = {photo.id for photo in opened.photos() if photo.path.endswith("view0.jpg")}
    assert (found.photos, len(own)) == (frozenset(own), 4)
    (found,) = by_frames(opened, [query("view0.jpg")], 1, "name")
    assert found.photos == frozenset(photo.id for photo in opened.photos())


def test_evaluate_by_frames(opened: Index, tmp_path: Path, paint: Paint) -> None:
    """Of one folder's frames by order: 8 photos, of which two frames are seen at one wall."""
    notes: list[str] = []

    class Notes:
        def stage(self, name: str, total: int | None) -> None: ...
        def advance(self, n: int = 1) -> None: ...
        def note(self, text: str) -> None:
            notes.append(text)

    for number, wall in enumerate((0, 0, 1, 3)):
        paint(tmp_path / "asked" / f"{number}.jpg", wall, 50 + number)
    found = evaluate(opened, tmp_path / "asked", frames=1, aligned_by="order", progress=Notes(), at=(1, 8))
    assert found.recall == {"1": 0.75, "8": 1.0}
    assert str(found.rule) == "the frame of the same position in order, ±1"
    assert notes == [
        "4 queries are aligned by order with 8 photos: where some are missing, all after them are taken for "
        "others"
    ]


# Which photos are asked


@pytest.mark.parametrize(
    ("folders", "asked"),
    [
        (("database", "queries"), "queries"),
        (("ref", "query"), "query"),
        (("images/test/database", "images/test/queries", "images/train/queries"), "images/test/queries"),
        (("test/reference", "test/query"), "test/query"),
        (("queries",), ""),
        (("database", "queries", "query"), ""),
        (("photos",), ""),
    ],
)
def test_the_queries_of_a_data_set(
    tmp_path: Path, paint: Paint, folders: tuple[str, ...], asked: str
) -> None:
    for folder in folders:
        paint(tmp_path / folder / "a.jpg", 0)
    assert queries_of(tmp_path) == tmp_path / asked
    assert len(find_queries(tmp_path)) == (1 if asked else len(folders))


def test_positions_from_the_fields_names(tmp_path: Path, paint: Paint) -> None:
    name = "@302869.26@5787835.08@31@U@@@663@@180@@@@20240923_160658@@.jpg"
    paint(tmp_path / name, 0, gps=False)
    (file,) = find_queries(tmp_path)
    known = read_metadata(file)
    assert (known.lat, known.lon) == pytest.approx((52.20565084, 0.11494937), abs=1e-6)
    assert (known.heading, known.taken_at) == (180, "2024-09-23T16:06:58")


# One photo of each panorama


def test_of_a_panorama_cut_into_photos_the_best_counts(empty: World, paint: Paint) -> None:
    """Two panoramas of two cut-outs each; the query is most like both of the first."""
    for wall in range(2):
        for heading in (0, 90):
            name = f"@500000@5788000@31@U@@@pano{wall}@@{heading}@@@@@@.jpg"
            paint(empty.photos / "cut" / name, 10 + wall, heading, gps=False)
    empty.build(empty.photos / "cut")
    index = empty.open()
    assert sorted(_panoramas(index).values()) == ["cut/@pano0"] * 2 + ["cut/@pano1"] * 2
    asked = paint(empty.photos.parent / "q.jpg", 10, 5)
    question = Question.of(index.see(asked), verify=True)
    alone = _nearest(index, question, 3, {})
    best = _nearest(index, question, 3, _panoramas(index))
    assert ["pano0" in hit.path for hit in alone] == [True, True, False]
    assert [hit.id for hit in best] == [alone[0].id, alone[2].id]


def test_names_without_panoramas_are_refused(opened: Index) -> None:
    with pytest.raises(IndexerError, match=r"^no photo of the index has a panorama"):
        _panoramas(opened)

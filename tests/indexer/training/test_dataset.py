"""Which photos are trained to find which, and which are held out, against loops over all pairs."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexer.errors import IndexerError, UsageError
from indexer.geo import from_local, haversine_m
from indexer.photos.metadata_table import read_table
from indexer.photos.scan import scan
from indexer.training.dataset import CELL, Supervision, TrainingPhoto, find_photos, training_set
from model.training.mining import TrainingSet

if TYPE_CHECKING:
    from tests.indexer.conftest import Paint

LAT, LON = 52.0, 0.25
Spot = tuple[float, float, float | None]
"""Metres east and north of a corner, and the heading."""


def photo(
    number: int, spot: Spot | None = None, *, place: str | None = None, folder: str = "photos"
) -> TrainingPhoto:
    lat, lon = (None, None) if spot is None else from_local(spot[0], spot[1], LAT, LON)
    heading = None if spot is None else spot[2]
    relative = f"{folder}/{number:03}.jpg"
    return TrainingPhoto(f"{number:016x}", Path("/data") / relative, relative, lat, lon, heading, place)


def at(spots: Sequence[Spot | None]) -> list[TrainingPhoto]:
    return [photo(number, spot) for number, spot in enumerate(spots)]


def street(seed: int = 0, corners: int = 30, views: int = 3) -> list[Spot]:
    """Corners somewhere in a square kilometre, each seen from a few steps apart, most with a heading."""
    rng = np.random.default_rng(seed)
    spots: list[Spot] = []
    for _ in range(corners):
        east, north = rng.uniform(0, 1000, 2)
        for step in rng.normal(0, 6, (views, 2)):
            heading = float(rng.uniform(0, 360)) if rng.random() < 0.7 else None
            spots.append((east + step[0], north + step[1], heading))
    return spots


def distances(photos: Sequence[TrainingPhoto]) -> NDArray[np.float64]:
    """Metres between all pairs of photos with a position."""
    lat = np.array([photo.lat for photo in photos], np.float64)
    lon = np.array([photo.lon for photo in photos], np.float64)
    return haversine_m(lat[:, None], lon[:, None], lat, lon)


def turned(a: TrainingPhoto, b: TrainingPhoto) -> float:
    """Degrees between where two photos look, the short way round."""
    if a.heading is None or b.heading is None:
        return 0.0
    apart = abs(a.heading - b.heading) % 360
    return min(apart, 360 - apart)


def rows(found: NDArray[np.int64]) -> list[int]:
    return [int(row) for row in found]


def assert_consistent(data: TrainingSet, count: int) -> None:
    """What holds however photos were told apart."""
    assert rows(data.queries) == rows(data.database)
    assert not set(rows(data.queries)) & set(rows(data.held_queries))
    for row in range(count):
        assert row not in data.positives[row]
        assert set(rows(data.positives[row])) <= set(rows(data.near[row]))
    trained = set(rows(data.queries))
    assert {int(data.labels[row]) for row in trained} == set(range(data.classes))


def test_by_position() -> None:
    photos = at(street())
    data = training_set(photos, Supervision(positive_radius_m=8, negative_radius_m=20, seed=3))
    apart = distances(photos)
    for row, one in enumerate(photos):
        near = [o for o in range(len(photos)) if o != row and apart[row, o] <= 20]
        positives = [o for o in near if apart[row, o] <= 8 and turned(one, photos[o]) <= 45]
        assert rows(data.near[row]) == near
        assert rows(data.positives[row]) == positives
    assert sum(len(found) for found in data.positives) > 20
    assert_consistent(data, len(photos))
    assert rows(data.held_database) == list(range(len(photos)))


def test_headings_across_north() -> None:
    spots: list[Spot] = [(0, 0, 350), (1, 0, 20), (0, 1, 40), (1, 1, None), (500, 0, 0), (501, 0, 0)]
    data = training_set(at(spots), Supervision(held_out=0.3))
    assert [rows(found) for found in data.positives] == [[1, 3], [0, 2, 3], [1, 3], [0, 1, 2], [5], [4]]
    assert [rows(found) for found in data.near[:4]] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_positions_across_the_antimeridian() -> None:
    east = (179.99999, -179.99999, 179.98, 179.98001, 179.96, 179.96001, -179.97)
    spots = [(-17.0, lon) for lon in east]
    photos = [
        TrainingPhoto(f"{n:016x}", Path(f"/data/{n}.jpg"), f"{n}.jpg", lat, lon, None, None)
        for n, (lat, lon) in enumerate(spots)
    ]
    data = training_set(photos, Supervision(held_out=0.5))
    assert [rows(found) for found in data.positives] == [[1], [0], [3], [2], [5], [4], []]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    corners=st.integers(6, 40),
    radius=st.floats(10, 60),
    held_out=st.floats(0.05, 0.6),
)
def test_photos_near_held_out_ones_are_not_trained_on(
    seed: int, corners: int, radius: float, held_out: float
) -> None:
    photos = at(street(seed, corners))
    try:
        data = training_set(photos, Supervision(negative_radius_m=radius, held_out=held_out, seed=seed))
    except IndexerError:
        assume(False)
    assert_consistent(data, len(photos))
    apart = distances(photos)
    for held in data.held_queries:
        assert apart[held, data.queries].min() > radius
    # Whoever is in neither is so for that reason.
    used = {*rows(data.held_queries), *rows(data.queries)}
    for row in set(range(len(photos))) - used:
        assert apart[row, data.held_queries].min() <= radius


def test_the_share_that_is_held_out() -> None:
    photos = at(street(corners=80))
    for share in (0.1, 0.2, 0.5):
        data = training_set(photos, Supervision(held_out=share))
        assert len(data.held_queries) / len(photos) == pytest.approx(share, abs=0.03)


def test_seeds_hold_out_different_places_and_repeat() -> None:
    photos = at(street())
    held = [rows(training_set(photos, Supervision(seed=seed)).held_queries) for seed in (0, 0, 1)]
    assert held[0] == held[1]
    assert held[0] != held[2]


def test_squares_are_held_out_whole() -> None:
    """Squares of four times the negative radius, counted from the median position."""
    spots = street(corners=60)
    data = training_set(at(spots), Supervision(negative_radius_m=30, held_out=0.4))
    east0, north0 = (np.median([spot[axis] for spot in spots]) for axis in (0, 1))
    squares = [((spot[0] - east0) // (CELL * 30), (spot[1] - north0) // (CELL * 30)) for spot in spots]
    held = {squares[row] for row in data.held_queries}
    assert rows(data.held_queries) == [row for row, square in enumerate(squares) if square in held]
    assert 3 < len(held) < len(set(squares))


def test_a_square_that_is_too_large_is_not_held_out() -> None:
    """Nine tenths of the photos are of one corner: it is the other that is held out, whatever the seed."""
    photos = at([(0, 0, None)] * 36 + [(900, 0, None)] * 4)
    for seed in range(10):
        data = training_set(photos, Supervision(seed=seed))
        assert rows(data.held_queries) == [36, 37, 38, 39]


def test_photos_without_position_are_left_out() -> None:
    """Nobody knows that they show another place, so that they are no negatives either."""
    spots: list[Spot | None] = [*street(corners=10), None, None]
    data = training_set(at(spots), Supervision())
    for found in (data.queries, data.database, data.held_queries, data.held_database):
        assert not set(rows(found)) & {30, 31}
    assert len(data.held_database) == 30


def test_places_decide_without_positions() -> None:
    photos = [photo(n, place=f"room {n // 3}") for n in range(30)] + [photo(30), photo(31)]
    data = training_set(photos, Supervision())
    for row in range(30):
        like = [o for o in range(30) if o // 3 == row // 3 and o != row]
        assert rows(data.positives[row]) == rows(data.near[row]) == like
    assert rows(data.near[30]) == []
    assert_consistent(data, 32)
    held = Counter(row // 3 for row in rows(data.held_queries))
    assert set(held.values()) == {3}  # places whole, and never a photo that none is like
    assert len(held) == 2
    assert data.classes == 10  # eight rooms, and the two that are a place each


def test_by_folder_and_by_frames() -> None:
    photos = [photo(n, folder=f"photos/hall {n // 5}") for n in range(20)]
    folders = training_set(photos, Supervision(places="folder", held_out=0.25))
    frames = training_set(photos, Supervision(places="frames:2"))
    for row in range(20):
        assert rows(folders.positives[row]) == [o for o in range(20) if o // 5 == row // 5 and o != row]
        # Frames are counted a folder at a time: two, two and the one that is left.
        partner = [o for o in range(20) if o // 5 == row // 5 and o % 5 // 2 == row % 5 // 2 and o != row]
        assert rows(frames.positives[row]) == partner
    assert len(folders.held_queries) == 5


def test_to_classify_a_share_of_each_place_is_held_out() -> None:
    photos = [photo(n, place=f"room {n // 5}") for n in range(25)] + [photo(25, place="once")]
    data = training_set(photos, Supervision(classify=True))
    assert Counter(row // 5 for row in rows(data.held_queries)) == dict.fromkeys(range(5), 1)
    assert rows(data.held_database) == rows(data.database) == rows(data.queries)
    assert len(data.queries) == 21
    assert data.classes == 6
    for row in range(25):
        labels = {int(data.labels[o]) for o in data.queries if o // 5 == row // 5}
        assert int(data.labels[row]) in labels  # held-out photos know their place, too
        assert len(labels) == 1


def test_to_classify_by_position() -> None:
    """Places are then what lies within the negative radius of one photo, whatever the heading."""
    photos = at([(200.0 * (n // 4) + n % 4, 0, 90.0 * (n % 4)) for n in range(20)])
    data = training_set(photos, Supervision(classify=True, held_out=0.5))
    assert data.classes == 5
    assert Counter(row // 4 for row in rows(data.held_queries)) == dict.fromkeys(range(5), 2)
    assert [rows(data.near[row]) for row in range(4)] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_to_classify_folders_tell_queries_and_database_apart() -> None:
    photos = [photo(n, place=f"room {n % 3}", folder="database") for n in range(9)]
    photos += [photo(n, place=f"room {n % 4}", folder="Queries/day 1") for n in range(9, 18)]
    data = training_set(photos, Supervision(classify=True))
    assert rows(data.database) == rows(data.queries) == rows(data.held_database) == list(range(9))
    assert rows(data.held_queries) == list(range(9, 18))
    assert data.classes == 3
    assert [int(data.labels[row]) for row in range(9, 18)] == [
        int(data.labels[row % 4]) if row % 4 < 3 else -1 for row in range(9, 18)
    ]


def test_a_folder_above_all_photos_says_nothing() -> None:
    """A collection that lies somewhere below a folder `ref` has no queries for that."""
    photos = [photo(n, place=f"room {n // 5}", folder="ref/house/photos") for n in range(20)]
    data = training_set(photos, Supervision(classify=True))
    assert Counter(row // 5 for row in rows(data.held_queries)) == dict.fromkeys(range(4), 1)
    below = [photo(n, place=f"room {n % 5}", folder=f"ref/{('query', 'ref')[n // 10]}") for n in range(20)]
    assert rows(training_set(below, Supervision(classify=True)).held_queries) == list(range(10))


@pytest.mark.parametrize(
    ("photos", "how", "sentence"),
    [
        ([photo(n) for n in range(3)], Supervision(), "training needs photos of several places, got 3"),
        (
            at([(50.0 * n, 0, None) for n in range(30)]),
            Supervision(),
            "no two training photos show the same place: training needs photos with positions (in EXIF, "
            "names or `metadata`) within 25 m of each other that look the same way, or places (in `metadata` "
            "or by `places`)",
        ),
        (
            [photo(n) for n in range(8)],
            Supervision(),
            "no two training photos show the same place: training needs photos with positions (in EXIF, "
            "names or `metadata`) within 25 m of each other that look the same way, or places (in `metadata` "
            "or by `places`)",
        ),
        (
            at([(5.0, 5.0, None)] * 8),
            Supervision(),
            "all photos are in one square of 100 m, so none can be held out: use photos from farther apart, "
            "or a smaller `negative_radius_m`, which makes the squares smaller",
        ),
        (
            at([(float(n), 0, None) for n in range(8)]),
            Supervision(),
            "every photo is within 25 m of a held-out one, so none is left to train on: use photos from "
            "farther apart, or a smaller `negative_radius_m`",
        ),
        (
            [photo(n, place="hall") for n in range(8)],
            Supervision(),
            "all photos show one place, so none can be held out: set `places`, or give places in the "
            "metadata",
        ),
        (
            at([(0, 0, None), (1, 0, None), (2, 0, None), (3, 0, None), (900, 0, None)]),
            Supervision(),
            "no held-out photo shares a place with another photo, so recall cannot be measured: use more "
            "photos, or another `held_out` or `seed`",
        ),
        (
            [photo(n, place="hall") for n in range(8)],
            Supervision(classify=True),
            "the training photos show one place, and a softmax needs two: set `places`, or give places in "
            "the metadata",
        ),
        (
            [photo(n) for n in range(8)],
            Supervision(classify=True),
            "no held-out photo shares a place with another photo, so recall cannot be measured: use more "
            "photos, or another `held_out` or `seed`",
        ),
    ],
)
def test_refusals(photos: list[TrainingPhoto], how: Supervision, sentence: str) -> None:
    with pytest.raises(IndexerError, match=f"^{re.escape(sentence)}$"):
        training_set(photos, how)


def test_invalid_places_option_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^places are auto, gps, folder, photo or frames:N .*'hall'$"):
        training_set([photo(n) for n in range(8)], Supervision(places="hall"))


def test_find_photos(tmp_path: Path, paint: Paint) -> None:
    """Positions from EXIF, places from a table, and files that cannot be opened by their reason."""
    one, two = paint(tmp_path / "p/a.jpg", 1), paint(tmp_path / "p/b.jpg", 2, gps=False)
    (tmp_path / "p/broken.jpg").write_text("no photo")
    (tmp_path / "m.csv").write_text("path,place\na.jpg,hall\nb.jpg,yard\nc.jpg,cellar\n")
    table = read_table(tmp_path / "m.csv")
    found, failed = find_photos(scan([tmp_path / "p"]), table)
    assert failed == [(str(tmp_path / "p/broken.jpg"), "not an image that can be read")]
    assert [(p.path, p.relative, p.place) for p in found] == [(one, "a.jpg", "hall"), (two, "b.jpg", "yard")]
    assert found[0].lat == pytest.approx(52.01)
    assert found[1].lat is None
    assert table.unused() == ["c.jpg"]
    assert all(re.fullmatch("[0-9a-f]{16}", p.id) for p in found)
    paint(two, 3, gps=False)
    again, _ = find_photos(scan([tmp_path / "p"]), table)
    assert (again[0].id == found[0].id, again[1].id == found[1].id) == (True, False)


def test_copied_collection_has_the_same_unique_ids(tmp_path: Path, paint: Paint) -> None:
    """Ids decide what is drawn of a photo: a collection unpacked elsewhere trains to the same model."""
    for folder in ("one", "two"):
        paint(tmp_path / folder / "a.jpg", 1)
        paint(tmp_path / folder / "b.jpg", 2)
    os.utime(tmp_path / "two/a.jpg", (0, 0))
    one, two, both = (
        [p.id for p in find_photos(scan([tmp_path / name for name in names]), None)[0]]
        for names in (["one"], ["two"], ["one", "two"])
    )
    assert one == two == both[:2]
    assert len(set(both)) == 4


def test_a_file_that_may_not_be_read(tmp_path: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "a.jpg", 1)

    def denied(_: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("indexer.training.dataset.sha256_of", denied)
    assert find_photos(scan([tmp_path]), None) == ([], [(str(tmp_path / "a.jpg"), "Permission denied")])

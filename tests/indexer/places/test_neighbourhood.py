"""Which photos lie near each other, by position, by order and by name, against a naive look."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from indexer.answers import PhotoHit
from indexer.geo import from_local, haversine_m
from indexer.places.assign import PlacePhoto
from indexer.places.neighbourhood import SPOT_M, Neighbourhoods, PlaceRule, frame_ranks


def photo(id: str, east: float | None = None, north: float = 0.0) -> PhotoHit:
    lat, lon = (None, None) if east is None else from_local(east, north, 52.0, 179.9999)
    return PhotoHit(id, f"{id}.jpg", 0.5, lat=lat, lon=lon)


def numbers(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


def test_by_position() -> None:
    photos = [photo(str(east), east) for east in (0.0, 0.3, 24.9, 25.1, 49.9, 50.1, 99.9, 100.1)]
    where = Neighbourhoods.of(photos, {}, PlaceRule.of("gps", 25.0))
    assert numbers(where.right(0)) == [0, 1, 2]
    assert numbers(where.near(0)) == [0, 1, 2, 3, 4]
    assert numbers(where.around(0)) == [0, 1, 2, 3, 4, 5, 6]
    assert numbers(where.spot(0)) == [0, 1]


def test_place_radius_scales_the_neighbourhood() -> None:
    photos = [photo(str(east), east) for east in (0.0, 90.0, 190.0, 390.0)]
    where = Neighbourhoods.of(photos, {}, PlaceRule.of("auto", 100.0))
    found = [numbers(mask) for mask in (where.right(0), where.near(0), where.around(0))]
    assert found == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_photos_without_position_go_by_named_place() -> None:
    photos = [photo("a", 0), photo("b"), photo("c"), photo("d"), photo("e", 5000)]
    places = {"a": "hall", "b": "hall", "c": "hall", "e": "hall"}
    where = Neighbourhoods.of(photos, places, PlaceRule.of("auto", 25.0))
    assert numbers(where.right(1)) == [0, 1, 2, 4]
    assert numbers(where.right(0)) == [0]  # it says itself where it is
    assert numbers(where.near(0)) == [0, 1, 2, 4]
    assert numbers(where.right(3)) == [3]
    assert numbers(where.spot(1)) == [1]


def test_folders_define_right_and_distance_defines_near() -> None:
    photos = [photo("a", 0), photo("b", 10), photo("c", 10), photo("d", 80), photo("e", 200)]
    places = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "x"}
    where = Neighbourhoods.of(photos, places, PlaceRule.of("folder", 25.0))
    assert numbers(where.right(0)) == [0, 1, 4]
    assert numbers(where.near(0)) == [0, 1, 2, 4]
    assert numbers(where.around(0)) == [0, 1, 2, 3, 4]


def test_by_order() -> None:
    photos = [photo(str(i), 0) for i in range(8)]  # of one position, which does not count here
    places = {str(i): f"place {i // 2}" for i in range(8)}
    rule = PlaceRule.of("frames:2", 25.0)
    where = Neighbourhoods.of(photos, places, rule, {str(i): i for i in range(8)})
    assert numbers(where.right(2)) == [0, 1, 2, 3, 4]
    assert numbers(where.near(2)) == [0, 1, 2, 3, 4]
    assert numbers(where.around(3)) == [0, 1, 2, 3, 4, 5, 6]
    assert numbers(where.spot(3)) == [3]


def test_photo_without_rank_is_near_nothing() -> None:
    photos = [photo(str(i)) for i in range(4)]
    where = Neighbourhoods.of(photos, {}, PlaceRule.of("frames:3", 25.0), {"0": 0, "1": 1})
    assert [numbers(where.near(i)) for i in range(4)] == [[0, 1], [0, 1], [2], [3]]
    assert numbers(where.partnered(spots=True)) == [0, 1]


def test_ranks_go_by_frame_number_and_folders_lie_apart() -> None:
    names = ["b/frame2.jpg", "b/frame10.jpg", "a/frame1.jpg", "b/frame1.jpg"]
    found = frame_ranks([PlacePhoto(name, name, None, None, None) for name in names], 2)
    assert [found[f"b/frame{n}.jpg"] - found["b/frame1.jpg"] for n in (1, 2, 10)] == [0, 1, 2]
    assert found["b/frame1.jpg"] - found["a/frame1.jpg"] > 2 * 4 - 1


@pytest.mark.parametrize("spots", [True, False])
def test_who_has_another_of_its_place(spots: bool) -> None:
    generator = np.random.default_rng(3)
    photos = [photo(f"{i}", *generator.integers(0, 900, 2).tolist()) for i in range(120)]
    photos += [PhotoHit(f"again {i}", "a.jpg", 0.5, lat=photos[i].lat, lon=photos[i].lon) for i in range(30)]
    photos += [photo(f"unplaced {i}") for i in range(3)]
    places = {"unplaced 0": "hall", "unplaced 1": "hall"}
    found = Neighbourhoods.of(photos, places, PlaceRule.of("auto", 25.0)).partnered(spots)
    naive = {"unplaced 0", "unplaced 1"}
    for one, other in itertools.permutations(photos[:150], 2):
        away = haversine_m(one.lat or 0, one.lon or 0, other.lat or 0, other.lon or 0)
        if away <= 25 and (away > SPOT_M or not spots):
            naive.add(one.id)
    assert {photos[i].id for i in numbers(found)} == naive

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.errors import UsageError
from indexer.geo import from_local, haversine_m
from indexer.places.assign import AssignedPlace, PlaceMode, PlacePhoto, assign_places, parse_mode, place_id

anywhere = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
RADIUS = 25.0


def at(id: str, east: float, north: float = 0.0, *, about: tuple[float, float] = (52.0, 0.1)) -> PlacePhoto:
    lat, lon = from_local(east, north, *about)
    return PlacePhoto(id, f"{id}.jpg", lat, lon, None)


def somewhere(id: str, path: str = "", place: str | None = None) -> PlacePhoto:
    return PlacePhoto(id, path or f"{id}.jpg", None, None, place)


def groups(places: list[AssignedPlace]) -> list[tuple[str, ...]]:
    return sorted(place.members for place in places)


@st.composite
def collections(draw: st.DrawFn) -> list[PlacePhoto]:
    """Photos in a few streets, at the antimeridian and a pole too, some without position."""
    about = draw(st.sampled_from([(52.0, 0.1), (-17.0, 180.0), (89.9999, 30.0)]))
    metres = st.floats(-120, 120, width=32)
    spots = draw(st.lists(st.tuples(metres, metres), max_size=40))
    photos = [at(f"a{i:02d}", east, north, about=about) for i, (east, north) in enumerate(spots)]
    names = draw(st.lists(st.sampled_from([None, "bridge", "tower"]), max_size=6))
    return photos + [somewhere(f"n{i}", place=name) for i, name in enumerate(names)]


def check(photos: list[PlacePhoto], places: list[AssignedPlace]) -> None:
    """What holds of every assignment by position."""
    known = {photo.id: photo for photo in photos}
    assert sorted(id for place in places for id in place.members) == sorted(known)
    assert len({place.id for place in places}) == len(places)
    for place in places:
        medoid = known[place.medoid]
        assert place.medoid in place.members
        assert (place.lat, place.lon) == (medoid.lat, medoid.lon)
        for id in place.members:
            lat, lon = known[id].lat, known[id].lon
            if medoid.lat is None or medoid.lon is None or lat is None or lon is None:
                assert (lat, medoid.lat) == (None, None)
            else:
                assert haversine_m(lat, lon, medoid.lat, medoid.lon) <= RADIUS + 1e-3


@given(collections(), st.randoms())
@anywhere
def test_every_member_lies_within_the_radius_in_any_order(
    photos: list[PlacePhoto], shuffle: random.Random
) -> None:
    places = assign_places(photos, "auto", RADIUS)
    check(photos, places)
    shuffled = list(photos)
    shuffle.shuffle(shuffled)
    assert assign_places(shuffled, "gps", RADIUS) == places


@given(collections(), st.data())
@anywhere
def test_adding_moves_no_photo_and_removing_keeps_ids(photos: list[PlacePhoto], data: st.DataObject) -> None:
    first = [photo for photo in photos if data.draw(st.booleans())]
    before = assign_places(first, "auto", RADIUS)
    grown = assign_places(photos, "auto", RADIUS, before)
    check(photos, grown)
    after = {place.id: place for place in grown}
    for place in before:
        assert after[place.id].medoid == place.medoid
        assert set(place.members) <= set(after[place.id].members)
    assert assign_places(photos, "auto", RADIUS, grown) == grown

    rest = [photo for photo in photos if data.draw(st.booleans())]
    shrunk = assign_places(rest, "auto", RADIUS, grown)
    check(rest, shrunk)
    left = {photo.id for photo in rest}
    survivors = {place.id for place in grown if left & set(place.members)}
    assert survivors <= {place.id for place in shrunk}
    for place in grown:
        if place.medoid in left:
            kept = next(found for found in shrunk if found.id == place.id)
            assert kept.medoid == place.medoid
            assert left & set(place.members) <= set(kept.members)


def test_a_street_is_not_one_place() -> None:
    street = [at(f"{i:03d}", 10.0 * i) for i in range(50)]
    places = assign_places(street, "gps", RADIUS)
    assert len(places) == 10
    assert all(len(place.members) == 5 for place in places)


def test_the_photo_with_most_neighbours_stands_for_the_place() -> None:
    (place,) = assign_places([at("a", -20), at("b", 0), at("c", 20)], "gps", RADIUS)
    assert place == AssignedPlace(place_id("b"), None, "b", *from_local(0, 0, 52.0, 0.1), ("a", "b", "c"))


def test_a_new_id_is_derived_from_the_medoid() -> None:
    assert place_id("b") == "p3e23e8160039"
    assert place_id("b", {"p3e23e8160039"}) not in ("p3e23e8160039", place_id("a"))


def test_another_member_takes_over_and_who_is_out_of_its_reach_leaves() -> None:
    photos = [at("a", -20), at("b", 0), at("c", 20), at("d", 21)]
    (before,) = assign_places(photos, "gps", RADIUS)
    assert before.medoid == "b"
    after = assign_places([photo for photo in photos if photo.id != "b"], "gps", RADIUS, [before])
    assert groups(after) == [("a",), ("c", "d")]
    heir = next(place for place in after if place.id == before.id)
    assert heir.medoid == "c"


def test_a_medoid_whose_position_was_corrected_leaves_its_place_behind() -> None:
    before = assign_places([at("a", -20), at("b", 0), at("c", 20)], "gps", RADIUS)
    after = assign_places([at("a", -20), at("b", 5000), at("c", -10)], "gps", RADIUS, before)
    assert groups(after) == [("a", "c"), ("b",)]
    assert next(place for place in after if place.id == before[0].id).members == ("a", "c")


def test_photos_without_position_go_by_their_places_name() -> None:
    photos = [at("a", 0), somewhere("b", place="tower"), somewhere("c"), somewhere("d", place="tower")]
    places = assign_places(photos, "auto", RADIUS)
    assert groups(places) == [("a",), ("b", "d"), ("c",)]
    assert {place.name for place in places if place.lat is None} == {"tower", None}


def test_a_photo_that_gains_a_position_keeps_its_places_id() -> None:
    before = assign_places([somewhere("a")], "auto", RADIUS)
    after = assign_places([at("a", 0), at("b", 3)], "auto", RADIUS, before)
    assert [place.id for place in after] == [before[0].id]
    assert after[0].members == ("a", "b")


def test_the_commonest_name_is_the_places() -> None:
    lat, lon = from_local(0, 0, 52.0, 0.1)
    names = ["bridge", "tower", "tower", None]
    photos = [PlacePhoto(str(i), f"{i}.jpg", lat, lon, name) for i, name in enumerate(names)]
    assert [place.name for place in assign_places(photos, "gps", RADIUS)] == ["tower"]


def test_folders() -> None:
    photos = [
        somewhere("a", "x/1.jpg"),
        somewhere("b", "y/x/2.jpg"),
        somewhere("c", "x/2.jpg"),
        somewhere("d", "3.jpg"),
    ]
    places = assign_places(photos, "folder", RADIUS)
    assert {(place.name, place.members) for place in places} == {
        ("x", ("a", "c")),
        ("x", ("b",)),
        (None, ("d",)),
    }


def test_a_folders_middle_photo_stands_for_it() -> None:
    photos = [at("a", 0), at("b", 100), at("c", 220)]
    (place,) = assign_places(photos, "folder", RADIUS)
    assert place.medoid == "b"
    (grown,) = assign_places([*photos, at("d", 900)], "folder", RADIUS, [place])
    assert (grown.id, grown.medoid, grown.members) == (place.id, "b", ("a", "b", "c", "d"))


def test_frames_go_by_number_a_folder_at_a_time() -> None:
    photos = [somewhere(str(i), f"day/img_{i}.jpg") for i in (1, 2, 3, 10, 11)]
    photos += [somewhere("n1", "night/img_1.jpg")]
    assert groups(assign_places(photos, "frames:2", RADIUS)) == [("1", "2"), ("10", "3"), ("11",), ("n1",)]


def test_frames_keep_ids_when_more_arrive() -> None:
    photos = [somewhere(str(i), f"img_{i}.jpg") for i in range(1, 6)]
    before = assign_places(photos, "frames:2", RADIUS)
    after = assign_places([*photos, somewhere("6", "img_6.jpg")], "frames:2", RADIUS, before)
    assert groups(after) == [("1", "2"), ("3", "4"), ("5", "6")]
    assert {place.id for place in after} == {place.id for place in before}


def test_photo_by_photo() -> None:
    photos = [at("a", 0), at("b", 0), somewhere("c", place="x"), somewhere("d", place="x")]
    assert groups(assign_places(photos, "photo", RADIUS)) == [("a",), ("b",), ("c",), ("d",)]


def test_nothing_to_assign() -> None:
    for mode in ("auto", "gps", "folder", "photo", "frames:3"):
        assert assign_places([], mode, RADIUS) == []


def test_modes_are_read() -> None:
    assert parse_mode("frames:12") == PlaceMode("frames", 12)
    assert parse_mode("gps") == PlaceMode("gps")


@pytest.mark.parametrize(
    "text", ["", "GPS", "frames", "frames:", "frames:0", "frames:-1", "frames:1.5", "place"]
)
def test_invalid_modes_are_refused(text: str) -> None:
    with pytest.raises(
        UsageError, match="places are auto, gps, folder, photo or frames:N with N from 1, not"
    ):
        parse_mode(text)


@pytest.mark.parametrize("radius_m", [0.0, -1.0, float("nan")])
def test_invalid_radius_is_refused(radius_m: float) -> None:
    with pytest.raises(UsageError, match="place radius must be more than 0 m"):
        assign_places([at("a", 0)], "gps", radius_m)

"""Filters: against a naive reference that looks at one photo after another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexer.build.publish import publish, published
from indexer.errors import FieldError
from indexer.filters import Filters, read_moment
from indexer.index import Index
from indexer.maintenance.check import check_index
from indexer.options import PlaceOptions, SearchOptions
from indexer.photos.metadata import PhotoMetadata
from indexer.snapshots.manifest import Manifest
from indexer.storage.catalogue import Catalogue
from indexer.storage.layout import COLUMNS

if TYPE_CHECKING:
    from tests.indexer.conftest import Handmade

Floats = NDArray[np.float32]
Unit = Callable[..., Floats]

TIMES = (
    "2024-05-01T10:00:00",
    "2024-05-01T10:00:00+02:00",
    "2024-05-01T10:00:00-08:00",
    "2024-05-01",
    "2024-05-02T00:00:00",
    "2024-05-01T08:00:00+00:00",
    "2023-12-31T23:59:59",
)


@dataclass(frozen=True)
class Made:
    """A photo of the index, as the reference sees it."""

    id: str
    metadata: PhotoMetadata
    views: list[Floats]


class Collection:
    """An index of random photos, and the photos; no dataclass, all of which hypothesis would print."""

    def __init__(self, index: Index, photos: list[Made]) -> None:
        self.index = index
        self.photos = photos
        places = [index.place(place.id) for place in index.places()]
        self.place_of = {member.id: place.id for place in places for member in place.members}
        self.names = {place.id: place.name for place in places}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, unit: Unit, make_handmade: Any) -> Collection:
    """240 photos around a few spots, every datum missing from some, every eighth a panorama."""
    draw = np.random.default_rng(7)
    spots = [(52.0, 0.25), (52.0009, 0.25), (0.0, 180.0), (0.0, -179.9995), (89.9999, 10.0)]
    photos: list[tuple[PhotoMetadata, list[Floats]]] = []
    for number in range(240):
        lat, lon = spots[draw.integers(len(spots))]
        where = (lat + draw.uniform(-3e-4, 3e-4) * (lat < 89), (lon + draw.uniform(-3e-4, 3e-4)))
        where = (where[0], (where[1] + 180) % 360 - 180)
        metadata = PhotoMetadata(
            lat=where[0] if number % 5 else None,
            lon=where[1] if number % 5 else None,
            heading=float(draw.integers(0, 72) * 5) if number % 3 else None,
            taken_at=TIMES[draw.integers(len(TIMES))] if number % 4 else None,
            place=("Gate", "Hall")[number % 2] if number % 7 == 0 else None,
        )
        photos.append((metadata, [unit(draw) for _ in range(4 if number % 8 == 0 else 1)]))
    handmade: Handmade = make_handmade(tmp_path_factory.mktemp("filters") / "index")
    ids = handmade.make(photos)
    made = [Made(id, *photo) for id, photo in zip(ids, photos, strict=True)]
    return Collection(handmade.open(), made)


def naive_distance(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """By the law of haversines, one pair at a time."""
    p1, p2, dl = math.radians(lat1), math.radians(lat2), math.radians(lon2 - lon1)
    h = math.sin((p2 - p1) / 2) ** 2 + math.cos(p1) * math.cos(p2) * math.sin(dl / 2) ** 2
    return 2 * 6_371_008.8 * math.asin(min(1.0, math.sqrt(h)))


def naive_turn(a: float, b: float) -> float:
    """Degrees between two directions."""
    turn = (a - b) % 360
    return min(turn, 360 - turn)


def naive_time(taken_at: str, bound: str) -> tuple[datetime, datetime, datetime]:
    """The photo's first and last second, and the bound, as times that can be compared."""
    limit, moment = datetime.fromisoformat(bound), datetime.fromisoformat(taken_at)
    lasts = timedelta(days=1) - timedelta(seconds=1) if len(taken_at) == 10 else timedelta()
    if limit.tzinfo is None:
        moment = moment.replace(tzinfo=None)
    elif moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment, moment + lasts, limit


def naive_passes(filters: Filters, photo: Made, view: int, place: str, name: str | None) -> bool:
    m = photo.metadata
    if filters.radius_m is not None:
        assert filters.lat is not None
        assert filters.lon is not None
        if m.lat is None or m.lon is None:
            return False
        if naive_distance(m.lat, m.lon, filters.lat, filters.lon) > filters.radius_m:
            return False
    if filters.taken_after is not None:
        if m.taken_at is None:
            return False
        first, _, limit = naive_time(m.taken_at, filters.taken_after)
        if first < limit:
            return False
    if filters.taken_before is not None:
        if m.taken_at is None:
            return False
        _, last, limit = naive_time(m.taken_at, filters.taken_before)
        if last >= limit:
            return False
    if filters.heading is not None:
        if m.heading is None:
            return False
        yaw = 360 * view / len(photo.views)
        if naive_turn(m.heading + yaw, filters.heading) > filters.heading_tolerance:
            return False
    return filters.place is None or filters.place in (place, name)


def naive_search(collection: Collection, query: Floats, filters: Filters) -> list[tuple[float, str]]:
    best: dict[str, float] = {}
    for photo in collection.photos:
        place = collection.place_of[photo.id]
        for view, descriptor in enumerate(photo.views):
            if naive_passes(filters, photo, view, place, collection.names[place]):
                score = sum(float(a) * float(b) for a, b in zip(descriptor, query, strict=True))
                best[photo.id] = max(best.get(photo.id, -2.0), score)
    return sorted(((score, id) for id, score in best.items()), key=lambda hit: (-hit[0], hit[1]))


@st.composite
def some_filters(draw: st.DrawFn) -> Filters:
    chosen = draw(st.sets(st.sampled_from(["radius", "after", "before", "heading", "place"])))
    values: dict[str, Any] = {}
    if "radius" in chosen:
        values["lat"], values["lon"] = draw(
            st.sampled_from(
                [(52.0, 0.25), (0.0, 180.0), (0.0, -180.0), (89.9999, -170.0), (90.0, 0.0), (-52.0, 9.0)]
            )
        )
        values["radius_m"] = draw(st.sampled_from([0.5, 20.0, 34.9, 99.0, 1e4, 3e7]))
    after, before = sorted(draw(st.lists(st.sampled_from(TIMES), min_size=2, max_size=2, unique=True)))
    if "after" in chosen:
        values["taken_after"] = after
    if "before" in chosen:
        values["taken_before"] = before
    if "heading" in chosen:
        values["heading"] = draw(st.sampled_from([0.0, 5.0, 90.0, 180.0, 357.5, 360.0]))
        values["heading_tolerance"] = draw(st.sampled_from([0.0, 5.0, 45.0, 89.0, 180.0]))
    if "place" in chosen:
        values["place"] = draw(st.sampled_from(["Gate", "Hall", "nowhere"]))
    try:
        return Filters(**values)
    except FieldError:  # before is not after after, by the clock
        del values["taken_after"]
        return Filters(**values)


@settings(max_examples=300, deadline=None)
@given(filters=some_filters(), seed=st.integers(0, 99), n=st.integers(1, 300))
def test_exactly_the_passing_photos_are_searched(
    collection: Collection, unit: Unit, filters: Filters, seed: int, n: int
) -> None:
    query = unit(np.random.default_rng(seed))
    expected = naive_search(collection, query, filters)[:n]
    found = collection.index.nearest(query, n, filters)
    assert [hit.id for hit in found] == [id for _, id in expected]
    assert [hit.score for hit in found] == pytest.approx([score for score, _ in expected], abs=2e-6)


@settings(max_examples=100, deadline=None)
@given(filters=some_filters(), seed=st.integers(0, 99), k=st.integers(1, 100))
def test_places_hold_only_passing_photos(
    collection: Collection, unit: Unit, filters: Filters, seed: int, k: int
) -> None:
    query = unit(np.random.default_rng(seed))
    expected: dict[str, list[str]] = {}
    for _, id in naive_search(collection, query, filters):
        expected.setdefault(collection.place_of[id], []).append(id)
    answer = collection.index.answer(query, k, filters=filters)
    assert [place.id for place in answer.places] == list(expected)[:k]
    for place in answer.places:
        shown = [photo.id for photo in place.photos]  # those among the nearest
        assert shown == expected[place.id][: len(shown) or 1]
    if not expected:
        assert answer.position is None
        assert answer.note == "no photo passes the filters"


def test_place_filter_takes_an_id(collection: Collection, unit: Unit) -> None:
    query = unit(np.random.default_rng(1))
    for place in collection.index.places():
        answer = collection.index.answer(query, 5, filters=Filters(place=place.id))
        assert [found.id for found in answer.places] == [place.id]


def test_a_position_alone_leaves_nothing_out_and_tells_distances(collection: Collection, unit: Unit) -> None:
    query = unit(np.random.default_rng(2))
    plain = collection.index.answer(query, 40)
    told = collection.index.answer(query, 40, filters=Filters(lat=52.0, lon=0.25))
    assert {place.distance_m for place in plain.places} == {None}
    assert [place.id for place in told.places] == [place.id for place in plain.places]
    for place in told.places:
        if place.lat is None or place.lon is None:
            assert place.distance_m is None
        else:
            away = naive_distance(52.0, 0.25, place.lat, place.lon)
            assert place.distance_m == pytest.approx(away, abs=0.051)
    assert None in {place.distance_m for place in told.places}
    assert len({place.distance_m for place in told.places}) > 2


def test_few_passing_photos_are_found_at_any_score(handmade: Handmade, unit: Unit) -> None:
    draw = np.random.default_rng(3)
    query = unit(draw)
    photos = [(PhotoMetadata(place="crowd"), [query]) for _ in range(400)]
    photos.append((PhotoMetadata(place="far"), [-query]))
    ids = handmade.make(photos, places="photo")
    index = handmade.open()
    (hit,) = index.nearest(query, 10, Filters(place="far"))
    assert hit.id == ids[-1]
    assert hit.score == pytest.approx(-1, abs=1e-3)


def test_filters_follow_changes(handmade: Handmade, unit: Unit) -> None:
    """A table given later, a run beside, places renamed: an opened index filters by what is so now."""
    draw = np.random.default_rng(4)
    query = unit(draw)
    here, there = Filters(lat=1.0, lon=1.0, radius_m=10.0), Filters(lat=2.0, lon=2.0, radius_m=10.0)
    ids = handmade.make([(PhotoMetadata(lat=1.0, lon=1.0), [unit(draw)]) for _ in range(6)])
    index = handmade.open()
    assert len(index.nearest(query, 9, here)) == 6
    catalogue = Catalogue(handmade.folder, create=True)
    with catalogue.transaction() as db:
        catalogue.set_metadata(db, ids[0], PhotoMetadata(lat=2.0, lon=2.0))
        catalogue.set_status(db, [ids[1]], "removed")
    assert {hit.id for hit in index.nearest(query, 9, here)} == {*ids[2:]}
    assert [hit.id for hit in index.nearest(query, 9, there)] == [ids[0]]
    with catalogue.transaction() as db:
        catalogue.set_status(db, [ids[1]], "ok")
        db.execute("UPDATE places SET name = 'renamed'")
    assert {hit.id for hit in index.nearest(query, 9, here)} == {*ids[1:]}
    assert len(index.nearest(query, 9, Filters(place="renamed"))) == 6


@pytest.mark.parametrize("damage", [None, "missing", "cut", "other", "flipped"])
def test_columns_saved_with_a_snapshot(handmade: Handmade, unit: Unit, damage: str | None) -> None:
    """Opened anew, an index filters by the file and what changed since; without a sound file as well."""
    draw = np.random.default_rng(4)
    query = unit(draw)
    places = [PhotoMetadata(lat=1.0 + i % 3, lon=1.0, taken_at=f"2024-05-0{1 + i}") for i in range(9)]
    ids = handmade.make([(place, [unit(draw)]) for place in places])
    path = handmade.folder / "generations/01/snapshots/000001" / COLUMNS
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "other":
        np.savez(path, ids=np.arange(3))
    elif damage == "flipped":
        at = data.index(np.float64(3.0).tobytes())
        path.write_bytes(data[:at] + np.float64(4.0).tobytes() + data[at + 8 :])
    catalogue = Catalogue(handmade.folder, create=True)
    with catalogue.transaction() as db:
        catalogue.set_metadata(db, ids[0], PhotoMetadata(lat=3.0, lon=1.0))
        catalogue.set_status(db, [ids[2]], "removed")
    index = handmade.open()
    near = Filters(lat=3.0, lon=1.0, radius_m=10.0)
    assert {hit.id for hit in index.nearest(query, 9, near)} == {ids[0], ids[5], ids[8]}
    assert {hit.id for hit in index.nearest(query, 9, Filters(taken_before="2024-05-05"))} == {
        ids[i] for i in (0, 1, 3)
    }
    found = index.answer(query, 9, filters=near).places
    (place,) = [place.id for place in found if ids[5] in {photo.id for photo in place.photos}]
    assert {hit.id for hit in index.nearest(query, 9, Filters(place=place))} == {ids[5], ids[8]}
    said = [problem for problem in check_index(handmade.folder) if COLUMNS in problem]
    state = "missing" if damage == "missing" else "damaged"
    assert said == ([f"{path} is {state}: 'loci index' makes it again"] if damage else [])


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_damaged_columns_are_made_again(handmade: Handmade, unit: Unit, damage: str) -> None:
    """By whoever publishes next, once a filtered query or a check has found them out."""
    draw = np.random.default_rng(4)
    handmade.make([(PhotoMetadata(lat=1.0, lon=1.0), [unit(draw)]) for _ in range(3)])
    layout, here = handmade.layout, Filters(lat=1.0, lon=1.0, radius_m=10.0)
    search = PlaceOptions(), SearchOptions()
    catalogue = Catalogue(handmade.folder, create=True)

    def made() -> Manifest | None:
        return published(layout, catalogue, 1, "made by hand", *search)

    layout.set_unpublished(False)
    assert made() is not None
    path = layout.snapshot("01/000001") / COLUMNS
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
        assert made() is not None  # its bytes are not read where there is nothing to do
    else:
        at = data.index(np.float64(1.0).tobytes())
        path.write_bytes(data[:at] + np.float64(4.0).tobytes() + data[at + 8 :])
    if damage != "missing":
        assert len(handmade.open().nearest(unit(draw), 9, here)) == 3
    assert made() is None
    publish(layout, catalogue, 1, "made by hand", handmade.dim, PlaceOptions())
    assert handmade.open().snapshot == "01/000002"
    assert not [problem for problem in check_index(handmade.folder) if COLUMNS in problem]


def test_searched_photos_are_counted(handmade: Handmade, unit: Unit) -> None:
    """Views, photos and places after every change as one question to the catalogue has them."""
    draw = np.random.default_rng(7)
    places = [PhotoMetadata(lat=50.0 + i // 3, lon=1.0) if i % 4 else PhotoMetadata() for i in range(20)]
    ids = handmade.make([(place, [unit(draw) for _ in range(1 + i % 3)]) for i, place in enumerate(places)])
    index, catalogue = handmade.open(), Catalogue(handmade.folder, create=True)

    def counted() -> tuple[int, int, int]:
        row: tuple[int, int, int]
        with catalogue.transaction() as db:
            (row,) = db.execute(
                "SELECT count(*), count(DISTINCT d.photo), count(DISTINCT ifnull(p.place_id, p.id)) "
                "FROM descriptors d JOIN photos p ON p.id = d.photo WHERE p.status = 'ok'"
            )
        return row

    def same() -> bool:
        found = index.counts()
        return (found.descriptors, found.photos, found.places) == counted()

    assert same()
    for photos, status in ((ids[:1], "removed"), (ids[4:12], "removed"), (ids[5:7], "ok"), (ids[:2], "ok")):
        with catalogue.transaction() as db:
            catalogue.set_status(db, photos, status)
        assert same()
    with catalogue.transaction() as db:
        db.execute("UPDATE photos SET place_id = NULL WHERE id IN (?, ?)", ids[15:17])
        db.execute("UPDATE photos SET place_id = 'elsewhere' WHERE id = ?", ids[17:18])
    assert same()
    new = handmade.new(99)
    index.posting().add(new, np.stack([unit(draw), unit(draw)]))
    assert same()
    index.posting().remove(new.id)
    assert same()
    assert counted()[0] > counted()[1] > counted()[2] > 5


def test_saved_columns_answer_filters(handmade: Handmade, unit: Unit) -> None:
    """Of the catalogue, all three would pass."""
    draw = np.random.default_rng(4)
    handmade.make([(PhotoMetadata(lat=1.0, lon=1.0), [unit(draw)]) for _ in range(3)])
    path = handmade.folder / "generations/01/snapshots/000001" / COLUMNS
    with np.load(path) as file:
        columns = dict(file)
    np.savez(path, **(columns | {"lat": np.array([1.0, 2.0, 2.0])}))
    assert len(handmade.open().nearest(unit(draw), 9, Filters(lat=1.0, lon=1.0, radius_m=10.0))) == 1


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"lat": 91.0, "lon": 0.0}, "lat", "lat must be -90 to 90, not 91"),
        ({"lat": 1.0, "lon": math.nan}, "lon", "lon must be -180 to 180, not nan"),
        ({"lat": 1.0}, "lon", "lon is missing, though lat is given"),
        ({"lon": 1.0}, "lat", "lat is missing, though lon is given"),
        ({"radius_m": 5.0}, "radius_m", "radius_m needs lat and lon"),
        ({"lat": 1.0, "lon": 1.0, "radius_m": 0.0}, "radius_m", "radius_m must be more than 0 metres, not 0"),
        (
            {"lat": 1.0, "lon": 1.0, "radius_m": math.inf},
            "radius_m",
            "radius_m must be more than 0 metres, not inf",
        ),
        ({"heading": -1.0}, "heading", "heading must be 0 to 360, not -1"),
        ({"heading_tolerance": 181.0}, "heading_tolerance", "heading_tolerance must be 0 to 180, not 181"),
        (
            {"taken_after": "yesterday"},
            "taken_after",
            "taken_after must be a time such as 2024-09-23T16:06:58 or 2024-09-23, not 'yesterday'",
        ),
        (
            {"taken_after": "2024-02-01", "taken_before": "2024-02-01"},
            "taken_before",
            "taken_before must be later than taken_after",
        ),
        ({"place": ""}, "place", "place must be a place's id or name, not empty"),
    ],
)
def test_invalid_filters_are_refused(values: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(FieldError) as caught:
        Filters(**values)
    assert (caught.value.field, str(caught.value)) == (field, message)


def test_which_filters_narrow() -> None:
    assert not Filters().narrow
    assert not Filters(lat=1.0, lon=2.0, heading_tolerance=3.0).narrow
    for values in (
        {"lat": 1.0, "lon": 2.0, "radius_m": 3.0},
        {"taken_after": "2024-01-01"},
        {"taken_before": "2024-01-01"},
        {"heading": 0.0},
        {"place": "x"},
    ):
        assert Filters(**values).narrow


@pytest.mark.parametrize(
    ("text", "seconds", "offset", "lasts"),
    [
        ("1970-01-01T00:00:10", 10, None, 0),
        ("1970-01-01T01:00:10+01:00", 10, 3600, 0),
        ("1970-01-02", 86400, None, 86400),
        ("1970-01-01T00:00:10Z", 10, 0, 0),
        ("1969-12-31T23:59:59.5", -0.5, None, 0),
    ],
)
def test_moments(text: str, seconds: float, offset: float | None, lasts: float) -> None:
    moment = read_moment(text)
    assert moment is not None
    assert (moment.seconds, moment.offset, moment.lasts) == (seconds, offset, lasts)


@pytest.mark.parametrize("text", ["", "now", "2024-13-01", "2024-01-01T25:00"])
def test_invalid_times_are_refused(text: str) -> None:
    assert read_moment(text) is None

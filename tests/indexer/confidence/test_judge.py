"""What an opened index says of how sure it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.build.publish import publish
from indexer.build.rebuild import rebuild
from indexer.confidence.judge import NOT_CALIBRATED, UNVERIFIED
from indexer.errors import UsageError
from indexer.filters import Filters
from indexer.geo import from_local
from indexer.index import Index
from indexer.options import PlaceOptions
from indexer.photos.metadata import PhotoMetadata
from indexer.search.folder import Folder
from indexer.search.searcher import Question, grouped
from indexer.snapshots.manifest import read_manifest
from indexer.storage.catalogue import Catalogue

if TYPE_CHECKING:
    from tests.indexer.conftest import Handmade

Floats = NDArray[np.float32]
DIM = 24
PLACES, VIEWS = 60, 3


def shown(place: int, view: int, spread: float = 0.45) -> Floats:
    """What a photo of a place looks like."""
    common = 0.5 * np.random.default_rng(99).standard_normal(DIM)
    middle = common + np.random.default_rng([1, place]).standard_normal(DIM)
    row = middle + spread * np.random.default_rng([2, place, view]).standard_normal(DIM)
    return (row / np.linalg.norm(row)).astype(np.float16).astype(np.float32)


def at(place: int, view: int) -> PhotoMetadata:
    lat, lon = from_local(200.0 * place, 8.0 * view, 48.0, 11.0)
    return PhotoMetadata(lat=lat, lon=lon, heading=(90.0 * view) % 360, taken_at=f"2020-01-0{1 + view}")


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory, make_handmade: type[Handmade]) -> Handmade:
    """Photos of places 200 m apart, three of each."""
    made = make_handmade(tmp_path_factory.mktemp("street") / "index", DIM)
    made.make([(at(p, v), [shown(p, v)]) for p in range(PLACES) for v in range(VIEWS)])
    return made


def opened(made: Handmade, change: Callable[[dict[str, Any]], object] | None = None, **options: Any) -> Index:
    """The index, with its calibration changed before it is read."""
    manifest = read_manifest(made.layout, made.layout.current())
    if change is not None:
        calibration = json.loads(json.dumps(manifest.calibration))
        change(calibration)
        manifest = replace(manifest, calibration=calibration)
    nothing: Any = None
    return Index(Folder(made.layout, manifest), nothing, **options)


def sure(index: Index, descriptor: Floats, k: int = 5, filters: Filters | None = None) -> float:
    found = index.answer(descriptor, k, filters=filters).confidence
    assert found is not None
    return found


def test_a_place_of_the_index_is_known_and_another_is_not(street: Handmade) -> None:
    index = street.open()
    known = [index.answer(shown(place, 7)) for place in range(40)]
    right = [
        round((answer.places[0].lon or 0) / 1e-9) == round((at(place, 1).lon or 0) / 1e-9)
        for place, answer in enumerate(known)
    ]
    assert np.mean([answer.known for answer in known]) > 0.8
    assert abs(np.mean([answer.confidence or 0 for answer in known]) - np.mean(right)) < 0.15
    unknown = [index.answer(shown(place, 0)) for place in range(1000, 1040)]
    assert np.mean([answer.known for answer in unknown]) < 0.35
    for answer in (*known, *unknown):
        assert answer.confidence == answer.places[0].confidence
        assert answer.known == ((answer.confidence or 0) >= 0.5)
        assert answer.note is None


def test_confidences_sum_to_at_most_one(street: Handmade) -> None:
    index = street.open()
    for place in (*range(8), *range(1000, 1008)):
        places = index.answer(shown(place, 5, 1.2), k=60).places
        found = [place.confidence or 0.0 for place in places]
        assert all(0 <= value <= found[0] for value in found)
        assert sum(found) <= 1
        assert found[1:] == sorted(found[1:], reverse=True)


@pytest.mark.parametrize("k", [1, 2, 20])
def test_k_does_not_change_confidence(street: Handmade, k: int) -> None:
    index = street.open()
    for place in (3, 1003):
        five, other = index.answer(shown(place, 5), 5), index.answer(shown(place, 5), k)
        assert other.confidence == five.confidence
        shared = min(k, 5)
        assert [one.confidence for one in other.places[:shared]] == [
            one.confidence for one in five.places[:shared]
        ]


def test_the_more_queries_show_a_known_place_the_surer(street: Handmade) -> None:
    for place in (3, 1003):
        by_share = [
            sure(opened(street, known_share=share), shown(place, 5)) for share in (0.05, 0.5, 0.8, 0.99)
        ]
        assert by_share == sorted(by_share)
        assert by_share[0] < by_share[-1]
    assert sure(opened(street), shown(3, 5)) == sure(opened(street, known_share=0.8), shown(3, 5))


@pytest.mark.parametrize("share", [0, 1, -1, float("nan")])
def test_invalid_share_is_refused(street: Handmade, share: float) -> None:
    with pytest.raises(UsageError, match="the share of known places must lie between 0 and 1"):
        opened(street, known_share=share)
    with pytest.raises(UsageError, match="the share of known places must lie between 0 and 1"):
        Index.open(street.folder, known_share=share)


def test_filters_do_not_raise_confidence(street: Handmade) -> None:
    """Not even one that leaves a single place, which then agrees with nothing but itself."""
    index = street.open()
    for place in (*range(5), *range(1000, 1005)):
        descriptor = shown(place, 5)
        plain = index.answer(descriptor)
        there = at(30, 0)
        for filters in (
            Filters(lat=there.lat, lon=there.lon, radius_m=50.0),
            Filters(place=plain.places[0].id),
            Filters(taken_after="2020-01-02"),
            Filters(heading=180.0, heading_tolerance=10.0),
        ):
            narrow = index.answer(descriptor, filters=filters)
            assert (narrow.confidence or 0) <= (plain.confidence or 0) + 1e-4
    found = sure(index, shown(4, 5), filters=Filters(place=index.answer(shown(4, 5)).places[0].id))
    assert found == pytest.approx(sure(index, shown(4, 5)), abs=1e-4)


def test_no_confidence_if_nothing_passes(street: Handmade) -> None:
    answer = street.open().answer(shown(0, 5), filters=Filters(taken_after="2030-01-01"))
    assert (answer.known, answer.confidence, answer.places) == (None, None, ())
    assert answer.note == "no photo passes the filters"


def test_too_few_photos_say_why(tmp_path: Path, make_handmade: type[Handmade]) -> None:
    made = make_handmade(tmp_path / "index", DIM)
    made.make([(at(p, v), [shown(p, v)]) for p in range(10) for v in range(VIEWS)])
    answer = made.open().answer(shown(0, 5))
    assert (answer.known, answer.confidence) == (None, None)
    assert [place.confidence for place in answer.places] == [None] * 5
    assert answer.note == (
        "there is no confidence: 30 of 30 photos share a place with another photo, and calibration needs "
        "40: add photos of these places, or set `places` to folder or frames:N if folders or order "
        "show places"
    )
    assert answer.position is not None


@pytest.mark.parametrize("version", [0, 2])
def test_a_calibration_of_another_version_is_not_used(street: Handmade, version: int) -> None:
    index = opened(street, lambda calibration: calibration.update(version=version))
    answer = index.answer(shown(0, 5))
    assert (answer.known, answer.confidence, answer.note) == (None, None, NOT_CALIBRATED)


def test_verified_answer_needs_its_own_model(street: Handmade) -> None:
    index = street.open()
    descriptor = shown(0, 5)
    places = grouped(index._search.nearest(Question.of(descriptor, verify=True), 50))
    first = places[0]
    photos = (replace(first.photos[0], inliers=40), *first.photos[1:])
    judgement = index._judge.judge(descriptor, [replace(first, photos=photos), *places[1:]], places)
    assert (judgement.confidence, judgement.note) == (None, UNVERIFIED)


def test_next_run_replaces_calibration_of_another_version(
    tmp_path: Path, make_handmade: type[Handmade]
) -> None:
    made = make_handmade(tmp_path / "index", DIM)
    made.make([(at(p, v), [shown(p, v)]) for p in range(PLACES) for v in range(VIEWS)])
    path = made.layout.manifest(made.layout.current())
    values = json.loads(path.read_text())
    before = values["calibration"]
    path.write_text(json.dumps(values | {"calibration": before | {"version": 0}}))
    old = made.open()
    assert old.answer(shown(0, 5)).note == NOT_CALIBRATED
    catalogue = Catalogue(made.folder, create=True)
    manifest = publish(made.layout, catalogue, 1, "made by hand", DIM, PlaceOptions())
    assert manifest.snapshot != values["snapshot"]
    assert json.loads(json.dumps(manifest.calibration)) == before
    again = publish(made.layout, catalogue, 1, "made by hand", DIM, PlaceOptions())
    assert again.snapshot == manifest.snapshot
    catalogue.close()


def test_unchanged_index_is_not_calibrated_again(street: Handmade, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("calibrated again")

    monkeypatch.setattr("indexer.build.publish.calibrate", refuse)
    catalogue = Catalogue(street.folder, create=True)
    publish(street.layout, catalogue, 1, "made by hand", DIM, PlaceOptions())
    catalogue.close()


def test_a_collection_that_is_nearly_the_same_is_not_calibrated_again(
    street: Handmade, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = street.open()
    index.posting().add(street.new(9000, at(0, 1)), shown(0, 9)[None])

    def refuse(*_: object) -> None:
        raise AssertionError("calibrated again")

    monkeypatch.setattr("indexer.build.publish.calibrate", refuse)
    manifest = rebuild(street.folder)
    assert manifest.snapshot != index.snapshot
    assert json.loads(json.dumps(manifest.calibration)) == index.manifest.calibration


def test_failed_calibration_is_tried_again(tmp_path: Path, make_handmade: type[Handmade]) -> None:
    made = make_handmade(tmp_path / "index", DIM)
    made.make([(at(p, v), [shown(p, v)]) for p in range(13) for v in range(3)])
    index = made.open()

    assert index.manifest.calibration["reason"].startswith("39 of 39 photos share a place with another photo")
    index.posting().add(made.new(9000, at(0, 1)), shown(0, 9)[None])
    calibration = rebuild(made.folder).calibration
    assert (calibration["reason"], calibration["photos"]) == (None, 40)


def test_neighbouring_frames_do_not_compete(tmp_path: Path, make_handmade: type[Handmade]) -> None:
    """A slow walk: each frame is as like the next place's first as its own place's other."""
    steps = np.cumsum(np.random.default_rng(5).standard_normal((90, DIM)), axis=0)
    rows = (steps / np.linalg.norm(steps, axis=1, keepdims=True)).astype(np.float32)
    made = make_handmade(tmp_path / "index", DIM)
    made.make([(PhotoMetadata(), [row]) for row in rows], places="frames:2")
    index = made.open()
    calibration = read_manifest(made.layout, made.layout.current()).calibration
    assert (calibration["reason"], calibration["frames"]) == (None, 2)
    found = [
        sure(index, (rows[i] + rows[i + 1]) / np.linalg.norm(rows[i] + rows[i + 1])) for i in range(10, 80)
    ]
    assert np.mean(found) > 0.6


def test_photos_added_later_are_judged_too(tmp_path: Path, make_handmade: type[Handmade]) -> None:
    made = make_handmade(tmp_path / "index", DIM)
    made.make([(at(p, v), [shown(p, v)]) for p in range(PLACES) for v in range(VIEWS)])
    index = made.open()
    place = 2000
    before = sure(index, shown(place, 5))
    for view in range(2):
        index.posting().add(made.new(view, at(100, view)), shown(place, view)[None])
    after = index.answer(shown(place, 5))
    assert before < 0.5 < (after.confidence or 0)
    assert len(after.places[0].photos) == 2


def test_info_shows_the_calibration(street: Handmade) -> None:
    calibration = opened(street)._calibration
    assert calibration is not None
    found = calibration.summary()
    assert (found["photos"], found["queries"], found["reason"]) == (180, 180, None)
    assert 0.5 < found["right"] <= 1
    assert 0 < found["ece"] < 0.1

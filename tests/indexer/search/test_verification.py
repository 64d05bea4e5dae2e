"""Verification: one geometry is found among false matches, and it moves answers, never alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from indexer.answers import PhotoHit
from indexer.index import Index
from indexer.search.searcher import Question
from indexer.search.verification import (
    CANDIDATES,
    SHOWN,
    WEIGHT,
    Features,
    Floats,
    Matches,
    OwnPhotos,
    inliers,
    matches,
    raised,
)
from indexer.storage.layout import Layout
from indexer.storage.local_shards import write_local
from indexer.storage.rows import Slot
from model.layers.local_features import STRIDE, packed_type

if TYPE_CHECKING:
    from tests.indexer.conftest import World

EXTENT = (640.0, 480.0)
TILT = np.array([[0.9, 0.08, 30.0], [-0.05, 1.1, -12.0], [1e-4, -5e-5, 1.0]])


def unit(rng: np.random.Generator, count: int) -> Floats:
    codes = rng.standard_normal((count, 64))
    return np.asarray(codes / np.linalg.norm(codes, axis=1, keepdims=True), np.float32)


def mapped(points: Floats) -> Floats:
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], 1) @ TILT.T
    return np.asarray(homogeneous[:, :2] / homogeneous[:, 2:], np.float32)


def pair(agreeing: int, others: int, seed: int = 0) -> tuple[Features, Features]:
    """Two photos of which `agreeing` features show the same by `TILT`, and `others` alike elsewhere."""
    rng = np.random.default_rng(seed)
    count = agreeing + others
    places = rng.uniform((40, 40), (600, 440), (count, 2)).astype(np.float32)
    elsewhere = rng.uniform((0, 0), EXTENT, (others, 2)).astype(np.float32)
    codes = unit(rng, count)
    noisy = codes + 0.3 * unit(rng, count)
    noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
    there = np.concatenate([mapped(places[:agreeing]), elsewhere])
    order = rng.permutation(count)
    return Features(places, codes, EXTENT), Features(there[order], noisy[order].astype(np.float32), EXTENT)


def test_only_agreeing_features_are_counted() -> None:
    query, photo = pair(60, 60)
    assert 60 <= inliers(query, photo) <= 66
    found = matches(query, photo)
    assert len(found.query) == len(found.photo) == inliers(query, photo)
    there = mapped(found.query * EXTENT)
    off = np.linalg.norm(there - found.photo * EXTENT, axis=1)
    assert (off < 2 * STRIDE).mean() == 1
    assert (found.query >= 0).all()
    assert (found.query <= 1).all()


def test_features_must_be_each_others_nearest() -> None:
    query, photo = pair(40, 0)
    crowd = Features(np.repeat(query.positions, 2, axis=0), np.repeat(query.codes, 2, axis=0), query.extent)
    likeness = crowd.codes @ photo.codes.T
    mutual = [i for i in range(len(crowd.codes)) if likeness[:, likeness[i].argmax()].argmax() == i]
    assert inliers(crowd, photo) <= len(mutual) == 40


@pytest.mark.parametrize("count", [0, 3])
def test_too_few_matches_count_as_zero(count: int) -> None:
    query, photo = pair(count, 0)
    assert inliers(query, photo) == 0
    assert matches(query, photo).query.shape == (0, 2)


def test_chance_agrees_on_little() -> None:
    for seed in range(3):
        assert inliers(*pair(0, 100, seed)) < 15


def test_the_same_is_found_every_time() -> None:
    query, photo = pair(30, 90)
    assert len({inliers(query, photo) for _ in range(5)}) == 1


def test_a_score_only_rises_and_never_above_one() -> None:
    assert raised(0.3, 0) == pytest.approx(0.3)
    assert raised(0.3, 15) == pytest.approx(1 - 0.7 / 16**WEIGHT)
    for cosine in (-0.2, 0.1, 0.9):
        scores = [raised(cosine, n) for n in (0, 1, 10, 500)]
        assert scores == sorted(set(scores))
        assert max(scores) < 1
    assert raised(1.0, 500) == 1


def test_an_indexs_own_photos_are_verified_and_each_pair_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = np.zeros(30, packed_type(9))
    records["size"] = 4, 4
    records["cells"] = [[i // 3, i % 3] for i in range(9)]
    records["codes"] = np.random.default_rng(0).integers(-127, 128, (9, 64))  # of all photos the same
    write_local(tmp_path, [Slot(1, i) for i in range(30)], list(records))
    slots = {f"p{i}": [Slot(1, i)] for i in range(30)} | {"bare": [Slot(7, 0)]}
    asked: list[int] = []
    count = inliers

    def counting(query: Features, photo: Features) -> int:
        asked.append(1)
        return count(query, photo)

    monkeypatch.setattr("indexer.search.verification.inliers", counting)
    verify = OwnPhotos(tmp_path, slots)
    hits = [PhotoHit("bare", "x", 0.95), *(PhotoHit(f"p{i}", "x", 0.9 - i / 100) for i in range(1, 30))]
    found = verify("p0", hits)
    assert len(asked) == CANDIDATES - 1
    assert [hit.inliers for hit in found].count(9) == CANDIDATES - 1
    assert {hit.id: hit.inliers for hit in found}["bare"] is None
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    assert verify("p0", hits) == found
    assert len(asked) == CANDIDATES - 1


def test_answers_are_verified_by_default(world: World) -> None:
    world.build()
    index = world.open()
    seen = index.see(world.photo(1))
    plain = index.answer(seen, verify=False)
    assert "verify" not in plain.timings_ms
    assert {photo.inliers for place in plain.places for photo in place.photos} == {None}
    assert plain.places == index.answer(seen.descriptor).places
    answer = index.answer(seen)
    photos = [photo for place in answer.places for photo in place.photos]
    before = {photo.id: photo.score for place in plain.places for photo in place.photos}
    assert {photo.id for photo in photos} == before.keys()
    for photo in photos:
        assert photo.inliers is not None
        assert photo.score == pytest.approx(raised(before[photo.id], photo.inliers), abs=2e-6)
    assert (photos[0].inliers or 0) >= 4
    best = index.nearest(seen, 3)
    assert [photo.score for photo in best] == sorted((photo.score for photo in best), reverse=True)
    assert index.nearest(seen, 3, verify=False) == index.nearest(seen.descriptor, 3)


def test_matches_are_at_common_points(world: World) -> None:
    world.build()
    index = world.open()
    photo = index.nearest(index.embed([world.photo(2)])[0], 1)[0]
    found = index.matches(index.see(world.photo(2)), photo.id)
    assert found is not None
    assert len(found.query) == 6
    same = np.abs(found.query - found.photo).max(1) < 1e-6
    assert same.mean() > 0.8  # of two corners that look alike, rounding may take the other


def test_matches_are_listed_on_request(world: World) -> None:
    world.build()
    index = world.open()
    seen = index.see(world.photo(1))
    plain, answer = index.answer(seen), index.answer(seen, matched=True)
    assert index.query(world.photo(1), matched=True).places == answer.places
    assert {photo.matches for place in plain.places for photo in place.photos} == {None}
    photos = [photo for place in answer.places for photo in place.photos]
    assert len(photos) > 1
    for photo in photos:
        found = index.matches(seen, photo.id)
        assert found is not None
        assert photo.matches == found.shown()
        assert len(photo.matches) == photo.inliers
    assert photos[0].matches is not None
    same = [(qx, qy) == (px, py) for qx, qy, px, py in photos[0].matches]  # it is the photo itself
    assert np.mean(same) > 0.8  # of two corners that look alike, rounding may take the other
    assert [replace(photo, matches=None) for photo in photos] == [
        photo for place in plain.places for photo in place.photos
    ]
    unverified = index.answer(seen, verify=False, matched=True)
    assert {photo.matches for place in unverified.places for photo in place.photos} == {None}


def test_no_matches_are_listed_for_panoramas(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be positions in one of its views, not in the photo."""
    world.build()
    index = world.open()
    slots = index.catalogue.slots_of
    monkeypatch.setattr(index.catalogue, "slots_of", lambda generation, photo: 2 * slots(generation, photo))
    answer = index.query(world.photo(1), matched=True)
    photos = [photo for place in answer.places for photo in place.photos]
    assert {photo.matches for photo in photos} == {None}
    assert photos[0].inliers == 6


def test_many_matches_are_thinned_evenly() -> None:
    def line(count: int) -> Matches:
        at = np.arange(count, dtype=np.float32).repeat(2).reshape(-1, 2) / np.float32(max(count, 1))
        return Matches(at, 1 - at)

    assert line(0).shown() == ()
    assert line(3).shown() == (
        (0.0, 0.0, 1.0, 1.0),
        (0.3333, 0.3333, 0.6667, 0.6667),
        (0.6667, 0.6667, 0.3333, 0.3333),
    )
    assert len(set(line(SHOWN).shown())) == SHOWN
    thinned = [match[0] for match in line(200).shown()]
    assert (len(thinned), thinned[0], thinned[-1]) == (SHOWN, 0.0, 0.995)
    assert max(np.diff(thinned)) <= 0.02 + 1e-9


def test_index_without_local_features_is_not_verified(world: World) -> None:
    world.build(local_features=0, refit=True)
    index = world.open()
    answer = index.query(world.photo(1))
    assert {photo.inliers for place in answer.places for photo in place.photos} == {None}
    assert "verify" not in answer.timings_ms
    assert not index.verifies
    assert index.matches(index.see(world.photo(1)), answer.places[0].photos[0].id) is None
    assert not Layout(world.index).local(2).exists()


def test_every_photo_of_a_run_has_local_features_however_it_came_in(world: World) -> None:
    """Those that the model was fitted on, those after them, and those of the next run."""
    world.build()
    assert features_of(world.open()) == {24}
    (world.photos / "more").mkdir()
    world.photo(0).rename(world.photos / "more/moved.jpg")
    (world.photos / "more/new.jpg").write_bytes(world.photo(1, 1).read_bytes() + b"\0")
    world.build()
    assert features_of(world.open()) == {24}


def test_a_lost_file_of_local_features_leaves_answers_unverified(world: World) -> None:
    world.build()
    index = world.open()
    for path in Layout(world.index).local(1).iterdir():
        path.unlink()
    answer = index.query(world.photo(1))
    assert {photo.inliers for place in answer.places for photo in place.photos} == {None}
    assert replace(answer, timings_ms={}).places == index.answer(index.embed([world.photo(1)])[0]).places


def features_of(index: Index) -> set[int]:
    return {len(views[0].codes) if views else 0 for views in map(index._search.features, ids(index))}


def ids(index: Index) -> list[str]:
    return [photo.id for photo in index.photos()]


def test_repeated_question_is_verified_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.build()
    index = world.open()
    question = Question.of(index.see(world.photo(1)), verify=True)
    answer = index.answer(question)
    monkeypatch.setattr("indexer.search.searcher.matches", None)  # which it would call
    assert index.answer(question).places == answer.places
    assert index.nearest(question, 1)[0] == answer.places[0].photos[0]

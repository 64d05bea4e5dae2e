"""An index asked about its own photos: what is left out, what is learnt, and when nothing can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.answers import Photo, PhotoHit
from indexer.confidence.calibration import Calibration
from indexer.confidence.self_queries import (
    DISTURBANCES,
    LEAST,
    QUERIES,
    VERIFIED,
    Collection,
    Found,
    _ask,
    _cases,
    _draw,
    calibrate,
)
from indexer.geo import from_local, haversine_m
from indexer.places.neighbourhood import PlaceRule
from indexer.search.localisation import LOCATE_BY, locate
from indexer.snapshots.exact import ExactStore

Floats = NDArray[np.float32]
DIM = 32


def shot(id: str, east: float | None = None, north: float = 0.0) -> Photo:
    lat, lon = (None, None) if east is None else from_local(east, north, 48.0, 11.0)
    return Photo(id, f"{id}.jpg", None, lat, lon, None, None, 64, 48, "ok")


def looks(places: int, views: int, seed: int = 0, spread: float = 0.7) -> Floats:
    """Descriptors, places·views d: of a place alike, and all of them with something in common."""
    generator = np.random.default_rng(seed)
    common = 0.6 * generator.standard_normal(DIM)
    middles = common + generator.standard_normal((places, 1, DIM))
    rows = (middles + spread * generator.standard_normal((places, views, DIM))).reshape(-1, DIM)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def collection(
    photos: Sequence[Photo],
    rows: Floats,
    owners: Sequence[int] | None = None,
    rule: str = "auto",
    places: dict[str, str] | None = None,
    ranks: dict[str, int] | None = None,
) -> Collection:
    numbers = list(range(len(rows))) if owners is None else owners
    store = ExactStore.build(rows.shape[1], [(np.arange(len(rows)) * 2 + 5, rows)])
    known = {photo.id: photo for photo in photos}
    ids = [photos[i].id for i in numbers]
    return Collection.of(store, known, ids, places or {}, PlaceRule.of(rule, 25.0), ranks)


def street(places: int = 60, views: int = 3, **how: Any) -> Collection:
    """Places 200 m apart along a street, photographed from 8 m apart."""
    photos = [shot(f"{p:03}-{v}", 200.0 * p, 8.0 * v) for p in range(places) for v in range(views)]
    return collection(photos, looks(places, views, **how))


def asked(of: Collection) -> list[Found]:
    drawn, spots, _ = _draw(of)
    return list(_ask(of, drawn, spots))


def away_m(one: Photo, hit: PhotoHit) -> float:
    assert None not in (one.lat, one.lon, hit.lat, hit.lon)
    return float(haversine_m(one.lat or 0, one.lon or 0, hit.lat or 0, hit.lon or 0))


def test_each_photo_is_queried_with_place_present_and_absent() -> None:
    of = street(places=20)
    found = asked(of)
    assert len(found) == 60 * (2 + DISTURBANCES)
    for one in found:
        assert one.photo.id not in [hit.id for hit in one.hits]
        nearest = min(away_m(one.photo, hit) for hit in one.hits)
        assert (nearest > 100) == (one.outcome == "absent")
        if one.outcome != "absent":
            assert (one.outcome == "right") == (away_m(one.photo, one.hits[0]) <= 25)
        assert [hit.score for hit in one.hits] == sorted((hit.score for hit in one.hits), reverse=True)
        near = [away_m(one.photo, hit) <= 50 for hit in one.hits]
        if one.outcome == "right":
            assert one.near.tolist() == near


def test_scores_are_cosines_of_the_best_others() -> None:
    """Undisturbed, the hits are what sorting all cosines by hand gives."""
    of = street(places=20)
    rows = of.store.vectors(of.store.ids)
    for one in asked(of):
        if one.disturbed or one.outcome == "absent":
            continue
        own = [photo.id for photo in of.photos].index(one.photo.id)
        cosines = rows @ rows[own]
        cosines[own] = -2
        order = np.argsort(-cosines)[: len(one.hits)]
        assert [hit.id for hit in one.hits] == [of.photos[i].id for i in order]
        assert [hit.score for hit in one.hits] == pytest.approx(cosines[order].tolist(), abs=1e-6)


def test_views_do_not_find_their_own_panorama() -> None:
    rows = looks(50, 4)
    photos = [shot(f"{p:03}", 10.0 * p) for p in range(50)]
    found = asked(collection(photos, rows, owners=[i // 4 for i in range(200)]))
    assert len(found) == 50 * (2 + DISTURBANCES)
    for one in found:
        ids = [hit.id for hit in one.hits]
        assert one.photo.id not in ids
        assert len(set(ids)) == len(ids) <= 49


def test_photos_of_the_same_spot_are_left_out() -> None:
    """Four directions of each panorama, which know each other by light alone."""
    photos = [shot(f"{p:03}-{d}", 12.0 * p) for p in range(20) for d in range(4)]
    found = asked(collection(photos, looks(20, 4)))
    assert found
    assert all(away_m(one.photo, hit) > 0.5 for one in found for hit in one.hits)


def test_photos_of_one_spot_pair_up_if_no_other_photo_is_near() -> None:
    photos = [shot(f"{p:03}-{v}", 300.0 * p) for p in range(30) for v in range(3)]
    found = calibrate(collection(photos, looks(30, 3)))
    assert (found.photos, found.queries, found.reason) == (90, 90, None)


def test_neighbouring_frames_are_left_out() -> None:
    photos = [shot(f"{i:03}") for i in range(60)]
    places = {photo.id: f"place {i // 2}" for i, photo in enumerate(photos)}
    ranks = {photo.id: i for i, photo in enumerate(photos)}
    found = asked(collection(photos, looks(30, 2), rule="frames:2", places=places, ranks=ranks))
    for one in found:
        apart = [abs(int(hit.id) - int(one.photo.id)) for hit in one.hits]
        if one.outcome == "absent":
            assert min(apart) > 3
        else:
            assert (one.outcome == "right") == (apart[0] <= 2)


def test_by_name_the_place_is_gone() -> None:
    photos = [shot(f"{i:03}") for i in range(60)]
    places = {photo.id: f"place {i // 3}" for i, photo in enumerate(photos)}
    for one in asked(collection(photos, looks(20, 3), rule="folder", places=places)):
        mine = [places[hit.id] == places[one.photo.id] for hit in one.hits]
        assert any(mine) != (one.outcome == "absent")


def test_it_is_the_same_whenever_it_is_made() -> None:
    assert calibrate(street()) == calibrate(street())


def test_number_of_queries_is_limited_in_any_order() -> None:
    of = street(places=150, views=3)
    drawn, _, partnered = _draw(of)
    assert (len(drawn), partnered) == (QUERIES, 450)
    rows = of.store.vectors(of.store.ids)
    turned = collection(list(of.photos)[::-1], rows[::-1].copy())
    again, _, _ = _draw(turned)
    assert {of.photos[i].id for i in drawn} == {turned.photos[i].id for i in again}


def test_calibration_separates_right_from_wrong() -> None:
    """Photos of another street, of places that the index has and has not, which it was not fitted on."""
    of = street(places=80, spread=0.8)
    calibration = calibrate(of)
    assert calibration.reason is None
    assert (calibration.photos, calibration.queries) == (240, 240)
    assert calibration.right is not None
    assert 0.6 < calibration.right < 1
    assert calibration.ece is not None
    assert calibration.ece < 0.06
    sure = {outcome: [] for outcome in ("right", "absent")}  # type: dict[str, list[float]]
    for one in asked(of):
        if one.outcome in sure and not one.disturbed:
            sure[one.outcome].append((calibration.probabilities(one.case(1.0).evidence, 0.5) or {})["right"])
    assert np.mean(sure["right"]) > 0.8
    assert np.mean(sure["absent"]) < 0.25


def test_disturbed_photos_are_found_less_often() -> None:
    found = [one for one in asked(street(places=80)) if one.outcome != "absent"]
    plain, disturbed = (
        np.mean([one.outcome == "right" for one in found if one.disturbed == kind]) for kind in (False, True)
    )
    assert plain > disturbed > 0.2


@pytest.mark.parametrize(("spread", "least", "most"), [(0.2, 0.25, 0.25), (1.1, 0.0, 0.0)])
def test_disturbed_photos_count_if_all_are_found(spread: float, least: float, most: float) -> None:
    """Half of the weight lies on absent places; of the other half, up to a quarter on what is disturbed."""
    found = asked(street(places=50, spread=spread))
    cases = _cases(found)
    present = [case for case in cases if case.outcome != "absent"]
    whole = sum(case.weight for case in present)
    assert whole == pytest.approx(sum(case.weight for case in cases) - whole) == pytest.approx(150)
    plain = max(case.weight for case in present)
    assert least <= 1 - plain <= most


def test_too_few_photos_of_one_place() -> None:
    photos = [shot(f"{p:03}-{v}", 200.0 * p, 8.0 * v) for p in range(19) for v in range(2)]
    photos += [shot(f"alone {p}", 200.0 * p, 5000.0) for p in range(40)]
    assert calibrate(collection(photos, looks(39, 2))) == Calibration(
        38,
        reason="38 of 78 photos share a place with another photo, and calibration needs 40: add photos of "
        "these places, or set `places` to folder or frames:N if folders or order show places",
    )


def test_photos_without_common_place_are_not_calibrated() -> None:
    found = calibrate(collection([shot(f"{p:03}") for p in range(90)], looks(90, 1), rule="photo"))
    assert found.photos == 0
    assert found.model is None
    assert found.reason == (
        "no two photos show the same place, so confidence cannot be calibrated: add photos of "
        "these places, or set `places` to folder or frames:N if folders or order show places"
    )


def test_a_single_spot_cannot_be_left_out() -> None:
    photos = [shot(f"{p:03}", 1.0 * p) for p in range(60)]
    found = calibrate(collection(photos, looks(60, 1)))
    assert found.photos == 60
    assert found.model is None
    assert found.reason == (
        "only 0 photos have others that were taken elsewhere, and it takes 40 to learn what a photo of an "
        "unknown place looks like: index more places"
    )


def test_an_index_of_one_photo() -> None:
    assert calibrate(collection([shot("a", 0.0)], looks(1, 1))).photos == 0


def test_photos_that_are_all_alike_are_no_evidence() -> None:
    rows = np.tile(looks(1, 1), (90, 1))
    photos = [shot(f"{p:03}-{v}", 300.0 * p, 8.0 * v) for p in range(30) for v in range(3)]
    found = calibrate(collection(photos, rows))
    assert found.model is not None
    assert found.ece is not None
    assert found.ece < 0.1


def test_deleted_photos_are_not_queried() -> None:
    of = street(places=20)
    known = {photo.id: photo for photo in of.photos if not photo.id.startswith("007")}
    ids = [photo.id for photo in of.photos]
    again = Collection.of(of.store, known, ids, {}, PlaceRule.of("auto", 25.0))
    asked_about = {one.photo.id for one in asked(again)}
    assert asked_about == {id for id in ids if not id.startswith("007")}


def test_verified_answers_have_their_own_model() -> None:
    """A verifier that knows: 80 matches for the right photo, hardly any for others."""
    of = street(places=60, spread=1.1)
    by_id = {photo.id: photo for photo in of.photos}
    calls: list[str] = []

    def verify(asked: str, hits: Sequence[PhotoHit]) -> list[PhotoHit]:
        calls.append(asked)
        assert asked not in {hit.id for hit in hits}
        seen = [
            replace(hit, inliers=80 if away_m(by_id[asked], hit) <= 25 else 3 + number % 5)
            for number, hit in enumerate(hits[:20])
        ]
        seen = [replace(hit, score=hit.score + 0.005 * (hit.inliers or 0)) for hit in seen]
        return sorted([*seen, *hits[20:]], key=lambda hit: -hit.score)

    plain, verified = calibrate(of), calibrate(of, verify)
    first = dict.fromkeys(one.photo.id for one in asked(of))
    assert list(dict.fromkeys(calls)) == list(first)[:VERIFIED]
    assert verified.model == plain.model
    assert plain.verified is None
    assert verified.verified is not None
    assert len(verified.verified.middle) == 3
    assert verified.verified.slopes[1][2] > 0
    assert verified.ece is not None
    assert plain.ece is not None
    assert verified.ece < 0.05


def test_the_radius_holds_two_thirds_of_the_photos_themselves() -> None:
    of = street(places=80, views=4)
    factor = calibrate(of).radius_factor
    inside = []
    for one in asked(of):
        if one.outcome != "absent" and not one.disturbed:
            position = locate(one.hits[:LOCATE_BY], radius_factor=factor)
            assert position is not None
            assert one.photo.lat is not None
            off_m = haversine_m(one.photo.lat, one.photo.lon or 0, position.lat, position.lon)
            inside.append(float(off_m) <= position.radius_m)
    assert len(inside) == QUERIES
    assert np.mean(inside) == pytest.approx(0.68, abs=0.02)


def test_the_radius_keeps_within_bounds() -> None:
    one_fix = [shot(f"{p:03}-{v}", 300.0 * p) for p in range(30) for v in range(3)]
    assert calibrate(collection(one_fix, looks(30, 3))).radius_factor == 0.4
    assert calibrate(street(spread=4.0)).radius_factor == 2.0


def test_without_positions_the_radius_stays() -> None:
    photos = [shot(f"{i:03}") for i in range(60)]
    places = {photo.id: f"place {i // 3}" for i, photo in enumerate(photos)}
    found = calibrate(collection(photos, looks(20, 3), rule="folder", places=places))
    assert (found.reason, found.radius_factor, found.named) == (None, 1.0, True)


def test_least_number_of_photos_is_documented() -> None:
    assert LEAST == 40

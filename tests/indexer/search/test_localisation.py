import cmath
import math

import pytest

from indexer.answers import PhotoHit, Place
from indexer.geo import from_local, haversine_m
from indexer.places.assign import place_id
from indexer.search.localisation import group_hits, locate

HERE = (52.0, 0.1)


def hit(
    score: float, east: float, north: float = 0.0, *, about: tuple[float, float] = HERE, id: str = ""
) -> PhotoHit:
    lat, lon = from_local(east, north, *about)
    return PhotoHit(id or f"{east}/{north}", "a.jpg", score, lat=lat, lon=lon)


def off_m(hits: list[PhotoHit], east: float, north: float = 0.0, about: tuple[float, float] = HERE) -> float:
    found = locate(hits)
    if found is None:
        return float("inf")
    return float(haversine_m(found.lat, found.lon, *from_local(east, north, *about)))


def test_hits_without_position_give_none() -> None:
    assert locate([]) is None
    assert locate([PhotoHit("a", "a.jpg", 0.9)]) is None


def test_a_single_hit_is_the_position() -> None:
    found = locate([PhotoHit("b", "b.jpg", 0.9), hit(0.8, 0)])
    assert found is not None
    assert (found.lat, found.lon) == pytest.approx(HERE)
    assert found.radius_m == pytest.approx(25.0)


def test_equal_hits_meet_in_the_middle() -> None:
    """Spread σ = 10 m, two hits: √((10 + 15/√2)² + 20²)."""
    hits = [hit(0.5, -10), hit(0.5, 10)]
    found = locate(hits)
    assert found is not None
    assert off_m(hits, 0) < 0.01
    assert found.radius_m == pytest.approx((20.6066**2 + 400) ** 0.5, abs=1e-2)


def test_the_better_hit_draws_the_position() -> None:
    hits = [hit(0.9, 0), hit(0.7, 30), hit(0.5, 40)]
    assert off_m(hits, 0) < off_m(hits, 30)


def test_a_group_outweighs_a_lone_better_hit() -> None:
    group = [hit(0.70, 1000 + i, id=str(i)) for i in range(4)]
    others = [hit(0.4, 3000 * i) for i in range(2, 8)]
    assert off_m([hit(0.71, 0), *group, *others], 1001.5) < 1


def test_a_clear_winner_outweighs_a_crowd_of_poor_hits() -> None:
    crowd = [hit(0.4, 1000 + i, id=str(i)) for i in range(10)]
    assert off_m([hit(0.9, 0), *crowd], 0) < 0.01


@pytest.mark.parametrize("level", [0.0, 0.3, -0.5])
def test_only_differences_of_scores_count(level: float) -> None:
    scores = (0.6, 0.58, 0.5, 0.3)
    plain = locate([hit(score, 10 * i) for i, score in enumerate(scores)])
    raised = locate([hit(score + level, 10 * i) for i, score in enumerate(scores)])
    assert plain is not None
    assert raised is not None
    assert (raised.lat, raised.lon, raised.radius_m) == pytest.approx((plain.lat, plain.lon, plain.radius_m))


def test_the_order_of_hits_does_not_matter() -> None:
    hits = [hit(0.5, 0), hit(0.6, 15), hit(0.55, 3000), hit(0.4, 30)]
    assert locate(hits) == locate(hits[::-1])


@pytest.mark.parametrize("about", [(-17.0, 180.0), (-17.0, -179.99999), (89.9, 30.0)])
def test_nothing_happens_at_the_antimeridian(about: tuple[float, float]) -> None:
    hits = [hit(0.5, -20, about=about), hit(0.5, 20, about=about)]
    found = locate(hits)
    assert found is not None
    assert off_m(hits, 0, about=about) < 0.1
    assert -180 <= found.lon <= 180
    assert found.radius_m < 60


def test_a_wider_group_is_less_sure() -> None:
    narrow, wide = locate([hit(0.5, -2), hit(0.5, 2)]), locate([hit(0.5, -20), hit(0.5, 20)])
    assert narrow is not None
    assert wide is not None
    assert narrow.radius_m < wide.radius_m


def place(id: str) -> Place:
    return Place(id, f"name of {id}", 1.0, 2.0, 3)


def test_places_are_ranked_by_their_best_hit() -> None:
    hits = [
        hit(0.5, 0, id="a"),
        hit(0.9, 1, id="b"),
        hit(0.7, 2, id="c"),
        hit(0.8, 3, id="d"),
        hit(0.6, 4, id="e"),
    ]
    of = {"a": place("x"), "b": place("y"), "c": place("x"), "d": place("z"), "e": place("y")}
    found = group_hits(hits, of.get)
    assert [(p.id, p.score, [h.id for h in p.photos]) for p in found] == [
        ("y", 0.9, ["b", "e"]),
        ("z", 0.8, ["d"]),
        ("x", 0.7, ["c", "a"]),
    ]
    assert (found[0].name, found[0].lat, found[0].lon) == ("name of y", 1.0, 2.0)
    assert (found[0].confidence, found[0].distance_m) == (None, None)


def test_photo_without_place_is_its_own_place() -> None:
    (found,) = group_hits([hit(0.5, 0, id="a")], lambda _: None)
    assert (found.id, found.name) == (place_id("a"), None)
    assert (found.lat, found.lon) == pytest.approx(HERE)


def test_equal_places_are_ordered_by_id() -> None:
    of = {"a": place("y"), "b": place("x")}
    found = group_hits([hit(0.5, 0, id="a"), hit(0.5, 0, id="b")], of.get)
    assert [p.id for p in found] == ["x", "y"]


def looking(score: float, heading: float | None, east: float = 0.0) -> PhotoHit:
    found = hit(score, east, id=f"{score} {heading}")
    return PhotoHit(found.id, found.path, score, lat=found.lat, lon=found.lon, heading=heading)


def heading_of(*hits: PhotoHit) -> float | None:
    found = locate(hits)
    return None if found is None else found.heading


def test_the_heading_is_the_mean_across_north() -> None:
    assert heading_of(looking(0.5, 350), looking(0.5, 20)) == pytest.approx(5.0)
    assert heading_of(looking(0.5, 355)) == pytest.approx(355.0)


def test_the_better_hit_draws_the_heading_by_its_weight_squared() -> None:
    """Scores .52 and .5 with a temperature of .01 weigh 1 and e⁻²."""
    found = heading_of(looking(0.52, 0), looking(0.5, 40))
    weight = math.exp(-4)
    vector = 1 + weight * cmath.exp(1j * math.radians(40))
    assert found == pytest.approx(math.degrees(cmath.phase(vector)))


def test_views_that_disagree_have_no_heading() -> None:
    assert heading_of(*(looking(0.5, direction) for direction in (0, 90, 180, 270))) is None
    assert heading_of(looking(0.5, 0), looking(0.5, 90)) is None
    assert heading_of(looking(0.9, 0), looking(0.4, 90), looking(0.4, 180)) == pytest.approx(0, abs=0.5)


def test_photos_without_a_heading_speak_against_one() -> None:
    assert heading_of(looking(0.5, None)) is None
    assert heading_of(looking(0.5, 10), looking(0.5, None)) is None
    assert heading_of(looking(0.9, 10), looking(0.4, None), looking(0.4, None)) == pytest.approx(10)


def test_photos_elsewhere_do_not_change_the_heading() -> None:
    elsewhere = [looking(0.5, 180, east=3000.0 * i) for i in range(1, 4)]
    assert heading_of(looking(0.51, 90), looking(0.505, 90), *elsewhere) == pytest.approx(90)


def test_the_radius_takes_the_factor_that_was_calibrated() -> None:
    hits = [hit(0.5, -10), hit(0.5, 10)]
    plain, halved = locate(hits), locate(hits, radius_factor=0.5)
    assert plain is not None
    assert halved is not None
    assert (halved.lat, halved.lon) == (plain.lat, plain.lon)
    assert halved.radius_m == pytest.approx(plain.radius_m / 2)

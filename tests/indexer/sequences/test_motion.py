"""How a camera may move: each model against loops over all pairs of photos."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.errors import UsageError
from indexer.geo import from_local, haversine_m
from indexer.sequences import motion
from indexer.sequences.motion import (
    BLUR_M,
    TURN,
    UNKNOWN_STEP_M,
    WINDOW,
    MetricMotion,
    Motion,
    OrderedMotion,
    Step,
)

Floats = NDArray[np.float64]

LAT, LON = 52.0, 0.25


def belief_of(ways: int, photos: int, seed: int = 0) -> Floats:
    values = np.random.default_rng(seed).random((ways, photos))
    return np.asarray(values / values.sum() * 0.9)


def naive_boxes(belief: Floats, lengths: list[int], first: int, last: int) -> Floats:
    """Σ over photos x and directions, one by one."""
    traverse = np.repeat(np.arange(len(lengths)), lengths)
    count = len(traverse)
    moved = np.zeros_like(belief)
    for way, sign in ((0, 1), (1, -1)):
        for x in range(count):
            start = (1 - TURN) * belief[way, x] + TURN * belief[1 - way, x]
            for ahead in range(first, last + 1):
                y = x + sign * ahead
                if 0 <= y < count and traverse[y] == traverse[x]:
                    moved[way, y] += start / (last - first + 1)
    return moved


@pytest.mark.parametrize("lengths", [[1], [7], [3, 1, 20, 2]])
@pytest.mark.parametrize(
    ("photos", "window"), [(None, WINDOW), (0.0, (0, 1)), (0.66, (0, 2)), (1.5, (0, 4)), (30.0, (0, 61))]
)
def test_boxes_along_traverses(lengths: list[int], photos: float | None, window: tuple[int, int]) -> None:
    ordered = OrderedMotion(lengths)
    assert (ordered.ways, ordered.photos) == (2, sum(lengths))
    belief = belief_of(2, sum(lengths))
    moved, astray = ordered.move(belief, Step(photos=photos)).forward(belief)
    np.testing.assert_allclose(moved, naive_boxes(belief, lengths, *window), atol=1e-12)
    assert astray == 0.0


def offset_places(offsets: Floats) -> tuple[Floats, Floats]:
    places = np.array([from_local(east, north, LAT, LON) for east, north in offsets])
    return places[:, 0], places[:, 1]


def naive_metric(
    belief: Floats, lat: Floats, lon: Floats, free: float, blur: float, by: tuple[float, float]
) -> Floats:
    moved = np.zeros_like(belief)
    for x in range(len(lat)):
        if np.isnan(lat[x]):
            continue
        at = from_local(*by, float(lat[x]), float(lon[x]))
        weights = {}
        for y in range(len(lat)):
            away = float(haversine_m(*at, lat[y], lon[y])) if np.isfinite(lat[y]) else np.inf
            if away <= free + 3 * blur:
                weights[y] = np.exp(-0.5 * (max(away - free, 0) / blur) ** 2)
        for y, weight in weights.items():
            moved[0, y] += belief[0, x] * weight / sum(weights.values())
    return moved


@pytest.mark.parametrize(
    ("step", "free", "blur", "by"),
    [
        (Step(), UNKNOWN_STEP_M, BLUR_M, (0.0, 0.0)),
        (Step(metres=0.0), 0.0, BLUR_M, (0.0, 0.0)),
        (Step(metres=60.0), 60.0, BLUR_M, (0.0, 0.0)),
        (Step(offset_m=(30.0, -40.0)), 0.0, np.hypot(10, 5), (30.0, -40.0)),
    ],
)
def test_metres_between_photos(step: Step, free: float, blur: float, by: tuple[float, float]) -> None:
    lat, lon = offset_places(np.random.default_rng(1).random((60, 2)) * 300)
    lat[7] = lon[7] = np.nan
    metric = MetricMotion(lat, lon)
    belief = belief_of(1, 60)
    moved, astray = metric.move(belief, step).forward(belief)
    np.testing.assert_allclose(moved, naive_metric(belief, lat, lon, free, blur, by), atol=1e-9)
    assert astray == pytest.approx(belief[0, 7])


def test_step_to_no_photo_leaves_the_map() -> None:
    lat, lon = offset_places(np.array([[0.0, 0.0], [20.0, 0.0]]))
    metric = MetricMotion(lat, lon)
    belief = np.array([[0.5, 0.25]])
    moved, astray = metric.move(belief, Step(offset_m=(500.0, 0.0))).forward(belief)
    assert (moved.sum(), astray) == (0.0, 0.0)
    moved, astray = metric.move(belief, Step(offset_m=(20.0, 0.0))).forward(belief)
    assert moved[0, 1] > 0.45
    assert moved.sum() + astray == pytest.approx(0.75)


@pytest.mark.parametrize("limit", ["MOST_STATES", "MOST_PAIRS"])
def test_a_metric_step_starts_from_the_likeliest_photos(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    lat, lon = offset_places(np.stack([np.arange(40) * 1000.0, np.zeros(40)], axis=1))
    monkeypatch.setattr(motion, limit, 3)  # each photo reaches itself alone
    belief = belief_of(1, 40)
    moved, astray = MetricMotion(lat, lon).move(belief, Step()).forward(belief)
    kept = np.argsort(-belief[0])[:3]
    np.testing.assert_allclose(moved[0, kept], belief[0, kept])
    assert np.count_nonzero(moved) == 3
    assert astray == pytest.approx(belief.sum() - belief[0, kept].sum())


def metric_map() -> MetricMotion:
    lat, lon = offset_places(np.random.default_rng(2).random((25, 2)) * 200)
    return MetricMotion(lat, lon)


@pytest.mark.parametrize(
    ("model", "step"),
    [
        (OrderedMotion([4, 9, 1]), Step()),
        (OrderedMotion([14]), Step(photos=1.2)),
        (metric_map(), Step(metres=15.0)),
        (metric_map(), Step(offset_m=(40.0, 90.0))),
    ],
)
def test_backward_is_the_expectation_that_forward_spreads(model: Motion, step: Step) -> None:
    """Σ_y forward(b)(y)·v(y) + left·off = Σ_x b(x)·backward(v)(x), for any b and v."""
    belief, value = belief_of(model.ways, model.photos), belief_of(model.ways, model.photos, 5)
    move = model.move(belief, step)
    moved, astray = move.forward(belief)
    left = belief.sum() - moved.sum() - astray
    spread = (moved * value).sum() + left * 0.3 + astray * 0.7
    assert (belief * move.backward(value, 0.3, 0.7)).sum() == pytest.approx(spread, abs=1e-12)


def test_near_photos_of_both_motions() -> None:
    ordered = OrderedMotion([3, 10])
    assert [ordered.near(photo).tolist() for photo in (0, 2, 3, 7, 12)] == [
        [0, 1, 2],
        [0, 1, 2],
        [3, 4, 5],
        [5, 6, 7, 8, 9],
        [10, 11, 12],
    ]
    assert ordered.ahead(np.array([0, 2, 3, 12]), 1).tolist() == [1, -1, 4, -1]
    lat, lon = offset_places(np.array([[0.0, 0.0], [24.9, 0.0], [25.2, 0.0], [0.0, 0.0]]))
    lat[3] = lon[3] = np.nan
    metric = MetricMotion(lat, lon)
    assert [metric.near(photo).tolist() for photo in range(4)] == [[0, 1], [0, 1, 2], [1, 2], [3]]


@pytest.mark.parametrize("lon", [179.9999, -179.9999])
def test_metres_across_the_antimeridian(lon: float) -> None:
    metric = MetricMotion(np.array([0.0, 0.0]), np.array([179.9999, -179.9999]))  # 22 m apart
    belief = np.array([[0.5, 0.0]]) if lon > 0 else np.array([[0.0, 0.5]])
    by = 22.24 if lon > 0 else -22.24
    moved, _ = metric.move(belief, Step(offset_m=(by, 0.0))).forward(belief)
    assert moved[0].argmax() == (1 if lon > 0 else 0)
    assert metric.near(0).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"metres": -1.0}, "a step's photos and metres must not be less than 0"),
        ({"photos": -1.0}, "a step's photos and metres must not be less than 0"),
        ({"metres": float("nan")}, "a step must have finite numbers"),
        ({"offset_m": (0.0, float("inf"))}, "a step must have finite numbers"),
        ({"cut": 1.1}, "a step's cut and novelty must be 0 to 1, got 1.1 and 1"),
        ({"novelty": -0.1}, "a step's cut and novelty must be 0 to 1, got 0 and -0.1"),
    ],
)
def test_invalid_steps_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Step(**values)


def test_a_step_that_reaches_more_pairs_than_allowed_from_any_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion, "MOST_PAIRS", 5)
    belief = belief_of(1, 25)
    moved, astray = metric_map().move(belief, Step(metres=1e9)).forward(belief)
    assert moved.sum() == 0
    assert astray == pytest.approx(belief.sum())


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (Step(metres=3.0), Step(metres=4.0), Step(metres=7.0)),
        (Step(offset_m=(3.0, 4.0)), Step(offset_m=(1.0, -4.0)), Step(offset_m=(4.0, 0.0))),
        (Step(offset_m=(3.0, 4.0)), Step(metres=1.0), Step(metres=6.0)),
        (Step(), Step(metres=1.0), Step(metres=UNKNOWN_STEP_M + 1)),
        (Step(photos=1.0, metres=0.0), Step(photos=2.0, metres=0.0), Step(photos=3.0, metres=0.0)),
        (Step(photos=1.0, metres=0.0), Step(metres=0.0), Step(metres=0.0)),
        (Step(metres=0.0, cut=0.5), Step(metres=0.0, cut=0.5), Step(metres=0.0, cut=0.75)),
        (Step(metres=0.0, novelty=0.2), Step(metres=0.0, novelty=0.6), Step(metres=0.0, novelty=0.6)),
    ],
)
def test_two_steps_as_one(one: Step, other: Step, both: Step) -> None:
    assert one.then(other) == both

"""Motion models of a camera over the photos of a map: along a traverse, or in metres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import KDTree

from indexer.errors import UsageError
from indexer.geo import EARTH_RADIUS_M, chord_m, earth_points, haversine_m
from indexer.options import PLACE_RADIUS_M

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WINDOW = (-2, 9)
"""Window of photos further along a traverse if the speed is unknown (Xu et al. 2021, whose box is [-2, 10)).
"""
TURN = 0.05
"""Probability that a camera turns round along a traverse between two frames."""
NEAR_FRAMES = 2
"""Photos before and after one that show the same place, in a traverse."""
NEAR_M = PLACE_RADIUS_M
"""Distance of photos that show the same place, in metres."""
UNKNOWN_STEP_M = 25.0
"""Motion in metres if nothing is known."""
BLUR_M = 10.0
"""Error of a position, in metres: of a photo, and of the spot of a frame."""
TURNED = 0.1
"""Error of odometry, as a share of the distance."""
MOST_STATES, MOST_PAIRS = 512, 2_000_000
"""Metric model: most photos that a step starts from, and most pairs of photos it considers."""


@dataclass(frozen=True)
class Step:
    """The known motion of a camera since the previous frame. Raises UsageError for impossible values."""

    photos: float | None = None
    """Estimated photos of a traverse passed, in either direction; None if unknown."""
    metres: float | None = None
    """Upper bound in metres; None if unknown."""
    offset_m: tuple[float, float] | None = None
    """Metres east and north; `metres` is ignored if this is given."""
    cut: float = 0.0
    """Probability that the camera is somewhere else altogether."""
    novelty: float = 1.0
    """Share of the frame that the previous one did not show, 0 to 1."""

    def __post_init__(self) -> None:
        given = (self.photos, self.metres, *(self.offset_m or ()))
        if not all(value is None or np.isfinite(value) for value in given):
            raise UsageError(f"a step must have finite numbers, got {given}")
        if min(self.photos or 0.0, self.metres or 0.0) < 0:
            raise UsageError("a step's photos and metres must not be less than 0")
        if not (0 <= self.cut <= 1 and 0 <= self.novelty <= 1):
            raise UsageError(
                f"a step's cut and novelty must be 0 to 1, got {self.cut:g} and {self.novelty:g}"
            )

    def then(self, other: Step) -> Step:
        """Return both steps as one, for a frame that could not be read."""
        both = (self.photos, other.photos)
        photos = None if None in both else sum(value or 0.0 for value in both)
        cut = 1 - (1 - self.cut) * (1 - other.cut)
        novelty = max(self.novelty, other.novelty)
        if self.offset_m is not None and other.offset_m is not None:
            east, north = (sum(pair) for pair in zip(self.offset_m, other.offset_m, strict=True))
            return Step(photos, None, (east, north), cut, novelty)
        return Step(photos, self._length() + other._length(), None, cut, novelty)

    def _length(self) -> float:
        if self.offset_m is not None:
            return float(np.hypot(*self.offset_m))
        return UNKNOWN_STEP_M if self.metres is None else self.metres


class Move(Protocol):
    """Probabilities P(y | x) of one step from state x to state y; the rest to 1 leads off the map."""

    def forward(self, belief: Floats) -> tuple[Floats, float]:
        """Return Σ_x belief(x) P(y | x), for each y (K N), and the belief in states with unknown motion."""

    def backward(self, value: Floats, off: float, anywhere: float) -> Floats:
        """Return Σ_y P(y | x) value(y), for each x (K N); leaving the map has the value `off`.

        `anywhere` is the value of a state with unknown motion.
        """


class Motion(Protocol):
    """The motion of a camera between two frames. A belief is K N: K directions at each of N photos."""

    ways: int
    """K."""

    @property
    def photos(self) -> int:
        """N."""

    def move(self, belief: Floats, step: Step) -> Move:
        """Return the probabilities of a step from where the camera is believed to be."""

    def near(self, photo: int) -> Ints:
        """Return the photos that show the place of a photo, including itself."""


class OrderedMotion:
    """Motion along traverses: photos in order, in both directions (K = 2); no step changes the traverse.

    P(y | x) is a box: 1/(b − a + 1) for a photo a to b further on in the camera's direction, which stays with
    probability 1 − TURN. With `Step.photos` = g the box is [0, 2g + 1], rounded: up to twice the estimate
    plus one; otherwise it is WINDOW. Steps beyond an end of the traverse leave the map.
    """

    ways = 2

    def __init__(self, lengths: Sequence[int]) -> None:
        """Traverses with these numbers of photos, numbered one after another."""
        ends = np.cumsum(lengths, dtype=np.int64)
        self._start = np.repeat(ends - np.asarray(lengths, np.int64), lengths)
        self._end = np.repeat(ends, lengths)

    @property
    def photos(self) -> int:
        return len(self._start)

    def move(self, belief: Floats, step: Step) -> Move:  # noqa: ARG002
        window = WINDOW if step.photos is None else (0, int(2 * step.photos + 0.5) + 1)
        return _Boxes(self._start, self._end, window)

    def ahead(self, photos: Ints, gap: int) -> Ints:
        """The photos this many further on; -1 beyond the end of the traverse."""
        return np.where(photos + gap < self._end[photos], photos + gap, -1)

    def near(self, photo: int) -> Ints:
        first = max(photo - NEAR_FRAMES, int(self._start[photo]))
        return np.arange(first, min(photo + NEAR_FRAMES + 1, int(self._end[photo])))


class _Boxes:
    def __init__(self, start: Ints, end: Ints, window: tuple[int, int]) -> None:
        self._start, self._end, self._window = start, end, window

    def forward(self, belief: Floats) -> tuple[Floats, float]:
        first, last = self._window
        turned = (1 - TURN) * belief + TURN * belief[::-1]
        return np.stack([self._box(turned[0], -last, -first), self._box(turned[1], first, last)]), 0.0

    def backward(self, value: Floats, off: float, anywhere: float) -> Floats:  # noqa: ARG002
        first, last = self._window
        ones = np.ones_like(value[0])
        reached = [
            self._box(row, *box) + (1 - self._box(ones, *box)) * off
            for row, box in zip(value, ((first, last), (-last, -first)), strict=True)
        ]
        return (1 - TURN) * np.stack(reached) + TURN * np.stack(reached[::-1])

    def _box(self, values: Floats, first: int, last: int) -> Floats:
        """Σ values[i + first … i + last] / (last − first + 1) for each i, within its traverse."""
        at = np.arange(len(values))
        sums = np.concatenate([[0.0], np.cumsum(values)])
        upper = np.clip(at + last + 1, self._start, self._end)
        lower = np.clip(at + first, self._start, self._end)
        return np.asarray(np.maximum(sums[upper] - sums[lower], 0.0) / (last - first + 1), np.float64)


class MetricMotion:
    """Motion in metres between photos with positions, in any order (K = 1).

    P(y | x) ∝ exp(−½(e/σ)²). With `Step.metres` = u (UNKNOWN_STEP_M if unknown) e is the excess of the
    photos' distance over u, and σ = BLUR_M. With `Step.offset_m` e is the distance of y from x moved by the
    offset, and σ² = BLUR_M² + (TURNED·u)². If no photo lies within 3σ, the step leads off the map.

    A step starts from the MOST_STATES most probable photos, or fewer if they would have more than MOST_PAIRS
    neighbours. `SequenceFilter` spreads the belief in all others over the map. A photo without a position is
    never reached by a step.
    """

    ways = 1

    def __init__(self, lat: Floats, lon: Floats) -> None:
        """Photos at these positions in degrees (N), NaN if unknown."""
        self._lat, self._lon = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
        self._placed = np.flatnonzero(np.isfinite(self._lat) & np.isfinite(self._lon))
        self._points = earth_points(self._lat[self._placed], self._lon[self._placed])
        self._tree = KDTree(self._points)

    @property
    def photos(self) -> int:
        return len(self._lat)

    def move(self, belief: Floats, step: Step) -> Move:
        u, blur = UNKNOWN_STEP_M if step.metres is None else step.metres, BLUR_M
        if step.offset_m is not None:
            u, blur = 0.0, float(np.hypot(BLUR_M, TURNED * np.hypot(*step.offset_m)))
        states = self._likeliest(belief[0])
        lat, lon = _moved(self._lat[states], self._lon[states], step.offset_m)
        states, rows, columns = self._pairs(states, earth_points(lat, lon), chord_m(u + 3 * blur))
        away = haversine_m(lat[rows], lon[rows], self._lat[columns], self._lon[columns])
        chances = np.exp(-0.5 * (np.maximum(away - u, 0.0) / blur) ** 2)
        total = np.bincount(rows, chances, len(states))
        return _Pairs(states, csr_array((chances / total[rows], (rows, columns)), (len(states), self.photos)))

    def near(self, photo: int) -> Ints:
        if not np.isfinite(self._lat[photo]):
            return np.array([photo])
        point = earth_points(self._lat[photo], self._lon[photo])
        found = self._tree.query_ball_point(point, chord_m(NEAR_M) + 1e-6, return_sorted=True)
        return self._placed[np.asarray(found, np.int64)]

    def _likeliest(self, belief: Floats) -> Ints:
        """The MOST_STATES most probable photos with a position, most probable first."""
        weights = belief[self._placed]
        count = min(MOST_STATES, len(weights))
        chosen = np.argpartition(-weights, count - 1)[:count] if count else np.empty(0, np.int64)
        chosen = np.sort(chosen)
        return self._placed[chosen[np.argsort(-weights[chosen], kind="stable")]]

    def _pairs(self, states: Ints, points: Floats, reach: float) -> tuple[Ints, Ints, Ints]:
        """Most probable states within MOST_PAIRS: the states, and row and photo of each pair."""
        if not len(states):
            return states, np.empty(0, np.int64), np.empty(0, np.int64)
        counts = np.asarray(self._tree.query_ball_point(points, reach, return_length=True))
        kept = int(np.searchsorted(np.cumsum(counts), MOST_PAIRS, side="right"))
        states, counts = states[:kept], counts[:kept]
        found: Any = self._tree.query_ball_point(points[:kept], reach, return_sorted=True)
        columns = np.concatenate([np.empty(0, np.int64), *(np.asarray(f, np.int64) for f in found)])
        return states, np.repeat(np.arange(kept), counts), self._placed[columns]


class _Pairs:
    def __init__(self, states: Ints, chances: csr_array) -> None:
        self._states, self._chances = states, chances  # S, S N

    def forward(self, belief: Floats) -> tuple[Floats, float]:
        kept = belief[:, self._states]
        return np.asarray(kept @ self._chances), max(float(belief.sum() - kept.sum()), 0.0)

    def backward(self, value: Floats, off: float, anywhere: float) -> Floats:
        found = np.full_like(value, anywhere)
        stays = self._chances.sum(axis=1)
        found[0, self._states] = self._chances @ value[0] + (1 - stays) * off
        return found


def _moved(lat: Floats, lon: Floats, offset_m: tuple[float, float] | None) -> tuple[Floats, Floats]:
    """Positions in degrees, moved by metres east and north (a few kilometres at most)."""
    if offset_m is None:
        return lat, lon
    degrees = np.degrees(np.asarray(offset_m) / EARTH_RADIUS_M)
    return np.clip(lat + degrees[1], -90, 90), lon + degrees[0] / np.maximum(np.cos(np.radians(lat)), 1e-12)

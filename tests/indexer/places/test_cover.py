import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexer.places.cover import cover, nearest, neighbour_counts

anywhere = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
FloatArray = NDArray[np.float64]
# On a lattice of 10 m, no distance is so near to 25 m that rounding decides.
lattice = st.lists(st.tuples(*[st.integers(-6, 6)] * 3), min_size=1, max_size=60)
REACH = 25.0


def as_points(cells: list[tuple[int, ...]]) -> FloatArray:
    return np.asarray(np.array(cells, np.float64) * 10 + (6.3e6, 1e6, -4e6), np.float64)


def distances(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray(np.linalg.norm(a[:, None] - b[None], axis=2), np.float64)


def naive_cover(points: FloatArray) -> list[int]:
    """Greedy choice by the whole matrix, then each point to its nearest medoid."""
    near = distances(points, points) <= REACH
    uncovered = np.ones(len(points), bool)
    chosen = []
    while uncovered.any():
        counts = np.where(uncovered, (near & uncovered[None]).sum(axis=1), -1)
        chosen.append(int(counts.argmax()))
        uncovered &= ~near[chosen[-1]]
    ordered = np.array(sorted(chosen))
    closest = distances(points, points[ordered]).round(6).argmin(axis=1)
    return [int(ordered[column]) for column in closest]


@given(lattice)
@anywhere
def test_cover_equals_the_naive_choice(cells: list[tuple[int, ...]]) -> None:
    points = as_points(cells)
    assert cover(points, REACH).tolist() == naive_cover(points)


@given(lattice)
@anywhere
def test_counts_equal_the_matrix(cells: list[tuple[int, ...]]) -> None:
    points = as_points(cells)
    assert (
        neighbour_counts(points, REACH).tolist() == (distances(points, points) <= REACH).sum(axis=1).tolist()
    )


@given(lattice, lattice)
@anywhere
def test_nearest_equals_the_matrix(cells: list[tuple[int, ...]], others: list[tuple[int, ...]]) -> None:
    points, centres = as_points(cells), as_points(others)
    apart = distances(points, centres)
    for row, found in enumerate(nearest(points, centres, REACH).tolist()):
        best = apart[row].min()
        assert (found == -1) if best > REACH else apart[row, found] == pytest.approx(best)


def test_nothing_to_cover() -> None:
    assert cover(np.empty((0, 3)), REACH).shape == (0,)


def test_a_crowd_in_one_spot_is_one_ball() -> None:
    points = as_points([(0, 0, 0)]) + np.random.default_rng(1).random((3000, 3))
    assert len(set(cover(points, REACH).tolist())) == 1

"""Covering points with balls around some of them, each no wider than a given reach.

Points lie in space, (n, 3) in metres, sorted into cubes as wide as the reach, so that only a cube and
those touching it are ever compared: memory stays bounded however dense the points, and nothing happens
at the poles or the antimeridian.
"""

import heapq
from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Cube = tuple[int, int, int]

# Cells of a distance matrix held at a time: 32 MB.
_BLOCK = 4_000_000
_AROUND = tuple(product((-1, 0, 1), repeat=3))


def cover(points: FloatArray, reach: float) -> IntArray:
    """Choose medoids among the points and give each point the index of its nearest one, (n,).

    Greedy: the point with the most uncovered points within reach (itself included) becomes the next medoid
    and covers them; of equals the earlier point. Every point lies within `reach` of its medoid, no two
    medoids within reach of each other, and medoids map to themselves.
    """
    medoids = np.asarray(_choose(_Grid(points, reach), neighbour_counts(points, reach)), np.int64)
    if not len(medoids):
        return medoids
    medoids.sort()
    return np.asarray(medoids[nearest(points, points[medoids], reach)], np.int64)


def neighbour_counts(points: FloatArray, reach: float) -> IntArray:
    """How many points lie within `reach` of each, itself included, (n,)."""
    grid = _Grid(points, reach)
    counts = np.zeros(len(points), np.int64)
    for cube, own in grid.cubes.items():
        around = grid.around(cube)
        for block in _blocks(own, len(around)):
            counts[block] = np.count_nonzero(_squares(points[block], points[around]) <= reach**2, axis=1)
    return counts


def nearest(points: FloatArray, centres: FloatArray, reach: float) -> IntArray:
    """Index of the nearest centre within `reach` of each point, -1 where there is none, (n,)."""
    found = np.full(len(points), -1, np.int64)
    grid = _Grid(centres, reach)
    for cube, own in _Grid(points, reach).cubes.items():
        around = grid.around(cube)
        if not len(around):
            continue
        for block in _blocks(own, len(around)):
            squares = _squares(points[block], centres[around])
            best = squares.argmin(axis=1)
            within = squares[np.arange(len(block)), best] <= reach**2
            found[block] = np.where(within, around[best], -1)
    return found


class _Grid:
    """Indices of points by the cube they lie in."""

    def __init__(self, points: FloatArray, reach: float) -> None:
        self.points = points
        self.reach = reach
        self.cells = np.floor(points / reach).astype(np.int64)
        order = np.lexsort(self.cells.T)
        steps = np.flatnonzero(np.any(np.diff(self.cells[order], axis=0), axis=1)) + 1
        groups = np.split(order, steps) if len(points) else []
        self.cubes: dict[Cube, IntArray] = {self.cube_of(int(group[0])): np.sort(group) for group in groups}
        self._around: dict[Cube, IntArray] = {}

    def cube_of(self, point: int) -> Cube:
        x, y, z = self.cells[point].tolist()
        return x, y, z

    def around(self, cube: Cube) -> IntArray:
        """The points of a cube and of those touching it, in ascending order."""
        if cube not in self._around:
            x, y, z = cube
            near = [self.cubes.get((x + dx, y + dy, z + dz)) for dx, dy, dz in _AROUND]
            parts = [part for part in near if part is not None]
            self._around[cube] = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
        return self._around[cube]


def _choose(grid: _Grid, counts: IntArray) -> list[int]:
    """The medoids, in the order chosen; `counts` is used up."""
    uncovered = np.ones(len(counts), bool)
    # Counts only ever fall, so an entry that is out of date can be put back with its present count.
    waiting = [(-count, point) for point, count in enumerate(counts.tolist())]
    heapq.heapify(waiting)
    medoids = []
    while waiting:
        count, point = heapq.heappop(waiting)
        if not uncovered[point]:
            continue
        if -count != counts[point]:
            heapq.heappush(waiting, (-int(counts[point]), point))
            continue
        medoids.append(point)
        _take_out(grid, point, uncovered, counts)
    return medoids


def _take_out(grid: _Grid, medoid: int, uncovered: NDArray[np.bool_], counts: IntArray) -> None:
    """Mark what the medoid covers, and lower the counts of all that counted it."""
    if counts[medoid] == 1:
        uncovered[medoid] = False
        return
    points, reach = grid.points, grid.reach
    near = grid.around(grid.cube_of(medoid))
    near = near[uncovered[near]]
    members = near[_squares(points[medoid][None], points[near])[0] <= reach**2]
    uncovered[members] = False
    for own in _by_cube(grid, members):
        left = grid.around(grid.cube_of(int(own[0])))
        left = left[uncovered[left]]
        for block in _blocks(own, max(len(left), 1)):
            counts[left] -= np.count_nonzero(_squares(points[block], points[left]) <= reach**2, axis=0)


def _by_cube(grid: _Grid, members: IntArray) -> Iterator[IntArray]:
    cells = grid.cells[members]
    order = np.lexsort(cells.T)
    steps = np.flatnonzero(np.any(np.diff(cells[order], axis=0), axis=1)) + 1
    yield from np.split(members[order], steps)


def _blocks(rows: IntArray, width: int) -> Iterator[IntArray]:
    size = max(1, _BLOCK // width)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _squares(a: FloatArray, b: FloatArray) -> FloatArray:
    """Squared distances, (len(a), len(b)); the points all lie within a few reaches of a[0]."""
    # About a[0], numbers are small: at the earth's radius the expanded square would lose the metres.
    a, b = a - a[0], b - a[0]
    a2, b2 = (a**2).sum(axis=1, keepdims=True), (b**2).sum(axis=1, keepdims=True)
    # |a|² + |b|² − 2a·b as one product, since the matrices between would cost more than it.
    left = np.concatenate([-2 * a, a2, np.ones_like(a2)], axis=1)
    right = np.concatenate([b, np.ones_like(b2), b2], axis=1)
    return np.asarray(left @ right.T, np.float64)

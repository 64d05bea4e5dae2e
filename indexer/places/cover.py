"""Covering points with balls around some of them, by SciPy's KD-tree.

Points are (n, 3) in metres, so the poles and the antimeridian are not special.
"""

import heapq

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

TIES = 12
"""Nearest centres that are compared, so that of equals the first one is taken. No more medoids can be equally
near to a point, since they are farther than that from each other (the kissing number in space)."""


def cover(points: FloatArray, reach: float) -> IntArray:
    """Choose medoids among the points, and return the index of each point's nearest medoid, (n,).

    Greedy: the point with the most uncovered points within reach (itself included) becomes the next medoid
    and covers them; of equals the earlier point. Every point lies within `reach` of its medoid, no two
    medoids within reach of each other, and medoids map to themselves.
    """
    if not len(points):
        return np.empty(0, np.int64)
    tree = cKDTree(points)
    uncovered = np.ones(len(points), bool)
    # Counts of uncovered points only fall. So a popped point is counted again, and put back if it lost some.
    waiting = [(-count, point) for point, count in enumerate(neighbour_counts(points, reach).tolist())]
    heapq.heapify(waiting)
    medoids = []
    while waiting:
        count, point = heapq.heappop(waiting)
        if not uncovered[point]:
            continue
        near = np.array([point] if count == -1 else tree.query_ball_point(points[point], reach), np.int64)
        near = near[uncovered[near]]
        if len(near) < -count:
            heapq.heappush(waiting, (-len(near), point))
            continue
        medoids.append(point)
        uncovered[near] = False
    chosen = np.sort(np.array(medoids, np.int64))
    return np.asarray(chosen[nearest(points, points[chosen], reach)], np.int64)


def neighbour_counts(points: FloatArray, reach: float) -> IntArray:
    """Return the number of points within `reach` of each, itself included, (n,)."""
    if not len(points):
        return np.empty(0, np.int64)
    counts = cKDTree(points).query_ball_point(points, reach, return_length=True)
    return np.asarray(counts, np.int64)


def nearest(points: FloatArray, centres: FloatArray, reach: float) -> IntArray:
    """Return the index of the nearest centre within `reach` of each point, -1 if there is none, (n,)."""
    count = len(centres)
    if not count or not len(points):
        return np.full(len(points), -1, np.int64)
    bound = np.nextafter(reach, np.inf)  # the bound itself is excluded
    k = list(range(1, min(TIES, count) + 1))
    distances, indices = cKDTree(centres).query(points, k, distance_upper_bound=bound)
    first = np.where(distances <= distances[:, :1], indices, count).min(axis=1)
    return np.asarray(np.where(first < count, first, -1), np.int64)

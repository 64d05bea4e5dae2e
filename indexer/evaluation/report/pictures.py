"""Pictures of a report: chosen queries, thumbnails, and lines between matching points."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indexer.errors import NotFound
from indexer.evaluation import Evaluation, QueryResult
from indexer.index import Index
from model.errors import ImageError
from model.images import read_photo

SIDE = 240  # pixels of the longest side of a query and of its best match
SMALL = 144  # of the other answers
QUALITY = 70
SHOWN = 5  # nearest photos of a query
LINES = 80  # lines between two photos: more would hide them
_KEPT = 4096  # thumbnails remembered, 10 kB each

Floats = NDArray[np.float32]
Matcher = Callable[[Path, str], tuple[Floats, Floats] | None]
"""From a query's file and the id of a photo of the index to their matching points (n 2 each), x and y as
shares of the upright photos' width and height; None if unknown.
"""


@dataclass(frozen=True)
class Thumbnail:
    """A photo small enough to embed."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Shown:
    """A photo of the index beside a query."""

    path: str
    right: bool
    rank: int | None
    """Rank from 1; None for a right photo that was not found."""
    score: float | None
    distance_m: float | None
    inliers: int | None
    thumbnail: Thumbnail | None


@dataclass(frozen=True)
class Matched:
    """The query beside one photo, as tall as the taller one in units of their common width."""

    photo: Shown
    height: float
    lines: tuple[tuple[float, float, float, float], ...]
    """x and y in the query, then in the photo, whose x begin at 1."""
    matches: int | None
    """Number of matches, of which `lines` are some; None if unknown."""


@dataclass(frozen=True)
class Pictures:
    """Pictures of one query."""

    query: Thumbnail | None
    best: Matched | None
    """The nearest photo; None if the index is empty."""
    first_right: Matched | None
    """The best right photo that was found, if it is not the nearest and matches are known."""
    others: tuple[Shown, ...]


def worst_first(evaluation: Evaluation) -> list[QueryResult]:
    """Return wrongly answered queries, most confident first, then rightly answered ones, least confident
    first.
    """
    wrong = [result for result in evaluation.results if not result.right]
    right = [result for result in evaluation.results if result.right]
    wrong.sort(key=lambda result: -evaluation.sureness(result))
    right.sort(key=lambda result: evaluation.sureness(result))
    return wrong + right


def choose(
    evaluation: Evaluation, most: int, changed: Sequence[QueryResult] = (), seed: int = 0
) -> list[QueryResult]:
    """Choose the queries to show pictures of, worst first.

    Up to a third are those that another index answers differently, half of the rest are the worst, and the
    others are a sample by `seed`.
    """
    ordered = worst_first(evaluation)
    differing = {result.path for result in changed}
    chosen = [i for i, result in enumerate(ordered) if result.path in differing][: most // 3]
    shown = set(chosen)
    wrong = [i for i, result in enumerate(ordered) if not result.right and i not in shown]
    chosen += wrong[: (most - len(chosen) + 1) // 2]
    others = sorted(set(range(len(ordered))) - set(chosen))
    chosen += random.Random(seed).sample(others, min(most - len(chosen), len(others)))
    return [ordered[i] for i in sorted(chosen)]


class Album:
    """Makes the pictures of queries."""

    def __init__(self, index: Index, matches: Matcher | None = None) -> None:
        self._index = index
        self._matches = matches
        self._of_photo = lru_cache(maxsize=_KEPT)(self._photo)

    def pictures(self, result: QueryResult) -> Pictures:
        """Return pictures of a query, its nearest photos, and the best right one if it is not among them."""
        query = thumbnail(result.path)
        best = self._matched(result, query, 0) if result.hits else None
        others = [self._shown(result, rank, SMALL) for rank in range(1, min(SHOWN, len(result.hits)))]
        right, first_right = None, None
        if result.rank is None:
            right = self._missed(result)
        elif result.rank > 0:
            right = self._shown(result, result.rank, SMALL)
            if self._matches is not None:
                first_right = self._matched(result, query, result.rank)
        if first_right is not None:
            others = [other for other in others if other != right]
        elif right is not None and right not in others:
            others.append(right)
        return Pictures(query, best, first_right, tuple(others))

    def _shown(self, result: QueryResult, rank: int, side: int) -> Shown:
        hit = result.hits[rank]
        return Shown(
            path=hit.path,
            right=result.marks[rank],
            rank=rank + 1,
            score=hit.score,
            distance_m=result.distance_m(hit.lat, hit.lon),
            inliers=hit.inliers,
            thumbnail=self._of_photo(hit.id, side),
        )

    def _missed(self, result: QueryResult) -> Shown | None:
        """Return the nearest right photo of a query for which none was found."""
        rights = []
        for id in sorted(result.expected.photos or ()):
            with suppress(NotFound):  # removed since
                rights.append(self._index.photo(id))
        if not rights:
            return None
        far = [(result.distance_m(photo.lat, photo.lon), photo) for photo in rights]
        distance_m, photo = min(far, key=lambda pair: float("inf") if pair[0] is None else pair[0])
        return Shown(photo.path, True, None, None, distance_m, None, self._of_photo(photo.id, SMALL))

    def _matched(self, result: QueryResult, query: Thumbnail | None, rank: int) -> Matched:
        photo = self._shown(result, rank, SIDE)
        height = max(_tall(query), _tall(photo.thumbnail))
        found = None if self._matches is None else self._matches(result.path, result.hits[rank].id)
        if found is None or query is None or photo.thumbnail is None:
            return Matched(photo, height, (), None)
        there, here = (np.asarray(points, np.float64).reshape(-1, 2) for points in found)
        kept = np.linspace(0, len(there) - 1, min(LINES, len(there))).round().astype(int)
        scaled = np.hstack([there * [1, _tall(query)], here * [1, _tall(photo.thumbnail)] + [1, 0]])[kept]
        lines = tuple((a, b, c, d) for a, b, c, d in scaled.round(4).tolist())
        return Matched(photo, height, lines, len(there))

    def _photo(self, id: str, side: int) -> Thumbnail | None:
        try:
            return thumbnail(self._index.photo_file(id), side)
        except NotFound:
            return None


def thumbnail(file: Path, side: int = SIDE) -> Thumbnail | None:
    """Return an upright JPEG without metadata as a data URL; None if the file cannot be read."""
    try:
        pixels = read_photo(file, side)
    except ImageError:
        return None
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=QUALITY, optimize=True)
    uri = f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
    return Thumbnail(uri, pixels.shape[1], pixels.shape[0])


def _tall(photo: Thumbnail | None) -> float:
    """Return its height in units of its width; that of a placeholder if the photo is missing."""
    return 0.75 if photo is None else photo.height / photo.width

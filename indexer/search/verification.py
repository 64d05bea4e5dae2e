"""Whether two photos show the same thing: do their local features agree on one geometry?

The nearest photos by descriptor are looked at once more. Features that are each other's nearest among all of
the two photos are matched, and a homography is fitted to the matches by MAGSAC (Barath et al., CVPR 2019);
those that it maps onto each other are inliers. Source of the scheme: Taira et al., InLoc (CVPR 2018), there
with dense conv maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from indexer.answers import Match, PhotoHit
from indexer.storage.local_shards import read_local
from indexer.storage.rows import Slot
from model.local_features import STRIDE, Packed, extent, unpack

CANDIDATES = 20
"""Photos that are verified, the nearest first."""
WEIGHT = 0.25
"""w of `raised`."""
SHOWN = 60
"""Matches of a photo that an answer lists at most."""
_TOLERANCE = 1.5 * STRIDE  # pixels that a match may be off, a cell and a half
_LEAST = 4  # matches that a homography takes
_ROUNDS = 2000  # of MAGSAC, at most

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Matches:
    """Places in two photos that show the same by one geometry, n each: x, y as shares of width and height."""

    query: Floats
    photo: Floats

    def __len__(self) -> int:
        return len(self.query)

    def shown(self) -> tuple[Match, ...]:
        """At most SHOWN of them, evenly chosen, as an answer lists them."""
        chosen = np.linspace(0, len(self) - 1, min(len(self), SHOWN)).round().astype(int)
        both = np.concatenate([self.query, self.photo], 1)[chosen].astype(float).round(4)
        return tuple((qx, qy, px, py) for qx, qy, px, py in both.tolist())


@dataclass(frozen=True)
class Features:
    """One photo's local features: n positions in pixels (n 2) and unit codes (n 64)."""

    positions: Floats
    codes: Floats
    extent: tuple[float, float]
    """Width and height in the same pixels."""

    @classmethod
    def of(cls, packed: Packed) -> Features:
        """Of a photo's record."""
        return cls(*unpack(packed), extent(packed))


def stored_features(folder: Path, slots: Sequence[Slot]) -> list[Features]:
    """Local features of the descriptors in these slots, without those that have none. Raises IndexerError."""
    return [Features.of(local) for local in read_local(folder, slots) if local is not None]


def inliers(query: Features, photo: Features) -> int:
    """How many features of two photos agree on one geometry; 0 where fewer than four do."""
    return len(_agreeing(query, photo)[0])


def matches(query: Features, photo: Features) -> Matches:
    """Which they are."""
    left, right = _agreeing(query, photo)
    return Matches(
        (query.positions[left] / np.asarray(query.extent)).astype(np.float32),
        (photo.positions[right] / np.asarray(photo.extent)).astype(np.float32),
    )


def raised(cosine: float, agreeing: int) -> float:
    """A score that takes a photo's inliers in: 1 − (1 − cosine)·(1 + n)^−w, so that it never falls.

    What is left of likeness shrinks by a power, because the number of inliers grows with the size of the
    photos and the likeness of any two of a collection: what counts is how many times as many one candidate
    has as another. w = ¼ was taken for being good on all sets rather than best on one.
    """
    return float(1 - (1 - cosine) * (1 + agreeing) ** -WEIGHT)


def cosine(hit: PhotoHit) -> float:
    """What a photo's score was before it was raised."""
    return 1 - (1 - hit.score) * float((1 + (hit.inliers or 0)) ** WEIGHT)


class OwnPhotos:
    """Verifies what a photo of an index finds in it; see `indexer.confidence.self_queries.Verify`.

    Pairs are remembered: a photo is asked several times, with and without its surroundings.
    """

    def __init__(self, folder: Path, slots: Mapping[str, Sequence[Slot]]) -> None:
        """Take the folder of local features, and where those of each photo's views lie."""
        self._folder = folder
        self._slots = slots
        self._pairs: dict[tuple[str, str], int | None] = {}
        self._asked: tuple[str, list[Features]] = ("", [])

    def __call__(self, photo: str, hits: Sequence[PhotoHit]) -> list[PhotoHit]:
        self._look(photo, [hit.id for hit in hits[:CANDIDATES]])
        first = [self._verified(photo, hit) for hit in hits[:CANDIDATES]]
        return sorted([*first, *hits[CANDIDATES:]], key=lambda hit: (-hit.score, hit.id))

    def _verified(self, photo: str, hit: PhotoHit) -> PhotoHit:
        agreeing = self._pairs[photo, hit.id]
        if agreeing is None:
            return hit
        return replace(hit, score=raised(hit.score, agreeing), inliers=agreeing)

    def _look(self, photo: str, others: Sequence[str]) -> None:
        """Remember how many features of a photo agree with each of these, by the view that agrees most."""
        if self._asked[0] != photo:
            self._asked = (photo, stored_features(self._folder, self._slots[photo])[:1])
        views = [
            (other, slot)
            for other in others
            if (photo, other) not in self._pairs
            for slot in self._slots[other]
        ]
        self._pairs.update(dict.fromkeys((photo, other) for other, _ in views))
        for (other, _), local in zip(views, read_local(self._folder, [s for _, s in views]), strict=True):
            if local is not None and self._asked[1]:
                agreeing = inliers(self._asked[1][0], Features.of(local))
                self._pairs[photo, other] = max(agreeing, self._pairs[photo, other] or 0)


def _agreeing(query: Features, photo: Features) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    nothing = np.empty(0, np.intp)
    if not len(query.codes) or not len(photo.codes):
        return nothing, nothing
    likeness = query.codes @ photo.codes.T
    right, back = likeness.argmax(1), likeness.argmax(0)
    left = np.flatnonzero(back[right] == np.arange(len(right)))  # each other's nearest
    right = right[left]
    if len(left) < _LEAST:
        return nothing, nothing
    _, mask = cv2.findHomography(
        query.positions[left],
        photo.positions[right],
        cv2.USAC_MAGSAC,
        _TOLERANCE,
        maxIters=_ROUNDS,
        confidence=0.999,
    )
    if mask is None:
        return nothing, nothing
    agree = mask.ravel().astype(bool)
    if agree.sum() < _LEAST:
        return nothing, nothing
    return left[agree], right[agree]

"""Geometric verification: whether the local features of two photos agree on one geometry.

Features that are mutual nearest neighbours among those of two photos are matched, and MAGSAC fits a
homography to the matches (Barath et al., CVPR 2019). Matches that fit it are inliers. The scheme is that of
Taira et al., InLoc (CVPR 2018), which used dense conv maps.
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
from model.layers.local_features import STRIDE, Packed, extent, unpack

CANDIDATES = 20
"""Number of nearest photos to verify."""
WEIGHT = 0.25
"""w of `raised`."""
SHOWN = 60
"""Most matches of a photo in an answer."""
_TOLERANCE = 1.5 * STRIDE  # pixels that a match may be off: one and a half cells
_LEAST = 4  # least matches for a homography
_ROUNDS = 2000  # iterations of MAGSAC

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Matches:
    """Matching points of two photos, n each: x, y as shares of width and height."""

    query: Floats
    photo: Floats

    def __len__(self) -> int:
        return len(self.query)

    def shown(self) -> tuple[Match, ...]:
        """Return at most SHOWN of them, evenly chosen, for an answer."""
        chosen = np.linspace(0, len(self) - 1, min(len(self), SHOWN)).round().astype(int)
        both = np.concatenate([self.query, self.photo], 1)[chosen].astype(float).round(4)
        return tuple((qx, qy, px, py) for qx, qy, px, py in both.tolist())


@dataclass(frozen=True)
class Features:
    """Local features of one photo: n positions in pixels (n 2) and unit codes (n 64)."""

    positions: Floats
    codes: Floats
    extent: tuple[float, float]
    """Width and height in the same pixels."""

    @classmethod
    def of(cls, packed: Packed) -> Features:
        """Unpack a photo's record."""
        return cls(*unpack(packed), extent(packed))


def stored_features(folder: Path, slots: Sequence[Slot]) -> list[Features]:
    """Return the local features of the descriptors in these slots that have some. Raises IndexerError."""
    return [Features.of(local) for local in read_local(folder, slots) if local is not None]


def inliers(query: Features, photo: Features) -> int:
    """Return the number of inliers of two photos; 0 if below four."""
    return len(_agreeing(query, photo)[0])


def matches(query: Features, photo: Features) -> Matches:
    """Return the inliers of two photos."""
    left, right = _agreeing(query, photo)
    return Matches(
        (query.positions[left] / np.asarray(query.extent)).astype(np.float32),
        (photo.positions[right] / np.asarray(photo.extent)).astype(np.float32),
    )


def raised(cosine: float, agreeing: int) -> float:
    """Raise a score by inliers: 1 − (1 − cosine)·(1 + n)^−w. It never falls.

    The difference to 1 shrinks by a power, because the number of inliers grows with the size of the photos
    and the similarity of a collection: the ratio between candidates counts. w = ¼ is good on all data sets,
    and not the best on any single one.
    """
    return float(1 - (1 - cosine) * (1 + agreeing) ** -WEIGHT)


def cosine(hit: PhotoHit) -> float:
    """Return a photo's score before it was raised."""
    return 1 - (1 - hit.score) * float((1 + (hit.inliers or 0)) ** WEIGHT)


class OwnPhotos:
    """Verifies own photos; see `indexer.confidence.self_queries.Verify`.

    Pairs are remembered: a photo is queried several times, with and without its surroundings.
    """

    def __init__(self, folder: Path, slots: Mapping[str, Sequence[Slot]]) -> None:
        """Take the folder of local features, and the slots of each photo's views."""
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
        """Remember the inliers of a photo with each of these, by the view with the most."""
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
    left = np.flatnonzero(back[right] == np.arange(len(right)))  # mutual nearest neighbours
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

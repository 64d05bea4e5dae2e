"""Features that predict whether the first answer is right, for queries and for the index's own photos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.search.searcher import WEIGHED
from indexer.snapshots.store import Floats

CHANCE = 0.75
"""Quantile of the inliers of other verified photos; it stands for the agreement of any two photos."""
_SHARPNESS = 2.0
_LEAST_CONTRAST = 0.25
_MOST_LEAD = 1.5  # ln: photos of one day agree on far more features than photos of two days
_LEAST_WIDTH = 1e-3

Scores = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """Features that predict whether the first answer of a search is right.

    They stay the same if all scores of a query are shifted or scaled, as another season, camera or light
    does. So what they show for an index's own photos also holds for photos of another day.
    """

    contrast: float
    """How far the best score is above ordinary ones: (s₁ − median)/σ over a sample of all photos; σ is half
    of the range between the 16th and 84th percentile."""
    agreement: float
    """Share of the best place and its neighbourhood in the weight exp(2(s − s₁)/σ) of the best photos: near 1
    if no other place comes close."""
    lead: float | None = None
    """Inliers of the best photo against those of photos elsewhere: (1 + n₁)/(1 + n); n is the upper quartile
    of the other verified photos. None if the best photo was not verified."""

    def features(self) -> tuple[float, ...]:
        """Return the model's inputs; each raises confidence."""
        # Logarithms: a twofold contrast means the same at 2 as at 4, and the first inliers mean the most.
        known = (math.log(max(self.contrast, _LEAST_CONTRAST)), self.agreement)
        return known if self.lead is None else (*known, min(math.log(self.lead), _MOST_LEAD))


@dataclass(frozen=True)
class Level:
    """The level of ordinary scores of a query."""

    middle: float
    width: float
    """Half of the range between the 16th and 84th percentile: σ for normal scores."""

    @classmethod
    def of(cls, scores: Floats | Scores) -> Level:
        """Return the level of the scores (n) of a sample; of no scores, as if all were 0."""
        if not len(scores):
            return cls(0.0, _LEAST_WIDTH)
        low, middle, high = np.percentile(scores, (15.87, 50.0, 84.13)).tolist()
        # at least: identical photos have no spread, and then nothing stands out
        return cls(middle, max((high - low) / 2, _LEAST_WIDTH))


def weights(scores: Scores, level: Level) -> Scores:
    """Weights exp(2(s − s₁)/σ) of scores; s₁ is the best."""
    return np.asarray(np.exp(_SHARPNESS * (scores - scores.max()) / level.width), np.float64)


def evidence_of(scores: Scores, near: Mask, level: Level, agreeing: Sequence[int | None] = ()) -> Evidence:
    """Return the evidence of a search.

    Args:
        scores: cosines of the best photos (n ≥ 1), best first; only the first WEIGHED count.
        near: which of them show the first one's place or its neighbourhood; the first does.
        agreeing: inliers of each, if verified; they then decide which is first.
    """
    found = weights(np.asarray(scores[:WEIGHED], np.float64), level)
    agreement = float(found[near[:WEIGHED]].sum() / found.sum())
    contrast = (float(scores[0]) - level.middle) / level.width
    if not agreeing or agreeing[0] is None:
        return Evidence(contrast, agreement)
    elsewhere = [n for n, same in zip(agreeing, near, strict=False) if n is not None and not same]
    chance = float(np.quantile(elsewhere, CHANCE)) if elsewhere else 0.0
    return Evidence(contrast, agreement, (1 + agreeing[0]) / (1 + chance))


def share_out(left: float, places: Sequence[float], level: Level, most: float) -> list[float]:
    """Return probabilities of the further places, which share what is left.

    Args:
        left: the probability that the index has the place and that it is not the first.
        places: best scores of all further places, best first.
        most: upper bound of each: the probability of the first.
    """
    if not places:
        return []
    shares = weights(np.array(places), level)
    found: list[float] = np.minimum(left * shares / shares.sum(), most).tolist()
    return found

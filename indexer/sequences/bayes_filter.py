"""A Bayes filter for a moving camera, over the photos of a map and the state "off the map".

After M. Xu, N. Sünderhauf, M. Milford: "Probabilistic Visual Place Recognition for Hierarchical Localization"
(RA-L 2021), and their "Probabilistic Appearance-Invariant Topometric Localization with New Place Awareness"
(RA-L 2021) for the state off the map. Each frame is one step of

    belief ← normalise(likelihood · ((1 − ε) · moved belief + ε · prior)).

**Likelihood.** z is a photo's score minus the mean of the frame's scores, divided by their standard
deviation; so level and scale of the cosines do not matter. A photo of another place has z ~ N(0, 1), one of
the right place z ~ N(m, 1). m is how far photos of the map stand out for their own neighbours (`learn`); the
paper takes it from the first frame's scores instead. The likelihood ratio would be exp(m(z − m/2)). But off
the map, some photo always looks most similar, and stays so because frames resemble each other. Chance is
therefore set to a, the mean best of five photos (`motion.NEAR_FRAMES`), except for the first frame, and after
a cut by its probability:

    likelihood = exp(w · m · (z − (m + a)/2)) at a photo, 1 off the map.

If n local features of a photo match the frame's, its likelihood is multiplied by

    ((1 + n) / (1 + n₀))^(g·w), g = 2,

where n₀ is the 0.9 quantile over the compared photos: the matches that a near photo has by chance.

w, 0 to 1, is the share of the frame that the previous one did not show: a camera that stands still sees
nothing new, and its confidence must not grow.

**Prior and restarts.** The prior is `known_share` spread evenly over the photos, and the rest off the map. A
camera starts with it. With probability ε (RESTART) in each frame, or that of a cut if the frame looks nothing
like the previous one, it starts again: so it enters and leaves the map, and is found after it was carried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from indexer.answers import KNOWN_SHARE
from indexer.errors import UsageError
from indexer.sequences.motion import Floats, Ints, MetricMotion, Motion, Move, OrderedMotion, Step

RESTART = 0.05
"""ε: probability of a restart in each frame; the camera stays on or off the map for 20 frames or more."""
CHANCE = 1.163
"""a: the mean largest of five draws from N(0, 1)."""
AGREEMENT = 2.0
"""g: weight of the matches beyond chance."""
BY_CHANCE = 0.9
"""Quantile of the inliers of verified photos that counts as chance."""
LEAST_PHOTOS = 20
"""With fewer photos, scores have no usable spread, and the filter returns no confidence."""
LEAST_CONTRAST, MOST_CONTRAST = 1.0, 4.0
"""Bounds of m. Below, neighbours do not stand out enough to follow a camera; above, a frame of another day
seldom stands out so far, though neighbours of one drive may.
"""
USUAL_CONTRAST = 3.0
"""m if no photo has a neighbour to measure; three traverses had 2.3 to 3.9."""
MOST_REMEMBERED = 2**32
"""Bytes of beliefs kept for smoothing."""
GAPS = (1, 2, 3, 5, 8, 13, 21, 34)
"""Distances in photos that `learn` measures: a camera that passes more in a frame looks like a cut."""
_SAMPLE, _REFERENCE, _NEIGHBOURS = 512, 2048, 50
_NUMBERS = 2**25
"""Bytes of descriptors that `learn` holds at once."""


@dataclass(frozen=True)
class Likeness:
    """The similarity of a map's photos by their distance."""

    contrast: float
    """m: standard deviations by which a photo's neighbours stand out among all; a median."""
    by_gap: tuple[float, ...]
    """Median cosine, falling, of photos 0 and GAPS apart in a traverse; of a metric map for 0 and 1 only,
    where 1 is the most similar within NEAR_M.
    """
    neighbours: tuple[float, float]
    """Mean and standard deviation of the cosines of photos 1 to 3 apart."""
    others: tuple[float, float]
    """The same, of photos anywhere."""

    def step(self, cosine: float) -> Step:
        """Return the step that the cosine of two successive frames suggests.

        Photos passed: the distance of map photos that are as similar. Novelty: that distance, up to 1,
        because a neighbouring photo is all new. Cut, on a traverse only: Bayes' rule with RESTART as the
        prior, and normal distributions of `neighbours` and `others`. On a metric map a camera turns on the
        spot, and looking another way is no cut.
        """
        gaps = (0, *GAPS)[: len(self.by_gap)]
        passed = float(np.interp(-cosine, -np.array(self.by_gap), gaps))
        if len(self.by_gap) == 2:
            return Step(novelty=passed)
        same = _density(min(cosine, self.neighbours[0]), *self.neighbours)
        other = _density(max(cosine, self.others[0]), *self.others)
        cut = RESTART * other / (RESTART * other + (1 - RESTART) * same)
        return Step(photos=passed, cut=cut, novelty=min(1.0, max(passed, cut)))


def _density(value: float, mean: float, deviation: float) -> float:
    """Density of a normal distribution without 1/√2π; never 0."""
    deviation = max(deviation, 1e-6)
    return max(float(np.exp(-0.5 * ((value - mean) / deviation) ** 2)) / deviation, 1e-300)


def learn(vectors: Callable[[Ints], NDArray[np.float32]], motion: Motion) -> Likeness:
    """Measure the similarity of the map's photos on an evenly spaced sample.

    Args:
        vectors: returns the descriptors (n d, unit length) of photos by number.
        motion: which photos are neighbours.

    Raises:
        UsageError: successive photos are no more similar than others.
    """
    count = motion.photos
    sample = _evenly(count, _SAMPLE)
    own = vectors(sample)
    reference = _evenly(count, max(2, min(_REFERENCE, _NUMBERS // own.shape[1])))
    cosines = np.asarray(own @ vectors(reference).T, np.float64)
    cosines[sample[:, None] == reference[None]] = np.nan
    mean, deviation = _moments(cosines)
    others = _moments(cosines.reshape(1, -1))
    pairs = _pairs_by_gap(sample, motion, max(1, min(_NEIGHBOURS, _NUMBERS // own.size)))
    alike = [_cosines(own[rows], vectors(found)) for rows, found in pairs]
    if isinstance(motion, MetricMotion):
        alike, pairs = _best_only(alike, pairs)
    near = range(min(2, len(pairs)))
    standing = [(alike[g] - mean[pairs[g][0]]) / deviation[pairs[g][0]] for g in near]
    known = isinstance(motion, MetricMotion) or count < LEAST_PHOTOS
    contrast = _median(np.concatenate([np.empty(0), *standing]), USUAL_CONTRAST if known else 0.0)
    if count >= LEAST_PHOTOS and contrast < LEAST_CONTRAST:
        raise UsageError(
            "a camera cannot be followed in this index: its photos have no positions, and photos with "
            "successive names show no neighbouring places; query single frames instead"
        )
    medians = [1.0, *(_median(values, 0.0) for values in alike)]
    first = _moments(np.concatenate([np.zeros(0), *alike[:3]]).reshape(1, -1))
    return Likeness(
        min(max(contrast, LEAST_CONTRAST), MOST_CONTRAST),
        tuple(np.minimum.accumulate(medians).tolist()),
        (float(first[0][0]), float(first[1][0])),
        (float(others[0][0]), float(others[1][0])),
    )


def _evenly(count: int, most: int) -> Ints:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _moments(rows: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each row without NaN; 0 and 1 for a row of NaN."""
    count = np.isfinite(rows).sum(axis=1)
    mean = np.nansum(rows, axis=1) / np.maximum(count, 1)
    deviation = np.sqrt(np.nansum((rows - mean[:, None]) ** 2, axis=1) / np.maximum(count, 1))
    return mean, np.where(deviation > 0, deviation, 1.0)


def _cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> Floats:
    return np.asarray(np.einsum("nd,nd->n", left, right, dtype=np.float64), np.float64)


def _median(values: Floats, otherwise: float) -> float:
    return float(np.median(values)) if len(values) else otherwise


def _thinned(numbers: Ints, most: int) -> Ints:
    return numbers[_evenly(len(numbers), most)] if len(numbers) else numbers


def _pairs_by_gap(sample: Ints, motion: Motion, most: int) -> list[tuple[Ints, Ints]]:
    """Rows of the sample and their neighbours: GAPS further on in a traverse, else `most` that are near."""
    if isinstance(motion, OrderedMotion):
        ahead = [motion.ahead(sample, gap) for gap in GAPS]
        return [(np.flatnonzero(found >= 0), found[found >= 0]) for found in ahead]
    near = [motion.near(int(photo)) for photo in sample]
    near = [_thinned(found[found != photo], most) for found, photo in zip(near, sample, strict=True)]
    return [(np.repeat(np.arange(len(sample)), [len(found) for found in near]), np.concatenate(near))]


def _best_only(
    alike: list[Floats], pairs: list[tuple[Ints, Ints]]
) -> tuple[list[Floats], list[tuple[Ints, Ints]]]:
    """The most similar neighbour of each photo: others may look another way."""
    rows, found = pairs[0]
    order = np.lexsort((-alike[0], rows))
    first = order[np.unique(rows[order], return_index=True)[1]]
    return [alike[0][first]], [(rows[first], found[first])]


@dataclass(frozen=True)
class Belief:
    """The belief about the camera after a frame."""

    photos: Floats
    """Probability of each photo's place (N)."""
    off: float
    """Probability that the camera is off the map."""


@dataclass(frozen=True)
class _Frame:
    """Data of a frame for smoothing."""

    state: NDArray[np.float32]
    off: float
    likelihood: NDArray[np.float32]
    off_likelihood: float
    move: Move | None
    restart: float


class SequenceFilter:
    """The filter; `update` uses only the frames so far."""

    def __init__(
        self,
        motion: Motion,
        contrast: float,
        *,
        known_share: float = KNOWN_SHARE,
        remember: bool = False,
    ) -> None:
        """Start from the prior.

        Args:
            contrast: m, see `Likeness`.
            known_share: share of frames that show the map.
            remember: keep what `smoothed` needs.

        Raises:
            UsageError: the share is not between 0 and 1.
        """
        if not 0 < known_share < 1:
            raise UsageError(f"known_share must be more than 0 and less than 1, not {known_share:g}")
        self.motion = motion
        self._contrast = contrast
        self._prior = known_share / (motion.ways * max(motion.photos, 1))
        self._prior_off = 1 - known_share
        self._state = np.full((motion.ways, motion.photos), self._prior)
        self._off = self._prior_off
        self._frames: list[_Frame] = []
        self._began = False
        self._remember = remember

    def update(
        self, scores: Floats, step: Step | None = None, inliers: Mapping[int, int] | None = None
    ) -> Belief:
        """Add a frame and return the belief.

        Args:
            scores: similarity of the frame to each photo of the map (N), on any scale.
            step: the known motion since the last frame.
            inliers: number of matching local features, for the compared photos.

        Raises:
            UsageError: the numbers of scores and photos differ, or the memory for smoothing is full.
        """
        if scores.shape != (self.motion.photos,):
            raise UsageError(
                f"expected scores of {self.motion.photos} photos, got an array of {scores.shape}"
            )
        step = step or Step()
        move, restart = None, 1.0
        if self._began:
            move, restart = self.motion.move(self._state, step), max(RESTART, step.cut)
            self._predict(move, restart)
        self._began = True
        novelty, fresh = (1.0, 1.0) if move is None else (step.novelty, step.cut)
        likelihood, off_likelihood = likelihoods(scores, self._contrast, novelty, fresh, inliers or {})
        self._state = self._state * likelihood
        self._off *= off_likelihood
        total = self._state.sum() + self._off
        self._state /= total
        self._off = float(self._off / total)
        if self._remember:
            kept = self._state.astype(np.float32), self._off, likelihood.astype(np.float32), off_likelihood
            self._keep(_Frame(*kept, move, restart))
        return Belief(self._state.sum(axis=0), self._off)

    def _predict(self, move: Move, restart: float) -> None:
        moved, astray = move.forward(self._state)
        left = max(float(self._state.sum() - moved.sum()) - astray, 0.0)
        anywhere = restart + (1 - restart) * astray
        self._state = (1 - restart) * moved + anywhere * self._prior
        self._off = (1 - restart) * (self._off + left) + anywhere * self._prior_off

    def _keep(self, frame: _Frame) -> None:
        self._frames.append(frame)
        size = len(self._frames) * (frame.state.nbytes + frame.likelihood.nbytes)
        if size > MOST_REMEMBERED:
            raise UsageError(
                f"smoothing {len(self._frames)} frames over {self.motion.photos} photos takes more than "
                f"{MOST_REMEMBERED >> 30} GB: smooth fewer frames at a time"
            )

    def smoothed(self) -> list[Belief]:
        """Return the belief of every frame given all frames (forward-backward).

        belief_t ∝ filtered_t · value_t, with value_T = 1 and value_t(x) = Σ_y P(y | x) likelihood(y)
        value_{t+1}(y).
        """
        value, off = np.ones_like(self._state), 1.0
        beliefs: list[Belief] = []
        for frame in reversed(self._frames):
            state = frame.state * value
            total = float(state.sum() + frame.off * off)
            beliefs.append(Belief(state.sum(axis=0) / total, frame.off * off / total))
            if frame.move is not None:
                value, off = self._before(frame, frame.move, value, off)
        return beliefs[::-1]

    def _before(self, frame: _Frame, move: Move, value: Floats, off: float) -> tuple[Floats, float]:
        """Return the values before a frame from those after it, scaled to at most 1."""
        value, off = value * frame.likelihood, off * frame.off_likelihood
        anywhere = float(self._prior * value.sum() + self._prior_off * off)
        going_on = move.backward(value, off, anywhere)
        value = (1 - frame.restart) * going_on + frame.restart * anywhere
        off = (1 - frame.restart) * off + frame.restart * anywhere
        largest = max(float(value.max(initial=0.0)), off)
        return value / largest, off / largest


def likelihoods(
    scores: Floats,
    contrast: float,
    novelty: float = 1.0,
    fresh: float = 0.0,
    inliers: Mapping[int, int] = MappingProxyType({}),
) -> tuple[Floats, float]:
    """Likelihood of each photo (N) and of being off the map, scaled to at most 1.

    `fresh` is the probability that no frame came before: then no lookalike can have stayed.
    """
    scores = np.asarray(scores, np.float64)
    deviation = scores.std()
    z = (scores - scores.mean()) / deviation if deviation > 0 else np.zeros_like(scores)
    chance = (1 - fresh) * CHANCE
    exponents = contrast * (z - (contrast + chance) / 2)
    if inliers:
        agreeing = np.log1p(np.array(list(inliers.values()), np.float64))
        exponents[list(inliers)] += AGREEMENT * (agreeing - np.quantile(agreeing, BY_CHANCE))
    exponents *= novelty
    largest = max(float(exponents.max(initial=0.0)), 0.0)
    return np.exp(exponents - largest), float(np.exp(-largest))

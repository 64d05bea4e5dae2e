"""Follow a camera through an index: one answer for each frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from indexer.answers import KNOWN_SHARE, Answer, PhotoHit, Place, PlaceHit, Position
from indexer.confidence.calibration import KNOWN_FROM
from indexer.errors import ModelMismatch, UsageError
from indexer.filters import Filters
from indexer.geo import haversine_m
from indexer.places.assign import place_id
from indexer.search.localisation import GROUP_RADIUS_M, locate, rounded, with_distances
from indexer.search.searcher import PHOTOS_A_PLACE, Question, Searcher
from indexer.search.verification import CANDIDATES
from indexer.sequences.bayes_filter import LEAST_PHOTOS, Belief, Likeness, SequenceFilter, learn
from indexer.sequences.motion import Floats, MetricMotion, Step
from indexer.sequences.photo_map import Descriptor, MotionKind, PhotoMap
from model.embedder import Embedder, Seen
from model.errors import ImageError
from model.images import Source

SHOWN_FROM = 100
"""Least number of likely photos that places and position are computed from."""
UNCALIBRATED = "the confidence comes from the sequence and is not calibrated on this index"
TOO_FEW = f"an index of fewer than {LEAST_PHOTOS} photos has no confidence for a sequence"


@dataclass(frozen=True)
class FrameAnswer:
    """Where the camera was at a frame of a sequence."""

    frame: int
    """Number of the frame, from 0."""
    answer: Answer
    """Places by the probability that the camera is there, with scores of this frame only. `confidence` is the
    probability that it is at the first place or within NEAR_FRAMES photos (NEAR_M metres on a metric map) of
    its first photo. `known` is true if that is at least one half.
    """
    off_map: float | None
    """Probability that no photo of the index shows the place; None if `confidence` is."""

    def to_json(self) -> dict[str, Any]:
        """Return the answer's JSON values, with `frame` before and `off_map` after them."""
        return {"frame": self.frame, **self.answer.to_json(), "off_map": self.off_map}


@dataclass(frozen=True)
class _Frame:
    """Data of a frame that is kept."""

    number: int
    descriptor: Descriptor
    inliers: Mapping[int, int]
    """Inliers by the ids of the verified descriptors."""
    timings_ms: Mapping[str, float | None]


class Follower:
    """Follows one camera through an index, frame by frame; made by `Index.follow`.

    It uses the snapshot and the photos that were in the index when it was made. For one thread at a time.
    """

    def __init__(
        self,
        searcher: Searcher,
        embedder: Embedder,
        photos: PhotoMap,
        *,
        model: str,
        snapshot: str,
        k: int = 5,
        motion: MotionKind = "auto",
        known_share: float = KNOWN_SHARE,
        filters: Filters | None = None,
        verify: bool = True,
        remember: bool = False,
    ) -> None:
        """See `Index.follow`."""
        if k < 1:
            raise UsageError(f"`k` must be at least 1, got {k}")
        self._searcher, self._embedder, self._map = searcher, embedder, photos
        self._model, self._snapshot = model, snapshot
        self._k, self._filters = k, filters
        self._motion = photos.motion(motion)
        self.likeness: Likeness = learn(photos.vectors, self._motion)
        self._filter = SequenceFilter(
            self._motion, self.likeness.contrast, known_share=known_share, remember=remember
        )
        self._last: Descriptor | None = None
        self._skipped: Step | None = None
        self._seen: list[_Frame] = []
        self._verify = verify
        self._remember = remember
        self._frames = 0

    def update(self, photo: Source, step: Step | None = None) -> FrameAnswer:
        """Add the next frame and return where the camera is, given the frames so far.

        Args:
            photo: a path, the bytes of an image file, or an open binary file.
            step: the motion since the last frame: `metres` or `offset_m` on a metric map, `photos` on a
                traverse. Without it, the step on a traverse is estimated from the frames.

        Raises:
            ImageError: the frame cannot be read; the camera stays, and the step is added to the next one.
            UsageError: metres on a map without positions.
        """
        start = time.perf_counter()
        self._check(step)
        config = self._embedder.model.config
        try:
            image = self._embedder.read(photo, config.image_size, config.min_image_size)
        except ImageError:
            self._frames += 1
            self._skipped = _joined(self._skipped, step or Step())
            raise
        decoded = time.perf_counter()
        seen = self._embedder.see([[image]])[0]
        timings = {"decode": 1000 * (decoded - start), "embed": 1000 * (time.perf_counter() - decoded)}
        return self.update_seen(seen, step, timings)

    def update_seen(
        self,
        seen: Seen | Descriptor,
        step: Step | None = None,
        timings_ms: Mapping[str, float | None] | None = None,
    ) -> FrameAnswer:
        """`update` with what the network saw (`Index.see`); a descriptor (d) alone is not verified.

        Raises:
            ModelMismatch: the descriptor's dimension is not this index's.
        """
        start = time.perf_counter()
        self._check(step)
        question = Question.of(seen, verify=self._verify)
        descriptor = question.descriptor
        dim = self._map.searched.snapshot.dim
        if descriptor.shape != (dim,):
            raise ModelMismatch(f"this index has {dim}-D descriptors, got one of shape {descriptor.shape}")
        scores = self._map.scores(descriptor)
        by_photo = self._map.by_photo(scores)
        inliers = self._inliers(question, by_photo, scores)
        belief = self._filter.update(by_photo, self._step(descriptor, step), inliers)
        self._last, self._skipped = descriptor, None
        agreeing = {number: len(found) for number, found in question.agreeing.items()}
        timings = {**(timings_ms or {}), "search": 1000 * (time.perf_counter() - start) - question.verify_ms}
        if question.features is not None:
            timings["verify"] = question.verify_ms
        frame = _Frame(self._frames, descriptor, agreeing, timings)
        if self._remember:
            self._seen.append(frame)
        self._frames += 1
        return self._answer(frame, scores, belief)

    def smoothed(self) -> list[FrameAnswer]:
        """Return the answers of all frames so far, each given all frames.

        Raises:
            UsageError: the frames were not remembered.
        """
        if not self._remember:
            raise UsageError("smoothing needs the frames: follow with remember=True")
        beliefs = self._filter.smoothed()
        return [
            self._answer(frame, self._map.scores(frame.descriptor), belief)
            for frame, belief in zip(self._seen, beliefs, strict=True)
        ]

    def _check(self, step: Step | None) -> None:
        metric = isinstance(self._motion, MetricMotion)
        if step is not None and not metric and (step.metres, step.offset_m) != (None, None):
            raise UsageError("steps in metres need photo positions; this map is ordered by file name")

    def _inliers(self, question: Question, by_photo: Floats, scores: Floats) -> dict[int, int]:
        """Return the inliers of the CANDIDATES photos nearest to a frame."""
        if question.features is None:
            return {}
        count = min(CANDIDATES, self._map.photos)
        nearest = np.argpartition(-by_photo, count - 1)[:count].tolist()
        views = {photo: int(self._map.numbers[self._map.best_view(photo, scores)]) for photo in nearest}
        self._searcher.verify(question, list(views.values()))
        found = {photo: question.inliers(view) for photo, view in views.items()}
        return {photo: inliers for photo, inliers in found.items() if inliers is not None}

    def _step(self, descriptor: Descriptor, step: Step | None) -> Step:
        """Combine odometry with the step that the two frames suggest."""
        if self._skipped is not None:
            step = self._skipped.then(step or Step())
        if self._last is None:
            return step or Step()
        seen = self.likeness.step(float(np.dot(descriptor, self._last)))
        if step is None:
            return seen
        if step.photos is None:
            return replace(step, photos=seen.photos, cut=max(step.cut, seen.cut), novelty=seen.novelty)
        return replace(step, novelty=seen.novelty)

    def _answer(self, frame: _Frame, scores: Floats, belief: Belief) -> FrameAnswer:
        count = min(max(SHOWN_FROM, 4 * PHOTOS_A_PLACE * self._k), self._map.photos)
        likely = np.argpartition(-belief.photos, count - 1)[:count]
        likely = likely[np.lexsort((likely, -belief.photos[likely]))]
        numbers = self._map.numbers[[self._map.best_view(int(photo), scores) for photo in likely]]
        cosines = self._map.searched.cosines(frame.descriptor, numbers)
        shown = self._searcher.photo_hits(list(zip(cosines, numbers.tolist(), strict=True)), frame.inliers)
        hits = [(int(p), *hit) for p, hit in zip(likely, shown, strict=True) if hit is not None]
        places = self._places(hits, belief)
        sure = self._map.photos >= LEAST_PHOTOS
        confidence = places[0].confidence if places else None
        answer = Answer(
            known=None if confidence is None else confidence >= KNOWN_FROM,
            confidence=confidence,
            position=_position([hit for _, hit, _ in hits], places),
            places=with_distances(places, self._filters),
            model=self._model,
            snapshot=self._snapshot,
            timings_ms=frame.timings_ms,
            note=UNCALIBRATED if sure else TOO_FEW,
        )
        return FrameAnswer(frame.number, answer, round(belief.off, 4) if sure else None)

    def _places(
        self, hits: Sequence[tuple[int, PhotoHit, Place | None]], belief: Belief
    ) -> tuple[PlaceHit, ...]:
        """Return the k most probable places, each with its photos, the most probable first."""
        found: dict[str, list[tuple[int, PhotoHit, Place | None]]] = {}
        for photo, hit, place in hits:
            found.setdefault(place.id if place else place_id(hit.id), []).append((photo, hit, place))
        likely = {id: sum(float(belief.photos[photo]) for photo, _, _ in of) for id, of in found.items()}
        best = sorted(found, key=lambda id: (-likely[id], id))[: self._k]
        return tuple(self._place(id, found[id], belief) for id in best)

    def _place(self, id: str, hits: Sequence[tuple[int, PhotoHit, Place | None]], belief: Belief) -> PlaceHit:
        first, hit, place = hits[0]
        near = np.union1d(self._motion.near(first), [photo for photo, _, _ in hits])
        confidence = round(min(float(belief.photos[near].sum()), 1.0), 4)
        where: Place | PhotoHit = place or hit
        return PlaceHit(
            id=id,
            name=place.name if place else None,
            lat=where.lat,
            lon=where.lon,
            score=max(hit.score for _, hit, _ in hits),
            confidence=confidence if self._map.photos >= LEAST_PHOTOS else None,
            photos=tuple(hit for _, hit, _ in hits[:PHOTOS_A_PLACE]),
        )


def _joined(before: Step | None, step: Step) -> Step:
    return step if before is None else before.then(step)


def _position(hits: Sequence[PhotoHit], places: Sequence[PlaceHit]) -> Position | None:
    """Return the position at the most probable place, from the probable photos around its first one."""
    if not places or places[0].photos[0].lat is None or places[0].photos[0].lon is None:
        return None
    lat, lon = places[0].photos[0].lat, places[0].photos[0].lon
    about = [
        hit
        for hit in hits
        if hit.lat is not None
        and hit.lon is not None
        and float(haversine_m(lat, lon, hit.lat, hit.lon)) <= GROUP_RADIUS_M
    ]
    position = locate(about)
    return None if position is None else rounded(position)


def follow_all(
    follower: Follower,
    frames: Iterable[Source],
    steps: Sequence[Step | None] | None,
    on_unreadable: Callable[[Source, ImageError], None] | None,
) -> Iterator[FrameAnswer]:
    """Yield an answer for each frame in order; unreadable frames are reported and left out."""
    for number, frame in enumerate(frames):
        try:
            yield follower.update(frame, steps[number] if steps else None)
        except ImageError as error:
            if on_unreadable is None:
                raise
            on_unreadable(frame, error)

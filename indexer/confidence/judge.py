"""Confidence of an answer: the index's calibration applied to the result of a search."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from indexer.answers import PhotoHit, PlaceHit, Position
from indexer.confidence.calibration import Calibration
from indexer.confidence.evidence import Level, evidence_of, share_out
from indexer.filters import Filters
from indexer.places.neighbourhood import Neighbourhoods, PlaceRule
from indexer.search.localisation import with_distances
from indexer.search.searcher import PHOTOS_A_PLACE, WEIGHED
from indexer.search.verification import cosine
from indexer.snapshots.store import Floats

NOT_CALIBRATED = "the index is not calibrated: run 'loci index' on its photos again, which embeds nothing"
UNVERIFIED = "confidence was calibrated without verification, so it does not apply to a verified answer"


@dataclass(frozen=True)
class Judgement:
    """Confidence of an answer and its places."""

    confidence: float | None
    """Probability that the first place is right."""
    places: Mapping[str, float]
    """Probability of each place, by id; together at most 1."""
    note: str | None
    """Why there is no confidence."""


class Judge:
    """Judges the results of a snapshot's searches. May be used from many threads."""

    def __init__(
        self,
        calibration: Calibration | None,
        known_share: float,
        sample: Callable[[], Floats],
        ranks: Callable[[int], Mapping[str, int]],
    ) -> None:
        """What `sample` and `ranks` return is read when first needed.

        Args:
            calibration: the snapshot's; None if another version made it.
            known_share: share of the queries that show a place of the index.
            sample: returns descriptors (m d) of the snapshot, which show ordinary scores.
            ranks: returns the photos' numbers in file order, if places are frames.
        """
        self._calibration = calibration
        self._known_share = known_share
        self._sample = sample
        self._ranks = ranks
        self._read: tuple[Floats, Mapping[str, int]] | None = None

    @property
    def radius_factor(self) -> float:
        """Factor of a position's radius."""
        return self._calibration.radius_factor if self._calibration else 1.0

    @property
    def judges(self) -> bool:
        """Whether there is a model."""
        return self._calibration is not None and self._calibration.model is not None

    def judge(self, descriptor: Floats, places: Sequence[PlaceHit], rivals: Sequence[PlaceHit]) -> Judgement:
        """Judge whether a photo's descriptor (d) shows the first of these places.

        Args:
            places: all places of the search, with all of their photos, best first.
            rivals: the places of an unfiltered search; `places` if nothing is filtered. Filters do not
                raise confidence: excluded photos still compete.
        """
        calibration = self._calibration
        if calibration is None:
            return Judgement(None, {}, NOT_CALIBRATED)
        if not places:
            return Judgement(None, {}, None)
        if calibration.model is None:
            return Judgement(None, {}, f"there is no confidence: {calibration.reason}")
        sample, ranks = self._needed(calibration)
        # einsum runs in this thread: waking BLAS's threads takes longer than so small a product
        level = Level.of(np.einsum("nd,d->n", sample, descriptor))
        first = places[0].photos[0]
        hits, owners = _ranked(first, places, rivals)
        rule = PlaceRule(calibration.place_radius_m, calibration.frames, calibration.named)
        near = Neighbourhoods.of(hits, owners, rule, ranks).near(0)
        evidence = evidence_of(
            np.array([cosine(hit) for hit in hits]), near, level, [hit.inliers for hit in hits]
        )
        found = calibration.probabilities(evidence, self._known_share)
        if found is None:
            return Judgement(None, {}, UNVERIFIED)
        shown = {owners[hit.id] for hit in hits}
        further = [place for place in places[1:] if place.id in shown]
        shares = share_out(found["wrong"], [place.score for place in further], level, found["right"])
        confidence = _down(found["right"])
        rest = {place.id: _down(share) for place, share in zip(further, shares, strict=True)}
        return Judgement(confidence, {places[0].id: confidence, **rest}, None)

    def _needed(self, calibration: Calibration) -> tuple[Floats, Mapping[str, int]]:
        if self._read is None:
            self._read = (self._sample(), self._ranks(calibration.frames) if calibration.frames else {})
        return self._read


def _down(probability: float) -> float:
    """Round down, so that the sum stays at most 1."""
    return math.floor(probability * 10_000) / 10_000


def _ranked(
    first: PhotoHit, places: Sequence[PlaceHit], rivals: Sequence[PlaceHit]
) -> tuple[list[PhotoHit], dict[str, str]]:
    """Return the first photo and then the best of all others, and the places of them all."""
    owners = {hit.id: place.id for place in (*rivals, *places) for hit in place.photos}
    others = {hit.id: hit for place in (*rivals, *places) for hit in place.photos if hit.id != first.id}
    best = sorted(others.values(), key=lambda hit: (-hit.score, hit.id))
    return [first, *best[: WEIGHED - 1]], owners


def judged_places(
    places: Sequence[PlaceHit], judgement: Judgement, filters: Filters | None
) -> tuple[PlaceHit, ...]:
    """Return places with their confidence, their best photos, and their distance from the filters' point."""
    calibrated = judgement.confidence is not None
    shown = [
        replace(
            place,
            confidence=judgement.places.get(place.id, 0.0) if calibrated else None,
            photos=place.photos[:PHOTOS_A_PLACE],
        )
        for place in places
    ]
    return with_distances(shown, filters)


def answer_note(
    judgement: Judgement,
    places: Sequence[PlaceHit],
    position: Position | None,
    filters: Filters | None,
) -> str | None:
    """Return the reason why known, confidence or position is None."""
    notes = [judgement.note] if judgement.note else []
    if not places:
        notes.append("no photo passes the filters" if filters and filters.narrow else "the index is empty")
    elif position is None:
        notes.append("none of the nearest photos has a position")
    return "; ".join(notes) or None

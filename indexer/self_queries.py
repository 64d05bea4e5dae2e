"""An index asked about its own photos: what it learns from that of how sure it may be.

Each photo drawn is asked by its stored descriptor twice, against all others: once as they are and once
without its surroundings, so that its place is not in the index. Photos of one collection are of one day and
camera and find each other too easily; each question is therefore put at several levels of disturbance too,
with a random mixture of the collection's other photos added to the descriptor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from indexer.answers import Photo, PhotoHit
from indexer.calibration import Calibration, Case, Outcome, cross_validated_error, fit
from indexer.evidence import WEIGHED, Level, evidence_of, sampled
from indexer.geo import haversine_m
from indexer.localise import LOCATE_BY, locate
from indexer.stores.faiss import FaissStore, Floats
from indexer.whereabouts import Mask, PlaceRule, Whereabouts

QUERIES = 300
"""Photos asked at most."""
LEAST = 40
"""Photos that must have another of their place, and that must have others without their surroundings."""
LEVELS = (0.0, 0.5, 1.0)
"""Lengths of what is added to a descriptor, whose own length is 1."""
HELD = 0.68
"""Share of the true positions that lie within the radius."""
FACTORS = (0.5, 2.0)
_CELLS = 16_000_000  # scores held at a time: 64 MB

Verify = Callable[[str, Sequence[PhotoHit]], Sequence[PhotoHit]]
"""From a photo's id and what was found for it, best first, to the same with verified scores and inliers,
best first."""


@dataclass(frozen=True)
class Collection:
    """What is asked, and of what."""

    store: FaissStore
    photos: Sequence[Photo]
    """All whose descriptors the store holds."""
    owner: NDArray[np.int64]
    """The number of the photo of each of the store's descriptors, in the order of their ids."""
    where: Whereabouts
    """Of the photos, in their order."""

    @classmethod
    def of(
        cls,
        store: FaissStore,
        photos: Mapping[str, Photo],
        owners: Sequence[str],
        places: Mapping[str, str],
        rule: PlaceRule,
        ranks: Mapping[str, int] | None = None,
    ) -> Collection:
        """Of photos by id, the owner of each of the store's descriptors, and the place of each photo."""
        number = {id: i for i, id in enumerate(dict.fromkeys(owners))}
        # What was deleted a moment ago is still found, and of no known place.
        kept = [
            photos.get(id) or Photo(id, id, None, None, None, None, None, 0, 0, "removed") for id in number
        ]
        owner = np.array([number[id] for id in owners], np.int64)
        return cls(store, kept, owner, Whereabouts.of(kept, places, rule, ranks))


@dataclass(frozen=True)
class Found:
    """What one question found, and whether it was right."""

    photo: Photo
    disturbance: float
    outcome: Outcome
    hits: tuple[PhotoHit, ...]
    near: Mask
    level: Level

    def case(self) -> Case:
        """What is learnt from."""
        scores = np.array([hit.score for hit in self.hits])
        evidence = evidence_of(scores, self.near, self.level, self.hits[0].inliers)
        return Case(self.photo.id, evidence, self.outcome, 1 / len(LEVELS))


def calibrate(collection: Collection, verify: Verify | None = None) -> Calibration:
    """Learn from an index's own photos how sure its answers are; says why where it cannot."""
    rule = collection.where.rule
    drawn, spots, partnered = _draw(collection)
    empty = Calibration(partnered, frames=rule.frames, named=rule.named, place_radius_m=rule.radius_m)
    if partnered < LEAST:
        return replace(empty, reason=_too_few(collection, partnered))
    found = list(_ask(collection, drawn, spots))
    absent = {one.photo.id for one in found if one.outcome == "absent"}
    if len(absent) < LEAST:
        return replace(
            empty,
            reason=f"only {len(absent)} photos have others that were taken elsewhere, and it takes {LEAST} "
            "to learn what a photo of an unknown place looks like: index more places",
        )
    cases = [one.case() for one in found]
    verified = _verified(collection, found, verify) if verify else []
    present = [one for one in found if one.outcome != "absent"]
    return replace(
        empty,
        queries=len(drawn),
        model=fit(cases),
        verified=fit(verified) if verified else None,
        right=sum(one.outcome == "right" for one in present) / len(present),
        ece=cross_validated_error(verified or cases),
        radius_factor=_radius_factor([one for one in present if not one.disturbance]),
    )


def _too_few(collection: Collection, partnered: int) -> str:
    how = (
        "photos of a place that is there already, or --places folder or frames:N where folders or order tell"
    )
    if len(np.unique(collection.where.place)) == len(collection.photos):
        return (
            f"every photo is a place of its own, and none shows how the same place is found again: add {how}"
        )
    return (
        f"{partnered} of its {len(collection.photos)} photos have another of their place, and it takes "
        f"{LEAST}: add {how}"
    )


def _draw(collection: Collection) -> tuple[list[int], bool, int]:
    """Photos to ask, whether others of their spot are left out, and how many there were to choose from."""
    spots = True
    partnered = np.flatnonzero(collection.where.partnered(spots=True))
    if len(partnered) < LEAST:  # a camera without moving: what it saw before is all there is
        spots = False
        partnered = np.flatnonzero(collection.where.partnered(spots=False))
    order = sorted(partnered.tolist(), key=lambda i: _hash(collection.photos[i].id))
    return order[:QUERIES], spots, len(partnered)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _ask(collection: Collection, drawn: Sequence[int], spots: bool) -> Iterator[Found]:
    """Every photo drawn, at every level, its place present and absent."""
    store, where, owner = collection.store, collection.where, collection.owner
    ids = store.ids
    sample = np.searchsorted(ids, sampled(ids))
    others = store.vectors(ids[sample])
    first = {photo: row for row, photo in reversed(list(enumerate(owner.tolist())))}
    step = max(1, _CELLS // (len(LEVELS) * len(ids)))
    for start in range(0, len(drawn), step):
        block = drawn[start : start + step]
        around = [where.around(photo) for photo in block]
        queries = [
            _disturbed(
                store.vectors(ids[[first[photo]]])[0], others, ~out[owner[sample]], level, collection, photo
            )
            for photo, out in zip(block, around, strict=True)
            for level in LEVELS
        ]
        scores = iter(store.products(np.stack(queries)))
        for photo, out in zip(block, around, strict=True):
            itself = where.spot(photo) if spots else np.arange(len(collection.photos)) == photo
            right = where.right(photo) & ~itself
            for level in LEVELS:
                row = next(scores)
                for absent in (False, True):
                    gone = itself | out if absent else itself
                    found = _found(collection, photo, level, row, gone, right, absent, sample)
                    if found is not None and (absent or right.any()):
                        yield found


def _disturbed(
    own: Floats, others: Floats, usable: Mask, level: float, collection: Collection, photo: int
) -> Floats:
    """A descriptor (d) with a random mixture of others (m d) added, as long as `level` says."""
    if not level or not usable.any():
        return own
    seed = int(_hash(f"{collection.photos[photo].id} {level}"), 16)
    shares = np.random.default_rng(seed).standard_normal(len(others)).astype(np.float32) * usable
    shares[usable] -= shares[usable].mean()  # so that what all photos have in common is not added
    noise = shares @ others
    mixed = own + level * noise / max(float(np.linalg.norm(noise)), 1e-12)
    return np.asarray(mixed / np.linalg.norm(mixed), np.float32)


def _found(
    collection: Collection,
    photo: int,
    disturbance: float,
    row: Floats,
    gone: Mask,
    right: Mask,
    absent: bool,
    sample: NDArray[np.int64],
) -> Found | None:
    """What a photo finds by its scores (n) with all descriptors, some photos gone; None without others."""
    owner = collection.owner
    best = np.full(len(collection.photos), -np.inf, np.float32)
    np.maximum.at(best, owner, row)
    best[gone] = -np.inf
    top = np.argpartition(-best, min(WEIGHED, len(best) - 1))[:WEIGHED]
    top = top[np.lexsort((top, -best[top]))]
    top = top[np.isfinite(best[top])]
    if not len(top):
        return None
    seen = sample[~gone[owner[sample]]]
    outcome: Outcome = "absent" if absent else "right" if right[top[0]] else "wrong"
    hits = tuple(_hit(collection.photos[i], float(best[i])) for i in top.tolist())
    near = collection.where.near(int(top[0]))[top]
    return Found(collection.photos[photo], disturbance, outcome, hits, near, Level.of(row[seen]))


def _hit(photo: Photo, score: float) -> PhotoHit:
    return PhotoHit(photo.id, photo.path, score, None, photo.lat, photo.lon, photo.heading, photo.taken_at)


def _verified(collection: Collection, found: Sequence[Found], verify: Verify) -> list[Case]:
    """The cases of verified answers.

    What was disturbed has no image to be matched: its matches are those of the photo itself, thinned as its
    cosines are, 1/√(1 + t²) of them left at the level t.
    """
    number = {photo.id: i for i, photo in enumerate(collection.photos)}
    where = collection.where
    cases = []
    for one in found:
        left = float(1 / np.sqrt(1 + one.disturbance**2))
        before = {hit.id: hit.score for hit in one.hits}
        hits = [
            replace(
                hit,
                score=before[hit.id] + left * (hit.score - before[hit.id]),
                inliers=None if hit.inliers is None else round(left * hit.inliers),
            )
            for hit in verify(one.photo.id, one.hits)
        ]
        hits.sort(key=lambda hit: -hit.score)
        rows = [number[hit.id] for hit in hits]
        asked = number[one.photo.id]
        right = bool(where.right(asked)[rows[0]])
        outcome: Outcome = one.outcome if one.outcome == "absent" else "right" if right else "wrong"
        near = where.near(rows[0])[rows]
        hits[0] = replace(hits[0], inliers=hits[0].inliers or 0)
        cases.append(replace(one, outcome=outcome, hits=tuple(hits), near=near).case())
    return cases


def _radius_factor(found: Sequence[Found]) -> float:
    """By what radii are multiplied so that HELD of the photos, asked as they are, lie within theirs.

    Within bounds: where most positions are wrong no radius would be of use, and the photos of one spot may
    share one GPS fix that is off for all of them.
    """
    ratios = []
    for one in found:
        photo, position = one.photo, locate(one.hits[:LOCATE_BY])
        if position is not None and photo.lat is not None and photo.lon is not None:
            off_m = haversine_m(photo.lat, photo.lon, position.lat, position.lon)
            ratios.append(float(off_m) / position.radius_m)
    if len(ratios) < LEAST:
        return 1.0
    return round(float(np.clip(np.quantile(ratios, HELD), *FACTORS)), 3)

"""Self-queries: ask the index about its own photos to calibrate its confidence.

Each drawn photo is queried by its stored descriptor, against all others: once as they are, and once without
its surroundings, so that its place is absent. Photos that one camera took on one day find each other more
easily than photos of another day. If so, they are also queried disturbed: with a random mixture of other
photos added to the descriptor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from indexer.answers import Photo, PhotoHit
from indexer.confidence.calibration import Calibration, Case, Outcome, cross_validated_error, fit
from indexer.confidence.evidence import Level, evidence_of
from indexer.geo import haversine_m
from indexer.places.neighbourhood import Mask, Neighbourhoods, PlaceRule
from indexer.search.localisation import LOCATE_BY, locate
from indexer.search.searcher import WEIGHED
from indexer.search.verification import cosine, raised
from indexer.snapshots.store import Floats, Store, sampled

QUERIES = 300
"""Most photos that are queried."""
VERIFIED = 150
"""Most photos whose answers are verified."""
LEFT = 0.5
"""Share of its inliers that a disturbed photo keeps."""
LEAST = 40
"""Least photos that share a place with another photo, and that remain without their surroundings."""
DISTURBANCES = 4
"""Most disturbed queries of a photo; fewer if there are more photos."""
HARD = 0.8
"""Share of right undisturbed answers above which disturbed ones count."""
DISTURBED_SHARE = 0.25
"""Their greatest share among the present."""
HELD = 0.68
"""Share of the true positions within the radius."""
FACTORS = (0.4, 2.0)
_CELLS = 16_000_000  # scores held at a time: 64 MB

Verify = Callable[[str, Sequence[PhotoHit]], Sequence[PhotoHit]]
"""From a photo's id and its hits, best first, to the hits with verified scores and inliers, best first."""


@dataclass(frozen=True)
class Collection:
    """The photos and descriptors that self-queries use."""

    store: Store
    photos: Sequence[Photo]
    """The store of all descriptors."""
    owner: NDArray[np.int64]
    """The number of the photo of each descriptor, in the order of their ids."""
    where: Neighbourhoods
    """The place of each photo."""

    @classmethod
    def of(
        cls,
        store: Store,
        photos: Mapping[str, Photo],
        owners: Sequence[str],
        places: Mapping[str, str],
        rule: PlaceRule,
        ranks: Mapping[str, int] | None = None,
    ) -> Collection:
        """Return it from photos by id, the owner of each descriptor, and the place of each photo."""
        number = {id: i for i, id in enumerate(dict.fromkeys(owners))}
        # A photo that was just deleted is still in the store, and has no known place.
        kept = [
            photos.get(id) or Photo(id, id, None, None, None, None, None, 0, 0, "removed") for id in number
        ]
        owner = np.array([number[id] for id in owners], np.int64)
        return cls(store, kept, owner, Neighbourhoods.of(kept, places, rule, ranks))


@dataclass(frozen=True)
class Found:
    """The result of one query, and whether it was right."""

    photo: Photo
    disturbed: bool
    outcome: Outcome
    hits: tuple[PhotoHit, ...]
    near: Mask
    """Which hits show the first one's neighbourhood."""
    level: Level

    def case(self, weight: float) -> Case:
        """The case to learn from."""
        scores = np.array([cosine(hit) for hit in self.hits])
        agreeing = [hit.inliers for hit in self.hits]
        evidence = evidence_of(scores, self.near, self.level, agreeing)
        return Case(self.photo.id, evidence, self.outcome, weight)


def calibrate(collection: Collection, verify: Verify | None = None) -> Calibration:
    """Calibrate on an index's own photos; the result has a reason if that is impossible."""
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
    cases = _cases(found)
    looked = {collection.photos[i].id for i in drawn[:VERIFIED]}
    verified = (
        _verified(collection, [one for one in found if one.photo.id in looked], verify) if verify else []
    )
    return replace(
        empty,
        queries=len(drawn),
        model=fit(cases),
        verified=fit(_cases(verified)) if verified else None,
        right=_share_right(found),
        ece=cross_validated_error(_cases(verified) if verified else cases),
        radius_factor=_radius_factor(found),
    )


def _cases(found: Sequence[Found]) -> list[Case]:
    """Return the weighted cases; half of the weight is on present places.

    Of that half, the share e/4 is disturbed, with e = (r − 0.8)/0.2 if a share r above 0.8 is right
    undisturbed: if all photos find each other, nothing else shows how a failure to find looks.
    """
    disturbed = sum(one.disturbed for one in found)
    present = sum(one.outcome != "absent" for one in found) - disturbed
    share = DISTURBED_SHARE * float(np.clip((_share_right(found) - HARD) / (1 - HARD), 0, 1))
    weights = {True: share * present / max(disturbed, 1), False: 1 - share}
    weighed = [(one, 1.0 if one.outcome == "absent" else weights[one.disturbed]) for one in found]
    return [one.case(weight) for one, weight in weighed if weight]


def _share_right(found: Sequence[Found]) -> float:
    """Share of right answers among undisturbed present queries."""
    return float(np.mean([one.outcome == "right" for one in _plain(found)]))


def _plain(found: Sequence[Found]) -> list[Found]:
    return [one for one in found if one.outcome != "absent" and not one.disturbed]


def _too_few(collection: Collection, partnered: int) -> str:
    how = "add photos of these places, or set `places` to folder or frames:N if folders or order show places"
    if not partnered:
        return f"no two photos show the same place, so confidence cannot be calibrated: {how}"
    return (
        f"{partnered} of {len(collection.photos)} photos share a place with another photo, and "
        f"calibration needs {LEAST}: {how}"
    )


def _draw(collection: Collection) -> tuple[list[int], bool, int]:
    """Return the photos to query, whether others of their spot are left out, and how many could be chosen."""
    spots = True
    partnered = np.flatnonzero(collection.where.partnered(spots=True))
    if len(partnered) < LEAST:  # a camera without motion: only what it saw before is there
        spots = False
        partnered = np.flatnonzero(collection.where.partnered(spots=False))
    order = sorted(partnered.tolist(), key=lambda i: _hash(collection.photos[i].id))
    return order[:QUERIES], spots, len(partnered)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _ask(collection: Collection, drawn: Sequence[int], spots: bool) -> Iterator[Found]:
    """Query every drawn photo: as it is with its place present and absent, and disturbed with its place
    present.
    """
    store, where, owner = collection.store, collection.where, collection.owner
    ids = store.ids
    sample = np.searchsorted(ids, sampled(ids))
    others = store.vectors(ids[sample])
    first = {photo: row for row, photo in reversed(list(enumerate(owner.tolist())))}
    times = min(DISTURBANCES, max(1, QUERIES // max(len(drawn), 1)))
    step = max(1, _CELLS // ((1 + times) * len(ids)))
    for start in range(0, len(drawn), step):
        block = drawn[start : start + step]
        queries = []
        around = [where.around(photo) for photo in block]
        for photo, out in zip(block, around, strict=True):
            own = store.vectors(ids[[first[photo]]])[0]
            usable = ~out[owner[sample]]
            seeds = [f"{collection.photos[photo].id} {time}" for time in range(times)]
            queries += [own, *(_disturbed(own, others, usable, seed) for seed in seeds)]
        scores = store.products(np.stack(queries)).reshape(len(block), 1 + times, len(ids))
        for photo, out, rows in zip(block, around, scores, strict=True):
            itself = where.spot(photo) if spots else np.arange(len(collection.photos)) == photo
            right = where.right(photo) & ~itself
            if right.any():
                search = _Search(collection, photo, right, sample)
                yield from search.found(rows[0], itself, absent=False)
                yield from search.found(rows[0], itself | out, absent=True)
                for row in rows[1:]:
                    yield from search.found(row, itself, absent=False, disturbed=True)


def _disturbed(own: Floats, others: Floats, usable: Mask, seed: str) -> Floats:
    """Return a descriptor (d) plus a random mixture of others (m d) of the same length."""
    if not usable.any():
        return own
    generator = np.random.default_rng(int(_hash(seed), 16))
    shares = generator.standard_normal(len(others)).astype(np.float32) * usable
    shares[usable] -= shares[usable].mean()  # without what all photos have in common
    noise = shares @ others
    mixed = own + noise / max(float(np.linalg.norm(noise)), 1e-12)
    return np.asarray(mixed / max(float(np.linalg.norm(mixed)), 1e-12), np.float32)


@dataclass(frozen=True)
class _Search:
    """The result of a query."""

    collection: Collection
    photo: int
    right: Mask
    sample: NDArray[np.int64]

    def found(self, row: Floats, gone: Mask, *, absent: bool, disturbed: bool = False) -> Iterator[Found]:
        """Search by scores (n) with all descriptors, some photos left out; yields nothing if none is left."""
        photos, owner = self.collection.photos, self.collection.owner
        best = np.full(len(photos), -np.inf, np.float32)
        if len(photos) == len(owner):
            best[owner] = row
        else:
            np.maximum.at(best, owner, row)
        best[gone] = -np.inf
        top = np.argpartition(-best, min(WEIGHED, len(best) - 1))[:WEIGHED]
        top = top[np.lexsort((top, -best[top]))]
        top = top[np.isfinite(best[top])]
        if not len(top):
            return
        yield Found(
            photos[self.photo],
            disturbed,
            "absent" if absent else "right" if self.right[top[0]] else "wrong",
            tuple(_hit(photos[i], float(best[i])) for i in top.tolist()),
            self.collection.where.near(int(top[0]), top),
            Level.of(row[self.sample[~gone[owner[self.sample]]]]),
        )


def _hit(photo: Photo, score: float) -> PhotoHit:
    return PhotoHit(photo.id, photo.path, score, None, photo.lat, photo.lon, photo.heading, photo.taken_at)


def _verified(collection: Collection, found: Sequence[Found], verify: Verify) -> list[Found]:
    """Return the hits verified.

    A disturbed photo has no image to match: its matches are those of the photo itself, thinned to LEFT of
    them.
    """
    number = {photo.id: i for i, photo in enumerate(collection.photos)}
    where = collection.where
    again = []
    for one in found:
        before = {hit.id: hit.score for hit in one.hits}
        hits = []
        for hit in verify(one.photo.id, one.hits):
            agreeing = hit.inliers
            if agreeing is not None and one.disturbed:
                agreeing = round(LEFT * agreeing)
            hits.append(replace(hit, score=raised(before[hit.id], agreeing or 0), inliers=agreeing))
        hits.sort(key=lambda hit: -hit.score)
        rows = [number[hit.id] for hit in hits]
        asked = number[one.photo.id]
        right = bool(where.right(asked)[rows[0]])
        outcome: Outcome = one.outcome if one.outcome == "absent" else "right" if right else "wrong"
        near = where.near(rows[0], np.array(rows))
        again.append(replace(one, outcome=outcome, hits=tuple(hits), near=near))
    return again


def _radius_factor(found: Sequence[Found]) -> float:
    """Return the factor of radii so that HELD of the undisturbed queries lie within theirs.

    It is bounded: if most positions are wrong no radius helps, and photos of one spot may share one GPS fix
    that is off for all of them.
    """
    ratios = []
    for one in _plain(found):
        photo, position = one.photo, locate(one.hits[:LOCATE_BY])
        if position is not None and photo.lat is not None and photo.lon is not None:
            off_m = haversine_m(photo.lat, photo.lon, position.lat, position.lon)
            ratios.append(float(off_m) / position.radius_m)
    if len(ratios) < LEAST:
        return 1.0
    return round(float(np.clip(np.quantile(ratios, HELD), *FACTORS)), 3)

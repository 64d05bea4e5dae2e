"""From what the network saw of a photo to the nearest photos and places of an index."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from indexer.answers import PhotoHit, Place, PlaceHit
from indexer.errors import IndexerError, ModelMismatch
from indexer.filters import Filters
from indexer.search.additions import Additions, Searched
from indexer.search.filter_columns import Counts, Selection, Table
from indexer.search.localisation import group_hits
from indexer.search.verification import CANDIDATES, Features, Matches, matches, raised, stored_features
from indexer.snapshots.manifest import Manifest
from indexer.snapshots.store import Store
from indexer.storage.catalogue import Catalogue
from indexer.storage.layout import COLUMNS, Layout, generation_of
from indexer.storage.local_shards import read_local
from indexer.storage.rows import Hit
from model.embedder import Seen

Floats = NDArray[np.float32]

WEIGHED = 50
"""Best photos that are weighed against each other, for confidence."""
PHOTOS_A_PLACE = 5
"""Most photos of a place in an answer."""


@dataclass
class Question:
    """A query: its descriptor, and its matches with photos so far."""

    descriptor: Floats
    features: Features | None = None
    """None: hits are not verified."""
    agreeing: dict[int, Matches] = field(default_factory=dict)
    """Matches with photos of the index, by the number of their descriptor."""
    verify_ms: float = 0.0

    def inliers(self, number: int) -> int | None:
        """Inliers with a descriptor's photo; None if it was not verified."""
        return len(self.agreeing[number]) if number in self.agreeing else None

    @classmethod
    def of(cls, seen: Seen | Floats | Question, *, verify: bool) -> Question:
        """Return the question for a photo, or for a descriptor alone, which is not verified."""
        if isinstance(seen, Question):
            return seen
        if not isinstance(seen, Seen):
            return cls(seen)
        features = Features.of(seen.local) if verify and seen.local is not None else None
        return cls(seen.descriptor, features)


@dataclass(frozen=True)
class Scored:
    """A photo that a search found."""

    score: float
    number: int
    """Number of the descriptor that is nearest to the query."""
    hit: Hit
    inliers: int | None = None

    def verified(self, inliers: int | None) -> Scored:
        """Return it with its score raised by inliers; unchanged if None."""
        if inliers is None:
            return self
        return Scored(raised(self.score, inliers), self.number, self.hit, inliers)

    def shown(self) -> PhotoHit:
        """Return it as a hit of an answer."""
        photo = self.hit.photo
        heading = None if photo.heading is None else (photo.heading + self.hit.yaw) % 360
        return PhotoHit(
            photo.id,
            photo.path,
            min(1.0, round(self.score, 6)),  # fp32 rounds a cosine; more digits mean nothing
            self.inliers,
            lat=photo.lat,
            lon=photo.lon,
            heading=heading,
            taken_at=photo.taken_at,
        )


Rank = Callable[[Floats, int], tuple[list[Scored], bool]]
"""From a descriptor (d) and a number n to the n nearest, best first, and whether those are all."""


class Searcher:
    """Searches one snapshot and what was added since. May be used from many threads."""

    def __init__(self, layout: Layout, catalogue: Catalogue, manifest: Manifest, store: Store) -> None:
        self._layout = layout
        self._catalogue = catalogue
        self._manifest = manifest
        self._generation = generation_of(manifest.snapshot)
        self._additions = Additions(
            layout, catalogue, manifest.snapshot, manifest.dim, store, manifest.change
        )
        saved = layout.snapshot(manifest.snapshot) / COLUMNS
        self._table = Table(catalogue, self._generation, saved, manifest.change, layout.mark_damaged)

    def current(self) -> Searched:
        """Return what is searched now."""
        return self._additions.current()

    def counts(self) -> Counts:
        """Return how much is searched now."""
        return self._table.counts()

    def selected(self, filters: Filters | None) -> tuple[Searched, Selection | None]:
        """Return what is searched now, and the selection of filters if they exclude any."""
        # In this order: a photo added in between is searched and not selected, which is harmless.
        selection = self._table.select(filters) if filters is not None and filters.narrow else None
        return self._additions.current(), selection

    def nearest(self, question: Question, n: int, filters: Filters | None = None) -> list[Scored]:
        """Return the n nearest photos, best first; the first CANDIDATES of them verified."""
        rank, _ = self._ranking(filters)
        return self._photos(question, n, rank)

    def with_places(
        self, question: Question, k: int, filters: Filters | None
    ) -> tuple[list[Scored], tuple[PlaceHit, ...]]:
        """Return the nearest photos, enough for k places (or all), and all their places."""
        rank, most = self._ranking(filters)
        n = max(WEIGHED, 4 * PHOTOS_A_PLACE * k)
        while True:
            hits = self._photos(question, n, rank)
            places = grouped(hits)
            if len(places) >= min(k, most) or len(hits) < n:
                return hits, places
            n *= 4

    def _photos(self, question: Question, n: int, rank: Rank) -> list[Scored]:
        """Return the n nearest photos, verified; a panorama counts once, by its best view."""
        if question.descriptor.shape != (self._manifest.dim,):
            raise ModelMismatch(
                f"this index has {self._manifest.dim}-D descriptors, got one of shape "
                f"{question.descriptor.shape}"
            )
        ask = n + 8
        while True:
            found, all_there_are = rank(question.descriptor, ask)
            best: dict[str, Scored] = {}
            for one in found:
                best.setdefault(one.hit.photo.id, one)
            if len(best) >= n or all_there_are:
                return self._verified(question, list(best.values())[:n])
            ask *= 4

    def _ranking(self, filters: Filters | None) -> tuple[Rank, int]:
        """Return the ranking of the photos that pass now, and the most places they can show."""
        searched, selection = self.selected(filters)
        most = self._manifest.places + searched.count - self._manifest.count
        if selection is not None:
            most = selection.places
        return partial(self._ranked, searched, selection, filters), most

    def _ranked(
        self,
        searched: Searched,
        selection: Selection | None,
        filters: Filters | None,
        descriptor: Floats,
        ask: int,
    ) -> tuple[list[Scored], bool]:
        among = None if selection is None else selection.ids
        count = searched.count if among is None else len(among)
        if not count:
            return [], True
        found = searched.search(descriptor, min(ask, count), among)
        shown = self._shown([number for _, number in found], filters if among is not None else None)
        scored = [Scored(score, number, shown[number]) for score, number in found if number in shown]
        return scored, ask >= count

    def _shown(self, numbers: Sequence[int], filters: Filters | None) -> dict[int, Hit]:
        """Return photos of descriptors, without those that were removed or no longer pass."""
        hits = self._catalogue.hits(numbers)
        if filters is None:
            return hits
        passing = self._table.passing(filters, [hit.row(number) for number, hit in hits.items()])
        return {number: hit for number, hit in hits.items() if number in passing}

    def _verified(self, question: Question, hits: list[Scored]) -> list[Scored]:
        """Return the hits, best first again after the first of them are verified."""
        if question.features is None:
            return hits
        first, rest = hits[:CANDIDATES], hits[CANDIDATES:]
        self.verify(question, [found.number for found in first])
        first = [found.verified(question.inliers(found.number)) for found in first]
        return sorted([*first, *rest], key=lambda found: (-found.score, found.number))

    def verify(self, question: Question, numbers: Sequence[int]) -> None:
        """Match a query with the photos of these descriptors; the question keeps the matches."""
        if question.features is None:
            return
        started = time.perf_counter()
        new = [number for number in numbers if number not in question.agreeing]
        for number, theirs in self._local(new).items():
            question.agreeing[number] = matches(question.features, theirs)
        question.verify_ms += 1000 * (time.perf_counter() - started)

    def _local(self, numbers: Sequence[int]) -> dict[int, Features]:
        """Return the local features of descriptors, if they have any."""
        slots = self._catalogue.slots(self._generation, numbers)
        try:
            packed = read_local(self._layout.local(self._generation), [slot for _, slot in slots])
        except IndexerError:  # moved, or dropped by a newer model, since they were found
            return {}
        return {
            number: Features.of(local)
            for (number, _), local in zip(slots, packed, strict=True)
            if local is not None
        }

    def photo_hits(
        self, scored: Sequence[tuple[float, int]], inliers: Mapping[int, int]
    ) -> list[tuple[PhotoHit, Place | None] | None]:
        """Return photos and places of descriptors, given by cosine and id; None for those removed since.

        Args:
            inliers: inliers of the verified descriptors, by id.
        """
        hits = self._catalogue.hits([number for _, number in scored])
        found = [
            Scored(score, number, hits[number]).verified(inliers.get(number)) if number in hits else None
            for score, number in scored
        ]
        return [None if one is None else (one.shown(), one.hit.place) for one in found]

    def matched(
        self, question: Question, hits: Sequence[Scored], places: Sequence[PlaceHit]
    ) -> tuple[PlaceHit, ...]:
        """Return the places with the matching points of their photos."""
        verified = {found.hit.photo.id: found.number for found in hits if found.inliers is not None}
        shown = {photo.id for place in places for photo in place.photos}
        views = self._views(sorted(shown & verified.keys()))

        def lines(photo: PhotoHit) -> PhotoHit:
            number = verified.get(photo.id)
            if number is None or views[photo.id] > 1:
                return photo  # a panorama: positions in a view are not positions in the photo
            return replace(photo, matches=question.agreeing[number].shown())

        return tuple(replace(place, photos=tuple(map(lines, place.photos))) for place in places)

    def _views(self, photos: Sequence[str]) -> Mapping[str, int]:
        """Return the number of descriptors of each photo."""
        return {photo: len(self._catalogue.slots_of(self._generation, photo)) for photo in photos}

    def features(self, photo: str) -> list[Features]:
        """Return the local features of each view of a photo; empty if the index keeps none."""
        slots = self._catalogue.slots_of(self._generation, photo)
        return stored_features(self._layout.local(self._generation), slots)


def grouped(hits: Sequence[Scored]) -> tuple[PlaceHit, ...]:
    """Return the places of the hits, best first, with all their hits."""
    places = {found.hit.photo.id: found.hit.place for found in hits}
    return group_hits((found.shown() for found in hits), places.get)

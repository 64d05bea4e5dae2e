"""The photos of an index as a map for sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexerError, UsageError
from indexer.places.groups import by_folder
from indexer.search.additions import Searched
from indexer.search.filter_columns import Selection
from indexer.sequences.motion import Floats, Ints, MetricMotion, Motion, OrderedMotion
from indexer.storage.catalogue import Catalogue

Descriptor = NDArray[np.float32]
MotionKind = Literal["auto", "photos", "metres"]


@dataclass(frozen=True)
class PhotoMap:
    """The photos of an index as a map, numbered by folder and file order, and their descriptors."""

    numbers: Ints
    """Ids of the descriptors, photo by photo; a panorama has several."""
    starts: Ints
    """Start of each photo's descriptors."""
    lengths: tuple[int, ...]
    """Lengths of the traverses: photos in each folder."""
    lat: Floats
    lon: Floats
    """Degrees; NaN if a photo has no position."""
    searched: Searched
    _take: Ints
    """Index of each of `numbers` in the stores' scores."""

    @classmethod
    def read(
        cls, catalogue: Catalogue, generation: int, searched: Searched, selection: Selection | None
    ) -> PhotoMap:
        """Read the photos that are searched; only those of `selection` if given.

        Raises:
            IndexerError: there are none.
        """
        ids = np.concatenate([store.ids for store in searched.stores])
        order = np.argsort(ids, kind="stable")
        allowed = ids[order] if selection is None else np.intersect1d(selection.ids, ids)
        live = catalogue.live_descriptors(generation)
        held = np.isin(np.array([number for number, _, _ in live], np.int64), allowed)
        views: dict[str, list[int]] = {}
        for (number, photo, _), kept in zip(live, held.tolist(), strict=True):
            if kept:
                views.setdefault(photo, []).append(number)
        folders = by_folder(photo for photo in catalogue.place_photos() if photo.id in views)
        photos = [photo for folder in folders for photo in folder.photos]
        if not photos:
            raise IndexerError("the filters leave no photo to follow a camera by")
        counts = [len(views[photo.id]) for photo in photos]
        numbers = np.array([number for photo in photos for number in views[photo.id]], np.int64)
        return cls(
            numbers=numbers,
            starts=np.concatenate([[0], np.cumsum(counts[:-1], dtype=np.int64)]).astype(np.int64),
            lengths=tuple(len(folder.photos) for folder in folders),
            lat=np.array([photo.lat for photo in photos], np.float64),
            lon=np.array([photo.lon for photo in photos], np.float64),
            searched=searched,
            _take=order[np.searchsorted(ids[order], numbers)],
        )

    @property
    def photos(self) -> int:
        return len(self.starts)

    def motion(self, kind: MotionKind) -> Motion:
        """Return the motion model; `auto`: metres if half of the photos have a position.

        Raises:
            UsageError: metres, but no photo has a position.
        """
        placed = np.count_nonzero(np.isfinite(self.lat))
        if kind == "metres" and not placed:
            raise UsageError("metres need positions, and the photos of this index have none")
        by_metres = kind == "metres" or (kind == "auto" and 2 * placed >= self.photos)
        return MetricMotion(self.lat, self.lon) if by_metres else OrderedMotion(self.lengths)

    def vectors(self, photos: Ints) -> Descriptor:
        """Return descriptors (n d) of photos by number; the first view of a panorama."""
        return self.searched.vectors(self.numbers[self.starts[photos]])

    def scores(self, descriptor: Descriptor) -> Floats:
        """Return cosines of a descriptor (d) with every one of `numbers`."""
        found = np.concatenate([store.scores(descriptor) for store in self.searched.stores])
        return found[self._take].astype(np.float64)

    def by_photo(self, scores: Floats) -> Floats:
        """Return each photo's score: that of its best view."""
        return np.maximum.reduceat(scores, self.starts)

    def best_view(self, photo: int, scores: Floats) -> int:
        """Return the index in `numbers` of a photo's best view."""
        end = self.starts[photo + 1] if photo + 1 < self.photos else len(self.numbers)
        start = int(self.starts[photo])
        return start + int(scores[start:end].argmax())

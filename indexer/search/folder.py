"""An opened index folder: one snapshot, and what was added or removed since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from indexer.answers import Photo, Place
from indexer.options import load_options
from indexer.places.neighbourhood import frame_ranks
from indexer.search.filter_columns import Counts
from indexer.search.searcher import Searcher
from indexer.snapshots.manifest import Manifest, opened_store, read_manifest
from indexer.snapshots.store import Floats, sample_of
from indexer.storage.catalogue import Catalogue
from indexer.storage.layout import Layout, disk_use, generation_of
from indexer.storage.shards import read_slots


class Folder:
    """A source of answers for `indexer.index.Index`. May be used from many threads."""

    writable = True

    def __init__(self, layout: Layout, manifest: Manifest) -> None:
        self.layout = layout
        self.manifest = manifest
        self.generation = generation_of(manifest.snapshot)
        self.catalogue = Catalogue(layout.folder)
        self._store = opened_store(layout, self.catalogue, manifest)
        self.searcher = Searcher(layout, self.catalogue, manifest, self._store)
        self._counts: tuple[int, Counts] | None = None

    @classmethod
    def open(cls, path: Path) -> Folder:
        """Open the current snapshot.

        Raises:
            IndexMissing: there is no index, or its first run has not finished.
            FormatTooNew: a newer version wrote it.
            IndexerError: it is damaged beyond repair from the shards.
        """
        layout = Layout(path)
        return cls(layout, read_manifest(layout, layout.current()))

    def latest(self) -> Folder:
        """Return this folder if its snapshot is current, else the current snapshot."""
        name = self.layout.current()
        return (
            self if name == self.manifest.snapshot else Folder(self.layout, read_manifest(self.layout, name))
        )

    @property
    def path(self) -> Path:
        return self.layout.folder

    @property
    def model_file(self) -> Path:
        return self.layout.model(self.generation)

    def sample(self) -> Floats:
        """Return a fixed sample of descriptors, m d."""
        return sample_of(self._store)

    def ranks(self, frames: int) -> Mapping[str, int]:
        """Return the photos' numbers in file order, for places of `frames` frames."""
        return frame_ranks(self.catalogue.place_photos(), frames)

    def photos(self) -> list[Photo]:
        return self.catalogue.photos()

    def photo(self, photo: str) -> Photo:
        return self.catalogue.photo(photo)

    def places(self) -> list[Place]:
        return self.catalogue.places()

    def place(self, place: str) -> Place:
        return self.catalogue.place(place)

    def photo_files(self, photo: str) -> list[Path]:
        """Return the files of a photo that are there."""
        return [path for path in self.catalogue.file_of(photo) if path.is_file()]

    def descriptors(self) -> tuple[list[str], Floats]:
        """Return photo ids and descriptors (n d) of everything searched; a panorama has several."""
        live = self.catalogue.live_descriptors(self.generation)
        slots = [slot for _, _, slot in live]
        blocks = list(read_slots(self.layout.shards(self.generation), slots, self.manifest.dim))
        empty = np.empty((0, self.manifest.dim), np.float32)
        return [photo for _, photo, _ in live], np.concatenate([empty, *blocks])

    def counts(self) -> Counts:
        """Return how much is searched now. Counts only after a change."""
        change = self.catalogue.last_change()
        if self._counts is None or self._counts[0] != change:
            found = Counts(self.manifest.count, self.manifest.photos, self.manifest.places)
            if change != self.manifest.change:
                found = self.searcher.counts()
            self._counts = (change, found)
        return self._counts[1]

    def drift(self) -> float:
        """Return the share of the snapshot's descriptors that were added or removed since."""
        searched = self.searcher.current()
        dead = max(searched.count - self.counts().descriptors, 0)
        return (searched.count - searched.snapshot.count + dead) / max(searched.snapshot.count, 1)

    def info(self) -> dict[str, Any]:
        fit, places, search = load_options(self.layout.options(self.generation))
        return {
            "failed": self.catalogue.count("failed"),
            "with_position": sum(photo.lat is not None for photo in self.photos()),
            "local_bytes": disk_use(self.layout.local(self.generation)),
            "panoramas": fit.panoramas,
            "places_by": places.places,
            "place_radius_m": places.place_radius_m,
            "factory": self.manifest.factory,
            "search_recall": self.manifest.recall,
            "recall": search.recall,
            "memory": search.memory,
            "bytes": disk_use(self.path),
        }

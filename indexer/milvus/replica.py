"""A snapshot on Milvus, answered from without the index's folder. Any number of replicas may run."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from indexer.addresses import Address
from indexer.answers import Photo, Place
from indexer.errors import IndexerError, IndexMissing, NotFound
from indexer.filters import Filters
from indexer.milvus.client import Milvus
from indexer.milvus.entities import Entity, expression_of, hit_of, passing, vectors_of
from indexer.search.additions import exact_cosines
from indexer.search.filter_columns import Counts
from indexer.search.searcher import Rank, Scored, Searcher
from indexer.search.verification import Features
from indexer.snapshots.manifest import Manifest, manifest_of
from indexer.snapshots.store import Floats

UNCOUNTED = sys.maxsize
"""Upper bound of the places that photos on Milvus show."""


class Replica:
    """A snapshot on Milvus: a source of answers for `indexer.index.Index`, with the members of `Folder`.

    Its answers equal those of the folder that was sent. Photos' files, changes and sequences need the folder.
    """

    writable = False

    def __init__(self, milvus: Milvus, collection: str) -> None:
        self._milvus = milvus
        self._collection = collection
        self.manifest = _manifest(milvus, collection)
        self.searcher = FarSearcher(milvus, collection, self.manifest)

    @classmethod
    def open(cls, address: str) -> Replica:
        """Open the snapshot that answers on Milvus.

        Raises:
            UsageError: the address is wrong, or pymilvus is not installed.
            IndexMissing: there is no snapshot.
            StoreUnavailable: the store cannot be reached.
        """
        milvus = Milvus(Address.parse(address))
        return cls(milvus, _current(milvus))

    def latest(self) -> Replica:
        """Return this replica if its snapshot is current, else the current one.

        Raises:
            StoreUnavailable: the store cannot be reached, or is still loading.
        """
        collection = _current(self._milvus)
        # A server that was just started names the collection before it has loaded it.
        self._milvus.count(collection)
        return self if collection == self._collection else Replica(self._milvus, collection)

    @property
    def path(self) -> Path:
        return Path(self._milvus.address.uri)

    def sample(self) -> Floats:
        text = self._milvus.said(f"{self._collection}/sample") or ""
        rows = np.frombuffer(base64.b64decode(text), "<f2").reshape(-1, self.manifest.dim)
        return np.ascontiguousarray(rows, np.float32)

    def ranks(self, _: int) -> Mapping[str, int]:
        ranks: dict[str, int] = json.loads(self._milvus.said(f"{self._collection}/ranks") or "{}")
        return ranks

    def photos(self) -> list[Photo]:
        photos = {row["photo"]: hit_of(row).photo for row in self._entities("")}
        return sorted(photos.values(), key=lambda photo: photo.path)

    def photo(self, photo: str) -> Photo:
        rows = self._entities(f'photo == "{photo}"') if photo.isalnum() else []
        if not rows:
            raise NotFound(f"no photo {photo!r} in this index")
        return hit_of(rows[0]).photo

    def photo_files(self, _: str) -> list[Path]:
        return []

    def places(self) -> list[Place]:
        return sorted(_places(self._entities("")).values(), key=lambda place: place.id)

    def place(self, place: str) -> Place:
        rows = self._entities(f'place == "{place}"') if place.isalnum() else []
        if not rows:
            raise NotFound(f"no place {place!r} in this index")
        (shown,) = _places(rows).values()
        members = {row["photo"]: hit_of(row).photo for row in rows}
        return replace(shown, members=tuple(sorted(members.values(), key=lambda photo: photo.path)))

    def counts(self) -> Counts:
        descriptors = self._milvus.count(self._collection)
        return Counts(
            descriptors, self.manifest.photos + descriptors - self.manifest.count, self.manifest.places
        )

    def drift(self) -> float:
        return 0.0

    def info(self) -> dict[str, Any]:
        places_by, _, radius = self.manifest.places_by.partition(" within ")
        return {
            "failed": 0,
            "with_position": self._milvus.count(self._collection, "lat < 91.0"),
            "local_bytes": 0,
            "panoramas": None,
            "places_by": places_by,
            "place_radius_m": float(radius.removesuffix(" m")),
            "factory": f"{self.manifest.factory}, {self._collection}",
            "search_recall": self.manifest.recall,
            "recall": None,
            "memory": None,
            "bytes": 0,
        }

    def _entities(self, expression: str) -> list[Entity]:
        return sorted(self._milvus.entities(self._collection, expression), key=lambda row: int(row["id"]))


class FarSearcher(Searcher):
    """Searches a collection; see `Searcher`."""

    def __init__(self, milvus: Milvus, collection: str, manifest: Manifest) -> None:
        self._milvus = milvus
        self._collection = collection
        self._manifest = manifest
        text = milvus.said(f"{collection}/local")
        self._packed = np.dtype([_field(field) for field in json.loads(text)]) if text else None

    def _ranking(self, filters: Filters | None) -> tuple[Rank, int]:
        return partial(self._far, expression_of(filters), filters), UNCOUNTED

    def _far(
        self, expression: str, filters: Filters | None, descriptor: Floats, ask: int
    ) -> tuple[list[Scored], bool]:
        rows = self._milvus.search(self._collection, descriptor, ask, expression, self._manifest.probes)
        return _scored(rows, descriptor, filters), len(rows) < ask

    def _local(self, numbers: Sequence[int]) -> dict[int, Features]:
        if self._packed is None:
            return {}
        found = self._milvus.local(self._collection, numbers)
        return {
            number: Features.of(np.frombuffer(found[number], self._packed)[0])
            for number in numbers
            if number in found
        }

    def _views(self, photos: Sequence[str]) -> Mapping[str, int]:
        return self._milvus.views(self._collection, photos)

    def features(self, photo: str) -> list[Features]:
        rows = self._milvus.entities(self._collection, f'photo == "{photo}"')
        return list(self._local(sorted(int(row["id"]) for row in rows)).values())


def _scored(rows: Sequence[Entity], descriptor: Floats, filters: Filters | None) -> list[Scored]:
    """Return the result of a search with exact scores, best first, without what does not pass."""
    if not rows:
        return []
    hits = {int(row["id"]): hit_of(row) for row in rows}
    passed = hits.keys() if filters is None or not filters.narrow else passing(filters, hits)
    scores = exact_cosines(vectors_of(rows), descriptor)
    found = [
        Scored(score, number, hits[number])
        for score, number in zip(scores, hits, strict=True)
        if number in passed
    ]
    return sorted(found, key=lambda one: (-one.score, one.number))


def _field(field: Sequence[Any]) -> tuple[Any, ...]:
    """Return a field of a NumPy record from JSON, which has no tuples."""
    return tuple(tuple(part) if isinstance(part, list) else part for part in field)


def _places(rows: Sequence[Entity]) -> dict[str, Place]:
    members: dict[str, dict[str, None]] = {}
    places: dict[str, Place] = {}
    for row in rows:
        place = hit_of(row).place
        if place is not None:
            places[place.id] = place
            members.setdefault(place.id, {})[row["photo"]] = None
    return {id: replace(place, photos=len(members[id])) for id, place in places.items()}


def _current(milvus: Milvus) -> str:
    collection = milvus.current()
    if collection is None:
        raise IndexMissing(
            f"no index on {milvus.address.uri} named {milvus.address.name}: send one by setting `store` in "
            "'loci index'"
        )
    return collection


def _manifest(milvus: Milvus, collection: str) -> Manifest:
    text = milvus.said(f"{collection}/manifest")
    if text is None:
        raise IndexerError(
            f"the collection {collection} on {milvus.address.uri} is not whole: run 'loci index' again"
        )
    return manifest_of(json.loads(text))

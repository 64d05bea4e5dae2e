"""An index without a folder: a snapshot on Milvus, asked with a model file. As many as wanted may run."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from indexer.addresses import Address
from indexer.answers import KNOWN_SHARE, Photo, Place
from indexer.confidence.calibration import Calibration, check_known_share
from indexer.confidence.judge import Judge
from indexer.errors import IndexerError, IndexMissing, NotFound, UsageError
from indexer.filters import Filters
from indexer.index import Index
from indexer.milvus.client import Entity, Milvus, expression_of, hit_of, passing, vectors_of
from indexer.search.additions import exact_cosines
from indexer.search.filter_columns import Counts
from indexer.search.searcher import Rank, Scored, Searcher
from indexer.search.verification import Features
from indexer.snapshots.manifest import Manifest, manifest_of, other_model
from indexer.snapshots.store import Floats
from model.embedder import Embedder
from model.modelfile import load_model

UNCOUNTED = sys.maxsize
"""Places that photos on Milvus show at most."""
ONLY_THE_WRITER = "a replica has no photos and changes none: ask the service of the index's folder"


class Replica(Index):
    """A snapshot on Milvus; made by `Index.open("milvus://HOST/NAME", model=FILE)`.

    It answers as the index that was sent there does. Photos' files, POSTs and sequences are for that index.
    """

    def __init__(self, milvus: Milvus, collection: str, embedder: Embedder, known_share: float) -> None:
        self._milvus = milvus
        self._collection = collection
        self.manifest = _manifest(milvus, collection)
        if embedder.model.fingerprint != self.manifest.model:
            raise other_model(self.manifest, embedder.model.fingerprint)
        self.embedder = embedder
        self.known_share = check_known_share(known_share)
        self._calibration = Calibration.from_json(self.manifest.calibration)
        self._search = FarSearcher(milvus, collection, self.manifest)
        self._judge = Judge(self._calibration, self.known_share, sample=self._sample, ranks=self._ranks)

    @classmethod
    def open_far(
        cls,
        address: str,
        model: Path | None,
        *,
        device: str = "auto",
        precision: str = "auto",
        known_share: float = KNOWN_SHARE,
    ) -> Replica:
        """Open the snapshot that answers on Milvus.

        Raises:
            UsageError: no such address, no model, or pymilvus is not installed.
            IndexMissing: there is no snapshot.
            ModelMismatch: it was made by another model.
            StoreUnavailable: the store cannot be reached.
        """
        check_known_share(known_share)
        if model is None:
            raise UsageError(
                f"{address} needs `model`: the file generations/NN/model.safetensors of its index"
            )
        milvus = Milvus(Address.parse(address))
        collection = _current(milvus)
        embedder = Embedder(load_model(model), device=device, precision=precision)
        return cls(milvus, collection, embedder, known_share)

    def latest(self) -> Replica:
        """This while its snapshot answers, else the one that does; it shares the network.

        Raises:
            ModelMismatch: that was made by another model, whose file is not here.
            StoreUnavailable: the store cannot be reached, or not be asked yet.
        """
        collection = _current(self._milvus)
        # A server that was just started names the collection before it has loaded it.
        self._milvus.count(collection)
        if collection == self._collection:
            return self
        return Replica(self._milvus, collection, self.embedder, self.known_share)

    @property
    def path(self) -> Path:
        return Path(self._milvus.address.uri)

    def _sample(self) -> Floats:
        text = self._milvus.said(f"{self._collection}/sample") or ""
        rows = np.frombuffer(base64.b64decode(text), "<f2").reshape(-1, self.manifest.dim)
        return np.ascontiguousarray(rows, np.float32)

    def _ranks(self, _: int) -> Mapping[str, int]:
        found: dict[str, int] = json.loads(self._milvus.said(f"{self._collection}/ranks") or "{}")
        return found

    def photo_hits(self, scored: Any, inliers: Any) -> NoReturn:  # noqa: ARG002
        _refuse()

    def follow(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError("a camera's way is followed by the index's folder, not by a replica")

    def descriptors(self) -> NoReturn:
        _refuse()

    def photos(self) -> list[Photo]:
        found = {row["photo"]: hit_of(row).photo for row in self._of("")}
        return sorted(found.values(), key=lambda photo: photo.path)

    def photo(self, photo: str) -> Photo:
        rows = self._of(f'photo == "{photo}"') if photo.isalnum() else []
        if not rows:
            raise NotFound(f"no photo {photo!r} in this index")
        return hit_of(rows[0]).photo

    def photo_file(self, photo: str) -> NoReturn:
        shown = self.photo(photo)
        raise NotFound(f"the file of photo {shown.path} is not here: {ONLY_THE_WRITER}")

    def places(self) -> list[Place]:
        return sorted(_places(self._of("")).values(), key=lambda place: place.id)

    def place(self, place: str) -> Place:
        rows = self._of(f'place == "{place}"') if place.isalnum() else []
        if not rows:
            raise NotFound(f"no place {place!r} in this index")
        (found,) = _places(rows).values()
        members = {row["photo"]: hit_of(row).photo for row in rows}
        return replace(found, members=tuple(sorted(members.values(), key=lambda photo: photo.path)))

    @property
    def catalogue(self) -> Any:
        _refuse()

    def posting(self) -> NoReturn:
        _refuse()

    def counts(self) -> Counts:
        descriptors = self._milvus.count(self._collection)
        return Counts(
            descriptors, self.manifest.photos + descriptors - self.manifest.count, self.manifest.places
        )

    def drift(self) -> float:
        return 0.0

    def rebuild(self) -> NoReturn:
        _refuse()

    def info(self) -> dict[str, Any]:
        """What is known of it here."""
        places_by, _, radius = self.manifest.places_by.partition(" within ")
        return self._described(failed=0) | {
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

    def _of(self, expression: str) -> list[Entity]:
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
    """What a search found, scored as every store's hits are, best first, without what does not pass."""
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
    """A field of a NumPy record, from JSON, which has no tuples."""
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


def _refuse() -> NoReturn:
    raise UsageError(ONLY_THE_WRITER)

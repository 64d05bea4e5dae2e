"""An opened index: one snapshot that does not change, and the straight way from a photo to an answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.answers import Answer, Photo, PhotoHit, Place, PlaceHit, Position
from indexer.catalogue import Catalogue, Hit
from indexer.errors import ModelMismatch, NotFound, UsageError
from indexer.layout import Layout, generation_of
from indexer.localise import group_hits, locate
from indexer.options import load_options
from indexer.shards import read_slots
from indexer.snapshot import Manifest, open_store, other_model, read_manifest
from indexer.stores.faiss import FaissStore
from model.embedder import Embedder
from model.errors import ImageError
from model.images import Source, read_photo
from model.modelfile import load_model, read_header

Floats = NDArray[np.float32]

LOCATE_BY = 20  # best photos that the position is found from
PHOTOS_A_PLACE = 5  # shown in an answer
NOT_CALIBRATED = "this version does not say how sure it is"


class Index:
    """One snapshot of an index, opened; made by `Index.open`.

    Search and catalogue may be used from many threads; `query` and `embed` use the network and are for one
    thread at a time.
    """

    def __init__(
        self, layout: Layout, manifest: Manifest, catalogue: Catalogue, store: FaissStore, embedder: Embedder
    ) -> None:
        self._layout = layout
        self._catalogue = catalogue
        self._store = store
        self.manifest = manifest
        self.embedder = embedder

    @classmethod
    def open(cls, path: Path | str, *, device: str = "auto", precision: str = "auto") -> Index:
        """Open the current snapshot of the index in the folder `path` and load its network.

        Raises:
            IndexMissing: there is no index, or its first run has not finished.
            FormatTooNew: a newer version wrote it.
            IndexerError: it is damaged beyond what the shards can mend.
            ModelError: no such device or precision.
        """
        layout = Layout(Path(path))
        manifest = read_manifest(layout, layout.current())
        model = load_model(layout.model(generation_of(manifest.snapshot)))
        embedder = Embedder(model, device=device, precision=precision)
        return cls._with(layout, manifest, embedder)

    @classmethod
    def _with(cls, layout: Layout, manifest: Manifest, embedder: Embedder) -> Index:
        header = read_header(layout.model(generation_of(manifest.snapshot)))
        if header["fingerprint"] != manifest.model:
            raise other_model(manifest, header["fingerprint"])
        catalogue = Catalogue(layout.folder)
        return cls(layout, manifest, catalogue, open_store(layout, catalogue, manifest), embedder)

    def latest(self) -> Index:
        """This index while its snapshot is current, else the current one; it shares an unchanged network."""
        name = self._layout.current()
        if name == self.manifest.snapshot:
            return self
        manifest = read_manifest(self._layout, name)
        embedder = self.embedder
        if manifest.model != self.manifest.model:
            model = load_model(self._layout.model(generation_of(name)))
            embedder = self.embedder.with_model(model)
        return self._with(self._layout, manifest, embedder)

    @property
    def path(self) -> Path:
        return self._layout.folder

    @property
    def snapshot(self) -> str:
        return self.manifest.snapshot

    @property
    def model_fingerprint(self) -> str:
        return self.manifest.model

    @property
    def image_size(self) -> int:
        """Longest side in pixels of what the network sees."""
        return self.embedder.model.config.image_size

    def query(self, photo: Source, k: int = 5) -> Answer:
        """Where was this photo taken: the k nearest places, and the position.

        Args:
            photo: a path, the bytes of an image file, or an open binary file.

        Raises:
            ImageError: it cannot be read.
        """
        return self.query_clip([photo], k)

    def query_clip(
        self,
        frames: Sequence[Source],
        k: int = 5,
        *,
        on_unreadable: Callable[[Source, ImageError], None] | None = None,
    ) -> Answer:
        """Where were these photos of one place taken; they are pooled as one, in whatever order.

        Args:
            on_unreadable: told of each frame that cannot be read, which is then left out.

        Raises:
            ImageError: a frame cannot be read; with `on_unreadable`, none can.
            ModelError: there is no frame.
        """
        start = time.perf_counter()
        images = []
        for frame in frames:
            try:
                images.append(read_photo(frame, self.image_size))
            except ImageError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(frame, error)
        if frames and not images:
            raise ImageError("no frame of the clip can be read")
        decoded = time.perf_counter()
        descriptor = self.embedder.embed_clips([images])[0]
        embedded = time.perf_counter()
        timings = {"decode": 1000 * (decoded - start), "embed": 1000 * (embedded - decoded)}
        return self.answer(descriptor, k, timings)

    def embed(self, photos: Sequence[Source]) -> Floats:
        """Descriptors of photos, B d, unit length. Raises ImageError for the first that cannot be read."""
        return self.embedder.embed([read_photo(photo, self.image_size) for photo in photos])

    def answer(self, descriptor: Floats, k: int = 5, timings_ms: Mapping[str, float] | None = None) -> Answer:
        """The answer for a photo's descriptor (d): search → places → position.

        Raises:
            UsageError: `k` is below 1.
            ModelMismatch: a descriptor of another dimension than this index's.
        """
        if k < 1:
            raise UsageError(f"k counts places and must be at least 1, got {k}")
        start = time.perf_counter()
        hits, places = self._hits_of_places(descriptor, k)
        position = locate([_photo_hit(score, hit) for score, hit in hits[:LOCATE_BY]])
        timings = dict(timings_ms or {}) | {"search": 1000 * (time.perf_counter() - start)}
        if position is not None:  # to a centimetre and a decimetre
            position = Position(round(position.lat, 7), round(position.lon, 7), round(position.radius_m, 1))
        note = NOT_CALIBRATED
        if position is None:
            note += "; none of the nearest photos has a position"
        return Answer(
            known=None,
            confidence=None,
            position=position,
            places=places,
            model=self.manifest.model,
            snapshot=self.manifest.snapshot,
            timings_ms=timings,
            note=note,
        )

    def nearest(self, descriptor: Floats, n: int) -> list[PhotoHit]:
        """The n photos most like a descriptor (d), best first."""
        return [_photo_hit(score, hit) for score, hit in self._hits(descriptor, n)]

    def _hits(self, descriptor: Floats, n: int) -> list[tuple[float, Hit]]:
        """Score and photo of the n nearest photos; a panorama counts once, by its best view."""
        if descriptor.shape != (self.manifest.dim,):
            raise ModelMismatch(
                f"this index has {self.manifest.dim}-D descriptors, got one of shape {descriptor.shape}"
            )
        ask = n + 8
        while True:
            scores, ids = self._store.search(descriptor[None], min(ask, self._store.count))
            found = self._catalogue.hits([int(i) for i in ids[0]])
            best: dict[str, tuple[float, Hit]] = {}
            for score, number in zip(scores[0], ids[0], strict=True):
                hit = found.get(int(number))  # None: removed since the snapshot was made
                if hit is not None and hit.photo.id not in best:
                    best[hit.photo.id] = (float(score), hit)
            if len(best) >= n or ask >= self._store.count:
                return list(best.values())[:n]
            ask *= 4

    def _hits_of_places(
        self, descriptor: Floats, k: int
    ) -> tuple[list[tuple[float, Hit]], tuple[PlaceHit, ...]]:
        """The nearest photos, as many as it takes to name k places (or all), and those places."""
        n = max(LOCATE_BY, 4 * PHOTOS_A_PLACE * k)
        while True:
            hits = self._hits(descriptor, n)
            places = self._places(hits, k)
            if len(places) >= min(k, self.manifest.places) or len(hits) < n:
                return hits, places
            n *= 4

    def _places(self, hits: Sequence[tuple[float, Hit]], k: int) -> tuple[PlaceHit, ...]:
        """The k best places that the hits show, with the best of their photos."""
        places = {hit.photo.id: hit.place for _, hit in hits}
        found = group_hits((_photo_hit(score, hit) for score, hit in hits), places.get)
        return tuple(replace(place, photos=place.photos[:PHOTOS_A_PLACE]) for place in found[:k])

    def descriptors(self) -> tuple[list[str], Floats]:
        """Photo ids and descriptors (n d) of everything searched, views of panoramas one by one."""
        generation = generation_of(self.snapshot)
        live = self._catalogue.live_descriptors(generation)
        slots = [slot for _, _, slot in live]
        blocks = list(read_slots(self._layout.shards(generation), slots, self.manifest.dim))
        empty = np.empty((0, self.manifest.dim), np.float32)
        return [photo for _, photo, _ in live], np.concatenate([empty, *blocks])

    def photos(self) -> list[Photo]:
        """Every photo of the index, by path."""
        return self._catalogue.photos()

    def photo(self, photo: str) -> Photo:
        """One photo by id. Raises NotFound."""
        return self._catalogue.photo(photo)

    def photo_file(self, photo: str) -> Path:
        """A file that holds a photo. Raises NotFound when no such photo, or none of its files, is there."""
        shown = self._catalogue.photo(photo)
        for path in self._catalogue.file_of(photo):
            if path.is_file():
                return path
        raise NotFound(f"the file of photo {shown.path} is not there any more")

    def places(self) -> list[Place]:
        """Every place, with how many photos show it."""
        return self._catalogue.places()

    def place(self, place: str) -> Place:
        """One place with its photos, by id. Raises NotFound."""
        return self._catalogue.place(place)

    @property
    def catalogue(self) -> Catalogue:
        return self._catalogue

    def info(self) -> dict[str, Any]:
        """What is in the index and how it was made."""
        generation = generation_of(self.snapshot)
        fit, places = load_options(self._layout.options(generation))
        config = self.embedder.model.config
        return {
            "photos": self.manifest.photos,
            "failed": self._catalogue.count("failed"),
            "places": self.manifest.places,
            "dim": self.manifest.dim,
            "clusters": config.clusters,
            "model": self.manifest.model,
            "snapshot": self.snapshot,
            "descriptors": self.manifest.count,
            "with_position": sum(photo.lat is not None for photo in self.photos()),
            "image_size": config.image_size,
            "panoramas": fit.panoramas,
            "pooling": config.pooling,
            "pooling_settings": config.pooling_settings(),
            "backbone": config.backbone,
            "weights": config.weights,
            "whitening_power": config.power,
            "fit": config.provenance,
            "places_by": places.places,
            "place_radius_m": places.place_radius_m,
            "factory": self.manifest.factory,
            "search_recall": self.manifest.recall,
            "created_at": self.manifest.created_at,
            **self.embedder.describe(),
            "bytes": _disk_use(self.path),
        }


def _photo_hit(score: float, hit: Hit) -> PhotoHit:
    photo = hit.photo
    heading = None if photo.heading is None else (photo.heading + hit.yaw) % 360
    return PhotoHit(
        photo.id,
        photo.path,
        min(1.0, round(score, 6)),  # what fp32 rounding leaves of a cosine is not worth more digits
        lat=photo.lat,
        lon=photo.lon,
        heading=heading,
        taken_at=photo.taken_at,
    )


def _disk_use(folder: Path) -> int:
    """Bytes that files take on disk; shards are preallocated, so that their size says more than they take."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a run beside this one drops what is old
                stat = (Path(parent) / name).lstat()
                total += int(getattr(stat, "st_blocks", stat.st_size / 512)) * 512
    return total

"""An opened index: one snapshot, what was added since, and the straight way from a photo to an answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.additions import Additions, Searched
from indexer.answers import Answer, Photo, PhotoHit, Place, PlaceHit, Position
from indexer.catalogue import Catalogue, Hit
from indexer.columns import Selection, Table
from indexer.errors import ModelMismatch, NotFound, UsageError
from indexer.filters import Filters
from indexer.following import Follower, FrameAnswer, MotionKind, PhotoMap, follow_all
from indexer.geo import haversine_m
from indexer.layout import Layout, generation_of
from indexer.localise import group_hits, locate
from indexer.motion import Step
from indexer.options import load_options
from indexer.posting import Posting
from indexer.rebuild import rebuild
from indexer.sequences import KNOWN_SHARE
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


@dataclass(frozen=True)
class Counts:
    """How much is searched."""

    descriptors: int
    photos: int
    places: int


class Index:
    """One snapshot of an index, opened; made by `Index.open`. What is added or removed later shows at once.

    Search and catalogue may be used from many threads; `query` and `embed` use the network and are for one
    thread at a time.
    """

    def __init__(
        self, layout: Layout, manifest: Manifest, catalogue: Catalogue, store: FaissStore, embedder: Embedder
    ) -> None:
        self._layout = layout
        self._catalogue = catalogue
        self.manifest = manifest
        self.embedder = embedder
        self._additions = Additions(layout, catalogue, manifest.snapshot, manifest.dim, store)
        self._table = Table(catalogue, generation_of(manifest.snapshot))
        self._counts: tuple[int, Counts] | None = None
        self._posting: Posting | None = None

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

    def query(self, photo: Source, k: int = 5, *, filters: Filters | None = None) -> Answer:
        """Where was this photo taken: the k nearest places, and the position.

        Args:
            photo: a path, the bytes of an image file, or an open binary file.
            filters: which photos may be in the answer.

        Raises:
            ImageError: it cannot be read.
        """
        return self.query_clip([photo], k, filters=filters)

    def query_clip(
        self,
        frames: Sequence[Source],
        k: int = 5,
        *,
        filters: Filters | None = None,
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
        return self.answer(descriptor, k, timings, filters)

    def follow(
        self,
        k: int = 5,
        *,
        motion: MotionKind = "auto",
        known_share: float = KNOWN_SHARE,
        filters: Filters | None = None,
        remember: bool = False,
    ) -> Follower:
        """Follow a camera that moves, a frame at a time: `follower.update(frame)` says where it is.

        Args:
            k: how many places to name.
            motion: how it moves over the map: `photos` along traverses, which are the photos of each folder
                in the order of their names; `metres` between photos with positions, in whatever order;
                `auto` by metres where half of the photos have a position, else by photos.
            known_share: share of frames that show the map.
            filters: which photos are the map.
            remember: keep the frames, so that `follower.smoothed()` can go back over them.

        Raises:
            UsageError: a value that cannot be, or a map that no camera can be followed in.
            IndexerError: the filters leave no photo.
        """
        searched, selection = self._searched(filters)
        photos = PhotoMap.read(self._catalogue, generation_of(self.snapshot), searched, selection)
        return Follower(
            self,
            photos,
            k=k,
            motion=motion,
            known_share=known_share,
            filters=filters,
            remember=remember,
        )

    def query_sequence(
        self,
        frames: Sequence[Source],
        k: int = 5,
        *,
        motion: MotionKind = "auto",
        steps: Sequence[Step | None] | None = None,
        smooth: bool = False,
        known_share: float = KNOWN_SHARE,
        filters: Filters | None = None,
        on_unreadable: Callable[[Source, ImageError], None] | None = None,
    ) -> list[FrameAnswer]:
        """Where was a moving camera at each of its frames, given in order; see `follow`.

        Args:
            steps: what odometry says of the way to each frame, None where it says nothing; see
                `indexer.odometry`.
            smooth: answer each frame by all of them; else by those up to it alone.
            on_unreadable: told of each frame that cannot be read, which is then left out.

        Raises:
            ImageError: a frame cannot be read, and there is no `on_unreadable`.
            UsageError: as `follow` does, or there are not as many steps as frames.
        """
        if steps is not None and len(steps) != len(frames):
            raise UsageError(f"expected a step for each of {len(frames)} frames, got {len(steps)}")
        follower = self.follow(k, motion=motion, known_share=known_share, filters=filters, remember=smooth)
        answers = list(follow_all(follower, frames, steps, on_unreadable))
        return follower.smoothed() if smooth else answers

    def embed(self, photos: Sequence[Source]) -> Floats:
        """Descriptors of photos, B d, unit length. Raises ImageError for the first that cannot be read."""
        return self.embedder.embed([read_photo(photo, self.image_size) for photo in photos])

    def answer(
        self,
        descriptor: Floats,
        k: int = 5,
        timings_ms: Mapping[str, float] | None = None,
        filters: Filters | None = None,
    ) -> Answer:
        """The answer for a photo's descriptor (d): search → places → position.

        Raises:
            UsageError: `k` is below 1.
            ModelMismatch: a descriptor of another dimension than this index's.
        """
        if k < 1:
            raise UsageError(f"k counts places and must be at least 1, got {k}")
        start = time.perf_counter()
        hits, places = self._hits_of_places(descriptor, k, filters)
        position = locate([_photo_hit(score, hit) for score, hit in hits[:LOCATE_BY]])
        timings = dict(timings_ms or {}) | {"search": 1000 * (time.perf_counter() - start)}
        if position is not None:  # to a centimetre and a decimetre
            position = Position(round(position.lat, 7), round(position.lon, 7), round(position.radius_m, 1))
        note = NOT_CALIBRATED
        if not hits:
            note += "; no photo passes the filters" if filters and filters.narrow else "; the index is empty"
        elif position is None:
            note += "; none of the nearest photos has a position"
        return Answer(
            known=None,
            confidence=None,
            position=position,
            places=_with_distances(places, filters),
            model=self.manifest.model,
            snapshot=self.manifest.snapshot,
            timings_ms=timings,
            note=note,
        )

    def nearest(self, descriptor: Floats, n: int, filters: Filters | None = None) -> list[PhotoHit]:
        """The n photos most like a descriptor (d), best first."""
        searched, selection = self._searched(filters)
        return [
            _photo_hit(score, hit) for score, hit in self._hits(descriptor, n, searched, selection, filters)
        ]

    def photo_hits(self, scored: Sequence[tuple[float, int]]) -> list[tuple[PhotoHit, Place | None] | None]:
        """The photos and places of descriptors, given by score and id; None where one was removed since."""
        hits = self._catalogue.hits([number for _, number in scored])
        found = [(score, hits.get(number)) for score, number in scored]
        return [None if hit is None else (_photo_hit(score, hit), hit.place) for score, hit in found]

    def with_distances(self, places: Sequence[PlaceHit], filters: Filters | None) -> tuple[PlaceHit, ...]:
        """Places with how far each is from the position that the query named."""
        return _with_distances(places, filters)

    def _searched(self, filters: Filters | None) -> tuple[Searched, Selection | None]:
        """What is searched now, and which of it where filters leave some out."""
        # In this order: a photo added in between is searched and not selected, which does no harm.
        selection = self._table.select(filters) if filters is not None and filters.narrow else None
        return self._additions.current(), selection

    def _hits(
        self,
        descriptor: Floats,
        n: int,
        searched: Searched,
        selection: Selection | None,
        filters: Filters | None,
    ) -> list[tuple[float, Hit]]:
        """Score and photo of the n nearest photos; a panorama counts once, by its best view."""
        if descriptor.shape != (self.manifest.dim,):
            raise ModelMismatch(
                f"this index has {self.manifest.dim}-D descriptors, got one of shape {descriptor.shape}"
            )
        among = None if selection is None else selection.ids
        count = searched.count if among is None else len(among)
        ask = n + 8
        while count:
            found = searched.search(descriptor, min(ask, count), among)
            shown = self._shown([number for _, number in found], filters if among is not None else None)
            best: dict[str, tuple[float, Hit]] = {}
            for score, number in found:
                hit = shown.get(number)
                if hit is not None and hit.photo.id not in best:
                    best[hit.photo.id] = (score, hit)
            if len(best) >= n or ask >= count:
                return list(best.values())[:n]
            ask *= 4
        return []

    def _shown(self, numbers: Sequence[int], filters: Filters | None) -> dict[int, Hit]:
        """The photos of descriptors, without those removed since, or changed so that they do not pass."""
        hits = self._catalogue.hits(numbers)
        if filters is None:
            return hits
        passing = self._table.passing(filters, [hit.row(number) for number, hit in hits.items()])
        return {number: hit for number, hit in hits.items() if number in passing}

    def _hits_of_places(
        self, descriptor: Floats, k: int, filters: Filters | None
    ) -> tuple[list[tuple[float, Hit]], tuple[PlaceHit, ...]]:
        """The nearest photos, as many as it takes to name k places (or all), and those places."""
        searched, selection = self._searched(filters)
        most = self.manifest.places + searched.count - self.manifest.count
        if selection is not None:
            most = selection.places
        n = max(LOCATE_BY, 4 * PHOTOS_A_PLACE * k)
        while True:
            hits = self._hits(descriptor, n, searched, selection, filters)
            places = self._places(hits, k)
            if len(places) >= min(k, most) or len(hits) < n:
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

    def posting(self) -> Posting:
        """What adds photos, with descriptors of this index's model, and removes them.

        Raises:
            IndexerError: the index cannot be written.
        """
        if self._posting is None:
            self._posting = Posting(self._layout, generation_of(self.snapshot), self.manifest.dim)
        return self._posting

    def counts(self) -> Counts:
        """What is searched now; counted anew only after a change."""
        change = self._catalogue.last_change()
        if self._counts is None or self._counts[0] != change:
            found = self._catalogue.searched_counts(generation_of(self.snapshot))
            self._counts = (change, Counts(*found))
        return self._counts[1]

    def drift(self) -> float:
        """How many descriptors were added to the snapshot or died in it since, as a share of it."""
        searched = self._additions.current()
        dead = max(searched.count - self.counts().descriptors, 0)
        return (searched.count - searched.snapshot.count + dead) / max(searched.snapshot.count, 1)

    def rebuild(self) -> None:
        """Publish the next snapshot, which `latest` then gives. Raises as `indexer.rebuild.rebuild` does."""
        rebuild(self.path)

    def info(self) -> dict[str, Any]:
        """What is in the index and how it was made."""
        generation = generation_of(self.snapshot)
        counts = self.counts()
        fit, places = load_options(self._layout.options(generation))
        config = self.embedder.model.config
        return {
            "photos": counts.photos,
            "failed": self._catalogue.count("failed"),
            "places": counts.places,
            "dim": self.manifest.dim,
            "clusters": config.clusters,
            "model": self.manifest.model,
            "snapshot": self.snapshot,
            "descriptors": counts.descriptors,
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


def _with_distances(places: Sequence[PlaceHit], filters: Filters | None) -> tuple[PlaceHit, ...]:
    """Places with how far each is from the position that the query named."""
    if filters is None or filters.position is None:
        return tuple(places)
    lat, lon = filters.position
    return tuple(
        place
        if place.lat is None or place.lon is None
        else replace(place, distance_m=round(float(haversine_m(lat, lon, place.lat, place.lon)), 1))
        for place in places
    )


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

"""An opened index: one snapshot, what was added since, and the straight way from a photo to an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.addresses import SCHEME
from indexer.answers import KNOWN_SHARE, Answer, Photo, PhotoHit, Place, PlaceHit
from indexer.build.rebuild import rebuild
from indexer.confidence.calibration import KNOWN_FROM, Calibration, check_known_share
from indexer.confidence.evidence import WEIGHED
from indexer.confidence.judge import Judge, Judgement
from indexer.errors import NotFound, UsageError
from indexer.filters import Filters
from indexer.options import load_options
from indexer.photos.reader import Reader
from indexer.places.neighbourhood import frame_ranks
from indexer.posting.posting import Posting
from indexer.search.filter_columns import Counts
from indexer.search.localisation import LOCATE_BY, locate
from indexer.search.searcher import Question, Scored, Searcher, grouped
from indexer.search.showing import rounded, shown_places, why_untold
from indexer.search.verification import Features, Matches, matches
from indexer.sequences.follower import Follower, FrameAnswer, MotionKind, PhotoMap, follow_all
from indexer.sequences.motion import Step
from indexer.snapshots.manifest import Manifest, opened_store, other_model, read_manifest
from indexer.snapshots.store import Store, sample_of
from indexer.storage.catalogue import Catalogue
from indexer.storage.layout import Layout, disk_use, generation_of
from indexer.storage.shards import read_slots
from model.embedder import Embedder, Seen
from model.errors import ImageError
from model.gpu_decoding import Image
from model.images import MAX_PIXELS, Source
from model.modelfile import load_model, read_header

Floats = NDArray[np.float32]


class Index:
    """One snapshot of an index, opened; made by `Index.open`. What is added or removed later shows at once.

    Search and catalogue may be used from many threads; `query` and `embed` use the network and are for one
    thread at a time.
    """

    def __init__(
        self,
        layout: Layout,
        manifest: Manifest,
        catalogue: Catalogue,
        store: Store,
        embedder: Embedder,
        known_share: float = KNOWN_SHARE,
    ) -> None:
        self._layout = layout
        self._catalogue = catalogue
        self.manifest = manifest
        self.embedder = embedder
        self.known_share = check_known_share(known_share)
        self._search = Searcher(layout, catalogue, manifest, store)
        self._calibration = Calibration.from_json(manifest.calibration)
        self._judge = Judge(
            self._calibration,
            self.known_share,
            sample=lambda: sample_of(store),
            ranks=lambda frames: frame_ranks(catalogue.place_photos(), frames),
        )
        self._counts: tuple[int, Counts] | None = None
        self._posting: Posting | None = None

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        device: str = "auto",
        precision: str = "auto",
        known_share: float = KNOWN_SHARE,
        model: Path | None = None,
    ) -> Index:
        """Open the current snapshot of the index in the folder `path` and load its network.

        Args:
            path: the folder, or milvus://HOST/NAME for a snapshot that was sent there; see
                `indexer.milvus.replica.Replica`.
            known_share: share of the queries that show a place of the index, between 0 and 1; confidence
                holds for it.
            model: the model file, where there is no folder that has it.

        Raises:
            UsageError: `known_share` is no such share.
            IndexMissing: there is no index, or its first run has not finished.
            FormatTooNew: a newer version wrote it.
            IndexerError: it is damaged beyond what the shards can mend.
            ModelError: no such device or precision.
        """
        check_known_share(known_share)
        if str(path).startswith(SCHEME):
            from indexer.milvus.replica import Replica

            return Replica.open_far(
                str(path), model, device=device, precision=precision, known_share=known_share
            )
        layout = Layout(Path(path))
        manifest = read_manifest(layout, layout.current())
        network = load_model(layout.model(generation_of(manifest.snapshot)))
        embedder = Embedder(network, device=device, precision=precision)
        return cls._with(layout, manifest, embedder, known_share)

    @classmethod
    def _with(cls, layout: Layout, manifest: Manifest, embedder: Embedder, known_share: float) -> Index:
        header = read_header(layout.model(generation_of(manifest.snapshot)))
        if header["fingerprint"] != manifest.model:
            raise other_model(manifest, header["fingerprint"])
        catalogue = Catalogue(layout.folder)
        store = opened_store(layout, catalogue, manifest)
        return cls(layout, manifest, catalogue, store, embedder, known_share)

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
        return self._with(self._layout, manifest, embedder, self.known_share)

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

    @property
    def min_image_size(self) -> int:
        """Longest side in pixels to which smaller photos are enlarged for the network."""
        return self.embedder.model.config.min_image_size

    def query(
        self,
        photo: Source,
        k: int = 5,
        *,
        filters: Filters | None = None,
        verify: bool = True,
        matched: bool = False,
    ) -> Answer:
        """Where was this photo taken: the k nearest places, and the position.

        Args:
            photo: a path, the bytes of an image file, or an open binary file.
            filters: which photos may be in the answer.
            verify: look at the nearest photos once more, by their local features, where the index has them.
            matched: list where the photos verified show the same as this one.

        Raises:
            ImageError: it cannot be read.
        """
        return self.query_clip([photo], k, filters=filters, verify=verify, matched=matched)

    def query_clip(
        self,
        frames: Sequence[Source],
        k: int = 5,
        *,
        filters: Filters | None = None,
        verify: bool = True,
        matched: bool = False,
        on_unreadable: Callable[[Source, ImageError], None] | None = None,
    ) -> Answer:
        """Where were these photos of one place taken; they are pooled as one, in whatever order.

        Args:
            verify: as in `query`; a clip of several frames is never verified.
            matched: as in `query`.
            on_unreadable: told of each frame that cannot be read, which is then left out.

        Raises:
            ImageError: a frame cannot be read; with `on_unreadable`, none can.
            ModelError: there is no frame.
        """
        start = time.perf_counter()
        images = []
        for frame in frames:
            try:
                images.append(self.read(frame))
            except ImageError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(frame, error)
        if frames and not images:
            raise ImageError("no frame of the clip can be read")
        decoded = time.perf_counter()
        seen = self.embedder.see([images])[0]
        embedded = time.perf_counter()
        timings = {"decode": 1000 * (decoded - start), "embed": 1000 * (embedded - decoded)}
        return self.answer(seen, k, timings, filters, verify, matched)

    def follow(
        self,
        k: int = 5,
        *,
        motion: MotionKind = "auto",
        known_share: float | None = None,
        filters: Filters | None = None,
        verify: bool = True,
        remember: bool = False,
    ) -> Follower:
        """Follow a camera that moves, a frame at a time: `follower.update(frame)` says where it is.

        Args:
            k: how many places to name.
            motion: how it moves over the map: `photos` along traverses, which are the photos of each folder
                in the order of their names; `metres` between photos with positions, in whatever order;
                `auto` by metres where half of the photos have a position, else by photos.
            known_share: share of frames that show the map; None: this index's share of queries.
            filters: which photos are the map.
            verify: look at the photos most like a frame once more, as in `query`.
            remember: keep the frames, so that `follower.smoothed()` can go back over them.

        Raises:
            UsageError: a value that cannot be, or a map that no camera can be followed in.
            IndexerError: the filters leave no photo.
        """
        searched, selection = self._search.selected(filters)
        photos = PhotoMap.read(self._catalogue, generation_of(self.snapshot), searched, selection)
        return Follower(
            self,
            photos,
            k=k,
            motion=motion,
            known_share=self.known_share if known_share is None else known_share,
            filters=filters,
            verify=verify,
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
        known_share: float | None = None,
        filters: Filters | None = None,
        verify: bool = True,
        on_unreadable: Callable[[Source, ImageError], None] | None = None,
    ) -> list[FrameAnswer]:
        """Where was a moving camera at each of its frames, given in order; see `follow`.

        Args:
            steps: what odometry says of the way to each frame, None where it says nothing; see
                `indexer.sequences.odometry`.
            smooth: answer each frame by all of them; else by those up to it alone.
            verify: look at the photos most like a frame once more, as in `query`.
            on_unreadable: told of each frame that cannot be read, which is then left out.

        Raises:
            ImageError: a frame cannot be read, and there is no `on_unreadable`.
            UsageError: as `follow` does, or there are not as many steps as frames.
        """
        if steps is not None and len(steps) != len(frames):
            raise UsageError(f"expected a step for each of {len(frames)} frames, got {len(steps)}")
        follower = self.follow(
            k, motion=motion, known_share=known_share, filters=filters, verify=verify, remember=smooth
        )
        answers = list(follow_all(follower, frames, steps, on_unreadable))
        return follower.smoothed() if smooth else answers

    def embed(self, photos: Sequence[Source]) -> Floats:
        """Descriptors of photos, B d, unit length. Raises ImageError for the first that cannot be read."""
        return self.embedder.embed([self.read(photo) for photo in photos])

    @property
    def reader(self) -> Reader:
        """What reads query photos as this index's network takes them."""
        return Reader(self.image_size, None, self.min_image_size, self.embedder.read)

    def read(self, photo: Source, *, max_pixels: int = MAX_PIXELS) -> Image:
        """A photo as this index's network takes it, H W 3. Raises ImageError."""
        return self.embedder.read(photo, self.image_size, self.min_image_size, max_pixels=max_pixels)

    def answer(
        self,
        seen: Seen | Floats | Question,
        k: int = 5,
        timings_ms: Mapping[str, float] | None = None,
        filters: Filters | None = None,
        verify: bool = True,
        matched: bool = False,
    ) -> Answer:
        """The answer for what a photo was seen as: search → verify → places → position, and how sure it is.

        Args:
            seen: by this index's model; a descriptor (d) alone is answered without verification. A question
                that is asked more than once is verified once.
            matched: list where the photos verified show the same.

        Raises:
            UsageError: `k` is below 1.
            ModelMismatch: a descriptor of another dimension than this index's.
        """
        if k < 1:
            raise UsageError(f"k counts places and must be at least 1, got {k}")
        start = time.perf_counter()
        question = Question.of(seen, verify=verify)
        hits, places = self._search.with_places(question, k, filters)
        position = locate(
            [found.shown() for found in hits[:LOCATE_BY]], radius_factor=self._judge.radius_factor
        )
        judgement = self._judgement(question, places, filters)
        shown = shown_places(places[:k], judgement, filters)
        if matched:
            shown = self._search.matched(question, hits, shown)
        timings = dict(timings_ms or {})
        timings["search"] = 1000 * (time.perf_counter() - start) - question.verify_ms
        if question.features is not None:
            timings["verify"] = question.verify_ms
        return Answer(
            known=None if judgement.confidence is None else judgement.confidence >= KNOWN_FROM,
            confidence=judgement.confidence,
            position=None if position is None else rounded(position),
            places=shown,
            model=self.manifest.model,
            snapshot=self.manifest.snapshot,
            timings_ms=timings,
            note=why_untold(judgement, places, position, filters),
        )

    def _judgement(
        self, question: Question, places: Sequence[PlaceHit], filters: Filters | None
    ) -> Judgement:
        rivals = places
        if places and self._judge.judges and filters is not None and filters.narrow:
            rivals = grouped(self._search.nearest(question, WEIGHED))
        return self._judge.judge(question.descriptor, places, rivals)

    def nearest(
        self, seen: Seen | Floats | Question, n: int, filters: Filters | None = None, *, verify: bool = True
    ) -> list[PhotoHit]:
        """The n photos most like what a photo was seen as, best first; see `answer`."""
        question = Question.of(seen, verify=verify)
        return [found.shown() for found in self._search.nearest(question, n, filters)]

    def photo_hits(
        self, scored: Sequence[tuple[float, int]], inliers: Mapping[int, int]
    ) -> list[tuple[PhotoHit, Place | None] | None]:
        """The photos and places of descriptors, given by cosine and id; None where one was removed since.

        Args:
            inliers: by id, of those that were verified.
        """
        hits = self._catalogue.hits([number for _, number in scored])
        found = [
            Scored(score, number, hits[number]).verified(inliers.get(number)) if number in hits else None
            for score, number in scored
        ]
        return [None if one is None else (one.shown(), one.hit.place) for one in found]

    def verify(self, question: Question, numbers: Sequence[int]) -> None:
        """Find out what of a query the photos of these descriptors show too; the question then knows it."""
        self._search.verify(question, numbers)

    def see(self, photo: Source) -> Seen:
        """What a photo is seen as: its descriptor and local features. Raises ImageError."""
        return self.embedder.see([[self.read(photo)]])[0]

    def matches(self, seen: Seen, id: str) -> Matches | None:
        """Where a photo and one of the index show the same; None where the index keeps no local features.

        Of a panorama, by the view that agrees most.

        Raises:
            NotFound: there is no photo of that id.
        """
        self.photo(id)
        views = self._search.features(id)
        if seen.local is None or not views:
            return None
        asked = Features.of(seen.local)
        return max((matches(asked, view) for view in views), key=lambda found: len(found.query))

    @property
    def verifies(self) -> bool:
        """Whether this index keeps local features to verify answers by."""
        return self.embedder.model.local is not None

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
            self._posting = Posting(
                self._layout, generation_of(self.snapshot), self.manifest.dim, self.embedder.read
            )
        return self._posting

    def counts(self) -> Counts:
        """What is searched now; counted anew only after a change."""
        change = self._catalogue.last_change()
        if self._counts is None or self._counts[0] != change:
            found = Counts(self.manifest.count, self.manifest.photos, self.manifest.places)
            if change != self.manifest.change:
                found = self._search.counts()
            self._counts = (change, found)
        return self._counts[1]

    def drift(self) -> float:
        """How many descriptors were added to the snapshot or died in it since, as a share of it."""
        searched = self._search.current()
        dead = max(searched.count - self.counts().descriptors, 0)
        return (searched.count - searched.snapshot.count + dead) / max(searched.snapshot.count, 1)

    def rebuild(self) -> None:
        """Publish the next snapshot, which `latest` then gives. Raises as `indexer.build.rebuild` does."""
        rebuild(self.path)

    def info(self) -> dict[str, Any]:
        """What is in the index and how it was made."""
        generation = generation_of(self.snapshot)
        fit, places, search = load_options(self._layout.options(generation))
        return self._described(self._catalogue.count("failed")) | {
            "with_position": sum(photo.lat is not None for photo in self.photos()),
            "local_bytes": disk_use(self._layout.local(generation)),
            "panoramas": fit.panoramas,
            "places_by": places.places,
            "place_radius_m": places.place_radius_m,
            "factory": self.manifest.factory,
            "search_recall": self.manifest.recall,
            "recall": search.recall,
            "memory": search.memory,
            "bytes": disk_use(self.path),
        }

    def _described(self, failed: int) -> dict[str, Any]:
        """What manifest and model say of it; `failed`: how many photos could not be read."""
        counts, config = self.counts(), self.embedder.model.config
        return {
            "photos": counts.photos,
            "failed": failed,
            "places": counts.places,
            "dim": self.manifest.dim,
            "clusters": config.clusters,
            "model": self.manifest.model,
            "snapshot": self.snapshot,
            "descriptors": counts.descriptors,
            "image_size": config.image_size,
            "min_image_size": config.min_image_size,
            "local_features": config.local_features,
            "pooling": config.pooling,
            "layers": config.layers,
            "pooling_settings": config.pooling_settings(),
            "backbone": config.backbone,
            "weights": config.weights,
            "whitening_power": config.power,
            "fit": config.provenance,
            "calibration": self._calibration.summary() if self._calibration else None,
            "created_at": self.manifest.created_at,
            **self.embedder.describe(),
        }

"""`Index`, an opened index: from a photo to an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from indexer.addresses import SCHEME
from indexer.answers import KNOWN_SHARE, Answer, Photo, PhotoHit, Place, PlaceHit
from indexer.build.rebuild import rebuild
from indexer.confidence.calibration import KNOWN_FROM, Calibration, check_known_share
from indexer.confidence.judge import Judge, Judgement, answer_note, judged_places
from indexer.errors import NotFound, UsageError
from indexer.filters import Filters
from indexer.milvus.replica import Replica
from indexer.photos.reader import Reader
from indexer.posting.posting import Posting
from indexer.search.filter_columns import Counts
from indexer.search.folder import Folder
from indexer.search.localisation import LOCATE_BY, locate, rounded
from indexer.search.searcher import WEIGHED, Question, grouped
from indexer.search.verification import Features, Matches, matches
from indexer.sequences.follower import Follower, FrameAnswer, follow_all
from indexer.sequences.motion import Step
from indexer.sequences.photo_map import MotionKind, PhotoMap
from indexer.snapshots.manifest import other_model
from indexer.snapshots.store import Floats
from indexer.storage.catalogue import Catalogue
from model.embedder import Embedder, Seen
from model.errors import ImageError
from model.gpu_decoding import Image
from model.images import MAX_PIXELS, Source
from model.modelfile import load_model

ONLY_A_FOLDER = "a replica only answers queries: files, changes and sequences need the index's folder"


class Index:
    """An opened index: one snapshot, and what was added or removed since. Made by `Index.open`.

    It answers from a folder, or from a replica on Milvus. Search and catalogue may be used from many threads;
    `query` and `embed` use the network and are for one thread at a time.
    """

    def __init__(
        self, source: Folder | Replica, embedder: Embedder, known_share: float = KNOWN_SHARE
    ) -> None:
        self._source = source
        self.manifest = source.manifest
        self.embedder = embedder
        self.known_share = check_known_share(known_share)
        self._search = source.searcher
        self._calibration = Calibration.from_json(self.manifest.calibration)
        self._judge = Judge(self._calibration, self.known_share, sample=source.sample, ranks=source.ranks)
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
        """Open the current snapshot of an index and load its network.

        Args:
            path: the folder, or milvus://HOST/NAME for a snapshot that was sent there.
            known_share: share of the queries that show a place of the index, between 0 and 1; confidence
                depends on it.
            model: the model file; needed for Milvus only.

        Raises:
            UsageError: `known_share` is not between 0 and 1, the address is wrong, or `model` is missing.
            IndexMissing: there is no index, or its first run has not finished.
            FormatTooNew: a newer version wrote it.
            ModelMismatch: the model file is not the one that made the descriptors.
            StoreUnavailable: Milvus cannot be reached.
            IndexerError: the index is damaged beyond repair from the shards.
            ModelError: no such device or precision.
        """
        check_known_share(known_share)
        source: Folder | Replica
        if not str(path).startswith(SCHEME):
            source = Folder.open(Path(path))
            model = source.model_file
        elif model is None:
            raise UsageError(f"{path} needs `model`: the file generations/NN/model.safetensors of its index")
        else:
            source = Replica.open(str(path))
        return cls.over(source, Embedder(load_model(model), device=device, precision=precision), known_share)

    @classmethod
    def over(cls, source: Folder | Replica, embedder: Embedder, known_share: float = KNOWN_SHARE) -> Index:
        """Return an index over a source. Raises ModelMismatch if another model made its descriptors."""
        if embedder.model.fingerprint != source.manifest.model:
            raise other_model(source.manifest, embedder.model.fingerprint)
        return cls(source, embedder, known_share)

    def latest(self) -> Index:
        """Return this index if its snapshot is current, else the current one; an unchanged network is shared.

        Raises:
            ModelMismatch: another model made the descriptors, and its file is not here.
            StoreUnavailable: Milvus cannot be reached, or is still loading.
        """
        source = self._source.latest()
        if source is self._source:
            return self
        embedder = self.embedder
        if source.manifest.model != self.manifest.model and isinstance(source, Folder):
            embedder = embedder.with_model(load_model(source.model_file))
        return self.over(source, embedder, self.known_share)

    def _folder(self) -> Folder:
        if not isinstance(self._source, Folder):
            raise UsageError(ONLY_A_FOLDER)
        return self._source

    @property
    def writable(self) -> bool:
        """Whether photos can be added and removed here."""
        return self._source.writable

    @property
    def path(self) -> Path:
        return self._source.path

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
        """Find where a photo was taken: its position and the k nearest places.

        Args:
            photo: a path, the bytes of an image file, or an open binary file.
            filters: which photos may be in the answer.
            verify: compare the nearest photos again by local features, if the index has them.
            matched: list matching points of the verified photos.

        Raises:
            ImageError: the photo cannot be read.
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
        """Find where photos of one place were taken. They are pooled as one, in any order.

        Args:
            verify: as in `query`; a clip of several frames is never verified.
            matched: as in `query`.
            on_unreadable: called for each frame that cannot be read, which is then left out.

        Raises:
            ImageError: a frame cannot be read; with `on_unreadable`, if none can.
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
        """Follow a moving camera frame by frame: `follower.update(frame)` returns where it is.

        Args:
            k: number of places in an answer.
            motion: `photos`: along the photos of each folder, in order of name; `metres`: between photos
                with positions; `auto`: metres if half of the photos have a position, else photos.
            known_share: share of frames that show the map; None: this index's share of queries.
            filters: which photos are the map.
            verify: compare the nearest photos again, as in `query`.
            remember: keep the frames, for `follower.smoothed()`.

        Raises:
            UsageError: an impossible value, or a map that no camera can be followed on.
            IndexerError: the filters leave no photo.
        """
        folder = self._folder()
        searched, selection = folder.searcher.selected(filters)
        return Follower(
            folder.searcher,
            self.embedder,
            PhotoMap.read(folder.catalogue, folder.generation, searched, selection),
            model=self.model_fingerprint,
            snapshot=self.snapshot,
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
        """Find where a moving camera was at each of its frames, given in order; see `follow`.

        Args:
            steps: the step to each frame by odometry, or None; see `indexer.sequences.odometry`.
            smooth: use all frames for each answer; otherwise only those up to it.
            verify: compare the nearest photos again, as in `query`.
            on_unreadable: called for each frame that cannot be read, which is then left out.

        Raises:
            ImageError: a frame cannot be read, and there is no `on_unreadable`.
            UsageError: as in `follow`, or the numbers of steps and frames differ.
        """
        if steps is not None and len(steps) != len(frames):
            raise UsageError(f"expected a step for each of {len(frames)} frames, got {len(steps)}")
        follower = self.follow(
            k, motion=motion, known_share=known_share, filters=filters, verify=verify, remember=smooth
        )
        answers = list(follow_all(follower, frames, steps, on_unreadable))
        return follower.smoothed() if smooth else answers

    def embed(self, photos: Sequence[Source]) -> Floats:
        """Return descriptors of photos, B d, unit length. Raises ImageError for an unreadable photo."""
        return self.embedder.embed([self.read(photo) for photo in photos])

    @property
    def reader(self) -> Reader:
        """The reader of query photos for this index's network."""
        return Reader(self.image_size, None, self.min_image_size, self.embedder.read)

    def read(self, photo: Source, *, max_pixels: int = MAX_PIXELS) -> Image:
        """Return a photo as the network takes it, H W 3. Raises ImageError."""
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
        """Answer a photo that the network has seen: search, verify, group into places, locate, judge.

        Args:
            seen: output of this index's model. A descriptor (d) alone is not verified. A question that is
                answered several times is verified once.
            matched: list matching points of the verified photos.

        Raises:
            UsageError: `k` is below 1.
            ModelMismatch: the descriptor's dimension is not this index's.
        """
        if k < 1:
            raise UsageError(f"`k` must be at least 1, got {k}")
        start = time.perf_counter()
        question = Question.of(seen, verify=verify)
        hits, places = self._search.with_places(question, k, filters)
        position = locate(
            [found.shown() for found in hits[:LOCATE_BY]], radius_factor=self._judge.radius_factor
        )
        judgement = self._judgement(question, places, filters)
        shown = judged_places(places[:k], judgement, filters)
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
            note=answer_note(judgement, places, position, filters),
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
        """Return the n nearest photos, best first; see `answer`."""
        question = Question.of(seen, verify=verify)
        return [found.shown() for found in self._search.nearest(question, n, filters)]

    def see(self, photo: Source) -> Seen:
        """Return a photo's descriptor and local features. Raises ImageError."""
        return self.embedder.see([[self.read(photo)]])[0]

    def matches(self, seen: Seen, id: str) -> Matches | None:
        """Return the matching points of a photo and one of the index; None without local features.

        For a panorama, the view with the most matches counts.

        Raises:
            NotFound: there is no photo with that id.
        """
        self.photo(id)
        views = self._search.features(id)
        if seen.local is None or not views:
            return None
        asked = Features.of(seen.local)
        return max((matches(asked, view) for view in views), key=lambda found: len(found.query))

    @property
    def verifies(self) -> bool:
        """Whether this index keeps local features to verify answers."""
        return self.embedder.model.local is not None

    def descriptors(self) -> tuple[list[str], Floats]:
        """Return photo ids and descriptors (n d) of everything searched; a panorama has several."""
        return self._folder().descriptors()

    def photos(self) -> list[Photo]:
        """Return every photo of the index, by path."""
        return self._source.photos()

    def photo(self, photo: str) -> Photo:
        """Return a photo by id. Raises NotFound."""
        return self._source.photo(photo)

    def photo_file(self, photo: str) -> Path:
        """Return a file of a photo. Raises NotFound if there is no such photo, or no file of it is here."""
        shown = self.photo(photo)
        for path in self._source.photo_files(photo):
            return path
        raise NotFound(f"the file of photo {shown.path} is not here")

    def places(self) -> list[Place]:
        """Return every place, with its number of photos."""
        return self._source.places()

    def place(self, place: str) -> Place:
        """Return a place with its photos, by id. Raises NotFound."""
        return self._source.place(place)

    @property
    def catalogue(self) -> Catalogue:
        return self._folder().catalogue

    def posting(self) -> Posting:
        """Return what adds photos, with descriptors of this index's model, and removes them.

        Raises:
            IndexerError: the index cannot be written.
        """
        if self._posting is None:
            folder = self._folder()
            self._posting = Posting(folder.layout, folder.generation, self.manifest.dim, self.embedder.read)
        return self._posting

    def counts(self) -> Counts:
        """Return how much is searched now."""
        return self._source.counts()

    def drift(self) -> float:
        """Return the share of the snapshot's descriptors that were added or removed since."""
        return self._source.drift()

    def rebuild(self) -> None:
        """Publish the next snapshot, which `latest` then returns. Raises as `indexer.build.rebuild` does."""
        rebuild(self._folder().path)

    def info(self) -> dict[str, Any]:
        """Return what is in the index and how it was made."""
        source = self._source.info()
        return self._described(source["failed"]) | source

    def _described(self, failed: int) -> dict[str, Any]:
        """Description from manifest and model; `failed` is the number of unreadable photos."""
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

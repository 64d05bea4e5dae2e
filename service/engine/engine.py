"""The engine behind the routes: the live index, photo workers, dispatcher."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from indexer.answers import Answer, Photo
from indexer.errors import IndexBusy, IndexerError, Superseded
from indexer.filters import Filters
from indexer.index import Index
from indexer.photos.metadata import PhotoMetadata
from indexer.posting.new_photo import NewPhoto, read_new
from indexer.posting.posting import Posting
from indexer.snapshots.store import Floats
from model.embedder import Seen
from model.errors import ImageError
from model.gpu_decoding import Image
from service.engine.dispatcher import Dispatcher
from service.engine.live_index import LiveIndex
from service.engine.malloc import Trimmer
from service.engine.rebuilder import Rebuilding
from service.engine.thread_pool import Workers
from service.errors import NotReady, NotWritable
from service.metrics import Metrics
from service.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 3  # tries to store a photo while new models become current
CHECK_SECONDS = 1.0


class Engine:
    """Answers queries; one for each app. `running` may be used once."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        index: Index | None = None,
        on_failure: Callable[[Exception], None] | None = None,
        trouble: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`metrics` are the app's; `trouble` returns a reason of the app not to be ready."""
        self.settings = settings
        self.metrics = metrics
        self._app_trouble = trouble
        self.dispatcher = Dispatcher(
            max_batch=settings.max_batch,
            queue_size=settings.queue_size,
            stall_seconds=settings.stall_seconds,
            wedged_seconds=settings.wedged_seconds,
            on_batch=metrics.batch,
            on_death=on_failure,
        )
        self.workers = Workers(settings.decode_threads, settings.queue_size)
        # One thread: photos are stored one at a time, without delaying searches.
        self.writer = Workers(1, settings.queue_size, "stored")
        metrics.watch("loci_queue_images", "Images waiting for the network.", lambda: self.dispatcher.queued)
        metrics.watch(
            "loci_decode_photos", "Photos being decoded, or waiting for it.", lambda: self.workers.inside
        )
        metrics.watch("loci_ready", "1 if queries are answered, else 0.", lambda: self.trouble() is None)
        self.live = LiveIndex(
            partial(
                Index.open,
                settings.index,
                device=settings.device,
                precision=settings.precision,
                known_share=settings.known_share,
                model=settings.model,
            ),
            settings.refresh_seconds,
            index=index,
            on_change=metrics.index,
            on_failure=on_failure,
        )
        self.rebuilding = Rebuilding(self.live, settings.rebuild_share, settings.rebuild_seconds)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the index in the background and answer queries; at the end, finish admitted requests."""
        self.dispatcher.start()
        watches = [
            asyncio.create_task(work) for work in (self.live.watch(), self.rebuilding.watch(), self._check())
        ]
        try:
            yield
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            await asyncio.to_thread(self.dispatcher.stop, self.settings.shutdown_seconds)
            await asyncio.to_thread(self.workers.stop)
            await asyncio.to_thread(self.writer.stop)

    def trouble(self) -> str | None:
        """Return why queries cannot be answered now, or None."""
        return self.live.trouble() or self.dispatcher.trouble() or self._app_trouble()

    async def _check(self) -> None:
        trimmer = Trimmer()
        while True:
            await asyncio.sleep(min(CHECK_SECONDS, self.settings.wedged_seconds))
            self.dispatcher.check()
            await asyncio.to_thread(trimmer)

    async def answer(
        self,
        index: Index,
        clip: Sequence[bytes],
        k: int,
        filters: Filters | None = None,
        verify: bool = True,
        matched: bool = False,
    ) -> Answer:
        """Answer a clip with the snapshot `index`: decode, embed, search.

        A photo is a clip of one. If an image fails, the call fails with its number.
        """
        decoding = (self._decode(index, photo, n, len(clip)) for n, photo in enumerate(clip, 1))
        images, decode_ms = await self._timed("decode", _all(decoding))
        seen, embed_ms = await self._timed("embed", self.dispatcher.see(images, index.embedder))
        timings = {"decode": decode_ms, "embed": embed_ms}
        search = asyncio.to_thread(index.answer, seen, k, timings, filters, verify, matched)
        answer, _ = await self._timed("search", search)
        self.metrics.answer(answer.known)
        return answer

    async def add(self, photo: bytes, given: PhotoMetadata, name: str | None = None) -> tuple[Photo, bool]:
        """Store a photo; return it, and whether it is new. It is on disk when this returns.

        Raises:
            NotWritable: the index takes no photos.
        """
        new = await self.workers.run(
            partial(read_new, photo, given, name, max_pixels=self.settings.max_pixels)
        )
        for _ in range(TRIES):
            try:
                added = await self._store(self._writable(), new)
            except Superseded:
                await self.live.renew()
                continue
            await self.live.recount()
            return added
        raise NotReady("the index is being replaced, try again in a moment")

    async def _store(self, index: Index, new: NewPhoto) -> tuple[Photo, bool]:
        def known() -> Photo | None:
            return _posting(index).known(new)

        def views() -> Sequence[Image]:
            return _posting(index).reader((new.id, new.data))

        shown = await self.writer.run(known)
        if shown is not None:
            return shown, False
        images, _ = await self._timed("decode", self.workers.run(views))
        seen, _ = await self._timed("embed", self._see_views(index, images))

        def add() -> tuple[Photo, bool]:
            return _posting(index).add(
                new, np.stack([view.descriptor for view in seen]), [view.local for view in seen]
            )

        added, _ = await self._timed("store", self.writer.run(add))
        return added

    async def remove(self, photo: str) -> None:
        """Remove a photo from the index. Raises NotFound, NotWritable."""
        index = self._writable()
        await self.writer.run(lambda: _posting(index).remove(photo))
        await self.live.recount()

    def _writable(self) -> Index:
        index = self.live.current
        if not index.writable:
            raise NotWritable("this index takes no photos")
        return index

    async def _see_views(self, index: Index, views: Sequence[Image]) -> list[Seen]:
        """Embed a photo's views, at most a batch at once."""
        step = min(self.settings.max_batch, self.settings.queue_size)
        seen: list[Seen] = []
        for start in range(0, len(views), step):
            group = views[start : start + step]
            seen += await _all(self.dispatcher.see([view], index.embedder) for view in group)
        return seen

    async def embed(self, index: Index, photos: Sequence[bytes]) -> list[Floats]:
        """Return the photos' descriptors in order; if a photo fails, the call fails with its number."""
        descriptors: list[Floats] = []
        step = min(self.settings.max_batch, self.settings.queue_size)
        for start in range(0, len(photos), step):
            group = enumerate(photos[start : start + step], start + 1)
            descriptors += await _all(
                self._embed_one(index, photo, number, len(photos)) for number, photo in group
            )
        return descriptors

    async def _embed_one(self, index: Index, photo: bytes, number: int, total: int) -> Floats:
        image, _ = await self._timed("decode", self._decode(index, photo, number, total))
        seen, _ = await self._timed("embed", self.dispatcher.see([image], index.embedder))
        return seen.descriptor

    async def _decode(self, index: Index, photo: bytes, number: int, total: int) -> Image:
        try:
            return await self.workers.run(partial(index.read, photo, max_pixels=self.settings.max_pixels))
        except ImageError as error:
            if total == 1:
                raise
            raise type(error)(f"image {number} of {total}: {error}") from error

    async def _timed(self, stage: str, work: Awaitable[T]) -> tuple[T, float]:
        """Await `work`; return its result and its milliseconds."""
        started = time.perf_counter()
        result = await work
        seconds = time.perf_counter() - started
        self.metrics.stage(stage, seconds)
        return result, 1000 * seconds


def _posting(index: Index) -> Posting:
    try:
        return index.posting()
    except IndexBusy:
        raise
    except IndexerError as error:  # the folder may be mounted read-only
        logger.warning("no photo can be stored: %s", error)
        raise NotWritable("the index that is served cannot be written") from error


async def _all(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all at once; if one fails, cancel the others that have not begun."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()

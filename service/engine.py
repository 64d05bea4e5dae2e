"""Everything behind the routes: the live index, the photo workers, the dispatcher and the metrics."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from indexer.answers import Answer
from indexer.index import Index
from model.errors import ImageError
from model.images import read_photo
from service.access import Access
from service.admission import Room
from service.dispatcher import Dispatcher
from service.interfaces import Descriptor, Image, ServedIndex
from service.live import LiveIndex
from service.memory import Trimmer
from service.metrics import Metrics
from service.settings import Settings
from service.workers import Workers

T = TypeVar("T")

CHECK_SECONDS = 1.0


class Engine:
    """Answers queries; one an app, and `running` only once."""

    def __init__(
        self,
        settings: Settings,
        index: ServedIndex | None = None,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self.settings = settings
        self.dispatcher = Dispatcher(
            max_batch=settings.max_batch,
            queue_size=settings.queue_size,
            stall_seconds=settings.stall_seconds,
            wedged_seconds=settings.wedged_seconds,
            on_batch=lambda images: self.metrics.batch(images),
            on_death=on_failure,
        )
        self.workers = Workers(settings.decode_threads, settings.queue_size)
        self.room = Room(settings.max_uploads, int(settings.max_uploads_mb * 1e6))
        self.access = Access(settings)
        self.metrics = Metrics(
            {
                "loci_queue_images": ("Images waiting for the network.", lambda: self.dispatcher.queued),
                "loci_decode_photos": (
                    "Photos being decoded, or waiting for it.",
                    lambda: self.workers.inside,
                ),
                "loci_uploads": ("Requests with a body that are in progress.", lambda: self.room.inside),
                "loci_upload_bytes": ("Bytes that those may hold.", lambda: self.room.bytes),
                "loci_ready": ("1 when queries are answered, else 0.", lambda: self.trouble() is None),
            }
        )
        self.live = LiveIndex(
            partial(Index.open, settings.index, device=settings.device, precision=settings.precision),
            settings.refresh_seconds,
            index=index,
            on_change=self.metrics.index,
            on_failure=on_failure,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the index in the background and answer queries until left; then finish what was admitted."""
        self.dispatcher.start()
        watches = [asyncio.create_task(self.live.watch()), asyncio.create_task(self._check())]
        try:
            yield
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            await asyncio.to_thread(self.dispatcher.stop, self.settings.shutdown_seconds)
            await asyncio.to_thread(self.workers.stop)

    def trouble(self) -> str | None:
        """Say why queries cannot be answered now, or None when they can."""
        return self.live.trouble() or self.dispatcher.trouble() or self.access.trouble()

    async def _check(self) -> None:
        trimmer = Trimmer()
        while True:
            await asyncio.sleep(min(CHECK_SECONDS, self.settings.wedged_seconds))
            self.dispatcher.check()
            await asyncio.to_thread(trimmer)

    async def answer(self, index: ServedIndex, clip: Sequence[bytes], k: int) -> Answer:
        """Take a clip the straight way: decode → embed → answer, all by the one snapshot `index`.

        A photo is a clip of one. One failing image fails the call, by its number.
        """
        decoding = (self._decode(index, photo, n, len(clip)) for n, photo in enumerate(clip, 1))
        images, decode_ms = await self._timed("decode", _all(decoding))
        descriptor, embed_ms = await self._timed("embed", self.dispatcher.embed(images, index.embedder))
        timings = {"decode": decode_ms, "embed": embed_ms}
        search = asyncio.to_thread(index.answer, descriptor, k, timings)
        answer, _ = await self._timed("search", search)
        self.metrics.answer(answer.known)
        return answer

    async def embed(self, index: ServedIndex, photos: Sequence[bytes]) -> list[Descriptor]:
        """Give the photos' descriptors in their order; one failing photo fails the call, by its number."""
        descriptors: list[Descriptor] = []
        step = min(self.settings.max_batch, self.settings.queue_size)
        for start in range(0, len(photos), step):
            group = enumerate(photos[start : start + step], start + 1)
            descriptors += await _all(
                self._embed_one(index, photo, number, len(photos)) for number, photo in group
            )
        return descriptors

    async def _embed_one(self, index: ServedIndex, photo: bytes, number: int, total: int) -> Descriptor:
        image, _ = await self._timed("decode", self._decode(index, photo, number, total))
        descriptor, _ = await self._timed("embed", self.dispatcher.embed([image], index.embedder))
        return descriptor

    async def _decode(self, index: ServedIndex, photo: bytes, number: int, total: int) -> Image:
        try:
            return await self.workers.run(
                partial(read_photo, photo, index.image_size, max_pixels=self.settings.max_pixels)
            )
        except ImageError as error:
            if total == 1:
                raise
            raise type(error)(f"image {number} of {total}: {error}") from error

    async def _timed(self, stage: str, work: Awaitable[T]) -> tuple[T, float]:
        """Await `work`; give its result and the milliseconds that it took."""
        started = time.perf_counter()
        result = await work
        seconds = time.perf_counter() - started
        self.metrics.stage(stage, seconds)
        return result, 1000 * seconds


async def _all(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await them all at once; where one fails, the others are dropped as far as they have not begun."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()

"""One thread owns the network; concurrent requests share its batches."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from service.errors import NotReady, Overloaded
from service.interfaces import Descriptor, Embeds, Image

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class _Job:
    clip: Sequence[Image]
    embedder: Embeds
    future: Future[Descriptor] = field(default_factory=Future)


class Dispatcher:
    """Sends images through the network, as many at a time as have queued up.

    An idle network starts at once; a busy one next takes whatever came in meanwhile, up to
    `max_batch` images; a longer clip goes by itself. Each photo or clip names the embedder it was
    decoded for, so that a request is answered by one model even when a new one is swapped in while
    it waits; a batch has one embedder.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        queue_size: int,
        stall_seconds: float,
        on_batch: Callable[[int], None] | None = None,
        on_death: Callable[[Exception], None] | None = None,
    ) -> None:
        self._max_batch = max_batch
        self._queue_size = queue_size
        self._stall_seconds = stall_seconds
        self._on_batch = on_batch
        self._on_death = on_death
        self._jobs: deque[_Job] = deque()
        self._batch: list[_Job] = []
        self._changed = threading.Condition()
        self._admitting = False
        self._death: str | None = None
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="loci-dispatcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._admitting = True
        self._beat = time.monotonic()
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Admit nothing more, finish what was admitted, and wait for that up to `timeout` seconds."""
        with self._changed:
            self._admitting = False
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    async def embed(self, clip: Sequence[Image], embedder: Embeds) -> Descriptor:
        """Wait for the descriptor, D, of a clip's frames; a photo is a clip of one.

        Raises:
            Overloaded: the queue is full.
            NotReady: the thread is not running.
            Exception: whatever the network raised on these very images.
        """
        job = _Job(clip, embedder)
        self._admit(job)
        return await asyncio.wrap_future(job.future)

    @property
    def queued(self) -> int:
        """How many images wait."""
        return sum(len(job.clip) for job in tuple(self._jobs))

    def trouble(self) -> str | None:
        """Say why no image would be answered now, or None when all is well."""
        if self._death is not None:
            return f"the dispatcher died of {self._death}"
        if not self._admitting:
            return "the dispatcher is not running"
        silent = time.monotonic() - self._beat
        if silent > self._stall_seconds:
            return f"the network has been busy with one batch for {silent:.0f} s"
        return None

    def _admit(self, job: _Job) -> None:
        with self._changed:
            if not self._admitting:
                raise NotReady(self.trouble() or "the dispatcher is not running")
            if self.queued >= self._queue_size:
                self._jobs = deque(waiting for waiting in self._jobs if not waiting.future.cancelled())
            if self.queued >= self._queue_size:
                raise Overloaded(f"{self._queue_size} images are waiting already, try again in a moment")
            self._jobs.append(job)
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self._take():
                self._serve(self._batch)
        except BaseException as error:
            logger.critical("the dispatcher died", exc_info=True)
            self._death = type(error).__name__
        finally:
            self._resolve_rest()
        if self._death is not None and self._on_death is not None:
            self._on_death(NotReady(f"the dispatcher died of {self._death}"))

    def _take(self) -> bool:
        """Fill the batch; False when the work is done for good."""
        with self._changed:
            self._batch = []
            self._beat = time.monotonic()
            while not self._jobs and self._admitting:
                self._changed.wait(BEAT_SECONDS)
                self._beat = time.monotonic()
            while self._jobs and self._fits(self._jobs[0]):
                job = self._jobs.popleft()
                if job.future.set_running_or_notify_cancel():  # False: its caller has gone
                    self._batch.append(job)
            return bool(self._batch or self._jobs or self._admitting)

    def _fits(self, job: _Job) -> bool:
        if not self._batch:
            return True
        images = sum(len(taken.clip) for taken in self._batch) + len(job.clip)
        return images <= self._max_batch and job.embedder is self._batch[0].embedder

    def _serve(self, batch: list[_Job]) -> None:
        if not batch:
            return
        try:
            rows = batch[0].embedder.embed_clips([job.clip for job in batch])  # B D
            answered = list(zip(batch, rows, strict=True))
        except Exception as error:
            self._isolate(batch, error)
            return
        if self._on_batch is not None:
            self._on_batch(sum(len(job.clip) for job in batch))
        for job, row in answered:
            job.future.set_result(row)

    def _isolate(self, batch: list[_Job], error: Exception) -> None:
        """One photo or clip must not fail the others: give each a try of its own."""
        if len(batch) == 1:
            batch[0].future.set_exception(error)
            return
        logger.warning("a batch of %d failed (%s), trying one by one", len(batch), error)
        for job in batch:
            self._beat = time.monotonic()
            self._serve([job])

    def _resolve_rest(self) -> None:
        with self._changed:
            self._admitting = False
            rest = [*self._batch, *self._jobs]
            self._jobs.clear()
        for job in rest:
            if not job.future.done():
                job.future.set_exception(NotReady(self.trouble() or "the service is shutting down"))

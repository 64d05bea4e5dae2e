"""One thread owns the network; concurrent requests share its batches."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from model.embedder import Embedder, Seen
from model.gpu_decoding import Image
from model.memory import free_memory, is_out_of_memory
from service.engine.device_errors import is_broken
from service.errors import NotReady, OutOfMemory, Overloaded

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
"""Most seconds between two signs of life of an idle network; fewer if the stall limit is short."""
PROBES = 3
"""Seconds between two tries of a device without memory, before it is given up."""


@dataclass(slots=True, eq=False)
class _Job:
    clip: Sequence[Image]
    embedder: Embedder
    future: Future[Seen] = field(default_factory=Future)


class DeviceLost(Exception):
    """The device no longer answers; only a new process can help."""


class Dispatcher:
    """Sends queued images through the network in batches.

    An idle network starts at once. A busy one next takes everything that has come in, up to `max_batch`
    images; a longer clip goes alone. Each photo or clip names the embedder that it was decoded for, so one
    model answers it even if a new one is swapped in. A batch has one embedder.

    If the embedder finds no memory even for single images, the batch's callers get an error, and one image
    is tried until there is memory again. A device that does not recover, a broken one, or a hanging one ends
    the dispatcher and calls `on_death`.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        queue_size: int,
        stall_seconds: float,
        wedged_seconds: float = 300.0,
        probe_seconds: float = 1.0,
        on_batch: Callable[[int], None] | None = None,
        on_death: Callable[[Exception], None] | None = None,
    ) -> None:
        self._max_batch = max_batch
        self._wedged_seconds = wedged_seconds
        self._probe_seconds = probe_seconds
        self._queue_size = queue_size
        self._stall_seconds = stall_seconds
        self._beat_seconds = min(BEAT_SECONDS, stall_seconds / 4, wedged_seconds / 4)
        self._on_batch = on_batch
        self._on_death = on_death
        self._jobs: deque[_Job] = deque()
        self._batch: list[_Job] = []
        self._changed = threading.Condition()
        self._admitting = False
        self._death: str | None = None
        self._starved = False
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="loci-dispatcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._admitting = True
        self._beat = time.monotonic()
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Refuse new images, finish the admitted ones, and wait up to `timeout` seconds."""
        with self._changed:
            self._admitting = False
            self._changed.notify()
        if self._thread.ident is not None and self._death is None:
            self._thread.join(timeout)

    async def see(self, clip: Sequence[Image], embedder: Embedder) -> Seen:
        """Return what the network makes of a clip's frames; a photo is a clip of one.

        Raises:
            Overloaded: the queue is full.
            NotReady: the thread is not running.
            Exception: an error of the network on these images.
        """
        job = _Job(clip, embedder)
        self._admit(job)
        return await asyncio.wrap_future(job.future)

    @property
    def queued(self) -> int:
        """Number of waiting images."""
        return sum(len(job.clip) for job in tuple(self._jobs))

    def trouble(self) -> str | None:
        """Return why no image would be answered now, or None."""
        if self._starved and self._death is None:
            return "the device is out of memory"
        return self._closed()

    def check(self) -> None:
        """Give up a batch that takes `wedged_seconds`; its callers and `on_death` are notified."""
        silent = self._silent()
        if silent <= self._wedged_seconds or self._death is not None or not self._thread.is_alive():
            return
        logger.critical("the network has been busy with one batch for %.0f s, giving up", silent)
        self._die(f"the network was busy with one batch for {silent:.0f} s and did not come back")

    @property
    def stuck(self) -> bool:
        """Whether the thread was given up and still runs: it may never end."""
        return self._death is not None and self._thread.is_alive()

    def _closed(self) -> str | None:
        """Return why no image is admitted, or None."""
        if self._death is not None:
            return self._death
        if not self._admitting:
            return "the dispatcher is not running"
        silent = self._silent()
        if silent > self._stall_seconds:
            return f"the network has been busy with one batch for {silent:.0f} s"
        return None

    def _silent(self) -> float:
        return time.monotonic() - self._beat

    def _admit(self, job: _Job) -> None:
        with self._changed:
            closed = self._closed()
            if closed is not None:
                raise NotReady(closed)
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
            if self._death is None:  # otherwise given up before
                logger.critical("the dispatcher died", exc_info=True)
                lost = isinstance(error, DeviceLost)
                self._die(str(error) if lost else f"the dispatcher died of {type(error).__name__}")
        finally:
            self._resolve_rest()

    def _die(self, why: str) -> None:
        self._death = why
        self._resolve_rest()
        if self._on_death is not None:
            self._on_death(NotReady(why))

    def _take(self) -> bool:
        """Fill the batch; return False when there is no more work."""
        with self._changed:
            self._batch = []
            self._beat = time.monotonic()
            while not self._jobs and self._admitting:
                self._changed.wait(self._beat_seconds)
                self._beat = time.monotonic()
            while self._jobs and self._fits(self._jobs[0]):
                job = self._jobs.popleft()
                if job.future.set_running_or_notify_cancel():  # False: its caller has gone
                    self._batch.append(job)
            return self._death is None and bool(self._batch or self._jobs or self._admitting)

    def _fits(self, job: _Job) -> bool:
        if not self._batch:
            return True
        images = sum(len(taken.clip) for taken in self._batch) + len(job.clip)
        return images <= self._max_batch and job.embedder is self._batch[0].embedder

    def _serve(self, batch: list[_Job]) -> None:
        if not batch:
            return
        try:
            self._answer(batch)
        except Exception as error:
            _raise_if_broken(error)
            if is_out_of_memory(error):
                self._starve(batch, error)
            else:
                self._isolate(batch, error)

    def _answer(self, batch: list[_Job]) -> None:
        rows = batch[0].embedder.see([job.clip for job in batch])
        answered = list(zip(batch, rows, strict=True))
        self._beat = time.monotonic()  # before the callers are notified: they must not see a stalled network
        if self._on_batch is not None:
            self._on_batch(sum(len(job.clip) for job in batch))
        for job, row in answered:
            if not job.future.done():  # set when the batch was given up
                job.future.set_result(row)

    def _isolate(self, batch: list[_Job], error: Exception) -> None:
        """Try each photo or clip alone, so that one does not fail the others."""
        if len(batch) == 1:
            _fail(batch, error)
            return
        logger.warning("a batch of %d failed (%s), trying one by one", len(batch), error)
        for job in batch:
            self._beat = time.monotonic()
            self._serve([job])

    def _starve(self, batch: list[_Job], error: Exception) -> None:
        """Tell the callers of a batch without memory, which the embedder has halved, and wait for memory."""
        logger.warning("out of memory on a batch of %d (%s)", len(batch), _first_line(error))
        self._starved = True
        _fail(batch, OutOfMemory("the device has no memory left, try again in a moment"))
        self._recover(batch[0])

    def _recover(self, job: _Job) -> None:
        """Try a single image until there is memory again.

        Raises:
            DeviceLost: there is none after `PROBES` tries.
        """
        for probe in range(PROBES):
            time.sleep(self._probe_seconds * 2**probe)
            free_memory()
            self._beat = time.monotonic()
            try:
                job.embedder.see([job.clip[:1]])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise DeviceLost(f"the device did not recover: {_first_line(error)}") from error
            else:
                logger.warning("the device has memory again")
                self._starved = False
                return
        raise DeviceLost("the device is out of memory and did not recover")

    def _resolve_rest(self) -> None:
        with self._changed:
            self._admitting = False
            rest = [*self._batch, *self._jobs]
            self._jobs.clear()
        for job in rest:
            if not job.future.done():
                job.future.set_exception(NotReady(self._death or "the service is shutting down"))


def _fail(batch: Sequence[_Job], error: Exception) -> None:
    for job in batch:
        if not job.future.done():
            job.future.set_exception(error)


def _raise_if_broken(error: Exception) -> None:
    if is_broken(error):
        raise DeviceLost(f"the device is broken: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

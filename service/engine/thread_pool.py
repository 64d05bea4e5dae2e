"""A bounded thread pool for work on photos."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from service.errors import Overloaded

T = TypeVar("T")


class _Task(Generic[T]):
    """A cancellable call: the pool would keep a cancelled call, with its photo, until a thread is free."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work: Callable[[], T] | None = work

    def __call__(self) -> T:
        if self._work is None:
            raise CancelledError
        return self._work()

    def drop(self, _future: Future[Any]) -> None:
        self._work = None


class Workers:
    """`threads` threads, and at most `waiting` waiting calls; `to_be` is the verb for messages."""

    def __init__(self, threads: int, waiting: int, to_be: str = "decoded") -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"loci-{to_be}")
        self._to_be = to_be
        self._room = threads + waiting
        self._inside = 0
        self._lock = threading.Lock()

    @property
    def inside(self) -> int:
        """Number of running and waiting calls."""
        return self._inside

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread.

        Raises:
            Overloaded: too many calls are waiting.
            Exception: an error of `work`.
        """
        with self._lock:
            if self._inside >= self._room:
                raise Overloaded(f"too many photos are waiting to be {self._to_be}, try again in a moment")
            task = _Task(work)
            future = self._pool.submit(task)
            self._inside += 1
        future.add_done_callback(self._leave)  # not when the caller leaves: the thread may still be working
        future.add_done_callback(task.drop)
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """Drop waiting calls, and finish running ones."""
        self._pool.shutdown(cancel_futures=True)

    def _leave(self, _future: Future[Any]) -> None:
        with self._lock:
            self._inside -= 1

"""A bounded pool of threads for work on photos."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from service.errors import Overloaded

T = TypeVar("T")


class _Task(Generic[T]):
    """Work that can be let go of: the pool keeps a cancelled call until a thread comes by, photo and all."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work: Callable[[], T] | None = work

    def __call__(self) -> T:
        if self._work is None:
            raise CancelledError
        return self._work()

    def drop(self, _future: Future[Any]) -> None:
        self._work = None


class Workers:
    """`threads` threads, with at most `waiting` calls waiting for one; `to_be` says for what."""

    def __init__(self, threads: int, waiting: int, to_be: str = "decoded") -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"loci-{to_be}")
        self._to_be = to_be
        self._room = threads + waiting
        self._inside = 0
        self._lock = threading.Lock()

    @property
    def inside(self) -> int:
        """How many calls run or wait."""
        return self._inside

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in one of the threads.

        Raises:
            Overloaded: too many calls are waiting.
            Exception: whatever `work` raised.
        """
        with self._lock:
            if self._inside >= self._room:
                raise Overloaded(f"too many photos are waiting to be {self._to_be}, try again in a moment")
            task = _Task(work)
            future = self._pool.submit(task)
            self._inside += 1
        future.add_done_callback(self._leave)  # not when the caller goes: the thread may still be at it
        future.add_done_callback(task.drop)
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """Drop the calls that wait, and finish those that run."""
        self._pool.shutdown(cancel_futures=True)

    def _leave(self, _future: Future[Any]) -> None:
        with self._lock:
            self._inside -= 1

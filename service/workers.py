"""A bounded pool of threads for work on photos."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from service.errors import Overloaded

T = TypeVar("T")


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
            future = self._pool.submit(work)
            self._inside += 1
        future.add_done_callback(self._leave)  # not when the caller goes: the thread may still be at it
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """Drop the calls that wait, and finish those that run."""
        self._pool.shutdown(cancel_futures=True)

    def _leave(self, _future: Future[Any]) -> None:
        with self._lock:
            self._inside -= 1

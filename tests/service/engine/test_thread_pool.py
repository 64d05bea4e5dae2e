"""The pool of threads by itself."""

import asyncio
import gc
import threading
import weakref

import pytest

from service.engine.thread_pool import Workers
from service.errors import Overloaded


class Upload(bytearray):
    """Something large, of which one can see when it is let go of."""


def test_cancelled_call_releases_its_photo() -> None:
    workers = Workers(threads=1, waiting=2)
    free, begun = threading.Event(), threading.Event()
    done: list[str] = []

    def block() -> None:
        begun.set()
        free.wait(10)

    async def run() -> None:
        first = asyncio.create_task(workers.run(block))
        await asyncio.to_thread(begun.wait, 10)
        photo = Upload(b"photo")
        kept = weakref.ref(photo)

        def decode(held: Upload = photo) -> None:
            done.append(held.decode())

        second = asyncio.create_task(workers.run(decode))
        await asyncio.sleep(0)
        assert workers.inside == 2
        second.cancel()
        await asyncio.wait((second,))
        assert second.cancelled()
        assert workers.inside == 1
        del photo, decode, second
        gc.collect()
        assert kept() is None, "the pool still holds the photo"
        free.set()
        await first

    asyncio.run(run())
    workers.stop()
    assert done == []


def test_room_has_a_limit() -> None:
    workers = Workers(threads=1, waiting=1)
    free = threading.Event()

    async def run() -> None:
        tasks = [asyncio.create_task(workers.run(lambda: free.wait(10))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="too many photos"):
            await workers.run(lambda: None)
        free.set()
        assert await asyncio.gather(*tasks) == [True, True]

    asyncio.run(run())
    workers.stop()

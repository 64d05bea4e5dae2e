"""Who may send a body: decided before it is read, by how many and how much is being held already."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Overloaded, TooLarge, TooSlow
from service.settings import Settings

DISCONNECTED: Message = {"type": "http.disconnect"}


class Room:
    """How many requests with a body are inside, and how many bytes they hold; used by the event loop only."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self.inside = 0
        self.bytes = 0

    @contextlib.contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Hold a place and `size` bytes; a body that is too large for the room is taken when it is alone.

        Raises:
            Overloaded: there is no place, or not that many bytes.
        """
        if self.inside >= self._most:
            raise Overloaded(f"{self._most} uploads are being answered already, try again in a moment")
        if self.inside and self.bytes + size > self._most_bytes:
            raise Overloaded(
                f"{self._most_bytes / 1e6:g} MB of uploads are being held already, try again in a moment"
            )
        self.inside += 1
        self.bytes += size
        try:
            yield
        finally:
            self.inside -= 1
            self.bytes -= size


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a body must come."""

    grace_seconds: float
    bytes_a_second: float

    def seconds(self, received: int) -> float:
        """How long a body may have taken by the time that `received` bytes of it are here."""
        return self.grace_seconds + received / self.bytes_a_second


class Admission:
    """ASGI middleware: lets requests with a body in, reads them at a pace, ends with their caller.

    A caller who leaves takes the work for him along, as far as it has not begun.
    """

    def __init__(self, app: ASGIApp, settings: Settings, room: Room) -> None:
        self._app = app
        self._room = room
        self._limit = settings.max_upload_bytes
        self._pace = Pace(settings.upload_grace_seconds, 1000 * settings.min_upload_rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on.

        Raises:
            TooLarge: its body is announced larger than any may be.
            Overloaded: there is no room for it now.
        """
        size = self._announced(scope) if scope["type"] == "http" else 0
        if not size:
            await self._app(scope, receive, send)
            return
        with self._room.held(size):
            await _serve(self._app, scope, _Body(receive, self._pace), send)

    def _announced(self, scope: Scope) -> int:
        """Give a body's size; of one that comes in chunks, the most that it may be."""
        headers = Headers(scope=scope)
        if "transfer-encoding" in headers:
            return self._limit
        size = int(headers.get("content-length", "0"))  # the server has checked that it is a number
        if size > self._limit:
            raise TooLarge.than(self._limit)
        return size


async def _serve(app: ASGIApp, scope: Scope, body: "_Body", send: Send) -> None:
    """Run the app until it is done or its caller has gone."""
    answered = False

    async def note(message: Message) -> None:
        nonlocal answered
        await send(message)
        answered = message["type"] == "http.response.body" and not message.get("more_body", False)

    work = asyncio.ensure_future(app(scope, body.receive, note))
    watch = asyncio.ensure_future(body.left())
    try:
        await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and not answered:
            work.cancel()
        await asyncio.wait((work,))
    finally:
        for task in (work, watch):
            task.cancel()
    if not work.cancelled():
        work.result()


class _Body:
    """A body as it comes in, with an eye on the clock."""

    def __init__(self, receive: Receive, pace: Pace) -> None:
        self._receive = receive
        self._pace = pace
        self._received = 0
        self._started = asyncio.get_running_loop().time()
        self._ended = asyncio.Event()
        self._left = asyncio.Event()

    async def receive(self) -> Message:
        """Give the next part of the body; after the last, wait until the caller leaves.

        Raises:
            TooSlow: it did not come in time.
        """
        if self._ended.is_set():
            await self._left.wait()
            return DISCONNECTED
        try:
            async with asyncio.timeout_at(self._started + self._pace.seconds(self._received)):
                message = await self._receive()
        except TimeoutError:
            raise TooSlow(
                f"the body came too slowly: {self._received} bytes in"
                f" {self._pace.seconds(self._received):.0f} s"
            ) from None
        self._received += len(message.get("body", b""))
        if message["type"] == "http.disconnect":
            self._left.set()
            self._ended.set()
        elif not message.get("more_body", False):
            self._ended.set()
        return message

    async def left(self) -> None:
        """Wait until the caller has gone, which shows once the body is here."""
        await self._ended.wait()
        while not self._left.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self._left.set()

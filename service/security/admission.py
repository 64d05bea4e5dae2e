"""Admission of request bodies: decided before they are read, by number and bytes held."""

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
    """Number of requests with a body, and the bytes that they hold; for the event loop only."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self.inside = 0
        self.bytes = 0

    @contextlib.contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Hold a place and `size` bytes; a body larger than the room is accepted if it is alone.

        Raises:
            Overloaded: no place, or not enough bytes.
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
    """Least rate of a body."""

    grace_seconds: float
    bytes_a_second: float

    def seconds(self, received: int) -> float:
        """Return the seconds that a body may have taken until `received` bytes of it are here."""
        return self.grace_seconds + received / self.bytes_a_second


class Admission:
    """ASGI middleware: admits requests with a body, limits their pace, and stops when the caller leaves.

    Work of a caller who leaves is cancelled if it has not begun.
    """

    def __init__(self, app: ASGIApp, settings: Settings, room: Room) -> None:
        self._app = app
        self._room = room
        self._limit = settings.max_upload_bytes
        self._pace = Pace(settings.upload_grace_seconds, 1000 * settings.min_upload_rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request.

        Raises:
            TooLarge: the announced body is larger than the limit.
            Overloaded: there is no room now.
        """
        size = self._announced(scope) if scope["type"] == "http" else 0
        if not size:
            await self._app(scope, receive, send)
            return
        with self._room.held(size):
            await _serve(self._app, scope, _Body(receive, self._pace), send)

    def _announced(self, scope: Scope) -> int:
        """Return a body's size; the limit for a chunked one."""
        headers = Headers(scope=scope)
        if "transfer-encoding" in headers:
            return self._limit
        size = int(headers.get("content-length", "0"))  # the server has checked that it is a number
        if size > self._limit:
            raise TooLarge.than(self._limit)
        return size


async def _serve(app: ASGIApp, scope: Scope, body: "_Body", send: Send) -> None:
    """Run the app until it is done or its caller has left."""
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
    """A body that is being received, with its clock."""

    def __init__(self, receive: Receive, pace: Pace) -> None:
        self._receive = receive
        self._pace = pace
        self._received = 0
        self._started = asyncio.get_running_loop().time()
        self._ended = asyncio.Event()
        self._left = asyncio.Event()

    async def receive(self) -> Message:
        """Return the next part of the body; after the last, wait until the caller leaves.

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
        """Wait until the caller has left; this is known only after the body."""
        await self._ended.wait()
        while not self._left.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self._left.set()

"""Connections that nobody can hold for nothing: uvicorn's HTTP/1.1 with limits on heads, time and number.

What uvicorn leaves to a proxy: it waits for a request's head, for the rest of a body that was answered
early, and for a client to take its answer, for as long as that takes.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import PROBLEM_JSON

HEAD_BYTES = 16_384
RETRY_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may take, and how many there may be."""

    head_seconds: float
    """From the first byte of a request's head, or from the connection, to the end of the head."""
    write_seconds: float
    """How long a client may take nothing of its answer."""
    linger_seconds: float
    """How long the rest of a body is read and thrown away after its request was answered."""
    linger_bytes: int
    """How much of it is."""
    connections: int
    """Most connections at once."""


def protocol(limits: Limits, on_refused: Callable[[str], None]) -> type[H11Protocol]:
    """Give uvicorn's protocol held to `limits`; `on_refused` is told of what no request came of."""

    class Limited(Connection):
        pass

    Limited.limits = limits
    Limited.on_refused = staticmethod(on_refused)
    return Limited


class Connection(H11Protocol):
    """One connection."""

    limits: Limits
    on_refused: Callable[[str], None]

    _timer: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None
    _lingered = 0
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head, or refuse one connection too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "too many connections, try again in a moment")
            return
        self._wait(self.limits.head_seconds, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._stop_waiting()
        self._stop_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came in, a head in parts that h11 can find too long."""
        if self._refused:
            return
        begin = 0
        while begin < len(data) and not (self._refused or self.transport.is_closing()):
            step = HEAD_BYTES if self.conn.their_state is h11.IDLE else len(data)
            super().data_received(data[begin : begin + step])
            begin += step
        self._watch(len(data))

    def on_response_complete(self) -> None:
        """Give what is left of a body that was answered early some time to come in."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._lingered = 0
            self._wait(self.limits.linger_seconds, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with a head or a body that is not HTTP."""
        error = sys.exc_info()[1]
        hint = getattr(error, "error_status_hint", 400)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(hint, f"{msg.rstrip('.')}: {error}" if error is not None else msg)
        else:  # an answer has begun
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also one whose client never took its answer."""
        super().timeout_keep_alive_handler()
        self._close()

    def pause_writing(self) -> None:
        """The client does not take its answer: wait, but not forever."""
        super().pause_writing()
        self._stop_writing()
        self._writing = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        self._stop_writing()
        super().resume_writing()

    def _should_upgrade(self) -> bool:
        return False  # there are no other protocols here; a client that asks for one is answered in HTTP

    def _watch(self, received: int) -> None:
        """Wait for the head that has begun, or for nothing while a request is being read and answered."""
        if self._refused or self.transport.is_closing():
            return
        answered = self.cycle is not None and self.cycle.response_complete
        if self.conn.their_state is h11.IDLE:
            if self._timer is None:
                self._wait(self.limits.head_seconds, self._head_is_late)
        elif self.conn.their_state is h11.SEND_BODY and answered:
            self._lingered += received
            if self._lingered > self.limits.linger_bytes:
                self.transport.abort()
        else:
            self._stop_waiting()

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _head_is_late(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(408, "the request's head came too slowly")
        else:
            self._close()  # nothing was asked

    def _refuse(self, status: int, detail: str) -> None:
        """Answer without a request, and close; what still comes is not looked at."""
        self._refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # its app is told that there is nobody to answer
            self.cycle.message_event.set()
        self.on_refused(str(status))
        title = HTTPStatus(status).phrase
        problem = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        body = json.dumps(problem).encode()
        head = f"HTTP/1.1 {status} {title}\r\nContent-Type: {PROBLEM_JSON}\r\nContent-Length: {len(body)}\r\n"
        head += "X-Content-Type-Options: nosniff\r\nConnection: close\r\n"
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            head += f"Retry-After: {RETRY_SECONDS}\r\n"
        self.transport.write(head.encode() + b"\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        # Closed at once, what the client has sent but nobody read would take the answer back.
        self._wait(min(1.0, self.limits.linger_seconds), self.transport.abort)

    def _close(self) -> None:
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._wait(self.limits.linger_seconds, self.transport.abort)

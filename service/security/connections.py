"""Limits on connections: uvicorn's HTTP/1.1 with time limits, head sizes and a number of connections.

uvicorn waits without limit for a request's head, for the rest of a body that was answered early, and for a
client to read its answer.
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
    """Limits of a connection, and of their number."""

    head_seconds: float
    """Seconds from a request's first byte, or from the connection, to the end of the head."""
    write_seconds: float
    """Seconds that a client may leave its answer unread."""
    linger_seconds: float
    """Seconds for which the rest of a body is read and dropped after an early answer."""
    linger_bytes: int
    """Bytes of it."""
    connections: int
    """Most connections at once."""


def protocol(limits: Limits, on_refused: Callable[[str], None]) -> type[H11Protocol]:
    """Return uvicorn's protocol with `limits`; `on_refused` is called for connections without a request."""

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
        """Start to wait for a head, or refuse one connection too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "too many connections, try again in a moment")
            return
        self._wait(self.limits.head_seconds, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        self._stop_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle received data; feed a long head in parts, so that h11 notices its length."""
        if self._refused:
            return
        begin = 0
        while begin < len(data) and not (self._refused or self.transport.is_closing()):
            step = HEAD_BYTES if self.conn.their_state is h11.IDLE else len(data)
            super().data_received(data[begin : begin + step])
            begin += step
        self._watch(len(data))

    def on_response_complete(self) -> None:
        """Give the rest of an early answered body some time."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._lingered = 0
            self._wait(self.limits.linger_seconds, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Answer a head or a body that is not HTTP."""
        error = sys.exc_info()[1]
        hint = getattr(error, "error_status_hint", 400)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(hint, f"{msg.rstrip('.')}: {error}" if error is not None else msg)
        else:  # an answer has begun
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also if its client never read its answer."""
        super().timeout_keep_alive_handler()
        self._close()

    def pause_writing(self) -> None:
        """The client does not read its answer: start the limit."""
        super().pause_writing()
        self._stop_writing()
        self._writing = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stop_writing()
        super().resume_writing()

    def _should_upgrade(self) -> bool:
        return False  # no other protocols: a client that asks for one is answered in HTTP

    def _watch(self, received: int) -> None:
        """Set the timer for a head that has begun, or none while a request is in progress."""
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
            self._close()  # no request was sent

    def _refuse(self, status: int, detail: str) -> None:
        """Answer without a request, and close."""
        self._refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # tells the app that nobody is there
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
        # If it were closed at once, unread data of the client would discard the answer.
        self._wait(min(1.0, self.limits.linger_seconds), self.transport.abort)

    def _close(self) -> None:
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._wait(self.limits.linger_seconds, self.transport.abort)

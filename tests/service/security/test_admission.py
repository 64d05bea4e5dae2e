"""What is decided before a body is read, how fast it must come, and what a caller who leaves costs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from service.errors import Overloaded, TooSlow
from service.security.admission import Admission, Pace, Room
from service.settings import Settings

if TYPE_CHECKING:
    from tests.service.conftest import FakeIndex, Network, Start

Problem = Callable[..., dict[str, Any]]
MakePhoto = Callable[..., bytes]
Wait = Callable[[Callable[[], bool]], None]


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def head(length: int, *more: str) -> bytes:
    lines = [
        "POST /v1/query HTTP/1.1",
        "Host: x",
        "Content-Type: image/jpeg",
        f"Content-Length: {length}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


@contextlib.contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    with socket.create_connection(
        (client.base_url.host, client.base_url.port or 0), timeout=10
    ) as connection:
        yield connection


def test_a_room_has_places_and_bytes() -> None:
    room = Room(2, 100)
    with (
        room.held(60),
        pytest.raises(Overloaded, match=r"0\.0001 MB of uploads are being held"),
        room.held(41),
    ):
        pass
    with room.held(60), room.held(40):
        assert (room.inside, room.bytes) == (2, 100)
        with pytest.raises(Overloaded, match=r"^2 uploads are being answered already"), room.held(0):
            pass
    with room.held(1000):
        pass  # alone
    assert (room.inside, room.bytes) == (0, 0)


def test_a_pace_grows_with_what_has_come() -> None:
    assert Pace(10, 1000).seconds(0) == 10
    assert Pace(10, 1000).seconds(5000) == 15


def test_body_refused_for_room_is_not_read(
    start: Start, index: FakeIndex, network: Network, make_photo: MakePhoto, problem: Problem, wait: Wait
) -> None:
    client = start(index, max_uploads=1)
    network.open.clear()
    with ThreadPoolExecutor(1) as pool, connected(client) as second:
        first = pool.submit(client.post, "/v1/query", files={"image": make_photo()})
        network.entered.acquire(timeout=10)
        second.sendall(head(1_000_000))  # and not a byte of the body
        answer = second.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer
        refused = client.post("/v1/query", files={"image": make_photo()})
        assert (
            problem(refused, 503)["detail"] == "1 uploads are being answered already, try again in a moment"
        )
        assert client.get("/v1/places").status_code == 200, "what needs no room is answered"
        network.open.set()
        assert first.result(10).status_code == 200
    wait(lambda: metric(client, "loci_uploads") == 0)
    assert client.post("/v1/query", files={"image": make_photo()}).status_code == 200


def test_the_bytes_that_are_held_are_bounded(
    start: Start, index: FakeIndex, network: Network, make_photo: MakePhoto, problem: Problem
) -> None:
    client = start(index, max_upload_mb=1, max_uploads_mb=1.5)
    network.open.clear()
    with connected(client) as first, connected(client) as chunked:
        first.sendall(head(900_000))
        time.sleep(0.1)
        assert metric(client, "loci_upload_bytes") == 900_000
        big = client.post("/v1/query", content=bytes(700_000))
        assert problem(big, 503)["detail"].startswith("1.5 MB of uploads are being held already")
        chunked.sendall(b"POST /v1/query HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert chunked.recv(65536).startswith(b"HTTP/1.1 503 "), "it may be as large as any"
        network.open.set()
        assert client.post("/v1/query", files={"image": make_photo()}).status_code == 200


def test_refused_request_gets_no_100_continue(start: Start, index: FakeIndex) -> None:
    client = start(index, max_upload_mb=1)
    with connected(client) as connection:
        connection.sendall(head(2_000_000, "Expect: 100-continue"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    with connected(client) as connection:
        connection.sendall(head(1000, "Expect: 100-continue"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")


@pytest.mark.parametrize("drip", [b"", b"x"])
def test_a_slow_upload_is_cut_off(start: Start, index: FakeIndex, drip: bytes) -> None:
    client = start(index, upload_grace_seconds=0.3, min_upload_rate=1)
    with connected(client) as connection:
        connection.sendall(head(1_000_000))
        begun = time.monotonic()
        connection.settimeout(0.02)
        answer = b""
        while time.monotonic() < begun + 5 and not answer.endswith(b"}"):
            with contextlib.suppress(TimeoutError):
                answer += connection.recv(65536)
            if drip and not answer:
                connection.sendall(drip)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close\r\n" in answer.lower()
        assert b"the body came too slowly" in answer
        assert time.monotonic() - begun < 2
        connection.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b"", "the connection is closed"
    assert 'route="/v1/query",status="408"} 1.0' in client.get("/metrics").text


def test_steady_upload_may_exceed_the_grace_time(
    start: Start, index: FakeIndex, make_photo: MakePhoto
) -> None:
    client = start(index, upload_grace_seconds=0.2, min_upload_rate=1)
    photo = make_photo(size=(600, 400))
    step = len(photo) // 10 + 1
    with connected(client) as connection:
        connection.sendall(head(len(photo)))
        for begin in range(0, len(photo), step):
            time.sleep(0.05)
            connection.sendall(photo[begin : begin + step])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_undecoded_photo_of_a_gone_caller_is_dropped(
    start: Start, index: FakeIndex, network: Network, make_photo: MakePhoto, wait: Wait
) -> None:
    client = start(index, decode_threads=1)
    free, asked = threading.Event(), threading.Semaphore(0)

    def slow_file(_id: str) -> object:
        asked.release()
        free.wait(10)
        return index.folder / "red.jpg"

    index.photo_file = slow_file  # type: ignore[method-assign,assignment]
    photo = make_photo()
    with ThreadPoolExecutor(1) as pool:
        blocking = pool.submit(client.get, "/v1/photos/red/thumbnail")  # takes the one thread
        asked.acquire(timeout=10)
        with connected(client) as leaving:
            leaving.sendall(head(len(photo)) + photo)
            wait(lambda: metric(client, "loci_decode_photos") == 2)
        wait(lambda: metric(client, "loci_decode_photos") == 1)
        assert metric(client, "loci_uploads") == 0
        free.set()
        assert blocking.result(10).status_code == 200
    assert client.post("/v1/query", files={"image": photo}).status_code == 200
    assert network.batches == [1], "the photo of the one who left was not embedded"
    assert 'loci_requests_total{route="/v1/query",status="0"} 1.0' in client.get("/metrics").text


def test_a_caller_who_leaves_the_queue_makes_room(
    start: Start, index: FakeIndex, network: Network, make_photo: MakePhoto, wait: Wait
) -> None:
    client = start(index, queue_size=1)
    network.open.clear()
    photo = make_photo()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/v1/query", files={"image": photo})
        network.entered.acquire(timeout=10)
        with connected(client) as leaving:
            leaving.sendall(head(len(photo)) + photo)
            wait(lambda: metric(client, "loci_queue_images") == 1)
        wait(lambda: metric(client, "loci_uploads") == 1)
        second = pool.submit(client.post, "/v1/query", files={"image": photo})
        wait(lambda: metric(client, "loci_uploads") == 2)
        network.open.set()
        assert (first.result(10).status_code, second.result(10).status_code) == (200, 200)
    assert network.batches == [1, 1]


def run(app: Callable[..., Any], messages: list[Message], settings: Settings, size: int = 3) -> list[Message]:
    """Run an app behind admission on these messages, the last of which comes again and again."""
    sent: list[Message] = []

    async def receive() -> Message:
        if not messages:
            await asyncio.sleep(60)
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "headers": [(b"content-length", str(size).encode())],
    }
    asyncio.run(Admission(app, settings, Room(4, 1000))(scope, receive, send))
    return sent


@pytest.fixture
def settings(tmp_path: Any) -> Settings:
    return Settings(index=tmp_path, upload_grace_seconds=0.05)


def test_app_is_notified_of_a_disconnect(settings: Settings) -> None:
    seen: list[str] = []

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        seen.extend([(await receive())["type"], (await receive())["type"]])

    run(app, [{"type": "http.request", "body": b"abc"}, {"type": "http.disconnect"}], settings)
    assert seen in (["http.request", "http.disconnect"], ["http.request"])


def test_a_failure_of_the_app_is_the_apps_own(settings: Settings) -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run(app, [], settings)


def test_a_body_that_stops_is_too_slow(settings: Settings) -> None:
    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        while True:
            await receive()

    first: Message = {"type": "http.request", "body": b"a", "more_body": True}
    with pytest.raises(TooSlow, match=r"^the body came too slowly: 1 bytes in 0 s$"):
        run(app, [first], settings)

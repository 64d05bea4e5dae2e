"""Connections that are slow, idle, too many, or no HTTP at all, on a real port."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from tests.service.conftest import FakeIndex, Network, Start

MakePhoto = Callable[..., bytes]
Wait = Callable[[Callable[[], bool]], None]


@contextlib.contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    with socket.create_connection(
        (client.base_url.host, client.base_url.port or 0), timeout=10
    ) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def problem_of(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    found: dict[str, Any] = json.JSONDecoder().raw_decode(body.decode())[0]  # another answer may follow
    assert head.split()[1] == str(found["status"]).encode()
    return found


def test_a_head_that_comes_drop_by_drop_is_cut_off(start: Start, index: FakeIndex) -> None:
    client = start(index, head_seconds=0.4)
    with connected(client) as connection:
        begun = time.monotonic()
        connection.sendall(b"GET /v1/places HTTP/1.1\r\nHost: x\r\n")
        connection.settimeout(0.05)
        answer = b""
        while time.monotonic() < begun + 5 and not answer:
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
            if not answer:
                connection.sendall(b"X-A: b\r\n")
        assert time.monotonic() - begun < 2
        assert problem_of(answer)["detail"] == "the request's head came too slowly"
    assert 'loci_requests_total{route="none",status="408"} 1.0' in client.get("/metrics").text


def test_a_connection_that_asks_nothing_is_closed(start: Start, index: FakeIndex) -> None:
    client = start(index, head_seconds=0.2)
    with connected(client) as connection:
        assert connection.recv(1) == b""


def test_kept_connection_may_not_be_slow(start: Start, index: FakeIndex) -> None:
    client = start(index, head_seconds=0.3, keep_alive_seconds=5)
    with connected(client) as connection:
        for _ in range(2):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 ")
            time.sleep(0.4)  # idle between requests is no slow head
        connection.sendall(b"GET /heal")
        assert problem_of(read_all(connection))["status"] == 408


@pytest.mark.parametrize("count", [1, 3])
def test_a_head_that_is_too_long_is_431(client: httpx.Client, count: int) -> None:
    with connected(client) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(
                b"GET / HTTP/1.1\r\nHost: x\r\n" + (b"X-A: " + b"a" * (60_000 // count) + b"\r\n") * count
            )
            connection.sendall(b"\r\n")
        assert problem_of(read_all(connection))["status"] == 431
    assert client.get("/healthz").status_code == 200


def test_a_head_of_very_many_fields_is_refused_before_it_is_parsed(client: httpx.Client) -> None:
    with connected(client) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 50_000 + b"\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"rubbish\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /v1/query HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /v1/query HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\x00\r\n\r\n",
    ],
)
def test_non_http_gets_a_clean_error(client: httpx.Client, sent: bytes) -> None:
    with connected(client) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR) if sent.startswith(b"\x16") else None
        answer = read_all(connection)
    if answer:
        status = problem_of(answer)["status"]
        assert status in (400, 404, 421, 431, 501, 505)
    assert client.get("/healthz").status_code == 200


def test_a_body_that_stops_being_http_ends_its_request_and_breaks_nothing(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, wait: Wait
) -> None:
    head = b"POST /v1/query HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for rubbish in (b"5\r\nhello\r\nrubbish\r\n", b"x" * 100_000, b"5\r\nhello__" + b"\r\n" * 30_000):
        with connected(client) as connection:
            connection.sendall(head)
            time.sleep(0.05)
            with contextlib.suppress(ConnectionError):
                connection.sendall(rubbish)
            assert problem_of(read_all(connection))["status"] in (400, 431)
    wait(lambda: "loci_uploads 0.0" in client.get("/metrics").text)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert not [line for line in client.get("/metrics").text.splitlines() if 'status="500"' in line]


def test_an_oversized_head_in_many_parts_breaks_nothing(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        with connected(client) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000)
            assert read_all(connection).startswith(b"HTTP/1.1 431 ")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    "head",
    [
        "GET /v1/../../../../etc/passwd HTTP/1.1",
        "GET //etc/passwd HTTP/1.1",
        "GET /page/../v1/places/nothing HTTP/1.1",
        "GET http://evil.example.org/v1/photos/pink HTTP/1.1",
        "GET /%00 HTTP/1.1",
        "GET /%ff%fe HTTP/1.1",
        "GET * HTTP/1.1",
    ],
)
def test_odd_targets_are_404(client: httpx.Client, head: str) -> None:
    with connected(client) as connection:
        connection.sendall(f"{head}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert problem_of(read_all(connection))["status"] == 404


def test_an_upgrade_is_answered_as_any_request(client: httpx.Client) -> None:
    with connected(client) as connection:
        connection.sendall(
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_one_connection_too_many_gets_503(start: Start, index: FakeIndex, wait: Wait) -> None:
    client = start(index, max_connections=3, head_seconds=5)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(client)) for _ in range(3)]
        for connection in held:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        time.sleep(0.1)
        with connected(client) as more:
            more.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = read_all(more)
            assert problem_of(answer)["detail"] == "too many connections, try again in a moment"
            assert b"Retry-After: 5\r\n" in answer
        held[0].sendall(b"\r\n")
        assert held[0].recv(65536).startswith(b"HTTP/1.1 200 "), "those that are in are served"
    wait(lambda: _answers(client))


def _answers(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/healthz").status_code == 200
    return False


def test_a_body_after_an_early_answer_is_not_taken_forever(start: Start, index: FakeIndex) -> None:
    client = start(index, max_upload_mb=1, upload_grace_seconds=0.3)
    with connected(client) as connection:
        connection.sendall(b"POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: 90000000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        begun = time.monotonic()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while time.monotonic() < begun + 5:
                connection.sendall(b"x")
                time.sleep(0.02)
        assert time.monotonic() - begun < 2


def test_a_client_that_does_not_take_its_answer_is_cut_off(
    start: Start, index: FakeIndex, wait: Wait
) -> None:
    (index.folder / "red.jpg").write_bytes(bytes(30_000_000))
    client = start(index, write_seconds=0.3)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((client.base_url.host, client.base_url.port or 0))
        connection.sendall(b"GET /v1/photos/red/image HTTP/1.1\r\nHost: x\r\n\r\n")
        wait(lambda: 'route="/v1/photos/{id}/image",status="200"} 1.0' in client.get("/metrics").text)
        received = len(read_all(connection))
    assert received < 30_000_000


def test_half_closed_connection_counts_as_closed(
    start: Start, index: FakeIndex, network: Network, make_photo: MakePhoto, wait: Wait
) -> None:
    client = start(index)
    network.open.clear()
    photo = make_photo()
    with connected(client) as connection:
        connection.sendall(
            f"POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: {len(photo)}\r\n\r\n".encode() + photo
        )
        network.entered.acquire(timeout=10)
        connection.shutdown(socket.SHUT_WR)
        wait(lambda: "loci_uploads 0.0" in client.get("/metrics").text)
        network.open.set()
        assert read_all(connection) == b""
    assert client.post("/v1/query", files={"image": photo}).status_code == 200


def test_pipelined_requests_are_answered_in_order(client: httpx.Client) -> None:
    with connected(client) as connection:
        get = "GET {} HTTP/1.1\r\nHost: x\r\n{}\r\n"
        paths = ("/v1/photos/red", "/v1/photos/green", "/v1/photos/pink")
        asked = "".join(get.format(path, "Connection: close\r\n" if "pink" in path else "") for path in paths)
        connection.sendall(asked.encode())
        answer = read_all(connection)
    positions = [answer.index(word) for word in (b'"id":"red"', b'"id":"green"', b"no photo pink")]
    assert positions == sorted(positions)


def test_64_clients_who_leave_at_random_cost_the_others_nothing(
    start: Start, index: FakeIndex, make_photo: MakePhoto, wait: Wait
) -> None:
    client = start(index, queue_size=64)
    photos = {colour: make_photo(colour) for colour in ("red", "green", "blue")}
    answered: list[tuple[str, str]] = []
    failed: list[bytes] = []

    def caller(seed: int) -> None:
        generator = random.Random(seed)
        for _ in range(8):
            colour = generator.choice(list(photos))
            photo = photos[colour]
            request = (
                f"POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: {len(photo)}\r\n\r\n".encode() + photo
            )
            with connected(client) as connection:
                if generator.random() < 0.3:
                    connection.sendall(request[: generator.randrange(len(request))])
                    if generator.random() < 0.5:  # not even a goodbye
                        linger = struct.pack("ii", 1, 0)
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    continue
                connection.sendall(request.replace(b"Host: x", b"Host: x\r\nConnection: close"))
                answer = read_all(connection)
                if answer.startswith(b"HTTP/1.1 200 "):
                    body = json.loads(answer.partition(b"\r\n\r\n")[2])
                    answered.append((colour, body["places"][0]["id"]))
                elif not answer.startswith(b"HTTP/1.1 503 "):
                    failed.append(answer)

    threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert len(answered) > 200
    assert all(asked == got for asked, got in answered)
    wait(lambda: "loci_uploads 0.0" in client.get("/metrics").text)
    assert "loci_upload_bytes 0.0" in client.get("/metrics").text
    assert client.get("/readyz").status_code == 200

"""Many callers at once, callers who leave, and more callers than there is room for."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from tests.service.conftest import FakeIndex, Network, Start

Problem = Callable[..., dict[str, Any]]
MakePhoto = Callable[..., bytes]
Wait = Callable[[Callable[[], bool]], None]


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def test_concurrent_queries_share_batches_and_get_their_own_answers(
    client: httpx.Client, network: Network, make_photo: MakePhoto, wait: Wait
) -> None:
    colours = ["red", "green", "blue"] * 3
    network.open.clear()

    def ask(colour: str) -> str:
        answer = client.post("/v1/query", files={"image": make_photo(colour)}).json()
        return str(answer["places"][0]["id"])

    with ThreadPoolExecutor(len(colours)) as pool:
        asked = [pool.submit(ask, colours[0])]
        network.entered.acquire(timeout=10)  # the first is at the network before the others come
        asked += [pool.submit(ask, colour) for colour in colours[1:]]
        wait(lambda: metric(client, "loci_queue_images") + network.batches[0] == len(colours))
        network.open.set()
        assert [answer.result(10) for answer in asked] == colours
    assert sum(network.batches) == len(colours)
    assert len(network.batches) == 2
    assert metric(client, "loci_batch_images_count") == 2
    assert metric(client, "loci_batch_images_sum") == len(colours)


def test_more_than_the_queue_holds_is_503_with_retry_after(
    start: Start, index: FakeIndex, network: Network, make_photo: MakePhoto, problem: Problem, wait: Wait
) -> None:
    client = start(index, queue_size=1)
    network.open.clear()
    files = {"image": make_photo()}
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/v1/query", files=files)
        network.entered.acquire(timeout=10)
        second = pool.submit(client.post, "/v1/query", files=files)
        wait(lambda: metric(client, "loci_queue_images") == 1)
        refused = client.post("/v1/query", files=files)
        network.open.set()
        assert (first.result(10).status_code, second.result(10).status_code) == (200, 200)
    assert problem(refused, 503)["type"] == "urn:loci:problem:overloaded"
    assert refused.headers["retry-after"] == "1"


def test_leaving_caller_does_not_disturb_others(
    client: httpx.Client, network: Network, make_photo: MakePhoto
) -> None:
    network.open.clear()
    photo = make_photo()
    head = "POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    head += f"Content-Length: {len(photo)}\r\n\r\n"
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address) as waits, socket.create_connection(address) as half:
        waits.sendall(head.encode() + photo)
        half.sendall(head.encode() + photo[:20])
        network.entered.acquire(timeout=10)
    network.open.set()
    assert client.post("/v1/query", files={"image": photo}).status_code == 200
    assert client.get("/readyz").status_code == 200


def test_undecoded_photos_wait_in_a_bounded_room(
    start: Start, index: FakeIndex, make_photo: MakePhoto, problem: Problem, wait: Wait
) -> None:
    client = start(index, queue_size=1, decode_threads=1)
    app_is_free = threading.Event()
    asked = threading.Semaphore(0)

    def slow_file(_id: str) -> object:
        asked.release()
        app_is_free.wait(10)
        return index.folder / "red.jpg"

    index.photo_file = slow_file  # type: ignore[method-assign,assignment]
    with ThreadPoolExecutor(2) as pool:
        thumbnails = [pool.submit(client.get, "/v1/photos/red/thumbnail")]
        asked.acquire(timeout=10)  # the one thread is taken
        thumbnails.append(pool.submit(client.get, "/v1/photos/red/thumbnail"))
        wait(lambda: metric(client, "loci_decode_photos") == 2)
        refused = client.post("/v1/query", files={"image": make_photo()})
        app_is_free.set()
        assert [thumbnail.result(10).status_code for thumbnail in thumbnails] == [200, 200]
    problem(refused, 503)
    assert client.post("/v1/query", files={"image": make_photo()}).status_code == 200

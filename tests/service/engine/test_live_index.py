"""Snapshots that come and go while the service runs."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from indexer.errors import IndexMissing, StoreUnavailable

if TYPE_CHECKING:
    from tests.service.conftest import FakeIndex, Network, Start

Problem = Callable[..., dict[str, Any]]
MakePhoto = Callable[..., bytes]
Wait = Callable[[Callable[[], bool]], None]


def snapshot(client: httpx.Client) -> str | None:
    name: str | None = client.get("/readyz").json().get("snapshot")
    return name


def test_a_new_snapshot_is_swapped_in(
    start: Start, index: FakeIndex, newer: list[Any], wait: Wait, make_photo: MakePhoto
) -> None:
    client = start(index, refresh_seconds=0.02)
    assert snapshot(client) == "01/000001"
    newer.append(dataclasses.replace(index, snapshot="01/000002"))
    wait(lambda: snapshot(client) == "01/000002")
    response = client.post("/v1/query", files={"image": make_photo()})
    assert response.json()["snapshot"] == "01/000002"


def test_a_request_is_answered_by_the_snapshot_that_it_began_with(
    start: Start,
    index: FakeIndex,
    network: Network,
    newer: list[Any],
    wait: Wait,
    make_photo: MakePhoto,
) -> None:
    client = start(index, refresh_seconds=0.02)
    network.open.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, "/v1/query", files={"image": make_photo()})
        network.entered.acquire(timeout=10)
        newer.append(dataclasses.replace(index, snapshot="02/000001", model_fingerprint="beef"))
        wait(lambda: snapshot(client) == "02/000001")
        network.open.set()
        answer = waiting.result(10).json()
    assert (answer["snapshot"], answer["model"]) == ("01/000001", "f00d")


def test_a_failed_refresh_keeps_the_old_snapshot(
    start: Start, index: FakeIndex, monkeypatch: pytest.MonkeyPatch, make_photo: MakePhoto
) -> None:
    tries = threading.Semaphore(0)

    def broken() -> Any:
        tries.release()
        raise OSError("index.faiss is truncated")

    monkeypatch.setattr(index, "latest", broken, raising=False)
    client = start(index, refresh_seconds=0.02)
    assert tries.acquire(timeout=10)
    assert tries.acquire(timeout=10), "it goes on looking"
    assert snapshot(client) == "01/000001"
    assert client.post("/v1/query", files={"image": make_photo()}).status_code == 200


def test_index_without_store_is_not_ready(
    start: Start,
    index: FakeIndex,
    monkeypatch: pytest.MonkeyPatch,
    problem: Problem,
    wait: Wait,
    make_photo: MakePhoto,
) -> None:
    gone = threading.Event()

    def latest() -> Any:
        if gone.is_set():
            raise StoreUnavailable("the Milvus store http://10.0.0.7:19530 (loci) cannot be read: no route")
        return index

    monkeypatch.setattr(index, "latest", latest, raising=False)
    client = start(index, refresh_seconds=0.02)
    assert client.post("/v1/query", files={"image": make_photo()}).status_code == 200
    gone.set()
    wait(lambda: client.get("/readyz").status_code == 503)
    for response in (client.get("/readyz"), client.post("/v1/query", files={"image": make_photo()})):
        told = problem(response, 503)
        assert told["type"] == "urn:loci:problem:not-ready"
        assert told["detail"] == "the store that holds the index cannot be asked now, try again"
        assert response.headers["Retry-After"] == "5"
    assert client.get("/healthz").status_code == 200
    gone.clear()
    wait(lambda: client.get("/readyz").status_code == 200)
    assert client.post("/v1/query", files={"image": make_photo()}).status_code == 200


def test_store_lost_during_a_query(
    start: Start, index: FakeIndex, problem: Problem, make_photo: MakePhoto
) -> None:
    index.answer_error = StoreUnavailable("the Milvus store http://10.0.0.7:19530 (loci) cannot be searched")
    response = start(index).post("/v1/query", files={"image": make_photo()})
    told = problem(response, 503)
    assert told["type"] == "urn:loci:problem:store-unavailable"
    assert "10.0.0.7" not in told["detail"]
    assert response.headers["Retry-After"] == "5"


def test_service_is_not_ready_until_the_index_opens(
    start: Start,
    index: FakeIndex,
    monkeypatch: pytest.MonkeyPatch,
    problem: Problem,
    wait: Wait,
    make_photo: MakePhoto,
) -> None:
    opened = threading.Event()

    def slow(*_: object, **__: object) -> Any:
        opened.wait(10)
        return index

    monkeypatch.setattr("indexer.index.Index.open", slow)
    client = start(None)
    assert client.get("/healthz").json() == {"status": "ok"}
    response = client.get("/readyz")
    assert problem(response, 503)["detail"] == "the index is being loaded"
    assert response.headers["retry-after"] == "5"
    problem(client.post("/v1/query", files={"image": make_photo()}), 503)
    problem(client.get("/v1/places"), 503)
    assert problem(client.get("/page/index.json"), 503)["detail"] == "the index is being loaded"
    opened.set()
    wait(lambda: client.get("/readyz").status_code == 200)
    assert client.post("/v1/query", files={"image": make_photo()}).status_code == 200


def test_a_missing_index_is_named_and_tried_again(
    start: Start, index: FakeIndex, monkeypatch: pytest.MonkeyPatch, problem: Problem, wait: Wait
) -> None:
    missing = threading.Event()
    missing.set()

    def open_index(*_: object, **__: object) -> Any:
        if missing.is_set():
            raise IndexMissing("no index at walls, make one with: loci index PHOTOS --into walls")
        return index

    monkeypatch.setattr("indexer.index.Index.open", open_index)
    client = start(None, refresh_seconds=0.02)
    wait(lambda: "no index at walls" in client.get("/readyz").text)
    problem(client.get("/readyz"), 503)
    missing.clear()
    wait(lambda: client.get("/readyz").status_code == 200)

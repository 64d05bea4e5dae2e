"""The Python client against the real app on a real port, and against a service that misbehaves as told."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from indexer.answers import Answer
from indexer.filters import Filters
from indexer.index import Index
from service.client import AddedPhoto, Client, ClientError

if TYPE_CHECKING:
    from tests.service.conftest import FakeIndex, Start

MakePhoto = Callable[..., bytes]
PROBLEM = {
    "type": "urn:loci:problem:overloaded",
    "title": "Overloaded",
    "status": 503,
    "detail": "wait a bit",
}


@pytest.fixture
def loci(client: httpx.Client) -> Iterator[Client]:
    """A client of the service over the fake index."""
    with Client(str(client.base_url)) as loci:
        yield loci


@dataclasses.dataclass
class Script:
    """What a stand-in service answers, one after another, the last for good; and what it was sent."""

    answers: list[tuple[int, dict[str, str], Any]] = dataclasses.field(default_factory=list)
    asked: list[tuple[str, str, dict[str, str], bytes]] = dataclasses.field(default_factory=list)
    url: str = ""


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            script.asked.append((self.command, self.path, dict(self.headers.items()), body))
            status, headers, content = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
            data = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        script.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield script
        server.shutdown()
        thread.join()


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client meant to wait each time."""
    naps: list[float] = []
    monkeypatch.setattr("service.client.time.sleep", naps.append)
    return naps


def without_timings(answer: Answer) -> Answer:
    return dataclasses.replace(answer, timings_ms={})


def test_it_answers_as_the_index_does(start: Start, real_index: Path, real_photo: Path) -> None:
    index = Index.open(real_index, device="cpu")
    with Client(str(start(index).base_url)) as client:
        answer = client.query(real_photo, k=3)
        clip = client.query_clip([real_photo, real_photo.read_bytes()], 2)
        descriptors = client.embed([real_photo])
    assert without_timings(answer) == without_timings(index.query(real_photo, k=3))
    assert list(answer.timings_ms) == ["decode", "embed", "search", "verify"]
    assert without_timings(clip) == without_timings(index.query_clip([real_photo, real_photo], 2))
    assert descriptors.dtype == np.float32
    np.testing.assert_allclose(descriptors, index.embed([real_photo]), atol=1e-3)


def test_an_answer_equals_the_one_that_was_given(
    loci: Client, answers: list[Answer], make_photo: MakePhoto
) -> None:
    answer = loci.query(make_photo("green"), 2)
    (given,) = answers
    assert without_timings(answer) == without_timings(given)
    assert answer.position == given.position


@pytest.mark.parametrize("kind", ["path", "string", "bytes", "file"])
def test_a_photo_may_be_a_path_bytes_or_a_file(
    loci: Client, make_photo: MakePhoto, tmp_path: Path, kind: str
) -> None:
    photo = make_photo("blue")
    path = tmp_path / "blue.jpg"
    path.write_bytes(photo)
    source = {"path": path, "string": str(path), "bytes": photo, "file": io.BytesIO(photo)}[kind]
    assert loci.query(source).places[0].id == "blue"  # type: ignore[arg-type]


def test_photos_and_places_are_the_indexs_own(loci: Client, index: FakeIndex) -> None:
    assert loci.photo("red") == index.photo("red")
    assert loci.places() == index.places()
    assert loci.place("red") == index.place("red")
    with Image.open(io.BytesIO(loci.thumbnail("red"))) as thumbnail:
        assert thumbnail.size == (213, 320)


def test_every_page_of_places_is_fetched(
    loci: Client, index: FakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.client.PAGE", 2)
    assert loci.places() == index.places()


def test_an_id_is_no_path(loci: Client) -> None:
    with pytest.raises(ClientError) as caught:  # would be 200 if it were
        loci.photo("../../healthz?x")
    assert caught.value.status == 404


def test_a_refusal_carries_the_problems_fields(loci: Client) -> None:
    with pytest.raises(ClientError) as caught:
        loci.query(b"rubbish", k=3)
    error = caught.value
    assert (error.status, error.type, error.title, error.field, error.retry_after) == (
        400,
        "urn:loci:problem:undecodable-image",
        "Image cannot be decoded",
        "image",
        None,
    )
    assert str(error) == error.detail
    assert error.detail == "not an image that can be read"


def test_ready(loci: Client, start: Start, tmp_path: Path) -> None:
    assert loci.ready()
    with Client(str(start(None, index=tmp_path / "no-index").base_url)) as unready:
        assert not unready.ready()
    with Client("http://127.0.0.1:9") as nobody:
        assert not nobody.ready()


def test_connection_error_names_the_address() -> None:
    with (
        Client("http://127.0.0.1:9") as client,
        pytest.raises(ClientError, match=r"127\.0\.0\.1:9/") as caught,
    ):
        client.places()
    assert caught.value.status is None
    assert "cannot be reached" in caught.value.detail


def test_hanging_service_times_out(network: Any, client: httpx.Client, make_photo: MakePhoto) -> None:
    network.open.clear()
    with (
        Client(str(client.base_url), timeout=0.2) as loci,
        pytest.raises(ClientError, match="did not answer in time"),
    ):
        loci.query(make_photo())
    network.open.set()


def test_client_retries_after_the_given_time(script: Script, naps: list[float]) -> None:
    body = {"total": 0, "limit": 1000, "offset": 0, "places": []}
    script.answers = [(503, {"Retry-After": "2"}, PROBLEM), (429, {}, PROBLEM), (200, {}, body)]
    with Client(script.url) as client:
        assert client.places() == []
    assert naps == [2, 2]  # what it said; then the second of 1, 2, 4 s
    assert len(script.asked) == 3


def test_a_body_is_sent_whole_again(script: Script, naps: list[float], make_photo: MakePhoto) -> None:
    script.answers = [(503, {"Retry-After": "1"}, PROBLEM), (200, {}, {"descriptors": [[1.0]]})]
    with Client(script.url) as client:
        client.embed([io.BytesIO(make_photo())])
    first, again = (body for *_, body in script.asked)
    assert make_photo() in first
    assert make_photo() in again
    assert naps == [1]


def test_waiting_has_its_bounds(script: Script, naps: list[float]) -> None:
    script.answers = [(503, {"Retry-After": "10"}, PROBLEM)]
    with Client(script.url, max_wait=25, retries=5) as client, pytest.raises(ClientError) as caught:
        client.photo("x")
    assert naps == [10, 10]
    assert (caught.value.retry_after, caught.value.detail) == (10, "wait a bit")
    naps.clear()
    with Client(script.url, max_wait=100, retries=1) as client, pytest.raises(ClientError):
        client.photo("x")
    assert naps == [10]


def test_retry_after_may_be_a_date(script: Script, naps: list[float]) -> None:
    script.answers = [
        (503, {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=8))}, PROBLEM)
    ]
    with Client(script.url, retries=1) as client, pytest.raises(ClientError):
        client.photo("x")
    assert naps == [pytest.approx(7.5, abs=1)]


def test_other_refusals_are_not_retried(script: Script, naps: list[float]) -> None:
    script.answers = [(500, {}, PROBLEM | {"status": 500})]
    with Client(script.url) as client, pytest.raises(ClientError):
        client.photo("x")
    assert naps == []
    assert len(script.asked) == 1


def test_refusal_without_problem_json_is_a_sentence(script: Script) -> None:
    script.answers = [(502, {}, ["from a proxy"])]
    with (
        Client(script.url) as client,
        pytest.raises(ClientError, match=r"^http://.*/v1/photos/x answered with status 502$"),
    ):
        client.photo("x")


def test_photos_are_added_and_deleted_with_the_key(
    script: Script, index: FakeIndex, make_photo: MakePhoto, tmp_path: Path
) -> None:
    file = tmp_path / "a wall.jpg"
    file.write_bytes(make_photo())
    added = dataclasses.asdict(index.photo("red")) | {"created": True, "said by": "a newer service"}
    script.answers = [(201, {}, added), (204, {}, None)]
    with Client(script.url, key="k3y") as client:
        got = client.add_photo(file, lat=52.0, lon=0.25, taken_at=datetime(2024, 5, 1, 10), place="a wall")
        client.delete_photo("p/1")
    assert got == AddedPhoto(index.photo("red"), created=True)
    (method, path, headers, body), (delete, deleted, *_) = script.asked
    assert (method, path, headers["Authorization"]) == ("POST", "/v1/photos", "Bearer k3y")
    fields = {
        "lat": "52.0",
        "lon": "0.25",
        "taken_at": "2024-05-01T10:00:00",
        "place": "a wall",
        "name": "a wall.jpg",
    }
    for name, value in fields.items():
        assert f'name="{name}"\r\n\r\n{value}\r\n'.encode() in body
    assert b'name="heading"' not in body
    assert make_photo() in body
    assert (delete, deleted) == ("DELETE", "/v1/photos/p%2F1")


def test_filters_go_as_parameters(script: Script) -> None:
    script.answers = [(400, {}, PROBLEM)]
    with Client(script.url) as client:
        for filters in (Filters(52.0, -0.25, radius_m=100, place="a wall"), Filters(), None):
            with pytest.raises(ClientError):
                client.query(b"photo", 7, filters=filters)
    params = [dict(httpx.URL(path).params) for _, path, *_ in script.asked]
    assert params == [
        {"k": "7", "lat": "52.0", "lon": "-0.25", "radius_m": "100", "place": "a wall"},
        {"k": "7"},
        {"k": "7"},
    ]


def test_verification_can_be_switched_off(script: Script) -> None:
    script.answers = [(400, {}, PROBLEM)]
    with Client(script.url) as client, pytest.raises(ClientError):
        client.query(b"photo", verify=False)
    assert dict(httpx.URL(script.asked[0][1]).params) == {"k": "5", "verify": "false"}


def test_the_client_loads_neither_torch_nor_the_service() -> None:
    program = """
import sys
from loci import Client, Filters
Client().close()
Filters(place="a wall")
print([name for name in ("torch", "faiss", "fastapi", "uvicorn", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

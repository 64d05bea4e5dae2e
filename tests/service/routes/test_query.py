"""POST /v1/query and /v1/embed against the running app."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from indexer.answers import Answer
from indexer.errors import ModelMismatch

if TYPE_CHECKING:
    from tests.service.conftest import FakeIndex, Network, Start

Problem = Callable[..., dict[str, Any]]
MakePhoto = Callable[..., bytes]


def png_header(width: int, height: int) -> bytes:
    """Write the header of a PNG whose pixels never come."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_multipart_query_finds_the_place(client: httpx.Client, make_photo: MakePhoto, kind: str) -> None:
    response = client.post("/v1/query", files={"image": make_photo("green", kind=kind)})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.json()["places"][0]["id"] == "green"


@pytest.mark.parametrize(
    ("params", "wanted"), [({}, True), ({"verify": "true"}, True), ({"verify": "false"}, False)]
)
def test_queries_are_verified_by_default(
    client: httpx.Client, index: FakeIndex, make_photo: MakePhoto, params: dict[str, str], wanted: bool
) -> None:
    response = client.post("/v1/query", params=params, files={"image": make_photo()})
    assert response.status_code == 200
    assert index.verified == [wanted]


@pytest.mark.parametrize(
    "headers", [{"Content-Type": "image/jpeg"}, {"Content-Type": "application/octet-stream"}, {}]
)
def test_a_raw_body_is_an_image(client: httpx.Client, make_photo: MakePhoto, headers: dict[str, str]) -> None:
    response = client.post("/v1/query", content=make_photo("blue"), headers=headers)
    assert response.status_code == 200
    assert response.json()["places"][0]["id"] == "blue"


def test_the_json_is_the_answers_own(
    client: httpx.Client, make_photo: MakePhoto, answers: list[Answer]
) -> None:
    response = client.post("/v1/query", params={"k": 2}, files={"image": make_photo()})
    (answer,) = answers
    assert len(answer.places) == 2
    assert json.dumps(response.json()) == json.dumps(answer.to_json())  # the order of the keys too
    timings = response.json()["timings_ms"]
    assert list(timings) == ["decode", "embed", "search", "verify"]
    assert timings["verify"] is None
    assert timings["decode"] > 0
    assert timings["embed"] > 0


def test_matches_are_listed_when_asked_for(
    client: httpx.Client, index: FakeIndex, make_photo: MakePhoto, problem: Problem
) -> None:
    def matches(**params: str) -> list[object]:
        response = client.post("/v1/query", params={"k": 1, **params}, files={"image": make_photo()})
        return [photo["matches"] for photo in response.json()["places"][0]["photos"]]

    assert matches(matches="true") == [None]  # not verified
    index.agreeing = 2
    assert matches(matches="true") == [[[0.25, 0.25, 0.25, 0.75], [0.75, 0.25, 0.75, 0.75]]]
    assert matches() == matches(matches="false") == [None]
    refused = client.post("/v1/query", params={"matches": "some"}, files={"image": make_photo()})
    assert problem(refused, 422, "matches")["detail"].startswith("matches: Input should be a valid boolean")


def test_matched_answers_are_the_answers_own_json(
    client: httpx.Client, index: FakeIndex, make_photo: MakePhoto, answers: list[Answer]
) -> None:
    index.agreeing = 3
    response = client.post("/v1/query", params={"matches": True}, files={"image": make_photo()})
    assert json.dumps(response.json()) == json.dumps(answers[0].to_json())
    assert response.json() == answers[0].to_json()


def test_other_parts_are_passed_over(client: httpx.Client, make_photo: MakePhoto) -> None:
    response = client.post("/v1/query", data={"comment": "hello"}, files={"image": make_photo()})
    assert response.status_code == 200


@pytest.mark.parametrize("k", ["0", "101", "many", "-1"])
def test_k_out_of_range_is_422(client: httpx.Client, make_photo: MakePhoto, problem: Problem, k: str) -> None:
    response = client.post("/v1/query", params={"k": k}, files={"image": make_photo()})
    assert problem(response, 422, "k")["detail"].startswith("k: Input should be")


def test_no_image_is_422(client: httpx.Client, problem: Problem) -> None:
    problem(client.post("/v1/query"), 422, "image")
    problem(client.post("/v1/query", files={"photo": b"x"}), 422, "image")
    problem(client.post("/v1/query", content=b"", headers={"Content-Type": "image/png"}), 422, "image")


def test_two_images_are_422(client: httpx.Client, make_photo: MakePhoto, problem: Problem) -> None:
    response = client.post("/v1/query", files=[("image", make_photo()), ("image", make_photo())])
    assert problem(response, 422, "image")["detail"] == "2 images came, this takes one"


def test_not_an_image_type_is_415(client: httpx.Client, problem: Problem) -> None:
    as_text = {"Content-Type": "text/plain; charset=utf-8"}
    body = problem(client.post("/v1/query", content=b"hello", headers=as_text), 415, "image")
    assert body["detail"].startswith("the body is of type text/plain; send image/*")
    part = {"image": ("notes.txt", b"hello", "text/plain")}
    body = problem(client.post("/v1/query", files=part), 415, "image")
    assert body["detail"].startswith("the part 'image' is of type text/plain")


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"this is a letter, not a photo", "not an image that can be read"),
        (b"", "empty file"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "truncated image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image that can be read"),
    ],
)
def test_other_files_are_400(client: httpx.Client, problem: Problem, sent: bytes, reason: str) -> None:
    response = client.post("/v1/query", files={"image": ("photo.jpg", sent, "image/jpeg")})
    body = problem(response, 400, "image")
    assert body["title"] == "Image cannot be decoded"
    assert body["detail"] == reason


def test_a_truncated_image_is_400(client: httpx.Client, make_photo: MakePhoto, problem: Problem) -> None:
    photo = make_photo(size=(640, 480))
    response = client.post("/v1/query", files={"image": photo[: len(photo) // 2]})
    assert "truncated" in problem(response, 400, "image")["detail"]


def test_a_decompression_bomb_is_413(client: httpx.Client, problem: Problem, network: Network) -> None:
    response = client.post("/v1/query", files={"image": png_header(50_000, 50_000)})
    assert problem(response, 413, "image")["type"] == "urn:loci:problem:too-many-pixels"
    assert network.batches == []


def test_pixels_are_limited_by_the_setting(
    start: Start, index: FakeIndex, make_photo: MakePhoto, problem: Problem
) -> None:
    client = start(index, max_pixels=5000)
    problem(client.post("/v1/query", files={"image": make_photo(size=(101, 50))}), 413, "image")
    assert client.post("/v1/query", files={"image": make_photo(size=(100, 50))}).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("multipart", [False, True])
def test_too_many_bytes_are_413(
    start: Start, index: FakeIndex, problem: Problem, chunked: bool, multipart: bool
) -> None:
    client = start(index, max_upload_mb=0.5)
    head = b'--cut\r\nContent-Disposition: form-data; name="image"\r\n\r\n' if multipart else b""
    body = head + bytes(2_000_000)
    kind = "multipart/form-data; boundary=cut" if multipart else "image/jpeg"

    def chunks() -> Iterator[bytes]:
        for begin in range(0, len(body), 50_000):
            yield body[begin : begin + 50_000]

    response = client.post("/v1/query", content=chunks() if chunked else body, headers={"Content-Type": kind})
    assert problem(response, 413, "image")["detail"].startswith("the body is larger than the 0.5 MB")
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("kind", "body", "detail"),
    [
        ("multipart/form-data", b"x", "names no boundary"),
        ("multipart/form-data; boundary=cut", b"no boundary here", "not a multipart body"),
        ("multipart/form-data; boundary=cut", b"--cut\r\nContent-Dis", "ends too early"),
    ],
)
def test_malformed_multipart_is_400(
    client: httpx.Client, problem: Problem, kind: str, body: bytes, detail: str
) -> None:
    response = client.post("/v1/query", content=body, headers={"Content-Type": kind})
    assert detail in problem(response, 400)["detail"]


def test_another_model_is_409(
    client: httpx.Client, index: FakeIndex, make_photo: MakePhoto, problem: Problem
) -> None:
    index.answer_error = ModelMismatch("the descriptor was made by model beef, the index by f00d")
    response = client.post("/v1/query", files={"image": make_photo()})
    assert "beef" in problem(response, 409)["detail"]


def test_unexpected_error_is_500_without_details(
    client: httpx.Client, network: Network, make_photo: MakePhoto, problem: Problem
) -> None:
    network.error = RuntimeError("secret")
    response = client.post("/v1/query", files={"image": make_photo()})
    problem(response, 500)
    assert "secret" not in response.text
    network.error = None
    assert client.post("/v1/query", files={"image": make_photo()}).status_code == 200
    assert 'route="/v1/query",status="500"' in client.get("/metrics").text


def test_embed_keeps_the_order(client: httpx.Client, make_photo: MakePhoto) -> None:
    colours = ["blue", "red", "green", "red"]
    response = client.post("/v1/embed", files=[("image", make_photo(colour)) for colour in colours])
    body = response.json()
    assert list(body) == ["model", "dim", "descriptors"]
    assert (body["model"], body["dim"]) == ("f00d", 3)
    assert np.argmax(body["descriptors"], axis=1).tolist() == [2, 0, 1, 0]
    np.testing.assert_allclose(np.linalg.norm(body["descriptors"], axis=1), 1, rtol=1e-6)


def test_embed_takes_a_raw_body(client: httpx.Client, make_photo: MakePhoto) -> None:
    response = client.post("/v1/embed", content=make_photo("green"), headers={"Content-Type": "image/jpeg"})
    assert np.argmax(response.json()["descriptors"][0]) == 1


def test_embed_sends_more_images_than_the_queue_holds(
    start: Start, index: FakeIndex, make_photo: MakePhoto
) -> None:
    client = start(index, queue_size=2, max_batch=4, decode_threads=1)
    response = client.post("/v1/embed", files=[("image", make_photo())] * 9)
    assert len(response.json()["descriptors"]) == 9


def test_embed_names_the_image_that_fails(
    client: httpx.Client, make_photo: MakePhoto, problem: Problem
) -> None:
    response = client.post("/v1/embed", files=[("image", make_photo()), ("image", b"rubbish")])
    assert problem(response, 400, "image")["detail"].startswith("image 2 of 2: ")
    huge = client.post("/v1/embed", files=[("image", make_photo()), ("image", png_header(50_000, 50_000))])
    assert problem(huge, 413, "image")["detail"].startswith("image 2 of 2: ")


def test_embed_limits_the_number_of_images(
    start: Start, index: FakeIndex, make_photo: MakePhoto, problem: Problem
) -> None:
    response = start(index, max_images=2).post("/v1/embed", files=[("image", make_photo())] * 3)
    assert problem(response, 422, "image")["detail"] == "3 images came, at most 2 are taken at once"


def test_clip_answers_once_for_all_its_frames(client: httpx.Client, make_photo: MakePhoto) -> None:
    files = [
        ("image", (f"{n}.jpg", make_photo(c), "image/jpeg")) for n, c in enumerate(("red", "red", "blue"))
    ]
    answer = client.post("/v1/query/clip", params={"k": 2}, files=files)
    assert answer.status_code == 200
    assert [place["id"] for place in answer.json()["places"]] == ["red", "blue"]
    backwards = client.post("/v1/query/clip", params={"k": 2}, files=files[::-1]).json()
    assert backwards["places"] == answer.json()["places"]


def test_clip_names_the_frame_that_cannot_be_read(
    client: httpx.Client, make_photo: MakePhoto, problem: Problem
) -> None:
    files = [("image", make_photo("red")), ("image", make_photo("red")[:200])]
    body = problem(client.post("/v1/query/clip", files=files), 400, "image")
    assert body["detail"].startswith("image 2 of 2: ")
    assert "no image came" in problem(client.post("/v1/query/clip"), 422, "image")["detail"]

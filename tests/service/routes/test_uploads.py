"""Reading bodies: limits hold while they are read."""

import asyncio
from collections.abc import Iterator

import pytest
from fastapi import Request
from starlette.types import Message

from service.errors import TooLarge
from service.routes.uploads import read_images

HEAD = b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'


def request(messages: Iterator[Message], content_type: str, **headers: str) -> Request:
    async def receive() -> Message:
        return next(messages)

    fields = {
        "content-type": content_type,
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def endless(first: bytes, taken: list[int]) -> Iterator[Message]:
    yield {"type": "http.request", "body": first, "more_body": True}
    while True:
        taken.append(1000)
        yield {"type": "http.request", "body": bytes(1000), "more_body": True}


@pytest.mark.parametrize(
    ("kind", "first"), [("image/jpeg", b""), ("multipart/form-data; boundary=cut", HEAD)]
)
@pytest.mark.parametrize("announced", [{}, {"content_length": "10"}])
def test_reading_stops_at_the_limit_whatever_was_announced(
    kind: str, first: bytes, announced: dict[str, str]
) -> None:
    taken: list[int] = []
    with pytest.raises(TooLarge, match=r"larger than the 0\.01 MB"):
        asyncio.run(read_images(request(endless(first, taken), kind, **announced), 10_000))
    assert sum(taken) <= 11_000


def test_body_announced_too_large_is_not_read() -> None:
    taken: list[int] = []
    announced = request(endless(b"", taken), "image/jpeg", content_length="10001")
    with pytest.raises(TooLarge):
        asyncio.run(read_images(announced, 10_000))
    assert taken == []


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_parts_survive_any_cut_into_chunks(step: int) -> None:
    body = (
        HEAD
        + b"first\r\n--not a boundary"
        + b'\r\n--cut\r\nContent-Disposition: form-data; name="comment"\r\n\r\nhello'
        + b"\r\n--cut\r\nCONTENT-DISPOSITION: form-data; name=image\r\nContent-Type: IMAGE/png\r\n\r\nsecond"
        + b"\r\n--cut--\r\n"
    )
    messages = (
        {"type": "http.request", "body": body[at : at + step], "more_body": at + step < len(body)}
        for at in range(0, len(body), step)
    )
    images = asyncio.run(read_images(request(messages, "multipart/form-data; boundary=cut"), 10_000))
    assert images == [b"first\r\n--not a boundary", b"second"]

"""Images of request bodies. Limits apply while a body is read, and nothing is written to disk."""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import InvalidRequest, MalformedBody, TooLarge, UnsupportedMedia

FIELD = "image"
LONGEST_FIELD = 2000  # bytes of a text part


@dataclass(frozen=True)
class Upload:
    """The contents of a request's body."""

    images: list[bytes]
    fields: dict[str, str] = field(default_factory=dict)
    """Requested text parts by name."""


async def read_images(request: Request, limit: int) -> list[bytes]:
    """Read a body's images; see `read_upload`."""
    return (await read_upload(request, limit)).images


async def read_upload(request: Request, limit: int, names: Collection[str] = ()) -> Upload:
    """Read the `image` parts and the text parts in `names` of a multipart body, or a raw body as one image.

    Content-Length is trusted only if it is too large. An image without a content type is accepted; decoding
    decides.

    Raises:
        TooLarge: the body has more than `limit` bytes.
        UnsupportedMedia: the content type of the body or of an `image` part is not an image's.
        MalformedBody: the body is not valid multipart.
        InvalidRequest: a text part comes twice, or is not text.
    """
    media, options = parse_options_header(request.headers.get("content-type"))
    if media == b"multipart/form-data":
        return await _read_parts(request, options.get(b"boundary", b""), limit, names)
    _check_type(media.decode("latin-1"), "the body")
    body = b"".join([chunk async for chunk in _limited(request, limit)])
    return Upload([body] if body else [])


async def _limited(request: Request, limit: int) -> AsyncIterator[bytes]:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise TooLarge.than(limit)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise TooLarge.than(limit)
        yield chunk


async def _read_parts(request: Request, boundary: bytes, limit: int, names: Collection[str]) -> Upload:
    if not boundary:
        raise MalformedBody("the multipart content type names no boundary")
    parts = _Parts(names)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_header_field": parts.header_name,
                "on_header_value": parts.header_value,
                "on_header_end": parts.end_header,
                "on_headers_finished": parts.end_headers,
                "on_part_data": parts.data,
                "on_part_end": parts.end,
                "on_end": parts.end_body,
            },
        )
        async for chunk in _limited(request, limit):
            parser.write(chunk)
    except FormParserError as error:
        raise MalformedBody(f"not a multipart body: {error}") from error
    if not parts.complete:
        raise MalformedBody("the multipart body ends too early")
    return Upload(parts.images, parts.fields)


class _Parts:
    """Collects the parts named `image` and some text parts, and skips all others."""

    def __init__(self, names: Collection[str]) -> None:
        self.images: list[bytes] = []
        self.fields: dict[str, str] = {}
        self._names = names
        self._field: str | None = None
        self.complete = False
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._content: bytearray | None = None

    def begin(self) -> None:
        self._headers = {}
        self._content = None
        self._field = None

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def end_headers(self) -> None:
        _, disposition = parse_options_header(self._headers.get(b"content-disposition"))
        name = disposition.get(b"name", b"").decode("latin-1")
        if name in self._names:
            if name in self.fields:
                raise InvalidRequest(f"{name} comes twice", field=name)
            self._field = name
            self._content = bytearray()
            return
        if name != FIELD:
            return
        media, _ = parse_options_header(self._headers.get(b"content-type"))
        _check_type(media.decode("latin-1"), f"the part {FIELD!r}")
        self._content = bytearray()

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._content is not None:
            self._content += data[start:end]
        if self._field is not None and len(self._content or b"") > LONGEST_FIELD:
            raise InvalidRequest(f"{self._field} is longer than {LONGEST_FIELD} bytes", field=self._field)

    def end(self) -> None:
        if self._content is None:
            return
        if self._field is None:
            self.images.append(bytes(self._content))
            return
        try:
            self.fields[self._field] = self._content.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"{self._field} is not UTF-8 text", field=self._field) from None

    def end_body(self) -> None:
        self.complete = True


def _check_type(media: str, what: str) -> None:
    if media and not media.startswith("image/") and media != "application/octet-stream":
        raise UnsupportedMedia(
            f"{what} is of type {media[:100]}; send image/* or application/octet-stream,"
            f" as the body itself or as multipart/form-data with a part {FIELD!r}",
            field=FIELD,
        )

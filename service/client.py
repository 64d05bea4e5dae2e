"""A client of the service: the answers of `Index` over HTTP, without a network to load."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeVar
from urllib.parse import quote

import httpx

from indexer.answers import Answer, Photo, PhotoHit, Place, PlaceHit, Position

if TYPE_CHECKING:
    import numpy as np
    from _typeshed import DataclassInstance
    from numpy.typing import NDArray

    from indexer.filters import Filters

    T = TypeVar("T", bound=DataclassInstance)

Source = Path | str | bytes | BinaryIO
"""A photo: its path, its bytes, or an open binary file."""

PAGE = 1000
BUSY = (429, 503)
PATIENCE_S = 1.0
"""Initial back-off in seconds when the service sends no Retry-After; doubled on each retry."""


class ClientError(Exception):
    """The service refused a request, or cannot be reached."""

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        type: str = "about:blank",
        title: str = "",
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        """What was wrong with this request."""
        self.status = status
        """The HTTP status; None without an answer."""
        self.type = type
        """The kind of problem, for programs."""
        self.title = title
        """The kind of problem, for people."""
        self.field = field
        """The parameter or part with the error, if there is one."""
        self.retry_after = retry_after
        """Seconds after which the same request may work, if the service sent them."""


@dataclass(frozen=True, slots=True)
class AddedPhoto:
    """A photo that was sent to the index."""

    photo: Photo
    created: bool
    """False if the index already had the same bytes; nothing was changed."""


class Client:
    """A connection to one service. May be used from many threads, and as a context manager.

    Args:
        url: address of the service, with the path of a proxy, if any.
        key: API key, if the service needs one.
        timeout: seconds for connecting, and for each wait on the network.
        retries: number of retries when the service is busy (429, 503).
        max_wait: most seconds of waiting for one request; if the service asks for more, it fails.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        max_wait: float = 30.0,
    ) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=url.rstrip("/") + "/", headers=headers, timeout=timeout)
        self._retries = retries
        self._max_wait = max_wait

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def query(
        self, photo: Source, k: int = 5, *, filters: Filters | None = None, verify: bool = True
    ) -> Answer:
        """Find where a photo was taken: position and k nearest places, as `Index.query`.

        Raises:
            ClientError: the service refused, is busy for too long, or cannot be reached.
            OSError: the photo's file cannot be read.
        """
        return self._ask("v1/query", [photo], k, filters, {} if verify else {"verify": "false"})

    def query_clip(self, frames: Sequence[Source], k: int = 5, *, filters: Filters | None = None) -> Answer:
        """Find where photos of one place were taken. They are pooled as one, in any order."""
        return self._ask("v1/query/clip", frames, k, filters)

    def embed(self, photos: Sequence[Source]) -> NDArray[np.float32]:
        """Return descriptors of photos, B d, unit length."""
        import numpy as np

        body = self._json("POST", "v1/embed", files=_parts(photos))
        return np.asarray(body["descriptors"], dtype=np.float32)

    def add_photo(
        self,
        photo: Source,
        *,
        lat: float | None = None,
        lon: float | None = None,
        heading: float | None = None,
        taken_at: str | datetime | None = None,
        place: str | None = None,
        name: str | None = None,
    ) -> AddedPhoto:
        """Add a photo to the index; EXIF fills what is not given. Needs a write key."""
        if name is None and isinstance(photo, str | Path):
            name = Path(photo).name
        given = {
            "lat": lat,
            "lon": lon,
            "heading": heading,
            "taken_at": taken_at,
            "place": place,
            "name": name,
        }
        body = self._json("POST", "v1/photos", data=_texts(given), files=_parts([photo]))
        created = body.pop("created")
        return AddedPhoto(_photo(body), created)

    def delete_photo(self, id: str) -> None:
        """Remove a photo from the index. Needs a write key."""
        self._send("DELETE", f"v1/photos/{_segment(id)}")

    def photo(self, id: str) -> Photo:
        """Return a photo of the index."""
        return _photo(self._json("GET", f"v1/photos/{_segment(id)}"))

    def thumbnail(self, id: str) -> bytes:
        """Return a small upright JPEG of a photo."""
        return self._send("GET", f"v1/photos/{_segment(id)}/thumbnail").content

    def places(self) -> list[Place]:
        """Return every place, with its number of photos."""
        found: list[Place] = []
        while True:
            page = self._json("GET", "v1/places", params={"limit": PAGE, "offset": len(found)})
            found += map(_place, page["places"])
            if not page["places"] or len(found) >= page["total"]:
                return found

    def place(self, id: str) -> Place:
        """Return a place with its photos."""
        return _place(self._json("GET", f"v1/places/{_segment(id)}"))

    def ready(self) -> bool:
        """Whether the service can answer queries now; False if it cannot be reached."""
        try:
            return self._http.get("readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def _ask(
        self,
        path: str,
        photos: Sequence[Source],
        k: int,
        filters: Filters | None,
        more: Mapping[str, str] | None = None,
    ) -> Answer:
        params = {"k": str(k), **(more or {})} | (_filter_params(filters) if filters is not None else {})
        return _answer(self._json("POST", path, params=params, files=_parts(photos)))

    def _json(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        body: dict[str, Any] = self._send(method, path, **content).json()
        return body

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Send a request; retry while the service is busy, within the limits."""
        waited = 0.0
        for attempt in range(self._retries + 1):
            try:
                response = self._http.request(method, path, **content)
            except httpx.HTTPError as error:
                raise _unreachable(error, self._http.base_url) from error
            if response.is_success:
                return response
            problem = _problem(response)
            wait = problem.retry_after if problem.retry_after is not None else PATIENCE_S * 2**attempt
            if response.status_code not in BUSY or attempt == self._retries or waited + wait > self._max_wait:
                break
            time.sleep(wait)
            waited += wait
        raise problem


def _parts(photos: Sequence[Source]) -> list[tuple[str, tuple[str, bytes, str]]]:
    """Read photos into the parts of a body, so that it can be sent again."""
    return [("image", ("photo", _read(photo), "application/octet-stream")) for photo in photos]


def _read(photo: Source) -> bytes:
    if isinstance(photo, bytes):
        return photo
    return Path(photo).read_bytes() if isinstance(photo, str | Path) else photo.read()


def _segment(id: str) -> str:
    return quote(id, safe="")


def _filter_params(filters: Filters) -> dict[str, str]:
    """Return the parameters that a filter sets."""
    fields = dataclasses.fields(filters)
    return _texts({f.name: v for f in fields if (v := getattr(filters, f.name)) != f.default})


def _texts(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the values that are not None as form fields or query parameters."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else str(value)
        for name, value in given.items()
        if value is not None
    }


def _answer(body: dict[str, Any]) -> Answer:
    position = body["position"]
    places = tuple(
        _make(PlaceHit, place, photos=tuple(_make(PhotoHit, photo) for photo in place["photos"]))
        for place in body["places"]
    )
    return _make(Answer, body, places=places, position=position and _make(Position, position))


def _photo(body: dict[str, Any]) -> Photo:
    return _make(Photo, body)


def _place(body: dict[str, Any]) -> Place:
    members = tuple(map(_photo, body.get("photos", ())))
    return _make(Place, body, photos=body["photo_count"], members=members)


def _make(kind: type[T], body: Mapping[str, Any], **instead: Any) -> T:
    """Fill a dataclass from JSON, and ignore unknown fields of a newer service."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in body.items() if name in names} | instead)


def _problem(response: httpx.Response) -> ClientError:
    """Read a refusal; a proxy may answer without problem+json."""
    try:
        body = response.json()
        detail = str(body.get("detail") or body["title"])
    except (ValueError, KeyError, AttributeError):
        body, detail = {}, f"{response.url} answered with status {response.status_code}"
    return ClientError(
        detail,
        status=response.status_code,
        type=str(body.get("type", "about:blank")),
        title=str(body.get("title", response.reason_phrase)),
        field=body.get("field"),
        retry_after=_seconds(response.headers.get("retry-after")),
    )


def _unreachable(error: httpx.HTTPError, url: httpx.URL) -> ClientError:
    if isinstance(error, httpx.TimeoutException):
        return ClientError(f"{url} did not answer in time", title="No answer")
    return ClientError(f"{url} cannot be reached: {error or type(error).__name__}", title="No answer")


def _seconds(retry_after: str | None) -> float | None:
    """Parse Retry-After: seconds, or a date."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())

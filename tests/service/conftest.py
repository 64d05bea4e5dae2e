"""A small index that needs no network and no disk, and the app over it on a real port."""

import contextlib
import dataclasses
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from indexer.answers import Answer, Photo, PhotoHit, Place, PlaceHit, Position
from indexer.build.run import build_index
from indexer.errors import NotFound
from indexer.filters import Filters
from indexer.options import BuildOptions
from indexer.snapshots.store import Floats
from model import gpu_decoding as decoding
from model.embedder import Seen
from model.images import read_photo
from service.app import create_app
from service.server import configure
from service.settings import Settings

COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230)}
ORIENTATION = 0x0112


@dataclasses.dataclass
class Network:
    """What tests see and steer of the fake network."""

    batches: list[int] = dataclasses.field(default_factory=list)
    """Size of each batch, in order."""
    open: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Cleared: batches wait inside the network."""
    entered: threading.Semaphore = dataclasses.field(default_factory=lambda: threading.Semaphore(0))
    """Released once a batch."""
    error: Exception | None = None
    """Raised instead of an answer."""

    def see(self, clips: Sequence[Sequence[decoding.Image]]) -> list[Seen]:
        self.batches.append(sum(map(len, clips)))
        self.entered.release()
        self.open.wait(10)
        if self.error is not None:
            raise self.error
        means = [sum(np.asarray(image).mean(axis=(0, 1)) for image in clip) for clip in clips]
        rows = np.stack(means).astype(np.float32)
        return [Seen(row / np.linalg.norm(row)) for row in rows]


@dataclasses.dataclass
class FakeIndex:
    """Three places, one a colour, with one photo each."""

    folder: Path
    network: Network
    answers: list[Answer]
    newer: list[Any]
    snapshot: str = "01/000001"
    model_fingerprint: str = "f00d"
    writable: bool = False
    answer_error: Exception | None = None
    known: bool | None = None
    confidence: float | None = None
    filters: list[Filters | None] = dataclasses.field(default_factory=list)
    verified: list[bool] = dataclasses.field(default_factory=list)
    agreeing: int = 0
    """Inliers of each photo, which lie in a row across it; 0: none is verified."""

    @property
    def embedder(self) -> Network:
        return self.network

    def read(self, photo: bytes, *, max_pixels: int) -> decoding.Image:
        return read_photo(photo, 64, max_pixels=max_pixels)

    def latest(self) -> Any:
        return self.newer[-1] if self.newer else self

    def answer(
        self,
        seen: Seen,
        k: int,
        timings_ms: dict[str, float],
        filters: Filters | None = None,
        verify: bool = True,
        matched: bool = False,
    ) -> Answer:
        self.verified.append(verify)
        self.filters.append(filters)
        if self.answer_error is not None:
            raise self.answer_error
        scores = {name: float(np.dot(seen.descriptor, _unit(colour))) for name, colour in COLOURS.items()}
        best = sorted(scores, key=lambda name: -scores[name])[:k]
        answer = Answer(
            known=self.known,
            confidence=self.confidence,
            position=Position(52.0, 0.25, 12.5, 270.0),
            places=tuple(self._hit(name, scores[name], matched) for name in best),
            model=self.model_fingerprint,
            snapshot=self.snapshot,
            timings_ms={**timings_ms, "search": 0.25},
            note="not calibrated: 3 photos",
        )
        self.answers.append(answer)
        return answer

    def info(self) -> dict[str, Any]:
        return {
            "photos": 3,
            "failed": 0,
            "places": 3,
            "dim": 3,
            "clusters": 1,
            "model": self.model_fingerprint,
            "snapshot": self.snapshot,
        }

    def places(self) -> list[Place]:
        return [dataclasses.replace(self.place(name), members=()) for name in COLOURS]

    def place(self, id: str) -> Place:
        photo = self.photo(id)
        return Place(id, f"the {id} wall", photo.lat, photo.lon, 1, (photo,))

    def photo(self, id: str) -> Photo:
        if id not in COLOURS:
            raise NotFound(f"no photo {id} in this index")
        lat = None if id == "blue" else 52.0
        lon = None if id == "blue" else 0.25
        return Photo(id, f"walls/{id}.jpg", id, lat, lon, 90.0, "2024-05-01T10:00:00", 80, 120, "ok")

    def photo_file(self, id: str) -> Path:
        self.photo(id)
        return self.folder / f"{id}.jpg"

    def _hit(self, name: str, score: float, matched: bool) -> PlaceHit:
        photo = self.photo(name)
        where = (photo.lat, photo.lon, photo.heading, photo.taken_at)
        hit = PhotoHit(name, photo.path, score, self.agreeing or None, *where)
        if matched and self.agreeing:
            row = [round((n + 0.5) / self.agreeing, 4) for n in range(self.agreeing)]
            hit = dataclasses.replace(hit, matches=tuple((x, 0.25, x, 0.75) for x in row))
        return PlaceHit(name, None, photo.lat, photo.lon, score, photos=(hit,))


def _unit(colour: tuple[int, int, int]) -> Floats:
    vector = np.asarray(colour, dtype=np.float32)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


PhotoMaker = Callable[..., bytes]


@pytest.fixture(scope="session")
def make_photo() -> PhotoMaker:
    """Make a photo of one colour as the bytes of a file."""

    def make(colour: str = "red", size: tuple[int, int] = (96, 64), kind: str = "JPEG") -> bytes:
        out = io.BytesIO()
        Image.new("RGB", size, COLOURS[colour]).save(out, kind)
        return out.getvalue()

    return make


@pytest.fixture
def network() -> Network:
    network = Network()
    network.open.set()
    return network


@pytest.fixture
def answers() -> list[Answer]:
    """Every answer that the fake index gave."""
    return []


@pytest.fixture
def newer() -> list[Any]:
    """What the fake index says is newer than itself."""
    return []


@pytest.fixture
def index(tmp_path: Path, network: Network, answers: list[Answer], newer: list[Any]) -> FakeIndex:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in COLOURS.items():
        exif = Image.Exif()
        exif[ORIENTATION] = 6  # stored lying on its side, to be shown 800 px wide and 1200 px high
        exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 0.0, 0.0), 3: "E", 4: (0.0, 15.0, 0.0)})
        Image.new("RGB", (1200, 800), colour).save(folder / f"{name}.jpg", exif=exif)
    return FakeIndex(folder, network, answers, newer)


Start = Callable[..., httpx.Client]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Serve an index on a free port, with settings as keywords; gives a client."""
    with contextlib.ExitStack() as stack:

        def start(served: Any, **settings: Any) -> httpx.Client:
            app = create_app(Settings(**{"index": tmp_path / "index", **settings}), served)
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            server = uvicorn.Server(configure(app, app.state.engine.settings))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            stack.callback(thread.join, 10)
            stack.callback(setattr, server, "should_exit", True)
            _wait(lambda: server.started)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            return stack.enter_context(httpx.Client(base_url=url, timeout=20))

        yield start


@pytest.fixture
def client(start: Start, index: FakeIndex) -> httpx.Client:
    return start(index)


@pytest.fixture(scope="session")
def real_photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve small photos of textures, two of each, for a real index."""
    folder = tmp_path_factory.mktemp("collection")
    generator = np.random.default_rng(0)
    files = []
    for number in range(12):
        if number % 2 == 0:
            blocks = generator.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        noise = generator.integers(-9, 9, (64, 96, 3))
        pixels = (blocks.repeat(8, axis=0).repeat(8, axis=1) + noise).clip(0, 255).astype(np.uint8)
        files.append(folder / f"{number:02}.png")
        Image.fromarray(pixels).save(files[-1])
    return files


@pytest.fixture(scope="session")
def real_photo(real_photos: list[Path]) -> Path:
    return real_photos[4]


@pytest.fixture(scope="session")
def real_index(real_photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of `real_photos`, as `loci index` makes it."""
    folder = tmp_path_factory.mktemp("real") / "index"
    build_index([real_photos[0].parent], folder, BuildOptions(dim=4, clusters=4, image_size=96, device="cpu"))
    return folder


@pytest.fixture(scope="session")
def wait() -> Callable[[Callable[[], bool]], None]:
    """Wait until something holds, 10 s at most."""
    return _wait


def _wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("it never came true")
        time.sleep(0.01)


@pytest.fixture(scope="session")
def problem() -> Callable[..., dict[str, Any]]:
    """Check that a response is problem+json of a status, and give its body."""

    def check(response: httpx.Response, status: int, field: str | None = None) -> dict[str, Any]:
        body: dict[str, Any] = response.json()
        assert response.status_code == status, body
        assert response.headers["content-type"] == "application/problem+json"
        assert body["status"] == status
        assert body["type"].startswith(("urn:loci:problem:", "about:blank"))
        assert body["title"]
        assert body["detail"]
        assert body.get("field") == field
        assert "Traceback" not in response.text
        return body

    return check

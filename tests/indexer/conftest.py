"""Tiny photos of walls, an index of them, and copies of both that a test may change."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from indexer.build.publish import publish
from indexer.build.report import BuildReport
from indexer.build.run import build_index
from indexer.index import Index
from indexer.options import BuildOptions, FitOptions, Options, PlaceOptions, SearchOptions, save_options
from indexer.photos.metadata import PhotoMetadata
from indexer.posting.new_photo import NewPhoto
from indexer.search.folder import Folder
from indexer.storage.catalogue import Catalogue
from indexer.storage.layout import Layout
from indexer.storage.rows import FileRow, PhotoFacts
from indexer.storage.shards import RUN, ShardWriter
from model.images import read_photo
from tests.tiny_network import use_tiny_network

WALLS, VIEWS = 4, 2
LAT, LON, STEP = 52.0, 0.25, 0.01
OPTIONS: dict[str, Any] = {"clusters": 4, "image_size": 48, "device": "cpu", "precision": "fp32"}

Paint = Callable[..., Path]
StartChild = Callable[[str], AbstractContextManager["subprocess.Popen[str]"]]
Floats = NDArray[np.float32]


def paint(
    path: Path, wall: int, view: int = 0, *, size: tuple[int, int] = (48, 32), gps: bool = True
) -> Path:
    """Save a photo of a wall: squares with noise, a kilometre north of the previous wall."""
    squares = np.random.default_rng(wall).integers(0, 256, (size[1] // 8, size[0] // 8, 3))
    noise = np.random.default_rng([wall, view]).integers(-9, 9, (size[1], size[0], 3))
    pixels = (squares.repeat(8, axis=0).repeat(8, axis=1) + noise).clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    if gps:
        exif.get_ifd(0x8825).update({1: "N", 2: (LAT + wall * STEP, 0.0, 0.0), 3: "E", 4: (LON, 0.0, 0.0)})
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95, exif=exif)
    return path


@contextmanager
def started_child(name: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a script below this folder that takes orders as in `killing`."""
    here = Path(__file__)
    with subprocess.Popen(
        [sys.executable, str(here.parent / name)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(here.parents[2]), "OMP_NUM_THREADS": "1"},
    ) as process:
        yield process
        process.communicate()


@pytest.fixture(scope="session")
def start_child() -> StartChild:
    return started_child


@dataclass(frozen=True)
class World:
    """A folder of photos and its index."""

    photos: Path
    index: Path

    def build(self, *sources: Path, **options: Any) -> BuildReport:
        return build_index(sources or [self.photos], self.index, BuildOptions(**{**OPTIONS, **options}))

    def open(self) -> Index:
        return Index.open(self.index, device="cpu", precision="fp32")

    def photo(self, wall: int, view: int = 0) -> Path:
        return self.photos / f"wall{wall}" / f"view{view}.jpg"

    def nearest(self, photo: Path) -> str:
        """Return the path of the most similar photo, as in answers."""
        index = self.open()
        return index.nearest(index.embed([photo])[0], 1)[0].path


def make_fast(patch: pytest.MonkeyPatch) -> None:
    """Replace the slowest parts of a tiny run: VGG16 and waiting for the disk."""
    use_tiny_network(patch)
    patch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    make_fast(monkeypatch)


@pytest.fixture(scope="session", name="paint")
def paint_fixture() -> Paint:
    return paint


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An index of two photos of each of four walls, which tests only read."""
    folder = tmp_path_factory.mktemp("made")
    world = World(folder / "photos", folder / "index")
    for wall in range(WALLS):
        for view in range(VIEWS):
            paint(world.photo(wall, view), wall, view)
    with pytest.MonkeyPatch.context() as patch:
        make_fast(patch)
        world.build()
    return world


@pytest.fixture(scope="session")
def opened(made: World) -> Index:
    """The index of `made`, opened."""
    with pytest.MonkeyPatch.context() as patch:
        make_fast(patch)
        return made.open()


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    """A copy of `made` that a test may change."""
    own = World(tmp_path / "photos", tmp_path / "index")
    shutil.copytree(made.photos, own.photos)
    shutil.copytree(made.index, own.index)
    with sqlite3.connect(own.index / "catalogue.sqlite") as db:
        db.execute("UPDATE files SET root = ?", [str(own.photos)])
    db.close()
    return own


@dataclass
class Handmade:
    """An index of photos without files, with descriptors made up by a test."""

    folder: Path
    dim: int = 8

    @property
    def layout(self) -> Layout:
        return Layout(self.folder)

    def make(
        self,
        photos: Sequence[tuple[PhotoMetadata, Sequence[Floats]]],
        search: SearchOptions | None = None,
        **places: Any,
    ) -> list[str]:
        """Make an index of photos with this metadata and one descriptor for each view; return their ids."""
        search = search or SearchOptions()
        self.folder.mkdir()
        catalogue = Catalogue(self.folder, create=True)
        fitted = FitOptions(dim=self.dim, local_features=0)
        save_options(self.layout.options(1), Options(fitted, PlaceOptions(**places), search))
        ids = []
        for number, (metadata, views) in enumerate(photos):
            facts = PhotoFacts(hashlib.sha256(f"made {number}".encode()).hexdigest(), 64, 48, metadata)
            with catalogue.transaction() as db:
                catalogue.put_photo(db, facts)
                catalogue.put_file(db, "/made", f"{number:04}.jpg", FileRow(1, 1, facts.id))
            writer = ShardWriter(self.layout.shards(1), self.dim, catalogue.last_slot(1, RUN))
            slots = writer.append(np.stack(views))
            yaws = [360.0 * view / len(views) for view in range(len(views))]
            rows = [(facts.id, view, yaws[view], slot) for view, slot in enumerate(slots)]
            catalogue.add_descriptors(1, rows)
            ids.append(facts.id)
        publish(self.layout, catalogue, 1, "made by hand", self.dim, PlaceOptions(**places), search=search)
        catalogue.close()
        return ids

    def open(self) -> Index:
        """Open it without a network, for queries by descriptor."""
        config = SimpleNamespace(image_size=640, min_image_size=256)
        network: Any = SimpleNamespace(read=read_photo, model=SimpleNamespace(config=config))
        return Index(Folder.open(self.folder), network)

    def new(self, number: int, metadata: PhotoMetadata | None = None, name: str | None = None) -> NewPhoto:
        """Return a photo to POST; its bytes are no image."""
        data = b"photo %d" % number
        facts = PhotoFacts(hashlib.sha256(data).hexdigest(), 32, 16, metadata or PhotoMetadata())
        return NewPhoto(data, facts, f"{facts.sha256}.jpg", name or f"{number}.jpg")


@pytest.fixture
def handmade(tmp_path: Path) -> Handmade:
    return Handmade(tmp_path / "handmade")


@pytest.fixture(scope="session")
def make_handmade() -> type[Handmade]:
    return Handmade


@pytest.fixture(scope="session")
def unit() -> Callable[[np.random.Generator, int], Floats]:
    """Draw a descriptor of unit length, rounded to fp16 as in shards."""

    def draw(generator: np.random.Generator, dim: int = 8) -> Floats:
        vector = generator.standard_normal(dim).astype(np.float32)
        return (vector / np.linalg.norm(vector)).astype(np.float16).astype(np.float32)

    return draw


@pytest.fixture
def empty(tmp_path: Path) -> World:
    """Photos of two walls that are not indexed yet."""
    own = World(tmp_path / "new" / "photos", tmp_path / "new" / "index")
    for wall in range(2):
        for view in range(2):
            paint(own.photo(wall, view), wall, view)
    return own

"""Photos of four painted walls, an index of them, and how the command line is run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from loci.main import app
from tests.small_shards import use_real_shards
from tests.tiny_network import BACKBONES, use_tiny_network

ROOT = Path(__file__).parents[2]
WALLS = 4
VIEWS = 4
SIZE = (128, 96)
LAT, LON = 52.0, 0.25
STEP = 0.002
"""Degrees of latitude between two walls: 222 m."""


def paint(wall: int) -> Image.Image:
    """A wall of coloured squares, another pattern for each number."""
    squares = np.random.default_rng(wall).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(squares).resize((192, 144), Image.Resampling.NEAREST)


def photograph(path: Path, wall: int, view: int, *, gps: bool = True) -> Path:
    """Save a view of a wall: a cut a few pixels from the other views', with its position in the EXIF."""
    left, top = 6 * view, 4 * view
    image = paint(wall).crop((left, top, left + SIZE[0], top + SIZE[1]))
    exif = Image.Exif()
    if gps:
        exif.get_ifd(0x8825).update({1: "N", 2: (LAT + wall * STEP, 0.0, 0.0), 3: "E", 4: (LON, 0.0, 0.0)})
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90, exif=exif)
    return path


REAL = {name: resolve_name(name.replace("file.", "file:")) for name in BACKBONES}

Photograph = Callable[..., Path]
Loci = Callable[..., Result]
Process = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module", autouse=True)
def _stand_in() -> Iterator[pytest.MonkeyPatch]:
    """Replace VGG16, whose weights take longest in most commands; tests marked slow run on the real one."""
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_network(patch)
        yield patch


@pytest.fixture(autouse=True)
def _real_network_for_slow_tests(
    request: pytest.FixtureRequest, _stand_in: pytest.MonkeyPatch
) -> Iterator[None]:
    if request.node.get_closest_marker("slow") is None:
        yield
        return
    with real_network():
        yield


@contextmanager
def real_network() -> Iterator[None]:
    """The real VGG16, and shards of the size that other processes expect."""
    with pytest.MonkeyPatch.context() as patch:
        use_real_shards(patch)
        for name, real in REAL.items():
            patch.setattr(name, real)
        yield


@pytest.fixture(scope="session", name="photograph")
def photograph_fixture() -> Photograph:
    return photograph


@pytest.fixture(scope="session")
def loci() -> Loci:
    """Run the command line in this process: `loci("query", photo, "--index", index)`."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)

    return run


@pytest.fixture(scope="session")
def process() -> Process:
    """Run `python -m loci`, or with `code` that Python code, in a process of its own."""

    def run(*arguments: object, code: str | None = None, **more: Any) -> "subprocess.CompletedProcess[str]":
        start: Sequence[str] = ["-m", "loci"] if code is None else ["-c", code]
        command = [sys.executable, *start, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=300, env=environment, check=False, **more
        )

    return run


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all views of all walls; tests read it only."""
    folder = tmp_path_factory.mktemp("collection") / "photos"
    for wall in range(WALLS):
        for view in range(VIEWS):
            photograph(folder / f"wall{wall}" / f"view{view}.jpg", wall, view)
    return folder


@pytest.fixture(scope="session")
def made(photos: Path, loci: Loci) -> tuple[Path, Result]:
    """An index of these photos, and what the command that made it said."""
    index = photos.parent / "index"
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_network(patch)
        return index, loci("index", photos, "--into", index, "--clusters", 4)


@pytest.fixture(scope="session")
def index(made: tuple[Path, Result]) -> Path:
    """The index; tests read it only."""
    return made[0]


@pytest.fixture(scope="session")
def real_index(photos: Path, loci: Loci) -> Path:
    """An index of these photos on the real network, for slow tests; tests read it only."""
    with real_network():
        loci("index", photos, "--into", photos.parent / "real-index", "--clusters", 4)
    return photos.parent / "real-index"


@pytest.fixture
def own_index(index: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return Path(shutil.copytree(index, tmp_path / "own-index"))


@pytest.fixture(scope="session")
def question(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo of wall 2 that is not in the index, and does not say where it was taken."""
    return photograph(tmp_path_factory.mktemp("question") / "question.jpg", 2, 5, gps=False)

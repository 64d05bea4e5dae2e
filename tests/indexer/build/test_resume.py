"""A run that was killed by SIGKILL at any moment is resumed."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from indexer.index import Index
from indexer.maintenance.check import check_index
from indexer.storage.catalogue import Catalogue
from tests.indexer.killing import Runs

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from tests.indexer.conftest import Paint, StartChild

PHOTOS = 140  # the reduction is fitted from 128 on, and the last 8 are embedded after the fit
STAGES = (
    "reading",
    "embedding (to fit) 1",
    "fitting clusters",
    "embedding (to fit) 2",
    "fitting the reduction",
    "embedding",
    "publishing",
)


def index_runs(folder: Path, zygote: subprocess.Popen[str], photos: Path, index: Path | None = None) -> Runs:
    return Runs(folder, zygote, photos=str(photos), index=str(index or folder / "index"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, paint: Paint) -> Path:
    folder = tmp_path_factory.mktemp("many") / "photos"
    for number in range(PHOTOS):
        paint(folder / f"{number:03}.jpg", number)
    return folder


@pytest.fixture(scope="module")
def zygote(start_child: StartChild) -> Iterator[subprocess.Popen[str]]:
    with start_child("build/resume_child.py") as process:
        yield process


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, zygote: subprocess.Popen[str], photos: Path) -> Runs:
    """An index made in one run."""
    runs = index_runs(tmp_path_factory.mktemp("unbroken"), zygote, photos)
    assert runs.run() == 0
    return runs


@pytest.fixture
def runs(tmp_path: Path, zygote: subprocess.Popen[str], photos: Path) -> Runs:
    return index_runs(tmp_path, zygote, photos)


@pytest.fixture(autouse=True)
def fast() -> None:
    """Use the real network."""


def by_photo(index: Index) -> dict[str, np.ndarray[Any, Any]]:
    ids, descriptors = index.descriptors()
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)  # fp16 has errors of about 1e-4
    return dict(zip(ids, descriptors, strict=True))


def assert_equal(made: Path, expected: Path, question: Path) -> None:
    """Photos and answers are equal, and descriptors equal up to rounding."""
    assert check_index(made) == []
    ours, theirs = (Index.open(path, device="cpu", precision="fp32") for path in (made, expected))
    assert [photo.path for photo in ours.photos()] == [photo.path for photo in theirs.photos()]
    assert ours.manifest.dim == theirs.manifest.dim == 24
    assert ours.places() == theirs.places()
    one, other = by_photo(ours), by_photo(theirs)
    assert one.keys() == other.keys()
    assert min(float(one[photo] @ other[photo]) for photo in one) >= 0.9999
    answers = [index.query(question, k=5).to_json() for index in (ours, theirs)]
    assert [place["id"] for place in answers[0]["places"]] == [place["id"] for place in answers[1]["places"]]


def test_single_run_embeds_each_photo_once(unbroken: Runs) -> None:
    stages = [line[1] for line in unbroken.logs[0] if line[0] == "stage"]
    assert stages == ["scanning", *STAGES]
    totals = {line[1]: line[2] for line in unbroken.logs[0] if line[0] == "stage"}
    assert [totals[stage] for stage in STAGES] == [140, 70, None, 62, None, 8, None]
    assert set(unbroken.embedded().values()) == {1}
    assert len(unbroken.embedded()) == PHOTOS


def test_run_killed_in_every_stage_is_resumed(runs: Runs, unbroken: Runs, photos: Path) -> None:
    """Kill twice in each long stage, before and after a random event."""
    draw = random.Random(0)
    # Number of events of each stage to draw from. Work that is done is not repeated.
    events = {
        "reading": 140,
        "embedding (to fit) 1": 60,
        "fitting clusters": 2,
        "embedding (to fit) 2": 60,
        "fitting the reduction": 2,
        "embedding": 3,
        "publishing": 8,
    }
    for stage, most in events.items():
        for late in (False, True):
            status = runs.run(stage=stage, nth=draw.randint(1, most), late=late)
            assert status in (0, -9)
    assert runs.run() == 0
    assert set(runs.killed_in()) == set(STAGES)
    assert len(runs.killed_in()) >= 10
    assert set(runs.embedded().values()) == {1}
    assert len(runs.seen()) == PHOTOS
    assert_equal(Path(runs.where["index"]), Path(unbroken.where["index"]), photos / "077.jpg")


def test_run_killed_at_random_moments_is_resumed(runs: Runs, unbroken: Runs, photos: Path) -> None:
    draw = random.Random(1)
    for _ in range(6):
        runs.run(seconds=draw.uniform(0.05, 0.9))
    assert runs.run() == 0
    assert set(runs.embedded().values()) == {1}
    assert_equal(Path(runs.where["index"]), Path(unbroken.where["index"]), photos / "077.jpg")


def test_killed_update_is_resumed(
    unbroken: Runs, zygote: subprocess.Popen[str], photos: Path, paint: Paint, tmp_path: Path
) -> None:
    """The old snapshot answers meanwhile."""
    index = Path(shutil.copytree(unbroken.where["index"], tmp_path / "index"))
    grown = Path(shutil.copytree(photos, tmp_path / "grown"))
    for number in range(12):
        paint(grown / f"new{number}.jpg", 1000 + number)
    runs = index_runs(tmp_path, zygote, grown, index)
    for stage, nth in (
        ("reading", 9),
        ("embedding", 2),
        ("embedding", 5),
        ("publishing", 3),
        ("publishing", 6),
    ):
        assert runs.run(stage=stage, nth=nth, late=bool(nth % 2)) == -9
        opened = Index.open(index, device="cpu", precision="fp32")
        assert opened.nearest(opened.embed([photos / "077.jpg"])[0], 1)[0].path.endswith("/077.jpg")
    assert runs.run() == 0
    new = {photo.id for photo in Catalogue(index).photos() if Path(photo.path).name.startswith("new")}
    assert runs.seen() == new
    assert set(runs.embedded().values()) == {1}
    assert len(new) == 12
    assert check_index(index) == []

"""Killed with SIGKILL at any moment, a training run ends with the weights of one that was left alone."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from model.modelfile import load_model
from model.training.checkpoint import load_checkpoint
from tests.indexer.killing import Runs

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from tests.indexer.conftest import Paint, StartChild

WALLS, VIEWS = 14, 4
EMBEDDING = "embedding (frozen layers)"
KILLS = (
    *(((EMBEDDING, 50),) * 4),
    ("fitting the reduction", 2),
    ("held-out recall", 7),
    ("training, epoch 1", 4),
    ("training, epoch 1", 8),
    ("held-out recall", 7),
    ("training, epoch 2", 4),
    ("training, epoch 2", 4),
    ("held-out recall", 7),
)
"""In which stages, in their order, a run is killed, and in how many of its events at most."""


class ModelRuns(Runs):
    """Runs into one model."""

    def __init__(
        self, folder: Path, zygote: subprocess.Popen[str], photos: Path, parts: str = "head"
    ) -> None:
        self.into = folder / "model.safetensors"
        self.training = folder / "model.safetensors.training"
        super().__init__(folder, zygote, EMBEDDING, photos=str(photos), into=str(self.into), parts=parts)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, paint: Paint) -> Path:
    """Of two shapes, in turn, so that batches are not in the photos' order; 41 of one, 14 of the other.

    The last of the 41 goes through the network alone, which gives other bits than a batch of two to four.
    """
    folder = tmp_path_factory.mktemp("walls") / "photos"
    for wall in range(WALLS):
        for view in range(VIEWS):
            size = ((64, 48), (48, 64), (64, 48))[(3 * wall + view) % 3]
            paint(folder / f"wall{wall}-{view}.jpg", wall, view, size=size)
    (folder / "wall13-3.jpg").unlink()
    return folder


@pytest.fixture(scope="module")
def zygote(start_child: StartChild) -> Iterator[subprocess.Popen[str]]:
    with start_child("training/train_child.py") as process:
        yield process


@pytest.fixture(scope="module")
def unbroken(
    tmp_path_factory: pytest.TempPathFactory, zygote: subprocess.Popen[str], photos: Path
) -> ModelRuns:
    runs = ModelRuns(tmp_path_factory.mktemp("unbroken"), zygote, photos)
    assert runs.run() == 0
    return runs


@pytest.fixture
def runs(tmp_path: Path, zygote: subprocess.Popen[str], photos: Path) -> ModelRuns:
    return ModelRuns(tmp_path, zygote, photos)


@pytest.fixture(autouse=True)
def fast() -> None:
    """Here the network is the real one."""


def assert_same(made: ModelRuns, expected: ModelRuns) -> None:
    """Bit for bit: the model, all that the last epoch left, and the log."""
    assert load_model(made.into).config == load_model(expected.into).config
    left = [load_checkpoint(runs.training / "checkpoint.safetensors")[0] for runs in (made, expected)]
    for ours, theirs in ((load_file(made.into), load_file(expected.into)), left):
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    for name in ("log.txt", "log.jsonl"):
        assert (made.training / name).read_text() == (expected.training / name).read_text()


def test_in_one_run_each_photo_passes_the_frozen_layers_once(unbroken: ModelRuns) -> None:
    stages = [line[1] for line in unbroken.logs[0] if line[0] == "stage"]
    assert stages == [
        *("scanning", "loading weights", EMBEDDING, "fitting clusters", "fitting the reduction"),
        *("held-out recall", "training, epoch 1", "held-out recall", "training, epoch 2", "held-out recall"),
    ]
    assert set(unbroken.embedded().values()) == {1}
    assert len(unbroken.embedded()) == WALLS * VIEWS - 1
    sizes = Counter(len(line[1]) for line in unbroken.logs[0] if line[0] == "batch")
    assert sizes == {4: 13, 2: 1, 1: 1}


def test_killed_in_every_stage(runs: ModelRuns, unbroken: ModelRuns) -> None:
    """Before or after one of its events, drawn at random."""
    draw = random.Random(0)
    for number, (stage, most) in enumerate(KILLS):
        assert runs.run(stage=stage, nth=draw.randint(1, most), late=number % 2 == 1) == -9
    assert runs.run() == 0
    assert runs.killed_in() == [stage for stage, _ in KILLS]
    assert set(runs.embedded().values()) == {1}
    assert_same(runs, unbroken)


def test_killed_from_outside_at_random_moments(runs: ModelRuns, unbroken: ModelRuns) -> None:
    draw = random.Random(1)
    for _ in range(8):
        runs.run(seconds=draw.uniform(0.2, 2.0))
    assert runs.run() == 0
    assert runs.statuses.count(-9) >= 4
    assert set(runs.embedded().values()) == {1}
    assert_same(runs, unbroken)


def test_killed_while_convolutions_learn(tmp_path: Path, zygote: subprocess.Popen[str], photos: Path) -> None:
    whole, killed = (ModelRuns(tmp_path / name, zygote, photos, "conv5") for name in ("whole", "killed"))
    for runs in (whole, killed):
        runs.into.parent.mkdir()
    assert whole.run() == 0
    for stage, nth in ((EMBEDDING, 30), ("training, epoch 2", 7)):
        assert killed.run(stage=stage, nth=nth) == -9
    assert killed.run() == 0
    assert_same(killed, whole)

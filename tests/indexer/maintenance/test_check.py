"""`check_index` reads every byte and reports problems."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from indexer.errors import IndexMissing
from indexer.maintenance.check import check_index
from indexer.storage.catalogue import Catalogue
from model.layers.poolings import TwoLayers
from model.modelfile import load_model, save_model

if TYPE_CHECKING:
    from tests.indexer.conftest import World


def test_sound_index_has_no_problems(made: World) -> None:
    assert check_index(made.index) == []


def test_missing_index_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IndexMissing):
        check_index(tmp_path)
    with pytest.raises(IndexMissing):
        check_index(tmp_path / "no")


@pytest.mark.parametrize("value", [0.0, np.nan, 7.0])
def test_wrong_descriptors_are_counted(world: World, value: float) -> None:
    path = world.index / "generations/01/shards/000001.npy"
    shard = np.load(path, mmap_mode="r+")
    shard[2:4] = value
    shard.flush()
    (problem,) = check_index(world.index)
    assert problem.startswith("2 descriptors do not have length 1")


def test_other_model_is_a_problem(world: World) -> None:
    path = world.index / "generations/01/model.safetensors"
    model = load_model(path)
    assert isinstance(model.pooling, TwoLayers)
    model.pooling.upper.centres.data += 1
    save_model(model, path)
    (problem,) = check_index(world.index)
    assert problem.startswith(f"the model file {path} is ")
    path.write_bytes(path.read_bytes()[:1000])
    (problem,) = check_index(world.index)
    assert "is damaged" in problem


def test_model_with_flipped_bit_is_a_problem(world: World) -> None:
    path = world.index / "generations/01/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    (problem,) = check_index(world.index)
    assert "but the snapshot was made by" in problem


def test_damaged_catalogue_is_one_of_the_problems(world: World) -> None:
    path = world.index / "catalogue.sqlite"
    Catalogue(world.index, create=True).close()  # merges the log
    data = bytearray(path.read_bytes())
    data[4096:] = b"\x55" * (len(data) - 4096)
    path.write_bytes(data)
    (world.index / "generations/01/model.safetensors").unlink()
    problems = check_index(world.index)
    assert [problem.split(":")[0].partition(str(world.index))[0] for problem in problems] == [
        "the catalogue is damaged",
        "no model file ",
        "the descriptors cannot be read",
    ]


def test_lost_and_damaged_local_features_are_problems(world: World) -> None:
    path = world.index / "generations/01/local/000001-000.npy"
    records = np.load(path, mmap_mode="r+")
    records[2:4] = np.zeros(2, records.dtype)
    records.flush()
    (problem,) = check_index(world.index)
    assert problem.startswith("2 descriptors have no local features, so their photos are not verified")
    path.write_bytes(b"")
    (problem,) = check_index(world.index)
    assert problem.startswith(f"local features {path} cannot be read")

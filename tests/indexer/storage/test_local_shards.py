"""Shards of local features: writing, reading and damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from indexer.errors import IndexerError
from indexer.storage.local_shards import drop_local, read_local, write_local
from indexer.storage.rows import Slot
from model.layers.local_features import Packed, packed_type

ROWS = 64
"""Records of a file in tests: see tests/small_shards.py."""


def records(count: int, features: int = 3) -> list[Packed]:
    made = np.zeros(count, packed_type(features))
    made["size"] = 2, 3
    made["codes"] = np.random.default_rng(count).integers(-127, 128, made["codes"].shape)
    return list(made)


def test_records_are_read_in_any_order(tmp_path: Path) -> None:
    slots = [Slot(1, 5), Slot(1, ROWS - 1), Slot(1, ROWS), Slot(2, 0), Slot(500_000, 3)]
    given = records(5)
    write_local(tmp_path / "local", slots, given)
    names = sorted(path.name for path in (tmp_path / "local").iterdir())
    assert names == ["000001-000.npy", "000001-001.npy", "000002-000.npy", "500000-000.npy"]
    for i in (3, 0, 4, 2, 1):
        (found,) = read_local(tmp_path / "local", [slots[i]])
        assert found is not None
        assert found.tobytes() == given[i].tobytes()
    both = read_local(tmp_path / "local", [slots[2], slots[0]])
    assert [one is not None and one.tobytes() for one in both] == [given[2].tobytes(), given[0].tobytes()]


def test_unwritten_slots_have_no_features(tmp_path: Path) -> None:
    assert read_local(tmp_path, [Slot(1, 0)]) == [None]
    write_local(tmp_path, [Slot(1, 0), Slot(1, 1)], [records(1)[0], None])
    assert read_local(tmp_path, [Slot(1, 1), Slot(2, 0)]) == [None, None]
    write_local(tmp_path / "none", [Slot(1, 0)], [None])
    assert not (tmp_path / "none").exists()


def test_slots_can_be_overwritten(tmp_path: Path) -> None:
    write_local(tmp_path, [Slot(1, 0)], records(1))
    second = records(2)[1]
    write_local(tmp_path, [Slot(1, 0)], [second])
    (found,) = read_local(tmp_path, [Slot(1, 0)])
    assert found is not None
    assert found.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "cannot be read"),
        (lambda path: np.save(path, np.zeros(ROWS, [("size", "<u2", (2,))])), f"are not {ROWS} records"),
        (lambda path: np.save(path, np.zeros(7, packed_type(3))), f"are not {ROWS} records"),
    ],
)
def test_damaged_file_is_one_sentence(tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    write_local(tmp_path, [Slot(1, 0)], records(1))
    harm(tmp_path / "000001-000.npy")
    with pytest.raises(IndexerError, match=rf"local features .*000001-000\.npy {message}"):
        read_local(tmp_path, [Slot(1, 0)])


def test_other_local_features_are_refused(tmp_path: Path) -> None:
    write_local(tmp_path, [Slot(1, 0)], records(1))
    with pytest.raises(IndexerError, match="holds other local features than this model's"):
        write_local(tmp_path, [Slot(1, 1)], records(1, features=4))


def test_files_of_one_shard_are_deleted(tmp_path: Path) -> None:
    write_local(tmp_path, [Slot(1, 0), Slot(1, ROWS), Slot(11, 0)], records(3))
    drop_local(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["000011-000.npy"]

"""Descriptor shards: writing, reading and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.errors import IndexerError
from indexer.storage import shards
from indexer.storage.rows import Slot
from indexer.storage.shards import ShardWriter, read_slots, rows_per_shard, shard_path

DIM = 8


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 0)  # gives the minimum, 64 rows


def descriptors(n: int, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(n, DIM))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def read(folder: Path, slots: list[Slot], block: int = 65536) -> NDArray[np.float32]:
    return np.concatenate(list(read_slots(folder, slots, DIM, block=block)))


def test_shard_has_about_64_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 64 * 2**20)
    assert rows_per_shard(512) == 65536
    assert rows_per_shard(32768) == 1024
    assert rows_per_shard(10**9) == 64


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, DIM, None)
    given = descriptors(150)
    slots = writer.append(given[:50]) + writer.append(given[50:])
    assert slots[:2] == [Slot(1, 0), Slot(1, 1)]
    assert slots[63:66] == [Slot(1, 63), Slot(2, 0), Slot(2, 1)]
    assert slots[-1] == Slot(3, 21)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["000001.npy", "000002.npy", "000003.npy"]
    order = np.random.default_rng(1).permutation(150)
    found = read(tmp_path, [slots[i] for i in order], block=7)
    np.testing.assert_array_equal(found, given[order].astype(np.float16).astype(np.float32))


def test_unrecorded_rows_are_overwritten(tmp_path: Path) -> None:
    first = ShardWriter(tmp_path, DIM, None).append(descriptors(10))
    ShardWriter(tmp_path, DIM, first[3]).append(descriptors(100, 1))  # killed before its transaction
    again = ShardWriter(tmp_path, DIM, first[3]).append(descriptors(5, 2))
    assert again[0] == Slot(1, 4)
    np.testing.assert_array_equal(read(tmp_path, first[:4]), descriptors(10)[:4].astype(np.float16))
    np.testing.assert_array_equal(read(tmp_path, again), descriptors(5, 2).astype(np.float16))


def test_full_shard_is_followed_by_next(tmp_path: Path) -> None:
    slots = ShardWriter(tmp_path, DIM, None).append(descriptors(64))
    assert ShardWriter(tmp_path, DIM, slots[-1]).append(descriptors(1)) == [Slot(2, 0)]


def test_unfinished_shard_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def rename(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", rename)
        with pytest.raises(Killed):
            ShardWriter(tmp_path, DIM, None).append(descriptors(1))
    assert not shard_path(tmp_path, 1).exists()
    slots = ShardWriter(tmp_path, DIM, None).append(descriptors(3))
    np.testing.assert_array_equal(read(tmp_path, slots), descriptors(3).astype(np.float16))


def test_no_slots_give_no_blocks(tmp_path: Path) -> None:
    assert list(read_slots(tmp_path, [], DIM)) == []


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(b"\x80\x04garbage"), "cannot be read"),
        (lambda path: np.save(path, np.zeros((64, DIM), np.float32)), "is not float16 n×8"),
        (lambda path: np.save(path, np.zeros((64, DIM + 1), np.float16)), "is not float16 n×8"),
        (lambda path: np.save(path, np.zeros((2, DIM), np.float16)), "is too short"),
    ],
)
def test_damaged_shard_is_one_sentence(tmp_path: Path, harm: object, message: str) -> None:
    assert callable(harm)
    slots = ShardWriter(tmp_path, DIM, None).append(descriptors(5))
    harm(shard_path(tmp_path, 1))
    with pytest.raises(IndexerError, match=rf"descriptor shard .*000001\.npy {message}"):
        read(tmp_path, slots)

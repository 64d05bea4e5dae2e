"""Compaction of shards while others read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.build.rebuild import rebuild
from indexer.index import Index
from indexer.photos.metadata import PhotoMetadata
from indexer.storage.catalogue import Catalogue

if TYPE_CHECKING:
    from tests.indexer.conftest import Handmade

Floats = NDArray[np.float32]
Unit = Callable[..., Floats]

ROWS = 64  # of a shard, the minimum


@pytest.fixture
def made(
    handmade: Handmade, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> tuple[Handmade, dict[str, Floats]]:
    """Two hundred photos in four shards, and their descriptors."""
    monkeypatch.setattr("indexer.storage.shards.SHARD_BYTES", 0)
    draw = np.random.default_rng(0)
    descriptors = [unit(draw) for _ in range(200)]
    ids = handmade.make([(PhotoMetadata(), [descriptor]) for descriptor in descriptors])
    return handmade, dict(zip(ids, descriptors, strict=True))


def shards(folder: Path) -> list[int]:
    return sorted(int(file.stem) for file in (folder / "generations/01/shards").iterdir())


def assert_finds(index: Index, live: dict[str, Floats]) -> None:
    """The index finds exactly these photos, each by its own descriptor."""
    for id, descriptor in live.items():
        assert index.nearest(descriptor, 1)[0].id == id
    assert len(index.nearest(descriptor, 1000)) == len(live)
    ids, rows = index.descriptors()
    assert {id: row.tolist() for id, row in zip(ids, rows, strict=True)} == {
        id: row.tolist() for id, row in live.items()
    }


def test_shard_with_a_quarter_dead_rows_is_emptied(
    made: tuple[Handmade, dict[str, Floats]], unit: Unit
) -> None:
    handmade, live = made
    before = handmade.open()
    ids = list(live)
    for id in (*ids[:17], *ids[ROWS : ROWS + 16]):  # 17 of the first shard's 64, a quarter of the second's
        before.posting().remove(id)
        del live[id]
    rebuild(handmade.folder)
    catalogue = Catalogue(handmade.folder)
    assert [shard for shard, _, _ in catalogue.shard_use(1)] == [2, 3, 4]
    assert shards(handmade.folder) == [1, 2, 3, 4]  # readers may still need the files
    opened = handmade.open()
    for index in (before, opened):
        assert_finds(index, live)
    draw = np.random.default_rng(1)
    for number in range(3 * ROWS):
        new = handmade.new(number)
        live[new.id] = unit(draw)
        before.posting().add(new, live[new.id][None])
    rebuild(handmade.folder)
    assert shards(handmade.folder) == [2, 3, 4, 500_000, 500_001, 500_002]
    for index in (before, opened, handmade.open()):
        assert_finds(index, live)
    for number in range(ROWS):  # all photos of the first POSTed shard
        before.posting().remove(handmade.new(number).id)
        del live[handmade.new(number).id]
    for _ in range(2):
        rebuild(handmade.folder)
    assert shards(handmade.folder) == [2, 3, 4, 500_001, 500_002]
    for index in (before, opened, handmade.open()):
        assert_finds(index, live)
    back = handmade.new(0)
    live[back.id] = unit(draw)
    assert before.posting().add(back, live[back.id][None])[1]
    assert_finds(before, live)


def test_row_that_moves_meanwhile_is_read(
    made: tuple[Handmade, dict[str, Floats]], unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    handmade, live = made
    index = handmade.open()
    draw = np.random.default_rng(2)
    for number in range(2 * ROWS):
        new = handmade.new(number)
        live[new.id] = unit(draw)
        index.posting().add(new, live[new.id][None])
    reader = handmade.open()
    last = handmade.new(999)
    live[last.id] = unit(draw)
    index.posting().add(last, live[last.id][None])
    moved = Catalogue(handmade.folder, create=True)
    slots = Catalogue.slots
    times: list[object] = []

    def then_move(self: Catalogue, generation: int, ids: list[int]) -> object:
        found = slots(self, generation, ids)
        if not times:  # compact now, twice, so that the file is deleted
            for number in range(2 * ROWS):
                index.posting().remove(handmade.new(number).id)
                live.pop(handmade.new(number).id)
            with moved.transaction() as db:
                db.execute("UPDATE descriptors SET shard = 5, row = 0 WHERE id = ?", (found[0][0],))
            folder = handmade.folder / "generations/01/shards"
            (folder / "500002.npy").rename(folder / "000005.npy")
        times.append(found)
        return found

    monkeypatch.setattr(Catalogue, "slots", then_move)
    assert reader.nearest(live[last.id], 1)[0].id == last.id
    assert len(times) == 2

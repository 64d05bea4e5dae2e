"""Compaction: shards with many dead rows are emptied. Their live rows move to the end of the last shard."""

from __future__ import annotations

import numpy as np

from indexer.snapshots.saved_store import shards_named
from indexer.storage.catalogue import Catalogue
from indexer.storage.layout import Layout
from indexer.storage.local_shards import drop_local, read_local, write_local
from indexer.storage.lock import is_backed_up
from indexer.storage.rows import Slot
from indexer.storage.shards import POSTED, RUN, ShardWriter, read_slots, shard_path

DEAD_SHARE = 0.25  # of a shard's rows, from which it is emptied


def compact(layout: Layout, catalogue: Catalogue, generation: int, dim: int) -> int:
    """Empty the shards of a generation with over a quarter dead rows, and return their number.

    The write lock must be held. Removed photos lose their descriptors here. A photo that comes back is
    embedded again. The file of an emptied shard is deleted the next time, because a reader may still need its
    rows.
    """
    _drop_emptied(layout, catalogue, generation)
    emptied = 0
    for shard, live, rows in catalogue.shard_use(generation):
        if shard not in _newest(catalogue, generation) and live < (1 - DEAD_SHARE) * rows:
            _move(layout, catalogue, generation, dim, shard)
            emptied += 1
    return emptied


def _newest(catalogue: Catalogue, generation: int) -> list[int]:
    """Return the last shard of each range, which is still being filled."""
    last = (catalogue.last_slot(generation, shards) for shards in (RUN, POSTED))
    return [slot.shard for slot in last if slot is not None]


def _move(layout: Layout, catalogue: Catalogue, generation: int, dim: int, shard: int) -> None:
    live = [item for item in catalogue.live_descriptors(generation) if item[2].shard == shard]
    moved: list[tuple[int, Slot]] = []
    if live:
        before = [slot for _, _, slot in live]
        rows = np.concatenate(list(read_slots(layout.shards(generation), before, dim)))
        local = read_local(layout.local(generation), before)
        last = catalogue.last_slot(generation, RUN)
        slots = ShardWriter(layout.shards(generation), dim, last).append(rows)
        write_local(layout.local(generation), slots, local)
        moved = [(number, slot) for (number, _, _), slot in zip(live, slots, strict=True)]
    with catalogue.transaction() as db:
        catalogue.move_descriptors(db, moved)
        catalogue.drop_dead(db, generation, shard)


def _drop_emptied(layout: Layout, catalogue: Catalogue, generation: int) -> None:
    """Delete the files of shards that no row and no snapshot uses, except a shard that a POST has just begun.

    During a backup all files stay.
    """
    used = {shard for shard, _, _ in catalogue.shard_use(generation)}
    for snapshot in layout.snapshots(generation):
        used |= shards_named(snapshot)  # current until the next snapshot
    if is_backed_up(layout.folder):
        return
    for newest in _newest(catalogue, generation):
        shards = RUN if newest in RUN else POSTED
        for file in layout.shards(generation).glob("*.npy"):
            shard = int(file.stem)
            if shard in shards and shard < newest and shard not in used:
                drop_local(layout.local(generation), shard)
                shard_path(layout.shards(generation), shard).unlink(missing_ok=True)

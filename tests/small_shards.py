"""Smaller files of descriptors and local features, for tests and for the processes that they start."""

import pytest

from indexer.storage import local_shards, shards

REAL = {shards: ("SHARD_BYTES", shards.SHARD_BYTES), local_shards: ("ROWS", local_shards.ROWS)}


def make_shards_small() -> None:
    """Shards are preallocated: at their usual size, each copy of a tiny index would write 100 MB."""
    shards.SHARD_BYTES = 2**20
    local_shards.ROWS = 64


def use_real_shards(patch: pytest.MonkeyPatch) -> None:
    """Use the usual size, for indexes that another process reads."""
    for module, (name, value) in REAL.items():
        patch.setattr(module, name, value)

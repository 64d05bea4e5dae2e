"""Smaller shards for tests and for the processes that they start."""

from indexer.storage import local_shards, shards


def make_shards_small() -> None:
    """Reduce the size of shards, of which each copy of an index would otherwise write 100 MB."""
    shards.SHARD_BYTES = 2**20
    local_shards.ROWS = 64

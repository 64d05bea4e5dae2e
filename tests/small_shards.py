"""Smaller files of descriptors and local features, for tests and for the processes that they start."""

from indexer.storage import local_shards, shards


def make_shards_small() -> None:
    """Shards are preallocated: at their usual size, each copy of a tiny index would write 100 MB."""
    shards.SHARD_BYTES = 2**20
    local_shards.ROWS = 64

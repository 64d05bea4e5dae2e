"""The index folder on disk: layout, locks, catalogue, shards."""

"""The index folder on disk: layout, locks, catalogue and shards."""
